"""Collation, samplers and augmentation beside what torch and torchvision offer."""

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import BatchSampler as TorchBatchSampler
from torch.utils.data import RandomSampler
from torchvision.transforms import v2

from mmlib.data.augment import ImageAugment
from mmlib.data.collation import collate
from mmlib.data.samplers import BatchSampler, BucketSampler, padding_share

AREA = "Batches and augmentation"


def test_collate_256_mixed_examples(side_by_side):
    generator = np.random.default_rng(0)
    rows = [
        {
            "image": torch.rand(3, 64, 64),
            "text": torch.randint(1, 999, (int(generator.integers(4, 40)),)),
            "audio": torch.rand(int(generator.integers(8_000, 32_000))),
            "target": at % 10,
        }
        for at in range(256)
    ]

    def by_hand():
        images = torch.stack([row["image"] for row in rows])
        text, audio = (pad_sequence([row[n] for row in rows], True) for n in ("text", "audio"))
        masks = [
            torch.arange(longest) < torch.tensor([len(row[n]) for row in rows])[:, None]
            for n, longest in (("text", text.shape[1]), ("audio", audio.shape[1]))
        ]
        return images, text, audio, *masks, torch.tensor([row["target"] for row in rows])

    table = side_by_side(
        "a batch of 256 examples: picture 3×64×64, up to 39 ids, up to 2 s of sound",
        {"mmlib.data.collate": lambda: collate(rows), "by hand, unchecked": by_hand},
        5,
    )
    table.at_most("mmlib.data.collate", "by hand, unchecked", 1.75)


def test_an_epoch_of_a_million_items(side_by_side):
    lengths = np.random.default_rng(0).integers(4, 80, 1_000_000)
    ours = BatchSampler(len(lengths), 256, seed=0)
    buckets = BucketSampler(lengths, max_tokens=8_192, seed=0)

    counter = iter(range(10**6))

    def epoch(sampler):
        at = next(counter)  # another epoch each time, so that its order is drawn
        for number in range(at * len(sampler), (at + 1) * len(sampler)):
            sampler(number)

    generator = torch.Generator()

    def torch_epoch():
        order = RandomSampler(range(len(lengths)), generator=generator)
        for _ in TorchBatchSampler(order, 256, drop_last=False):
            pass

    table = side_by_side(
        "the batches of 1,000,000 items",
        {
            "mmlib BatchSampler": lambda: epoch(ours),
            "mmlib BucketSampler": lambda: epoch(buckets),
            "torch RandomSampler": torch_epoch,
        },
        3,
    )
    table.at_most("mmlib BatchSampler", "torch RandomSampler", 1.5)
    table.goal(
        "BucketSampler takes 3 µs an item",
        table.seconds("mmlib BucketSampler"),
        at_most=3,
        unit="s",
    )


@pytest.mark.parametrize("size", [32, 64, 128])
def test_augment_pictures(side_by_side, size):
    images = torch.rand(128, 3, size, size)
    ours = ImageAugment(
        rotation=15, scale=0.1, crop=0.1, brightness=0.2, contrast=0.2, saturation=0.2
    )
    theirs = v2.Compose(
        [
            v2.RandomAffine(
                15, scale=(0.9, 1.1), interpolation=v2.InterpolationMode.BILINEAR, fill=1.0
            ),
            v2.RandomResizedCrop(size, scale=(0.81, 1.0), ratio=(1.0, 1.0)),
            v2.ColorJitter(0.2, 0.2, 0.2),
        ]
    )
    table = side_by_side(
        f"128 pictures of {size}×{size}: rotation, scale, crop, colour, each with its own draws",
        {
            "mmlib ImageAugment": lambda: ours(images, 0),
            "torchvision v2": lambda: torch.stack([theirs(image) for image in images]),
        },
        5,
    )
    table.at_most("mmlib ImageAugment", "torchvision v2", 1)


def test_padding_that_buckets_save(side_by_side):
    """Computing on padding is what costs: here an embedding and a matrix product of each batch."""
    lengths = np.clip(np.random.default_rng(0).lognormal(2.5, 0.5, 4_096).astype(int), 3, 77)
    plain, buckets = BatchSampler(4_096, 64, seed=0), BucketSampler(lengths, batch_size=64, seed=0)
    layer = torch.nn.TransformerEncoderLayer(64, 2, 128, dropout=0.0, batch_first=True).eval()

    def run(sampler):
        with torch.no_grad():
            for number in range(0, len(sampler), 4):
                rows = sampler(number)
                layer(torch.zeros(len(rows), int(lengths[rows].max()), 64))

    table = side_by_side(
        "a Transformer layer over sentences of 3 to 77 words: padding "
        f"{padding_share(lengths, map(plain, range(len(plain)))):.1%} in random order, "
        f"{padding_share(lengths, map(buckets, range(len(buckets)))):.1%} in buckets",
        {"random order": lambda: run(plain), "BucketSampler": lambda: run(buckets)},
        3,
    )
    table.at_most("BucketSampler", "random order", 0.7)
