"""Fusion operators: the documents' numbers, closed forms, and modalities that are missing."""

import pytest
import torch
from torch import nn

from mmlib.block import TransformerConfig
from mmlib.encoders.encoded import Encoded
from mmlib.fusion import (
    OPERATORS,
    Bilinear,
    Concatenation,
    Gate,
    Product,
    WeightedSum,
    concatenate,
    multiply,
    weighted_average,
)
from mmlib.fusion_tokens import BottleneckLayer, CrossModalAttention

TEXT, IMAGE = torch.tensor([[0.2, 0.5, 0.8]]), torch.tensor([[0.1, 0.7, 0.9]])
DIMS = (5, 3, 4)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def vectors(batch=6):
    return [draw(batch, dim, seed=dim) for dim in DIMS]


def operators():
    return [pytest.param(kind(DIMS, 7).double(), id=name) for name, kind in OPERATORS.items()]


def encoded(batch, length, dim, seed, keep=None):
    keep = torch.ones(batch, length, dtype=torch.bool) if keep is None else keep
    return Encoded(draw(batch, length, dim, seed=seed), keep, draw(batch, dim, seed=seed + 1))


# The documents' numbers


def test_the_documents_vectors():
    assert torch.equal(concatenate([TEXT, IMAGE]), torch.cat([TEXT, IMAGE], dim=1))
    torch.testing.assert_close(multiply([TEXT, IMAGE]), torch.tensor([[0.02, 0.35, 0.72]]))
    for share in (0.0, 0.3, 1.0):
        weights = torch.tensor([share, 1 - share])
        expected = share * TEXT + (1 - share) * IMAGE
        torch.testing.assert_close(weighted_average([TEXT, IMAGE], weights), expected)


def test_an_average_stays_between_its_inputs_whatever_the_weights_sum_to():
    average = weighted_average([TEXT, IMAGE], torch.tensor([4.0, 12.0]))
    torch.testing.assert_close(average, 0.25 * TEXT + 0.75 * IMAGE)


def test_a_modality_of_weight_zero_alone_gives_zeros():
    keep = torch.tensor([[True, False]])
    average = weighted_average([TEXT, IMAGE], torch.tensor([0.0, 1.0]), keep)
    assert torch.equal(average, torch.zeros(1, 3))


# Missing modalities


@pytest.mark.parametrize("operator", operators())
def test_what_is_missing_has_no_influence(operator):
    given = vectors()
    keep = torch.tensor([[m >> i & 1 == 1 for i in range(3)] for m in (7, 1, 2, 4, 5, 6)])
    expected = operator(given, keep)
    changed = [v.clone() for v in given]
    for index, vector in enumerate(changed):
        vector[~keep[:, index]] = float("nan")
    assert torch.equal(operator(changed, keep), expected)
    there = [v.clone() + 1.0 * keep[:, i, None] for i, v in enumerate(given)]
    assert (operator(there, keep) != expected).any(dim=1).all()  # and what is there has


@pytest.mark.parametrize("operator", operators())
def test_a_row_without_any_modality_gives_zeros_and_finite_gradients(operator):
    given = [v.requires_grad_() for v in vectors(2)]
    keep = torch.tensor([[False] * 3, [True] * 3])
    out = operator(given, keep)
    assert torch.equal(out[0], torch.zeros(7, dtype=torch.float64)) and (out[1] != 0).any()
    out.square().sum().backward()
    for vector in given:
        assert vector.grad.isfinite().all() and (vector.grad[0] == 0).all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in operator.parameters())


@pytest.mark.parametrize("join", [concatenate, multiply])
def test_functions_without_a_modality_give_zeros(join):
    assert not join([TEXT, IMAGE], torch.zeros(1, 2, dtype=torch.bool)).any()
    assert torch.equal(join([TEXT, IMAGE], torch.tensor([[True, False]]))[:, :3], TEXT)


@pytest.mark.parametrize("operator", operators())
def test_gradients_are_those_of_finite_differences(operator):
    given = [v.requires_grad_() for v in vectors(2)]
    keep = torch.tensor([[True, False, True], [True, True, True]])
    assert torch.autograd.gradcheck(lambda *v: operator(v, keep), given)


@pytest.mark.parametrize("operator", operators())
def test_inputs_stay_what_they_were(operator):
    given = vectors()
    before = [v.clone() for v in given]
    operator(given, torch.zeros(6, 3, dtype=torch.bool))
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))


# What an operator can tell apart: the XOR


def interaction(operator):
    """f(a, b) - f(a, b') - f(a', b) + f(a', b'): zero for every sum of functions of each."""
    a, a2, b, b2 = (draw(1, 4, seed=s) for s in range(4))
    f = {(i, j): operator([x, y]) for i, x in enumerate((a, a2)) for j, y in enumerate((b, b2))}
    return (f[0, 0] - f[0, 1] - f[1, 0] + f[1, 1]).abs().max().item()


@pytest.mark.parametrize("kind, additive", [
    (Concatenation, True), (WeightedSum, True), (Product, False), (Gate, False), (Bilinear, False),
])  # fmt: skip
def test_who_is_additive(kind, additive):
    size = interaction(kind([4, 4], 6).double())
    assert size < 1e-12 if additive else size > 1e-3


