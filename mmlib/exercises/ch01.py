"""Checkers of chapter 01, attention. How they work: :mod:`mmlib.exercises.report`."""

import torch
from torch import Tensor

from mmlib.attention import attention, causal_keep
from mmlib.exercises.report import call, check_function, checker, compare, require

__all__ = [
    "check_attention_weights",
    "check_online_attention",
    "check_score_gradient",
    "check_sliding_keep",
    "check_split_heads",
]


def _draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


@checker("Each row is a distribution over the keys, and wider keys do not sharpen it.")
def check_attention_weights(answer) -> None:
    r"""``answer(query, key)`` must be :math:`\operatorname{softmax}(QK^\top/\sqrt{d_k})`."""

    def weights(query: Tensor, key: Tensor) -> Tensor:
        return attention(query, key, key)[1]

    def raw(query: Tensor, key: Tensor) -> Tensor:
        return query @ key.transpose(-2, -1)

    check_function(
        answer,
        weights,
        cases=[(_draw(3, 4), _draw(5, 4)), (_draw(2, 3, 8), 3 * _draw(2, 5, 8))],
        name="the weights",
        mistakes={
            "the softmax runs over the queries: each row, one per query, must sum to 1, "
            "so it has to run over the last axis": lambda q, k: (
                raw(q, k) / q.shape[-1] ** 0.5
            ).softmax(-2),
            r"the scores are not divided by $\sqrt{d_k}$": lambda q, k: raw(q, k).softmax(-1),
            r"the scores are divided by $d_k$ instead of $\sqrt{d_k}$": lambda q, k: (
                raw(q, k) / q.shape[-1]
            ).softmax(-1),
            r"the scores are multiplied by $\sqrt{d_k}$": lambda q, k: (
                raw(q, k) * q.shape[-1] ** 0.5
            ).softmax(-1),
            "these are the scores, before the softmax": lambda q, k: raw(q, k) / q.shape[-1] ** 0.5,
        },
    )


@checker("Each position sees itself and the ones just before it, and nothing later.")
def check_sliding_keep(answer) -> None:
    """``answer(length, window)`` must keep each position's last ``window`` positions."""

    def distance(length: int) -> Tensor:
        positions = torch.arange(length)
        return positions[:, None] - positions[None, :]

    def sliding(length: int, window: int) -> Tensor:
        return (distance(length) >= 0) & (distance(length) < window)

    check_function(
        answer,
        sliding,
        cases=[(6, 3), (5, 1), (4, 9)],
        name="the mask",
        mistakes={
            "True must mean *attend*; your mask is the other way round": lambda n, w: (
                ~sliding(n, w)
            ),
            "the window counts the position itself, so it reaches back `window - 1` positions": (
                lambda n, w: (distance(n) >= 0) & (distance(n) <= w)
            ),
            "later positions are kept too: the mask must also be causal": lambda n, w: (
                distance(n).abs() < w
            ),
            "the mask looks ahead instead of back: rows are queries, columns are keys": (
                lambda n, w: sliding(n, w).T
            ),
            "this is the plain causal mask, without a window": lambda n, w: causal_keep(n),
        },
    )


@checker("The heads are views of the same numbers, and nothing was mixed between positions.")
def check_split_heads(answer) -> None:
    """``answer(x, heads)``: ``(batch, length, dim)`` to ``(batch, heads, length, head_dim)``."""

    def split(x: Tensor, heads: int) -> Tensor:
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    def reshaped(x: Tensor, heads: int) -> Tensor:
        return x.reshape(x.shape[0], heads, x.shape[1], -1)

    check_function(
        answer,
        split,
        cases=[(_draw(2, 3, 8), 4), (_draw(1, 5, 6), 1)],
        name="the heads",
        mistakes={
            "the shape is right, but a plain reshape mixes positions: first split the last axis, "
            "then swap axes": reshaped,
            "neighbouring numbers belong to one head: the last axis is (heads, head_dim), not "
            "(head_dim, heads)": lambda x, heads: x.unflatten(-1, (-1, heads)).movedim(-1, 1),
            "the heads come after the length: swap these two axes": lambda x, heads: x.unflatten(
                -1, (heads, -1)
            ),
        },
    )


@checker("The same numbers as one big softmax, with only one block of scores in memory.")
def check_online_attention(answer) -> None:
    """``answer(query, key_blocks, value_blocks)`` must equal attention over all keys."""

    def whole(query: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
        return attention(query, torch.cat(keys), torch.cat(values))[0]

    def averaged(query: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
        parts = [attention(query, k, v)[0] for k, v in zip(keys, values, strict=True)]
        return torch.stack(parts).mean(0)

    query, key, value = _draw(3, 4), 2 * _draw(9, 4), _draw(9, 2)
    mistakes = {
        "each block has its own softmax here, and the averages are then averaged: a block whose "
        "scores are high must count for more": averaged,
        r"the scores are not divided by $\sqrt{d_k}$": lambda q, ks, vs: attention(
            q, torch.cat(ks), torch.cat(vs), scale=1.0
        )[0],
    }
    for sizes in ([9], [3, 3, 3], [1, 6, 2]):
        check_function(
            answer,
            whole,
            cases=[(query, list(key.split(sizes)), list(value.split(sizes)))],
            name=f"the output for blocks of {sizes} keys",
            mistakes=mistakes,
        )
    # Scores of several hundred: exp overflows unless the running maximum is taken off first.
    blocks = list((100 * key).split(3)), list(value.split(3))
    got = call(answer, 10 * query, *blocks)
    require(
        isinstance(got, Tensor) and got.isfinite().all(),
        "large scores overflow: subtract the largest score so far before `exp`, and rescale the "
        "sums of earlier blocks when it grows",
    )
    compare(got, whole(10 * query, *blocks), name="the output for large scores")


@checker("Exactly what autograd computes: a score matters by how far its value is from the mean.")
def check_score_gradient(answer) -> None:
    r"""``answer(weights, value, grad_out)`` must be :math:`\partial L/\partial S`."""

    def gradient(weights: Tensor, value: Tensor, grad_out: Tensor) -> Tensor:
        scores = weights.log().requires_grad_()
        (grad,) = torch.autograd.grad(scores.softmax(-1) @ value, scores, grad_out)
        return grad

    def through_weights(weights: Tensor, value: Tensor, grad_out: Tensor) -> Tensor:
        return grad_out @ value.transpose(-2, -1)

    check_function(
        answer,
        gradient,
        cases=[
            (_draw(3, 5).softmax(-1), _draw(5, 2), _draw(3, 2)),
            (_draw(2, 3, 5).softmax(-1), _draw(2, 5, 4), _draw(2, 3, 4)),
        ],
        name="the gradient",
        mistakes={
            "this is the gradient of the weights; it still has to pass through the softmax": (
                through_weights
            ),
            "the softmax ties the scores of a row together: subtract the row's weighted mean": (
                lambda w, v, g: w * through_weights(w, v, g)
            ),
            "the mean of a row must be weighted by the attention weights": lambda w, v, g: (
                w * (through_weights(w, v, g) - through_weights(w, v, g).mean(-1, keepdim=True))
            ),
        },
    )
