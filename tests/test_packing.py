"""Packing: rows, masks and positions, and that no sequence sees another, by gradients."""

import inspect

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmlib.block import TransformerConfig
from mmlib.packing import document_keep, first_fit, pack, unpack
from mmlib.positions import sinusoids
from mmlib.transformer import Encoder

SIZES = [3, 5, 2, 4, 1]


def batch(sizes=SIZES, dim=8, gaps=False):
    length = max(sizes) + 2
    keep = torch.zeros(len(sizes), length, dtype=torch.bool)
    for row, size in zip(keep, sizes, strict=True):
        places = torch.randperm(length)[:size] if gaps else torch.arange(size)
        row[places] = True
    return torch.randn(len(sizes), length, dim, dtype=torch.float64), keep


def encoder():
    config = TransformerConfig(dim=8, heads=2, layers=2)
    return Encoder(config).double().eval()


def placed(x, positions):
    return x + sinusoids(16, 8)[positions]


@given(st.lists(st.integers(1, 12), min_size=1, max_size=30))
def test_first_fit_holds_everything_once(lengths):
    rows = first_fit(lengths, 12)
    assert sorted(item for row in rows for item in row) == list(range(len(lengths)))
    loads = [sum(lengths[item] for item in row) for row in rows]
    assert max(loads) <= 12
    # No row can take the first item of a later one: else first fit would have put it there.
    for earlier in range(len(rows)):
        for later in rows[earlier + 1 :]:
            assert loads[earlier] + lengths[later[-1]] > 12 or lengths[later[0]] > 0
    assert len(rows) <= 11 / 9 * -(-sum(lengths) // 12) * 2


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [([3, 5, 2, 4], [[1, 2], [3, 0]]), ([7], [[0]]), ([4, 4], [[0], [1]]), ([1, 6], [[1, 0]])],
)
def test_first_fit_by_hand(lengths, expected):
    assert first_fit(lengths, 7) == expected


@pytest.mark.parametrize("gaps", [False, True])
def test_unpack_undoes_pack(gaps):
    tokens, keep = batch(gaps=gaps)
    packed = pack(tokens, keep)
    assert len(packed.tokens) == 3  # 15 tokens in rows of 7
    assert packed.tokens.shape[:2] == packed.document.shape == packed.positions.shape
    back = unpack(packed.tokens, packed, keep)
    assert torch.equal(back, tokens.masked_fill(~keep[..., None], 0.0))


def test_positions_begin_anew_in_every_sequence():
    packed = pack(*batch(), length=15)
    assert packed.document.tolist() == [[1] * 5 + [3] * 4 + [0] * 3 + [2] * 2 + [4]]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 2, 0, 1, 0]]


def test_document_keep_is_its_definition():
    document = torch.tensor([[0, 0, 1, -1], [2, -1, -1, -1]])
    found = document_keep(document)
    for row in range(2):
        for i in range(4):
            for j in range(4):
                a, b = document[row, i], document[row, j]
                assert found[row, 0, i, j] == (a == b and a >= 0)


def test_an_encoder_computes_the_same_packed_and_padded():
    tokens, keep = batch()
    model, packed = encoder(), pack(tokens, keep, length=10)
    together, _ = model(placed(packed.tokens, packed.positions), document_keep(packed.document))
    found = unpack(together, packed, keep)
    alone, _ = model(placed(tokens, torch.arange(tokens.shape[1])), keep)
    torch.testing.assert_close(found[keep], alone[keep], rtol=1e-10, atol=1e-12)


def gradients(mask):
    """Which sequences each sequence's result depends on."""
    tokens, keep = batch()
    tokens.requires_grad_()
    model, packed = encoder(), pack(tokens, keep, length=15)
    out, _ = model(placed(packed.tokens, packed.positions), mask(packed))
    found = unpack(out, packed, keep)
    depends = torch.zeros(len(tokens), len(tokens), dtype=torch.bool)
    for item in range(len(tokens)):
        # A linear probe: the sum of a layer norm's output depends on nothing.
        probe = torch.randn(found.shape[2], dtype=torch.float64)
        (gradient,) = torch.autograd.grad((found[item] @ probe).sum(), tokens, retain_graph=True)
        depends[item] = gradient.abs().amax(dim=(1, 2)) > 0
    return depends


def test_no_gradient_crosses_from_sequence_to_sequence():
    depends = gradients(lambda packed: document_keep(packed.document))
    assert torch.equal(depends, torch.eye(len(SIZES), dtype=torch.bool))


def test_without_the_mask_gradients_cross():
    """The test above can fail: a mask of padding alone lets all of a row see all of it."""
    depends = gradients(lambda packed: packed.document >= 0)
    assert depends.all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: first_fit([3, 0], 4), ValueError, "from 1 to length=4"),
        (lambda: first_fit([5], 4), ValueError, "from 1 to length=4"),
        (lambda: pack(torch.zeros(1, 2, 3), torch.ones(1, 2)), TypeError, "keep must be boolean"),
        (lambda: pack(torch.zeros(1, 2, 3), torch.ones(1, 3).bool()), ValueError, "tokens must"),
        (lambda: pack(torch.zeros(1, 2, 3), torch.zeros(1, 2).bool()), ValueError, "from 1 to"),
        (lambda: other_shape(), ValueError, "rows and length of packed"),
        (lambda: other_mask(), ValueError, "keep must be that of pack"),
    ],
)
def test_bad_input(call, error, message, monkeypatch):
    for name in ("pack", "unpack", "first_fit"):
        monkeypatch.setitem(globals(), name, inspect.unwrap(globals()[name]))
    with pytest.raises(error, match=message):
        call()


def other_shape():
    tokens, keep = batch()
    packed = pack(tokens, keep)
    return unpack(packed.tokens[:, :-1], packed, keep)


def other_mask():
    tokens, keep = batch()
    packed = pack(tokens, keep)
    return unpack(packed.tokens, packed, keep.flip(0))
