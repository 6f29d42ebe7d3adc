"""What a system makes as it learns, written where a person can look at it."""

from pathlib import Path

import torch

from mmlib.data import scenes
from mmlib.system.marking import describe, draw
from mmlib.system.stages import System

__all__ = ["save_picture", "write_samples"]


def write_samples(system: System, folder: Path) -> None:
    """Pictures that the system draws and captions that it gives, as training goes."""
    items = scenes.sample(4, 16_002, split="test", objects=(1, 2))
    texts = [scenes.caption(scene) for scene in items]
    said = describe(system, scenes.render(items, system.pictures.recipe.resize))
    lines = [f"{text}\n  says: {words}" for text, words in zip(texts, said, strict=True)]
    (folder / "captions.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for number, picture in enumerate(draw(system, texts)):
        if picture is not None:
            save_picture(picture, folder / f"{number}.png")


def save_picture(picture: torch.Tensor, path: Path) -> None:
    """Write a picture in [0, 1] as PNG, four times as large."""
    from PIL import Image

    pixels = (255 * picture.clamp(0, 1)).round().byte().permute(1, 2, 0).cpu().numpy()
    image = Image.fromarray(pixels)
    image.resize((4 * image.width, 4 * image.height), Image.Resampling.NEAREST).save(path)
