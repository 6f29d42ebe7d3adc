r"""Small illustrated articles, and what an editor kept of each (图文文章).

An article tells of five things. Two of them are what it is *about*: they are told more facts of and
shown in more pictures, but not by a rule that is sure,

==================  ===========  ============
                    facts told   pictures
==================  ===========  ============
each of the two     2 or 3       1 or 2
each of the others  1 or 2       0 or 1
==================  ===========  ============

and two sentences are padding. In a share :data:`LEAD` of the articles, as in news, the first
sentence is about the first of the two; all others stand in any order. The editor's **reference**
has three facts of the two things, in the editor's own words, and its pictures are those that show
them. A model gets sentences and pictures in order, and nothing else.

**What can be reached.** With the sentences that are there, no three of them are better than the
best three, which can be tried out (:func:`best_three`); and who knows what the article is about
still does not know which of its facts the editor took (:func:`informed_three`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch

from mmlib.data import clipart
from mmlib.data.samplers import at_least

__all__ = ["LEAD", "Article", "articles", "best_three", "informed_three"]

LEAD = 0.6
"""How often the first sentence is about what the article is about."""

# What the article says, and how the editor puts it.
_FACTS = (
    ("On {day} the {name} was brought to {place}.", "The {name} came to {place} on {day}."),
    ("Visitors paid {number} euros to see the {name}.", "Seeing the {name} cost {number} euros."),
    ("The {name} was found in {place} by two boys.", "Two boys found the {name} in {place}."),
    (
        "Nobody knows who made the {name} {number} years ago.",
        "The maker of the {name}, {number} years ago, is unknown.",
    ),
    (
        "A museum in {place} has bought the {name}.",
        "The {name} belongs to a museum in {place} now.",
    ),
    ("Until {day} everybody can admire the {name}.", "The {name} can be admired until {day}."),
    ("The {name} weighs {number} kilograms.", "The weight of the {name} is {number} kilograms."),
    ("It took {number} days to clean the {name}.", "Cleaning the {name} took {number} days."),
)
_PADDING = (
    "The weather was fine for the season.",
    "Many people had come early in the morning.",
    "There was coffee and cake for everybody.",
    "The mayor thanked all the helpers.",
    "More will be said in the next issue.",
    "The street was closed to traffic.",
)
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_PLACES = ("Lisbon", "Oslo", "Kyoto", "Lima", "Cairo", "Perth", "Quebec", "Krakow", "Dakar")


@dataclass(frozen=True)
class Article:
    """An article with the editor's choice.

    Attributes:
        sentences: In the order of the article.
        pictures: Indices into ``clipart.load("all")``, in the order of the article.
        reference: The editor's summary, three sentences.
        chosen: For each picture, whether the editor would keep it.
        about: Hidden: for each sentence, whether it is about the two things.
    """

    sentences: tuple[str, ...]
    pictures: tuple[int, ...]
    reference: str
    chosen: tuple[bool, ...]
    about: tuple[bool, ...]


def articles(count: int, split: str = "train", *, seed: int = 0) -> list[Article]:
    """Draw articles.

    Args:
        count: How many.
        split: ``"train"`` or ``"test"``: no thing is in both.
        seed: The same seed draws the same articles.

    Raises:
        TypeError: ``count`` is not whole.
        ValueError: ``count`` is below 1, or there is no such split.

    >>> article = articles(1, "test")[0]
    >>> article.sentences[0], sum(article.chosen), len(article.pictures)
    ('Nobody knows who made the food mixer 73 years ago.', 3, 4)
    """
    at_least(1, "count", count)
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test': got {split!r}")
    generator = torch.Generator().manual_seed(seed)

    def number(below: int) -> int:
        return int(torch.randint(below, (), generator=generator))

    def shuffled(items: Sequence) -> list:
        return [items[i] for i in torch.randperm(len(items), generator=generator).tolist()]

    every, allowed = clipart.load("all", 8), set(clipart.load(split, 8).concepts)
    of: dict[str, list[int]] = {}
    for i, concept in enumerate(every.concepts):
        if concept in allowed:
            of.setdefault(concept, []).append(i)
    concepts, found = sorted(of), []
    for _ in range(count):
        told, shown = [], []
        for k, place in enumerate(torch.randperm(len(concepts), generator=generator)[:5].tolist()):
            drawings = shuffled(of[concepts[place]])
            main, name = k < 2, every.names[drawings[0]]
            for said, edited in shuffled(_FACTS)[: number(2) + 1 + main]:
                values = {
                    "name": name,
                    "day": _DAYS[number(7)],
                    "place": _PLACES[number(len(_PLACES))],
                    "number": 2 + number(97),
                }
                told.append((said.format(**values), edited.format(**values), main, k))
            shown += [(i, main) for i in drawings[: number(2) + main]]
        told += [(text, "", False, -1) for text in shuffled(_PADDING)[:2]]
        told, shown = shuffled(told), shuffled(shown)
        if torch.rand((), generator=generator) < LEAD:
            first = next(i for i, row in enumerate(told) if row[3] == 0)
            told.insert(0, told.pop(first))
        kept = [row[1] for row in shuffled([row for row in told if row[2]])[:3]]
        found.append(
            Article(
                tuple(row[0] for row in told),
                tuple(i for i, _ in shown),
                " ".join(kept),
                tuple(main for _, main in shown),
                tuple(row[2] for row in told),
            )
        )
    return found


def best_three(article: Article, score: Callable[[str], float]) -> float:
    """The best score of any three sentences of an article.

    Args:
        article: With its sentences.
        score: Of a summary, say its ROUGE against the reference.
    """
    return max(score(" ".join(three)) for three in combinations(article.sentences, 3))


def informed_three(article: Article, score: Callable[[str], float]) -> float:
    """The mean score of three sentences that are about what the article is about.

    Args:
        article: With its sentences.
        score: Of a summary.
    """
    about = [s for s, main in zip(article.sentences, article.about, strict=True) if main]
    scores = [score(" ".join(three)) for three in combinations(about, 3)]
    return sum(scores) / len(scores)
