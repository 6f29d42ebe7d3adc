"""Captions said in other words, that stay true (同义词替换, 句子改写).

Three ways, each with a seed and none guessing: sentences of the scenes' grammar are built anew
(:func:`rephrase`), single words of it become synonyms (:func:`use_synonyms`), and the name of a
shipped picture becomes one of its keywords (:func:`replace_name`).
"""

import re
from collections.abc import Sequence
from functools import cache
from itertools import groupby

from mmlib.data.scenes.draws import Dice, check_seed
from mmlib.data.scenes.grammar import (
    Tree,
    check_language,
    detokenize,
    leaf,
    parse,
    realise,
    spans,
    tree,
    vocabulary,
)
from mmlib.data.scenes.relations import OPPOSITE

__all__ = ["SYNONYMS", "plain_words", "rephrase", "replace_name", "use_synonyms"]

#: Phrases of the grammar and others that mean the same; no synonym stands for two of them, and
#: none is itself a phrase of the grammar, so that :func:`plain_words` finds the way back.
SYNONYMS: dict[str, dict[str, tuple[str, ...]]] = {
    "en": {
        "small": ("little",),
        "large": ("big",),
        "circle": ("disc", "disk"),
        "diamond": ("rhombus",),
        "ring": ("hoop",),
        "purple": ("violet",),
        "object": ("thing", "shape"),
        "above": ("higher than",),
        "below": ("lower than",),
        "in the centre": ("in the middle",),
        "on the left": ("on the left side",),
        "on the right": ("on the right side",),
    },
    "zh": {
        "圆形": ("圆盘",),
        "正方形": ("方形", "方块"),
        "十字形": ("十字",),
        "星形": ("五角星",),
        "心形": ("爱心",),
        "圆环": ("环形",),
        "紫色": ("紫罗兰色",),
        "物体": ("东西",),
        "左边": ("左侧", "左面"),
        "右边": ("右侧", "右面"),
        "上方": ("上面",),
        "下方": ("下面",),
        "中间": ("中央", "正中"),
    },
}

_LEAVES = ("SIZE", "COLOUR", "SHAPE", "RELATION", "SIDE", "PLACE")
_PLACES = ("place", "there place", "place first")
_RELATIONS = ("relation", "there relation", "relation first", "with")


def rephrase(caption: str, language: str = "en", *, seed: int) -> str:
    """Say a caption of a scene in another way that means exactly the same.

    The clauses change places, relations are turned round ("a star above a ring", "a ring below a
    star"), and each clause takes any of the grammar's forms that tell as much. So
    :func:`mmlib.data.scenes.is_true` gives the same for both, whatever the scene. A canonical
    caption becomes a free one.

    Args:
        caption: Any sentence of the captions' grammar.
        language: ``"en"`` or ``"zh"``. With the same seed, one is the translation of the other.
        seed: Which of the ways.

    Returns:
        Another sentence of the grammar. The caption itself only if there is no other way to say
        it, as of "there is a star".

    Raises:
        TypeError: The seed is not an integer.
        ValueError: The language is unknown or the caption is outside the grammar: what is not
            understood is not rewritten.

    >>> rephrase("a small red star above a large blue ring", seed=3)
    'above a large blue ring there is a small red star'
    """
    root = parse(caption, language)
    dice = Dice(check_seed(seed), 0x9EF8A5E)
    clauses, node = [root["CLAUSE"]], root
    while node.rule != "one":
        node = node["CAPTION"]
        clauses.append(node["CLAUSE"])
    ways = [_ways(clause) for clause in clauses]
    if len(ways) == 1 and len(ways[0]) == 1:
        return caption
    while True:  # of n ways only one is refused
        chosen = dice.shuffled([dice.choice(way) for way in ways])
        built = tree("CAPTION", "one", CLAUSE=chosen[-1])
        for clause in reversed(chosen[:-1]):
            joint = dice.choice(("and", "semicolon"))
            built = tree("CAPTION", joint, CLAUSE=clause, CAPTION=built)
        if built != root:
            return realise(built, language)


def _ways(clause: Tree) -> tuple[Tree, ...]:
    """All clauses that mean exactly the same, this one too; no two alike."""
    parts = dict(clause.children)
    if clause.rule in _PLACES:
        return tuple(tree("CLAUSE", form, **parts) for form in _PLACES)
    if clause.rule == "pair":
        turned = {"THING1": parts["THING2"], "THING2": parts["THING1"]}
        return tuple(dict.fromkeys(tree("CLAUSE", "pair", **things) for things in (parts, turned)))
    if clause.rule not in _RELATIONS:
        return (clause,)
    word = parts["SIDE" if clause.rule == "with" else "RELATION"].rule
    first, second = parts["THING1"], parts["THING2"]
    opposite = " ".join(OPPOSITE[part] for part in word.split())
    return tuple(
        tree("CLAUSE", form, THING1=a, THING2=b, RELATION=leaf("RELATION", w), SIDE=leaf("SIDE", w))
        for form in _RELATIONS
        for a, b, w in ((first, second, word), (second, first, opposite))
    )


