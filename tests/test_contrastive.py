"""Contrastive losses: formulas, gradients, duplicates, chunks, several processes, bad input."""

import inspect
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mmlib import large_batches
from mmlib.contrastive import LogitScale, clip_loss, info_nce, siglip_loss
from mmlib.training import distributed
from mmlib.training.optimizer import decay_groups
from mmlib.triplet import triplet_loss


def draw(*shape, seed, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


GROUPS = torch.tensor([0, 1, 0, 2, 1, 1, 3])
IMAGE, TEXT = draw(7, 5, seed=1), draw(7, 5, seed=2)
LOSSES = {
    "info_nce": lambda i, t, s: info_nce(i, t, s),
    "clip": lambda i, t, s: clip_loss(i, t, s),
    "clip groups": lambda i, t, s: clip_loss(i, t, s, groups=GROUPS),
    "clip chunks": lambda i, t, s: clip_loss(i, t, s, groups=GROUPS, chunk=3),
    "siglip": lambda i, t, s: siglip_loss(i, t, s, -s),
    "siglip chunks": lambda i, t, s: siglip_loss(i, t, s, -s, groups=GROUPS, chunk=3),
    "triplet": lambda i, t, s: s * triplet_loss(i, t, 0.5),
    "semi-hard": lambda i, t, s: s * triplet_loss(i, t, 0.5, "semi-hard"),
    "hardest": lambda i, t, s: s * triplet_loss(i, t, 0.5, "hardest"),
}


# ---- formulas


def written_out(queries, keys, scale, positives, keep):
    """InfoNCE with several positives, one number at a time."""
    rows = []
    for i, q in enumerate(queries):
        cosine = [float(q @ k / (q.norm() * k.norm())) for k in keys]
        kept = [j for j in range(len(keys)) if keep[i][j] or positives[i][j]]
        total = sum(math.exp(scale * cosine[j]) for j in kept)
        own = [j for j in range(len(keys)) if positives[i][j]]
        if own:
            shares = [math.log(math.exp(scale * cosine[j]) / total) for j in own]
            rows.append(-sum(shares) / len(shares))
    return sum(rows) / len(rows) if rows else 0.0


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_info_nce_is_its_formula(batch, candidates, seed):
    queries, keys = draw(batch, 3, seed=seed), draw(candidates, 3, seed=seed + 1)
    mask = draw(2, batch, candidates, seed=seed + 2)
    positives, keep = mask[0] > 0.5, mask[1] > -0.5
    found = info_nce(queries, keys, 5.0, positives=positives, keep=keep)
    expected = written_out(queries, keys, 5.0, positives, keep)
    assert found.item() == pytest.approx(expected, abs=1e-10)


def test_explicit_negatives_are_the_same_thing():
    # The form with named negatives of each query (document 000): candidates are its positive and
    # its negatives, and nobody else's.
    queries, positive, negatives = draw(4, 3, seed=1), draw(4, 3, seed=2), draw(4, 6, 3, seed=3)
    scale = 7.0
    cosine = F.cosine_similarity(queries, positive, dim=1)
    others = F.cosine_similarity(queries[:, None], negatives, dim=2)
    fraction = (scale * cosine).exp() / ((scale * cosine).exp() + (scale * others).exp().sum(1))
    keys = torch.cat([positive, negatives.flatten(0, 1)])
    keep = torch.eye(4, dtype=torch.bool)
    keep = torch.cat([keep, keep.repeat_interleave(6, dim=1)], dim=1)
    found = info_nce(queries, keys, scale, keep=keep)
    torch.testing.assert_close(found, -fraction.log().mean())


def test_a_clueless_model_pays_the_logarithm_of_the_batch():
    same = torch.ones(50, 4)
    assert clip_loss(same, same, 10.0).item() == pytest.approx(math.log(50), abs=1e-5)
    assert info_nce(same, same, 10.0).item() == pytest.approx(math.log(50), abs=1e-5)


def test_lengths_do_not_matter():
    stretched = IMAGE * torch.linspace(0.01, 100, 7).double()[:, None]
    for name, loss in LOSSES.items():
        torch.testing.assert_close(loss(stretched, TEXT, 9.0), loss(IMAGE, TEXT, 9.0), msg=name)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_against_finite_differences(name):
    image, text = IMAGE.clone().requires_grad_(), TEXT.clone().requires_grad_()
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(LOSSES[name], (image, text, scale))


def test_clip_is_symmetric_and_info_nce_is_not():
    torch.testing.assert_close(clip_loss(IMAGE, TEXT, 9.0), clip_loss(TEXT, IMAGE, 9.0))
    assert abs(info_nce(IMAGE, TEXT, 9.0) - info_nce(TEXT, IMAGE, 9.0)) > 1e-3
    both = (info_nce(IMAGE, TEXT, 9.0) + info_nce(TEXT, IMAGE, 9.0)) / 2
    torch.testing.assert_close(clip_loss(IMAGE, TEXT, 9.0), both)


# ---- duplicates


def test_a_twin_is_no_negative():
    # Items 0 and 2 are the same picture and the same text; everything else is orthogonal.
    image = torch.eye(4)[[0, 1, 0, 2]]
    asked_to_part = clip_loss(image, image, 30.0)
    together = clip_loss(image, image, 30.0, groups=torch.tensor([0, 1, 0, 2]))
    # Half of the items cannot be told from their twin. Their share is log 2 either way, but ...
    assert asked_to_part.item() == pytest.approx(0.5 * math.log(2), abs=1e-5)
    assert together.item() == pytest.approx(0.5 * math.log(2), abs=1e-5)

    # ... only without groups does the loss still push the twins apart.
    def push(groups):
        moved = (image + 0.1 * draw(4, 4, seed=3, dtype=torch.float32)).requires_grad_()
        clip_loss(moved, moved, 30.0, groups=groups).backward()
        return moved.grad

    assert not torch.allclose(push(None), push(torch.tensor([0, 1, 0, 2])), atol=1e-2)


def test_equal_captions_need_no_groups_in_a_softmax_but_elsewhere():
    """Where twins have one and the same text vector, equal shares leave the gradient as it is."""
    captions = torch.tensor([0, 1, 0, 2, 0, 1, 3])
    table = draw(4, 5, seed=4)

    def gradients(loss, groups):
        image, text = IMAGE.clone().requires_grad_(), table.clone().requires_grad_()
        return torch.autograd.grad(loss(image, text[captions], groups), (image, text))

    def clip(image, text, groups):
        return clip_loss(image, text, 9.0, groups=groups)

    def sigmoid(image, text, groups):
        return siglip_loss(image, text, 9.0, -3.0, groups=groups)

    torch.testing.assert_close(gradients(clip, None), gradients(clip, captions))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(gradients(sigmoid, None), gradients(sigmoid, captions))


def test_groups_are_positives_of_each_other():
    same = GROUPS[:, None] == GROUPS
    one_way = info_nce(IMAGE, TEXT, 9.0, positives=same)
    other = info_nce(TEXT, IMAGE, 9.0, positives=same)
    found = clip_loss(IMAGE, TEXT, 9.0, groups=GROUPS)
    torch.testing.assert_close(found, (one_way + other) / 2)
    torch.testing.assert_close(
        clip_loss(IMAGE, TEXT, 9.0, groups=torch.arange(7) * 5 - 3), clip_loss(IMAGE, TEXT, 9.0)
    )


# ---- nothing to learn from


def test_rows_without_positives_do_not_count():
    positives = torch.eye(7, dtype=torch.bool)
    positives[3] = False
    kept = [0, 1, 2, 4, 5, 6]
    torch.testing.assert_close(
        info_nce(IMAGE, TEXT, 9.0, positives=positives),
        info_nce(IMAGE[kept], TEXT, 9.0, positives=positives[kept]),
    )


def test_nothing_at_all_is_zero_with_zero_gradient():
    image = IMAGE.clone().requires_grad_()
    nothing = torch.zeros(7, 7, dtype=torch.bool)
    loss = info_nce(image, TEXT, 9.0, positives=nothing)
    loss.backward()
    assert loss.item() == 0.0
    assert (image.grad == 0).all()


# ---- precision


@pytest.mark.parametrize("chunk", [None, 3])
def test_autocast_does_not_round_the_logits(chunk):
    image, text = IMAGE.float().requires_grad_(), TEXT.float()
    expected = clip_loss(image, text, 100.0, chunk=chunk)
    (gradient,) = torch.autograd.grad(expected, image)
    with torch.autocast("cpu", torch.bfloat16):
        found = clip_loss(image, text, 100.0, chunk=chunk)
    (found_gradient,) = torch.autograd.grad(found, image)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found_gradient, gradient, rtol=1e-5, atol=1e-6)


