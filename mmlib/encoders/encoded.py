"""What every encoder returns, so that a model can join any of them."""

from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor

from mmlib.block import LayerWeights

__all__ = ["Encoded"]


class Encoded(NamedTuple):
    """Tokens of one modality, which of them exist, and one vector for the whole.

    Attributes:
        tokens: One vector for each patch, region, word, frame or tube.
        keep: Which tokens exist; the others are padding.
        pooled: One vector for the whole input.
        weights: Attention weights of each layer, where they were asked for and there are any.
    """

    tokens: Float[Tensor, "batch length dim"]
    keep: Bool[Tensor, "batch length"]
    pooled: Float[Tensor, "batch dim"]
    weights: list[LayerWeights] | None = None
