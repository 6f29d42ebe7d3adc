r"""The Transformer: encoder, decoder, and both together: chapter 02.

Its parts are in :mod:`mmlib.positions` and :mod:`mmlib.block`; :mod:`mmlib.decoding` generates.

Masks follow the library's one convention: boolean, named ``keep``, True means *attend*; a mask of
shape ``(batch, length)`` says which tokens exist. Attention weights are returned on request, one
:class:`~mmlib.block.LayerWeights` a layer, and stored nowhere.

References:
    Vaswani et al., *Attention Is All You Need*, NeurIPS 2017.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmlib.block import LayerCache, LayerWeights, TransformerBlock, TransformerConfig
from mmlib.positions import LearnedPositions, SinusoidalPositions

__all__ = ["Decoder", "Encoder", "EncoderDecoder"]


class Encoder(nn.Module):
    """A stack of blocks in which every token sees every other.

    It takes vectors, not token ids: patches of an image or frames of a sound go the same way as
    embedded words. With pre-norm a last norm closes the stack, since nothing else bounds the
    stream; with post-norm the last block has done it.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.layers))
        self.norm = (
            nn.LayerNorm(config.dim, eps=config.norm_eps) if config.norm_first else nn.Identity()
        )

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        keep: Bool[Tensor, "..."] | None = None,
        *,
        return_weights: bool = False,
    ) -> tuple[Float[Tensor, "batch length dim"], list[LayerWeights] | None]:
        """Encode; ``keep`` is that of :class:`~mmlib.attention.MultiHeadAttention`."""
        weights = []
        for block in self.blocks:
            x, layer_weights = block(x, keep=keep, return_weights=return_weights)
            weights.append(layer_weights)
        return self.norm(x), weights if return_weights else None


