r"""Text preprocessing before neural networks: segmentation, stop words, stemming.

The documents' systems begin with it (分词、去除停用词、词干提取). It was made for searching
documents by their words, and it is shown here once, with what it costs: :func:`merged` counts the
texts that can no longer be told from another. Every model of this book reads whole sentences
instead.

References:
    Porter, *An algorithm for suffix stripping*, Program 14(3), 1980. The stop words are those of
    the Snowball project (Porter, 2001), https://snowballstem.org.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable

__all__ = ["STOP_WORDS", "merged", "preprocess", "segment", "stem"]

_STOP_TEXT = """
i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she her
hers herself it its itself they them their theirs themselves what which who whom this that these
those am is are was were be been being have has had having do does did doing would should could
ought i'm you're he's she's it's we're they're i've you've we've they've i'd you'd he'd she'd we'd
they'd i'll you'll he'll she'll we'll they'll isn't aren't wasn't weren't hasn't haven't hadn't
doesn't don't didn't won't wouldn't shan't shouldn't can't cannot couldn't mustn't let's that's
who's what's here's there's when's where's why's how's a an the and but if or because as until
while of at by for with about against between into through during before after above below to from
up down in out on off over under again further then once here there when where why how all any
both each few more most other some such no nor not only own same so than too very
"""

#: Snowball's list: 174 words, "above", "below" and "not" among them.
STOP_WORDS = frozenset(_STOP_TEXT.split())


def segment(text: str, words: Collection[str]) -> list[str]:
    """Split text without spaces into words: from the left, always the longest that is known.

    A character that begins no known word stands alone. This *forward maximum matching* was the
    common way to segment Chinese; it cannot look ahead, as the second example shows: the words
    meant are 研究 (to study) and 生命 (life), and it finds a graduate student.

    Args:
        text: The text; white space is left out.
        words: The dictionary.

    Raises:
        ValueError: a word is empty.

    >>> segment("红色的大圆形", {"红色", "圆形", "大"})
    ['红色', '的', '大', '圆形']
    >>> segment("研究生命", {"研究", "研究生", "生命"})
    ['研究生', '命']
    """
    if "" in words:
        raise ValueError("words must not hold the empty word")
    longest_first = sorted(words, key=lambda word: (-len(word), word))
    return re.findall("|".join([*map(re.escape, longest_first), r"\S"]), text)


def preprocess(
    text: str, stop_words: Collection[str] = STOP_WORDS, stemmed: bool = True
) -> list[str]:
    """English words in lower case, without punctuation and stop words, cut to their stems.

    Args:
        text: The text.
        stop_words: Words to leave out.
        stemmed: Whether to apply :func:`stem`.

    >>> preprocess("A red square is above the blue circles.")
    ['red', 'squar', 'blue', 'circl']
    >>> preprocess("The red square is not below a blue circle.")
    ['red', 'squar', 'blue', 'circl']
    """
    words = re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower().replace("’", "'"))
    kept = [word for word in words if word not in stop_words]
    return [stem(word) for word in kept] if stemmed else kept


def merged(texts: Iterable[str], process: Callable[[str], Hashable]) -> tuple[int, int, int]:
    """How many texts a step of processing can no longer tell apart.

    Args:
        texts: The texts; those that come twice count once.
        process: What is done to a text.

    Returns:
        The number of different texts, of different results, and of texts whose result is that of
        another text as well.

    >>> texts = ["red above blue", "red below blue", "red star"]
    >>> merged(texts, lambda text: tuple(preprocess(text)))
    (3, 2, 2)
    """
    results: dict[Hashable, set[str]] = defaultdict(set)
    for text in texts:
        results[process(text)].add(text)
    sizes = [len(same) for same in results.values()]
    return sum(sizes), len(sizes), sum(size for size in sizes if size > 1)


# Porter's rules: ending, what replaces it. The first ending that fits decides, whether or not
# its condition then holds.
_STEP_2 = (
    "ational ate, tional tion, enci ence, anci ance, izer ize, abli able, alli al, entli ent, "
    "eli e, ousli ous, ization ize, ation ate, ator ate, alism al, iveness ive, fulness ful, "
    "ousness ous, aliti al, iviti ive, biliti ble"
)
_STEP_3 = "icate ic, ative -, alize al, iciti ic, ical ic, ful -, ness -"
_STEP_4 = (
    "al -, ance -, ence -, er -, ic -, able -, ible -, ant -, ement -, ment -, ent -, sion s, "
    "tion t, ou -, ism -, ate -, iti -, ous -, ive -, ize -"
)


def _rules(text: str) -> list[tuple[str, str]]:
    pairs = [tuple(rule.replace("-", "").split(" ")) for rule in text.split(", ")]
    return sorted(pairs, key=lambda rule: -len(rule[0]))


_STEPS = [(_rules(_STEP_2), 0), (_rules(_STEP_3), 0), (_rules(_STEP_4), 1)]


def stem(word: str) -> str:
    """The stem of an English word in lower case, by Porter's rules of 1980.

    The *measure* of a stem is the number of times that a vowel is followed by a consonant in it;
    most rules ask for a measure above 0 or 1, so that short words keep their endings. A stem
    need not be a word, and words of different meaning may share one.

    Raises:
        ValueError: the word is not in lower case.

    >>> [stem(word) for word in ("relational", "hopping", "squares", "general", "generate")]
    ['relat', 'hop', 'squar', 'gener', 'gener']
    """
    if word != word.lower():
        raise ValueError(f"word must be in lower case: got {word!r}")
    if len(word) <= 2:
        return word
    word = _plural(word)
    word = _past(word)
    if word.endswith("y") and "v" in _shape(word[:-1]):
        word = word[:-1] + "i"
    for rules, above in _STEPS:
        for ending, new in rules:
            if word.endswith(ending):
                base = word.removesuffix(ending) + new
                # sion and tion lose "ion": what is measured ends with the s or t.
                if _measure(base if above else word.removesuffix(ending)) > above:
                    word = base
                break
    if word.endswith("e"):
        base = word[:-1]
        if _measure(base) > 1 or (_measure(base) == 1 and not _short(base)):
            word = base
    return word[:-1] if word.endswith("ll") and _measure(word[:-1]) > 1 else word


def _plural(word: str) -> str:
    for ending, new in (("sses", "ss"), ("ies", "i"), ("ss", "ss"), ("s", "")):
        if word.endswith(ending):
            return word.removesuffix(ending) + new
    return word


def _past(word: str) -> str:
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    for ending in ("ed", "ing"):
        base = word.removesuffix(ending)
        if word.endswith(ending):
            if "v" not in _shape(base):
                return word
            if base.endswith(("at", "bl", "iz")):
                return base + "e"
            if base[-2:-1] == base[-1:] and _shape(base)[-1] == "c" and base[-1] not in "lsz":
                return base[:-1]
            return base + "e" if _measure(base) == 1 and _short(base) else base
    return word


def _shape(word: str) -> str:
    """V for a vowel, c for a consonant; y is a vowel after a consonant."""
    shape = ""
    for letter in word:
        vowel = letter in "aeiou" or (letter == "y" and shape.endswith("c"))
        shape += "v" if vowel else "c"
    return shape


def _measure(word: str) -> int:
    return _shape(word).count("vc")


def _short(word: str) -> bool:
    """Consonant, vowel, consonant at the end, the last not w, x or y: hop(e) lost an e."""
    return _shape(word).endswith("cvc") and word[-1] not in "wxy"
