"""The book's own world: coloured shapes at places, and everything that can be said of them.

A :class:`Scene` is data. Its picture, captions, boxes, graph and questions are functions of it::

    from mmlib.data import scenes

    batch = scenes.sample(1000, seed=0, split="train")
    pictures = scenes.render(batch, size=32)
    captions = [scenes.caption(scene, "zh") for scene in batch]
"""

from mmlib.data.scenes.captions import caption, is_true, translate, word_alignment
from mmlib.data.scenes.grammar import detokenize, tokenize, vocabulary
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
from mmlib.data.scenes.render import boxes, render
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
    "BACKGROUNDS",
    "BACKGROUND_HEX",
    "COLOURS",
    "COLOUR_HEX",
    "DEFAULT_HOLDOUT",
    "DIRECTIONS",
    "GAP",
    "MARGIN",
    "MAX_OBJECTS",
    "OPPOSITE",
    "PLACES",
    "RADIUS",
    "RELATIONS",
    "SHAPES",
    "SIZES",
    "SPLITS",
    "Graph",
    "Holdout",
    "Node",
    "Object",
    "Scene",
    "boxes",
    "caption",
    "detokenize",
    "direction",
    "graph",
    "holdout",
    "holds",
    "is_true",
    "place",
    "render",
    "sample",
    "tokenize",
    "translate",
    "vocabulary",
    "word_alignment",
]
