"""Early, late, hybrid: one budget, no influence of what is missing, and late is additive."""

import dataclasses
import itertools
from dataclasses import replace

import pytest
import torch

from mmlib.encoders.encoded import Encoded
from mmlib.fusion_models import (
    FusionConfig,
    FusionModel,
    count_parameters,
    drop_modalities,
    matched,
    without,
)

NAMES = (("text", 6), ("image", 5), ("voice", 4))
LENGTHS = {"text": 4, "image": 1, "voice": 3}
KINDS = {
    "early": {"kind": "early"},
    "late": {"kind": "late"},
    "bottleneck": {"exchange": "bottleneck", "operator": "gate"},
    "attention": {"exchange": "attention", "operator": "product"},
    "apart": {"exchange": "none", "operator": "bilinear"},
    "later": {"exchange": "bottleneck", "exchange_from": 1, "layers": 3, "head": "linear"},
}


def config(kind, **changes):
    return FusionConfig(NAMES, dim=8, heads=2, mlp_dim=8, **KINDS[kind], **changes)


def batch(size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, width in NAMES:
        tokens = torch.randn(size, LENGTHS[name], width, generator=generator)
        keep = torch.ones(size, LENGTHS[name], dtype=torch.bool)
        keep[::2, 1:] = False  # padding
        found[name] = Encoded(tokens, keep, tokens.mean(dim=1))
    return found


def missing(name):
    """All eight ways to lack modalities, one a row."""
    place = [n for n, _ in NAMES].index(name)
    return torch.tensor([row[place] for row in itertools.product([False, True], repeat=3)])


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_missing_has_no_influence(kind):
    model = FusionModel(config(kind)).double()
    rows = {n: without(e, missing(n)) for n, e in batch().items()}
    rows = {n: e._replace(tokens=e.tokens.double()) for n, e in rows.items()}
    expected = model(rows)
    assert expected.isfinite().all()
    nonsense = {
        n: e._replace(tokens=e.tokens.masked_fill(~e.keep[..., None], float("nan")))
        for n, e in rows.items()
    }
    assert torch.equal(model(nonsense), expected)
    for index, keeps in enumerate(itertools.product([True, False], repeat=3)):
        there = {n: Encoded(*(part[index : index + 1] for part in e[:3]))
                 for (n, e), keep in zip(rows.items(), keeps, strict=True) if keep}  # fmt: skip
        if there:  # alone in its batch, and with no entry for what it lacks
            torch.testing.assert_close(model(there), expected[index : index + 1])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite_even_without_any_modality(kind):
    model = FusionModel(config(kind))
    rows = {n: without(e, missing(n)) for n, e in batch().items()}
    model(rows).square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_every_modality_has_influence_on_every_other_kind_of_output(kind):
    model, given = FusionModel(config(kind)), batch()
    for name in given:
        changed = given | {name: given[name]._replace(tokens=given[name].tokens.flip(0))}
        assert (model(changed) - model(given)).abs().max() > 1e-6


def interaction(model):
    """f(a, b) - f(a, b') - f(a', b) + f(a', b') of two modalities."""
    one, two = batch(seed=1), batch(seed=2)
    f = [
        model({"text": x["text"], "image": y["image"]})
        for x, y in itertools.product((one, two), repeat=2)
    ]
    return (f[0] - f[1] - f[2] + f[3]).abs().max().item()


@pytest.mark.parametrize("kind", KINDS)
def test_late_fusion_alone_is_a_sum_of_functions_of_each(kind):
    size = interaction(FusionModel(config(kind)).double().float())
    assert size < 1e-5 if kind == "late" else size > 1e-4


def test_late_fusion_averages_the_logits_of_what_is_there():
    model, given = FusionModel(config("late")), batch()
    alone = [model({name: given[name]}) for name in given]
    torch.testing.assert_close(model(given), sum(alone) / 3)
    two = given | {"voice": without(given["voice"], torch.ones(8, dtype=torch.bool))}
    torch.testing.assert_close(model(two), (alone[0] + alone[1]) / 2)


@pytest.mark.parametrize("kind", KINDS)
def test_all_have_the_same_budget(kind):
    def real(width):
        return FusionConfig(NAMES, dim=width, mlp_dim=2 * width, **KINDS[kind])

    for width in (32, 64):
        budget = count_parameters(FusionConfig(NAMES, dim=width, kind="late", mlp_dim=4 * width))
        chosen = matched(real(width), budget)
        count = sum(p.numel() for p in FusionModel(chosen).parameters())
        assert count == count_parameters(chosen)
        assert abs(count / budget - 1) < 0.01
        nearest = [count_parameters(replace(chosen, mlp_dim=chosen.mlp_dim + d)) for d in (-1, 1)]
        assert all(abs(other - budget) >= abs(count - budget) for other in nearest)


def test_modality_dropout_spares_one_and_drops_at_the_rate_asked_for():
    given = batch(4000)
    before = {n: e.tokens.clone() for n, e in given.items()}
    out = drop_modalities(given, 0.3, generator=torch.Generator().manual_seed(0))
    there = torch.stack([e.keep.any(dim=1) for e in out.values()], dim=1)
    assert there.any(dim=1).all()
    # A modality is gone when it was drawn, unless all were and it was spared: 0.3 - 0.027 / 3.
    torch.testing.assert_close((~there).float().mean(dim=0), torch.full((3,), 0.291),
                               atol=0.02, rtol=0)  # fmt: skip
    for name, kept in zip(out, there.T, strict=True):
        assert torch.equal(out[name].tokens[kept], given[name].tokens[kept])
        assert not out[name].tokens[~kept].any() and not out[name].pooled[~kept].any()
        assert torch.equal(given[name].tokens, before[name])


def test_modality_dropout_of_zero_and_the_same_seed():
    given = batch()
    zero = drop_modalities(given, 0.0, generator=torch.Generator())
    assert all(torch.equal(zero[n].tokens, given[n].tokens) for n in given)
    one, two = (
        drop_modalities(given, 0.5, generator=torch.Generator().manual_seed(3)) for _ in range(2)
    )
    assert all(torch.equal(one[n].keep, two[n].keep) for n in given)


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"modalities": ()}, "modalities"),
        ({"modalities": (("a", 2), ("a", 3))}, "different names"),
        ({"modalities": (("a", 0),)}, "widths"),
        ({"layers": 0}, "layers"),
        ({"outputs": 0}, "outputs"),
        ({"bottlenecks": 0}, "bottlenecks"),
        ({"mlp_dim": 0}, "mlp_dim"),
        ({"exchange_from": 1}, "exchange_from must lie from 0 to 0"),
        ({"exchange_from": 2, "exchange": "none"}, "exchange_from must lie from 0 to 1"),
        ({"kind": "middle"}, "kind"),
        ({"exchange": "mail"}, "exchange"),
        ({"operator": "sum"}, "operator"),
        ({"head": "big"}, "head"),
        ({"heads": 3}, "heads must divide"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_bad_configurations_are_named(changes, match, unchecked):
    fields = {f.name: f.default for f in dataclasses.fields(FusionConfig)}
    made = object.__new__(FusionConfig)  # past the shape checks, to our own
    for name, value in (fields | {"modalities": NAMES} | changes).items():
        object.__setattr__(made, name, value)
    with pytest.raises(ValueError, match=match):
        unchecked(FusionConfig.__post_init__)(made)


@pytest.mark.parametrize(
    "call, error, match",
    [
        (lambda f: FusionModel(config("late"))({}), ValueError, "nothing"),
        (lambda f: FusionModel(config("late"))({"smell": batch()["text"]}), ValueError, "smell"),
        (lambda f: FusionModel(config("late"))({"text": batch()["image"]}), ValueError, "text"),
        (
            lambda f: FusionModel(config("late"))(
                {"text": batch(2)["text"], "image": batch(3)["image"]}
            ),
            ValueError,
            "image must have shape",
        ),
        (lambda f: matched(config("late"), 10), ValueError, "budget"),
        (lambda f: f(without)(batch()["text"], torch.zeros(8)), TypeError, "boolean"),
        (lambda f: f(without)(batch()["text"], torch.ones(3) > 0), ValueError, "missing"),
        (
            lambda f: drop_modalities(batch(), 1.0, generator=torch.Generator()),
            ValueError,
            "probability",
        ),
        (lambda f: drop_modalities({}, 0.1, generator=torch.Generator()), ValueError, "at least"),
    ],
)
def test_bad_input_is_named(call, error, match, unchecked):
    with pytest.raises(error, match=match):
        call(unchecked)
