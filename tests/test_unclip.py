"""The two flows of DALL·E 2: conditions, velocities, guidance, learning, bad input."""

import math

import pytest
import torch
import torch.nn.functional as F

from mmlib import unclip
from mmlib.flow_matching import flow_loss
from mmlib.unclip import PictureFlow, Prior, UnclipConfig, draw_flow, time_features

CONFIG = UnclipConfig(vector=6, prior_dim=16, prior_blocks=2, size=8, width=16, condition=12)
FLOWS = {"prior": (Prior, (6,)), "decoder": (PictureFlow, (3, 8, 8))}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def small(name, dtype=torch.float64):
    torch.manual_seed(0)
    flow, shape = FLOWS[name]
    model = flow(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.to(dtype).eval(), shape


def vectors(count=4, seed=1, dtype=torch.float64):
    return torch.randn(count, 6, generator=generator(seed), dtype=dtype)


def test_time_features_by_hand():
    found = time_features(torch.tensor([0.0, 1.0], dtype=torch.float64), 4)
    expected = [[0, 0, 1, 1], [1, math.sin(32 * math.pi), 0, 1]]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    near = time_features(torch.tensor([0.50, 0.51]), 32)
    assert (near[0] - near[1]).norm() > 0.3  # a hundredth can be told apart


@pytest.mark.parametrize("name", FLOWS)
def test_conditions_have_unit_size_and_the_dropped_are_the_learned_one(name):
    model, _ = small(name)
    x = vectors()
    out = model.conditions(x)
    torch.testing.assert_close(out.square().mean(1), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(out, model.conditions(3 * x))
    drop = torch.tensor([True, False, False, True])
    mixed = model.conditions(x, drop)
    assert mixed[1:3].equal(out[1:3])
    assert mixed[0].equal(model.nothing)
    assert mixed[3].equal(model.nothing)


@pytest.mark.parametrize("name", FLOWS)
def test_the_velocity_leads_to_what_the_network_expects(name):
    model, shape = small(name)
    place = torch.randn(4, *shape, dtype=torch.float64)
    time = torch.tensor([0.0, 0.3, 0.9, 0.999], dtype=torch.float64)
    given = model.conditions(vectors())
    there = model.denoise(place, time, given)
    velocity = model.velocity(place, time, given)
    left = (1 - time).reshape(-1, *[1] * len(shape))
    torch.testing.assert_close((place + left * velocity)[:3], there[:3])
    # At the end the error is divided by 0.05, not by 0.001.
    torch.testing.assert_close(velocity[3], (there[3] - place[3]) / 0.05)


@pytest.mark.parametrize("name", FLOWS)
def test_the_loss_is_the_flow_s_on_scaled_data(name):
    model, shape = small(name)
    x, given = torch.rand(4, *shape, dtype=torch.float64), vectors()
    drop = torch.tensor([True, False, False, False])
    condition = torch.cat([model.nothing[None], F.normalize(given[1:], dim=1) * math.sqrt(6)])
    data = F.normalize(x, dim=1) * math.sqrt(6) if name == "prior" else 2 * x - 1
    expected = flow_loss(lambda p, t: model.velocity(p, t, condition), data, generator(3))
    torch.testing.assert_close(model.loss(x, given, drop, generator(3)), expected)


@pytest.mark.parametrize("name", FLOWS)
def test_every_parameter_gets_a_gradient(name):
    model, shape = small(name)
    drop = torch.tensor([True, False, False, False])
    model.loss(torch.rand(4, *shape, dtype=torch.float64), vectors(), drop, generator()).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("guidance", [0.0, 1.0, 3.0])
def test_drawing_is_one_step_of_the_guided_velocity(name, guidance):
    model, shape = small(name)
    given = vectors()
    found = draw_flow(model, given, shape, generator(5), guidance=guidance, steps=1, method="euler")
    noise, zero = torch.randn(4, *shape, generator=generator(5)).double(), torch.zeros(4).double()
    with torch.no_grad():
        with_it = model.velocity(noise, zero, model.conditions(given))
        without = model.velocity(noise, zero, model.nothing.expand(4, -1))
    torch.testing.assert_close(found, noise + without + guidance * (with_it - without))


@pytest.mark.parametrize("name", FLOWS)
def test_drawing_depends_on_the_seed_alone(name):
    model, shape = small(name)
    given, state = vectors(), torch.get_rng_state()
    first = draw_flow(model, given, shape, generator(1), steps=2)
    assert first.equal(draw_flow(model, given, shape, generator(1), steps=2))
    assert not first.equal(draw_flow(model, given, shape, generator(2), steps=2))
    assert torch.get_rng_state().equal(state)


def test_a_prior_learns_where_pictures_lie():
    # A picture's vector is its text's, turned, or its opposite: two answers for one condition.
    torch.manual_seed(0)
    prior = Prior(UnclipConfig(vector=2, prior_dim=64, prior_blocks=2))
    turn, dice = torch.tensor([[0.0, 1.0], [-1.0, 0.0]]), generator(7)
    optimizer = torch.optim.AdamW(prior.parameters(), 5e-3)
    for _ in range(400):
        text = F.normalize(torch.randn(256, 2, generator=dice), dim=1)
        sign = 2.0 * torch.randint(2, (256, 1), generator=dice) - 1
        optimizer.zero_grad()
        prior.loss(sign * text @ turn, text, None, dice).backward()
        optimizer.step()
    text = F.normalize(torch.randn(500, 2, generator=dice), dim=1)
    drawn = F.normalize(draw_flow(prior, text, (2,), dice, steps=16), dim=1)
    cosine = (drawn * (text @ turn)).sum(1)
    assert (cosine.abs() > 0.9).float().mean() > 0.5  # by chance 0.29
    assert 0.35 < (cosine > 0).float().mean() < 0.65


X = torch.rand(2, 3, 8, 8)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda u: u(time_features)(torch.ones(2), 3), "dim"),
        (lambda u: small("decoder")[0].conditions(torch.ones(2, 5)), "vectors"),
        (lambda u: small("prior")[0].conditions(torch.ones(2, 6), torch.ones(3).bool()), "drop"),
        (lambda u: u(PictureFlow.loss)(small("decoder")[0], X[..., :4], vectors(2)), "pictures"),
        (lambda u: u(Prior.loss)(small("prior")[0], torch.ones(2, 5), vectors(2)), "vectors"),
        (lambda u: u(draw_flow)(small("prior")[0], torch.ones(2, 5), (6,)), "vectors"),
        (lambda u: u(draw_flow)(small("prior")[0], vectors(2), (6,), guidance=math.nan), "scale"),
        (lambda u: u(draw_flow)(small("prior")[0], vectors(2), (6,), steps=0), "steps"),
        (lambda u: u(draw_flow)(small("prior")[0], vectors(2), (6,), method="rk4"), "method"),
    ],
)
def test_bad_input_is_named(unchecked, call, word):
    with pytest.raises(ValueError, match=word):
        call(unchecked)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        *(({name: 0}, name) for name in ("vector", "prior_dim", "prior_blocks", "size")),
        *(({name: 0}, name) for name in ("channels", "condition", "width")),
        ({"size": 30}, "size"),
        ({"width": 12}, "width"),
    ],
)
def test_bad_sizes_are_named(change, word):
    with pytest.raises(ValueError, match=word):
        UnclipConfig(**change)


def test_the_least_time_left_is_that_of_the_test():
    assert unclip.LEAST_TIME_LEFT == 0.05
