"""mmlib's warping beside dtaidistance's (C), dtw-python's (C) and tslearn's (numba).

Their compiled loops over cells set the pace; ours has to show that a batch is one vectorised walk
over the diagonals and not a walk for each pair.
"""

import dtaidistance
import dtw as dtw_python
import numpy as np
import pytest
import torch
from tslearn import metrics

from mmlib.alignment import dtw, soft_dtw

AREA = "Alignment (chapter 6)"


def sequences(batch, length):
    generator = np.random.default_rng(0)
    return generator.normal(size=(2, batch, length))


@pytest.mark.parametrize("batch, length", [(1, 300), (32, 300)])
def test_dtw(side_by_side, batch, length):
    x, y = sequences(batch, length)
    cost = (torch.from_numpy(x)[:, :, None] - torch.from_numpy(y)[:, None]).square()
    contestants = {
        "mmlib": lambda: dtw(cost).distance.sqrt(),
        "dtaidistance": lambda: [
            dtaidistance.dtw.distance_fast(a, b) for a, b in zip(x, y, strict=True)
        ],
        "dtw-python": lambda: [
            dtw_python.dtw(c, step_pattern="symmetric1").distance for c in cost.numpy()
        ],
        "tslearn": lambda: [metrics.dtw_path(a, b)[1] for a, b in zip(x, y, strict=True)],
    }
    contestants["tslearn"]()  # compiled at its first call
    ours = contestants["mmlib"]().tolist()
    np.testing.assert_allclose(ours, contestants["dtaidistance"]())
    np.testing.assert_allclose(ours, contestants["tslearn"]())
    np.testing.assert_allclose(np.square(ours), contestants["dtw-python"]())
    if batch > 1:
        contestants["mmlib, pair by pair"] = lambda: [dtw(one[None]) for one in cost]
    table = side_by_side(f"DTW, {batch} pairs of length {length}", contestants, rounds=20)
    if batch > 1:
        table.at_most("mmlib", "mmlib, pair by pair", 0.5)


@pytest.mark.parametrize("batch, length", [(1, 200), (32, 200)])
def test_soft_dtw_and_its_gradient(side_by_side, batch, length):
    x, y = sequences(batch, length)
    cost = (torch.from_numpy(x)[:, :, None] - torch.from_numpy(y)[:, None]).square()
    cost.requires_grad_()

    def ours():
        return torch.autograd.grad(soft_dtw(cost, 0.5).sum(), cost)[0].numpy()

    def theirs():
        pairs = zip(x, y, strict=True)
        return [metrics.soft_dtw_alignment(a, b, gamma=0.5)[0] for a, b in pairs]

    np.testing.assert_allclose(ours(), theirs(), rtol=1e-6, atol=1e-9)
    contestants = {"mmlib": ours, "tslearn": theirs}
    if batch > 1:

        def pair_by_pair():
            leaves = [one[None].requires_grad_() for one in cost.detach()]
            return [torch.autograd.grad(soft_dtw(leaf, 0.5).sum(), leaf) for leaf in leaves]

        contestants["mmlib, pair by pair"] = pair_by_pair
    title = f"soft-DTW with gradient, {batch} pairs of length {length}"
    table = side_by_side(title, contestants, rounds=20)
    if batch > 1:
        table.at_most("mmlib", "mmlib, pair by pair", 0.5)
