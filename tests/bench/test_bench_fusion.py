"""Fusion beside PyTorch: low rank beside the full tensor, bottlenecks beside one long sequence."""

import torch
from torch import nn

from mmlib.block import TransformerBlock, TransformerConfig
from mmlib.fusion import Bilinear
from mmlib.fusion_tokens import BottleneckLayer

AREA = "Fusion (chapter 4)"


def test_low_rank_beside_the_full_tensor(side_by_side):
    ours, theirs = Bilinear([128, 128], 64, rank=4), nn.Bilinear(128, 128, 64)
    x, y = torch.randn(64, 128), torch.randn(64, 128)
    table = side_by_side(
        "bilinear, 128 x 128 to 64", {"mmlib": lambda: ours([x, y]), "torch": lambda: theirs(x, y)}
    )
    table.at_most("mmlib", "torch", 1.0)


def test_bottlenecks_beside_one_sequence(side_by_side):
    config = TransformerConfig(dim=64, heads=4)
    layer, block = BottleneckLayer(config, 4), TransformerBlock(config)
    tokens = [torch.randn(2, 300, 64) for _ in range(4)]
    keeps = [torch.ones(2, 300, dtype=torch.bool) for _ in tokens]
    shared, all_of_them = torch.randn(2, 4, 64), torch.cat(tokens, dim=1)
    table = side_by_side(
        "four modalities of 300 tokens",
        {
            "bottleneck": lambda: layer(tokens, keeps, shared),
            "one sequence": lambda: block(all_of_them),
        },
    )
    table.at_most("bottleneck", "one sequence", 1.0)
