r"""DALL·E: a language model whose second half is a picture: chapter 11.

A sentence of :math:`n` words and the :math:`m` codes of a picture (:mod:`mmlib.discrete_vae`) are
one sequence, and a decoder-only Transformer predicts each from those before it:

.. math::

    p(w, k) = \prod_{i=2}^{n} p(w_i \mid w_{<i}) \; \prod_{j=1}^{m} p(k_j \mid w, k_{<j})

Words and codes have tables and output layers of their own. A word's position is learned; a code's
is the sum of its row's and its column's, so that the model is told which codes stand above each
other. A short sentence is filled up with padding, which is read like words: a sentence of padding
alone is *no caption*, and a model that sees it now and then in training can be guided
(:func:`mmlib.sampling.guide`). In training some codes may be hidden from those after them
(:mod:`mmlib.dalle_training` draws which), so that these have to ask the sentence.

References:
    Ramesh et al., *Zero-Shot Text-to-Image Generation*, ICML 2021. There each position has a
    padding token of its own, and layers attend to rows, columns and neighbourhoods of 32×32 codes
    in turn; 8×8 codes need no such saving. Guidance of autoregressive models: Gafni et al.,
    *Make-A-Scene*, ECCV 2022.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmlib.block import LayerCache, TransformerConfig
from mmlib.transformer import Decoder

__all__ = ["CodeVectors", "Dalle", "DalleConfig", "DalleLogits"]

#: Spread of words and places at the start: near that of the codes' vectors. At 0.02, as is usual
#: for a table that also writes, they are lost beside the codes for a thousand steps.
LOUD = 0.3


@dataclass(frozen=True)
class DalleConfig:
    """Sizes and choices of a :class:`Dalle`.

    Attributes:
        words: Size of the text's vocabulary.
        text_length: Tokens of a text, begin, end and padding included.
        codes: Size of the picture's codebook.
        side: Rows, and columns, of the grid of codes.
        pad_id: The word that fills up a short text.
        dim: Width of the Transformer.
        heads: Attention heads; must divide ``dim``.
        layers: Blocks.
        dropout: See :class:`~mmlib.block.TransformerConfig`.

    Raises:
        ValueError: a number out of its range.
    """

    words: int
    text_length: int
    codes: int = 512
    side: int = 8
    pad_id: int = 0
    dim: int = 192
    heads: int = 6
    layers: int = 4
    dropout: float | int = 0.0

    def __post_init__(self) -> None:
        for name in ("words", "text_length", "codes", "side"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1: got {getattr(self, name)}")
        if not 0 <= self.pad_id < self.words:
            raise ValueError(f"pad_id must be a word, 0 to {self.words - 1}: got {self.pad_id}")
        self.transformer()

    @property
    def places(self) -> int:
        """Codes of a picture."""
        return self.side**2

    def transformer(self) -> TransformerConfig:
        """The sizes of the blocks."""
        return TransformerConfig(
            self.dim, self.heads, self.layers, dropout=self.dropout, cross_attention=False
        )


class DalleLogits(NamedTuple):
    """What each token is expected to be, from those before it.

    Attributes:
        text: Of every word but the first.
        codes: Of the codes from the first to the one after the last that was given; of all of
            them at most.
    """

    text: Float[Tensor, "batch words_after words"]
    codes: Float[Tensor, "batch places codes"]


class CodeVectors(nn.Module):
    r"""A vector for each code, made of its vector in the tokenizer's codebook.

    .. math:: E_k = W_2\, \operatorname{gelu}(W_1 e_k + b)

    So codes that paint alike are read and written alike, and one that training never showed, such
    as the edge of a green star where there was no green star, is not ruled out. A free table rules
    it out: the softmax has only ever pushed it down.

    Args:
        codebook: The codes' vectors :math:`e_k`. They are not trained, and saved with the model.
        dim: Width of the Transformer.
    """

    codebook: Tensor

    def __init__(self, codebook: Float[Tensor, "codes code_dim"], dim: int) -> None:
        super().__init__()
        table = codebook.detach().clone()
        spread = (table - table.mean(dim=0)).square().mean().sqrt().clamp(min=1e-6)
        self.register_buffer("codebook", (table - table.mean(dim=0)) / spread)
        self.layers = nn.Sequential(
            nn.Linear(table.shape[1], dim), nn.GELU(), nn.Linear(dim, dim, bias=False)
        )

    def forward(self) -> Float[Tensor, "codes dim"]:
        """All vectors."""
        return self.layers(self.codebook)


class Dalle(nn.Module):
    """The Transformer over words and codes.

    Args:
        config: Sizes and choices.
        codebook: The codes' vectors in the tokenizer, if those of the Transformer are to be made
            of them (:class:`CodeVectors`); by default it has free tables.

    Attributes:
        config: Sizes and choices.

    Raises:
        ValueError: the codebook has another number of codes.

    >>> model = Dalle(DalleConfig(words=20, text_length=5, codes=16, side=2, dim=24))
    >>> out = model(torch.tensor([[1, 7, 2, 0, 0]]), torch.tensor([[3, 9, 9]]))
    >>> out.text.shape, out.codes.shape
    (torch.Size([1, 4, 20]), torch.Size([1, 4, 16]))
    """

    def __init__(
        self,
        config: DalleConfig,
        codebook: Float[Tensor, "codes code_dim"] | None = None,
    ) -> None:
        super().__init__()
        if codebook is not None and len(codebook) != config.codes:
            raise ValueError(f"codebook must hold {config.codes} codes: got {len(codebook)}")
        self.config = config
        self.word = nn.Embedding(config.words, config.dim)
        self.code: nn.Module
        self.code_head: nn.Module
        if codebook is None:
            self.code = nn.Embedding(config.codes, config.dim)
            self.code_head = nn.Linear(config.dim, config.codes)
            nn.init.normal_(self.code.weight, std=0.02)
        else:
            self.code = CodeVectors(codebook, config.dim)
            self.code_head = CodeVectors(codebook, config.dim)
        self.word_position = nn.Embedding(config.text_length, config.dim)
        self.row = nn.Embedding(config.side, config.dim)
        self.column = nn.Embedding(config.side, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.decoder = Decoder(config.transformer())
        self.word_head = nn.Linear(config.dim, config.words)
        for table in (self.word, self.word_position, self.row, self.column):
            nn.init.normal_(table.weight, std=LOUD)

    def forward(
        self,
        text: Int[Tensor, "batch length"],
        codes: Int[Tensor, "batch given"],
        hidden: Bool[Tensor, "batch given"] | None = None,
    ) -> DalleLogits:
        """Logits of every word and code but the first word.

        Args:
            text: Token ids, filled up to the configured length.
            codes: The picture's codes, row by row: all of them, or the first few, or none.
            hidden: True where those after a code see its place alone.

        Raises:
            TypeError: ids that are no whole numbers.
            ValueError: a wrong shape, or an id outside its vocabulary.
        """
        config = self.config
        check_text(text, config)
        _check_codes(codes, config, len(text))
        if hidden is not None and hidden.shape != codes.shape:
            raise ValueError(
                f"hidden must have the shape of the codes, {tuple(codes.shape)}: "
                f"got {tuple(hidden.shape)}"
            )
        read = slice(config.places - 1)  # nothing comes after the last
        of_codes = self._embed_codes(codes[:, read], 0, None if hidden is None else hidden[:, read])
        x = torch.cat([self._embed_text(text), of_codes], dim=1)
        x, _ = self.decoder(self.dropout(x))
        after_text = config.text_length - 1
        return DalleLogits(self.word_head(x[:, :after_text]), self._code_logits(x[:, after_text:]))

    def begin(
        self, text: Int[Tensor, "batch length"], cache: list[LayerCache]
    ) -> Float[Tensor, "batch codes"]:
        """Read the text into an empty cache; logits of the first code.

        Args:
            text: As in :meth:`forward`.
            cache: From ``model.decoder.new_cache()``.

        Raises:
            ValueError: a wrong shape, an id outside its vocabulary, or a cache that was used.
        """
        check_text(text, self.config)
        if len(cache[0].self_attention):
            raise ValueError(f"cache must be empty: it holds {len(cache[0].self_attention)}")
        x, _ = self.decoder(self.dropout(self._embed_text(text)), cache=cache)
        return self._code_logits(x[:, -1])

    def step(
        self, codes: Int[Tensor, " batch"], cache: list[LayerCache]
    ) -> Float[Tensor, "batch codes"]:
        """Read the next code of each picture; logits of the one after it.

        Args:
            codes: One for each row of the cache.
            cache: What :meth:`begin` has filled.

        Raises:
            ValueError: nothing was begun, or the picture is complete.
        """
        place = len(cache[0].self_attention) - self.config.text_length
        if not 0 <= place < self.config.places - 1:
            raise ValueError(
                f"cache must hold the text and at most {self.config.places - 2} codes: "
                f"got {place + self.config.text_length} positions"
            )
        x, _ = self.decoder(self.dropout(self._embed_codes(codes[:, None], place)), cache=cache)
        return self._code_logits(x[:, 0])

    def loss(
        self,
        text: Int[Tensor, "batch length"],
        codes: Int[Tensor, "batch places"],
        text_share: float | int = 1 / 8,
        hidden: Bool[Tensor, "batch places"] | None = None,
    ) -> Float[Tensor, ""]:
        r"""Mean cross-entropy of the words and of the codes, in nats, weighed against each other.

        .. math:: \alpha\, \frac{-1}{N_w}\sum \log p(w_i \mid w_{<i})
                  + (1 - \alpha)\, \frac{-1}{N_k} \sum \log p(k_j \mid w, k_{<j})

        As in the paper, where :math:`\alpha = 1/8`: the picture is what is wanted. Padding is not
        to be predicted here and does not count.

        Args:
            text: As in :meth:`forward`.
            codes: All codes of each picture.
            text_share: :math:`\alpha`, from 0 to 1.
            hidden: As in :meth:`forward`; hidden codes are to be predicted like the others.

        Raises:
            ValueError: a wrong shape, or a share out of its range.
        """
        if not 0 <= text_share <= 1:
            raise ValueError(f"text_share must be from 0 to 1: got {text_share}")
        _check_codes(codes, self.config, len(text), complete=True)
        out, words = self(text, codes, hidden), text[:, 1:]
        total = F.cross_entropy(
            out.text.float().flatten(0, 1),
            words.flatten(),
            ignore_index=self.config.pad_id,
            reduction="sum",
        )
        # Without a caption there are no words, and 0 / 0 would spoil the step.
        of_words = total / (words != self.config.pad_id).sum().clamp(min=1)
        of_codes = F.cross_entropy(out.codes.float().flatten(0, 1), codes.flatten())
        return text_share * of_words + (1 - text_share) * of_codes

    def log_prob(
        self, text: Int[Tensor, "batch length"], codes: Int[Tensor, "batch places"]
    ) -> Float[Tensor, "batch places"]:
        r""":math:`\log p(k_j \mid w, k_{<j})` of each code, in nats.

        Raises:
            ValueError: a wrong shape, or an id outside its vocabulary.
        """
        _check_codes(codes, self.config, len(text), complete=True)
        log_probs = self(text, codes).codes.float().log_softmax(dim=-1)
        return log_probs.gather(2, codes[..., None])[..., 0]

    def _embed_text(self, text: Tensor) -> Tensor:
        return self.word(text) + self.word_position.weight

    def _code_logits(self, x: Tensor) -> Tensor:
        if isinstance(self.code_head, CodeVectors):
            return x @ self.code_head().T
        return self.code_head(x)

    def _embed_codes(self, codes: Tensor, first: int, hidden: Tensor | None = None) -> Tensor:
        place = torch.arange(first, first + codes.shape[1], device=codes.device)
        side = self.config.side
        table = self.code() if isinstance(self.code, CodeVectors) else self.code.weight
        x = F.embedding(codes, table)
        if hidden is not None:
            x = x.masked_fill(hidden[..., None], 0)
        return x + self.row(place // side) + self.column(place % side)


def check_text(text: Tensor, config: DalleConfig) -> None:
    """Raise an error unless these are texts as a :class:`Dalle` takes them."""
    if text.ndim != 2 or text.shape[1] != config.text_length or not len(text):
        raise ValueError(
            f"text must have shape (batch, {config.text_length}), not empty: "
            f"got {tuple(text.shape)}"
        )
    check_ids("text", text, config.words)


def _check_codes(codes: Tensor, config: DalleConfig, batch: int, complete: bool = False) -> None:
    wanted = f"{config.places}" if complete else f"0 to {config.places}"
    fits = codes.ndim == 2 and len(codes) == batch and codes.shape[1] <= config.places
    if not fits or (complete and codes.shape[1] != config.places):
        raise ValueError(
            f"codes must have shape ({batch}, {wanted}), row by row: got {tuple(codes.shape)}"
        )
    check_ids("codes", codes, config.codes)


def check_ids(name: str, ids: Tensor, size: int) -> None:
    """Raise an error unless these are whole numbers below ``size``."""
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise TypeError(f"{name} must hold whole numbers: got {ids.dtype}")
    # On an accelerator reading the values would make the host wait.
    if ids.numel() and ids.device.type == "cpu":
        low, high = int(ids.min()), int(ids.max())
        if not 0 <= low <= high < size:
            raise ValueError(f"{name} must lie from 0 to {size - 1}: got {low} to {high}")
