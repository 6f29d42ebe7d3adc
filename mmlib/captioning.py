r"""Sentences about pictures: region features, attention, and a decoder: chapter 08.

A captioner writes one word after another, and looks at the picture anew for each:

.. math:: p(y \mid x) = \prod_t p(y_t \mid y_{<t}, v_1, \dots, v_R)

where the :math:`v_i` are the regions of the picture. :class:`LSTMCaptioner` is Show, Attend and
Tell; :class:`~mmlib.captioning_transformer.TransformerCaptioner` does the same with the decoder
of chapter 02. Both follow one protocol, :class:`Captioner`, through which
:class:`CaptionDecoding` serves :func:`mmlib.decoding.greedy` and
:func:`mmlib.decoding.beam_search`.

References:
    Xu et al., *Show, Attend and Tell: Neural Image Caption Generation with Visual Attention*, ICML
    2015; here without its doubly stochastic penalty, which is
    :func:`mmlib.captioning_attention.doubly_stochastic`, and with positions that are added to the
    regions. Bengio et al., *Scheduled Sampling for Sequence Prediction with Recurrent Neural
    Networks*, NeurIPS 2015.
"""

from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmlib.captioning_attention import PlacedRegions, RegionAttention
from mmlib.encoders.pooling import mean_tokens

__all__ = [
    "CaptionDecoding",
    "Captioner",
    "CaptionerConfig",
    "ImageCaptioner",
    "LSTMCaptioner",
    "LSTMState",
    "check_tokens",
]


@dataclass(frozen=True)
class CaptionerConfig:
    """Sizes of a captioner, of either kind.

    Attributes:
        vocab: Number of token ids.
        region_dim: Width of the regions as the picture encoder gives them.
        max_regions: Most regions of a picture; each place has a learned vector.
        dim: Width of everything inside.
        dropout: Probability, on word vectors and before the output layer (in a Transformer also
            inside it).
        heads: Attention heads of a Transformer.
        layers: Blocks of a Transformer.
        max_length: Most tokens of a caption in a Transformer, begin token included.

    Raises:
        ValueError: a number out of its range.
    """

    vocab: int
    region_dim: int
    max_regions: int
    dim: int = 128
    dropout: float = 0.0
    heads: int = 4
    layers: int = 2
    max_length: int = 64

    def __post_init__(self) -> None:
        sizes = ("vocab", "region_dim", "max_regions", "dim", "heads", "layers", "max_length")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1: got {getattr(self, name)}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1): got {self.dropout}")


@dataclass(frozen=True)
class LSTMState:
    """What an :class:`LSTMCaptioner` carries from word to word: memory of words, and the picture.

    Attributes:
        hidden: :math:`h`, what the next attention asks with.
        cell: :math:`c`.
        regions: The projected regions.
        keys: What they are compared by.
        keep: Which of them exist.
    """

    hidden: Float[Tensor, "batch dim"]
    cell: Float[Tensor, "batch dim"]
    regions: Float[Tensor, "batch regions dim"]
    keys: Float[Tensor, "batch regions dim"]
    keep: Bool[Tensor, "batch regions"] | None

    def select(self, rows: Int[Tensor, " new_batch"]) -> "LSTMState":
        """The state of these rows, in this order."""
        keep = None if self.keep is None else self.keep[rows]
        parts = (self.hidden, self.cell, self.regions, self.keys)
        return LSTMState(*(part[rows] for part in parts), keep)


