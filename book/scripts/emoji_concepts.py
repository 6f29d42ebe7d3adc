"""Which emoji show the same thing: the rule behind the emoji's train/test split.

Two emoji share a *concept* when one of four rules links them, directly or through others:

1. **family**: both belong to one of the closed families in `FAMILIES` (clock faces, keycaps,
   arrows, moon phases, portraits, smileys and the cats with the same expressions, ...);
2. **code**: they are variants of one character: man, woman or person, facing left or right,
   or one character joined to another (bear and polar bear, lemon and lime);
3. **name**: they are in one Unicode subgroup, and their English names are equal once words for
   people, colours and sizes and the plural are dropped, or one begins or ends the other
   (green book and books; dog, dog face and guide dog);
4. **look**: their pictures are closer than `NEAR` (see `distances`).

The concepts are the connected components of these links.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

NEAR = 0.10
"""Pictures closer than this are near-duplicates (chosen by looking, see `distances`)."""


class Entry(NamedTuple):
    """What the rules need to know of one emoji."""

    code: str
    name: str
    subgroup: str


# Family, its Unicode subgroups and its names, as regular expressions; the first that fits
# counts, and a concept that holds members of several families bears the name of the first.
FAMILIES: tuple[tuple[str, str, str], ...] = (
    ("smiley", "cat-face|face-(?!costume).*", "^((?!skull).)*$"),
    ("hand", "hands|hand-fingers.*|hand-single-finger", ""),
    ("person", "person|person-gesture|person-role", ""),  # one face, other hair and dress
    ("family", "family|person-symbol", "^(?!people hugging)(family|kiss|couple|.* holding hands)"),
    ("heart", "heart|game", "letter|[Hh]eart"),
    ("geometric shape", "geometric", ""),
    ("clock face", "time", "o’clock$|-thirty$"),
    ("moon", "sky-weather", "moon"),
    ("cloud", "sky-weather", "cloud"),
    ("button", "keycap|arrow|alphanum|av-symbol", ""),
    ("check mark", "other-symbol", "^check"),
    ("letter mark", "other-symbol", "^(copyright|registered|trade mark)$"),
    ("prohibition", "warning", "^(no |non-|prohib)"),
    ("zodiac", "zodiac", ""),
    ("religious symbol", "religion", ""),
    ("public sign", "transport-sign", ""),
    ("skin tone", "skin-tone", ""),
    ("wise monkey", "monkey-face", ""),
    ("medal", "award-medal", ""),
    ("punctuation", "punctuation", ""),
    ("arithmetic", "math", ""),
    ("gender symbol", "gender", ""),
    ("card suit", "game", " suit$"),
    ("speech bubble", "emotion", "speech|thought"),
    ("skyline", "place-other", "^(city|night|bridge|sunrise|sunset|foggy)"),
    ("globe", "place-map", "^globe"),
    ("traffic light", "transport-ground", "traffic light"),
    ("wheelchair", ".*", "(manual|motorized) wheelchair"),
    ("Claus", "person-fantasy", "Claus$"),
    ("clover", "plant-other", "clover|shamrock"),
    ("nest", "plant-other", "nest"),
    ("football", "sport", "football"),
    ("hourglass", "time", "^hourglass"),
    ("speaker", "sound", "speaker$|^speaker"),
    ("mailbox", "mail", "mailbox"),
    ("envelope", "mail", "^e-mail|envelope"),
    ("lock", "lock", ""),
    ("magnifying glass", "light-video", "^magnifying"),
    ("disk", "computer", "disk|dvd"),
    ("book", "book-paper", "book$|books$|^notebook|ledger"),
    ("page", "book-paper", "^page|^scroll"),
    ("banknote", "money", "banknote"),
    ("chart", "money|office", "chart"),
)

# Words that do not change what is shown: people, colours, sizes.
DROPPED = re.compile(
    "(wo)?m[ae]n|person|people|red|orange|yellow|green|blue|purple|brown|black|white|grey|pink"
    "|light|dark|small|medium|large"
)
ADULTS = ("1F468", "1F469", "1F9D1")  # man, woman, person: the first part of "man farmer"
# Variation selector, joiner, female, male, facing right: they only vary a character.
VARIERS = ("FE0F", "200D", "2640", "2642", "27A1")


def family(entry: Entry) -> str | None:
    """Name of the closed family an emoji belongs to, or None."""
    for name, subgroups, names in FAMILIES:
        if re.fullmatch(subgroups, entry.subgroup) and re.search(names, entry.name):
            return name
    return None


def base_code(code: str) -> tuple[str, ...]:
    """Character that an emoji is a variant of: equal for man, woman and person farmer."""
    first, *rest = code.split("-")
    rest = [part for part in rest if part not in VARIERS]
    return ("role", *rest) if first in ADULTS and rest else (first,)


def base_name(name: str) -> tuple[str, ...]:
    """Words of a name without people, colours, sizes and the plural ending."""
    words = re.findall(r"[\w’-]+", name.lower())
    words = [re.sub(r"(?<=\w\w\w)(?<!s)s$", "", word) for word in words]
    return tuple(word for word in words if not DROPPED.fullmatch(word)) or tuple(words)


def name_links(entries: Sequence[Entry]) -> list[tuple[int, int]]:
    """Pairs of positions that rules 1 to 3 link; they need no picture."""
    links = []
    for key in (family, lambda entry: base_code(entry.code)):
        seen: dict = {}
        for i, entry in enumerate(entries):
            value = key(entry)
            if value is not None:
                links.append((seen.setdefault(value, i), i))
    words = [base_name(entry.name) for entry in entries]
    for i, short in enumerate(words):
        for j, long in enumerate(words):
            n = len(short)
            alike = i != j and entries[i].subgroup == entries[j].subgroup
            if alike and (long[:n] == short or long[-n:] == short):
                links.append((i, j))
    return links


def distances(rgba: np.ndarray) -> np.ndarray:
    r"""Distance of every two pictures, the smaller of as they are and one of them mirrored.

    .. math:: d(x, y) = \sqrt{\frac{\sum_p \lVert x_p - y_p \rVert^2}
                                   {4 \sum_p \max(\alpha^x_p, \alpha^y_p)}}

    over the pixels p of the pictures shrunk to 16 x 16, colours premultiplied with their
    opacity. Dividing by the area that either covers makes it independent of how large the
    drawing is: 0 for equal pictures, about 0.5 for two taken at random.

    Args:
        rgba: uint8 pictures ``(n, 64, 64, 4)``.

    Returns:
        ``(n, n)`` in float64; the diagonal is infinite.
    """
    n = len(rgba)
    colour, alpha = np.split(rgba.astype(np.float64) / 255, [3], axis=-1)
    small = np.concatenate([colour * alpha, alpha], axis=-1)
    small = small.reshape(n, 16, 4, 16, 4, 4).mean(axis=(2, 4))
    best = np.full((n, n), np.inf)
    for other in (small, small[:, :, ::-1]):
        x, y = small.reshape(n, -1), other.reshape(n, -1)
        square = (x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * x @ y.T
        a, b = small[..., 3].reshape(n, -1), other[..., 3].reshape(n, -1)
        covered = np.stack([np.maximum(row, b).sum(1) for row in a])
        best = np.minimum(best, np.sqrt(np.maximum(square, 0) / (4 * covered)))
    np.fill_diagonal(best, np.inf)
    return best


def components(count: int, links: Iterable[tuple[int, int]]) -> list[int]:
    """Connected components: for each position the smallest position linked to it."""
    parent = list(range(count))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i, j in links:
        low, high = sorted((root(i), root(j)))
        parent[high] = low
    return [root(i) for i in range(count)]


def concepts(entries: Sequence[Entry], distance: np.ndarray, near: float = NEAR) -> list[str]:
    """Concept of every emoji: its family's name, or the name of the first emoji in it.

    Args:
        entries: the emoji, in Unicode's order.
        distance: of every two of their pictures, ``(n, n)``.
        near: distance under which two pictures are near-duplicates; 0 leaves rule 4 out.

    Returns:
        One name for each emoji; two concepts never share a name.
    """
    close = np.argwhere(np.triu(distance < near))
    roots = components(len(entries), [*name_links(entries), *map(tuple, close.tolist())])
    order = [name for name, _, _ in FAMILIES]
    names = {}
    for root in set(roots):
        members = [e for e, r in zip(entries, roots, strict=True) if r == root]
        families = sorted({family(e) for e in members} - {None}, key=order.index)
        names[root] = families[0] if families else members[0].name
    if len(set(names.values())) < len(names):
        raise ValueError("two concepts have one name: rename a family")
    return [names[root] for root in roots]
