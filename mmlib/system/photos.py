"""Photographs with captions and questions: COCO and VQAv2, or a folder in their format (照片).

The page :doc:`/book/data-coco` says how to get them. Training takes ``train2014`` and the marks
``val2014``; without them :func:`mmlib.data.coco_example.write_example` writes a small folder in
exactly their format. Photographs are looked at and talked about, and not drawn: the autoencoder of
chapter 09 has seen nothing but coloured shapes and small drawings.
"""

import os
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader

from mmlib.data.coco import Captions
from mmlib.data.vqa_v2 import VQA, Asked
from mmlib.encoders.preprocessing import Recipe, preprocess
from mmlib.system.pictures import Pictures

__all__ = ["Photos"]

CHUNK = 64


class Photos:
    """The photographs of one split, encoded once, and what people said of them.

    Broken pictures and records are left out and counted (:mod:`mmlib.data.records`).

    Args:
        folder: Holds ``train2014`` and ``val2014``, VQAv2's four files, and COCO's
            ``captions_train2014.json`` and ``captions_val2014.json``, or ``annotations`` with them.
        split: ``"train"`` or ``"val"``.
        pictures: How they are looked at.
        fits: Whether there is room for a text; captions and questions that are too long are left
            out. By default everything fits.
        most: How many photographs to take at most, the first ones by their ids.

    Attributes:
        features: Of their regions, in bfloat16.
        captions: Some of each, at least one.
        questions: Of each, with the answers of ten people; there may be none.
        skipped: How many captions and questions were left out because they are too long.

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: another split, ``most`` is below 1, or nothing fits.
        mmlib.data.records.RecordError: a file is not in the format.
    """

    def __init__(
        self,
        folder: Path | str,
        split: str,
        pictures: Pictures,
        *,
        fits: Callable[[str], bool] = lambda text: True,
        most: int | None = None,
    ) -> None:
        if split not in ("train", "val"):
            raise ValueError(f"split must be 'train' or 'val': got {split!r}")
        if most is not None and most < 1:
            raise ValueError(f"most must be at least 1: got {most}")
        folder, subset = Path(folder), f"{split}2014"
        transform = _Resized(pictures.recipe)
        said = Captions(
            folder / subset, _found(folder, f"captions_{subset}.json"), transform, on_error="skip"
        )
        if most is not None:
            said = said.select(range(min(most, len(said))))
        asked = VQA(
            _found(folder, f"v2_OpenEnded_mscoco_{subset}_questions.json"),
            _found(folder, f"v2_mscoco_{subset}_annotations.json"),
            on_error="skip",
        )
        about: dict[int, list[Asked]] = {}
        self.skipped = 0
        for item in asked.items:
            if fits(f"{item.question} {item.answer}"):
                about.setdefault(item.image_id, []).append(item)
            else:
                self.skipped += 1
        parts: list[Tensor] = []
        self.captions: list[list[str]] = []
        self.questions: list[list[Asked]] = []
        loader = DataLoader(said, CHUNK, num_workers=_workers(), collate_fn=list)
        for items in loader:
            kept = []
            for item in items:
                short = [text for text in item.captions if fits(text)]
                self.skipped += len(item.captions) - len(short)
                if short:
                    kept.append(item.image)
                    self.captions.append(short)
                    self.questions.append(about.get(item.image_id, []))
            if kept:
                parts.append(pictures.look(torch.stack(kept)).bfloat16())
        if not parts:
            raise ValueError(f"folder must hold captions that fit: got none in {folder}")
        self.features: Float[Tensor, "pictures regions dim"] = torch.cat(parts)

    def __len__(self) -> int:
        return len(self.captions)


class _Resized:
    """Of a Pillow image; a class, since worker processes take it over."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def __call__(self, image) -> Float[Tensor, "3 side side"]:
        return preprocess(image, self.recipe)[0].clamp(0, 1)


def _found(folder: Path, name: str) -> Path:
    """COCO's archives unpack into ``annotations``, VQAv2's beside it."""
    inside = folder / "annotations" / name
    return inside if inside.exists() else folder / name


def _workers() -> int:
    """Decoding is most of the work; two cores are busy with what comes after it."""
    return max(0, (os.cpu_count() or 1) - 2)
