"""Numbers of the section on easy-VQA in ``book/data.md``; ``data_page.py`` writes them there."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from mmlib.data import easy_vqa

COLOURS = {
    "black": (0, 0, 0),
    "gray": (128, 128, 128),
    "blue": (0, 0, 255),
    "brown": (165, 42, 42),
    "green": (0, 255, 0),
    "red": (255, 0, 0),
    "teal": (0, 128, 128),
    "yellow": (255, 255, 0),
}
"""What the colour words mean in the pictures, red, green and blue."""

SHAPES = ("circle", "rectangle", "triangle")


@cache
def sets() -> tuple[easy_vqa.EasyVQA, easy_vqa.EasyVQA]:
    """The training and the test set."""
    return easy_vqa.load("train"), easy_vqa.load("test")


@cache
def masks(split: str) -> tuple[list[str], Tensor]:
    """Read the colour of each shape off its pixels, and where the shape is.

    Backgrounds are paler than any of the colours, and edges blend the two, so the pixels of
    exactly one of the colours are the inside of the shape.
    """
    images = sets()[easy_vqa.SPLITS.index(split)].images
    palette = torch.tensor(list(COLOURS.values()), dtype=torch.uint8)
    colours, inside = [], []
    for part in images.split(500):
        equal = (part[:, None] == palette[None, :, :, None, None]).all(2)  # (n, colours, 64, 64)
        counts = equal.flatten(2).sum(2)
        if ((counts > 0).sum(1) != 1).any():
            raise ValueError("a picture must hold exactly one of the colours")
        best = counts.argmax(1)
        colours += [list(COLOURS)[i] for i in best.tolist()]
        inside.append(equal[torch.arange(len(part)), best])
    return colours, torch.cat(inside)


def shape(mask: Tensor) -> str:
    """Read a shape off its mask: does it fill its box, is its lower half the heavier one?

    The lower half of a triangle weighs three times the upper, that of a circle the same. Few
    pixels blur both, but no circle here exceeds 1.4 and no triangle falls below 2.2.
    """
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    if box.all():
        return "rectangle"
    return "triangle" if lower_weight(box) > 1.7 else "circle"


def lower_weight(box: Tensor) -> float:
    """Say how many times as many pixels the lower half of a box holds as the upper."""
    half = len(box) // 2
    return int(box[len(box) - half :].sum()) / int(box[:half].sum())


@cache
def truth(split: str) -> list[tuple[str, str]]:
    """Colour and shape of each picture of a split, read off its pixels."""
    colours, inside = masks(split)
    return list(zip(colours, map(shape, inside), strict=True))


def answer(question: str, colour: str, form: str) -> str:
    """Answer a question from what the picture shows."""
    words = question.rstrip("?").split()
    if words[0] == "what":
        return colour if "color" in words else form
    (asked,) = [word for word in words if word in COLOURS or word in SHAPES]
    there = asked in (colour, form)
    return "no" if there == bool({"no", "not"} & set(words)) else "yes"


def wrong_answers(split: str) -> int:
    """Count the answers of a split that contradict the picture."""
    data = sets()[easy_vqa.SPLITS.index(split)]
    seen = truth(split)
    rows = zip(data.questions, data.image_index.tolist(), data.answers.tolist(), strict=True)
    return sum(answer(q, *seen[i]) != data.answer_names[a] for q, i, a in rows)


def twins() -> int:
    """Count test pictures that some training picture equals up to the shade of the background."""
    keys = {
        split: [
            (colour, mask.numpy().tobytes()) for colour, mask in zip(*masks(split), strict=True)
        ]
        for split in easy_vqa.SPLITS
    }
    known = set(keys["train"])
    return sum(key in known for key in keys["test"])


def areas() -> Tensor:
    """Count the pixels of the inside of every shape, both splits."""
    return torch.cat([masks(split)[1].flatten(1).sum(1) for split in easy_vqa.SPLITS])


@cache
def numbers() -> dict[str, str | int | float]:
    """Every number of the section."""
    train, test = sets()
    rest, held = easy_vqa.hold_out(train)
    per_image = (
        torch.bincount(train.image_index).tolist() + torch.bincount(test.image_index).tolist()
    )
    yes_no = sum(test.answer_names[a] in ("yes", "no") for a in test.answers.tolist())
    return {
        "easy_vqa.images": len(train.images) + len(test.images),
        "easy_vqa.questions": len(train) + len(test),
        "easy_vqa.train_images": len(train.images),
        "easy_vqa.test_images": len(test.images),
        "easy_vqa.train_questions": len(train),
        "easy_vqa.test_questions": len(test),
        "easy_vqa.fewest": min(per_image),
        "easy_vqa.most": max(per_image),
        "easy_vqa.distinct": len(set(train.questions)),
        "easy_vqa.unseen": len(set(test.questions) - set(train.questions)),
        "easy_vqa.words": len(easy_vqa.vocabulary(train.questions)) - 2,
        "easy_vqa.answers": len(easy_vqa.ANSWERS),
        "easy_vqa.colours": len(COLOURS),
        "easy_vqa.shapes": len(SHAPES),
        "easy_vqa.megabytes": easy_vqa.SOURCE.size / 1e6,
        "easy_vqa.majority": 100 * easy_vqa.majority(train, test).accuracy,
        "easy_vqa.question_only": 100 * easy_vqa.question_only(train, test).accuracy,
        "easy_vqa.yes_no_percent": 100 * yes_no / len(test),
        "easy_vqa.held_images": len(held.images),
        "easy_vqa.held_questions": len(held),
        "easy_vqa.rest_images": len(rest.images),
        "easy_vqa.rest_questions": len(rest),
        "easy_vqa.combinations": len(set(truth("train"))),
        "easy_vqa.combinations_unseen": len(set(truth("test")) - set(truth("train"))),
        "easy_vqa.wrong": wrong_answers("train") + wrong_answers("test"),
        "easy_vqa.repeated": sum(
            len(d) - len(set(zip(d.questions, d.image_index.tolist(), strict=True))) for d in sets()
        ),
        "easy_vqa.twins": twins(),
        "easy_vqa.smallest": int(areas().min()),
        "easy_vqa.small_percent": 100 * (areas() < 41).double().mean().item(),
    }
