"""Checkers for the exercises of chapter 11, DALL·E."""

import torch
import torch.nn.functional as F

from mmlib.exercises.report import check_function, checker

__all__ = ["check_best", "check_guidance", "check_loss", "check_nucleus", "check_walk"]


def _draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@checker("The last word predicts the first code, and nothing is asked of the last code.")
def check_loss(answer):
    """Exercise 1: ``answer(logits, codes)`` is the mean cross-entropy of the codes."""

    def of(logits, codes):
        return F.cross_entropy(logits.flatten(0, 1), codes.flatten())

    def reference(logits, codes):
        count = codes.shape[1]
        return of(logits[:, -count - 1 : -1], codes)

    def case(seed, words, places):
        dice = torch.Generator().manual_seed(seed)
        codes = torch.randint(7, (3, places), generator=dice)
        return 3 * _draw(3, words + places, 7, seed=seed + 1), codes

    check_function(
        answer,
        reference,
        [case(1, 4, 9), case(11, 2, 6)],
        mistakes={
            "this asks each code for itself, which it has seen; the position before predicts it": (
                lambda x, k: of(x[:, -k.shape[1] :], k)
            ),
            "the first code is missing: the last word predicts it": (
                lambda x, k: of(x[:, -k.shape[1] : -1], k[:, 1:])
            ),
            "these are the first positions, which are words": (
                lambda x, k: of(x[:, : k.shape[1]], k)
            ),
            "this is a sum over the codes, not a mean": lambda x, k: reference(x, k) * k.numel(),
            "a cross-entropy takes logits, not probabilities": (
                lambda x, k: reference(x.softmax(-1), k)
            ),
        },
        name="the loss",
    )


@checker("At 1 nothing is changed; above it, what speaks for the caption counts more than once.")
def check_guidance(answer):
    """Exercise 2: ``answer(conditional, unconditional, scale)`` is the guided logits."""

    def reference(c, u, s):
        return u + s * (c - u)

    check_function(
        answer,
        reference,
        [
            (_draw(2, 5, seed=1), _draw(2, 5, seed=2), 3.0),
            (_draw(2, 5, seed=3), _draw(2, 5, seed=4), 1.0),
            (_draw(2, 5, seed=5), _draw(2, 5, seed=6), 0.0),
        ],
        mistakes={
            "a scale of 1 must leave the conditional logits as they are: some papers count from 0, "
            "c + s (c - u), but this book does not": lambda c, u, s: c + s * (c - u),
            "the two are confused: a scale of 0 must leave the caption out": (
                lambda c, u, s: c + s * (u - c)
            ),
            "this scales the logits, which is a temperature": lambda c, u, s: s * c,
            "the logits without a caption are missing from the sum": lambda c, u, s: s * (c - u),
            "this is a mean of both; guidance goes away from the unconditional": (
                lambda c, u, s: (c + s * u) / (1 + s)
            ),
        },
        name="the guided logits",
    )


@checker("Wide where the model does not know, narrow where it does.")
def check_nucleus(answer):
    """Exercise 3: ``answer(probs, p)`` is the probabilities of the nucleus, summing to one."""

    def kept(probs, p, late):
        ordered, order = probs.sort(dim=1, descending=True)
        gone = torch.zeros_like(probs, dtype=torch.bool).scatter(1, order, late(ordered, p))
        return probs.masked_fill(gone, 0.0)

    def enough(ordered, p):
        return ordered.cumsum(1) - ordered >= p

    def normed(x):
        return x / x.sum(1, keepdim=True)

    def reference(probs, p):
        return normed(kept(probs, p, enough))

    flat, sharp = torch.full((1, 6), 1 / 6), torch.tensor([[0.05, 0.7, 0.1, 0.05, 0.06, 0.04]])
    both = torch.cat([flat * torch.tensor([1.06, 1.04, 1.02, 0.98, 0.96, 0.94]), sharp])
    check_function(
        answer,
        reference,
        [(both, 0.6), (both, 0.75), ((2 * _draw(4, 9, seed=2)).softmax(1), 0.9)],
        mistakes={
            "the token that reaches p belongs to the nucleus; without it the sum stays below p": (
                lambda q, p: normed(kept(q, p, lambda o, p: o.cumsum(1) > p).clamp(min=1e-30))
            ),
            "the probabilities that are left must sum to 1": lambda q, p: kept(q, p, enough),
            "these are all tokens with a probability of at least p, which may be none": (
                lambda q, p: normed(q.masked_fill(q < p, 1e-30))
            ),
            "the tokens must be in the order they came in, not in that of their probability": (
                lambda q, p: reference(q, p).sort(dim=1, descending=True).values
            ),
            "nothing is left out": lambda q, p: q,
        },
        name="the nucleus",
    )


