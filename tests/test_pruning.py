"""Pruning: which weights go, that they stay away, and that whole units go without a trace."""

import copy

import pytest
import torch
import torch.nn.utils.prune as torch_prune
from torch import nn

from mmlib.pruning import (
    MaskKeeper,
    magnitude_masks,
    prune_hidden,
    sparsity,
    unit_importance,
)


def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 16), nn.GELU(),
        nn.Linear(16, 4),
    )  # fmt: skip


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_equal_to_torch_global_pruning(share):
    model = network()
    masks = magnitude_masks(model, share)
    theirs = copy.deepcopy(model)
    torch_prune.global_unstructured(
        [(theirs[i], "weight") for i in (0, 3, 5)],
        pruning_method=torch_prune.L1Unstructured,
        amount=share,
    )
    assert set(masks) == {"0.weight", "3.weight", "5.weight"}
    for i in (0, 3, 5):
        assert torch.equal(masks[f"{i}.weight"], theirs[i].weight_mask.bool())


def test_ties_do_not_change_the_number():
    layer = nn.Linear(10, 10)
    nn.init.ones_(layer.weight)
    assert int(magnitude_masks(layer, 0.37)["weight"].sum()) == 63


def test_what_went_stays_away_while_training():
    model = network()
    keeper = MaskKeeper(model, magnitude_masks(model, 0.8))
    assert sparsity(model) == pytest.approx(0.8, abs=0.001)
    zero = {name: p == 0 for name, p in model.named_parameters() if p.ndim > 1}
    before = model[3].weight.clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(5, 3, 4, 4)).square().mean().backward()
        optimizer.step()
        keeper.apply()
    parameters = dict(model.named_parameters())
    assert all(bool((parameters[name][mask] == 0).all()) for name, mask in zero.items())
    assert not torch.equal(model[3].weight, before)


def test_without_the_keeper_they_come_back():
    model = network()
    MaskKeeper(model, magnitude_masks(model, 0.8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(5, 3, 4, 4)).square().mean().backward()
    optimizer.step()
    assert sparsity(model) < 0.5


def test_dead_units_go_without_a_trace():
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3)).double()
    dead = [1, 4, 5, 9]
    with torch.no_grad():
        model[0].weight[dead[:2]] = model[0].bias[dead[:2]] = 0
        model[2].weight[:, dead[2:]] = 0
    small = prune_hidden(model, [("0", "2")], share=0.4)
    assert (small[0].out_features, small[2].in_features) == (6, 6)
    x = torch.randn(20, 6).double()
    assert torch.allclose(small(x), model(x), atol=1e-12)
    assert model[0].out_features == 10


def test_the_units_that_stay_are_the_important_ones_in_their_order():
    model = nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 2, bias=False))
    importance = unit_importance(model[0], model[1])
    by_hand = [
        float((model[0].weight[h] ** 2).sum().sqrt() * (model[1].weight[:, h] ** 2).sum().sqrt())
        for h in range(8)
    ]
    assert importance.tolist() == pytest.approx(by_hand, rel=1e-5)
    stay = sorted(sorted(range(8), key=lambda h: -by_hand[h])[:4])
    small = prune_hidden(model, [("0", "1")], 0.5)
    assert torch.equal(small[0].weight, model[0].weight[stay])
    assert torch.equal(small[0].bias, model[0].bias[stay])
    assert torch.equal(small[1].weight, model[1].weight[:, stay])
    assert small[1].bias is None


def test_a_pruned_model_can_be_trained():
    small = prune_hidden(nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 2)), [("0", "1")], 0.9)
    assert small[0].out_features == 1
    small(torch.randn(3, 5)).sum().backward()
    assert small[0].weight.grad is not None


BAD = {
    "share 1": (lambda: magnitude_masks(network(), 1.0), ValueError, "share"),
    "share below 0": (lambda: magnitude_masks(network(), -0.1), ValueError, "share"),
    "nothing to prune": (lambda: magnitude_masks(nn.ReLU(), 0.5), ValueError, "got none"),
    "unknown name": (
        lambda: MaskKeeper(network(), {"x": torch.ones(1, dtype=torch.bool)}),
        KeyError,
        "x",
    ),
    "hidden share": (lambda: prune_hidden(network(), [("3", "5")], 1.0), ValueError, "share"),
    "no linear layer": (lambda: prune_hidden(network(), [("0", "3")], 0.5), TypeError, "Conv2d"),
    "not in a row": (
        lambda: prune_hidden(network(), [("5", "3")], 0.5),
        ValueError,
        "4 outputs and 32 inputs",
    ),
}


@pytest.mark.parametrize("call, error, words", BAD.values(), ids=BAD)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()
