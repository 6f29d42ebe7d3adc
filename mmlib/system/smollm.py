r"""A pretrained language model in place of the system's own: SmolLM2, 135 million parameters.

.. math::

    x_t = \begin{cases}
        E_{w_t} & \text{a word: SmolLM2's own vectors, and six new ones for the markers} \\
        W_2 \operatorname{gelu}(W_1 f_t) + R_t + C_t & \text{a region with CLIP's features } f \\
        K_{k_t} + R'_t + C'_t & \text{a code, with } K \text{ made of the codebook}
    \end{cases}

and the next word is told by :math:`\operatorname{softmax}(E h_t)`: the same table reads and writes.
Its blocks turn queries and keys by their place (rotary positions), which is counted from the
beginning of each document: neither neighbours in a packed row nor padding in front shift it.

It is trained as LLaVA is. In stage 3 the pretrained weights are frozen, and what is new learns: the
way of regions and codes into its width, the way of its states to codes, and the markers. In
stage 4 LoRA is added to its matrices, or all weights learn.

References:
    Ben Allal et al., *SmolLM2: When Smol Goes Big*, 2025. Liu et al., *Visual Instruction Tuning*,
    NeurIPS 2023. Su et al., *RoFormer: Enhanced Transformer with Rotary Position Embedding*, 2021.
    Touvron et al., *LLaMA: Open and Efficient Foundation Language Models*, 2023.
"""

import functools
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmlib.adapters import Adapters
from mmlib.encoders import pretrained
from mmlib.system.model import LanguageConfig, MultimodalLM
from mmlib.system.sequence import Rows
from mmlib.system.words import Marker, Words
from mmlib.trainable import train_only

__all__ = [
    "ADAPTED",
    "LENGTH",
    "SIZES",
    "LlamaDecoder",
    "PretrainedLM",
    "PretrainedWords",
    "language_model",
    "smollm_words",
    "visible",
]

#: Sizes of SmolLM2-135M, as transformers' ``LlamaConfig`` names them.
SIZES: Mapping[str, Any] = MappingProxyType(
    {
        "vocab_size": 49_152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
        "tie_word_embeddings": True,
        "pad_token_id": None,
    }
)
#: Most words of a document. Rotary positions need no table, so that more room costs nothing.
LENGTH = 512
#: Linear layers of a block to which LoRA adds in stage 4.
ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# As loud as SmolLM2's words: the standard deviation of their vectors is 0.136.
_LOUD = 0.136
# Of that with which torch draws the last layer of the codes' head.
_QUIET = 0.05
# What the markers begin as: the mean of these words' vectors.
_NAMES = {
    Marker.PICTURE: "picture",
    Marker.DRAW: "draw",
    Marker.ENGLISH: "English",
    Marker.CHINESE: "Chinese",
    Marker.USER: "user",
    Marker.ASSISTANT: "assistant",
}


class PretrainedWords(Words):
    """Texts to numbers and back by a tokenizer that was trained elsewhere.

    Any text can be read and written, since its pieces are made of bytes. SmolLM2's take as many for
    an English caption of one or two objects as the system's own words, 10.1 in the mean; for a
    Chinese one 26.7 instead of 17.6, since it knows few characters whole.

    Args:
        tokenizer: Of the package ``tokenizers``. Its special tokens are no longer read in texts, so
            that no text can forge one.
        begin: What a document begins with.
        end: What a caption, or a turn of a dialogue, ends with.
        pad: What stands where nothing is.

    Attributes:
        size: How many numbers there are, markers included.
        most: Most words of an answer.
    """

    most = 96

    def __init__(self, tokenizer: Any, begin: int = 1, end: int = 2, pad: int = 0) -> None:
        tokenizer.encode_special_tokens = True
        self.tokenizer = tokenizer
        self.begin, self.end, self.pad = begin, end, pad
        self.plain = tokenizer.get_vocab_size()
        self.size = self.plain + len(Marker)
        self._encode = functools.lru_cache(65_536)(
            lambda text: tuple(tokenizer.encode(text, add_special_tokens=False).ids)
        )

    def marker(self, marker: Marker) -> int:
        """The number of a marker."""
        return self.plain + int(marker)

    def encode(self, text: str) -> list[int]:
        """Numbers of a text.

        Raises:
            ValueError: it is not valid Unicode.
        """
        text.encode("utf-8")  # a lone surrogate is refused here
        return super().encode(text)

    def decode(self, ids: Iterable[int] | Tensor) -> str:
        """The text of numbers; markers, begin, end and padding are left out."""
        kept = [int(token) for token in ids if int(token) < self.plain]
        return self.tokenizer.decode(kept, skip_special_tokens=True).strip()


