r"""Captions by the Transformer decoder of chapter 02, for comparison with the LSTM: chapter 08.

References:
    Vaswani et al., *Attention Is All You Need*, NeurIPS 2017. Cornia et al., *Meshed-Memory
    Transformer for Image Captioning*, CVPR 2020, is one of many that put it to this use; this is
    the plain decoder.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmlib.block import LayerCache, TransformerConfig
from mmlib.captioning import CaptionerConfig, check_tokens
from mmlib.captioning_attention import PlacedRegions
from mmlib.positions import SinusoidalPositions
from mmlib.transformer import Decoder

__all__ = ["TransformerCaptioner", "TransformerState"]


@dataclass(frozen=True)
class TransformerState:
    """What a :class:`TransformerCaptioner` carries from word to word.

    Attributes:
        memory: The projected regions.
        keep: Which of them exist.
        cache: Keys and values of the words so far, and of the regions; it grows in place.
    """

    memory: Float[Tensor, "batch regions dim"]
    keep: Bool[Tensor, "batch regions"] | None
    cache: list[LayerCache]

    def select(self, rows: Int[Tensor, " new_batch"]) -> "TransformerState":
        """The state of these rows, in this order; the cache is changed in place."""
        for layer in self.cache:
            layer.select(rows)
        keep = None if self.keep is None else self.keep[rows]
        return TransformerState(self.memory[rows], keep, self.cache)


class TransformerCaptioner(nn.Module):
    r"""The same with the decoder of chapter 02: words attend to words before them and to regions.

    .. math::

        p(y_t \mid y_{<t}, v) = \operatorname{softmax}(E h_t + b), \qquad
        h = \operatorname{Decoder}(\sqrt d\, E y_{<t} + P,\; v)

    where :math:`v_i = W_r r_i + b_r + p_i` as in :class:`~mmlib.captioning.LSTMCaptioner`. Here the
    query for a word has read all the words before it, its last one too. The attention weights it
    returns are those of the last layer, averaged over its heads.

    Raises:
        ValueError: ``heads`` does not divide ``dim``.
    """

    def __init__(self, config: CaptionerConfig) -> None:
        super().__init__()
        self.config, dim = config, config.dim
        self.region = PlacedRegions(config.region_dim, config.max_regions, dim)
        self.word = nn.Embedding(config.vocab, dim)
        nn.init.normal_(self.word.weight, std=dim**-0.5)
        self.position = SinusoidalPositions(dim, config.max_length)
        self.dropout = nn.Dropout(config.dropout)
        self.decoder = Decoder(
            TransformerConfig(
                dim=dim, heads=config.heads, layers=config.layers, dropout=config.dropout
            )
        )
        self.output_bias = nn.Parameter(torch.zeros(config.vocab))

    def begin(
        self,
        regions: Float[Tensor, "batch regions region_dim"],
        keep: Bool[Tensor, "batch regions"] | None = None,
    ) -> TransformerState:
        """The state before the first word; see :meth:`mmlib.captioning.LSTMCaptioner.begin`."""
        return TransformerState(self.region(regions, keep), keep, self.decoder.new_cache())

    def step(
        self,
        state: TransformerState,
        tokens: Int[Tensor, " batch"],
        *,
        return_weights: bool = False,
    ) -> tuple[
        Float[Tensor, "batch vocab"], Float[Tensor, "batch regions"] | None, TransformerState
    ]:
        """One word further, as :meth:`mmlib.captioning.LSTMCaptioner.step`; the cache grows."""
        logits, weights = self._decode(state, tokens[:, None], state.cache, return_weights)
        return logits[:, 0], weights[:, 0] if return_weights else None, state

    def forward(
        self,
        regions: Float[Tensor, "batch regions region_dim"],
        tokens: Int[Tensor, "batch length"],
        keep: Bool[Tensor, "batch regions"] | None = None,
        *,
        return_weights: bool = False,
    ) -> tuple[Float[Tensor, "batch length vocab"], Float[Tensor, "batch length regions"] | None]:
        """Logits of the token after each, as :meth:`mmlib.captioning.LSTMCaptioner.forward`."""
        check_tokens(tokens, regions, self.config.vocab)
        return self._decode(self.begin(regions, keep), tokens, None, return_weights)

    def _decode(
        self,
        state: TransformerState,
        tokens: Tensor,
        cache: list[LayerCache] | None,
        return_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        offset = len(cache[0].self_attention) if cache else 0
        x = self.config.dim**0.5 * self.word(tokens)
        x, weights = self.decoder(
            self.dropout(self.position(x, offset)),
            state.memory,
            memory_keep=state.keep,
            cache=cache,
            return_weights=return_weights,
        )
        logits = F.linear(self.dropout(x), self.word.weight, self.output_bias)
        return logits, weights[-1].cross_attention.mean(1) if return_weights else None
