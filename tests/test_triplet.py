"""The triplet loss by hand (gradients: test_contrastive; equality: tests/reference)."""

import pytest
import torch
import torch.nn.functional as F

from mmlib.triplet import MINING, triplet_loss


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


IMAGE, TEXT = draw(7, 5, seed=1), draw(7, 5, seed=2)


def test_triplets_of_a_group_do_not_count():
    every = triplet_loss(IMAGE, TEXT, 2.5)
    assert (triplet_loss(IMAGE, TEXT, 2.5, groups=torch.arange(7)) - every).abs() < 1e-12
    one = torch.zeros(7, dtype=torch.long)
    for mining in MINING:
        assert triplet_loss(IMAGE, TEXT, 2.5, mining, groups=one).item() == 0.0


def test_hardest_is_the_hardest_of_all():
    image, text = F.normalize(IMAGE, dim=1), F.normalize(TEXT, dim=1)
    expected = 0.0
    for i in range(7):
        losses = [
            max(0.0, 0.2 - float(image[i] @ text[i]) + float(image[i] @ text[j]))
            for j in range(7)
            if j != i
        ]
        expected += max(losses) / 7
    found = triplet_loss(IMAGE, TEXT, 0.2, "hardest")
    assert found.item() == pytest.approx(expected, abs=1e-12)


def test_semi_hard_negatives_are_farther_than_the_positive_but_within_the_margin():
    anchors = torch.tensor([[1.0, 0.0]] * 4)
    # Cosines of the first anchor: 0.6 with its own, then harder, semi-hard, easy.
    cosine = torch.tensor([0.6, 0.8, 0.55, -1.0])
    candidates = torch.stack([cosine, (1 - cosine.square()).sqrt()], dim=1)
    groups = torch.tensor([0, 1, 2, 3])
    losses = {i: 0.3 - cosine[i] + cosine for i in range(4)}
    expected = []
    for i, row in losses.items():
        expected += [row[j] for j in range(4) if i != j and 0 < cosine[i] - cosine[j] < 0.3]
    assert len(expected) == 3
    found = triplet_loss(anchors, candidates, 0.3, "semi-hard", groups=groups)
    torch.testing.assert_close(found, sum(expected) / len(expected))


GOOD = torch.zeros(3, 2)
BAD = {
    "margin": (triplet_loss, (GOOD, GOOD, 0.0), {}, ValueError, "margin must be above 0: got 0.0"),
    "mining": (
        triplet_loss,
        (GOOD, GOOD, 0.1, "easy"),
        {},
        ValueError,
        "mining must be one of",
    ),
    "anchors": (triplet_loss, (GOOD[0], GOOD), {}, ValueError, "anchors must have shape"),
}


@pytest.mark.parametrize("function, args, options, error, message", BAD.values(), ids=BAD)
def test_bad_input_is_named(function, args, options, error, message, unchecked):
    with pytest.raises(error) as caught:
        unchecked(function)(*args, **options)
    assert message in str(caught.value)
