"""Checkers of chapter 09, autoencoders."""

import math

import torch
import torch.nn.functional as F

from mmlib.exercises.report import call, check_function, checker, compare, require


def _draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@checker("With the standard normal as prior that is the KL term of the bound.")
def check_kl(answer):
    """Exercise 1: ``answer(mean, log_variance, prior_mean, prior_log_variance)`` is KL(q, p)."""

    def kl(m, v, n, w, *, half=0.5, square=True, sign=1.0):
        gap = (m - n).square() if square else (m - n).abs()
        return half * (((v - w).exp() + gap / w.exp() - 1) + sign * (w - v)).sum(-1)

    m, v, n, w = (_draw(3, 4, seed=seed) for seed in range(4))
    zero = torch.zeros(3, 4)
    check_function(
        answer,
        kl,
        [(m, v, zero, zero), (m, v, n, w)],
        mistakes={
            "the mean over the dimensions; a divergence of independent numbers is a sum": (
                lambda m, v, n, w: kl(m, v, n, w) / m.shape[-1]
            ),
            "the sum runs over the batch as well; each picture has its own divergence": (
                lambda m, v, n, w: kl(m, v, n, w).sum()
            ),
            "each dimension apart; sum over the last axis": (
                lambda m, v, n, w: 0.5 * ((v - w).exp() + (m - n).square() / w.exp() - 1 + w - v)
            ),
            "the other way round: that is KL(p, q), which asks q to be wide where p is": (
                lambda m, v, n, w: kl(n, w, m, v)
            ),
            "the factor 1/2 is missing": lambda m, v, n, w: kl(m, v, n, w, half=1.0),
            "the variance is taken for its logarithm's half: that is, for a deviation": (
                lambda m, v, n, w: kl(m, 2 * v, n, 2 * w)
            ),
            "the term of the logarithms has the wrong sign": (
                lambda m, v, n, w: kl(m, v, n, w, sign=-1.0)
            ),
            "the prior is not always the standard normal": lambda m, v, n, w: kl(
                m, v, 0 * n, 0 * w
            ),
        },
        name="the divergence",
    )


@checker("Below its allowance a dimension costs the same whatever it says, so none is given up.")
def check_penalty(answer):
    """Exercise 2: ``answer(kl, bits)`` is the KL term with free bits, for the whole batch."""

    def reference(kl, bits):
        return kl.mean(0).clamp(min=bits * math.log(2)).sum()

    # Some dimensions are above the allowance on the average but not for each picture.
    kl = torch.tensor([[2.0, 0.0, 0.3], [0.1, 0.2, 0.5], [3.0, 0.1, 0.1]])
    check_function(
        answer,
        reference,
        [(kl, 0.0), (kl, 0.5), (kl, 4.0)],
        mistakes={
            "the allowance is in bits and the divergence in nats: a bit is ln 2 nats": (
                lambda kl, bits: kl.mean(0).clamp(min=bits).sum()
            ),
            "each picture has an allowance of its own; it is for the mean over the batch": (
                lambda kl, bits: kl.clamp(min=bits * math.log(2)).mean(0).sum()
            ),
            "the allowance is for each dimension, not for their sum": (
                lambda kl, bits: kl.mean(0).sum().clamp(min=bits * math.log(2))
            ),
            "the allowance is taken off; what is below it should cost the same, not nothing": (
                lambda kl, bits: (kl.mean(0) - bits * math.log(2)).clamp(min=0).sum()
            ),
            "the larger of both is wanted (`min=`), not the smaller": (
                lambda kl, bits: kl.mean(0).clamp(max=bits * math.log(2)).sum()
            ),
            "the mean over the dimensions; the bound has their sum": (
                lambda kl, bits: reference(kl, bits) / kl.shape[1]
            ),
        },
        name="the term",
    )


@checker("The largest weight is taken out before anything is exponentiated.")
def check_bound(answer):
    """Exercise 3: ``answer(log_weights)`` is the importance-weighted bound of each picture."""

    def reference(log_weights):
        return log_weights.logsumexp(0) - math.log(len(log_weights))

    small = _draw(4, 3, seed=5)
    check_function(
        answer,
        reference,
        [(small,), (small[:1],), (20 * small - 7000,), (small + 500,)],
        mistakes={
            "the mean of the logarithms: that is the elbo; take the logarithm of the mean weight": (
                lambda log_weights: log_weights.mean(0)
            ),
            "the sum of the weights; divide by their number": (
                lambda log_weights: log_weights.logsumexp(0)
            ),
            "the mean runs over the pictures; the draws are the first axis": (
                lambda log_weights: log_weights.logsumexp(1) - math.log(log_weights.shape[1])
            ),
            "nats of real pictures are in the thousands: their exponential is 0 or infinite. Take "
            "the largest out first": lambda log_weights: log_weights.exp().mean(0).log(),
            "one number for each picture is wanted, not their mean": (
                lambda log_weights: reference(log_weights).mean()
            ),
        },
        name="the bound",
    )


