"""The book's own world: coloured shapes at places, and everything that can be said of them.

A :class:`Scene` is data. Its picture, captions, boxes, graph and questions are functions of it::

    from mmlib.data import scenes

    batch = scenes.sample(1000, seed=0, split="train")
    pictures = scenes.render(batch, size=32)
    captions = [scenes.caption(scene, "zh") for scene in batch]
"""

from mmlib.data.scenes.captions import caption, is_true, translate, word_alignment
from mmlib.data.scenes.grammar import detokenize, tokenize, vocabulary
from mmlib.data.scenes.motion import (
    HEADINGS,
    SPEEDS,
    STOP_TIME,
    Clip,
    Motion,
    clip_caption,
    held_out_moves,
    render_clip,
    sample_clips,
)
from mmlib.data.scenes.pictures import boxes, render
from mmlib.data.scenes.programs import ANSWERS, Program, execute
from mmlib.data.scenes.question import KINDS, Question, questions
from mmlib.data.scenes.relations import (
    DIRECTIONS,
    MARGIN,
    OPPOSITE,
    PLACES,
    RELATIONS,
    Graph,
    Node,
    direction,
    graph,
    holds,
    place,
)
from mmlib.data.scenes.sampling import sample
from mmlib.data.scenes.splits import DEFAULT_HOLDOUT, SPLITS, Holdout, holdout
from mmlib.data.scenes.world import (
    BACKGROUND_HEX,
    BACKGROUNDS,
    COLOUR_HEX,
    COLOURS,
    GAP,
    MAX_OBJECTS,
    RADIUS,
    SHAPES,
    SIZES,
    Object,
    Scene,
)

__all__ = [
    "ANSWERS",
    "BACKGROUNDS",
    "BACKGROUND_HEX",
    "COLOURS",
    "COLOUR_HEX",
    "DEFAULT_HOLDOUT",
    "DIRECTIONS",
    "GAP",
    "HEADINGS",
    "KINDS",
    "MARGIN",
    "MAX_OBJECTS",
    "OPPOSITE",
    "PLACES",
    "RADIUS",
    "RELATIONS",
    "SHAPES",
    "SIZES",
    "SPEEDS",
    "SPLITS",
    "STOP_TIME",
    "Clip",
    "Graph",
    "Holdout",
    "Motion",
    "Node",
    "Object",
    "Program",
    "Question",
    "Scene",
    "boxes",
    "caption",
    "clip_caption",
    "detokenize",
    "direction",
    "execute",
    "graph",
    "held_out_moves",
    "holdout",
    "holds",
    "is_true",
    "place",
    "questions",
    "render",
    "render_clip",
    "sample",
    "sample_clips",
    "tokenize",
    "translate",
    "vocabulary",
    "word_alignment",
]