@checker("The place is on the line, the velocity is its whole length.")
def check_walk(answer):
    """Exercise 4: ``answer(noise, data, time)`` is the place and the velocity."""

    def reference(noise, data, time):
        share = time[:, None]
        return (1 - share) * noise + share * data, data - noise

    check_function(
        answer,
        reference,
        [
            (_draw(4, 3, seed=1), _draw(4, 3, seed=2), torch.tensor([0.1, 0.5, 0.9, 1.0])),
            (_draw(3, 3, seed=3), _draw(3, 3, seed=4), torch.tensor([0.25, 0.0, 0.75])),
        ],
        mistakes={
            "time 0 is noise and time 1 is data": (lambda n, d, t: (reference(d, n, t)[0], d - n)),
            "the velocity leads from noise to data": (
                lambda n, d, t: (reference(n, d, t)[0], n - d)
            ),
            "the velocity is that of the whole walk, not what is left of it": (
                lambda n, d, t: (reference(n, d, t)[0], d - reference(n, d, t)[0])
            ),
            "each item has a time of its own: `time[:, None]`, or it is spread over the columns": (
                lambda n, d, t: (
                    ((1 - t[: n.shape[1]]) * n + t[: n.shape[1]] * d),
                    d - n,
                )
            ),
            "the shares must be 1 - t and t; these are roots, as diffusion has them": (
                lambda n, d, t: (
                    (1 - t[:, None]).sqrt() * n + t[:, None].sqrt() * d,
                    d - n,
                )
            ),
        },
        name="(place, velocity)",
    )


@checker("One dot product for each candidate, and each text has its own candidates.")
def check_best(answer):
    """Exercise 5: ``answer(image, text)`` is the number of the best candidate of each text."""

    def unit(x):
        return F.normalize(x, dim=-1)

    def reference(image, text):
        return torch.einsum("tcd,td->tc", unit(image), unit(text)).argmax(1)

    def case(seed):
        lengths = torch.tensor([1.0, 5.0, 0.2, 2.0, 0.5, 3.0])[:, None]
        return _draw(7, 6, 4, seed=seed) * lengths, _draw(7, 4, seed=seed + 1)

    check_function(
        answer,
        reference,
        [case(1), case(11)],
        mistakes={
            "a longer vector wins: divide the pictures' vectors by their length": (
                lambda i, t: torch.einsum("tcd,td->tc", i, t).argmax(1)
            ),
            "this is the worst candidate": (
                lambda i, t: torch.einsum("tcd,td->tc", unit(i), unit(t)).argmin(1)
            ),
            "this is the text that each candidate number fits best; for each text a candidate is "
            "wanted": lambda i, t: torch.einsum("tcd,td->tc", unit(i), unit(t)).argmax(0),
            "this is the score; its place among the candidates is wanted": (
                lambda i, t: torch.einsum("tcd,td->tc", unit(i), unit(t)).amax(1)
            ),
            "all candidates are compared with the first text": (
                lambda i, t: (unit(i) @ unit(t[0])).argmax(1)
            ),
        },
        name="the best candidates",
    )
