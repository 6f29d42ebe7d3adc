"""Flow matching: the walks, the best velocity in closed form, the order of the solvers."""

import math

import pytest
import torch

from mmlib.flow_matching import Walk, flow_loss, integrate, walk


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# Data of two correlated numbers, for which everything is known.
MEAN = torch.tensor([1.5, -0.5], dtype=torch.float64)
SPREAD = torch.tensor([[1.2, 0.3], [-0.4, 0.5]], dtype=torch.float64)
COVARIANCE = SPREAD @ SPREAD.T


def data(count, seed=0):
    return MEAN + torch.randn(count, 2, generator=generator(seed), dtype=torch.float64) @ SPREAD.T


def best_velocity(x, time):
    """The mean of data minus noise given the place, by the rule for joint normal variables."""
    t = time[:, None, None]
    eye = torch.eye(2, dtype=torch.float64)
    of_place = (1 - t) ** 2 * eye + t**2 * COVARIANCE
    with_place = t * COVARIANCE - (1 - t) * eye
    slope = with_place @ torch.linalg.inv(of_place)
    return MEAN + (slope @ (x - time[:, None] * MEAN)[..., None])[..., 0]


def test_a_walk_is_a_straight_line_from_noise_to_its_item():
    x = data(20)
    place, time, velocity = walk(x, generator(1))
    assert isinstance(walk(x, generator(1)), Walk)
    assert ((time >= 0) & (time < 1)).all()
    torch.testing.assert_close(place + (1 - time[:, None]) * velocity, x)
    noise = x - velocity
    torch.testing.assert_close(place, noise + time[:, None] * velocity)


def test_noise_is_standard_and_times_are_even():
    x = torch.zeros(20_000, 3)
    _, time, velocity = walk(x, generator(2))
    assert velocity.mean().abs() < 0.02
    assert (velocity.std() - 1).abs() < 0.02
    assert (time.mean() - 0.5).abs() < 0.01
    assert (time.var() - 1 / 12).abs() < 0.003


def test_pictures_walk_too():
    x = torch.rand(4, 3, 5, 5)
    place, time, velocity = walk(x, generator(3))
    torch.testing.assert_close(place + (1 - time.view(-1, 1, 1, 1)) * velocity, x)


@pytest.mark.parametrize("time", [0.1, 0.5, 0.9])
def test_least_squares_finds_the_closed_form(time):
    # At one time the best velocity is a linear function of the place: fit it to many walks.
    x, noise = data(400_000, 1), torch.randn(400_000, 2, generator=generator(9)).double()
    place, wanted = (1 - time) * noise + time * x, x - noise
    columns = torch.cat([place, torch.ones(len(x), 1, dtype=torch.float64)], dim=1)
    fitted = torch.linalg.lstsq(columns, wanted).solution
    probe = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    found = probe @ fitted[:2] + fitted[2]
    expected = best_velocity(probe, torch.full((3,), time, dtype=torch.float64))
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0.02)


def test_the_loss_is_smallest_at_the_closed_form():
    x = data(100_000, 2)

    def loss(change):
        return flow_loss(lambda p, t: change(best_velocity(p, t), p, t), x, generator(4)).item()

    least = loss(lambda v, p, t: v)
    for change in (
        lambda v, p, t: v + 0.1,
        lambda v, p, t: 0.9 * v,
        lambda v, p, t: v + 0.1 * p,
        lambda v, p, t: v + 0.2 * (t[:, None] - 0.5),
    ):
        assert loss(change) > least + 1e-3


def test_the_least_loss_is_the_variance_that_no_velocity_can_explain():
    x = data(200_000, 3)
    found = flow_loss(best_velocity, x, generator(5)).item()
    times = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    t, eye = times[:, None, None], torch.eye(2, dtype=torch.float64)
    of_place = (1 - t) ** 2 * eye + t**2 * COVARIANCE
    with_place = t * COVARIANCE - (1 - t) * eye
    rest = eye + COVARIANCE - with_place @ torch.linalg.inv(of_place) @ with_place.mT
    assert found == pytest.approx(rest.diagonal(dim1=1, dim2=2).mean().item(), rel=0.01)


