"""A grammar with two right-hand sides a rule: it writes, reads and translates.

Such a grammar is called synchronous (Chiang 2007, https://doi.org/10.1162/coli.2007.33.2.201). A
derivation is one tree; read off with the English sides it is an English sentence, with the Chinese
sides its translation. Parsing goes back from a sentence to its tree.
"""

import re
from dataclasses import dataclass
from functools import cache

from mmlib.data.scenes.wording import LANGUAGES, MODES, ROOT, RULES
from mmlib.data.scenes.world import choice

_SYMBOL = re.compile(r"([A-Z]+)\d?")
_VOWELS = "aeiou"


@dataclass(frozen=True, slots=True)
class Tree:
    """One use of a rule, with a subtree for each symbol on its right-hand side.

    Attributes:
        symbol: The left-hand side.
        rule: The rule's name.
        children: Pairs (slot, subtree), e.g. ``("THING1", Tree(...))``, in English order.
    """

    symbol: str
    rule: str
    children: tuple[tuple[str, "Tree"], ...] = ()

    def __getitem__(self, slot: str) -> "Tree":
        return dict(self.children)[slot]


@cache
def _side(symbol: str, rule: str, language: str) -> tuple[tuple[str, str | None], ...]:
    """A right-hand side as pairs (word or slot, symbol of the slot or None for a word)."""
    text = RULES[symbol][rule][LANGUAGES.index(language)]
    parts = []
    for part in text.split():
        match = _SYMBOL.fullmatch(part)
        parts.append((part, match.group(1) if match else None))
    return tuple(parts)


@cache
def _starts(symbol: str, language: str) -> dict[str | None, tuple[str, ...]]:
    """The rules of a symbol by the word they start with; under None those that start with none."""
    found: dict[str | None, tuple[str, ...]] = {}
    for rule in RULES[symbol]:
        word, kind = _side(symbol, rule, language)[0]
        first = None if kind else word
        found[first] = (*found.get(first, ()), rule)
    return found


def leaf(symbol: str, rule: str) -> Tree:
    """The tree of a rule without symbols, e.g. ``leaf("COLOUR", "red")``."""
    return Tree(symbol, rule)


def tree(symbol: str, rule: str, **children: Tree) -> Tree:
    """A tree from a rule and a subtree for each slot, in whatever order."""
    slots = [part for part, kind in _side(symbol, rule, "en") if kind]
    return Tree(symbol, rule, tuple((slot, children[slot]) for slot in slots))


def check_language(language: object) -> None:
    """Raise ``ValueError`` unless the language is ``"en"`` or ``"zh"``."""
    choice("language", language, LANGUAGES)


def spans(root: Tree, language: str) -> list[tuple[str, tuple[str, ...]]]:
    """The words of a tree, each with the path of slots that it came through."""
    found = list(_walk(root, language, ()))
    if language == "en":
        found = [
            ("an" if word == "a" and after[0][0] in _VOWELS else word, path)
            for (word, path), after in zip(found, [*found[1:], ("", ())], strict=True)
            if word != "a" or after[0]
        ]
    return found


def _walk(root: Tree, language: str, path: tuple[str, ...]):
    for part, kind in _side(root.symbol, root.rule, language):
        if kind:
            yield from _walk(root[part], language, (*path, part))
        else:
            yield part, path


def realise(root: Tree, language: str) -> str:
    """The sentence of a tree in one of the two languages."""
    return detokenize([word for word, _ in spans(root, language)], language)


def detokenize(tokens: list[str], language: str) -> str:
    """Join words to a caption: the inverse of :func:`tokenize`.

    Args:
        tokens: Words.
        language: ``"en"`` or ``"zh"``.

    Returns:
        The caption.

    Raises:
        ValueError: If the language is another.

    >>> detokenize(["a", "star", ",", "and", "a", "ring"], "en")
    'a star, and a ring'
    """
    check_language(language)
    if language == "zh":
        return "".join(tokens)
    return re.sub(r" ([,;])", r"\1", " ".join(tokens))


@cache
def _words(language: str, mode: str) -> tuple[str, ...]:
    """Every word that a mode can use, in the order of the rules."""
    found: dict[str, None] = {}
    done: set[str] = set()
    queue = [ROOT[mode]]
    while queue:
        symbol = queue.pop(0)
        if symbol in done:
            continue
        done.add(symbol)
        for rule in MODES[mode].get(symbol, tuple(RULES[symbol])):
            for part, kind in _side(symbol, rule, language):
                if kind:
                    queue.append(kind)
                else:
                    found[part] = None
    if language == "en" and mode == "free":
        found["an"] = None
    return tuple(found)