class Decoder(nn.Module):
    """A stack of causal blocks, which attend to a memory unless ``cross_attention`` is off.

    Without cross-attention it is the decoder-only stack of GPT.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            TransformerBlock(config, cross=config.cross_attention) for _ in range(config.layers)
        )
        self.norm = (
            nn.LayerNorm(config.dim, eps=config.norm_eps) if config.norm_first else nn.Identity()
        )

    def new_cache(self) -> list[LayerCache]:
        """An empty cache for each block."""
        return [LayerCache() for _ in self.blocks]

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        memory: Float[Tensor, "batch memory_length dim"] | None = None,
        *,
        keep: Bool[Tensor, "..."] | None = None,
        memory_keep: Bool[Tensor, "..."] | None = None,
        cache: list[LayerCache] | None = None,
        return_weights: bool = False,
    ) -> tuple[Float[Tensor, "batch length dim"], list[LayerWeights] | None]:
        """Decode; the arguments are those of :class:`~mmlib.block.TransformerBlock`.

        Raises:
            ValueError: ``cache`` does not hold one entry for each block.
        """
        if cache is not None and len(cache) != len(self.blocks):
            raise ValueError(
                f"cache must hold one entry for each of {len(self.blocks)} blocks: got {len(cache)}"
            )
        weights = []
        for index, block in enumerate(self.blocks):
            x, layer_weights = block(
                x,
                memory,
                keep=keep,
                memory_keep=memory_keep,
                causal=True,
                cache=None if cache is None else cache[index],
                return_weights=return_weights,
            )
            weights.append(layer_weights)
        return self.norm(x), weights if return_weights else None


class EncoderDecoder(nn.Module):
    r"""The Transformer of 2017: source tokens in, logits of the next target token out.

    .. math::

        p(y \mid x) = \prod_t p(y_t \mid y_{<t}, x), \qquad
        p(y_t \mid y_{<t}, x) = \operatorname{softmax}(W h_t + b), \qquad
        h = \operatorname{Decoder}(y_{<t}, \operatorname{Encoder}(x))

    Embeddings are drawn with variance :math:`1/d` and multiplied by :math:`\sqrt{d}`, so that
    the same matrix, tied, gives logits of unit size. Learned positions start as loud as the
    sinusoids. :func:`mmlib.decoding.greedy` and :func:`mmlib.decoding.beam_search` generate.

    Raises:
        ValueError: ``source_vocab`` or ``target_vocab`` is missing from the configuration.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        if config.source_vocab is None or config.target_vocab is None:
            raise ValueError(
                "source_vocab and target_vocab are needed: "
                f"got {config.source_vocab} and {config.target_vocab}"
            )
        self.config = config
        self.source_embedding = nn.Embedding(config.source_vocab, config.dim)
        self.target_embedding = nn.Embedding(config.target_vocab, config.dim)
        self.source_positions = _make_positions(config)
        self.target_positions = _make_positions(config)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        # A tied matrix is used in place, not registered twice: safetensors refuses shared memory.
        self.output_weight = (
            None
            if config.tie_embeddings
            else nn.Parameter(torch.empty(config.target_vocab, config.dim))
        )
        self.output_bias = nn.Parameter(torch.zeros(config.target_vocab))
        for weight in (
            self.source_embedding.weight,
            self.target_embedding.weight,
            self.output_weight,
        ):
            if weight is not None:
                nn.init.normal_(weight, std=config.dim**-0.5)

    def forward(
        self,
        source: Int[Tensor, "batch source_length"],
        target: Int[Tensor, "batch length"],
        source_keep: Bool[Tensor, "batch source_length"] | None = None,
        target_keep: Bool[Tensor, "batch length"] | None = None,
        *,
        return_weights: bool = False,
    ) -> tuple[Float[Tensor, "batch length target_vocab"], list[LayerWeights] | None]:
        """Logits of the token after each of ``target``, and the decoder's weights or None.

        Under teacher forcing ``target`` is the true sequence without its last token, and the
        logits are compared with the sequence without its first.
        """
        memory, _ = self.encode(source, source_keep)
        return self.decode(target, memory, source_keep, target_keep, return_weights=return_weights)

    def encode(
        self,
        source: Int[Tensor, "batch source_length"],
        source_keep: Bool[Tensor, "batch source_length"] | None = None,
        *,
        return_weights: bool = False,
    ) -> tuple[Float[Tensor, "batch source_length dim"], list[LayerWeights] | None]:
        """The memory that the decoder reads, and the encoder's weights or None."""
        x = self._embed("source", source, self.source_embedding, self.source_positions, 0)
        return self.encoder(x, source_keep, return_weights=return_weights)

    def decode(
        self,
        target: Int[Tensor, "batch length"],
        memory: Float[Tensor, "batch source_length dim"],
        source_keep: Bool[Tensor, "batch source_length"] | None = None,
        target_keep: Bool[Tensor, "..."] | None = None,
        *,
        cache: list[LayerCache] | None = None,
        return_weights: bool = False,
    ) -> tuple[Float[Tensor, "batch length target_vocab"], list[LayerWeights] | None]:
        """Logits of the token after each of ``target``, and the decoder's weights or None.

        With a cache from ``decoder.new_cache()``, ``target`` holds only the new tokens.
        """
        offset = len(cache[0].self_attention) if cache else 0
        x = self._embed("target", target, self.target_embedding, self.target_positions, offset)
        x, weights = self.decoder(
            x,
            memory if self.config.cross_attention else None,
            keep=target_keep,
            memory_keep=source_keep,
            cache=cache,
            return_weights=return_weights,
        )
        weight = self.target_embedding.weight if self.output_weight is None else self.output_weight
        return F.linear(x, weight, self.output_bias), weights

    def _embed(
        self,
        name: str,
        tokens: Tensor,
        embedding: nn.Embedding,
        positions: nn.Module,
        offset: int,
    ) -> Tensor:
        if tokens.is_floating_point() or tokens.dtype == torch.bool:
            raise TypeError(f"{name} must hold token ids: got {tokens.dtype}")
        if tokens.ndim != 2 or 0 in tokens.shape:
            raise ValueError(
                f"{name} must have shape (batch, length), not empty: got {tuple(tokens.shape)}"
            )
        # On an accelerator reading the values would make the host wait.
        if tokens.device.type == "cpu":
            low, high = int(tokens.min()), int(tokens.max())
            if low < 0 or high >= embedding.num_embeddings:
                raise ValueError(
                    f"{name} must hold ids from 0 to {embedding.num_embeddings - 1}: "
                    f"got {low} to {high}"
                )
        x = math.sqrt(self.config.dim) * embedding(tokens)
        return self.dropout(positions(x, offset))


class _NoPositions(nn.Module):
    def forward(self, x: Tensor, offset: int = 0) -> Tensor:
        return x


def _final_norm(config: TransformerConfig) -> nn.Module:
    return nn.LayerNorm(config.dim, eps=config.norm_eps) if config.norm_first else nn.Identity()


def _make_positions(config: TransformerConfig) -> nn.Module:
    if config.positions == "sinusoidal":
        return SinusoidalPositions(config.dim, config.max_length)
    if config.positions == "learned":
        return LearnedPositions(config.dim, config.max_length, std=0.5**0.5)
    return _NoPositions()
