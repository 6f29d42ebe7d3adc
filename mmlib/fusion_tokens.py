r"""Modalities that exchange information and keep their tokens: chapter 04.

Cross-modal attention and bottleneck tokens; :class:`~mmlib.fusion_models.FusionModel` stacks them.
A modality that is missing (``keep`` all False) has no influence, even if NaN stands in its place.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mmlib.attention import MultiHeadAttention
from mmlib.block import TransformerBlock, TransformerConfig
from mmlib.encoders.encoded import Encoded

__all__ = ["BottleneckLayer", "CrossModalAttention"]


class CrossModalAttention(nn.Module):
    r"""One modality's tokens read another's (跨模态注意力).

    .. math:: x \leftarrow x + \operatorname{attention}(\operatorname{norm}(x),\,
              \operatorname{norm}(c),\, \operatorname{norm}(c))

    Queries come from one modality, keys and values from the other, as in document 001, §4.1. The
    tokens of a row without the other modality stay what they were.

    Args:
        dim: Width of the tokens that read.
        heads: Attention heads; must divide ``dim``.
        context_dim: Width of the tokens that are read, ``dim`` by default.
        dropout: Of the attention weights.
    """

    def __init__(
        self, dim: int, heads: int, *, context_dim: int | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(dim, heads, context_dim=context_dim, dropout=dropout)
        self.norm = nn.LayerNorm(dim)
        self.context_norm = nn.LayerNorm(self.attention.context_dim)

    def forward(
        self, x: Encoded, context: Encoded, *, return_weights: bool = False
    ) -> tuple[
        Float[Tensor, "batch length dim"], Float[Tensor, "batch heads length context"] | None
    ]:
        """Read; tokens of ``context`` that do not exist have no influence.

        Returns:
            The tokens, changed, and the weights or None.
        """
        read = context.tokens.masked_fill(~context.keep[..., None], 0.0)
        out, weights = self.attention(
            self.norm(x.tokens),
            self.context_norm(read),
            context.keep,
            return_weights=return_weights,
        )
        # Attention to nothing gives zeros, to which the layer's last bias would be added.
        exists = context.keep.any(dim=1)[:, None, None]
        return x.tokens + out.masked_fill(~exists, 0.0), weights


class BottleneckLayer(nn.Module):
    r"""A block for each modality; they exchange information through a few shared tokens (瓶颈词元).

    .. math::

        [x_m; \hat z_m] = \operatorname{block}_m([x_m; z]), \qquad
        z \leftarrow \frac1M \sum_m \hat z_m

    Attention over all tokens of all modalities costs the square of their number. Here each attends
    to its own and to ``z``, and what one is to learn of the other has to pass through ``z``.
    Equations 8 and 9 of Nagrani et al., *Attention Bottlenecks for Multimodal Fusion*, NeurIPS
    2021. The mean runs over the modalities that the row has; without any, ``z`` stays.

    Args:
        config: Of the blocks.
        modalities: How many.
    """

    def __init__(self, config: TransformerConfig, modalities: int) -> None:
        super().__init__()
        if modalities < 1:
            raise ValueError(f"modalities must be at least 1: got {modalities}")
        self.blocks = nn.ModuleList(TransformerBlock(config) for _ in range(modalities))

    def forward(
        self,
        tokens: Sequence[Float[Tensor, "batch _ dim"]],
        keeps: Sequence[Bool[Tensor, "batch _"]],
        bottleneck: Float[Tensor, "batch bottlenecks dim"],
    ) -> tuple[list[Float[Tensor, "batch _ dim"]], Float[Tensor, "batch bottlenecks dim"]]:
        """Carry every modality's tokens through its block, and exchange.

        Args:
            tokens: One for each modality.
            keeps: Which of them exist.
            bottleneck: The shared tokens :math:`z`.

        Returns:
            The tokens and the shared tokens, changed.

        Raises:
            ValueError: there are not as many as there are blocks.
        """
        if not len(tokens) == len(keeps) == len(self.blocks):
            raise ValueError(
                f"tokens and keeps must be one for each of {len(self.blocks)} modalities: "
                f"got {len(tokens)} and {len(keeps)}"
            )
        shared = torch.ones(bottleneck.shape[:2], dtype=torch.bool, device=bottleneck.device)
        changed, total = [], torch.zeros_like(bottleneck)
        for block, x, keep in zip(self.blocks, tokens, keeps, strict=True):
            both = torch.cat([x.masked_fill(~keep[..., None], 0.0), bottleneck], dim=1)
            both, _ = block(both, keep=torch.cat([keep, shared], dim=1))
            own, new = both.split([x.shape[1], bottleneck.shape[1]], dim=1)
            changed.append(own.masked_fill(~keep[..., None], 0.0))
            total = total + new * keep.any(dim=1)[:, None, None]
        present = torch.stack([keep.any(dim=1) for keep in keeps], dim=1).sum(dim=1)
        mean = total / present.clamp(min=1)[:, None, None]
        return changed, torch.where((present > 0)[:, None, None], mean, bottleneck)
