r"""Messages that are meant, or not: words, an emoji and a voice (反讽, irony).

"What a lovely day", and the face beside it rolls its eyes. Each message has three modalities, and
each of them is positive or negative:

* the **words** praise or complain: sentences from templates, without negations;
* the **emoji** shows the writer's feeling: a real picture, and its polarity is what people made of
  it (:mod:`mmlib.data.emoji_ratings`);
* the **voice** shows the same feeling: the same sentence, said fast and high, or slow and low. (It
  also says the words, so that who understands speech needs no text.)

The message is **ironic** when words and feeling disagree,

.. math:: y = [\, w \neq f \,], \qquad w, f \in \{-1, +1\},

which is the exclusive or: with both drawn evenly, neither alone says anything on :math:`y`.
(Whoever asks for the feeling instead reads it off the emoji, and needs no second modality.)
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

__all__ = [
    "TEMPLATES",
    "VOICE",
    "Messages",
    "Sentence",
    "ceiling",
    "hears",
    "messages",
    "sentence",
    "vocabulary",
    "voice_ceiling",
]


class Sentence(NamedTuple):
    """A sentence and whether it praises (True) or complains."""

    text: str
    positive: bool


_THINGS = (
    *("dinner", "service", "film", "hotel", "journey", "day", "phone", "concert", "book"),
    *("coffee", "meeting", "party", "room", "view", "song", "match", "garden", "lesson"),
)
_WORDS = {
    True: (
        *("wonderful", "excellent", "delightful", "brilliant", "perfect", "lovely", "superb"),
        *("great", "fantastic", "charming", "marvellous", "splendid"),
    ),
    False: (
        *("awful", "terrible", "dreadful", "horrible", "miserable", "boring", "hopeless"),
        *("disappointing", "poor", "ugly", "painful", "nasty"),
    ),
}
_TEMPLATES = {
    "seen": (
        *("the {thing} was {word}", "what a {word} {thing}", "i found the {thing} {word}"),
        *("that was a {word} {thing}", "my {thing} turned out {word}", "we had a {word} {thing}"),
        *("the {thing} is so {word}", "this {thing} felt really {word}", "i call that {word}"),
        *("this {thing} is {word}", "a {word} {thing} , i found", "so {word} was my {thing}"),
    ),
    "unseen": (
        *("that {thing} was so {word}", "i call this a {word} {thing}", "my {thing} is {word}"),
        *("so this was what we call a {word} {thing}", "the {thing} we had turned out {word}"),
        *("we found the {thing} really {word}", "what we had was a {word} {thing}"),
    ),
}
"""Sentences to fill in. The unseen ones are made of words of the seen ones."""

TEMPLATES = tuple(_TEMPLATES)

VOICE = {"pitch": (35.0, 65.0, 20.0), "rate": (140.0, 190.0, 33.0)}
"""What a low and a high feeling sound like: two means and the common standard deviation."""


def sentence(templates: str = "seen", *, generator: torch.Generator) -> Sentence:
    """Draw a sentence; it praises or complains with equal probability.

    Args:
        templates: ``"seen"`` or ``"unseen"``: no template is in both.
        generator: Draws it.

    Raises:
        ValueError: There are no such templates.

    >>> sentence("seen", generator=torch.Generator().manual_seed(1))
    Sentence(text='what a poor day', positive=False)
    """
    if templates not in _TEMPLATES:
        raise ValueError(f"templates must be one of {', '.join(TEMPLATES)}: got {templates!r}")

    def draw(choices: Sequence) -> str:
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    template, thing = draw(_TEMPLATES[templates]), draw(_THINGS)
    positive = bool(torch.randint(2, (), generator=generator))
    text = template.format(thing=thing, word=draw(_WORDS[positive]))
    return Sentence(re.sub(r"\ba (?=[aeu])", "an ", text), positive)


def vocabulary() -> tuple[str, ...]:
    """Every word that the seen templates can make, sorted."""
    words = {"a", "an", *_THINGS, *_WORDS[True], *_WORDS[False]}
    for template in _TEMPLATES["seen"]:
        words |= {word for word in template.split() if "{" not in word}
    return tuple(sorted(words))


@dataclass(frozen=True, eq=False, repr=False)
class Messages:
    """Messages of three modalities; item ``i`` of each field is about the same.

    Attributes:
        texts: What the words say.
        praises: Whether they praise.
        emoji: Which emoji stands beside them, an index into the emoji.
        feels: Whether the feeling is positive: what emoji and voice tell.
        pitch: Of the voice, 0 to 99.
        rate: Of the voice, words a minute.
    """

    texts: tuple[str, ...]
    praises: Bool[Tensor, " messages"]
    emoji: Int64[Tensor, " messages"]
    feels: Bool[Tensor, " messages"]
    pitch: Int64[Tensor, " messages"]
    rate: Int64[Tensor, " messages"]

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        return f"Messages({len(self)}, {int(self.ironic.sum())} of them ironic)"

    @property
    def ironic(self) -> Bool[Tensor, " messages"]:
        """Whether words and feeling disagree."""
        return self.praises != self.feels

    def waveforms(self, voice: str = "f3") -> list[Float[Tensor, " samples"]]:
        """Every message spoken, at 16,000 samples a second.

        Raises:
            ImportError: ``espeakng-loader`` is missing (``pip install "mmlib[speech]"``).
            ValueError: There is no such voice.
        """
        from mmlib.data.speech import synthesise

        said = zip(self.texts, self.rate.tolist(), self.pitch.tolist(), strict=True)
        return [synthesise(text, voice, rate=r, pitch=p).waveform for text, r, p in said]


def messages(
    count: int,
    positive: Bool[Tensor, " emoji"],
    *,
    among: Sequence[int] | Tensor | None = None,
    templates: str = "seen",
    seed: int = 0,
) -> Messages:
    """Draw messages: words and feeling independent of each other, both even.

    Each polarity of feeling is a half of the messages in expectation, however many emoji show it,
    so that a score on messages weighs the two polarities alike.

    Args:
        count: How many.
        positive: The polarity of every emoji.
        among: Which emoji may occur, all by default.
        templates: ``"seen"`` or ``"unseen"``.
        seed: The same seed draws the same messages.

    Raises:
        ValueError: ``count`` is below 1, there are no such templates, or ``among`` leaves no
            positive or no negative emoji.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1: got {count}")
    generator = torch.Generator().manual_seed(seed)
    allowed = torch.arange(len(positive)) if among is None else torch.as_tensor(among)
    pools = [allowed[positive[allowed] == one] for one in (False, True)]
    if not all(len(pool) for pool in pools):
        raise ValueError("among must hold emoji of both polarities: got one polarity")
    said = [sentence(templates, generator=generator) for _ in range(count)]
    feels = torch.randint(2, (count,), generator=generator)
    place = torch.rand(count, generator=generator, dtype=torch.float64)
    shown = [int(pools[f][int(p * len(pools[f]))]) for f, p in zip(feels, place, strict=True)]
    sound = {}
    for name, (low, high) in (("pitch", (0, 99)), ("rate", (80, 450))):
        means, spread = torch.tensor(VOICE[name][:2]), VOICE[name][2]
        drawn = means[feels] + spread * torch.randn(count, generator=generator)
        sound[name] = drawn.round().clamp(low, high).long()
    return Messages(
        texts=tuple(one.text for one in said),
        praises=torch.tensor([one.positive for one in said]),
        emoji=torch.tensor(shown),
        feels=feels.bool(),
        **sound,
    )


