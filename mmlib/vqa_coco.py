r"""Train and measure the two towers of chapter 13 on VQAv2, or on anything in its format.

With the questions, annotations and pictures of COCO 2014 in one folder (the page
:doc:`/book/data` says where they come from)::

    python -m mmlib.vqa_coco --folder coco --out vqa --image-tower resnet50 \
        --text-tower bert-base-uncased

Without a network leave the two names out: EfficientNet-Lite0 and MiniLM come through pip. The
towers are locked, so that each picture and each question is encoded once; what is trained is the
fusion and the classifier over the frequent answers, with the soft scores of the ten people as
targets. At the end the official accuracy on the validation questions is printed as JSON, overall
and of each answer type, and written to ``report.json`` beside ``weights.safetensors`` and
``answers.json``.

**What it costs.** Training and validation have 123,287 pictures and 658,111 questions. ResNet-50
takes 8.2 GFLOP a picture, bert-base 1.4 GFLOP a question of 8 tokens: 1.9e15 FLOP, one minute of a
GPU that does 3e13 a second and five hours of two CPU cores that do 1e11. 123,287 JPEG files take a
core 20 minutes. The vectors are kept in memory: 2,048 numbers a picture and 768 a
question in half precision, 1.5 GB. A step of the classifier costs next to nothing.

**What it should give.** Published, on the test sets: 44.3 % for the question alone (Goyal et al.
2017), 54.2 % for one vector a picture from VGG and an LSTM (the same), 65.3 % with the regions of a
detector (Teney et al. 2018). This command has one vector a picture; it was run on the example of
:mod:`mmlib.data.coco_example` only, since VQAv2 cannot be had offline.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmlib.data.answers import AnswerVocabulary
from mmlib.data.samplers import at_least
from mmlib.data.vqa_v2 import VQA as Questions
from mmlib.encoders.preprocessing import preprocess
from mmlib.encoders.text import embed_texts
from mmlib.metrics.vqa_accuracy import VQAScores, vqa_scores
from mmlib.towers import Towers, towers
from mmlib.training import TrainConfig, fit, save_weights
from mmlib.vqa import VQA, VQAConfig, soft_target_loss

__all__ = ["Encodings", "Settings", "answer_all", "encode_all", "main", "run"]

FILES = {
    split: (
        f"v2_OpenEnded_mscoco_{split}2014_questions.json",
        f"v2_mscoco_{split}2014_annotations.json",
    )
    for split in ("train", "val")
}
_PEOPLE = 10


@dataclass(frozen=True)
class Settings:
    """What the command is told; ``python -m mmlib.vqa_coco --help`` lists it.

    Raises:
        ValueError: a number is out of range.
    """

    folder: str
    out: str
    image_tower: str = "efficientnet-lite0"
    text_tower: str = "minilm"
    fusion: str = "bilinear"
    dim: int = 1024
    at_least: int = 9
    epochs: int = 15
    batch_size: int = 512
    learning_rate: float = 1e-3
    size: int = 224
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("dim", "at_least", "epochs", "batch_size", "size"):
            at_least(1, name, getattr(self, name))


@dataclass(frozen=True, eq=False)
class Encodings:
    """The questions of one split as vectors.

    Attributes:
        pictures: One vector for each picture.
        questions: One for each question.
        of: Which picture each question is about.
    """

    pictures: Float[Tensor, "pictures image_dim"]
    questions: Float[Tensor, "questions question_dim"]
    of: Tensor


@torch.no_grad()
def encode_all(data: Questions, found: Towers, size: int, batch_size: int = 64) -> Encodings:
    """Encode every picture and every different question once.

    Args:
        data: The questions, with their pictures' folder.
        found: The locked towers.
        size: Height and width of the pictures.
        batch_size: How many are encoded at once.
    """
    first: dict[int, int] = {}
    for place, item in enumerate(data.items):
        first.setdefault(item.image_id, place)
    numbers = {image_id: number for number, image_id in enumerate(first)}
    recipe, places, parts = found.recipe.at(size), list(first.values()), []
    found.image.eval()
    for start in range(0, len(places), batch_size):
        images = [preprocess(data[i].image, recipe) for i in places[start : start + batch_size]]
        parts.append(found.image(torch.cat(images)).pooled.half())
    texts = [item.question for item in data.items]
    different = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    vectors = embed_texts(
        found.text, found.tokenizer, list(different), max_length=48, truncate=True
    )
    return Encodings(
        torch.cat(parts),
        vectors[[different[text] for text in texts]].half(),
        torch.tensor([numbers[item.image_id] for item in data.items]),
    )


@torch.no_grad()
def answer_all(model: VQA, encoded: Encodings, vocabulary: AnswerVocabulary) -> list[str]:
    """The model's answer to every question."""
    model.eval()
    said = []
    for rows in torch.arange(len(encoded.of)).split(1024):
        logits = model.answer(
            encoded.questions[rows].float(), encoded.pictures[encoded.of[rows]].float()
        )
        said += [vocabulary.answers[i] for i in logits.argmax(1).tolist()]
    return said


