"""A picture for a caption: chapter 11's DALL·E paints some, chapter 10's CLIP chooses one.

It knows the words of captions of one or two shapes. A request is a batch already, of its
candidates, and draws with a seed of its own: so each is answered alone, takes as long as many
captions do, and has limits of its own.
"""

import re
from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from PIL import Image
from pydantic import AfterValidator, ConfigDict, Field

from mmlib.data import scenes
from mmlib.painters import CAPTION_LENGTH, paint, rerank, scene_dalle
from mmlib.serving.functions import Job, Limits, Reply, Request, Text, check_words, png_url
from mmlib.small_clips import scene_clip, scene_tokenizer

__all__ = ["PaintingReply", "PaintingRequest", "ScenePainting"]

_SHOWN = 256  # pixels a side; it paints 32
_GUIDANCE, _TEMPERATURE = 1.5, 0.5  # what chapter 11 measured with


def _known(caption: str) -> str:
    caption = caption.lower().rstrip(" .")
    words = re.findall(r"\w+|[^\w\s]+", caption)  # as the tokeniser splits
    check_words(words, scenes.vocabulary("en", "canonical"), CAPTION_LENGTH - 2)  # begin and end
    return caption


class PaintingRequest(Request):
    """What is to be seen."""

    model_config = ConfigDict(strict=True)

    caption: Annotated[
        Text,
        AfterValidator(_known),
        Field(description="such as: a small red star to the left of a large blue ring"),
    ]
    candidates: Annotated[int, Field(ge=1, le=16, description="of which the best is given")] = 8
    seed: Annotated[int, Field(ge=0, lt=2**32, description="the same gives the same")] = 0


class PaintingReply(Reply):
    """The candidate that CLIP finds nearest to the caption."""

    image: Annotated[str, Field(description="a PNG as a data: address")]


class ScenePainting:
    """Paint one or two shapes of the sizes and colours that a caption names, where it says."""

    name, title = "paint", "Text to image"
    summary = "Paint a caption of one or two coloured shapes."
    request, reply, takes_picture = PaintingRequest, PaintingReply, False
    # About a second each: eight that wait are answered long before the timeout.
    limits = Limits(max_batch=1, max_queue=8, timeout=30.0)

    def load(self) -> None:
        """Load the painter and the one who chooses."""
        self._dalle, self._clip = scene_dalle(trained=True), scene_clip(trained=True)
        self.run([Job(PaintingRequest(caption="a small red star in the centre", candidates=1))])

    def run(self, jobs: Sequence[Job]) -> list[Reply]:
        """A picture for each caption, one after the other."""
        return [PaintingReply(image=png_url(self._paint(job.request))) for job in jobs]

    @torch.no_grad()
    def _paint(self, request: PaintingRequest) -> Image.Image:
        tokenizer = scene_tokenizer()
        ids = tokenizer.encode([request.caption], CAPTION_LENGTH, pad_to=CAPTION_LENGTH).ids
        made = paint(
            self._dalle,
            ids.expand(request.candidates, -1),
            torch.Generator().manual_seed(request.seed),
            guidance=_GUIDANCE,
            temperature=_TEMPERATURE,
        )
        (best,) = rerank(self._clip, made[None], tokenizer.encode([request.caption]).ids)
        pixels = (255 * best.clamp(0, 1)).round().byte().permute(1, 2, 0).numpy()
        picture = Image.fromarray(np.ascontiguousarray(pixels))
        return picture.resize((_SHOWN, _SHOWN), Image.Resampling.NEAREST)
