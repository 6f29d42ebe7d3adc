"""The two flows of DALL·E 2: conditions, velocities, codes, guidance, learning, bad input."""

import math

import pytest
import torch
import torch.nn.functional as F

from mmlib import unclip
from mmlib.flow_matching import walk
from mmlib.unclip import CodeFlow, Prior, UnclipConfig, draw_flow, time_features

CONFIG = UnclipConfig(vector=6, prior_dim=16, prior_blocks=2, side=2, dim=24, heads=3, layers=2)
CODES, CODE_DIM = 9, 5
SHAPES = {"prior": (6,), "decoder": (4, CODE_DIM)}
PARTS = {"prior": 1, "decoder": 2}
FLOWS = tuple(SHAPES)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def small(name, dtype=torch.float64):
    torch.manual_seed(0)
    made = Prior(CONFIG) if name == "prior" else CodeFlow(CONFIG, torch.randn(CODES, CODE_DIM))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return made.to(dtype).eval(), SHAPES[name]


def vectors(name, count=4, seed=1, dtype=torch.float64):
    return torch.randn(count, PARTS[name], 6, generator=generator(seed), dtype=dtype)


def some_codes(count=4, seed=2):
    return torch.randint(CODES, (count, 4), generator=generator(seed))


def loss(name, model, drop=None, seed=3):
    x = torch.rand(4, 6, dtype=torch.float64) if name == "prior" else some_codes()
    return model.loss(x, vectors(name), drop, generator(seed))


def test_time_features_by_hand():
    found = time_features(torch.tensor([0.0, 1.0], dtype=torch.float64), 4)
    expected = [[0, 0, 1, 1], [1, math.sin(32 * math.pi), 0, 1]]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    near = time_features(torch.tensor([0.50, 0.51]), 32)
    assert (near[0] - near[1]).norm() > 0.3  # a hundredth can be told apart


@pytest.mark.parametrize("name", FLOWS)
def test_conditions_have_unit_size_and_the_dropped_are_the_learned_ones(name):
    model, _ = small(name)
    x = vectors(name)
    out = model.conditions(x)
    torch.testing.assert_close(out.square().mean(2), torch.ones(4, PARTS[name]).double())
    torch.testing.assert_close(out, model.conditions(3 * x))
    drop = torch.tensor([[True], [False], [False], [True]]).expand(4, PARTS[name]).clone()
    drop[3, 1:] = False  # of the last one, the first part alone
    mixed = model.conditions(x, drop)
    assert mixed[1:3].equal(out[1:3])
    assert mixed[0].equal(model.nothing)
    assert mixed[3, 0].equal(model.nothing[0])
    assert mixed[3, 1:].equal(out[3, 1:])


@pytest.mark.parametrize("name", FLOWS)
def test_the_velocity_leads_to_what_the_network_expects(name):
    model, shape = small(name)
    place = torch.randn(4, *shape, dtype=torch.float64)
    time = torch.tensor([0.0, 0.3, 0.9, 0.999], dtype=torch.float64)
    given = model.conditions(vectors(name))
    there = model.denoise(place, time, given)
    velocity = model.velocity(place, time, given)
    left = (1 - time).reshape(-1, *[1] * len(shape))
    torch.testing.assert_close((place + left * velocity)[:3], there[:3])
    # At the end the error is divided by 0.05, not by 0.001.
    torch.testing.assert_close(velocity[3], (there[3] - place[3]) / 0.05)


def test_the_prior_s_loss_is_that_of_velocities_without_its_weight():
    model, _ = small("prior")
    x, given = torch.rand(4, 6, dtype=torch.float64), vectors("prior")
    drop = torch.tensor([[True], [False], [False], [False]])
    unit = F.normalize(given[1:], dim=2) * math.sqrt(6)
    condition = torch.cat([model.nothing[None], unit])
    place, time, velocity = walk(F.normalize(x, dim=1) * math.sqrt(6), generator(3))
    left = 1 - time[:, None]
    assert left.min() > unclip.LEAST_TIME_LEFT  # below it the velocity is another
    error = left * (model.velocity(place, time, condition) - velocity)
    torch.testing.assert_close(model.loss(x, given, drop, generator(3)), error.square().mean())