def run(settings: Settings, found: Towers | None = None, *, progress: bool = True) -> dict:
    """Encode, train, and measure on the validation questions.

    Args:
        settings: See :class:`Settings`.
        found: Towers in place of those that the settings name.
        progress: Whether to show a progress bar.

    Returns:
        The report: ``"settings"``, ``"answers"``, ``"reach"`` (what no classifier over these
        answers can surpass), ``"losses"`` (first and last), ``"validation"`` and
        ``"question_only"``, the same model where every picture is the mean picture.

    Raises:
        FileNotFoundError: a file or folder is not there.
        mmlib.data.records.RecordError: a file is not in the format, or a picture is broken.
    """
    found = found or towers(settings.image_tower, settings.text_tower)
    root, data = Path(settings.folder), {}
    for split, (asked, answered) in FILES.items():
        data[split] = Questions(root / asked, root / answered, root / f"{split}2014")
    vocabulary = data["train"].vocabulary(at_least=settings.at_least)
    targets = _Targets(data["train"], vocabulary)
    encoded = {split: encode_all(part, found, settings.size) for split, part in data.items()}
    train = encoded["train"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        config = VQAConfig(len(vocabulary), settings.dim, settings.fusion, dropout=0.3)
        model = VQA(_Locked(found.text.dim), _Locked(found.image.dim), config)
    size = min(settings.batch_size, len(train.of))
    steps = settings.epochs * max(1, len(train.of) // size)
    history = fit(
        model,
        lambda model, batch: soft_target_loss(model.answer(*batch[:2]), batch[2]),
        _batches(train, targets, size, settings.seed),
        TrainConfig(
            steps, settings.learning_rate, warmup=steps // 20, seed=settings.seed, progress=progress
        ),
    )
    val = encoded["val"]
    mean = val.pictures.float().mean(0, keepdim=True).half().expand_as(val.pictures)
    blind = Encodings(mean, val.questions, val.of)
    report = {
        "settings": asdict(settings),
        "answers": len(vocabulary),
        "reach": data["val"].reach(vocabulary),
        "losses": [history.losses[0], history.losses[-1]],
        "validation": _scores(answer_all(model, val, vocabulary), data["val"])._asdict(),
        "question_only": _scores(answer_all(model, blind, vocabulary), data["val"])._asdict(),
    }
    out = Path(settings.out)
    save_weights(model, out / "weights.safetensors", {"report": report})
    (out / "answers.json").write_text(json.dumps(vocabulary.answers), encoding="utf-8")
    (out / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    return report


class _Targets:
    """Soft scores of all questions, of which at most ten are not 0: dense, 5.5 GB for VQAv2."""

    def __init__(self, data: Questions, vocabulary: AnswerVocabulary) -> None:
        self.answers = len(vocabulary)
        best = [
            data.targets(i, vocabulary).topk(min(_PEOPLE, self.answers)) for i in range(len(data))
        ]
        self.scores = torch.stack([scores for scores, _ in best])
        self.places = torch.stack([places for _, places in best])

    def __getitem__(self, rows: Tensor) -> Tensor:
        dense = torch.zeros(len(rows), self.answers)
        return dense.scatter(1, self.places[rows], self.scores[rows])


class _Locked(nn.Module):
    """A tower whose vectors were made before."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim


def _batches(
    train: Encodings, targets: _Targets, size: int, seed: int
) -> Callable[[int], tuple[Tensor, Tensor, Tensor]]:
    steps = max(1, len(train.of) // size)

    def batch(n: int) -> tuple[Tensor, Tensor, Tensor]:
        epoch, place = divmod(n, steps)
        dice = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        rows = torch.randperm(len(train.of), generator=dice)[place * size :][:size]
        pictures = train.pictures[train.of[rows]]
        return train.questions[rows].float(), pictures.float(), targets[rows]

    return batch


def _scores(said: Sequence[str], data: Questions) -> VQAScores:
    names = [item.question_id for item in data.items]
    people = {item.question_id: item.answers for item in data.items}
    types = {item.question_id: item.answer_type or "other" for item in data.items}
    return vqa_scores(dict(zip(names, said, strict=True)), people, types)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: see the module.

    Args:
        arguments: Of the command line, those of this process by default.
    """
    parser = argparse.ArgumentParser(
        prog="python -m mmlib.vqa_coco",
        description="Train and measure a classifier of answers on locked towers (VQAv2's format).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for name, kind in (("folder", str), ("out", str)):
        parser.add_argument(f"--{name}", type=kind, required=True)
    for name, default in asdict(Settings("", "")).items():
        if name not in ("folder", "out"):
            option = f"--{name.replace('_', '-')}"
            parser.add_argument(option, type=type(default), default=default, help=" ")
    settings = Settings(**vars(parser.parse_args(arguments)))
    report = run(settings, progress=sys.stderr.isatty())
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
