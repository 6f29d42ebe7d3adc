"""Answers to chapter 02's exercises: right ones, and typical mistakes with words of the message."""

import torch

from mmlib.block import TransformerConfig
from mmlib.positions import sinusoids
from mmlib.transformer import Encoder


def shift(target, begin):
    return torch.cat([torch.full_like(target[:, :1], begin), target[:, :-1]], dim=1)


def pre_norm(x, norm1, attend, norm2, feed_forward):
    x = x + attend(norm1(x))
    return x + feed_forward(norm2(x))


def rotation(steps, dim, sign=1.0, same=False):
    matrix = torch.zeros(dim, dim, dtype=torch.float64)
    for i in range(0, dim, 2):
        angle = torch.tensor(steps * (1.0 if same else 10000.0 ** (-i / dim))).double()
        sine = sign * angle.sin()
        block = torch.stack([angle.cos(), sine, -sine, angle.cos()]).view(2, 2)
        matrix[i : i + 2, i : i + 2] = block
    return matrix


def beam_step(log_probs, next_log_probs):
    beams, vocab = next_log_probs.shape
    best, chosen = (log_probs[:, None] + next_log_probs).flatten().topk(beams)
    return chosen // vocab, chosen % vocab, best


def parameters(dim, layers):
    return sum(
        p.numel() for p in Encoder(TransformerConfig(dim=dim, heads=1, layers=layers)).parameters()
    )


SOLUTIONS = {
    "check_shift": shift,
    "check_pre_norm": pre_norm,
    "check_rotation": rotation,
    "check_beam_step": beam_step,
    "check_parameters": parameters,
}


def per_beam(log_probs, next_log_probs):
    best, token = (log_probs[:, None] + next_log_probs).max(-1)
    order = best.argsort(descending=True)
    return order, token[order], best[order]


def forgetful(log_probs, next_log_probs):
    return beam_step(torch.zeros_like(log_probs), next_log_probs)


def in_place(x, norm1, attend, norm2, feed_forward):
    x += attend(norm1(x))
    return x + feed_forward(norm2(x))


WRONG = [
    ("check_shift", lambda target, begin: target.roll(1, 1), "circle"),
    ("check_shift", lambda target, begin: target, "nothing moved"),
    ("check_shift", lambda t, b: torch.cat([t[:, 1:], t[:, :1] * 0 + b], 1), "left"),
    ("check_shift", lambda t, b: torch.cat([t[:, :1] * 0 + b, t], 1), "one longer"),
    (
        "check_pre_norm",
        lambda x, n1, a, n2, f: n2(n1(x + a(x)) + f(n1(x + a(x)))),
        "post-norm",
    ),
    ("check_pre_norm", lambda x, n1, a, n2, f: f(n2(a(n1(x)))), "residual"),
    ("check_pre_norm", lambda x, n1, a, n2, f: x + a(n1(x)) + f(n2(x)), "same `x`"),
    ("check_pre_norm", in_place, "in place"),
    ("check_rotation", lambda s, d: rotation(s, d, sign=-1.0), "other way"),
    ("check_rotation", lambda s, d: rotation(s, d, same=True), "same angle"),
    ("check_rotation", lambda s, d: sinusoids(30, d)[10 + s], "a matrix of shape"),
    ("check_beam_step", per_beam, "of its own"),
    ("check_beam_step", forgetful, "forgotten"),
    (
        "check_beam_step",
        lambda a, b: beam_step(a, b)[1::-1] + (beam_step(a, b)[2],),
        "swapped",
    ),
    ("check_parameters", lambda d, n: n * (12 * d * d + 4 * d) + 2 * d, "biases"),
    ("check_parameters", lambda d, n: n * (12 * d * d + 9 * d), "layer norms"),
    ("check_parameters", lambda d, n: n * (12 * d * d + 13 * d), "last layer norm"),
    ("check_parameters", lambda d, n: 12 * n * d * d, "should be"),
]