def test_gates_sum_to_one_over_what_is_there():
    gate = Gate(DIMS, 7).double()
    keep = torch.tensor([[True, True, True], [True, False, True], [False, True, False]] * 2)
    weights = gate.weights(vectors(), keep)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(6, 7, dtype=torch.float64))
    assert (weights[~keep] == 0).all()
    assert torch.equal(weights[2, 1], torch.ones(7, dtype=torch.float64))


# Tokens


def test_cross_modal_attention_leaves_rows_without_context_alone():
    layer = CrossModalAttention(8, 2).double()
    nn.init.normal_(layer.attention.out_proj.bias)  # zero at first, which would hide a mistake
    keep = torch.tensor([[True, True, False], [False, False, False]])
    x, context = encoded(2, 4, 8, seed=1), encoded(2, 3, 8, seed=2, keep=keep)
    out, weights = layer(x, context, return_weights=True)
    assert torch.equal(out[1], x.tokens[1]) and (weights[1] == 0).all()
    assert not torch.equal(out[0], x.tokens[0])
    context.tokens[~keep] = float("nan")
    assert torch.equal(layer(x, context)[0][0], layer(x, context._replace(
        tokens=context.tokens.nan_to_num(5.0)))[0][0])  # fmt: skip


def test_what_passes_a_bottleneck_and_what_does_not():
    config = TransformerConfig(dim=8, heads=2, mlp_dim=8)
    layer = BottleneckLayer(config, 2).double()
    keeps = [torch.ones(3, n, dtype=torch.bool) for n in (4, 2)]
    a, b, z = draw(3, 4, 8, seed=1), draw(3, 2, 8, seed=2), draw(3, 2, 8, seed=3)
    (a1, b1), z1 = layer([a, b], keeps, z)
    (a2, b2), z2 = layer([a + 1 + a * a, b], keeps, z)
    assert torch.equal(b1, b2)  # not within one layer
    assert not torch.equal(z1, z2)  # but through the shared tokens to the next
    assert not torch.equal(layer([a, b], keeps, z1)[0][1], layer([a, b], keeps, z2)[0][1])


def test_a_bottleneck_takes_the_mean_of_the_modalities_that_are_there():
    layer = BottleneckLayer(TransformerConfig(dim=8, heads=2, mlp_dim=8), 2).double()
    keeps = [torch.ones(3, 4, dtype=torch.bool), torch.ones(3, 2, dtype=torch.bool)]
    keeps[0][1:] = False
    keeps[1][2] = False
    a, b, z = draw(3, 4, 8, seed=1), draw(3, 2, 8, seed=2), draw(3, 2, 8, seed=3)
    (x, y), new = layer([a.masked_fill(~keeps[0][..., None], float("nan")), b], keeps, z)
    alone = [
        block(torch.cat([tokens, z], dim=1))[0][:, tokens.shape[1] :]
        for block, tokens in zip(layer.blocks, (a, b), strict=True)
    ]
    torch.testing.assert_close(new[0], (alone[0][0] + alone[1][0]) / 2)
    torch.testing.assert_close(new[1], alone[1][1])
    assert torch.equal(new[2], z[2])
    assert (x[1:] == 0).all() and (y[2] == 0).all() and x.isfinite().all()


# Bad input


GOOD = [torch.zeros(2, 3), torch.zeros(2, 3)]
MASK = torch.ones(2, 2, dtype=torch.bool)
HALF = torch.tensor([0.5, 0.5])


@pytest.mark.parametrize(
    "call, error, match",
    [
        (lambda f: f(concatenate)([]), ValueError, "got none"),
        (lambda f: f(concatenate)([torch.zeros(2)]), ValueError, r"\(batch, dim\)"),
        (lambda f: f(multiply)([torch.zeros(2, 3), torch.zeros(2, 4)]), ValueError, "one width"),
        (lambda f: f(concatenate)([torch.zeros(2, 3), torch.zeros(3, 3)]), ValueError, "batch"),
        (lambda f: f(multiply)(GOOD, MASK.float()), TypeError, "boolean"),
        (lambda f: f(multiply)(GOOD, MASK[:, :1]), ValueError, r"\(2, 2\)"),
        (lambda f: f(weighted_average)(GOOD, HALF[:1]), ValueError, "each of 2"),
        (lambda f: f(weighted_average)(GOOD, -HALF), ValueError, "negative"),
        (lambda f: f(weighted_average)(GOOD, 0 * HALF), ValueError, "all zero"),
        (lambda f: f(Product.__init__)(Product.__new__(Product), [], 3), ValueError, "at least"),
        (lambda f: Gate([3, 0], 3), ValueError, "at least 1"),
        (lambda f: Concatenation([3], 0), ValueError, "at least 1"),
        (lambda f: Bilinear([3, 3], 3, rank=0), ValueError, "rank"),
        (lambda f: f(Gate.forward)(Gate([3, 4], 5), GOOD), ValueError, r"\(3, 4\)"),
        (lambda f: CrossModalAttention(8, 3), ValueError, "heads must divide"),
        (lambda f: BottleneckLayer(TransformerConfig(dim=8), 0), ValueError, "modalities"),
        (
            lambda f: BottleneckLayer(TransformerConfig(dim=8), 2)([], [], torch.zeros(1, 1, 8)),
            ValueError,
            "each of 2",
        ),
    ],
)
def test_bad_input_is_named(call, error, match, unchecked):
    with pytest.raises(error, match=match):
        call(unchecked)