class PretrainedLM(MultimodalLM):
    """A pretrained Transformer over words, regions and codes.

    Args:
        config: Sizes and choices; ``dim`` and ``words`` are the Transformer's (and the markers').
        codebook: As of :class:`~mmlib.system.model.MultimodalLM`.
        llama: The Transformer, a ``LlamaModel`` of transformers; its table of words is taken out of
            it. By default one of SmolLM2's sizes that has learned nothing, for weights to be loaded
            into (:func:`language_model` gives the pretrained one).

    Attributes:
        config: Sizes and choices.
        decoder: The blocks.

    Raises:
        ValueError: ``dim`` or ``words`` is not the Transformer's.
    """

    def __init__(
        self,
        config: LanguageConfig,
        codebook: Float[Tensor, "codes code_dim"],
        llama: nn.Module | None = None,
    ) -> None:
        if llama is None:
            transformers = _transformers()
            llama = transformers.LlamaModel(transformers.LlamaConfig(**SIZES))
        sizes = llama.config
        for name, mine, its in (
            ("dim", config.dim, sizes.hidden_size),
            ("words", config.words, sizes.vocab_size + len(Marker)),
        ):
            if mine != its:
                raise ValueError(f"{name} must be the Transformer's, {its}: got {mine}")
        table, llama.embed_tokens = llama.embed_tokens, None
        parts = {
            "word": _Table(table),
            "word_place": _NoPlaces(),
            "decoder": LlamaDecoder(llama),
            "word_head": nn.Identity(),  # the table is the head: see tell
        }
        super().__init__(config, codebook, parts)
        for module in (self.region_row, self.region_column, self.code_row, self.code_column):
            nn.init.normal_(module.weight, std=_LOUD)
        with torch.no_grad():  # its states are long: codes would begin with a loss of 80 nats
            self.code_head.layers[-1].weight.mul_(_QUIET)

    def forward(self, rows: Rows, cache: Any = None) -> Float[Tensor, "rows length dim"]:
        """What is known after each token; as :meth:`mmlib.system.model.MultimodalLM.forward`.

        Raises:
            ValueError: a number outside its range.
        """
        self._check(rows)
        return self.decoder(self.dropout(self._embed(rows)), rows.document, cache)

    def tell(self, known: Float[Tensor, "*shape dim"]) -> Float[Tensor, "*shape words"]:
        """Logits of the word that comes next."""
        return self.word.logits(known)

    def is_new(self, name: str) -> bool:
        """Whether a parameter of this name was not pretrained."""
        return not name.startswith(("decoder.", "word.table."))

    def learn(self, stage: int, rank: int = 0, seed: int = 0) -> Adapters | None:
        """Choose what learns: in stage 3 what is new, in stage 4 also LoRA's additions, or all.

        Args:
            stage: 3 or 4.
            rank: Of the additions in stage 4; 0 trains all weights.
            seed: Of the additions.

        Returns:
            The additions, if there are any: :func:`mmlib.system.stages.fold` puts them in for good.
        """
        if stage == 3:
            train_only(self, self.is_new)
            return None
        if not rank:
            self.requires_grad_(True)
            return None
        adapters = Adapters(self, ADAPTED, heads=())
        adapters.add("instructions", rank, seed=seed)
        for name, parameter in self.named_parameters():
            if self.is_new(name):
                parameter.requires_grad_(True)
        return adapters


