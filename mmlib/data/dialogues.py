r"""Questions to a shop's help desk, by words and by a picture, with the answer key (客服对话).

The shop sells things. For every thing and every **intent** (意图) its knowledge base has one
article, with a fact that was drawn at random, so that no model can know it: it must be retrieved.
A customer asks in one of two ways:

* *in words*: "how much is the red apple?", where the thing is called what somebody called a drawing
  of it, not what the shop calls it;
* *with a picture*: "how much is this?" beside a drawing. Neither the words nor the picture alone
  say which article is wanted.

Some questions have no answer: they ask for a thing that the shop does not sell, or for something
that no article is about.

**What cannot be known.** In a share :data:`VAGUE_SHARE` of the questions the wording fits two
intents, and the customer means the first of them with probability :data:`VAGUE_FIRST` only. So not
even who knows everything about this process can be right on more than

.. math:: 1 - p_{\text{vague}} (1 - p_{\text{first}})

of the questions that have an answer (:func:`ceiling`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from mmlib.data import clipart, emoji
from mmlib.data.samplers import at_least

__all__ = [
    "INTENTS",
    "VAGUE_FIRST",
    "VAGUE_SHARE",
    "Questions",
    "Shop",
    "ceiling",
    "follow_ups",
    "questions",
    "shop",
]

INTENTS = ("price", "stock", "delivery", "return", "warranty", "repair", "size", "cancel")
"""What customers want."""

VAGUE_SHARE, VAGUE_FIRST = 0.15, 0.7
"""How often the wording fits two intents, and how often the first of them is meant."""

_WORDINGS = {
    "price": (
        ("how much is {}?", "what does {} cost?", "tell me the price of {}"),
        ("what do you charge for {}?", "how expensive is {}?"),
    ),
    "stock": (
        ("is {} in stock?", "do you have {} at the moment?", "is {} available?"),
        ("have you got {} left?", "is {} sold out?"),
    ),
    "delivery": (
        (
            "when will {} arrive?",
            "how long does it take to send {}?",
            "how fast do you ship {}?",
        ),
        ("on which day do i receive {}?", "how many days until you deliver {}?"),
    ),
    "return": (
        ("how do i send {} back?", "can i return {}?", "i want my money back for {}"),
        ("i do not like {} , can you take it back?", "how does a refund for {} work?"),
    ),
    "warranty": (
        ("is there a guarantee on {}?", "how long is the warranty of {}?", "is {} under warranty?"),
        ("for how many years is {} covered?", "do you guarantee {}?"),
    ),
    "repair": (
        ("can you repair {}?", "{} is broken , can you fix it?", "where do i get {} mended?"),
        ("who fixes {} if it is damaged?", "{} needs to be mended"),
    ),
    "size": (
        ("how big is {}?", "what are the measurements of {}?", "which size does {} have?"),
        ("is {} large or small?", "how tall and wide is {}?"),
    ),
    "cancel": (
        ("cancel my order of {}", "i no longer want to buy {}", "stop my purchase of {}"),
        ("please withdraw the order for {}", "i ordered {} by mistake , undo it"),
    ),
}
_VAGUE = {
    ("delivery", "cancel"): (("i am still waiting for {}",), ("{} has not come yet",)),
    ("repair", "warranty"): (("{} stopped working",), ("{} does not work any more",)),
    ("return", "size"): (("{} does not fit",), ("{} is too small for me",)),
    ("stock", "price"): (("i would like to have {}",), ("i am interested in {}",)),
}
_OTHER = (
    ("do you have jobs?", "where can i park near you?", "what is the weather like today?"),
    ("who founded your company?", "can i pay in two languages?", "sing me a song"),
)
_POINTERS = (("this", "this one", "the thing in the picture"), ("that", "the one on my photo"))
_FACTS = {
    "price": "The {} costs {} euros.",
    "stock": "There are {1} of the {0} in stock.",
    "delivery": "The {} is delivered within {} days.",
    "return": "You can return the {} within {} days.",
    "warranty": "The {} has a warranty of {} months.",
    "repair": "A repair of the {} costs {} euros.",
    "size": "The {} is {} centimetres tall.",
    "cancel": "An order of the {} can be cancelled for {} hours.",
}


@dataclass(frozen=True, eq=False, repr=False)
class Shop:
    """Things and the knowledge base about them.

    Article ``len(INTENTS) * i + j`` is about thing ``i`` and intent ``j``.

    Attributes:
        names: What the shop calls each thing.
        emoji: The shop's picture of each, an index into ``emoji.load("all")``.
        titles: Of every article, as a question.
        articles: Of every article, the answer.
    """

    names: tuple[str, ...]
    emoji: Int64[Tensor, " things"]
    titles: tuple[str, ...]
    articles: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"Shop({len(self)} things, {len(self.articles)} articles)"


@dataclass(frozen=True, eq=False, repr=False)
class Questions:
    """Questions with their answer key; item ``i`` of each field is about the same.

    Attributes:
        texts: What the customer wrote.
        pictures: An index into ``clipart.load("all")``, or -1 where there is no picture.
        intents: An index into :data:`INTENTS`, or -1 for something that no article is about.
        things: An index into the shop's things, or -1 for one that it does not sell, or none.
        articles: The article that answers, or -1 where none does.
    """

    texts: tuple[str, ...]
    pictures: Int64[Tensor, " questions"]
    intents: Int64[Tensor, " questions"]
    things: Int64[Tensor, " questions"]
    articles: Int64[Tensor, " questions"]

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        return (
            f"Questions({len(self)}, {int((self.pictures >= 0).sum())} with a picture, "
            f"{int(self.answerable.sum())} with an answer)"
        )

    @property
    def answerable(self) -> Bool[Tensor, " questions"]:
        """Whether an article answers."""
        return self.articles >= 0


def shop(split: str, *, seed: int = 0) -> Shop:
    """A shop that sells half of the things of a split that have an emoji and a drawing.

    Args:
        split: ``"train"`` or ``"test"``: no thing is in both, nor in the training set of a
            chapter before this one when it is in ``"test"``.
        seed: Draws which things are sold, and the facts.

    Raises:
        ValueError: There is no such split.

    >>> shop("test")
    Shop(38 things, 304 articles)
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test': got {split!r}")
    generator = torch.Generator().manual_seed(seed)
    concepts = _concepts(split)
    order = torch.randperm(len(concepts), generator=generator)[: len(concepts) // 2]
    every = emoji.load("all", 8)
    first = {c: i for i, c in reversed(list(enumerate(every.concepts)))}
    sold = [first[concepts[i]] for i in sorted(order.tolist())]
    names = tuple(every.names[i] for i in sold)
    titles, articles = [], []
    for name in names:
        for intent in INTENTS:
            number = 1 + int(torch.randint(90, (), generator=generator))
            titles.append(_WORDINGS[intent][0][0].format(f"the {name}"))
            articles.append(_FACTS[intent].format(name, number))
    return Shop(names, torch.tensor(sold), tuple(titles), tuple(articles))


def questions(
    count: int,
    known: Shop,
    split: str,
    wordings: str = "seen",
    *,
    pictured: float = 0.5,
    unanswerable: float = 0.3,
    seed: int = 0,
) -> Questions:
    """Draw questions to a shop.

    Args:
        count: How many.
        known: The shop that is asked.
        split: The split that the shop is of.
        wordings: ``"seen"`` or ``"unseen"``: no wording is in both.
        pictured: Share that shows a picture instead of naming the thing.
        unanswerable: Share without an answer; in two thirds of them the shop does not sell the
            thing, in one third no article is about such a question.
        seed: The same seed draws the same questions.

    Raises:
        ValueError: ``count`` is below 1, a share is not in [0, 1], or there are no such wordings.
    """
    at_least(1, "count", count)
    for name, share in (("pictured", pictured), ("unanswerable", unanswerable)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} must be from 0 to 1: got {share}")
    if wordings not in ("seen", "unseen"):
        raise ValueError(f"wordings must be 'seen' or 'unseen': got {wordings!r}")
    part, generator = int(wordings == "unseen"), torch.Generator().manual_seed(seed)

    def draw(choices: Sequence) -> object:
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    def chance(probability: float) -> bool:
        return bool(torch.rand((), generator=generator) < probability)

    every, drawings = emoji.load("all", 8), clipart.load("all", 8)
    sold = {every.concepts[i]: place for place, i in enumerate(known.emoji.tolist())}
    of = {}
    for i, concept in enumerate(drawings.concepts):
        of.setdefault(concept, []).append(i)
    unsold = [c for c in _concepts(split) if c not in sold]
    rows = []
    for _ in range(count):
        without, intent = chance(unanswerable), draw(INTENTS)
        if without and chance(1 / 3):
            rows.append((draw(_OTHER[part]), -1, -1, -1, -1))
            continue
        wording = draw(_WORDINGS[intent][part])
        if chance(VAGUE_SHARE):
            both = draw(tuple(_VAGUE))
            intent = both[0] if chance(VAGUE_FIRST) else both[1]
            wording = draw(_VAGUE[both][part])
        drawing = draw(of[draw(unsold if without else tuple(sold))])
        thing = sold.get(drawings.concepts[drawing], -1)
        shown = chance(pictured)
        called = draw(_POINTERS[part]) if shown else f"the {drawings.names[drawing]}"
        j = INTENTS.index(intent)
        article = len(INTENTS) * thing + j if thing >= 0 else -1
        rows.append((wording.format(called), drawing if shown else -1, j, thing, article))
    texts, *numbers = zip(*rows, strict=True)
    return Questions(texts, *(torch.tensor(column) for column in numbers))


def follow_ups(first: Questions, wordings: str = "seen", *, seed: int = 0) -> Questions:
    """A second question after each that had an answer: about the same thing, which it calls "it".

    Args:
        first: The questions of the first turn.
        wordings: As for :func:`questions`.
        seed: The same seed draws the same questions.

    Returns:
        As many questions as ``first`` has with an answer, in their order.

    Raises:
        ValueError: No question has an answer, or there are no such wordings.
    """
    if wordings not in ("seen", "unseen"):
        raise ValueError(f"wordings must be 'seen' or 'unseen': got {wordings!r}")
    things = first.things[first.answerable]
    if not len(things):
        raise ValueError("first must hold a question with an answer: got none")
    generator = torch.Generator().manual_seed(seed)
    intents = torch.randint(len(INTENTS), things.shape, generator=generator)
    place = torch.rand(len(things), generator=generator).tolist()
    choices = [_WORDINGS[INTENTS[j]][int(wordings == "unseen")] for j in intents.tolist()]
    return Questions(
        texts=tuple(c[int(p * len(c))].format("it") for c, p in zip(choices, place, strict=True)),
        pictures=torch.full_like(things, -1),
        intents=intents,
        things=things,
        articles=len(INTENTS) * things + intents,
    )


def ceiling() -> float:
    """The best expected accuracy on questions that have an answer: the formula of the module.

    >>> round(ceiling(), 3)
    0.955
    """
    return 1 - VAGUE_SHARE * (1 - VAGUE_FIRST)


def _concepts(split: str) -> list[str]:
    """What has an emoji and a drawing."""
    return sorted(set(emoji.load(split, 8).concepts) & set(clipart.load(split, 8).concepts))
