"""A sentence about a picture of coloured shapes: chapter 08's captioner as a function.

It knows the book's scenes and nothing else: of a photograph it says what it would look like if it
were one.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
from PIL import Image
from pydantic import Field

from mmlib.captioning import CaptionDecoding, CaptionerConfig, ImageCaptioner, LSTMCaptioner
from mmlib.data import scenes
from mmlib.data.translation import BEGIN, END, Vocabulary
from mmlib.decoding import beam_search
from mmlib.encoders.preprocessing import Recipe, preprocess
from mmlib.encoders.small_cnn import SmallCNN
from mmlib.serving.functions import Job, Limits, Reply, Request
from mmlib.training import load_weights

__all__ = ["CaptionReply", "CaptionRequest", "SceneCaption", "scene_captioner"]

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
_LENGTH = 48
_RECIPE = Recipe(32, whole=True)


class CaptionRequest(Request):
    """How to write."""

    beams: Annotated[int, Field(ge=1, le=5, description="captions kept while writing")] = 3


class CaptionReply(Reply):
    """What is seen."""

    caption: str
    probability: Annotated[float, Field(description="that the model gives to this caption")]


def scene_vocabulary() -> Vocabulary:
    """The words of chapter 08's long runs; the last marks a caption in free words."""
    return Vocabulary([*scenes.vocabulary("en", "free"), "<free>"])


def scene_captioner() -> ImageCaptioner:
    """The LSTM that chapter 08 trained on scenes of 32 pixels, in evaluation mode."""
    encoder = SmallCNN(64)
    config = CaptionerConfig(len(scene_vocabulary()), encoder.dim, max_regions=64, dim=96)
    model = ImageCaptioner(encoder, LSTMCaptioner(config))
    load_weights(model, CHECKPOINTS / "08_scenes_lstm.safetensors")
    return model.eval()


class SceneCaption:
    """Say what shapes are in a picture, of what size and colour, and where."""

    name, title = "caption", "Captioning"
    summary = "Describe a picture of coloured shapes in a sentence."
    request, reply, takes_picture = CaptionRequest, CaptionReply, True
    limits = Limits()

    def load(self) -> None:
        """Load the captioner."""
        self._vocabulary = scene_vocabulary()
        self._model = scene_captioner()
        self.run([Job(CaptionRequest(), Image.new("RGB", (32, 32), "white"))])

    @torch.no_grad()
    def run(self, jobs: Sequence[Job]) -> list[Reply]:
        """A caption for each picture; those with as many beams are written together."""
        replies: dict[int, CaptionReply] = {}
        for beams in {job.request.beams for job in jobs}:
            places = [i for i, job in enumerate(jobs) if job.request.beams == beams]
            pictures = torch.cat([preprocess([jobs[i].picture], _RECIPE) for i in places])
            made = beam_search(
                CaptionDecoding(self._model.captioner, self._model.encoder(pictures).tokens),
                begin=BEGIN,
                end=END,
                beams=beams,
                max_length=_LENGTH,
            )
            chances = made.log_probs[:, 0].exp().tolist()
            for i, ids, chance in zip(places, made.best(), chances, strict=True):
                text = scenes.detokenize(self._vocabulary.decode(ids), "en")
                replies[i] = CaptionReply(caption=text, probability=round(chance, 4))
        return [replies[i] for i in range(len(jobs))]
