r"""Train and measure two towers on COCO, or on anything in Karpathy's format: one command.

With COCO's pictures in ``coco/train2014`` and ``coco/val2014``, and Karpathy's
``dataset_coco.json`` beside them (the page :doc:`/book/data` says where they come from), heads on
frozen towers first, then the last stages of the towers with a small learning rate::

    python -m mmlib.matching_coco --folder coco --karpathy coco/dataset_coco.json --out heads \
        --image-tower resnet50 --text-tower bert-base-uncased
    python -m mmlib.matching_coco --folder coco --karpathy coco/dataset_coco.json --out tuned \
        --image-tower resnet50 --text-tower bert-base-uncased --start heads/weights.safetensors \
        --tune-image 2 --tune-text 4 --learning-rate 2e-5 --epochs 15

Without a network leave the two names out: EfficientNet-Lite0 and MiniLM come through pip. A
command that was stopped goes on where it was when it is given again. At the end the report on the
test split is printed as JSON, and written to ``report.json``.

**What it costs.** The training split has 113,287 pictures. Forward, ResNet-50 takes 8.2 GFLOP a
picture of 224 pixels, and bert-base 2.4 GFLOP a caption of 14 tokens (85 million weights in its
blocks, two operations each): 3.6e16 FLOP for 30 epochs on frozen towers, 20 minutes for a GPU that
does 3e13 a second, four days for two CPU cores that do 1e11. Where a tower is tuned the backward
pass takes up to twice the forward pass again. But 30 epochs also open 3.4 million JPEG files, of
which a core does about 100 a second: 9 hours of one core, so that ``--workers`` decides how long
the GPU waits. (EfficientNet-Lite0 takes 0.8 GFLOP, MiniLM 0.3.)

**What is measured.** Hit rates in both directions with five captions a picture
(:mod:`mmlib.metrics.retrieval`): over all pictures of the split ("5k" for COCO's test split), and
as the mean over folds of 1,000 pictures ("1k"). The folds are taken in the order of ids, not in
that of the file, so that a mean over five may differ from other code's in the last digit.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmlib.data.augment import ImageAugment
from mmlib.data.batch import Batch
from mmlib.data.coco import Captioned, Captions
from mmlib.data.loader import Loader
from mmlib.data.samplers import BatchSampler, at_least
from mmlib.encoders.preprocessing import preprocess
from mmlib.matching import MatchingConfig, MatchingModel, matching_loss
from mmlib.metrics.retrieval import hit_rate, median_rank, ranks
from mmlib.towers import Towers, towers, tune
from mmlib.training import TrainConfig, fit, load_weights, save_weights

__all__ = ["Settings", "main", "measure", "retrieval_report", "run"]

CAPTIONS = 5
MAX_TOKENS = 48


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Settings:
    """What the command is told; ``python -m mmlib.matching_coco --help`` lists it.

    Raises:
        ValueError: a number is out of range.
    """

    folder: Path = _option(Path(), "folder of the pictures: of train2014 and val2014 for COCO")
    karpathy: Path = _option(Path(), "Karpathy's dataset_coco.json (or flickr30k, flickr8k)")
    out: Path = _option(Path(), "folder for the checkpoint, the weights and the report")
    image_tower: str = _option("efficientnet-lite0", "or resnet50, where a network is")
    text_tower: str = _option("minilm", "or bert-base-uncased, where a network is")
    tune_image: int = _option(0, "how many of the picture tower's last stages are trained")
    tune_text: int = _option(0, "the same of the text tower")
    start: Path | None = _option(None, "weights of an earlier run to start from")
    dim: int = _option(512, "width of the shared space")
    size: int = _option(224, "height and width of the pictures, in pixels")
    augment: bool = _option(False, "crop, turn and recolour the training pictures a little")
    epochs: int = _option(30, "how often each training picture is seen, each time with a caption")
    batch_size: int = _option(128, "pairs in a batch")
    learning_rate: float = _option(5e-4, "the peak")
    workers: int = _option(0, "processes that read pictures")
    seed: int = _option(0, "of everything that is random")
    precision: str = _option("auto", "fp32, bf16, or auto: the faster one here")
    fold: int = _option(1000, "pictures in a fold of the smaller protocol")

    def __post_init__(self) -> None:
        for name in ("dim", "size", "epochs", "batch_size", "fold"):
            at_least(1, name, getattr(self, name))
        for name in ("tune_image", "tune_text", "workers", "seed"):
            at_least(0, name, getattr(self, name))


def run(settings: Settings, pretrained: Towers | None = None, *, progress: bool = True) -> dict:
    """Train, keep the weights of the epoch that is best on the validation split, and test them.

    Args:
        settings: See :class:`Settings`.
        pretrained: Towers to use instead of those that the settings name, trained as they are set.
        progress: Whether to show a progress bar.

    Returns:
        The report: ``"settings"``, ``"losses"`` (first and last), ``"validation"`` (the sum of six
        hit rates after each epoch) and ``"test"`` (see :func:`measure`).

    Raises:
        FileNotFoundError: a file or folder is not there.
        mmlib.data.records.RecordError: a file is not in the format, or a picture is broken.
        ValueError: a split is smaller than a batch, or the run in ``out`` had other settings.
    """
    found = pretrained or towers(settings.image_tower, settings.text_tower)
    if pretrained is None:
        tune(found.image, settings.tune_image)
        tune(found.text, settings.tune_text)
    data = {
        split: Captions.karpathy(
            settings.folder, settings.karpathy, split, captions_per_image=CAPTIONS
        )
        for split in ("train", "val", "test")
    }
    torch.manual_seed(settings.seed)
    model = MatchingModel(found.image, found.text, MatchingConfig(settings.dim))
    if settings.start is not None:
        load_weights(model, settings.start)
    sampler = BatchSampler(
        len(data["train"]), settings.batch_size, seed=settings.seed, drop_last=True
    )
    augment = ImageAugment(rotation=5, crop=0.2) if settings.augment else None
    prepare = _Prepare(found, settings.size, augment)
    loader = Loader(data["train"], sampler, transform=prepare, workers=settings.workers)
    steps = settings.epochs * len(sampler)
    config = TrainConfig(
        steps,
        settings.learning_rate,
        warmup=steps // 20,
        seed=settings.seed,
        precision=settings.precision,
        evaluate_every=len(sampler),
        checkpoint_every=len(sampler),
        keep_best=True,
        progress=progress,
    )

    def evaluate(model: MatchingModel) -> float:
        result = measure(model, data["val"], found, settings)["all"]
        return sum(rates[f"R@{k}"] for rates in result.values() for k in (1, 5, 10))

    settings.out.mkdir(parents=True, exist_ok=True)
    checkpoint = settings.out / "checkpoint"
    history = fit(
        model, _loss, loader, config, evaluate=evaluate, checkpoint=checkpoint, resume=True
    )
    loader.close()
    report = {
        "settings": {f.name: _plain(getattr(settings, f.name)) for f in fields(settings)},
        "losses": [history.losses[0], history.losses[-1]],
        "validation": [evaluation["score"] for evaluation in history.evaluations],
        "test": measure(model, data["test"], found, settings),
    }
    save_weights(model, settings.out / "weights.safetensors", {"report": report})
    (settings.out / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    return report


def measure(
    model: MatchingModel, data: Captions, pretrained: Towers, settings: Settings
) -> dict[str, Any]:
    """Retrieval among the pictures of a split and their captions.

    Args:
        model: The model, on any device; its mode is put back afterwards.
        data: A split, with at most five captions a picture.
        pretrained: Says how pictures and captions are prepared.
        settings: Says how large, how many at a time, and what a fold is.

    Returns:
        ``"pictures"``, ``"captions"``, ``"all"`` and ``"folds"``: see :func:`retrieval_report`.
    """
    training, device = model.training, next(model.parameters()).device
    model.eval()
    retrieval = data.retrieval()
    order = BatchSampler(len(data), settings.batch_size, seed=0, shuffle=False)
    prepare = _Prepare(pretrained, settings.size)
    loader = Loader(data, order, transform=prepare, workers=settings.workers)
    with torch.no_grad():
        images = [model.encode_images(batch.to(device).images).cpu() for batch in loader]
        texts = []
        for start in range(0, len(retrieval.captions), settings.batch_size):
            captions = retrieval.captions[start : start + settings.batch_size]
            ids, keep = pretrained.tokenizer.encode(captions, MAX_TOKENS, truncate=True)
            texts.append(model.encode_texts(ids.to(device), keep.to(device)).cpu())
    loader.close()
    model.train(training)
    vectors = torch.cat(images).float(), torch.cat(texts).float()
    return {
        "pictures": len(data),
        "captions": len(retrieval.captions),
        "all": retrieval_report(*vectors, retrieval.image_of),
        "folds": retrieval_report(*vectors, retrieval.image_of, settings.fold),
    }


def retrieval_report(
    images: Float[Tensor, "images dim"],
    texts: Float[Tensor, "texts dim"],
    image_of: Int[Tensor, " texts"],
    fold: int | None = None,
) -> dict[str, dict[str, float]]:
    """Hit rates and median rank in both directions, over all pictures or as a mean over folds.

    Args:
        images: Vectors whose inner product with a text's is the score.
        texts: Vectors of the captions.
        image_of: For each caption the row of its picture.
        fold: Pictures in a fold, one after another; what is left over at the end is left out. All
            pictures are one fold where there are no more of them, or by default.

    Returns:
        ``"text"`` (a picture looks for any of its captions) and ``"image"`` (a caption looks for
        its picture), each with ``"R@1"``, ``"R@5"``, ``"R@10"`` and ``"median_rank"``.

    Raises:
        TypeError: ``fold`` is not a whole number.
        ValueError: ``fold`` is below 1, there is not one row for each caption, or a picture has no
            caption.

    >>> same = torch.eye(3)
    >>> retrieval_report(same, same[[0, 0, 1, 2]], torch.tensor([0, 0, 1, 2]))["text"]["R@1"]
    1.0
    """
    size = min(at_least(1, "fold", fold or len(images)), len(images))
    if len(texts) != len(image_of):
        raise ValueError(f"image_of must have {len(texts)} rows: got {len(image_of)}")
    found: dict[str, list[dict[str, float]]] = {"text": [], "image": []}
    for start in range(0, len(images) - size + 1, size):
        rows = torch.arange(start, start + size)
        inside = (image_of >= start) & (image_of < start + size)
        scores = images[rows] @ texts[inside].T
        relevant = image_of[inside] == rows[:, None]
        found["text"].append(_rates(ranks(scores, relevant)))
        found["image"].append(_rates(ranks(scores.T, relevant.T)))
    return {
        direction: {name: sum(f[name] for f in folds) / len(folds) for name in folds[0]}
        for direction, folds in found.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: see the module.

    Args:
        arguments: Of the command line, those of this process by default.
    """
    parser = argparse.ArgumentParser(
        prog="python -m mmlib.matching_coco",
        description="Train and measure two towers on pictures with captions (Karpathy's format).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for option in fields(Settings):
        name, text = f"--{option.name.replace('_', '-')}", option.metadata["help"]
        required = option.default == Path()
        if option.type is bool:
            parser.add_argument(name, action="store_true", help=text)
        else:
            kind = Path if option.type == Path | None else option.type
            default = None if required else option.default
            parser.add_argument(name, type=kind, default=default, required=required, help=text)
    settings = Settings(**vars(parser.parse_args(arguments)))
    print(json.dumps(run(settings, progress=sys.stderr.isatty()), indent=1))


class _Prepare:
    """A picture and one of its captions, drawn anew each epoch, as an example for a batch."""

    def __init__(
        self, pretrained: Towers, size: int, augment: Callable[..., Tensor] | None = None
    ) -> None:
        recipe = pretrained.recipe.at(size)
        self.tokenizer, self.augment = pretrained.tokenizer, augment
        # What comes before normalising: a picture is augmented while its values are in [0, 1].
        self.recipe = replace(recipe, mean=(0.0,) * 3, std=(1.0,) * 3)
        self.mean, self.std = (torch.tensor(x)[:, None, None] for x in (recipe.mean, recipe.std))

    def __call__(self, item: Captioned, generator: torch.Generator) -> dict[str, Any]:
        image = preprocess(item.image, self.recipe)
        if self.augment is not None:
            image = self.augment(image, generator)
        chosen = int(torch.randint(len(item.captions), (), generator=generator))
        text = item.captions[chosen]
        ids, _ = self.tokenizer.encode([text], MAX_TOKENS, truncate=True)
        return {
            "image": (image[0] - self.mean) / self.std,
            "text": ids[0],
            "id": item.image_id,
            # Two pictures of which the same is said are no negatives of each other.
            "group": " ".join(text.lower().split()),
        }


def _loss(model: MatchingModel, batch: Batch) -> tuple[Tensor, int]:
    features = model(batch)
    loss = matching_loss(model.heads.score(*features), batch.groups)
    return loss * len(batch), len(batch)


def _rates(found: Tensor) -> dict[str, float]:
    rates = {f"R@{k}": hit_rate(found, k) for k in (1, 5, 10)}
    return rates | {"median_rank": median_rank(found)}


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


if __name__ == "__main__":
    main()