def test_the_flow_carries_noise_into_the_data():
    noise = torch.randn(20_000, 2, generator=generator(6), dtype=torch.float64)
    out = integrate(best_velocity, noise, 64)
    torch.testing.assert_close(out.mean(0), MEAN, atol=0.03, rtol=0)
    torch.testing.assert_close(out.T.cov(), COVARIANCE, atol=0.05, rtol=0)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2)])
def test_the_error_falls_by_the_order_of_the_method(method, order):
    start = torch.randn(50, 2, generator=generator(7), dtype=torch.float64)

    def swirl(x, t):
        turned = torch.stack([-x[:, 1], x[:, 0]], dim=1)
        return torch.cos(3 * t)[:, None] * turned + 0.5 * x

    # The angle turned is sin(3)/3, the growth e^0.5.
    angle, growth = math.sin(3) / 3, math.exp(0.5)
    turn = torch.tensor(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]],
        dtype=torch.float64,
    )
    truth = growth * start @ turn.T
    errors = [(integrate(swirl, start, n, method) - truth).abs().max() for n in (64, 128)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)


def test_one_euler_step_follows_a_straight_line_to_its_end():
    target = data(5)
    start = torch.randn(5, 2, dtype=torch.float64)
    straight = lambda x, t: target - start  # noqa: E731
    torch.testing.assert_close(integrate(straight, start, 1, "euler"), target)


def test_the_solver_asks_at_the_right_times_and_changes_no_input():
    asked, start = [], torch.ones(3, 2)

    def velocity(x, t):
        asked.append(t[0].item())
        return torch.ones_like(x)

    integrate(velocity, start, 4, "euler")
    assert asked == [0, 0.25, 0.5, 0.75]
    asked.clear()
    integrate(velocity, start, 2)
    assert asked == [0, 0.5, 0.5]  # never at 1: the last step is Euler's
    assert start.equal(torch.ones(3, 2))


def test_the_gradient_reaches_the_velocity():
    x, scale = data(50), torch.ones((), dtype=torch.float64, requires_grad=True)
    found = flow_loss(lambda p, t: scale * p, x, generator(8))
    found.backward()
    place, _, wanted = walk(x, generator(8))
    expected = (2 * (place - wanted) * place).mean()
    torch.testing.assert_close(scale.grad, expected)


def test_the_same_seed_walks_the_same_and_the_global_state_stays():
    state = torch.get_rng_state()
    assert walk(data(5), generator(1)).place.equal(walk(data(5), generator(1)).place)
    assert not walk(data(5), generator(1)).place.equal(walk(data(5), generator(2)).place)
    assert torch.get_rng_state().equal(state)


@pytest.mark.parametrize(
    ("function", "arguments", "error", "word"),
    [
        (walk, (torch.ones(3, 2, dtype=torch.long),), TypeError, "data"),
        (walk, (torch.ones(0, 2),), ValueError, "data"),
        (flow_loss, (lambda x, t: x[:, :1], torch.ones(3, 2)), ValueError, "velocity"),
        (flow_loss, (lambda x, t: x, torch.ones(0, 2)), ValueError, "data"),
        (integrate, (lambda x, t: x, torch.ones(3, 2), 0), ValueError, "steps"),
        (integrate, (lambda x, t: x, torch.ones(3, 2), 2.5), TypeError, "steps"),
        (integrate, (lambda x, t: x, torch.ones(3, 2), 2, "rk4"), ValueError, "method"),
    ],
)
def test_bad_input_is_named(unchecked, function, arguments, error, word):
    with pytest.raises(error, match=word):
        unchecked(function)(*arguments)
