"""Answers to chapter 01's exercises: right ones, and typical mistakes with words of the message."""

import torch


def weights(query, key):
    return torch.softmax(torch.einsum("...qd,...kd->...qk", query, key) / query.size(-1) ** 0.5, -1)


def sliding(length, window):
    return torch.ones(length, length).tril().triu(1 - window).bool()


def split(x, heads):
    return torch.stack(x.chunk(heads, dim=-1), dim=1)


def online(query, key_blocks, value_blocks):
    scores = [query @ key.T * key.shape[-1] ** -0.5 for key in key_blocks]
    top = torch.stack([s.amax(-1) for s in scores]).amax(0)[:, None]
    parts = [(s - top).exp() for s in scores]
    total = sum(part.sum(-1, keepdim=True) for part in parts)
    return sum(part @ value for part, value in zip(parts, value_blocks, strict=True)) / total


def overflowing(query, key_blocks, value_blocks):
    parts = [(query @ key.T * key.shape[-1] ** -0.5).exp() for key in key_blocks]
    total = sum(part.sum(-1, keepdim=True) for part in parts)
    return sum(part @ value for part, value in zip(parts, value_blocks, strict=True)) / total


def gradient(weights, value, grad_out):
    grad = torch.einsum("...qd,...kd->...qk", grad_out, value)
    return weights * (grad - (weights * grad).sum(-1, keepdim=True))


SOLUTIONS = {
    "check_attention_weights": weights,
    "check_sliding_keep": sliding,
    "check_split_heads": split,
    "check_online_attention": online,
    "check_score_gradient": gradient,
}


WRONG = [
    ("check_attention_weights", lambda q, k: weights(q, k).softmax(-2), "should be"),
    (
        "check_attention_weights",
        lambda q, k: (q @ k.mT / q.shape[-1] ** 0.5).softmax(-2),
        "the softmax runs over the queries",
    ),
    ("check_attention_weights", lambda q, k: (q @ k.mT).softmax(-1), "not divided"),
    ("check_attention_weights", lambda q, k: q @ k, "RuntimeError"),
    ("check_sliding_keep", lambda n, w: ~sliding(n, w), "True must mean"),
    ("check_sliding_keep", lambda n, w: sliding(n, w + 1), "counts the position itself"),
    ("check_sliding_keep", lambda n, w: sliding(n, w).T, "looks ahead"),
    ("check_sliding_keep", lambda n, w: sliding(n, w).float(), "dtype"),
    ("check_sliding_keep", lambda n, w: torch.ones(n, n).tril().bool(), "without a window"),
    (
        "check_split_heads",
        lambda x, h: x.view(x.shape[0], h, x.shape[1], -1),
        "a plain reshape mixes positions",
    ),
    (
        "check_split_heads",
        lambda x, h: torch.stack([x[..., i::h] for i in range(h)], 1),
        "neighbouring numbers belong to one head",
    ),
    (
        "check_online_attention",
        lambda q, ks, vs: sum(weights(q, k) @ v for k, v in zip(ks, vs, strict=True)) / len(ks),
        "each block has its own softmax",
    ),
    ("check_online_attention", overflowing, "large scores overflow"),
    ("check_score_gradient", lambda w, v, g: g @ v.mT, "still has to pass through the softmax"),
    ("check_score_gradient", lambda w, v, g: w * (g @ v.mT), "subtract the row's weighted mean"),
]
