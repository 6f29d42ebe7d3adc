"""Modality dropout: items lose modalities at random, so that a model can do without: chapter 12.

References:
    Neverova et al., *ModDrop: Adaptive Multi-Modal Gesture Recognition*, TPAMI 2016.
"""

import torch

from mmlib.data.batch import Batch

__all__ = ["drop_modalities"]


def drop_modalities(
    batch: Batch, probability: float, generator: torch.Generator, names: tuple[str, ...]
) -> Batch:
    r"""Modality dropout: let items lose modalities at random, but never all of them.

    Each named modality of each item is dropped with the given probability; an item that would lose
    all that it has of ``names`` keeps them.

    Args:
        batch: Items with several modalities.
        probability: From 0 to 1.
        generator: Draws who loses what.
        names: Which modalities may be lost; the batch has them all.

    Raises:
        ValueError: the probability lies outside [0, 1], or the batch lacks one of ``names``.
    """
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"probability must lie in [0, 1]: got {probability}")
    missing = [name for name in names if name not in batch.modalities]
    if missing or not names:
        raise ValueError(f"names must be modalities of {batch}: got {names}")
    lost = torch.rand(len(batch), len(names), generator=generator) < probability
    lost &= ~lost.all(1, keepdim=True)
    for column, name in enumerate(names):
        rows = lost[:, column].nonzero().flatten()
        if len(rows):
            batch = batch.without(name, rows)
    return batch
