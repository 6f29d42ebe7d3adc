"""Text to padded token ids and back, whatever splits the text.

:mod:`mmlib.encoders.tokenizers` makes them; this is what they have in common.
"""

import html
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mmlib.masks import padding_keep

try:
    from tokenizers import Tokenizer as Backend
except ImportError as error:
    raise ImportError(
        'mmlib.encoders.tokenizers needs tokenizers: pip install "mmlib[pretrained]"'
    ) from error

__all__ = ["TokenPairs", "Tokenizer", "Tokens"]

ROLES = ("pad", "begin", "end", "unknown", "mask")
FORMAT = "mmlib tokenizer 1"


class Tokens(NamedTuple):
    """Ids of some texts, padded at the end, and which of them exist."""

    ids: Int[Tensor, "batch length"]
    keep: Bool[Tensor, "batch length"]


class TokenPairs(NamedTuple):
    """Ids of pairs of texts; ``types`` is 0 up to the end of the first text, then 1."""

    ids: Int[Tensor, "batch length"]
    keep: Bool[Tensor, "batch length"]
    types: Int[Tensor, "batch length"]


class Tokenizer:
    """Texts to padded ids and a keep-mask, and back.

    A text becomes ``begin, its tokens, end``; a pair ``begin, first, end, second, end``.

    Args:
        backend: A tokenizer of the ``tokenizers`` library, which splits and looks up.
        specials: The special tokens' names in its vocabulary, by role: ``begin`` and ``end`` are
            needed; ``pad``, ``unknown`` and ``mask`` are not.
        max_length: Longest sequence of ids, special tokens included; None for no limit.
        clean: ``"clip"`` mends and lowers a text as CLIP does before it is split.

    Attributes:
        begin_id: What a text begins with; BERT's [CLS].
        end_id: What a text ends with; BERT's [SEP].
        pad_id: What fills up shorter texts, 0 where the vocabulary has no token for it.
        unknown_id: What stands for a word outside the vocabulary, or None.
        mask_id: What stands for a hidden word, or None.

    Raises:
        ValueError: a role or a name is unknown, or ``max_length`` leaves no room for a token.
    """

    def __init__(
        self,
        backend: Backend,
        specials: dict[str, str],
        max_length: int | None = None,
        clean: str | None = None,
    ) -> None:
        if not {"begin", "end"} <= set(specials) <= set(ROLES):
            raise ValueError(
                "specials must name begin and end, and may name pad, unknown and mask: "
                f"got {sorted(specials)}"
            )
        missing = [name for name in specials.values() if backend.token_to_id(name) is None]
        if missing:
            raise ValueError(f"specials must be in the vocabulary: {missing} are not")
        if clean not in CLEANERS:
            raise ValueError(f"clean must be one of {list(CLEANERS)}: got {clean!r}")
        self.backend, self.specials, self.clean = backend, dict(specials), clean
        self.max_length = max_length
        self._room(max_length, 2)
        ids = {role: backend.token_to_id(name) for role, name in specials.items()}
        self.begin_id, self.end_id, self.pad_id = ids["begin"], ids["end"], ids.get("pad", 0)
        self.unknown_id, self.mask_id = ids.get("unknown"), ids.get("mask")
        self._silent = {ids[role] for role in ("begin", "end", "pad") if role in ids}

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included: what an embedding table needs."""
        return self.backend.get_vocab_size()

    def tokenize(self, text: str) -> list[str]:
        """The pieces of one text, without special tokens around it, to look at."""
        (row,) = self._pieces("text", [text])
        return [self.backend.id_to_token(piece) for piece in row]

    def encode(
        self,
        texts: Sequence[str],
        max_length: int | None = None,
        *,
        truncate: bool = False,
        pad_to: int | None = None,
    ) -> Tokens:
        """Ids of some texts.

        Args:
            texts: The texts, at least one; an empty text is two special tokens.
            max_length: Longest allowed, special tokens included; the tokenizer's own by default.
            truncate: Cut longer texts; the end token stays the last.
            pad_to: Pad every text to this length, which CLIP's fixed 77 positions or compiled
                code may want; to the longest text by default.

        Returns:
            ``ids`` (int64) and ``keep``, both ``(batch, length)``; padding is at the end.

        Raises:
            TypeError: ``texts`` is a string itself, or an item is not a string.
            ValueError: there are no texts, one is too long, or one is not valid Unicode.
        """
        room = self._room(max_length, 2)
        rows = []
        for index, ids in enumerate(self._pieces("texts", texts)):
            if room is not None and len(ids) > room:
                if not truncate:
                    raise _too_long(f"texts[{index}]", len(ids) + 2, room + 2)
                ids = ids[:room]
            rows.append([self.begin_id, *ids, self.end_id])
        return Tokens(*self._pad(rows, pad_to))

    def encode_pairs(
        self,
        first: Sequence[str],
        second: Sequence[str],
        max_length: int | None = None,
        *,
        truncate: bool = False,
        pad_to: int | None = None,
    ) -> TokenPairs:
        """Ids of pairs of texts, as BERT's next-sentence prediction reads them.

        The arguments and errors are those of :meth:`encode`. Truncation takes from the longer
        text of a pair first, as transformers does.

        Raises:
            ValueError: the two sequences differ in length; and those of :meth:`encode`.
        """
        if len(first) != len(second):
            raise ValueError(
                f"first and second must pair up: got {len(first)} and {len(second)} texts"
            )
        room = self._room(max_length, 3)
        rows, starts = [], []
        pairs = zip(self._pieces("first", first), self._pieces("second", second), strict=True)
        for index, (a, b) in enumerate(pairs):
            if room is not None and len(a) + len(b) > room:
                if not truncate:
                    raise _too_long(f"pair {index}", len(a) + len(b) + 3, room + 3)
                # The shorter text keeps up to half of the room, the longer gets the rest.
                short = min(len(a), len(b), room // 2)
                keep_a = short if len(a) <= len(b) else room - short
                a, b = a[:keep_a], b[: room - keep_a]
            rows.append([self.begin_id, *a, self.end_id, *b, self.end_id])
            starts.append(len(a) + 2)
        ids, keep = self._pad(rows, pad_to)
        types = (torch.arange(ids.shape[1]) >= torch.tensor(starts)[:, None]) & keep
        return TokenPairs(ids, keep, types.long())

    def decode(
        self,
        ids: Int[Tensor, "batch length"],
        keep: Bool[Tensor, "batch length"] | None = None,
    ) -> list[str]:
        """Texts of ids; begin, end and padding are left out.

        Args:
            ids: Token ids.
            keep: Which of them exist. Without it, what follows the first end token is left out:
                CLIP's tokenizer pads with 0, which is its exclamation mark too.

        Raises:
            ValueError: an id is not in the vocabulary, or the shapes do not fit.
        """
        if ids.ndim != 2 or (keep is not None and keep.shape != ids.shape):
            raise ValueError(
                f"ids must have shape (batch, length), and keep the same: got {tuple(ids.shape)}"
                + ("" if keep is None else f" and {tuple(keep.shape)}")
            )
        rows = []
        for index, row in enumerate(ids.tolist()):
            if keep is not None:
                row = [token for token, real in zip(row, keep[index].tolist(), strict=True) if real]
            elif self.end_id in row:
                row = row[: row.index(self.end_id)]
            outside = [token for token in row if not 0 <= token < self.vocab_size]
            if outside:
                raise ValueError(
                    f"ids must lie from 0 to {self.vocab_size - 1}: got {outside[0]} in row {index}"
                )
            rows.append([token for token in row if token not in self._silent])
        texts = self.backend.decode_batch(rows, skip_special_tokens=False)
        if self.clean == "clip":
            return [text.replace("</w>", " ").strip() for text in texts]
        return texts

    def save(self, path: str | Path) -> None:
        """Write everything into one JSON file, which :meth:`load` reads."""
        saved = {
            "format": FORMAT,
            "specials": self.specials,
            "max_length": self.max_length,
            "clean": self.clean,
            "backend": json.loads(self.backend.to_str()),
        }
        Path(path).write_text(json.dumps(saved, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is not a saved tokenizer; the message names it.
        """
        try:
            saved = json.loads(Path(path).read_text(encoding="utf-8"))
            if saved.pop("format") != FORMAT:
                raise ValueError("another format")
            backend = Backend.from_str(json.dumps(saved.pop("backend")))
            return cls(backend, **saved)
        except FileNotFoundError:
            raise
        except Exception as error:  # the library raises Exception itself
            raise ValueError(f"{path} is not a tokenizer that mmlib saved: {error!r}") from error

    def _room(self, max_length: int | None, around: int) -> int | None:
        """How many tokens fit between the special ones."""
        if max_length is None:
            max_length = self.max_length
        if max_length is None:
            return None
        if max_length <= around:
            raise ValueError(
                f"max_length must be above {around}, the special tokens: got {max_length}"
            )
        if self.max_length is not None and max_length > self.max_length:
            raise ValueError(
                f"max_length must be at most the tokenizer's {self.max_length}: got {max_length}"
            )
        return max_length - around

    def _pieces(self, name: str, texts: Sequence[Any]) -> list[list[int]]:
        if isinstance(texts, str):
            raise TypeError(f"{name} must be a sequence of strings: got one string, wrap it in []")
        texts = list(texts)
        if not texts:
            raise ValueError(f"{name} must not be empty")
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"{name}[{index}] must be a string: got {type(text).__name__}")
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"{name}[{index}] is not valid Unicode: {error}") from None
        texts = [CLEANERS[self.clean](text) for text in texts]
        return [
            found.ids for found in self.backend.encode_batch_fast(texts, add_special_tokens=False)
        ]

    def _pad(self, rows: list[list[int]], pad_to: int | None) -> tuple[Tensor, Tensor]:
        lengths = torch.tensor([len(row) for row in rows])
        length = int(lengths.max())
        if pad_to is not None:
            if pad_to < length:
                raise ValueError(
                    f"pad_to must be at least the longest text's length {length}: got {pad_to}"
                )
            length = pad_to
        padded = [row + [self.pad_id] * (length - len(row)) for row in rows]
        return torch.tensor(padded), padding_keep(lengths, length)


def _too_long(what: str, length: int, limit: int) -> ValueError:
    return ValueError(
        f"{what} has {length} tokens, more than max_length={limit}: shorten it, or lose its end "
        "with truncate=True"
    )


def import_ftfy() -> Callable[[str], str]:
    """The function of ftfy that mends garbled text; ``ImportError`` names the extra it is in."""
    try:
        from ftfy import fix_text
    except ImportError as error:
        raise ImportError(
            'CLIP\'s tokenizer needs ftfy: pip install "mmlib[pretrained]"'
        ) from error
    return fix_text


def _clean_for_clip(text: str) -> str:
    # Mending takes more time than all the rest, and finds nothing to mend in plain ASCII.
    if not (text.isascii() and text.isprintable() and "&" not in text):
        text = import_ftfy()(text)
        # Twice, for what was escaped twice: &amp;amp; is &.
        text = html.unescape(html.unescape(text))
    return " ".join(text.split()).lower()


CLEANERS: dict[str | None, Callable[[str], str]] = {
    None: lambda text: text,
    "clip": _clean_for_clip,
}