def test_bf16_features_are_compared_in_fp32():
    image, text = IMAGE.bfloat16(), TEXT.bfloat16()
    found = clip_loss(image, text, 100.0)
    torch.testing.assert_close(found, clip_loss(image.float(), text.float(), 100.0))


def test_a_scale_of_a_hundred_overflows_nowhere():
    image = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    for chunk in (None, 1):
        loss = clip_loss(image, image.flip(0), 1000.0, chunk=chunk)
        (gradient,) = torch.autograd.grad(loss, image)
        assert loss.item() == pytest.approx(2000.0)
        assert gradient.isfinite().all()


# ---- chunks


@given(st.integers(1, 9), st.integers(1, 10), st.booleans(), st.integers(0, 99))
def test_chunks_change_nothing(batch, chunk, grouped, seed):
    generator = torch.Generator().manual_seed(seed)
    groups = torch.randint(0, 4, (batch,), generator=generator) if grouped else None
    inputs = [draw(batch, 4, seed=seed), draw(batch, 4, seed=seed + 1), torch.tensor(6.0)]
    for loss in (
        lambda i, t, s, chunk: clip_loss(i, t, s, groups=groups, chunk=chunk),
        lambda i, t, s, chunk: siglip_loss(i, t, s, -s / 2, groups=groups, chunk=chunk),
    ):
        values, gradients = [], []
        for size in (None, chunk):
            leaves = [x.detach().clone().double().requires_grad_() for x in inputs]
            value = loss(*leaves, size)
            values.append(value)
            gradients.append(torch.autograd.grad(value, leaves))
        torch.testing.assert_close(values[0], values[1], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-10)


