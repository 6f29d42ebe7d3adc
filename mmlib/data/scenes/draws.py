"""Random numbers that are the same on every machine and in every version of every library.

numpy and torch promise the bits of their generators, not the numbers that ``integers`` or
``shuffle`` make of them. So the scenes use their own: SplitMix64 (Steele, Lea & Flood 2014,
https://doi.org/10.1145/2660193.2660195), which is five integer operations. Word ``k`` of a stream
is a pure function of the stream's key and ``k``, so that scene 7 of a sample does not depend on
how many scenes were asked for.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")

GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def check_seed(seed: object) -> int:
    """Return ``seed`` as an int, or say what is wrong with it.

    Raises:
        TypeError: If it is not an integer.
        ValueError: If it is outside 0 … 2⁶³ − 1.
    """
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise TypeError(f"seed must be an integer: got {seed!r}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be between 0 and 2**63 - 1: got {seed}")
    return int(seed)


def mix(word: int) -> int:
    """SplitMix64's output function: a bijection of 64-bit words in which every bit matters."""
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _MASK
    return word ^ (word >> 31)


def mix_array(words: np.ndarray) -> np.ndarray:
    """:func:`mix` of every element of a ``uint64`` array."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def key(seed: int, *salts: int) -> int:
    """The key of a stream: one 64-bit word that depends on the seed and on every salt."""
    word = mix((seed + GOLDEN) & _MASK)
    for salt in salts:
        word = mix(((word ^ salt) + GOLDEN) & _MASK)
    return word


def keys(seed: int, salt: int, index: np.ndarray) -> np.ndarray:
    """``key(seed, salt, i)`` for every ``i`` of an integer array, as ``uint64``."""
    base = np.uint64(key(seed, salt))
    return mix_array((base ^ index.astype(np.uint64)) + np.uint64(GOLDEN))


def words(stream: np.ndarray, count: int) -> np.ndarray:
    """The first ``count`` words of every stream: ``uint64`` of shape ``(*stream.shape, count)``."""
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GOLDEN)
    return mix_array(stream[..., None] + steps)


def below_array(draws: np.ndarray, high: np.ndarray | int) -> np.ndarray:
    """Map words to integers 0 … ``high`` − 1 by the upper 32 bits (bias below ``high``/2³²)."""
    return ((draws >> np.uint64(32)) * np.asarray(high, dtype=np.uint64) >> np.uint64(32)).astype(
        np.int64
    )


class Dice:
    """A stream of draws for code that makes one decision after another.

    Args:
        seed: The seed.
        salts: Further integers; each choice of them is a stream of its own.

    >>> Dice(0, 1).word() == Dice(0, 1).word() != Dice(0, 2).word()
    True
    """

    def __init__(self, seed: int, *salts: int):
        self._state = key(check_seed(seed), *salts)

    def word(self) -> int:
        """The next 64-bit word."""
        self._state = (self._state + GOLDEN) & _MASK
        return mix(self._state)

    def below(self, high: int) -> int:
        """An integer from 0 to ``high`` − 1."""
        return (self.word() >> 32) * high >> 32

    def choice(self, items: Sequence[Item]) -> Item:
        """One of the items."""
        return items[self.below(len(items))]

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        """The items in a random order (Fisher–Yates), in a new list."""
        out = list(items)
        for last in range(len(out) - 1, 0, -1):
            other = self.below(last + 1)
            out[last], out[other] = out[other], out[last]
        return out
