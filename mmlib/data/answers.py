r"""Answers of visual question answering: one spelling for each, and what to score and predict.

The official evaluation of VQA (https://github.com/GT-Vision-Lab/VQA, ``vqaEval.py``) compares
answers after it has brought them to one spelling, and every published accuracy rests on it. So
:func:`normalise` does exactly the same, odd corners included:

- Number words up to ten become digits, and *none* becomes 0: "none" never equals "nothing".
- The words *a*, *an* and *the* go: the answer "A" (a letter in the picture) becomes empty.
- Contractions get their apostrophe ("dont", "don't"), but *somebody'd* loses it. Words that are
  also something else change too: "hes", "shed've" and "wed've" are taken for contractions. The
  table's entries with a capital I can never match, because the text is in lower case by then.
- A full stop goes unless a digit follows. The authors meant to keep it after a digit too, but
  their pattern ``(?!<=\d)`` looks ahead for the characters "<=" where it should look behind. So
  "3." becomes "3", and ".5" and "v.5" keep theirs. Only the first 32 go: a flag stands where the
  count belongs.
- Each mark of ``;/[]"{}()=+\_-><@`,?!`` is deleted everywhere in the answer if it touches a space
  anywhere, or if the answer contains a comma between two digits (of whatever mark); else a space
  takes its place. So "red-and-blue" becomes "red and blue", "red -blue-green" "red bluegreen", and
  "1,000-2,000" "10002000".
- Apostrophes, colons, "*", "%", "&" and "$" stay.
- Nothing is changed where all ten people gave the same answer: see :func:`normalise_together`.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["AnswerVocabulary", "normalise", "normalise_together", "soft_scores"]

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_DIGITS_AROUND_COMMA = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_MOST_FULL_STOPS = 32  # the value of re.UNICODE, given as a count
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_WORDS)}
_ARTICLES = ("a", "an", "the")
# The official table without the entries that can never match and those that change nothing.
_TABLE = """
aint:ain't arent:aren't cant:can't couldve:could've couldnt:couldn't couldn'tve:couldn't've
couldnt've:couldn't've didnt:didn't doesnt:doesn't dont:don't hadnt:hadn't hadnt've:hadn't've
hadn'tve:hadn't've hasnt:hasn't havent:haven't hed:he'd hed've:he'd've he'dve:he'd've hes:he's
howd:how'd howll:how'll hows:how's isnt:isn't itd:it'd itd've:it'd've it'dve:it'd've
itll:it'll maam:ma'am mightnt:mightn't mightnt've:mightn't've mightn'tve:mightn't've
mightve:might've mustnt:mustn't mustve:must've neednt:needn't notve:not've oclock:o'clock
oughtnt:oughtn't ow's'at:'ow's'at 'ows'at:'ow's'at 'ow'sat:'ow's'at shant:shan't
shed've:she'd've she'dve:she'd've shouldve:should've shouldnt:shouldn't
shouldnt've:shouldn't've shouldn'tve:shouldn't've somebody'd:somebodyd
somebodyd've:somebody'd've somebody'dve:somebody'd've somebodyll:somebody'll
somebodys:somebody's someoned:someone'd someoned've:someone'd've someone'dve:someone'd've
someonell:someone'll someones:someone's somethingd:something'd somethingd've:something'd've
something'dve:something'd've somethingll:something'll thats:that's thered:there'd
thered've:there'd've there'dve:there'd've therere:there're theres:there's theyd:they'd
theyd've:they'd've they'dve:they'd've theyll:they'll theyre:they're theyve:they've twas:'twas
wasnt:wasn't wed've:we'd've we'dve:we'd've weve:we've werent:weren't whatll:what'll
whatre:what're whats:what's whatve:what've whens:when's whered:where'd wheres:where's
whereve:where've whod:who'd whod've:who'd've who'dve:who'd've wholl:who'll whos:who's
whove:who've whyll:why'll whyre:why're whys:why's wont:won't wouldve:would've wouldnt:wouldn't
wouldnt've:wouldn't've wouldn'tve:wouldn't've yall:y'all yall'll:y'all'll y'allll:y'all'll
yall'd've:y'all'd've y'alld've:y'all'd've y'all'dve:y'all'd've youd:you'd youd've:you'd've
you'dve:you'd've youll:you'll youre:you're youve:you've
"""
_CONTRACTIONS = dict(pair.split(":") for pair in _TABLE.split())


def normalise(answer: str) -> str:
    """Bring an answer to the official evaluation's one spelling.

    Args:
        answer: What a person or a model answered.

    Returns:
        The answer in lower case, without articles and most punctuation; it may be empty.

    >>> normalise("Two dogs."), normalise("The dont-walk sign"), normalise("1,000")
    ('2 dogs', "don't walk sign", '1000')
    """
    text = _one_line(answer)
    bare = text
    together = _DIGITS_AROUND_COMMA.search(text) is not None
    for mark in _MARKS:
        if mark in text:
            # The text as it was decides, not what is left of it after the marks before.
            touches = mark + " " in text or " " + mark in text
            bare = bare.replace(mark, "" if touches or together else " ")
    bare = _FULL_STOP.sub("", bare, count=_MOST_FULL_STOPS)
    words = [_NUMBERS.get(word, word) for word in bare.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def normalise_together(answer: str, people: Sequence[str]) -> tuple[str, list[str]]:
    """Prepare a model's answer and people's for comparison, as the official evaluation does.

    If all people said the same, letter for letter, nothing is normalised: such answers are often
    read off the picture, where "A" is not an article. The price: where all ten said "yes", a
    model's "Yes" is wrong.

    Args:
        answer: The model's answer.
        people: The answers of people, ten in VQA.

    Returns:
        The model's answer and the people's, to be compared as they are.

    >>> normalise_together("Yes!", ["yes", "yeah"]), normalise_together("Yes!", ["yes", "yes"])
    (('yes', ['yes', 'yeah']), ('Yes!', ['yes', 'yes']))
    """
    answer, people = _one_line(answer), [_one_line(given) for given in people]
    if len(set(people)) > 1:
        return normalise(answer), [normalise(given) for given in people]
    return answer, people


def _one_line(answer: str) -> str:
    if not isinstance(answer, str):
        raise TypeError(f"answer must be a string: got {answer!r}")
    return answer.replace("\n", " ").replace("\t", " ").strip()


def soft_scores(people: Sequence[str], leave_one_out: bool = False) -> dict[str, float]:
    r"""What each of people's answers is worth as the answer to their question.

    An answer that :math:`n` of them gave is worth

    .. math:: s = \min(n / 3, 1)

    or, with ``leave_one_out``, what the official evaluation gives on average over the choices of
    all people but one, which for ten people is 0.3, 0.6, 0.9 and 1 for :math:`n` = 1, 2, 3 and
    from 4 on:

    .. math:: s = \frac{1}{N}\left( n \min\Big(\frac{n - 1}{3}, 1\Big)
              + (N - n) \min\Big(\frac{n}{3}, 1\Big) \right)

    Antol et al. 2015, https://arxiv.org/abs/1505.00468; as targets of training: Teney et al. 2018,
    https://arxiv.org/abs/1708.02711.

    Args:
        people: The answers of people; they are normalised first.
        leave_one_out: Which of the two.

    Returns:
        A number in (0, 1] (from 0 on with ``leave_one_out``) for every answer, most frequent first.

    >>> soft_scores(["red"] * 8 + ["Red.", "pink"])
    {'red': 1.0, 'pink': 0.3333333333333333}
    """
    counts = Counter(map(normalise, people))
    total = len(people)
    scores = {}
    for answer, n in counts.most_common():
        scores[answer] = min(n / 3, 1.0)
        if leave_one_out:
            scores[answer] = (n * min((n - 1) / 3, 1.0) + (total - n) * min(n / 3, 1.0)) / total
    return scores


class AnswerVocabulary:
    """The answers that a classifier can give.

    Args:
        answers: Normalised answers, no two alike.

    Raises:
        ValueError: Two answers are alike, or there is none.

    >>> vocabulary = AnswerVocabulary.build(["yes", "Yes", "no", "No.", "no", "2"], most=2)
    >>> vocabulary.answers, len(vocabulary), vocabulary.number("No!"), vocabulary.number("blue")
    (('no', 'yes'), 2, 0, None)
    """

    def __init__(self, answers: Sequence[str]):
        self.answers = tuple(answers)
        self._numbers = {answer: number for number, answer in enumerate(self.answers)}
        if not self.answers:
            raise ValueError("answers must not be empty: got none")
        if len(self._numbers) < len(self.answers):
            twice = [answer for answer, n in Counter(self.answers).items() if n > 1]
            raise ValueError(f"answers must differ: got {twice[0]!r} more than once")

    @classmethod
    def build(
        cls, answers: Iterable[str], most: int | None = None, at_least: int = 1
    ) -> "AnswerVocabulary":
        """Take the frequent ones of many answers.

        The 3,129 answers of the literature are those that stand as the ``multiple_choice_answer``
        of at least nine questions of VQAv2's training and validation sets together.

        Args:
            answers: The answers of a training set, one a question; they are normalised first.
                Those that are empty then are left out.
            most: How many to take at most; None takes all.
            at_least: How often an answer must come.

        Returns:
            The vocabulary, most frequent first and equally frequent ones in alphabetical order.

        Raises:
            ValueError: ``most`` or ``at_least`` is below 1, or no answer is frequent enough.
        """
        for name, value in (("most", most), ("at_least", at_least)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1: got {value}")
        counts = Counter(filter(None, map(normalise, answers)))
        ranked = sorted((-n, answer) for answer, n in counts.items() if n >= at_least)
        if not ranked:
            raise ValueError(f"at_least must leave some answers: none comes {at_least} times")
        return cls([answer for _, answer in ranked[:most]])

    def __len__(self) -> int:
        return len(self.answers)

    def __repr__(self) -> str:
        return f"AnswerVocabulary({len(self)} answers)"

    def number(self, answer: str) -> int | None:
        """The number of an answer, normalised first, or None if it is not in the vocabulary."""
        return self._numbers.get(normalise(answer))

    def targets(
        self, people: Sequence[str], leave_one_out: bool = False
    ) -> Float[Tensor, " answers"]:
        """The :func:`soft_scores` of one question as a vector.

        Answers outside the vocabulary are lost; the vector can be all zeros.

        Args:
            people: The answers of people.
            leave_one_out: See :func:`soft_scores`.

        Returns:
            Scores in [0, 1], one for each answer of the vocabulary.
        """
        vector = torch.zeros(len(self))
        for answer, score in soft_scores(people, leave_one_out).items():
            if answer in self._numbers:
                vector[self._numbers[answer]] = score
        return vector
