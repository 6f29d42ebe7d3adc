"""Answers to chapter 09's exercises: right ones, and typical mistakes with words of the message."""

import math

import torch

from mmlib.importance import importance_bound
from mmlib.quantise import code_usage, gumbel_softmax


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


WRONG = [
    ("check_kl", lambda m, v, n, w: each(m, v, n, w).mean(-1), "is a sum"),
    ("check_kl", lambda m, v, n, w: each(m, v, n, w).sum(), "the batch as well"),
    ("check_kl", each, "sum over the last axis"),
    ("check_kl", lambda m, v, n, w: each(n, w, m, v).sum(-1), "other way round"),
    ("check_kl", lambda m, v, n, w: 2 * each(m, v, n, w).sum(-1), "factor 1/2"),
    ("check_kl", lambda m, v, n, w: each(m, 2 * v, n, 2 * w).sum(-1), "deviation"),
    ("check_kl", lambda m, v, n, w: (each(m, v, n, w) + v - w).sum(-1), "wrong sign"),
    (
        "check_kl",
        lambda m, v, n, w: each(m, v, 0 * n, 0 * w).sum(-1),
        "not always the standard",
    ),
    ("check_penalty", lambda kl, b: kl.mean(0).clamp(min=b).sum(), "ln 2"),
    (
        "check_penalty",
        lambda kl, b: kl.clamp(min=b * LOG2).mean(0).sum(),
        "each picture",
    ),
    (
        "check_penalty",
        lambda kl, b: kl.mean(0).sum().clamp(min=b * LOG2),
        "not for their sum",
    ),
    (
        "check_penalty",
        lambda kl, b: (kl.mean(0) - b * LOG2).relu().sum(),
        "is taken off",
    ),
    ("check_penalty", lambda kl, b: kl.mean(0).clamp(max=b * LOG2).sum(), "smaller"),
    (
        "check_penalty",
        lambda kl, b: kl.mean(0).clamp(min=b * LOG2).mean(),
        "over the dimensions",
    ),
    ("check_bound", lambda w: w.mean(0), "that is the elbo"),
    ("check_bound", lambda w: w.logsumexp(0), "divide by their number"),
    ("check_bound", lambda w: w.logsumexp(1) - math.log(w.shape[1]), "first axis"),
    ("check_bound", lambda w: w.exp().mean(0).log(), "Take the largest out"),
    ("check_bound", lambda w: importance_bound(w).mean(), "for each picture"),
    ("check_perplexity", lambda i, k: float(len(i.unique())), "used at all"),
    ("check_perplexity", lambda i, k: entropy(i, k).item(), "exponentiate it"),
    ("check_perplexity", lambda i, k: (-entropy(i, k)).exp().item(), "the sign"),
    (
        "check_perplexity",
        lambda i, k: entropy(i, k, torch.log2).exp().item(),
        "natural logarithm",
    ),
    ("check_perplexity", with_nan, "never used"),
    ("check_perplexity", lambda i, k: entropy(i, k).exp(), "float"),
    ("check_draw", soft, "a mixture"),
    (
        "check_draw",
        lambda z, g, t: through(hard(z, 0 * g), soft(z, g, t)),
        "nothing is drawn",
    ),
    ("check_draw", lambda z, g, t: (z + g).argmax(-1), "number of the code"),
    ("check_draw", lambda z, g, t: hard(z, g), "no gradient passes"),
    (
        "check_draw",
        lambda z, g, t: through(hard(z, g), soft(z, 0 * g, t)),
        "without the noise",
    ),
    (
        "check_draw",
        lambda z, g, t: through(hard(z, g), z),
        "must pass the softmax",
    ),
    (
        "check_draw",
        lambda z, g, t: through(hard(z, g), soft(z, g, 1.0)),
        "forgets the temperature",
    ),
]