class LlamaDecoder(nn.Module):
    """The blocks of a ``LlamaModel`` of transformers, with a mask and places by document.

    Args:
        llama: The model.

    Attributes:
        blocks: Its blocks.
    """

    def __init__(self, llama: nn.Module) -> None:
        super().__init__()
        llama.set_attn_implementation("sdpa")  # which takes a boolean mask
        self.llama = llama

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks."""
        return self.llama.layers

    def new_cache(self) -> Any:
        """An empty cache."""
        return _transformers().DynamicCache(config=self.llama.config)

    def forward(
        self,
        x: Float[Tensor, "rows length dim"],
        document: Int[Tensor, "rows whole"],
        cache: Any = None,
    ) -> Float[Tensor, "rows length dim"]:
        """What is known after each token.

        Args:
            x: Vectors of tokens; with a cache, of the last ones.
            document: Number of the document of every token so far, -1 for padding.
            cache: From :meth:`new_cache`.
        """
        keep, places = visible(document, x.shape[1])
        found = self.llama(
            inputs_embeds=x,
            attention_mask=keep,
            position_ids=places,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return found.last_hidden_state


def visible(
    document: Int[Tensor, "rows whole"], length: int
) -> tuple[Bool[Tensor, "rows 1 length whole"], Int[Tensor, "rows length"]]:
    """What each of the last tokens sees, and its place in its document.

    A token sees itself and what stands before it in the same document. Padding sees itself alone: a
    softmax over nothing would not be a number.

    Args:
        document: Number of each token's document, -1 for padding. The tokens of a document stand
            together.
        length: How many tokens are the last.

    >>> keep, places = visible(torch.tensor([[-1, 4, 4, 7, 7]]), 3)
    >>> keep[0, 0].int().tolist(), places.tolist()
    ([[0, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1]], [[1, 0, 1]])
    """
    whole = document.shape[1]
    at = torch.arange(whole, device=document.device)
    last = slice(whole - length, None)
    same = document[:, last, None] == document[:, None, :]
    real = (document >= 0)[:, None, :]
    keep = same & real & (at <= at[last, None]) | (at == at[last, None])
    before = F.pad(document[:, :-1], (1, 0), value=-2)
    begins = torch.where(document != before, at, 0).cummax(dim=1).values
    return keep[:, None], (at - begins)[:, last]


def language_model(
    config: LanguageConfig, codebook: Float[Tensor, "codes code_dim"], known: Words
) -> PretrainedLM:
    """SmolLM2 with its pretrained weights, and what is new drawn anew.

    The markers begin as the words that say what they are for.

    Args:
        config: Sizes and choices.
        codebook: As of :class:`~mmlib.system.model.MultimodalLM`.
        known: SmolLM2's words, :func:`smollm_words`.

    Raises:
        mmlib.download.SourceUnavailable: the weights are to be had in no way.
        ImportError: transformers or gguf is not installed.
    """
    transformers = _transformers()
    with _quietly(transformers):
        llama = transformers.LlamaForCausalLM.from_pretrained(**_gguf(), dtype=torch.float32)
    model = PretrainedLM(config, codebook, llama.model)
    model.word.begin_with_names(known)
    return model


@functools.cache
def smollm_words() -> PretrainedWords:
    """SmolLM2's words.

    A document begins with its ``<|im_start|>``, ends with ``<|im_end|>``, and padding is
    ``<|endoftext|>``.

    Raises:
        mmlib.download.SourceUnavailable: the weights, which hold them, are to be had in no way.
        ImportError: transformers or gguf is not installed.
    """
    transformers = _transformers()
    with _quietly(transformers):
        tokenizer = transformers.AutoTokenizer.from_pretrained(**_gguf())
    begin, end, pad = tokenizer.convert_tokens_to_ids(
        ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    )
    return PretrainedWords(tokenizer.backend_tokenizer, begin, end, pad)


class _Table(nn.Module):
    """A pretrained table of words, and one of markers, whose numbers come behind."""

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.table = table
        self.markers = nn.Embedding(len(Marker), table.embedding_dim)
        nn.init.normal_(self.markers.weight, std=_LOUD)

    @property
    def weight(self) -> Tensor:
        return self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        plain = self.table.num_embeddings
        is_marker = ids >= plain
        words = self.table(torch.where(is_marker, 0, ids))
        markers = self.markers(torch.where(is_marker, ids - plain, 0))
        return torch.where(is_marker[..., None], markers, words)

    def logits(self, known: Tensor) -> Tensor:
        tables = (self.table.weight, self.markers.weight)
        return torch.cat([F.linear(known, table) for table in tables], dim=-1)

    @torch.no_grad()
    def begin_with_names(self, known: Words) -> None:
        for marker, name in _NAMES.items():
            self.markers.weight[marker] = self.table.weight[known.encode(name)].mean(dim=0)


class _NoPlaces(nn.Module):
    """Places of words, where the blocks know them."""

    def forward(self, places: Tensor) -> float:
        return 0.0


def _gguf() -> dict[str, Any]:
    path = pretrained.files("smollm2-135m")["weights"]
    return {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ImportError('SmolLM2 needs transformers: pip install "mmlib[pretrained]"') from error
    return transformers


@contextmanager
def _quietly(transformers: Any):
    log = transformers.utils.logging
    before, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(before)
        if bars:
            log.enable_progress_bar()
