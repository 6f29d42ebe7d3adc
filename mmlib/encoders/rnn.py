r"""A recurrent text encoder, which the documents' systems start from (RNN, 循环神经网络).

References:
    Cho et al., *Learning Phrase Representations using RNN Encoder-Decoder*, EMNLP 2014.
    Hochreiter and Schmidhuber, *Long Short-Term Memory*, Neural Computation 1997.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from mmlib.encoders.encoded import Encoded
from mmlib.encoders.pooling import check_text, mean_tokens

__all__ = ["TextRNN", "TextRNNConfig"]


@dataclass(frozen=True)
class TextRNNConfig:
    """Sizes and choices of a :class:`TextRNN`.

    Attributes:
        vocab_size: Number of token ids.
        dim: Width of the tokens and of the pooled vector; even if ``bidirectional``, since each
            direction gives half of it.
        layers: Recurrent layers.
        cell: ``"gru"`` or ``"lstm"``.
        bidirectional: Read from both ends.
        embedding_dim: Width of the token vectors, ``dim`` by default.
        pool: ``"last"`` is the state after the last token (and, backwards, the first);
            ``"mean"`` the mean of the tokens.
        dropout: Probability, on token vectors and between layers, during training.

    Raises:
        ValueError: a number or a choice out of its range.
    """

    vocab_size: int
    dim: int = 128
    layers: int = 1
    cell: Literal["gru", "lstm"] = "gru"
    bidirectional: bool = False
    embedding_dim: int | None = None
    pool: Literal["last", "mean"] = "last"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("vocab_size", "dim", "layers", "embedding_dim"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ValueError(f"{name} must be at least 1: got {size}")
        if self.bidirectional and self.dim % 2:
            raise ValueError(f"dim must be even when bidirectional: got {self.dim}")
        for name, choices in (("cell", ("gru", "lstm")), ("pool", ("last", "mean"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {choices}: got {getattr(self, name)!r}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1): got {self.dropout}")


class TextRNN(nn.Module):
    r"""A recurrent network over token vectors: the encoder of 2014.

    For the gated recurrent unit, with :math:`\odot` the element-wise product,

    .. math::

        r_t &= \sigma(W_r x_t + U_r h_{t-1} + b_r), \qquad
        z_t = \sigma(W_z x_t + U_z h_{t-1} + b_z) \\
        n_t &= \tanh(W_n x_t + b_n + r_t \odot (U_n h_{t-1} + c_n)), \qquad
        h_t = (1 - z_t) \odot n_t + z_t \odot h_{t-1}

    It is ``nn.GRU`` or ``nn.LSTM`` on packed sequences: padding is never read, so that each
    text gives what it would give alone.

    Attributes:
        dim: Width of tokens and of the pooled vector.
        token: The embedding table.
        rnn: The recurrent layers.

    >>> _ = torch.manual_seed(0)
    >>> encoder = TextRNN(TextRNNConfig(vocab_size=100, dim=16, bidirectional=True))
    >>> encoder(torch.tensor([[2, 7, 3]])).pooled.shape
    torch.Size([1, 16])
    """

    def __init__(self, config: TextRNNConfig) -> None:
        super().__init__()
        self.config, self.dim = config, config.dim
        width = config.embedding_dim or config.dim
        self.token = nn.Embedding(config.vocab_size, width)
        self.dropout = nn.Dropout(config.dropout)
        self.rnn = {"gru": nn.GRU, "lstm": nn.LSTM}[config.cell](
            width,
            config.dim // (2 if config.bidirectional else 1),
            config.layers,
            batch_first=True,
            # PyTorch warns of dropout between layers where there is one layer.
            dropout=config.dropout if config.layers > 1 else 0.0,
            bidirectional=config.bidirectional,
        )

    def forward(
        self,
        ids: Int[Tensor, "batch length"],
        keep: Bool[Tensor, "batch length"] | None = None,
        *,
        return_weights: bool = False,
    ) -> Encoded:
        """Encode texts; there are no attention weights to return.

        Args:
            ids: Token ids.
            keep: Which of them exist; all by default. Padding must be at the end.
            return_weights: Has no effect; every encoder takes it.

        Raises:
            TypeError: ``ids`` does not hold integers, or ``keep`` is not boolean.
            ValueError: a wrong shape, an id outside the vocabulary, or padding before a token.
        """
        check_text(ids, keep, self.config.vocab_size)
        keep = torch.ones_like(ids, dtype=torch.bool) if keep is None else keep
        if (keep[:, 1:] & ~keep[:, :-1]).any():
            raise ValueError("keep must have its padding at the end: a token follows a gap")
        lengths = keep.sum(dim=1)
        # A packed row holds at least one token: a missing text is read for one step, then zeroed.
        packed = pack_padded_sequence(
            self.dropout(self.token(ids)),
            lengths.clamp(min=1).cpu(),
            batch_first=True,
            enforce_sorted=False,
        )
        packed, state = self.rnn(packed)
        tokens, _ = pad_packed_sequence(packed, batch_first=True, total_length=ids.shape[1])
        tokens = tokens.masked_fill(~keep[..., None], 0.0)
        if self.config.pool == "mean":
            return Encoded(tokens, keep, mean_tokens(tokens, keep))
        hidden = state[0] if self.config.cell == "lstm" else state
        directions = 2 if self.config.bidirectional else 1
        pooled = rearrange(hidden[-directions:], "directions batch half -> batch (directions half)")
        return Encoded(tokens, keep, pooled.masked_fill((lengths == 0)[:, None], 0.0))
