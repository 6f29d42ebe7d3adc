"""Train two towers on emoji and their names under every variant of the loss, three seeds each.

Every variant sees the same number of pictures, 30,720, and only the named part differs. No
variant has settings of its own, but for the batch sizes, whose learning rate grows with the
square root of the batch. Before that, it measures what chunks of the logits save at 16,384 pairs.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlib import results
from mmlib.contrastive import LogitScale, clip_loss, info_nce, siglip_loss
from mmlib.data import emoji
from mmlib.data.augment import ImageAugment
from mmlib.encoders.text import Bert, embed_texts
from mmlib.encoders.tokenizers import wordpiece_tokenizer
from mmlib.hypersphere import alignment, uniformity
from mmlib.machine import peak_memory
from mmlib.training import TrainConfig, fit
from mmlib.triplet import triplet_loss

MINUTES = 12
SEEDS = (0, 1, 2)
PICTURES = 30_720
AUGMENT = ImageAugment()
Pair = tuple[Tensor, Tensor, Tensor]


class Towers(nn.Module):
    """A small convolutional network for pictures, a matrix for sentence vectors."""

    def __init__(self, dim: int = 64, scale: float = 1 / 0.07) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((3, 16), (16, 32), (32, 64)):
            # Group norm looks at one picture alone; batch norm would mix the batch.
            layers += [
                nn.Conv2d(before, after, 3, stride=2, padding=1),
                nn.GroupNorm(8, after),
                nn.GELU(),
            ]
        self.image = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 4 * 4, dim))
        self.text = nn.Linear(384, dim)
        self.scale = LogitScale(scale, maximum=200.0)
        self.logit_bias = nn.Parameter(torch.tensor(-10.0))

    def forward(self, batch: Pair) -> tuple[Tensor, Tensor]:
        """Features of pictures in [0, 1] and of sentence vectors."""
        return self.image((batch[0] - 0.5) / 0.25), self.text(batch[1])


def symmetric(model: Towers, batch: Pair, scale: float | None = None) -> Tensor:
    """CLIP's loss, with the learned scale or a fixed one."""
    return clip_loss(*model(batch), model.scale() if scale is None else scale)


def one_way(model: Towers, batch: Pair) -> Tensor:
    """Pictures find texts; nothing makes texts find pictures."""
    return info_nce(*model(batch), model.scale())


def in_blocks(model: Towers, batch: Pair, size: int) -> Tensor:
    """Every item is compared with its block only: the mean over small batches."""
    image, text = model(batch)
    block = torch.arange(len(image)) // size
    keep = block[:, None] == block
    there = info_nce(image, text, model.scale(), keep=keep)
    return (there + info_nce(text, image, model.scale(), keep=keep)) / 2


def together(model: Towers, batch: Pair) -> Tensor:
    """Pairs attract, and nothing repels."""
    return alignment(*model(batch))


def sigmoid(model: Towers, batch: Pair) -> Tensor:
    """SigLIP's loss."""
    return siglip_loss(*model(batch), model.scale(), model.logit_bias)


def triplet(model: Towers, batch: Pair, mining: str) -> Tensor:
    """Both directions of the triplet loss."""
    image, text = model(batch)
    return triplet_loss(image, text, 0.2, mining) + triplet_loss(text, image, 0.2, mining)


def grouped(model: Towers, batch: Pair) -> Tensor:
    """CLIP's loss, in which the two captions of an emoji are no negatives of each other."""
    return clip_loss(*model(batch), model.scale(), groups=batch[2])


@dataclasses.dataclass(frozen=True)
class Variant:
    """What differs between runs."""

    label: str
    loss: Callable[[Towers, Pair], Tensor] = symmetric
    batch: int = 256
    captions: int = 1
    scale: float = 1 / 0.07


VARIANTS = {
    "clip": Variant("CLIP, learned temperature"),
    **{
        f"t{str(t).replace('.', '')}": Variant(
            f"temperature {t}", functools.partial(symmetric, scale=1 / t)
        )
        for t in (1.0, 0.3, 0.07, 0.02, 0.005)
    },
    **{
        f"block{n}": Variant(f"{n - 1} negatives", functools.partial(in_blocks, size=n))
        for n in (2, 8, 32)
    },
    "batch32": Variant("batch 32", batch=32),
    "batch1024": Variant("batch 1,024", batch=1024),
    "one_way": Variant("one way", one_way),
    "siglip": Variant("SigLIP", sigmoid, scale=10.0),
    "triplet_all": Variant("triplet, all", functools.partial(triplet, mining="all")),
    "triplet_semi": Variant("triplet, semi-hard", functools.partial(triplet, mining="semi-hard")),
    "triplet_hard": Variant("triplet, hardest", functools.partial(triplet, mining="hardest")),
    "no_negatives": Variant("no negatives", together),
    "two_texts": Variant("two captions", captions=2),
    "two_texts_grouped": Variant("two captions, grouped", grouped, captions=2),
}


