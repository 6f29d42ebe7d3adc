"""Whole numbers of eight bits: exact sums, bounded errors, nothing changed in place."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmlib.int8 import (
    Int8Embedding,
    Int8Linear,
    dequantise,
    megabytes,
    quantise,
    quantise_model,
)
from mmlib.small_clips import scene_clip, scene_ids


def test_no_weight_is_further_than_half_a_step():
    x = torch.randn(50, 37) * torch.logspace(-20, 20, 50)[:, None]
    q, scale = quantise(x)
    assert q.dtype == torch.int8
    assert int(q.abs().amax(1).min()) == 127  # each row uses the whole range
    error = (dequantise(q, scale) - x).abs()
    assert bool((error <= scale[:, None] * 0.5 * (1 + 1e-5)).all())


def test_equal_to_torch_own_quantiser():
    x = torch.randn(8, 64)
    q, scale = quantise(x)
    theirs = torch.quantize_per_channel(x, scale.double(), torch.zeros(8).long(), 0, torch.qint8)
    assert torch.equal(q, theirs.int_repr())


def test_zeros_and_small_rows():
    q, scale = quantise(torch.tensor([[0.0, 0.0], [1e-30, 0.0]]))
    assert q.tolist() == [[0, 0], [127, 0]]
    assert scale[0] == 1
    assert torch.equal(
        Int8Linear(nn.Linear(2, 3, bias=False))(torch.zeros(4, 2)), torch.zeros(4, 3)
    )


def test_the_layer_is_the_formula_in_double_precision():
    linear, x = nn.Linear(40, 24), torch.randn(7, 40)
    (qx, sx), (qw, sw) = quantise(x), quantise(linear.weight)
    sums = qx.double() @ qw.double().T
    wanted = sx.double()[:, None] * sw.double() * sums + linear.bias.double()
    assert (Int8Linear(linear)(x).double() - wanted).abs().max() < 1e-6


def test_the_layer_is_close_to_what_it_replaces():
    linear, x = nn.Linear(256, 64), torch.randn(3, 5, 256)
    found, wanted = Int8Linear(linear)(x), linear(x).detach()
    assert found.shape == wanted.shape
    assert float((found - wanted).norm() / wanted.norm()) < 0.02
    assert float((found - wanted).abs().max()) > 0


def test_each_row_of_the_input_has_its_own_scale():
    linear = nn.Linear(16, 8)
    x = torch.randn(2, 16)
    alone = Int8Linear(linear)(x[:1])
    together = Int8Linear(linear)(torch.cat([x[:1], 1000 * x[1:]]))
    assert torch.equal(alone, together[:1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_dtype_of_the_input_comes_out(dtype):
    assert Int8Linear(nn.Linear(8, 8))(torch.randn(2, 8, dtype=dtype)).dtype == dtype


def test_the_table_gives_the_rows():
    table = nn.Embedding(20, 6)
    ids = torch.tensor([[3, 19], [0, 3]])
    found = Int8Embedding(table)(ids)
    q, scale = quantise(table.weight)
    assert torch.equal(found, F.embedding(ids, dequantise(q, scale)))


def test_who_reads_the_weights_gets_what_they_stand_for():
    linear, table = nn.Linear(6, 4), nn.Embedding(5, 3)
    assert torch.equal(Int8Linear(linear).weight, dequantise(*quantise(linear.weight)))
    assert torch.equal(Int8Embedding(table).weight, dequantise(*quantise(table.weight)))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
        self.out.weight = self.table.weight
        self.inner = nn.Linear(4, 4)

    def forward(self, ids):
        return self.out(self.inner(self.table(ids)))


def test_tied_weights_stay_tied():
    model = quantise_model(Tied())
    assert model.out.weight is model.table.weight
    assert isinstance(model.inner, Int8Linear)
    assert model(torch.tensor([1, 2])).shape == (2, 9)


def test_a_model_is_copied_and_not_changed():
    model = scene_clip(trained=True)
    before = copy.deepcopy(model.state_dict())
    small = quantise_model(model)
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)
    assert not [m for m in small.text.modules() if isinstance(m, nn.Linear | nn.Embedding)]
    kept = quantise_model(model, embeddings=False)
    assert [m for m in kept.text.modules() if isinstance(m, nn.Embedding)]
    assert megabytes(small.text) < 0.3 * megabytes(model.text)


def test_a_tower_says_nearly_the_same():
    from mmlib.data import scenes

    model = scene_clip(trained=True)
    ids = scene_ids(scenes.sample(50, seed=1, objects=2))
    with torch.no_grad():
        wanted, found = model.encode_text(ids), quantise_model(model).encode_text(ids)
    cosine = (wanted * found).sum(1)
    assert 0.99 < float(cosine.min()) < 1


def test_megabytes_counts_what_is_shared_once():
    assert megabytes(Tied()) == pytest.approx(4 * (36 + 16 + 4) / 1e6)
    assert megabytes(quantise_model(nn.Linear(100, 10))) == pytest.approx((1000 + 40 + 40) / 1e6)


@pytest.mark.parametrize(
    "x, error, words",
    [
        (torch.ones(2, 2, dtype=torch.int64), TypeError, "floating point"),
        (torch.ones(2), ValueError, "rows, columns"),
        (torch.ones(2, 0), ValueError, "not empty"),
        (torch.tensor([[1.0, float("nan")]]), ValueError, "finite"),
        (torch.tensor([[1.0, float("inf")]]), ValueError, "finite"),
    ],
)
def test_bad_input(unchecked, x, error, words):
    with pytest.raises(error, match=words):
        unchecked(quantise)(x)
