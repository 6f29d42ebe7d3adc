"""LoRA beside peft: a step of training costs no more, and merged it costs what the base costs."""

import copy

import peft
import torch
from torch import nn

from mmlib.adapters import Adapters

AREA = "LoRA (chapter 13)"


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(512, 512), nn.Linear(512, 512)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


def test_a_step_beside_peft(side_by_side):
    base, x = Net(), torch.randn(256, 512)
    config = peft.LoraConfig(r=8, lora_alpha=8, target_modules=["first", "second"])
    theirs = peft.get_peft_model(copy.deepcopy(base), config)
    ours = copy.deepcopy(base)
    Adapters(ours, ["first", "second"], heads=[]).add("a", rank=8, alpha=8.0)
    table = side_by_side(
        "LoRA, rank 8, forward and backward",
        {"mmlib": lambda: ours(x).sum().backward(), "peft": lambda: theirs(x).sum().backward()},
    )
    table.at_most("mmlib", "peft", 1.15)


def test_merged_costs_what_the_base_costs(side_by_side):
    base, x = Net(), torch.randn(256, 512)
    ours = copy.deepcopy(base)
    adapters = Adapters(ours, ["first", "second"], heads=[])
    adapters.add("a", rank=8)
    adapters.merge()
    with torch.no_grad():
        table = side_by_side(
            "LoRA merged, forward", {"merged": lambda: ours(x), "base": lambda: base(x)}
        )
    table.at_most("merged", "base", 1.15)
