"""Checkers of chapter 08, captioning."""

import math
from collections import Counter

import torch

from mmlib.exercises.report import call, check_function, checker, require


def _draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@checker("A word sees a weighted mean of regions, and the weights are a softmax over them.")
def check_look(answer):
    """Exercise 1: ``answer(scores, regions, keep)`` gives what is seen and the weights."""

    def mean(weights, regions):
        return torch.einsum("br,brd->bd", weights, regions), weights

    def reference(scores, regions, keep):
        return mean(scores.masked_fill(~keep, -torch.inf).softmax(-1), regions)

    scores, regions = _draw(3, 4, seed=1), _draw(3, 4, 2, seed=2)
    every = torch.ones(3, 4, dtype=torch.bool)
    some = torch.tensor([[True, True, False, False], [True] * 4, [False, True, True, True]])
    check_function(
        answer,
        reference,
        [(scores, regions, every), (3 * scores, regions, some)],
        mistakes={
            "the softmax runs over the batch (`dim=0`): one picture's regions then compete with "
            "another's, which is what document 001's listing does": (
                lambda scores, regions, keep: mean(
                    scores.masked_fill(~keep, -torch.inf).softmax(0), regions
                )
            ),
            "regions that do not exist get a share; hide them before the softmax": (
                lambda scores, regions, keep: mean(scores.softmax(-1), regions)
            ),
            "masked after the softmax, the weights that are left do not sum to 1": (
                lambda scores, regions, keep: mean(scores.softmax(-1) * keep, regions)
            ),
            "a score of 0 is a score like others; a hidden region needs minus infinity": (
                lambda scores, regions, keep: mean(
                    scores.masked_fill(~keep, 0.0).softmax(-1), regions
                )
            ),
            "`keep` is True for the regions that exist; here they are the ones left out": (
                lambda scores, regions, keep: mean(
                    scores.masked_fill(keep, -torch.inf).softmax(-1), regions
                )
            ),
        },
        name="the pair (seen, weights)",
    )


@checker("Each word's weights sum to 1 by the softmax; the penalty asks the same of each region.")
def check_unseen(answer):
    """Exercise 2: ``answer(weights, keep)`` is the doubly stochastic penalty, summed."""

    def reference(weights, keep):
        return (1 - (weights * keep[..., None]).sum(1)).square().sum()

    weights = _draw(2, 3, 4, seed=3).softmax(-1)
    every = torch.ones(2, 3, dtype=torch.bool)
    some = torch.tensor([[True, True, False], [True, True, True]])
    check_function(
        answer,
        reference,
        [(weights, every), (weights, some)],
        mistakes={
            "the sum runs over the regions, and is 1 anyhow; sum over the words": (
                lambda weights, keep: (
                    ((1 - weights.sum(2)).square() * keep).sum()
                    if keep.all()
                    else (1 - weights.sum(2)).square().sum()
                )
            ),
            "words of the padding are counted": (
                lambda weights, keep: (1 - weights.sum(1)).square().sum()
            ),
            "each word's weight is compared with 1 alone; first sum over the words": (
                lambda weights, keep: ((1 - weights).square() * keep[..., None]).sum()
            ),
            "the mean over pictures and regions; the sum is asked for": (
                lambda weights, keep: (1 - (weights * keep[..., None]).sum(1)).square().mean()
            ),
            "the difference is not squared": (
                lambda weights, keep: (1 - (weights * keep[..., None]).sum(1)).abs().sum()
            ),
        },
        name="the penalty",
    )


@checker("The model reads what it would say itself, as often as the share says.")
def check_next_input(answer):
    """Exercise 3: ``answer(given, logits, draws, share)`` picks scheduled sampling's inputs."""

    def reference(given, logits, draws, share):
        return torch.where(draws < share, logits.argmax(-1), given)

    given, logits = torch.tensor([4, 0, 2, 1, 3, 4]), _draw(6, 5, seed=4)
    draws = torch.tensor([0.05, 0.2, 0.4, 0.6, 0.8, 0.95])
    check_function(
        answer,
        reference,
        [(given, logits, draws, share) for share in (0.5, 0.0, 1.0, 0.3)],
        mistakes={
            "own and given are the wrong way round: `share` is how often the model's own word is "
            "read": lambda given, logits, draws, share: torch.where(
                draws < share, given, logits.argmax(-1)
            ),
            "the model's own words everywhere: `share` has no effect": (
                lambda given, logits, draws, share: logits.argmax(-1)
            ),
            "the given words everywhere: `share` has no effect": (
                lambda given, logits, draws, share: given
            ),
            "the least probable word; take the most probable": (
                lambda given, logits, draws, share: torch.where(
                    draws < share, logits.argmin(-1), given
                )
            ),
        },
        name="the inputs",
    )


