r"""One Transformer block and its configuration: chapter 02.

References:
    Vaswani et al., *Attention Is All You Need*, NeurIPS 2017. Xiong et al., *On Layer
    Normalization in the Transformer Architecture*, ICML 2020.
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmlib.attention import KVCache, MultiHeadAttention

__all__ = ["LayerCache", "LayerWeights", "QuickGELU", "TransformerBlock", "TransformerConfig"]


class QuickGELU(nn.Module):
    r"""The activation of OpenAI's CLIP, :math:`x\,\sigma(1.702\,x)`.

    Hendrycks and Gimpel's approximation of the Gaussian error linear unit (arXiv:1606.08415).
    """

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Apply it to each number."""
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {"gelu": nn.GELU, "quick_gelu": QuickGELU, "relu": nn.ReLU}


@dataclass(frozen=True)
class TransformerConfig:
    r"""Sizes and choices of a Transformer; one for the block, the stacks and the whole model.

    Attributes:
        dim: Width of the residual stream.
        heads: Attention heads; must divide ``dim``.
        layers: Blocks in the encoder, and in the decoder.
        mlp_dim: Hidden width of the feed-forward layer, ``4 * dim`` by default.
        activation: Of the feed-forward layer. ``"quick_gelu"`` is CLIP's approximation
            :math:`x\,\sigma(1.702\,x)`.
        norm_first: True normalises what enters a sublayer (pre-norm, which trains without
            warm-up), False what leaves the addition (post-norm, the paper of 2017).
        norm_eps: What every layer norm adds to the variance; BERT and ViT take 1e-12.
        dropout: Probability, on embeddings, attention weights, hidden units and sublayer outputs.
        cross_attention: Whether decoder blocks attend to an encoder's output.
        source_vocab: Number of source tokens; :class:`EncoderDecoder` needs it.
        target_vocab: Number of target tokens; :class:`EncoderDecoder` needs it.
        max_length: Longest sequence that has positions.
        positions: What tells the tokens' order.
        tie_embeddings: Whether the output layer reuses the target embeddings as its weights
            (Press and Wolf, EACL 2017).

    Raises:
        ValueError: a number or a choice out of its range.
    """

    dim: int = 128
    heads: int = 4
    layers: int = 2
    mlp_dim: int | None = None
    activation: Literal["gelu", "quick_gelu", "relu"] = "gelu"
    norm_first: bool = True
    norm_eps: float = 1e-5
    dropout: float = 0.0
    cross_attention: bool = True
    source_vocab: int | None = None
    target_vocab: int | None = None
    max_length: int = 512
    positions: Literal["sinusoidal", "learned", "none"] = "sinusoidal"
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        for name in (
            "dim",
            "heads",
            "layers",
            "mlp_dim",
            "source_vocab",
            "target_vocab",
        ):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ValueError(f"{name} must be at least 1: got {size}")
        if self.max_length < 1:
            raise ValueError(f"max_length must be at least 1: got {self.max_length}")
        if self.dim % self.heads:
            raise ValueError(f"heads must divide dim: got dim={self.dim}, heads={self.heads}")
        if not self.norm_eps > 0.0:
            raise ValueError(f"norm_eps must be above 0: got {self.norm_eps}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1): got {self.dropout}")
        for name, choices in (
            ("activation", tuple(ACTIVATIONS)),
            ("positions", ("sinusoidal", "learned", "none")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {choices}: got {getattr(self, name)!r}")


class LayerWeights(NamedTuple):
    """Attention weights of one block, ``(batch, heads, queries, keys)`` each."""

    self_attention: Tensor
    cross_attention: Tensor | None


@dataclass
class LayerCache:
    """What one decoder block has seen: its own earlier tokens, and the projected memory."""

    self_attention: KVCache = field(default_factory=KVCache)
    cross_attention: KVCache = field(default_factory=KVCache)

    def select(self, rows: Int[Tensor, " new_batch"]) -> None:
        """Keep these rows of the batch, in this order."""
        self.self_attention.select(rows)
        self.cross_attention.select(rows)


class TransformerBlock(nn.Module):
    r"""Self-attention, optional cross-attention and a feed-forward layer around one stream.

    With :math:`f` standing for each sublayer in turn,

    .. math::

        \text{pre-norm: } x \leftarrow x + f(\operatorname{norm}(x)), \qquad
        \text{post-norm: } x \leftarrow \operatorname{norm}(x + f(x)), \qquad
        \text{FFN}(x) = W_2\, \phi(W_1 x + b_1) + b_2

    With equal weights it computes what ``nn.TransformerEncoderLayer`` and, with ``cross``,
    ``nn.TransformerDecoderLayer`` compute.

    Args:
        config: Sizes and choices.
        cross: Whether the block also attends to a memory.
    """

    def __init__(self, config: TransformerConfig, cross: bool = False) -> None:
        super().__init__()
        dim, hidden = config.dim, config.mlp_dim or 4 * config.dim
        self.norm_first, self.cross = config.norm_first, cross
        self.self_norm = nn.LayerNorm(dim, eps=config.norm_eps)
        self.self_attention = MultiHeadAttention(dim, config.heads, dropout=config.dropout)
        if cross:
            self.cross_norm = nn.LayerNorm(dim, eps=config.norm_eps)
            self.cross_attention = MultiHeadAttention(dim, config.heads, dropout=config.dropout)
        self.mlp_norm = nn.LayerNorm(dim, eps=config.norm_eps)
        self.mlp = nn.Sequential(
            nn.Linear(dim, hidden),
            ACTIVATIONS[config.activation](),
            nn.Dropout(config.dropout),
            nn.Linear(hidden, dim),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        memory: Float[Tensor, "batch memory_length dim"] | None = None,
        *,
        keep: Bool[Tensor, "..."] | None = None,
        memory_keep: Bool[Tensor, "..."] | None = None,
        causal: bool = False,
        cache: LayerCache | None = None,
        return_weights: bool = False,
    ) -> tuple[Float[Tensor, "batch length dim"], LayerWeights | None]:
        """Carry the stream through the block.

        Args:
            x: The stream.
            memory: What cross-attention reads.
            keep: Which keys self-attention may read; with a cache it counts the cached ones too.
            memory_keep: Which positions of the memory exist.
            causal: Let no position see a later one.
            cache: Earlier tokens of this block; ``x`` is added to it.
            return_weights: Return the attention weights too.

        Raises:
            ValueError: ``memory`` is missing from a block with cross-attention, or given to one
                without.
        """
        if self.cross != (memory is not None):
            raise ValueError(
                "memory is needed: this block has cross-attention"
                if self.cross
                else "memory must be None: this block has no cross-attention"
            )
        out, self_weights = self.self_attention(
            self._before(self.self_norm, x),
            keep=keep,
            causal=causal,
            cache=None if cache is None else cache.self_attention,
            return_weights=return_weights,
        )
        x = self._after(self.self_norm, x + self.dropout(out))
        cross_weights = None
        if self.cross:
            out, cross_weights = self.cross_attention(
                self._before(self.cross_norm, x),
                memory,
                keep=memory_keep,
                cache=None if cache is None else cache.cross_attention,
                return_weights=return_weights,
            )
            x = self._after(self.cross_norm, x + self.dropout(out))
        del out  # else it is held while the widest layer runs
        x = self._after(self.mlp_norm, x + self.dropout(self.mlp(self._before(self.mlp_norm, x))))
        return x, LayerWeights(self_weights, cross_weights) if return_weights else None

    def _before(self, norm: nn.LayerNorm, x: Tensor) -> Tensor:
        return norm(x) if self.norm_first else x

    def _after(self, norm: nn.LayerNorm, x: Tensor) -> Tensor:
        return x if self.norm_first else norm(x)
