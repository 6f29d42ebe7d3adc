"""A picture for a caption: chapter 11's DALL·E paints some, chapter 10's CLIP chooses one.

It knows the words of the captions of one or two shapes. A request is a batch already, of its
candidates, and draws with a seed of its own: so it is answered alone, takes as long as many others
together, and has limits of its own.
"""

from collections.abc import Sequence
from typing import Annotated

import torch
from jaxtyping import Int
from PIL import Image
from pydantic import AfterValidator, ConfigDict, Field
from torch import Tensor

from mmlib.painters import CAPTION_LENGTH, paint, rerank, scene_dalle
from mmlib.serving.functions import Job, Limits, Reply, Request, Text, only_words, png_url
from mmlib.small_clips import scene_clip, scene_tokenizer

__all__ = ["PaintingReply", "PaintingRequest", "ScenePainting"]

_SHOWN = 256  # pixels; it paints 32
_GUIDANCE, _TEMPERATURE = 1.5, 0.5  # of chapter 11's measurements


def _known(caption: str) -> str:
    tokenizer = scene_tokenizer()
    # The tokeniser's own words for this, with `<unknown>` where there is none.
    words = caption.lower().replace(",", " , ").split()
    return only_words(" ".join(words), words, tokenizer_words(), CAPTION_LENGTH - 2)