@checker("As many codes, all used alike, would say as much.")
def check_perplexity(answer):
    """Exercise 4: ``answer(ids, codes)`` is the perplexity of a codebook, as a float."""

    def shares(ids, codes):
        return torch.bincount(ids.flatten(), minlength=codes) / ids.numel()

    def reference(ids, codes):
        return float(torch.special.entr(shares(ids, codes)).sum().exp())

    even = torch.tensor([[0, 1], [2, 3]])
    uneven = torch.tensor([[0, 0, 0], [0, 5, 5]])
    check_function(
        answer,
        lambda ids, codes: reference(ids, codes),
        [(even, 4), (uneven, 6), (torch.zeros(2, 2, 2, dtype=torch.long), 8)],
        mistakes={
            "the number of codes that are used at all; a code used once counts as much as any": (
                lambda ids, codes: float(len(ids.unique()))
            ),
            "that is the entropy; exponentiate it": (
                lambda ids, codes: math.log(reference(ids, codes))
            ),
            "the sign: the entropy is minus the sum of p log p": (
                lambda ids, codes: 1 / reference(ids, codes)
            ),
            "the entropy is in bits here and the base is e; take the natural logarithm": (
                lambda ids, codes: reference(ids, codes) ** (1 / math.log(2))
            ),
            "a code that is never used has the share 0, and 0 · log 0 counts as 0, not NaN": (
                lambda ids, codes: float((-(p := shares(ids, codes)) * p.log()).sum().exp())
            ),
        },
        name="the perplexity",
    )
    require(
        isinstance(call(answer, uneven, 6), float),
        "the right number, but no `float`; use `.item()`",
    )


@checker("Forward it is one code, backward the softmax of what it was chosen from.")
def check_draw(answer):
    """Exercise 5: ``answer(logits, noise, temperature)`` draws straight through."""

    def soft(logits, noise, temperature):
        return ((logits + noise) / temperature).softmax(-1)

    def one_hot(logits, noise, temperature):
        return F.one_hot((logits + noise).argmax(-1), logits.shape[-1]).to(logits)

    logits = _draw(5, 6, seed=6)
    noise = _draw(5, 6, seed=11).exp()  # any noise will do; this one decides two of the draws
    check_function(
        answer,
        one_hot,
        [(logits, noise, 1.0), (logits, noise, 0.1)],
        mistakes={
            "a mixture of codes; the decoder is to get exactly one": soft,
            "without the noise it is always the most probable code, and nothing is drawn": (
                lambda logits, noise, temperature: one_hot(logits, 0 * noise, temperature)
            ),
            "the number of the code; a vector of zeros with a single one is wanted": (
                lambda logits, noise, temperature: (logits + noise).argmax(-1)
            ),
        },
        name="the draw",
    )
    drawn = call(answer, logits.clone().requires_grad_(), noise, 1.0)
    require(
        drawn.requires_grad,
        "the draw is right, but no gradient passes it: `argmax` has none. Add the soft sample "
        "and take it away again, one of the two detached",
    )
    weight = _draw(5, 6, seed=8)

    def gradient(function, temperature):
        leaf = logits.clone().requires_grad_()
        return torch.autograd.grad((function(leaf, noise, temperature) * weight).sum(), leaf)[0]

    for temperature in (1.0, 0.5):
        got = call(gradient, answer, temperature)
        compare(
            got,
            gradient(soft, temperature),
            name="the gradient of the logits",
            mistakes={
                "the draw is right, and its gradient is that of a softmax without the noise; the "
                "code was chosen with it": gradient(
                    lambda z, g, t: soft(z, torch.zeros_like(g), t), temperature
                ),
                "the draw is right, and its gradient goes to the logits as it is; it must pass the "
                "softmax": weight,
                "the draw is right, and its gradient forgets the temperature": gradient(
                    lambda z, g, t: soft(z, g, 1.0), temperature
                ),
            },
        )
