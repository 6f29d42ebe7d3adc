"""Matching against other libraries: NT-Xent, supervised contrast, torch's bilinear form."""

import pytest
import torch
from torch import nn

from mmlib.matching import Heads, MatchingConfig, matching_loss

losses = pytest.importorskip("pytorch_metric_learning.losses")


def draw(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_loss_is_the_mean_of_two_ntxent():
    image, text = draw(12, 5, seed=1).requires_grad_(), draw(12, 5, seed=2).requires_grad_()
    heads = Heads(5, 5, MatchingConfig(dim=5)).double()
    u, v = heads(image, text)
    scale = heads.scale()
    theirs = losses.NTXentLoss(temperature=1 / scale.item())
    numbers = torch.arange(12)
    expected = (
        theirs(u, numbers, ref_emb=v, ref_labels=numbers.clone())
        + theirs(v, numbers, ref_emb=u, ref_labels=numbers.clone())
    ) / 2
    found = matching_loss(heads.score(u, v))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    gradients = [
        torch.autograd.grad(x, (image, text), retain_graph=True) for x in (found, expected)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


def test_groups_are_supervised_contrastive():
    groups = torch.tensor([0, 1, 0, 2, 1, 3])
    u, v = (nn.functional.normalize(draw(6, 5, seed=s), dim=1) for s in (1, 2))
    theirs = losses.SupConLoss(temperature=1 / 7)
    expected = (
        theirs(u, groups, ref_emb=v, ref_labels=groups.clone())
        + theirs(v, groups, ref_emb=u, ref_labels=groups.clone())
    ) / 2
    torch.testing.assert_close(matching_loss(7 * u @ v.T, groups), expected, rtol=1e-6, atol=1e-6)


def test_bilinear_score_is_torchs():
    heads = Heads(7, 5, MatchingConfig(dim=3, score="bilinear")).double()
    image, text = draw(4, 7, seed=1), draw(4, 5, seed=2)
    seen = nn.functional.layer_norm(image, (7,))
    read = nn.functional.normalize(text, dim=1)
    theirs = nn.functional.bilinear(seen, read, heads.weight[None])[:, 0]
    torch.testing.assert_close(heads.score(*heads(image, text)).diagonal(), theirs)