def test_chunked_takes_a_plain_number_as_scale():
    torch.testing.assert_close(clip_loss(IMAGE, TEXT, 9.0, chunk=2), clip_loss(IMAGE, TEXT, 9.0))


def test_only_some_rows_of_the_logits_exist_at_a_time():
    """Of all tensors made on the way, none is larger than ``chunk`` rows of logits."""
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            sizes.extend(
                x.numel()
                for x in (out if isinstance(out, tuple) else (out,))
                if isinstance(x, torch.Tensor)
            )
            return out

    image, text = draw(64, 2, seed=1).requires_grad_(), draw(64, 2, seed=2)
    for loss in (
        lambda chunk: clip_loss(image, text, 9.0, chunk=chunk),
        lambda chunk: siglip_loss(image, text, 9.0, -9.0, chunk=chunk),
    ):
        largest = {}
        for chunk in (None, 8):
            sizes.clear()
            with Watch():
                loss(chunk).backward()
            largest[chunk] = max(sizes)
        assert largest[None] == 64 * 64
        assert largest[8] == 8 * 64


# ---- cached gradients


class Towers(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.image = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Dropout(dropout), nn.Linear(8, 4))
        self.text = nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Dropout(dropout), nn.Linear(8, 4))
        self.scale = LogitScale()

    def forward(self, batch):
        return self.image(batch[0]), self.text(batch[1])


