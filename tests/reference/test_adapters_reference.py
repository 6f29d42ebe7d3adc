"""LoRA against peft: forward, gradients, merged and unmerged."""

import copy

import peft
import pytest
import torch
from torch import nn

from mmlib.adapters import Adapters


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.query = nn.Linear(12, 12)
        self.value = nn.Linear(12, 8, bias=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.value(torch.tanh(self.query(x)))))


@pytest.fixture(params=[(1, 1.0), (2, 6.0), (4, 2.0)])
def pair(request):
    """Our model and peft's with the same weights in base, additions and head."""
    rank, alpha = request.param
    torch.manual_seed(0)
    base = Small()
    ours = copy.deepcopy(base)
    adapters = Adapters(ours, ["query", "value"])
    adapters.add("default", rank, alpha)
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=["query", "value"], modules_to_save=["head"]
    )
    theirs = peft.get_peft_model(copy.deepcopy(base), config)
    for name, layer in adapters.layers.items():
        layer.up["default"].data.normal_()
        other = getattr(theirs.base_model.model, name)
        other.lora_A["default"].weight.data.copy_(layer.down["default"])
        other.lora_B["default"].weight.data.copy_(layer.up["default"])
    return ours, adapters, theirs


def test_forward_and_gradients(pair):
    ours, adapters, theirs = pair
    x = torch.randn(7, 12)
    mine, other = ours(x), theirs(x)
    torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6)
    mine.square().sum().backward()
    other.square().sum().backward()
    for name, layer in adapters.layers.items():
        peer = getattr(theirs.base_model.model, name)
        for ours_, theirs_ in ((layer.down, peer.lora_A), (layer.up, peer.lora_B)):
            torch.testing.assert_close(
                ours_["default"].grad, theirs_["default"].weight.grad, rtol=1e-5, atol=1e-5
            )
    own = dict(ours.head.own["default"].named_parameters())
    saved = theirs.base_model.model.head.modules_to_save["default"]
    for name, parameter in saved.named_parameters():
        torch.testing.assert_close(own[name].grad, parameter.grad, rtol=1e-5, atol=1e-5)


def test_what_learns_is_the_same(pair):
    ours, _, theirs = pair
    mine = sum(p.numel() for p in ours.parameters() if p.requires_grad)
    assert mine == sum(p.numel() for p in theirs.parameters() if p.requires_grad)


def test_merged_and_unmerged(pair):
    ours, adapters, theirs = pair
    x = torch.randn(7, 12)
    with torch.no_grad():
        adapters.merge()
        theirs.merge_adapter()
        for name, layer in adapters.layers.items():
            peer = getattr(theirs.base_model.model, name)
            torch.testing.assert_close(
                layer.base.weight, peer.base_layer.weight, rtol=1e-6, atol=1e-6
            )
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-6, atol=1e-6)
        adapters.unmerge()
        theirs.unmerge_adapter()
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-6, atol=1e-6)
        adapters.use(None)
        with theirs.disable_adapter():
            torch.testing.assert_close(ours(x), theirs(x), rtol=1e-6, atol=1e-6)