def hears(
    pitch: Int64[Tensor, " messages"], rate: Int64[Tensor, " messages"]
) -> Bool[Tensor, " messages"]:
    r"""Bayes' rule: which feeling is the more probable one, for a voice of this pitch and rate.

    Both numbers are normal with equal spreads, so the best rule is a straight line, and it is
    right with the probability

    .. math:: \Phi(d/2), \qquad d^2 = \sum_j \Big(\frac{\mu_j^+ - \mu_j^-}{\sigma_j}\Big)^2,

    0.857 here, which :func:`voice_ceiling` gives. (The few numbers that are cut off at the ends of
    their range change it in the third digit.)
    """
    evidence = torch.zeros(pitch.shape, dtype=torch.float64)
    for name, value in (("pitch", pitch), ("rate", rate)):
        low, high, spread = VOICE[name]
        evidence += (high - low) / spread**2 * (value - (low + high) / 2)
    return evidence > 0


def voice_ceiling() -> float:
    """The share of voices whose feeling the best listener would hear: the formula of :func:`hears`.

    >>> round(voice_ceiling(), 3)
    0.857
    """
    distance = math.hypot(*((high - low) / spread for low, high, spread in VOICE.values()))
    return 0.5 * (1 + math.erf(distance / 2 / math.sqrt(2)))


def ceiling(targets: Iterable, *views: Iterable) -> float:
    r"""The best accuracy of any rule that sees only these views of the items.

    .. math:: \frac1n \sum_v \max_y n(v, y)

    where :math:`n(v, y)` counts the items that look like :math:`v` and have the target :math:`y`.
    Without a view it is the majority's share. It is the best on *these* items: a view that is
    different for each of them gives 1, and says nothing.

    Raises:
        ValueError: There are no items, or a view has another length.

    >>> words, feeling = [0, 0, 1, 1], [0, 1, 0, 1]
    >>> xor = [0, 1, 1, 0]
    >>> ceiling(xor, words), ceiling(xor, feeling), ceiling(xor, words, feeling)
    (0.5, 0.5, 1.0)
    """
    columns = [
        column.tolist() if isinstance(column, Tensor) else list(column)
        for column in (targets, *views)
    ]
    if not columns[0]:
        raise ValueError("targets must hold at least one item: got none")
    if len({len(column) for column in columns}) > 1:
        raise ValueError(
            f"views must be as long as targets: got {[len(column) for column in columns]}"
        )
    best: dict[tuple, int] = {}
    for (_, *view), number in Counter(zip(*columns, strict=True)).items():
        best[tuple(view)] = max(best.get(tuple(view), 0), number)
    return sum(best.values()) / len(columns[0])