def recall(queries: Tensor, keys: Tensor, k: int) -> float:
    """Share of queries whose own key is among the ``k`` most similar."""
    similar = F.normalize(queries, dim=1) @ F.normalize(keys, dim=1).T
    # A tie counts against the model: collapsed features find nothing.
    better = (similar >= similar.diagonal()[:, None]).sum(1) - 1
    return (better < k).float().mean().item()


def load() -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Pictures in [0, 1], and the sentence vectors of names and of keywords, for each split."""
    bert, tokenizer = Bert.pretrained("minilm"), wordpiece_tokenizer()
    data = {}
    for split in ("train", "test"):
        items = emoji.load(split, size=32)
        keywords = [", ".join(tags) for tags in items.tags]
        vectors = [embed_texts(bert, tokenizer, list(texts)) for texts in (items.names, keywords)]
        data[split] = (items.images.float() / 255, *vectors)
    return data


def batches(data: Pair, variant: Variant, seed: int) -> Callable[[int], Pair]:
    """Batch number ``n``: random emoji, drawn anew, and their texts."""
    pictures, *texts = data

    def batch(n: int) -> Pair:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + n)
        distinct = variant.batch // variant.captions
        rows = torch.randperm(len(pictures), generator=generator)[:distinct]
        words = torch.cat([texts[caption][rows] for caption in range(variant.captions)])
        rows = rows.repeat(variant.captions)
        return AUGMENT(pictures[rows], generator), words, rows

    return batch


@torch.no_grad()
def measure(model: Towers, data: dict) -> dict[str, float]:
    """Retrieval and the geometry of the features."""
    model.eval()
    pictures, names, _ = data["train"]
    image, text = model((AUGMENT(pictures, 10**6), names))
    unseen = model(data["test"][:2])
    return {
        "seen": recall(image, text, 1),
        "back": recall(text, image, 1),
        "unseen": recall(*unseen, 10),
        "align": alignment(image, text).item(),
        "uniform": (uniformity(image).item() + uniformity(text).item()) / 2,
    }


METRICS = {
    "seen": ("R@1 picture to name, new drawings of training emoji", 0.1),
    "back": ("R@1 name to picture, new drawings of training emoji", 0.1),
    "unseen": ("R@10 picture to name, held-out concepts", 0.06),
    "align": ("alignment of new drawings and names", 0.2),
    "uniform": ("uniformity, mean of pictures and names", 0.4),
}


def chunks(pairs: int = 16_384, dim: int = 512, chunk: int = 512) -> None:
    """Measure memory and processor time of CLIP's loss, chunked and whole, forward and backward.

    A process's peak only grows, so the small one comes first, and both before anything else.
    """
    generator = torch.Generator().manual_seed(0)
    sides = [torch.randn(pairs, dim, generator=generator).requires_grad_() for _ in range(2)]
    start, used = peak_memory(), {}
    for size in (chunk, None):
        began = time.process_time()
        torch.autograd.grad(clip_loss(*sides, 20.0, chunk=size), sides)
        used[size] = peak_memory() - start, time.process_time() - began
        print(f"chunk {size}: {used[size][0] / 2**20:.0f} MiB, {used[size][1]:.1f} s", flush=True)
    memory, seconds = (a / b for a, b in zip(used[chunk], used[None], strict=True))
    text = f"of chunks of {chunk} rows, whole batch of {pairs:,} = 1"
    results.record("05.chunked_memory", memory, metric=f"peak memory {text}", tolerance=0.08)
    results.record("05.chunked_time", seconds, metric=f"processor time {text}", tolerance=0.7)


def main() -> None:
    """Train every variant with every seed; record means and, where they are drawn, spreads."""
    chunks()
    data = load()
    for name, variant in VARIANTS.items():
        runs = []
        for seed in SEEDS:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                model = Towers(scale=variant.scale)
            steps = PICTURES // variant.batch
            history = fit(
                model,
                variant.loss,
                batches(data["train"], variant, seed),
                TrainConfig(
                    steps=steps,
                    learning_rate=4e-3 * (variant.batch / 256) ** 0.5,
                    warmup=steps // 10,
                    weight_decay=0.05,
                    seed=seed,
                    progress=False,
                ),
            )
            runs.append(measure(model, data) | {"scale": model.scale().item()})
            print(name, seed, runs[-1], f"{history.seconds:.0f} s", flush=True)
        for key, (metric, tolerance) in METRICS.items():
            if key == "back" and name not in ("clip", "one_way"):
                continue
            values = [run[key] for run in runs]
            text = f"{variant.label}: {metric}"
            mean, spread = statistics.mean(values), statistics.stdev(values)
            results.record(
                f"05.{name}_{key}", mean, metric=f"{text}, mean of 3 seeds", tolerance=tolerance
            )
            if key in ("seen", "unseen"):
                results.record(
                    f"05.{name}_{key}_sd",
                    spread,
                    metric=f"{text}, standard deviation of 3 seeds",
                    tolerance=tolerance,
                )
        if name == "clip":
            results.record(
                "05.clip_scale",
                statistics.mean(run["scale"] for run in runs),
                metric="learned logit scale at the end, mean of 3 seeds",
                tolerance=5,
            )


if __name__ == "__main__":
    main()
