r"""The multimodal language model: one decoder-only Transformer over words, regions and codes.

.. math::

    x_t = \begin{cases}
        E_{w_t} + P_t & \text{a word, with } P \text{ of its place among the words} \\
        W_2 \operatorname{gelu}(W_1 f_t) + R_t + C_t & \text{a region with CLIP's features } f \\
        K_{k_t} + R'_t + C'_t & \text{a code, with } K \text{ made of the codebook}
    \end{cases}

and the next token is told by one of two heads: words, with markers among them, by
:math:`\operatorname{softmax}(V h_t)`, codes by :math:`\operatorname{softmax}(K' h_t)`. Which of the
two is never in doubt: after the marker "draw" stand as many codes as a picture has, and everything
else is words. Rows and columns (:math:`R, C`) tell which region or code lies above which; regions
and codes have their own.

The loss is a mean over everything that is wanted, a code counting less than a word, since a picture
is 64 of them:

.. math:: \frac{\sum_{\text{words}} -\log p + \omega \sum_{\text{codes}} -\log p}
    {N_{\text{words}} + \omega N_{\text{codes}}}

Sum and count come apart, so that the mean is over all micro-batches and processes.

References:
    Liu et al., *Visual Instruction Tuning*, NeurIPS 2023 (features of CLIP's patches through a
    small network, among the words). Team Chameleon, *Chameleon: Mixed-Modal Early-Fusion
    Foundation Models*, 2024 (words and codes in one sequence). Ramesh et al., *Zero-Shot
    Text-to-Image Generation*, ICML 2021.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmlib.block import LayerCache, TransformerConfig
from mmlib.dalle import LOUD, CodeVectors
from mmlib.packing import document_keep
from mmlib.system.sequence import CODE, REGION, WORD, Rows
from mmlib.transformer import Decoder

__all__ = ["LanguageConfig", "MultimodalLM"]


@dataclass(frozen=True)
class LanguageConfig:
    r"""Sizes and choices of a :class:`MultimodalLM`.

    Attributes:
        words: Size of the vocabulary, markers included.
        length: Most words of a document.
        feature_dim: Width of a region's features.
        region_side: Rows, and columns, of a picture's regions.
        code_side: Rows, and columns, of a picture's codes.
        dim: Width of the Transformer.
        heads: Attention heads; must divide ``dim``.
        layers: Blocks.
        dropout: See :class:`~mmlib.block.TransformerConfig`.
        code_weight: :math:`\omega`, what a code counts in the loss beside a word.

    Raises:
        ValueError: a number out of its range.
    """

    words: int
    length: int = 192
    feature_dim: int = 256
    region_side: int = 4
    code_side: int = 8
    dim: int = 128
    heads: int = 4
    layers: int = 4
    dropout: float | int = 0.0
    code_weight: float | int = 0.5

    def __post_init__(self) -> None:
        for name in ("words", "length", "feature_dim", "region_side", "code_side"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1: got {getattr(self, name)}")
        if not self.code_weight > 0:
            raise ValueError(f"code_weight must be above 0: got {self.code_weight}")
        self.transformer()

    @property
    def regions(self) -> int:
        """Regions of a picture that is looked at."""
        return self.region_side**2

    @property
    def places(self) -> int:
        """Codes of a picture that is drawn."""
        return self.code_side**2

    def transformer(self) -> TransformerConfig:
        """The sizes of the blocks."""
        return TransformerConfig(
            self.dim, self.heads, self.layers, dropout=self.dropout, cross_attention=False
        )


class MultimodalLM(nn.Module):
    """The Transformer over words, regions and codes.

    Args:
        config: Sizes and choices.
        codebook: The codes' vectors in the tokenizer of pictures
            (``codebook`` of :class:`mmlib.discrete_vae.DiscreteVAE`).
        parts: Modules that stand in for this class's own, by name: ``word``, ``word_place``,
            ``decoder``, ``word_head``. A subclass for another Transformer gives them.

    Attributes:
        config: Sizes and choices.
        decoder: The blocks; ``decoder.new_cache()`` makes a cache.
    """

    def __init__(
        self,
        config: LanguageConfig,
        codebook: Float[Tensor, "codes code_dim"],
        parts: Mapping[str, nn.Module] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.config = config
        self.word = parts.get("word") or nn.Embedding(config.words, config.dim)
        self.word_place = parts.get("word_place") or nn.Embedding(config.length, config.dim)
        self.region = nn.Sequential(
            nn.LayerNorm(config.feature_dim),
            nn.Linear(config.feature_dim, config.dim),
            nn.GELU(),
            nn.Linear(config.dim, config.dim),
        )
        self.region_row = nn.Embedding(config.region_side, config.dim)
        self.region_column = nn.Embedding(config.region_side, config.dim)
        self.code = CodeVectors(codebook, config.dim)
        self.code_row = nn.Embedding(config.code_side, config.dim)
        self.code_column = nn.Embedding(config.code_side, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.decoder = parts.get("decoder") or Decoder(config.transformer())
        self.word_head = parts.get("word_head") or nn.Linear(config.dim, config.words)
        self.code_head = CodeVectors(codebook, config.dim)
        for module in self.children():
            if isinstance(module, nn.Embedding):  # loud, as in chapter 11
                nn.init.normal_(module.weight, std=LOUD)

    def forward(
        self, rows: Rows, cache: list[LayerCache] | None = None
    ) -> Float[Tensor, "rows length dim"]:
        """What is known after each token; the heads read it.

        Args:
            rows: Tokens. With a cache, the new ones alone; their ``document`` then has a number
                for every token so far, which says what is padding in front.
            cache: From ``decoder.new_cache()``.

        Raises:
            ValueError: a number outside its range.
        """
        self._check(rows)
        x = self.dropout(self._embed(rows))
        if cache is None:
            keep = document_keep(rows.document)
        else:
            keep = rows.document >= 0
        x, _ = self.decoder(x, keep=keep, cache=cache)
        return x

    def tell(self, known: Float[Tensor, "*shape dim"]) -> Float[Tensor, "*shape words"]:
        """Logits of the word that comes next."""
        return self.word_head(known)

    def paint(self, known: Float[Tensor, "*shape dim"]) -> Float[Tensor, "*shape codes"]:
        """Logits of the code that comes next."""
        return known @ self.code_head().T

    def losses(self, rows: Rows) -> tuple[Float[Tensor, " told"], Float[Tensor, " painted"]]:
        r""":math:`-\log p` of every wanted word and of every wanted code, in nats."""
        known = self(rows).flatten(0, 1)
        return (
            _nats(self.tell(known[rows.from_words]), rows.to_words),
            _nats(self.paint(known[rows.from_codes]), rows.to_codes),
        )

    def loss(self, rows: Rows) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """The weighted sum of :meth:`losses` and the sum of the weights: their ratio is the mean.

        Rows in which nothing is wanted give zeros.
        """
        words, codes = self.losses(rows)
        weight = self.config.code_weight
        count = torch.full_like(words.detach().sum(), len(words) + weight * len(codes))
        return words.sum() + weight * codes.sum(), count

    def _embed(self, rows: Rows) -> Tensor:
        kinds, places, config = rows.kinds, rows.places, self.config
        is_word, is_region = (kinds == WORD)[..., None], (kinds == REGION)[..., None]

        def of(kind: int, numbers: Tensor) -> Tensor:
            return torch.where(kinds == kind, numbers, 0)

        word, place = of(WORD, rows.ids), of(WORD, places)
        words = self.word(word) + self.word_place(place)
        code, place = of(CODE, rows.ids), of(CODE, places)
        codes = self._vectors(code).masked_fill(rows.hidden[..., None], 0)
        codes = codes + self.code_row(place // config.code_side)
        codes = codes + self.code_column(place % config.code_side)
        seen = self.region(rows.features.to(self.word.weight)).flatten(0, 1)
        # A last row of zeros, which also stands for all regions where no picture is looked at.
        seen = torch.cat([seen, seen.new_zeros(1, config.dim)])
        region = torch.where(kinds == REGION, rows.ids, len(seen) - 1)
        place = of(REGION, places)
        regions = F.embedding(region, seen) + self.region_row(place // config.region_side)
        regions = regions + self.region_column(place % config.region_side)
        return torch.where(is_word, words, torch.where(is_region, regions, codes.to(words.dtype)))

    def _vectors(self, codes: Int[Tensor, "rows length"]) -> Float[Tensor, "rows length dim"]:
        # In training a batch has more tokens than there are codes; in writing it has a few.
        if codes.numel() < len(self.code.codebook):
            return self.code.layers(F.embedding(codes, self.code.codebook))
        return F.embedding(codes, self.code())

    def _check(self, rows: Rows) -> None:
        config = self.config
        wanted = (config.regions, config.feature_dim)
        if rows.features.shape[1:] != wanted:
            raise ValueError(
                f"features must have shape (pictures, {wanted[0]}, {wanted[1]}): "
                f"got {tuple(rows.features.shape)}"
            )
        # On an accelerator reading the values would make the host wait; fake tensors have none.
        if rows.ids.device.type != "cpu" or not rows.ids.numel() or _fake(rows.ids):
            return
        most = {
            WORD: (config.words, config.length),
            REGION: (len(rows.features) * config.regions, config.regions),
            CODE: (len(self.code.codebook), config.places),
        }
        for kind, (ids, places) in most.items():
            mine = rows.kinds == kind
            for name, numbers, size in (("ids", rows.ids, ids), ("places", rows.places, places)):
                found = numbers[mine]
                if found.numel() and not 0 <= int(found.min()) <= int(found.max()) < size:
                    what = ("words", "regions", "codes")[kind]
                    raise ValueError(
                        f"{name} of {what} must lie from 0 to {size - 1}: "
                        f"got {int(found.min())} to {int(found.max())}"
                    )


def _nats(logits: Tensor, wanted: Int[Tensor, " told"]) -> Float[Tensor, " told"]:
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, wanted, reduction="none")


def _fake(tensor: Tensor) -> bool:
    return type(tensor).__name__ == "FakeTensor"