@checker("Without the penalty the shortest wins, since every word costs probability.")
def check_best(answer):
    """Exercise 4: ``answer(log_probs, lengths, alpha)`` is the index of the best hypothesis."""

    def score(log_probs, lengths, alpha):
        return log_probs / ((5 + lengths) / 6) ** alpha

    def reference(log_probs, lengths, alpha):
        return int(score(log_probs, lengths, alpha).argmax())

    # With alpha = 1 each mistake below picks another one.
    log_probs = torch.tensor([-2.0, -1.95, -2.4, -5.0, -6.0])
    lengths = torch.tensor([2, 5, 9, 20, 3])
    check_function(
        answer,
        reference,
        [(log_probs, lengths, alpha) for alpha in (1.0, 0.0, 0.6, 2.0)],
        mistakes={
            "the penalty is multiplied; a log-probability is negative, so dividing by more makes "
            "it larger": lambda log_probs, lengths, alpha: int(
                (log_probs * ((5 + lengths) / 6) ** alpha).argmax()
            ),
            "the length has no effect": lambda log_probs, lengths, alpha: int(log_probs.argmax()),
            "divided by the length itself; Wu et al. divide by ((5 + length) / 6) to the power "
            "alpha": lambda log_probs, lengths, alpha: int((log_probs / lengths).argmax()),
            "the smallest score; the largest is the best": (
                lambda log_probs, lengths, alpha: int(score(log_probs, lengths, alpha).argmin())
            ),
        },
        name="the index",
    )
    require(
        isinstance(call(answer, log_probs, lengths, 1.0), int),
        "the right hypothesis, but as a tensor; return an `int`",
    )


@checker("A caption that says one right word seven times is right once.")
def check_matches(answer):
    """Exercise 5: ``answer(candidate, references, n)`` is (matches, total) of BLEU's precision."""

    def grams(words, n):
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    def count(candidate, references, n, combine):
        allowed = Counter()
        for words in references:
            allowed = combine(allowed, grams(words, n))
        own = grams(candidate, n)
        return sum(min(c, allowed[g]) for g, c in own.items()), sum(own.values())

    def largest(a, b):
        return a | b

    def reference(candidate, references, n):
        return count(candidate, references, n, largest)

    the = "the the the the the the the".split()  # noqa: SIM905
    mat = ["the cat is on the mat".split(), "there is a cat on the mat".split()]  # noqa: SIM905
    red = "a red star above a red ring".split()  # noqa: SIM905
    ring = ["a ring below a red star".split(), "a red star above a ring".split()]  # noqa: SIM905
    check_function(
        answer,
        reference,
        [(the, mat, 1), (red, ring, 1), (red, ring, 2), (red, ring, 4), ([], mat, 2)],
        mistakes={
            "repeated words are counted as often as the candidate says them; no more than the "
            "reference has": lambda candidate, references, n: (
                sum(
                    c
                    for g, c in grams(candidate, n).items()
                    if any(grams(words, n)[g] for words in references)
                ),
                max(0, len(candidate) - n + 1),
            ),
            "the counts of the references are added; an n-gram is allowed as often as the one "
            "reference that has most of it": lambda candidate, references, n: count(
                candidate, references, n, lambda a, b: a + b
            ),
            "only the first reference is looked at": lambda candidate, references, n: count(
                candidate, references[:1], n, largest
            ),
            "each n-gram is counted once, however often it comes": (
                lambda candidate, references, n: (
                    sum(
                        any(grams(words, n)[g] for words in references) for g in grams(candidate, n)
                    ),
                    len(grams(candidate, n)),
                )
            ),
            "single words, whatever `n` is": lambda candidate, references, n: reference(
                candidate, references, 1
            ),
            "that is the precision; return the two counts, which are summed over a corpus before "
            "they are divided": lambda candidate, references, n: (
                lambda pair: pair[0] / pair[1] if pair[1] else math.nan
            )(reference(candidate, references, n)),
        },
        name="the pair (matches, total)",
    )