class LSTMCaptioner(nn.Module):
    r"""Show, Attend and Tell: an LSTM that looks at the picture before each word.

    With :math:`v_i = W_r r_i + b_r + p_i` the regions and :math:`\bar v` their mean,

    .. math::

        h_0 &= \tanh(W_{h} \bar v), \qquad c_0 = \tanh(W_{c} \bar v) \\
        z_t &= \sigma(W_\beta h_{t-1}) \odot \operatorname{attention}(h_{t-1}, v) \\
        h_t, c_t &= \operatorname{LSTM}([E y_{t-1}; z_t],\; h_{t-1}, c_{t-1}) \\
        p(y_t \mid y_{<t}, v) &= \operatorname{softmax}(W_o(E y_{t-1} + L_h h_t + L_z z_t))

    Differs from the paper in the positions :math:`p_i` (its regions come from a network deep
    enough to know where they are), in one linear layer where it has two for :math:`h_0, c_0`, and
    in a gate :math:`\beta` for each channel in place of one for all.

    >>> config = CaptionerConfig(vocab=10, region_dim=8, max_regions=4, dim=16)
    >>> model = LSTMCaptioner(config)
    >>> logits, weights = model(torch.zeros(2, 4, 8), torch.tensor([[1, 5], [1, 7]]),
    ...                         return_weights=True)
    >>> logits.shape, weights.shape
    (torch.Size([2, 2, 10]), torch.Size([2, 2, 4]))
    """

    def __init__(self, config: CaptionerConfig) -> None:
        super().__init__()
        self.config, dim = config, config.dim
        self.region = PlacedRegions(config.region_dim, config.max_regions, dim)
        self.first_hidden, self.first_cell = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.word = nn.Embedding(config.vocab, dim)
        self.attention = RegionAttention(dim, dim, dim)
        self.gate = nn.Linear(dim, dim)
        self.cell = nn.LSTMCell(2 * dim, dim)
        self.from_hidden, self.from_seen = nn.Linear(dim, dim), nn.Linear(dim, dim, bias=False)
        self.output = nn.Linear(dim, config.vocab)
        self.dropout = nn.Dropout(config.dropout)

    def begin(
        self,
        regions: Float[Tensor, "batch regions region_dim"],
        keep: Bool[Tensor, "batch regions"] | None = None,
    ) -> LSTMState:
        """The state before the first word.

        Args:
            regions: Region features from any picture encoder.
            keep: Which of them exist; all by default.

        Raises:
            TypeError: ``keep`` is not boolean.
            ValueError: shapes that do not fit the configuration or one another.
        """
        v = self.region(regions, keep)
        mean = v.mean(1) if keep is None else mean_tokens(v, keep)
        hidden, cell = torch.tanh(self.first_hidden(mean)), torch.tanh(self.first_cell(mean))
        return LSTMState(hidden, cell, v, self.attention.keys(v), keep)

    def step(
        self, state: LSTMState, tokens: Int[Tensor, " batch"], *, return_weights: bool = False
    ) -> tuple[Float[Tensor, "batch vocab"], Float[Tensor, "batch regions"] | None, LSTMState]:
        """One word further: logits of the word after ``tokens``, where it looked, and the state."""
        seen, weights = self.attention(state.hidden, state.keys, state.regions, state.keep)
        seen = torch.sigmoid(self.gate(state.hidden)) * seen
        word = self.dropout(self.word(tokens))
        hidden, cell = self.cell(torch.cat([word, seen], dim=-1), (state.hidden, state.cell))
        joined = word + self.from_hidden(hidden) + self.from_seen(seen)
        logits = self.output(self.dropout(joined))
        state = replace(state, hidden=hidden, cell=cell)
        return logits, weights if return_weights else None, state

    def forward(
        self,
        regions: Float[Tensor, "batch regions region_dim"],
        tokens: Int[Tensor, "batch length"],
        keep: Bool[Tensor, "batch regions"] | None = None,
        *,
        own_share: float = 0.0,
        generator: torch.Generator | None = None,
        return_weights: bool = False,
    ) -> tuple[Float[Tensor, "batch length vocab"], Float[Tensor, "batch length regions"] | None]:
        r"""Logits of the token after each of ``tokens``, the true ones (teacher forcing, 教师强制).

        With ``own_share`` above 0 this is scheduled sampling (计划采样): each input token but the
        first is replaced, with that probability, by one drawn from the model's own distribution
        at the step before. No gradient flows through the draw.

        Args:
            regions: Region features.
            tokens: Captions from the begin token on; padding at the end changes nothing before it.
            keep: Which regions exist.
            own_share: Probability of reading an own word instead of the given one.
            generator: Of these draws; torch's own by default.
            return_weights: Return the attention weights too.

        Raises:
            TypeError: ``tokens`` does not hold integers, or ``keep`` is not boolean.
            ValueError: a wrong shape, an id outside the vocabulary, or ``own_share`` outside
                [0, 1].
        """
        if not 0.0 <= own_share <= 1.0:
            raise ValueError(f"own_share must lie in [0, 1]: got {own_share}")
        check_tokens(tokens, regions, self.config.vocab)
        state = self.begin(regions, keep)
        logits: list[Tensor] = []
        weights = []
        for t in range(tokens.shape[1]):
            word = tokens[:, t]
            if t and own_share:
                own = torch.multinomial(
                    logits[-1].detach().float().softmax(-1), 1, generator=generator
                )[:, 0]
                draw = torch.rand(len(word), generator=generator, device=word.device)
                word = torch.where(draw < own_share, own, word)
            now, where, state = self.step(state, word, return_weights=return_weights)
            logits.append(now)
            weights.append(where)
        return torch.stack(logits, 1), torch.stack(weights, 1) if return_weights else None