def gradients_of(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_cached_gradients_are_those_of_the_whole_batch(dropout):
    torch.manual_seed(0)
    model = Towers(dropout).double()
    image, text = draw(10, 6, seed=1), draw(10, 5, seed=2)
    chunks = list(zip(image.split(4), text.split(4), strict=True))  # 4, 4, 2

    def loss(image, text):
        return clip_loss(image, text, model.scale())

    torch.manual_seed(5)  # the whole batch, with the dropout of the chunks one after another
    pieces = [model(chunk) for chunk in chunks]
    expected = loss(*(torch.cat(parts) for parts in zip(*pieces, strict=True)))
    expected.backward()
    whole = gradients_of(model)

    model.zero_grad()
    torch.manual_seed(5)
    found = large_batches.cached_backward(model, chunks, loss)
    assert not found.requires_grad
    torch.testing.assert_close(found, expected.detach())
    torch.testing.assert_close(gradients_of(model), whole, rtol=1e-9, atol=1e-12)

    # What most code does instead: the mean over the chunks' own losses.
    model.zero_grad()
    naive = [loss(*model(chunk)) for chunk in chunks]
    (sum(naive) / len(naive)).backward()
    assert expected - sum(naive) / len(naive) > 0.5
    assert (gradients_of(model)["image.0.weight"] - whole["image.0.weight"]).abs().max() > 1e-3


def test_cached_gradients_leave_the_random_state_where_one_pass_would():
    model, chunks = Towers(0.5).double(), [(draw(3, 6, seed=1), draw(3, 5, seed=2))]
    torch.manual_seed(5)
    model(chunks[0])
    after_one_pass = torch.rand(3)
    torch.manual_seed(5)
    large_batches.cached_backward(model, chunks, lambda i, t: clip_loss(i, t, 9.0))
    assert torch.equal(torch.rand(3), after_one_pass)


def test_cached_gradients_add_up():
    model, chunks = Towers().double(), [(draw(3, 6, seed=1), draw(3, 5, seed=2))]
    for _ in range(2):
        large_batches.cached_backward(model, chunks, lambda i, t: clip_loss(i, t, 9.0))
    twice = gradients_of(model)["image.0.weight"]
    model.zero_grad()
    large_batches.cached_backward(model, chunks, lambda i, t: clip_loss(i, t, 9.0))
    torch.testing.assert_close(twice, 2 * gradients_of(model)["image.0.weight"])


# ---- several processes


def rank_gradients(kind, grouped, chunk):
    """Each rank's share of eight pairs through two towers; gradients averaged over the ranks."""
    torch.manual_seed(0)
    model = Towers().double()
    world, me = distributed.world_size(), distributed.rank()
    size = 8 // world
    rows = slice(me * size, (me + 1) * size)
    groups = torch.tensor([0, 1, 2, 0, 3, 1, 4, 0])[rows] if grouped else None
    image, text = model((draw(8, 6, seed=1)[rows], draw(8, 5, seed=2)[rows]))
    options = {"groups": groups, "gather": True, "chunk": chunk}
    if kind == "clip":
        loss = clip_loss(image, text, model.scale(), **options)
    else:
        loss = siglip_loss(image, text, model.scale(), -3.0, **options)
    loss.backward()
    flat = torch.cat([p.grad.flatten() for p in model.parameters()]) / world
    loss = loss.detach() / world
    if world > 1:
        torch.distributed.all_reduce(flat)
        torch.distributed.all_reduce(loss)
    return {"gradient": flat, "loss": loss}


CASES = [
    (kind, grouped, chunk)
    for kind in ("clip", "siglip")
    for grouped in (False, True)
    for chunk in (None, 3)
]


def every_case():
    return [rank_gradients(*case) for case in CASES]


def test_two_processes_have_the_gradients_of_one():
    for rank in distributed.spawn(every_case, 2):
        for case, two, one in zip(CASES, rank, every_case(), strict=True):
            torch.testing.assert_close(two["loss"], one["loss"], msg=str(case))
            cosine = F.cosine_similarity(two["gradient"], one["gradient"], dim=0)
            assert cosine > 1 - 1e-6, case
            assert abs(two["gradient"].norm() / one["gradient"].norm() - 1) < 1e-6, case
            torch.testing.assert_close(two["gradient"], one["gradient"], rtol=1e-9, atol=1e-12)


# ---- the scale


def test_the_scale_is_clamped_learned_and_not_decayed():
    scale = LogitScale()
    assert scale().item() == pytest.approx(1 / 0.07)
    scale().backward()
    assert scale.log_scale.grad.item() == pytest.approx(1 / 0.07)  # d exp(x) / dx
    with torch.no_grad():
        scale.log_scale.fill_(9.0)
    assert scale().item() == pytest.approx(100.0)
    assert scale.log_scale.item() == pytest.approx(math.log(100))  # and can come back at once
    decayed, kept = decay_groups(nn.ModuleList([nn.Linear(2, 2), scale]), 0.1)
    assert [p is scale.log_scale for p in decayed["params"]] == [False]
    assert any(p is scale.log_scale for p in kept["params"])


# ---- bad input

GOOD = torch.zeros(3, 2)
BAD = {
    "rank": (clip_loss, (torch.zeros(3), GOOD, 1.0), {}, ValueError, "image_features must have sh"),
    "empty": (clip_loss, (torch.zeros(0, 2),) * 2 + (1.0,), {}, ValueError, "not empty"),
    "shapes": (clip_loss, (GOOD, torch.zeros(4, 2), 1.0), {}, ValueError, "must have one shape"),
    "ids": (clip_loss, (GOOD.long(), GOOD, 1.0), {}, TypeError, "floating-point numbers: got"),
    "chunk": (clip_loss, (GOOD, GOOD, 1.0), {"chunk": 0}, ValueError, "chunk must be at least 1"),
    "groups": (
        clip_loss,
        (GOOD, GOOD, 1.0),
        {"groups": torch.zeros(2, dtype=torch.long)},
        ValueError,
        "groups must hold 3 whole numbers: got torch.int64, (2,)",
    ),
    "float groups": (
        siglip_loss,
        (GOOD, GOOD, 1.0, 0.0),
        {"groups": GOOD[:, 0]},
        ValueError,
        "gro",
    ),
    "siglip chunk": (siglip_loss, (GOOD, GOOD, 1.0, 0.0), {"chunk": -1}, ValueError, "chunk must"),
    "widths": (siglip_loss, (GOOD, torch.zeros(3, 4), 1.0, 0.0), {}, ValueError, "one shape"),
    "few keys": (info_nce, (GOOD, GOOD[:2], 1.0), {}, ValueError, "got 2 keys for 3 queries"),
    "mask type": (
        info_nce,
        (GOOD, GOOD, 1.0),
        {"keep": torch.ones(3, 3)},
        TypeError,
        "keep must be boolean",
    ),
    "mask shape": (
        info_nce,
        (GOOD, GOOD, 1.0),
        {"positives": torch.ones(3, 2, dtype=torch.bool)},
        ValueError,
        "positives must have shape (3, 3): got (3, 2)",
    ),
    "query width": (
        info_nce,
        (GOOD, torch.zeros(3, 4), 1.0),
        {},
        ValueError,
        "queries and keys must have one dim: got 2 and 4",
    ),
    "no chunks": (
        large_batches.cached_backward,
        (None, [], None),
        {},
        ValueError,
        "at least one chunk",
    ),
}


@pytest.mark.parametrize("function, args, options, error, message", BAD.values(), ids=BAD)
def test_bad_input_is_named(function, args, options, error, message):
    with pytest.raises(error) as caught:
        inspect.unwrap(function)(*args, **options)
    assert message in str(caught.value)


@pytest.mark.parametrize("values", [(0.0, 1.0), (-1.0, 1.0), (2.0, 1.0), (1.0, math.inf)])
def test_bad_scales_are_named(values):
    with pytest.raises(ValueError, match="initial must be above 0 and at most maximum"):
        LogitScale(*values)


def test_inputs_are_left_as_they_were():
    image, text = IMAGE.clone(), TEXT.clone()
    for loss in LOSSES.values():
        loss(image, text, torch.tensor(3.0, dtype=torch.float64, requires_grad=True)).backward()
    assert torch.equal(image, IMAGE)
    assert torch.equal(text, TEXT)
