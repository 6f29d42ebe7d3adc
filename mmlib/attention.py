r"""Scaled dot-product and multi-head attention: chapter 01.

Everything else in the library is built of the two names at the top: :func:`attention`, the
formula as it stands in the papers, and :class:`MultiHeadAttention`, the layer that every
Transformer block uses.

Masks follow the library's one convention: boolean, named ``keep``, True means *attend*. A query
that may attend to nothing gets zeros, never NaN.

References:
    Bahdanau, Cho, Bengio, *Neural Machine Translation by Jointly Learning to Align and
    Translate*, ICLR 2015. Vaswani et al., *Attention Is All You Need*, NeurIPS 2017.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mmlib.cache import KVCache
from mmlib.masks import causal_keep, padding_keep

__all__ = ["KVCache", "MultiHeadAttention", "attention", "causal_keep", "padding_keep"]


def attention(
    query: Float[Tensor, "... query_length head_dim"],
    key: Float[Tensor, "... key_length head_dim"],
    value: Float[Tensor, "... key_length value_dim"],
    keep: Bool[Tensor, "... #query_length #key_length"] | None = None,
    scale: float | None = None,
) -> tuple[
    Float[Tensor, "... query_length value_dim"], Float[Tensor, "... query_length key_length"]
]:
    r"""Scaled dot-product attention, written out.

    .. math::

        A = \operatorname{softmax}\!\left(s\, Q K^\top\right), \qquad
        \text{out} = A V, \qquad s = 1/\sqrt{d_k}

    The softmax runs over the keys.

    Args:
        query: What each position looks for.
        key: What each position offers to be found by.
        value: What each position gives when it is found. Must be finite: zero weight times
            infinity is not zero.
        keep: True where a query may attend to a key; broadcast against the scores.
        scale: Factor on the scores, :math:`1/\sqrt{d_k}` by default.

    Returns:
        The output, and the weights: non-negative, each row sums to 1, or to 0 where ``keep``
        leaves nothing.

    Raises:
        TypeError: ``keep`` is not boolean.
        ValueError: the shapes do not fit each other, or there are no keys.

    Differs from ``F.scaled_dot_product_attention`` in returning the weights, and in never using
    a fused kernel: it is the reference, not the fast path.

    >>> query = torch.tensor([[1.0, 0.0]])
    >>> key = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> out, weights = attention(query, key, value=key, scale=1.0)
    >>> weights  # softmax([1, 0])
    tensor([[0.7311, 0.2689]])
    """
    _check_attention_inputs(query, key, value, keep)
    if scale is None:
        scale = query.shape[-1] ** -0.5
    scores = scale * query @ key.transpose(-2, -1)
    if keep is not None:
        # The most negative finite number, not -inf: a row of -inf alone has a softmax of NaN,
        # which the zeros below would hide in the result but not from autograd's anomaly mode.
        scores = scores.masked_fill(~keep, torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1)
    if keep is not None:
        weights = weights.masked_fill(~keep, 0.0)
    return weights @ value, weights


class MultiHeadAttention(nn.Module):
    r"""Attention in several subspaces at once, for self- and for cross-attention.

    .. math::

        \text{head}_i = \operatorname{attention}(X W_i^Q,\; C W_i^K,\; C W_i^V), \qquad
        \text{out} = [\text{head}_1; \dots; \text{head}_h]\, W^O

    where :math:`C = X` in self-attention. When the context is as wide as the query, the three
    projections are rows of one matrix, in the order of ``nn.MultiheadAttention.in_proj_weight``,
    and self-attention makes one matrix product of them.

    Without ``return_weights`` the fused kernels of ``F.scaled_dot_product_attention`` are used;
    with it, the formula of :func:`attention`, which has to hold all weights in memory.

    Args:
        dim: Width of the queries and of the output.
        heads: Number of heads; must divide ``dim``.
        context_dim: Width of what is attended to, ``dim`` by default.
        bias: Whether the projections have biases.
        dropout: Probability of dropping an attention weight during training.

    Raises:
        ValueError: ``heads`` does not divide ``dim``, a size is below 1, or ``dropout`` is
            outside [0, 1).
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        context_dim: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        context_dim = dim if context_dim is None else context_dim
        if min(dim, heads, context_dim) < 1:
            raise ValueError(
                "dim, heads and context_dim must be at least 1: "
                f"got dim={dim}, heads={heads}, context_dim={context_dim}"
            )
        if dim % heads:
            raise ValueError(f"heads must divide dim: got dim={dim}, heads={heads}")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1): got {dropout}")
        self.dim, self.heads, self.context_dim = dim, heads, context_dim
        self.dropout = dropout
        if context_dim == dim:
            self.qkv_proj = nn.Linear(dim, 3 * dim, bias=bias)
        else:
            self.query_proj = nn.Linear(dim, dim, bias=bias)
            self.key_value_proj = nn.Linear(context_dim, 2 * dim, bias=bias)
        self.out_proj = nn.Linear(dim, dim, bias=bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw each projection from Xavier's uniform distribution; biases start at zero."""
        for module in self.children():
            # Each matrix of a fused projection has dim outputs; the fused shape would be
            # initialised too small.
            for block in module.weight.split(self.dim):
                nn.init.xavier_uniform_(block)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(
        self,
        query: Float[Tensor, "batch query_length dim"],
        context: Float[Tensor, "batch key_length context_dim"] | None = None,
        keep: Bool[Tensor, "..."] | None = None,
        *,
        causal: bool = False,
        cache: KVCache | None = None,
        return_weights: bool = False,
    ) -> tuple[
        Float[Tensor, "batch query_length dim"],
        Float[Tensor, "batch heads query_length all_keys"] | None,
    ]:
        """Attend from ``query`` to ``context``, or to itself.

        Args:
            query: Positions that look.
            context: Positions that are looked at; ``query`` itself by default.
            keep: True where attention is allowed. Rank 2 is ``(batch, keys)``: which tokens
                exist. Rank 3 is ``(batch, queries, keys)``, rank 4
                ``(batch, heads, queries, keys)``; a size of 1 is broadcast. With a cache,
                ``keys`` counts the cached positions too.
            causal: Let no position see a later one; aligned to the end (see
                :func:`~mmlib.masks.causal_keep`). Combines with ``keep``.
            cache: In self-attention, keys and values of earlier positions, to which this call's
                are added. In cross-attention the first call fills it, and later calls use it
                instead of projecting ``context`` again.
            return_weights: Return the weights of every head, before dropout.

        Returns:
            The output, and the weights or None.

        Raises:
            TypeError: ``keep`` is not boolean.
            ValueError: an input has the wrong rank or width, or the shapes do not fit.
        """
        self._check_inputs(query, context)
        q, k, v = self._project(query, context, cache)
        # The kernels know the plain causal mask, and skip the half that it hides. PyTorch aligns
        # it to the start, so it is right only for as many queries as keys.
        plain_causal = causal and keep is None and q.shape[2] == k.shape[2] and not return_weights
        keep = self._merge_masks(keep, causal and not plain_causal, q, k)
        if return_weights:
            out, weights = attention(q, k, v, keep)
            if self.training and self.dropout > 0.0:
                out = F.dropout(weights, self.dropout) @ v
        else:
            dropout = self.dropout if self.training else 0.0
            out = F.scaled_dot_product_attention(
                q, k, v, attn_mask=keep, dropout_p=dropout, is_causal=plain_causal
            )
            weights = None
        out = rearrange(out, "batch heads length head_dim -> batch length (heads head_dim)")
        return self.out_proj(out), weights

    def _project(
        self, query: Tensor, context: Tensor | None, cache: KVCache | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, split into heads; the cache is read and filled here."""
        cached_context = context is not None and cache is not None and len(cache) > 0
        if self.context_dim != self.dim:
            q = self.query_proj(query)
            kv = None if cached_context else self.key_value_proj(context)
        elif context is None:
            q, kv = self.qkv_proj(query).split([self.dim, 2 * self.dim], dim=-1)
        else:
            weight, bias = self.qkv_proj.weight, self.qkv_proj.bias
            q_weight, kv_weight = weight.split([self.dim, 2 * self.dim])
            q_bias, kv_bias = (None, None) if bias is None else bias.split([self.dim, 2 * self.dim])
            q = F.linear(query, q_weight, q_bias)
            kv = None if cached_context else F.linear(context, kv_weight, kv_bias)

        split_heads = "batch length (heads head_dim) -> batch heads length head_dim"
        q = rearrange(q, split_heads, heads=self.heads)
        if kv is None:
            if len(cache) != context.shape[1]:
                raise ValueError(
                    f"context must be the one that filled the cache: got {context.shape[1]} "
                    f"positions, the cache holds {len(cache)}"
                )
            return q, cache.key, cache.value
        k, v = (rearrange(part, split_heads, heads=self.heads) for part in kv.chunk(2, dim=-1))
        if cache is not None:
            k, v = cache.append(k, v)
        return q, k, v

    def _merge_masks(
        self, keep: Tensor | None, causal: bool, q: Tensor, k: Tensor
    ) -> Tensor | None:
        """One mask of rank 4, or None where every query sees every key."""
        batch, heads, queries, keys = *q.shape[:3], k.shape[2]
        if keep is not None:
            if keep.dtype != torch.bool:
                raise TypeError(f"keep must be boolean (True = attend): got {keep.dtype}")
            if keep.ndim not in (2, 3, 4):
                raise ValueError(
                    "keep must have rank 2 (batch, keys), 3 (batch, queries, keys) or 4 "
                    f"(batch, heads, queries, keys): got shape {tuple(keep.shape)}"
                )
            given = tuple(keep.shape)
            if keep.ndim == 2:
                keep = keep[:, None, None, :]
            elif keep.ndim == 3:
                keep = keep[:, None]
            wanted = (batch, heads, queries, keys)
            if any(have not in (1, want) for have, want in zip(keep.shape, wanted, strict=True)):
                raise ValueError(
                    f"keep does not fit batch={batch}, heads={heads}, queries={queries}, "
                    f"keys={keys}: got shape {given}"
                )
        if causal and queries > 1:  # a single query stands at the end and sees every key
            order = causal_keep(queries, keys, device=q.device)
            keep = order[None, None] if keep is None else keep & order
        return keep

    def _check_inputs(self, query: Tensor, context: Tensor | None) -> None:
        for name, given, width in (
            ("query", query, self.dim),
            ("context", context, self.context_dim),
        ):
            if given is None:
                if self.context_dim != self.dim:
                    raise ValueError(
                        f"context is needed: this layer attends to width {self.context_dim}, "
                        f"its queries have width {self.dim}"
                    )
                continue
            if given.ndim != 3 or given.shape[-1] != width:
                raise ValueError(
                    f"{name} must have shape (batch, length, {width}): got {tuple(given.shape)}"
                )
            if 0 in given.shape:
                raise ValueError(f"{name} must not be empty: got {tuple(given.shape)}")
        if context is not None and context.shape[0] != query.shape[0]:
            raise ValueError(
                "query and context must have the same batch size: "
                f"got {query.shape[0]} and {context.shape[0]}"
            )


def _check_attention_inputs(query: Tensor, key: Tensor, value: Tensor, keep: Tensor | None) -> None:
    for name, given in (("query", query), ("key", key), ("value", value)):
        if given.ndim < 2:
            raise ValueError(
                f"{name} must have at least the axes (length, dim): got {tuple(given.shape)}"
            )
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"query and key must have the same last size: got {query.shape[-1]} and {key.shape[-1]}"
        )
    if key.shape[-2] != value.shape[-2]:
        raise ValueError(
            f"key and value must have the same length: got {key.shape[-2]} and {value.shape[-2]}"
        )
    if key.shape[-2] == 0:
        raise ValueError("key must hold at least one position: got none")
    if keep is not None:
        if keep.dtype != torch.bool:
            raise TypeError(f"keep must be boolean (True = attend): got {keep.dtype}")
        scores = (query.shape[-2], key.shape[-2])
        fits = keep.ndim >= 2 and all(
            have in (1, want) for have, want in zip(keep.shape[-2:], scores, strict=True)
        )
        if not fits:
            raise ValueError(
                f"keep must be broadcast to {scores} (queries, keys): got {tuple(keep.shape)}"
            )
