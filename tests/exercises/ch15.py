"""Answers to chapter 15's exercises: right ones, and typical mistakes with words of the message."""

import torch
import torch.nn.functional as F

from mmlib.distillation import soft_label_loss
from mmlib.int8 import dequantise, quantise
from mmlib.pruning import MaskKeeper, magnitude_masks


def int8(weight):
    return dequantise(*quantise(weight))


def pruned(first, second, share):
    model = torch.nn.ModuleList(torch.nn.Linear(*w.T.shape, bias=False) for w in (first, second))
    for layer, weight in zip(model, (first, second), strict=True):
        layer.weight.data = weight.clone()
    MaskKeeper(model, magnitude_masks(model, share))
    return tuple(layer.weight.detach() for layer in model)


def batches(arrivals, size, wait, fixed, each):
    """As the queue would see it: a list that empties."""
    waiting, answered, clock = list(arrivals), [], 0.0
    while waiting:
        first = waiting[0]
        clock = max(clock, first)
        there = [t for t in waiting if t <= max(clock, first + wait)][:size]
        clock = max(clock, there[-1] if len(there) == size else first + wait)
        clock += fixed + each * len(there)
        answered += [clock] * len(there)
        waiting = waiting[len(there) :]
    return answered


def replicas(rate, capacity, use, spare):
    number = 1
    while rate > number * capacity * use:
        number += 1
    return number + spare


SOLUTIONS = {
    "check_int8": int8,
    "check_pruned": pruned,
    "check_distillation": soft_label_loss,
    "check_batches": batches,
    "check_replicas": replicas,
}


def local(first, second, share):
    return tuple(
        w.masked_fill(w.abs() <= w.abs().flatten().kthvalue(round(share * w.numel())).values, 0.0)
        for w in (first, second)
    )


def kl(student, teacher, temperature, reduction):
    ours, theirs = (x / temperature for x in (student, teacher))
    loss = F.kl_div(ours.log_softmax(1), theirs.softmax(1), reduction=reduction)
    return temperature**2 * loss


def cut_off(weight, scale):
    return (weight / scale).int() * scale


WRONG = [
    ("check_int8", lambda w: (w * 127 / w.abs().max()).round() * w.abs().max() / 127, "one scale"),
    ("check_int8", lambda w: int8(w.T).T, "each column"),
    ("check_int8", lambda w: quantise(w)[0].float(), "multiply by the scale again"),
    (
        "check_int8",
        lambda w: quantise(w)[1][:, None] * (w / quantise(w)[1][:, None]).trunc(),
        "cut",
    ),
    ("check_pruned", local, "one for both"),
    ("check_pruned", lambda a, b, s: pruned(a, b, 1 - s), "not what stays"),
    (
        "check_distillation",
        lambda s, t, heat: soft_label_loss(s, t, heat) / heat**2,
        "T² is missing",
    ),
    ("check_distillation", lambda s, t, heat: soft_label_loss(t, s, heat), "wrong way round"),
    ("check_distillation", lambda s, t, heat: kl(s, t, heat, "sum") / s.numel(), "all entries"),
    ("check_distillation", lambda s, t, heat: kl(s, t, heat, "sum"), "sum over the rows"),
    ("check_batches", lambda a, size, wait, *r: batches(a, size, 0.0, *r), "nobody waits"),
    ("check_batches", lambda a, size, *r: batches(a, 1, *r), "alone"),
    ("check_batches", lambda a, size, *r: batches(a, len(a), *r), "no more than"),
    ("check_batches", lambda a, n, w, fixed, each: batches(a, n, w, 0.0, each), "once a batch"),
    ("check_replicas", lambda r, c, u, s: int(r / c / u) + s, "rounded down"),
    ("check_replicas", lambda r, c, u, s: replicas(r, c, 1.0, s), "every burst waits"),
    ("check_replicas", lambda r, c, u, s: replicas(r, c, u, 0), "spare"),
]
