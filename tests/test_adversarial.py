"""Adversarial moves: the formulas, the ball, what may not move, and what is put back."""

import inspect

import pytest
import torch
from torch import nn

from mmlib.adversarial import fgm, noise, norms, perturbed, pgd, project


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X = draw(5, 4, 3)
W = draw(4, 3, seed=1)


def linear(x):
    """Its gradient is W for every example: the best move is known."""
    return (x * W).sum()


def bent(x):
    return (torch.sin(3 * x) * W).sum()


def test_fgm_is_the_best_move_where_the_loss_is_linear():
    delta = fgm(linear, X, 0.7)
    torch.testing.assert_close(delta, (0.7 * W / W.norm()).expand_as(X), rtol=1e-5, atol=1e-6)
    gain = linear(X + delta) - linear(X)
    torch.testing.assert_close(gain, 5 * 0.7 * W.norm(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pgd(linear, X, 0.7, steps=4), delta, rtol=1e-5, atol=1e-6)


def test_one_long_step_of_pgd_is_fgm():
    one = pgd(bent, X, 0.5, steps=1, step=0.5)
    torch.testing.assert_close(one, fgm(bent, X, 0.5), rtol=1e-5, atol=1e-6)


def test_the_gradient_is_that_of_finite_differences():
    x = X.double()
    weight = W.double()

    def loss(x):
        return (torch.sin(3 * x) * weight).sum()

    delta = fgm(loss, x, 1.0)
    numeric = torch.zeros_like(x)
    for place in range(12):
        step = torch.zeros(12, dtype=torch.float64)
        step[place] = 1e-6
        step = step.reshape(4, 3)
        for i in range(5):
            more = (torch.sin(3 * (x[i] + step)) * weight).sum()
            less = (torch.sin(3 * (x[i] - step)) * weight).sum()
            numeric[i].view(-1)[place] = (more - less) / 2e-6
    numeric = numeric / norms(numeric)[:, None, None]
    torch.testing.assert_close(delta, numeric, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("epsilon", [0.0, 0.01, 1.0, 30.0])
@pytest.mark.parametrize("steps", [1, 7])
def test_every_move_stays_in_its_ball(epsilon, steps):
    start = draw(5, 4, 3, seed=9) * 100
    for delta in (
        fgm(bent, X, epsilon),
        noise(X, epsilon),
        pgd(bent, X, epsilon, steps),
        pgd(bent, X, epsilon, steps, step=10.0, start=start),
        project(start, epsilon),
    ):
        assert (norms(delta) <= epsilon).all()
        assert delta.isfinite().all()


def test_projection_is_the_nearest_point_and_each_example_has_its_own_ball():
    delta = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    near = project(delta, 1.0)
    torch.testing.assert_close(near, torch.tensor([[0.6, 0.8], [0.3, 0.4]]))
    for other in draw(200, 2, seed=4):
        inside = other / max(1.0, other.norm())
        assert (inside - delta[0]).norm() >= (near[0] - delta[0]).norm() - 1e-5


def test_several_steps_find_more_than_one_where_the_loss_bends():
    generator = torch.Generator().manual_seed(0)
    one = bent(X + fgm(bent, X, 1.5))
    many = bent(X + pgd(bent, X, 1.5, steps=20, step=0.2))
    blind = bent(X + noise(X, 1.5, generator))
    assert many > one + 0.5 and many > blind + 0.5


def test_what_may_not_move_does_not():
    keep = torch.ones(5, 4, 1, dtype=torch.bool)
    keep[:, 2:] = False
    for delta in (
        fgm(linear, X, 0.5, keep),
        pgd(linear, X, 0.5, 3, keep=keep, start=draw(5, 4, 3)),
        noise(X, 0.5, keep=keep),
    ):
        assert (delta[:, 2:] == 0).all() and (delta[:, :2] != 0).all()
    torch.testing.assert_close(norms(fgm(linear, X, 0.5, keep)), torch.full((5,), 0.5))


def test_no_gradient_no_move():
    def half(x):
        return (x[:1] * W).sum()

    delta = fgm(half, X, 1.0)
    assert (delta[1:] == 0).all() and delta.isfinite().all()
    torch.testing.assert_close(norms(fgm(lambda x: 1e-12 * linear(x), X, 1.0)), torch.ones(5))


def test_inputs_and_gradients_of_the_model_are_left_alone():
    model = nn.Linear(3, 2)
    x = X.clone().requires_grad_(True)
    for attack in (fgm, pgd):
        attack(lambda moved: model(moved).sum(), x, 0.5)
    assert x.grad is None and model.weight.grad is None
    assert torch.equal(x, X)


def test_it_works_without_gradients_around():
    with torch.no_grad():
        assert (norms(pgd(bent, X, 0.5)) > 0.4).all()


def test_a_parameter_is_put_back_bit_for_bit():
    table = nn.Parameter(draw(6, 3) * 1e-3)
    before, delta = table.detach().clone(), draw(6, 3, seed=2) * 1e3
    with perturbed(table, delta) as moved:
        torch.testing.assert_close(moved.detach(), before + delta)
    assert torch.equal(table, before)
    # Subtracting instead of restoring would not give this.
    assert not torch.equal((before + delta) - delta, before)
    with pytest.raises(RuntimeError, match="stop"), perturbed(table, delta):
        raise RuntimeError("stop")
    assert torch.equal(table, before)


def test_noise_is_the_seeds_and_points_everywhere():
    one, same = (noise(X, 2.0, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one, same)
    many = noise(torch.zeros(4000, 3), 1.0, torch.Generator().manual_seed(2))
    assert many.mean(0).abs().max() < 0.05


BAD = [
    (project, (X, -1.0), {}, "epsilon"),
    (noise, (X, -1.0), {}, "epsilon"),
    (fgm, (linear, X, -1.0), {}, "epsilon"),
    (pgd, (linear, X, -1.0), {}, "epsilon"),
    (fgm, (linear, X, float("nan")), {}, "epsilon"),
    (pgd, (linear, X, 1.0), {"steps": 0}, "steps"),
]


@pytest.mark.parametrize("function, given, options, words", BAD)
def test_bad_input(function, given, options, words):
    with pytest.raises(ValueError, match=words):
        inspect.unwrap(function)(*given, **options)


def test_a_delta_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="shape"), perturbed(nn.Parameter(W), W[0]):
        pass