@runtime_checkable
class Captioner(Protocol):
    """What both kinds of captioner offer to whoever generates with them."""

    def begin(self, regions: Tensor, keep: Tensor | None = None) -> Any:
        """The state before the first word; it has a method ``select(rows)``."""
        ...

    def step(
        self, state: Any, tokens: Tensor, *, return_weights: bool = False
    ) -> tuple[Tensor, Tensor | None, Any]:
        """Logits of the word after ``tokens``, where it looked if asked, and the next state."""
        ...


class ImageCaptioner(nn.Module):
    """A picture encoder and a captioner as one model: both are trained, moved and saved together.

    Args:
        encoder: Any picture encoder; its tokens are the regions.
        captioner: Either kind.
    """

    def __init__(self, encoder: nn.Module, captioner: nn.Module) -> None:
        super().__init__()
        self.encoder, self.captioner = encoder, captioner

    def forward(
        self,
        images: Float[Tensor, "batch channels height width"],
        tokens: Int[Tensor, "batch length"],
        **options: Any,
    ) -> tuple[Float[Tensor, "batch length vocab"], Float[Tensor, "batch length regions"] | None]:
        """Logits and weights of the captioner; ``options`` are those of its ``forward``."""
        return self.captioner(self.encoder(images).tokens, tokens, **options)


class CaptionDecoding:
    """A captioner at work on a batch of pictures: what the searches of chapter 02 drive.

    Args:
        captioner: The captioner; put it into ``eval()`` first if it has dropout.
        regions: Region features of the pictures.
        keep: Which of them exist.
        keep_weights: Whether to collect where each word looked.

    Attributes:
        rows: Number of captions that are being written.
        device: Where the regions are.
        state: The captioner's.
    """

    def __init__(
        self,
        captioner: Captioner,
        regions: Float[Tensor, "batch regions region_dim"],
        keep: Bool[Tensor, "batch regions"] | None = None,
        keep_weights: bool = False,
    ) -> None:
        self.captioner, self.rows, self.device = captioner, len(regions), regions.device
        self._weights: list[Tensor] | None = [] if keep_weights else None
        with torch.no_grad():
            self.state = captioner.begin(regions, keep)

    @property
    def weights(self) -> Float[Tensor, "rows length regions"]:
        """Where each word of each caption looked, if ``keep_weights``."""
        if not self._weights:
            raise ValueError("weights are collected with keep_weights=True, from the first word on")
        return torch.stack(self._weights, 1)

    @torch.no_grad()
    def __call__(self, tokens: Int[Tensor, " rows"]) -> Float[Tensor, "rows vocab"]:
        """Take one more token for each row and return the logits of the token after it."""
        wanted = self._weights is not None
        logits, weights, self.state = self.captioner.step(self.state, tokens, return_weights=wanted)
        if wanted:
            self._weights.append(weights)
        return logits

    def select(self, rows: Int[Tensor, " new_rows"]) -> None:
        """Keep these rows, in this order."""
        self.state, self.rows = self.state.select(rows), len(rows)
        if self._weights is not None:
            self._weights = [weights[rows] for weights in self._weights]


def check_tokens(tokens: Tensor, regions: Tensor, vocab: int) -> None:
    """Say what is wrong with captions.

    Raises:
        TypeError: ``tokens`` does not hold integers.
        ValueError: a wrong shape, or an id outside the vocabulary.
    """
    if tokens.is_floating_point() or tokens.dtype == torch.bool:
        raise TypeError(f"tokens must hold whole numbers: got {tokens.dtype}")
    if tokens.ndim != 2 or 0 in tokens.shape or len(tokens) != len(regions):
        raise ValueError(
            f"tokens must have shape ({len(regions)}, length), one row a picture: "
            f"got {tuple(tokens.shape)}"
        )
    # On an accelerator reading the values would make the host wait.
    if tokens.device.type == "cpu" and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab:
        raise ValueError(
            f"tokens must lie from 0 to {vocab - 1}: got {int(tokens.min())} to {int(tokens.max())}"
        )