def test_the_decoder_s_loss_is_torch_s_cross_entropy_behind_noisy_codes():
    model, _ = small("decoder")
    given, codes = vectors("decoder"), some_codes()
    drop = torch.tensor([[True, True], [True, False], [False, True], [False, False]])
    place, time, _ = walk(model.table[codes], generator(3))
    logits = model.logits(place, time, model.conditions(given, drop))
    expected = F.cross_entropy(logits.transpose(1, 2), codes).float()
    torch.testing.assert_close(model.loss(codes, given, drop, generator(3)), expected)


def test_the_table_is_the_codebook_at_half_the_noise_s_spread():
    torch.manual_seed(0)
    codebook = 3 + 7 * torch.randn(CODES, CODE_DIM)
    table = CodeFlow(CONFIG, codebook).table
    expected = (codebook - codebook.mean(0)) * 0.5
    torch.testing.assert_close(
        table, expected / (codebook - codebook.mean(0)).square().mean() ** 0.5
    )
    assert table.square().mean().sqrt().item() == pytest.approx(0.5)


def test_the_decoder_expects_a_mean_of_codes():
    model, shape = small("decoder")
    place, time = torch.randn(4, *shape, dtype=torch.float64), torch.rand(4).double()
    given = model.conditions(vectors("decoder"))
    probs = model.logits(place, time, given).float().softmax(-1).double()
    by_hand = sum(probs[..., k, None] * model.table[k] for k in range(CODES))
    torch.testing.assert_close(model.denoise(place, time, given), by_hand)


def test_cross_entropy_learns_the_posterior_of_a_code():
    # One place, two codes, no condition that says which: Bayes' rule gives the logits.
    torch.manual_seed(0)
    config = UnclipConfig(vector=2, side=1, dim=48, heads=2, layers=2)
    model, dice = CodeFlow(config, torch.tensor([[1.0], [-1.0]])), generator(7)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.0)
    nothing = torch.ones(512, 2, 2)
    for step in range(300):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - step / 300)
        codes = (torch.rand(512, 1, generator=dice) < 0.25).long()  # the second in a quarter
        optimizer.zero_grad()
        model.loss(codes, nothing, None, dice).backward()
        optimizer.step()
    time = torch.tensor([0.0, 0.3, 0.6, 0.6, 0.8])
    x = torch.tensor([0.4, -0.5, 0.2, -0.3, 0.1])
    # log p(first | x) - log p(second | x), the codes at +0.5 t and -0.5 t, noise of 1 - t
    expected = math.log(3) + 2 * x * 0.5 * time / (1 - time) ** 2
    with torch.no_grad():
        logits = model.logits(x[:, None, None], time, model.conditions(nothing[:5]))[:, 0]
    found = logits[:, 0] - logits[:, 1]
    assert (found.sigmoid() - expected.sigmoid()).abs().max() < 0.06


def test_nearest_reads_the_codes_back():
    model, _ = small("decoder")
    codes = some_codes()
    near = model.table[codes] + 0.02 * torch.randn(4, 4, CODE_DIM, generator=generator(4)).double()
    assert model.nearest(near).flatten(1).equal(codes)
    assert model.nearest(near).shape == (4, 2, 2)


@pytest.mark.parametrize("name", FLOWS)
def test_every_parameter_gets_a_gradient(name):
    model, _ = small(name)
    drop = torch.zeros(4, PARTS[name], dtype=torch.bool)
    drop[0] = True
    loss(name, model, drop).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("part", [0, 1])
def test_each_condition_of_the_decoder_is_heard_and_can_be_left_out(part):
    model, _ = small("decoder")
    given, other = vectors("decoder"), vectors("decoder")
    other[:, part] = -other[:, part]
    place, time = torch.randn(4, 4, CODE_DIM, dtype=torch.float64), torch.rand(4).double()
    drop = torch.zeros(4, 2, dtype=torch.bool)
    drop[:, part] = True

    def logits(x, drop=None):
        return model.logits(place, time, model.conditions(x, drop))

    assert not torch.allclose(logits(given), logits(other))
    assert logits(given, drop).equal(logits(other, drop))
    assert not torch.allclose(logits(given, drop), logits(given))


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("guidance", [0.0, 1.0, 3.0])
def test_drawing_is_one_step_of_the_guided_velocity(name, guidance):
    model, shape = small(name)
    given, drop = vectors(name), torch.zeros(4, PARTS[name], dtype=torch.bool)
    drop[1] = True
    options = {"guidance": guidance, "steps": 1, "method": "euler", "drop": drop}
    found = draw_flow(model, given, shape, generator(5), **options)
    noise, zero = torch.randn(4, *shape, generator=generator(5)).double(), torch.zeros(4).double()
    with torch.no_grad():
        with_it = model.velocity(noise, zero, model.conditions(given, drop))
        without = model.velocity(noise, zero, model.nothing.expand(4, -1, -1))
    torch.testing.assert_close(found, noise + without + guidance * (with_it - without))