def use_synonyms(caption: str, language: str = "en", *, seed: int, share: float = 0.5) -> str:
    """Replace words of a scene's caption by synonyms of :data:`SYNONYMS`.

    Synonyms are outside the grammar: a vocabulary must be made with them, and
    :func:`plain_words` undoes the change where the grammar is needed.

    Args:
        caption: Any sentence of the captions' grammar.
        language: ``"en"`` or ``"zh"``.
        seed: Of the choices.
        share: How likely each word that has a synonym is replaced, 0 to 1.

    Returns:
        The caption with other words; at least one, unless none has a synonym or ``share`` is 0.

    Raises:
        TypeError: The seed is not an integer.
        ValueError: The language is unknown, the caption is outside the grammar, or ``share`` is
            out of range.

    >>> use_synonyms("a large red circle above a small star", seed=0)
    'a big red disc higher than a little star'
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be between 0 and 1: got {share}")
    dice = Dice(check_seed(seed), 0x5A40)
    words = spans(parse(caption, language), language)
    known = SYNONYMS[language]
    # The phrases: words that came through one leaf of the tree stand together.
    phrases = []
    for path, group in groupby(words, key=lambda item: item[1]):
        parts = [word for word, _ in group]
        whole = path and path[-1].rstrip("12") in _LEAVES
        # Chinese joins 它 and 的 to the word for a side; the words stand for themselves.
        phrases += [" ".join(parts)] if whole and language == "en" else parts
    open_to_change = [at for at, phrase in enumerate(phrases) if phrase in known]
    if not open_to_change or share == 0:
        return caption
    chosen = [at for at in open_to_change if dice.below(2**20) < share * 2**20]
    for at in chosen or [dice.choice(open_to_change)]:
        phrases[at] = dice.choice(known[phrases[at]])
    return _with_articles(detokenize(phrases, language), language)


def plain_words(caption: str, language: str = "en") -> str:
    """Undo :func:`use_synonyms`: put the grammar's words for the synonyms.

    Args:
        caption: Any text; what is not a synonym stays as it is.
        language: ``"en"`` or ``"zh"``.

    Raises:
        ValueError: The language is unknown.

    >>> plain_words("a large red disk above a little star")
    'a large red circle above a small star'
    """
    check_language(language)
    matcher, back = _backwards(language)
    return _with_articles(matcher.sub(lambda found: back[found.group()], caption), language)


@cache
def _backwards(language: str) -> tuple[re.Pattern[str], dict[str, str]]:
    back = {other: word for word, others in SYNONYMS[language].items() for other in others}
    # The grammar's own words stay: in Chinese one may begin or end like a synonym (正方形, 方形).
    back = {word: word for word in vocabulary(language) if word.isalnum()} | back
    longest_first = sorted(back, key=lambda word: (-len(word), word))
    pattern = "|".join(map(re.escape, longest_first))
    return re.compile(rf"\b(?:{pattern})\b" if language == "en" else pattern), back


def replace_name(caption: str, name: str, tags: Sequence[str], *, seed: int) -> str:
    """Put one of a picture's keywords for its name in a caption.

    Keywords are looser than synonyms: a "red heart" is tagged "emotion" and "love". What that
    is worth is measured in chapter 07.

    Args:
        caption: Any text, such as "a picture of a red heart" or the name alone.
        name: What the caption calls the picture.
        tags: The picture's keywords, as :class:`mmlib.data.emoji.EmojiSet` has them.
        seed: Which keyword.

    Returns:
        The caption with a keyword at the name's first place, and "a" or "an" to fit. The caption
        itself if the name does not stand in it as a whole, or there is no other keyword.

    Raises:
        TypeError: ``tags`` is one string, or the seed is not an integer.
        ValueError: The name is empty.

    >>> replace_name("a picture of a rooster", "rooster", ("animal", "bird"), seed=1)
    'a picture of an animal'
    """
    if not name.strip():
        raise ValueError(f"name must not be empty: got {name!r}")
    if isinstance(tags, str):
        raise TypeError(f"tags must be a sequence of strings: got {tags!r}")
    others = [tag for tag in tags if tag.strip() and tag.casefold() != name.casefold()]
    # Chinese has no word boundaries; \b would find none between its characters.
    edges = [r"\b" if end.isascii() and end.isalnum() else "" for end in (name[0], name[-1])]
    pattern = rf"(\b[Aa]n? )?{edges[0]}{re.escape(name)}{edges[1]}"
    found = re.search(pattern, caption)
    dice = Dice(check_seed(seed), 0x7A65)
    if found is None or not others:
        return caption
    tag = dice.choice(others)
    article = found.group(1) or ""
    if article:
        article = article[0] + ("n " if tag[0].lower() in "aeiou" else " ")
    return caption[: found.start()] + article + tag + caption[found.end() :]


def _with_articles(caption: str, language: str) -> str:
    """Put "a" or "an" before each word, whichever fits."""
    if language == "zh":
        return caption
    return re.sub(r"\ban? (?=(\w))", lambda m: "an " if m.group(1) in "aeiou" else "a ", caption)
