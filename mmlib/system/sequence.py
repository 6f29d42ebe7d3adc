r"""Documents of words, regions and codes, and rows of them for the language model.

A document is one sequence of three kinds of tokens: words (with markers among them), regions of a
picture that is looked at, and codes of a picture that is drawn::

    begin <picture> R R R ... R <english> a small red star end
    begin <english> a small red star <draw> C C C ... C end

Each token says whether it is *wanted*: whether the model is to predict it. Rows hold documents,
one each (:func:`pad`) or as many as fit (:func:`pack`, where none sees its neighbour). What is to
be predicted is listed apart, as places in the flattened rows, so that the heads, which are wide,
work where they are needed and nowhere else.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmlib.packing import first_fit

__all__ = ["CODE", "REGION", "WORD", "Document", "Rows", "pack", "pad"]

#: Kinds of tokens.
WORD, REGION, CODE = range(3)


@dataclass
class Document:
    """A sequence as it is written, one token after the other.

    Attributes:
        kinds: :data:`WORD`, :data:`REGION` or :data:`CODE`.
        ids: Number of the word; place of the region; number of the code.
        places: Of a word, how many words come before it; of a region or a code, its place in the
            picture, row by row.
        wanted: Whether the token is to be predicted.
        hidden: Whether a code is hidden from the tokens after it.
        pictures: Which picture a region is of, counted in this document; -1 for others.
        looked_at: Features of the pictures, ``(regions, feature_dim)`` each.

    >>> document = Document().words([1, 7]).codes([3, 4]).words([2], wanted=True)
    >>> document.kinds, document.places
    ([0, 0, 2, 2, 0], [0, 1, 0, 1, 2])
    """

    kinds: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    wanted: list[bool] = field(default_factory=list)
    hidden: list[bool] = field(default_factory=list)
    pictures: list[int] = field(default_factory=list)
    looked_at: list[Tensor] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def words(self, ids: Sequence[int], wanted: bool = False) -> "Document":
        """Add words; the document itself is returned."""
        said = self.kinds.count(WORD)
        return self._add(WORD, ids, range(said, said + len(ids)), wanted)

    def regions(self, features: Float[Tensor, "regions feature_dim"]) -> "Document":
        """Add the regions of a picture."""
        places = range(len(features))
        self._add(REGION, places, places, False, picture=len(self.looked_at))
        self.looked_at.append(features)
        return self

    def codes(
        self, ids: Sequence[int], wanted: bool = True, hidden: Sequence[bool] | None = None
    ) -> "Document":
        """Add the codes of a picture, all of them or the first few."""
        return self._add(CODE, ids, range(len(ids)), wanted, hidden=hidden)

    def copy(self) -> "Document":
        """Another document with the same tokens."""
        return Document(*(list(getattr(self, name)) for name in self.__dataclass_fields__))

    def _add(
        self,
        kind: int,
        ids: Sequence[int],
        places: Sequence[int],
        wanted: bool,
        hidden: Sequence[bool] | None = None,
        picture: int = -1,
    ) -> "Document":
        count = len(ids)
        self.kinds += [kind] * count
        self.ids += ids
        self.places += places
        self.wanted += [wanted] * count
        self.hidden += [False] * count if hidden is None else map(bool, hidden)
        self.pictures += [picture] * count
        return self


class Rows(NamedTuple):
    """Documents as tensors.

    Attributes:
        kinds: Of tokens; padding is a word.
        ids: As in :class:`Document`; of a region, its row in ``features`` when these are flattened.
        places: As in :class:`Document`.
        hidden: Codes that the tokens after them do not see.
        document: Number of each token's document, -1 for padding.
        features: Of all pictures that are looked at.
        from_words: Place, in the flattened rows, of the token from which a wanted word is told.
        to_words: These words.
        from_codes: Likewise for codes.
        to_codes: These codes.
    """

    kinds: Int[Tensor, "rows length"]
    ids: Int[Tensor, "rows length"]
    places: Int[Tensor, "rows length"]
    hidden: Bool[Tensor, "rows length"]
    document: Int[Tensor, "rows length"]
    features: Float[Tensor, "pictures regions feature_dim"]
    from_words: Int[Tensor, " told"]
    to_words: Int[Tensor, " told"]
    from_codes: Int[Tensor, " painted"]
    to_codes: Int[Tensor, " painted"]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Rows":
        """The same on a device."""
        return Rows(*(part.to(device, non_blocking=non_blocking) for part in self))


def pad(
    documents: Sequence[Document],
    pad_id: int,
    *,
    length: int | None = None,
    left: bool = False,
    shape: tuple[int, int] = (16, 256),
) -> Rows:
    """One document a row.

    Args:
        documents: At least one, none of them empty.
        pad_id: The word that fills up a short row.
        length: Of the rows, that of the longest document by default.
        left: Fill up in front, so that all documents end together: to be written on.
        shape: Regions and width of the features, where no document looks at a picture.

    Raises:
        ValueError: there is no document, or one that is empty or too long.
    """
    longest = max((len(document) for document in documents), default=0)
    length = longest if length is None else length
    if not documents or min(map(len, documents)) < 1 or longest > length:
        sizes = [len(document) for document in documents]
        raise ValueError(f"documents must have from 1 to length={length} tokens: got {sizes}")
    starts = [length - len(document) if left else 0 for document in documents]
    return _rows(documents, range(len(documents)), starts, len(documents), length, pad_id, shape)


def pack(
    documents: Sequence[Document],
    pad_id: int,
    length: int,
    *,
    rows: int | None = None,
    shape: tuple[int, int] = (16, 256),
) -> Rows:
    """As many documents a row as fit; :func:`mmlib.packing.first_fit` finds the rows.

    Args:
        documents: At least one, none of them empty or longer than a row.
        pad_id: The word that fills up what is left of a row.
        length: Of a row.
        rows: How many rows there are, where they must always be as many (a compiled model, say);
            as few as fit by default.
        shape: Regions and width of the features, where no document looks at a picture.

    Raises:
        ValueError: there is no document, one is empty or longer than a row, or they need more
            rows.
    """
    if not documents:
        raise ValueError("documents must not be empty")
    found = first_fit([len(document) for document in documents], length)
    if rows is not None and len(found) > rows:
        raise ValueError(f"rows must be at least {len(found)} for these documents: got {rows}")
    row, starts = [0] * len(documents), [0] * len(documents)
    for number, items in enumerate(found):
        at = 0
        for item in items:
            row[item], starts[item] = number, at
            at += len(documents[item])
    return _rows(documents, row, starts, rows or len(found), length, pad_id, shape)


def _rows(
    documents: Sequence[Document],
    row: Sequence[int],
    starts: Sequence[int],
    rows: int,
    length: int,
    pad_id: int,
    shape: tuple[int, int],
) -> Rows:
    size = rows * length
    kinds, ids, places = [WORD] * size, [pad_id] * size, [0] * size
    hidden, owner = [False] * size, [-1] * size
    features: list[Tensor] = []
    told: tuple[list[int], ...] = ([], [], [], [])
    for number, document in enumerate(documents):
        start = row[number] * length + starts[number]
        where = slice(start, start + len(document))
        before = len(features)
        features += document.looked_at
        regions = len(features[0]) if features else 0
        kinds[where], places[where] = document.kinds, document.places
        hidden[where], owner[where] = document.hidden, [number] * len(document)
        ids[where] = [
            (before + picture) * regions + token if kind == REGION else token
            for kind, token, picture in zip(
                document.kinds, document.ids, document.pictures, strict=True
            )
        ]
        for at, wanted in enumerate(document.wanted):
            if wanted:
                if not at:
                    raise ValueError("documents must not want their first token: nothing tells it")
                code = 2 * (document.kinds[at] == CODE)
                told[code].append(start + at - 1)
                told[code + 1].append(document.ids[at])
    table = (rows, length)
    return Rows(
        torch.tensor(kinds).view(table),
        torch.tensor(ids).view(table),
        torch.tensor(places).view(table),
        torch.tensor(hidden).view(table),
        torch.tensor(owner).view(table),
        torch.stack(features) if features else torch.zeros(0, *shape),
        *(torch.tensor(part, dtype=torch.long) for part in told),
    )