@pytest.mark.parametrize("name", FLOWS)
def test_drawing_depends_on_the_seed_alone(name):
    model, shape = small(name)
    given, state = vectors(name), torch.get_rng_state()
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
        prior.loss(sign * text @ turn, text[:, None], None, dice).backward()
        optimizer.step()
    text = F.normalize(torch.randn(500, 2, generator=dice), dim=1)
    drawn = F.normalize(draw_flow(prior, text[:, None], (2,), dice, steps=16), dim=1)
    cosine = (drawn * (text @ turn)).sum(1)
    assert (cosine.abs() > 0.9).float().mean() > 0.5  # by chance 0.29
    assert 0.35 < (cosine > 0).float().mean() < 0.65


def test_a_decoder_learns_pictures_whose_codes_hang_together():
    # All four codes are the first, or all are the second; each place alone is a coin.
    torch.manual_seed(0)
    config = UnclipConfig(vector=2, side=2, dim=48, heads=2, layers=2)
    model, dice = CodeFlow(config, torch.randn(3, 4, generator=generator(8))), generator(9)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(200):
        codes = torch.randint(2, (128, 1), generator=dice).expand(-1, 4)
        optimizer.zero_grad()
        model.loss(codes, torch.ones(128, 2, 2), None, dice).backward()
        optimizer.step()
    drawn = model.nearest(draw_flow(model, torch.ones(200, 2, 2), (4, 4), dice, steps=16))
    together = (drawn.flatten(1) == drawn[:, 0, :1]).all(1) & (drawn[:, 0, 0] < 2)
    assert together.float().mean() > 0.9  # by chance an eighth
    assert 0.3 < drawn[:, 0, 0].float().mean() < 0.7


@pytest.mark.parametrize(
    ("call", "error", "word"),
    [
        (lambda u: u(time_features)(torch.ones(2), 3), ValueError, "dim"),
        (lambda u: small("decoder")[0].conditions(torch.ones(2, 1, 6)), ValueError, "vectors"),
        (lambda u: small("prior")[0].conditions(torch.ones(2, 6)), ValueError, "vectors"),
        (
            lambda u: small("prior")[0].conditions(torch.ones(2, 1, 6), torch.ones(2) > 0),
            ValueError,
            "drop",
        ),
        (lambda u: decoder_loss(u, some_codes(2)[:, :3]), ValueError, "codes"),
        (lambda u: decoder_loss(u, some_codes(2) + CODES), ValueError, "codes"),
        (lambda u: decoder_loss(u, some_codes(2).float()), TypeError, "codes"),
        (lambda u: prior_draw(u, torch.ones(2, 1, 5)), ValueError, "vectors"),
        (lambda u: prior_draw(u, guidance=math.nan), ValueError, "scale"),
        (lambda u: prior_draw(u, steps=0), ValueError, "steps"),
        (lambda u: prior_draw(u, method="rk4"), ValueError, "method"),
    ],
)
def test_bad_input_is_named(unchecked, call, error, word):
    with pytest.raises(error, match=word):
        call(unchecked)


def decoder_loss(u, codes):
    return u(CodeFlow.loss)(small("decoder")[0], codes, vectors("decoder", 2))


def prior_draw(u, given=None, **options):
    given = vectors("prior", 2) if given is None else given
    return u(draw_flow)(small("prior")[0], given, (6,), **options)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        *(({name: 0}, name) for name in ("vector", "prior_dim", "prior_blocks", "side")),
        ({"heads": 5}, "heads"),
        ({"layers": -1}, "layers"),
    ],
)
def test_bad_sizes_are_named(change, word):
    with pytest.raises(ValueError, match=word):
        UnclipConfig(**change)