def vocabulary(language: str, mode: str = "free") -> tuple[str, ...]:
    """Every word that the captions of a language and mode can contain.

    Args:
        language: ``"en"`` or ``"zh"``.
        mode: ``"canonical"``, ``"free"`` (which includes the canonical words) or ``"clip"``.

    Returns:
        The words, in a fixed order, commas included.

    Raises:
        ValueError: If the language or the mode is another.

    >>> len(vocabulary("en", "canonical")), len(vocabulary("zh", "canonical"))
    (34, 34)
    """
    check_language(language)
    choice("mode", mode, tuple(MODES))
    return _words(language, mode)


@cache
def _matcher(language: str) -> re.Pattern[str]:
    known = {word for mode in MODES for word in _words(language, mode)}
    longest_first = sorted(known, key=lambda word: (-len(word), word))
    return re.compile("|".join(map(re.escape, longest_first)))


def tokenize(caption: str, language: str) -> list[str]:
    """Split a caption into the words of the grammar.

    English is split at spaces and before commas. Chinese is written without spaces; the longest
    word of the grammar that fits is taken, from left to right.

    Args:
        caption: A caption.
        language: ``"en"`` or ``"zh"``.

    Returns:
        Its words; :func:`detokenize` joins them to the same caption.

    Raises:
        ValueError: If the language is unknown, or a word is not in the grammar.

    >>> tokenize("在左上角有一个红色的小圆形", "zh")
    ['在', '左上角', '有', '一个', '红色', '的', '小', '圆形']
    """
    check_language(language)
    if language == "en":
        tokens = re.findall(r"[^\s,;]+|[,;]", caption)
        unknown = [word for word in tokens if not _matcher(language).fullmatch(word)]
        if unknown or detokenize(tokens, language) != caption:
            why = f"unknown words {unknown}" if unknown else "unusual spacing"
            raise ValueError(f"caption must be English of the grammar: got {caption!r} ({why})")
        return tokens
    tokens, at = [], 0
    while at < len(caption):
        match = _matcher(language).match(caption, at)
        if not match:
            raise ValueError(
                f"caption must be Chinese of the grammar: got {caption!r} (no word fits at "
                f"{caption[at:]!r})"
            )
        tokens.append(match.group())
        at = match.end()
    return tokens


def parse(caption: str, language: str, symbol: str = "CAPTION") -> Tree:
    """Read a sentence back to its tree.

    Args:
        caption: A sentence.
        language: ``"en"`` or ``"zh"``.
        symbol: What to read it as: ``"CAPTION"`` or ``"CLIP"``.

    Returns:
        The tree; the grammar has no sentence with two.

    Raises:
        ValueError: If the language is unknown or the sentence is outside the grammar.
    """
    tokens = tokenize(caption, language)
    plain = ["a" if word == "an" else word for word in tokens]
    for end, root in _Reader(plain, language).read(symbol, 0):
        # Written out again it must be the same: "a" and "an" each in their places.
        if end == len(tokens) and realise(root, language) == caption:
            return root
    raise ValueError(f"caption must be a sentence of the grammar: got {caption!r}")


class _Reader:
    """Finds every tree over a part of a sentence; each part is read once (a chart parser)."""

    def __init__(self, words, language):
        self.words, self.language = words, language
        self.seen = {}

    def read(self, symbol, start):
        """Every (end, tree) such that the tree of this symbol covers start … end."""
        if (symbol, start) not in self.seen:
            starts = _starts(symbol, self.language)
            word = self.words[start] if start < len(self.words) else ""
            self.seen[symbol, start] = [
                (end, tree(symbol, rule, **children))
                for rule in (*starts.get(word, ()), *starts.get(None, ()))
                for end, children in self.follow(_side(symbol, rule, self.language), start)
            ]
        return self.seen[symbol, start]

    def follow(self, parts, start):
        """Every (end, subtrees) such that the parts of a right-hand side cover start … end."""
        states = [(start, {})]
        for part, kind in parts:
            if kind is None:
                states = [
                    (at + 1, children)
                    for at, children in states
                    if at < len(self.words) and self.words[at] == part
                ]
            else:
                states = [
                    (end, {**children, part: child})
                    for at, children in states
                    for end, child in self.read(kind, at)
                ]
            if not states:
                break
        return states
