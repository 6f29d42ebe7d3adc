"""Chapter 09's checkers: solutions pass, stubs and typical mistakes are told what is wrong."""

import inspect
import math

import pytest
import torch

from mmlib.exercises import ch09
from mmlib.importance import importance_bound
from mmlib.quantise import code_usage, gumbel_softmax

CHECKERS = {name: value for name, value in inspect.getmembers(ch09) if name.startswith("check_")}
CHECKERS.pop("check_function")


def kl(m, v, n, w):
    """As torch has it: its deviations are the roots of our variances."""
    ours, prior = (
        torch.distributions.Normal(mean, (log_variance / 2).exp())
        for mean, log_variance in ((m, v), (n, w))
    )
    return torch.distributions.kl_divergence(ours, prior).sum(-1)


def penalty(kl, bits):
    means = [max(mean, bits * math.log(2)) for mean in kl.mean(0).tolist()]
    return torch.tensor(means).sum()


def perplexity(ids, codes):
    return code_usage(ids, codes).perplexity


def draw(logits, noise, temperature):
    return gumbel_softmax(logits, temperature, hard=True, noise=noise)


SOLUTIONS = {
    "check_kl": kl,
    "check_penalty": penalty,
    "check_bound": importance_bound,
    "check_perplexity": perplexity,
    "check_draw": draw,
}


def test_every_checker_has_a_solution():
    assert set(SOLUTIONS) == set(CHECKERS)


@pytest.mark.parametrize("name", SOLUTIONS)
def test_solution_passes(name):
    report = CHECKERS[name](SOLUTIONS[name])
    assert report, report.message
    assert report.message


@pytest.mark.parametrize("name", SOLUTIONS)
def test_unchanged_stub_is_not_solved(name):
    def stub(*args): ...

    report = CHECKERS[name](stub)
    assert not report
    assert "not solved yet" in report.message


LOG2 = math.log(2)


def each(m, v, n, w):
    return ((v - w).exp() + (m - n) ** 2 / w.exp() - 1 + w - v) / 2


def shares(ids, codes):
    return torch.bincount(ids.flatten(), minlength=codes) / ids.numel()


def entropy(ids, codes, log=torch.log):
    used = shares(ids, codes)
    used = used[used > 0]
    return -(used * log(used)).sum()


def with_nan(ids, codes):
    share = shares(ids, codes)
    return (-(share * share.log()).sum()).exp().item()


def soft(logits, noise, temperature):
    return ((logits + noise) / temperature).softmax(-1)


def hard(logits, noise):
    return torch.eye(logits.shape[-1])[(logits + noise).argmax(-1)]


def through(one_hot, soft):
    return one_hot + (soft - soft.detach())


WRONG = {
    "mean": ("check_kl", lambda m, v, n, w: each(m, v, n, w).mean(-1), "is a sum"),
    "batch": ("check_kl", lambda m, v, n, w: each(m, v, n, w).sum(), "the batch as well"),
    "apart": ("check_kl", each, "sum over the last axis"),
    "reverse": ("check_kl", lambda m, v, n, w: each(n, w, m, v).sum(-1), "other way round"),
    "half": ("check_kl", lambda m, v, n, w: 2 * each(m, v, n, w).sum(-1), "factor 1/2"),
    "deviation": ("check_kl", lambda m, v, n, w: each(m, 2 * v, n, 2 * w).sum(-1), "deviation"),
    "sign": ("check_kl", lambda m, v, n, w: (each(m, v, n, w) + v - w).sum(-1), "wrong sign"),
    "standard": (
        "check_kl",
        lambda m, v, n, w: each(m, v, 0 * n, 0 * w).sum(-1),
        "not always the standard",
    ),
    "nats": ("check_penalty", lambda kl, b: kl.mean(0).clamp(min=b).sum(), "ln 2"),
    "each picture": (
        "check_penalty",
        lambda kl, b: kl.clamp(min=b * LOG2).mean(0).sum(),
        "each picture",
    ),
    "sum": (
        "check_penalty",
        lambda kl, b: kl.mean(0).sum().clamp(min=b * LOG2),
        "not for their sum",
    ),
    "taken off": (
        "check_penalty",
        lambda kl, b: (kl.mean(0) - b * LOG2).relu().sum(),
        "is taken off",
    ),
    "smaller": ("check_penalty", lambda kl, b: kl.mean(0).clamp(max=b * LOG2).sum(), "smaller"),
    "mean of dimensions": (
        "check_penalty",
        lambda kl, b: kl.mean(0).clamp(min=b * LOG2).mean(),
        "over the dimensions",
    ),
    "elbo": ("check_bound", lambda w: w.mean(0), "that is the elbo"),
    "sum of weights": ("check_bound", lambda w: w.logsumexp(0), "divide by their number"),
    "pictures": ("check_bound", lambda w: w.logsumexp(1) - math.log(w.shape[1]), "first axis"),
    "overflow": ("check_bound", lambda w: w.exp().mean(0).log(), "Take the largest out"),
    "one number": ("check_bound", lambda w: importance_bound(w).mean(), "for each picture"),
    "used": ("check_perplexity", lambda i, k: float(len(i.unique())), "used at all"),
    "entropy": ("check_perplexity", lambda i, k: entropy(i, k).item(), "exponentiate it"),
    "minus": ("check_perplexity", lambda i, k: (-entropy(i, k)).exp().item(), "the sign"),
    "bits": (
        "check_perplexity",
        lambda i, k: entropy(i, k, torch.log2).exp().item(),
        "natural logarithm",
    ),
    "nan": ("check_perplexity", with_nan, "never used"),
    "tensor": ("check_perplexity", lambda i, k: entropy(i, k).exp(), "float"),
    "mixture": ("check_draw", soft, "a mixture"),
    "no noise": (
        "check_draw",
        lambda z, g, t: through(hard(z, 0 * g), soft(z, g, t)),
        "nothing is drawn",
    ),
    "number": ("check_draw", lambda z, g, t: (z + g).argmax(-1), "number of the code"),
    "no gradient": ("check_draw", lambda z, g, t: hard(z, g), "no gradient passes"),
    "gradient without noise": (
        "check_draw",
        lambda z, g, t: through(hard(z, g), soft(z, 0 * g, t)),
        "without the noise",
    ),
    "gradient as it is": (
        "check_draw",
        lambda z, g, t: through(hard(z, g), z),
        "must pass the softmax",
    ),
    "gradient without temperature": (
        "check_draw",
        lambda z, g, t: through(hard(z, g), soft(z, g, 1.0)),
        "forgets the temperature",
    ),
}


@pytest.mark.parametrize("name, answer, words", WRONG.values(), ids=WRONG)
def test_typical_mistake_is_named(name, answer, words):
    report = CHECKERS[name](answer)
    assert not report
    assert words in report.message


def test_every_checker_has_a_typical_mistake():
    assert {name for name, _, _ in WRONG.values()} == set(CHECKERS)
