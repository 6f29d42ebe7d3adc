"""Contrastive losses are equal to open_clip's and pytorch-metric-learning's, with gradients."""

import open_clip.loss
import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import distances, losses, miners, reducers

from mmlib.contrastive import clip_loss, info_nce, siglip_loss
from mmlib.triplet import triplet_loss

# pytorch-metric-learning takes labels and ref_labels that are one object for a sign that both
# sides are the same items, and leaves out the pairs of equal number: hence the clones.


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def compare(ours, theirs, *inputs):
    results = []
    for function in (ours, theirs):
        leaves = [x.clone().requires_grad_() for x in inputs]
        loss = function(*leaves)
        results.append((loss.detach(), torch.autograd.grad(loss, leaves)))
    (value, gradients), (their_value, their_gradients) = results
    torch.testing.assert_close(value, their_value, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradients, their_gradients, rtol=1e-9, atol=1e-10)


IMAGE, TEXT = draw(12, 6, seed=1), draw(12, 6, seed=2)
SCALE, BIAS = torch.tensor(14.0).double(), torch.tensor(-6.0).double()
LABELS = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 0, 0, 1, 3])


@pytest.mark.parametrize("chunk", [None, 5])
def test_clip_loss_equals_open_clip(chunk):
    theirs = open_clip.loss.ClipLoss()

    def reference(image, text, scale):
        return theirs(F.normalize(image, dim=1), F.normalize(text, dim=1), scale)

    compare(
        lambda image, text, scale: clip_loss(image, text, scale, chunk=chunk),
        reference,
        IMAGE,
        TEXT,
        SCALE,
    )


@pytest.mark.parametrize("chunk", [None, 5])
def test_siglip_loss_equals_open_clip(chunk):
    theirs = open_clip.loss.SigLipLoss()

    def reference(image, text, scale, bias):
        return theirs(F.normalize(image, dim=1), F.normalize(text, dim=1), scale, bias)

    compare(
        lambda image, text, scale, bias: siglip_loss(image, text, scale, bias, chunk=chunk),
        reference,
        IMAGE,
        TEXT,
        SCALE,
        BIAS,
    )


def test_info_nce_equals_ntxent():
    theirs = losses.NTXentLoss(temperature=1 / 14)
    numbers = torch.arange(12)

    def reference(queries, keys):
        return theirs(queries, numbers, ref_emb=keys, ref_labels=numbers.clone())

    compare(lambda queries, keys: info_nce(queries, keys, 14.0), reference, IMAGE, TEXT)


def test_several_positives_equal_supervised_contrastive():
    theirs = losses.SupConLoss(temperature=1 / 14)

    def reference(queries, keys):
        return theirs(queries, LABELS, ref_emb=keys, ref_labels=LABELS.clone())

    same = LABELS[:, None] == LABELS
    compare(
        lambda queries, keys: info_nce(queries, keys, 14.0, positives=same),
        reference,
        IMAGE,
        TEXT,
    )


@pytest.mark.parametrize("mining", ["all", "semi-hard"])
def test_triplet_loss_equals_pytorch_metric_learning(mining):
    # A margin at which some triplets are easy, some semi-hard and some hard.
    cosine = distances.CosineSimilarity()
    theirs = losses.TripletMarginLoss(0.4, distance=cosine, reducer=reducers.MeanReducer())
    miner = miners.TripletMarginMiner(
        0.4, type_of_triplets="all" if mining == "all" else "semihard", distance=cosine
    )
    numbers = torch.arange(12)
    if mining == "all":  # their miner leaves out the triplets without loss
        anchor, negative = (~torch.eye(12, dtype=torch.bool)).nonzero(as_tuple=True)
        triplets = (anchor, anchor, negative)
    else:
        triplets = miner(IMAGE, numbers, TEXT, numbers.clone())
        assert 5 < len(triplets[0]) < 12 * 11 - 5

    def reference(anchors, candidates):
        return theirs(anchors, numbers, triplets, ref_emb=candidates, ref_labels=numbers.clone())

    compare(lambda a, c: triplet_loss(a, c, 0.4, mining), reference, IMAGE, TEXT)
