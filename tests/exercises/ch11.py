"""Answers to chapter 11's exercises: right ones, and typical mistakes with words of the message."""

import torch
import torch.nn.functional as F

from mmlib.sampling import filter_logits, guide


def loss(logits, codes):
    log_probs = logits.log_softmax(-1)
    words = logits.shape[1] - codes.shape[1]
    total = 0.0
    for place in range(codes.shape[1]):
        total = total - log_probs[range(len(codes)), words - 1 + place, codes[:, place]].mean()
    return total / codes.shape[1]


def nucleus(probs, p):
    return filter_logits(probs.log(), top_p=p).softmax(1)


def walk(noise, data, time):
    return torch.stack(
        [a.lerp(b, t) for a, b, t in zip(noise, data, time, strict=True)]
    ), data - noise


def best(image, text):
    return torch.stack(
        [
            F.cosine_similarity(rows, one[None]).argmax()
            for rows, one in zip(image, text, strict=True)
        ]
    )


SOLUTIONS = {
    "check_best": best,
    "check_guidance": guide,
    "check_loss": loss,
    "check_nucleus": nucleus,
    "check_walk": walk,
}


def entropy(logits, codes):
    return F.cross_entropy(logits.transpose(1, 2), codes)


def renormed(x):
    return x / x.sum(1, keepdim=True)


def strictly(probs, p):
    """Without the token that reaches p."""
    ordered, order = probs.sort(dim=1, descending=True)
    gone = torch.zeros_like(probs, dtype=torch.bool).scatter(1, order, ordered.cumsum(1) > p)
    return renormed(probs.masked_fill(gone, 1e-30))


def in_place(image, text):
    image /= image.norm(dim=-1, keepdim=True)
    return best(image, text)


WRONG = [
    ("check_loss", lambda x, k: entropy(x[:, -k.shape[1] :], k), "for itself"),
    ("check_loss", lambda x, k: entropy(x[:, -k.shape[1] : -1], k[:, 1:]), "first code is missing"),
    ("check_loss", lambda x, k: entropy(x[:, : k.shape[1]], k), "which are words"),
    ("check_loss", lambda x, k: loss(x, k) * k.numel(), "not a mean"),
    ("check_loss", lambda x, k: loss(x.softmax(-1), k), "not probabilities"),
    ("check_guidance", lambda c, u, s: (1 + s) * c - s * u, "count from 0"),
    ("check_guidance", lambda c, u, s: guide(u, c, s), "confused"),
    ("check_guidance", lambda c, u, s: c * s, "temperature"),
    ("check_guidance", lambda c, u, s: s * c - s * u, "missing from the sum"),
    ("check_guidance", lambda c, u, s: (c + s * u) / (1 + s), "a mean of both"),
    ("check_nucleus", strictly, "reaches p belongs"),
    (
        "check_nucleus",
        lambda q, p: q * filter_logits(q.log(), top_p=p).isfinite(),
        "must sum to 1",
    ),
    ("check_nucleus", lambda q, p: renormed(torch.where(q < p, 1e-30, q)), "may be none"),
    (
        "check_nucleus",
        lambda q, p: nucleus(q, p).sort(dim=1, descending=True).values,
        "order they came in",
    ),
    ("check_nucleus", lambda q, p: q, "nothing is left out"),
    ("check_walk", lambda n, d, t: (walk(d, n, t)[0], d - n), "time 0 is noise"),
    ("check_walk", lambda n, d, t: (walk(n, d, t)[0], n - d), "from noise to data"),
    ("check_walk", lambda n, d, t: (x := walk(n, d, t)[0], d - x), "what is left"),
    (
        "check_walk",
        lambda n, d, t: (n + t[:3] * (d - n), d - n),
        "a time of its own",
    ),
    (
        "check_walk",
        lambda n, d, t: (n * (1 - t[:, None]).sqrt() + d * t[:, None].sqrt(), d - n),
        "as diffusion has them",
    ),
    ("check_best", lambda i, t: (i @ t[..., None])[..., 0].argmax(1), "a longer vector"),
    (
        "check_best",
        lambda i, t: F.cosine_similarity(i, t[:, None], dim=-1).argmin(1),
        "worst",
    ),
    (
        "check_best",
        lambda i, t: F.cosine_similarity(i, t[:, None], dim=-1).argmax(0),
        "for each text",
    ),
    (
        "check_best",
        lambda i, t: F.cosine_similarity(i, t[:, None], dim=-1).amax(1),
        "this is the score",
    ),
    (
        "check_best",
        lambda i, t: F.cosine_similarity(i, t[:1, None], dim=-1).argmax(1),
        "the first text",
    ),
    ("check_best", in_place, "in place"),
]
