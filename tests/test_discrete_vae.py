"""The discrete autoencoder and its quantisers: frequencies, gradients, limits, usage, bad input."""

import math

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import TypeCheckError
from scipy import stats
from torch.distributions import Categorical, kl_divergence

from mmlib.autoencoder import PictureDecoder, PictureEncoder, ResidualBlock
from mmlib.discrete_vae import COMMITMENT, DiscreteVAE, DiscreteVAEConfig
from mmlib.quantise import (
    categorical_kl,
    code_usage,
    gumbel_noise,
    gumbel_softmax,
    squared_distances,
    temperature_at,
    vector_quantise,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def pictures(count=2, size=8, seed=0):
    return torch.rand(count, 3, size, size, generator=generator(seed))


def small(**changes):
    sizes = {"size": 8, "widths": (4, 8), "blocks": (0, 1), "codes": 7, "code_dim": 5} | changes
    torch.manual_seed(0)
    return DiscreteVAE(DiscreteVAEConfig(**sizes))


# ---- Gumbel-softmax


@pytest.mark.parametrize("temperature", [0.1, 1.0, 5.0])
def test_draws_have_the_categorical_frequencies(temperature):
    logits, count = torch.tensor([0.0, 1.0, -2.0, 2.5, 0.3]), 40_000
    y = gumbel_softmax(logits.expand(count, 5), temperature, generator=generator(1))
    found = torch.bincount(y.argmax(1), minlength=5)
    expected = count * logits.double().softmax(0)
    assert stats.chisquare(found.numpy(), expected.numpy()).pvalue > 0.01


def test_the_frequencies_of_other_logits_would_be_noticed():
    count = 40_000
    y = gumbel_softmax(torch.tensor([0.0, 0.1]).expand(count, 2), 1.0, generator=generator(1))
    found = torch.bincount(y.argmax(1), minlength=2)
    assert stats.chisquare(found.numpy(), [count / 2, count / 2]).pvalue < 1e-4


def test_noise_is_gumbel():
    noise = gumbel_noise((20_000,), torch.zeros(1), generator(3))
    assert stats.kstest(noise.numpy(), "gumbel_r").pvalue > 0.01
    half = gumbel_noise((20_000,), torch.zeros(1, dtype=torch.bfloat16), generator(3))
    torch.testing.assert_close(half, noise.bfloat16())


def test_it_is_torch_s_function_given_the_same_noise():
    logits = draw(6, 9, seed=1)
    for hard in (False, True):
        torch.manual_seed(5)
        theirs = F.gumbel_softmax(logits, tau=0.7, hard=hard)
        torch.manual_seed(5)
        torch.testing.assert_close(gumbel_softmax(logits, 0.7, hard=hard), theirs)


def test_cold_draws_become_one_code_and_hot_ones_a_mixture():
    logits, noise = draw(50, 6, seed=1), draw(50, 6, seed=2)
    chosen = F.one_hot((logits + noise).argmax(1), 6).double()
    torch.testing.assert_close(gumbel_softmax(logits, 1e-3, noise=noise), chosen)
    hot = gumbel_softmax(logits, 1e5, noise=noise)
    torch.testing.assert_close(hot, torch.full_like(hot, 1 / 6), atol=1e-4, rtol=0)


def test_straight_through_takes_one_code_and_the_soft_gradient():
    noise, weight = draw(4, 6, seed=2), draw(4, 6, seed=3)
    results = []
    for hard in (False, True):
        logits = draw(4, 6, seed=1).requires_grad_()
        y = gumbel_softmax(logits, 0.7, hard=hard, noise=noise)
        results.append((y.detach(), torch.autograd.grad((y * weight).sum(), logits)[0]))
    (soft, soft_gradient), (hard, hard_gradient) = results
    assert torch.equal(hard, F.one_hot(soft.argmax(1), 6).double())  # exactly zeros and a one
    torch.testing.assert_close(hard_gradient, soft_gradient)
    assert soft_gradient.abs().max() > 0.01


def test_gumbel_softmax_gradients():
    logits, noise = draw(3, 4, seed=1).requires_grad_(), draw(3, 4, seed=2)
    assert torch.autograd.gradcheck(lambda x: gumbel_softmax(x, 0.5, noise=noise), (logits,))


def test_draws_come_from_the_generator_alone():
    state, logits = torch.get_rng_state(), torch.zeros(3, 4)
    first = gumbel_softmax(logits, 1.0, generator=generator(1))
    assert torch.equal(first, gumbel_softmax(logits, 1.0, generator=generator(1)))
    assert not torch.equal(first, gumbel_softmax(logits, 1.0, generator=generator(2)))
    assert torch.equal(torch.get_rng_state(), state)


def test_temperature_falls_by_equal_ratios_and_stays():
    values = [temperature_at(step, 80, 2.0, 0.125, 0.5) for step in range(81)]
    ratios = [b / a for a, b in zip(values, values[1:41], strict=False)]
    assert values[0] == 2 and values[40] == pytest.approx(0.125) and values[80] == values[40]
    assert max(ratios) == pytest.approx(min(ratios)) == pytest.approx((1 / 16) ** (1 / 40))


def test_kl_to_uniform_is_that_of_torch_distributions():
    logits = 4 * draw(5, 3, 8, seed=1)
    expected = kl_divergence(
        Categorical(logits=logits), Categorical(logits=torch.zeros_like(logits))
    )
    torch.testing.assert_close(categorical_kl(logits), expected)


def test_kl_of_a_certain_code_is_the_logarithm_of_their_number():
    logits = torch.tensor([[0.0, -math.inf, -math.inf, -math.inf]])
    assert categorical_kl(logits).item() == pytest.approx(math.log(4))
    far = torch.tensor([[0.0, -1e4]], requires_grad=True)
    (gradient,) = torch.autograd.grad(categorical_kl(far).sum(), far)
    assert torch.isfinite(gradient).all()


# ---- the nearest code


def test_nearest_codes_against_brute_force():
    vectors, codes = draw(40, 3, seed=1), draw(11, 3, seed=2)
    expected = [
        min(range(11), key=lambda j: sum((a - b) ** 2 for a, b in zip(v, codes[j], strict=True)))
        for v in vectors
    ]
    found = vector_quantise(vectors, codes)
    assert found.ids.tolist() == expected and len(set(expected)) > 5
    assert torch.equal(found.vectors, codes[found.ids])
    torch.testing.assert_close(squared_distances(vectors, codes), torch.cdist(vectors, codes) ** 2)


def test_distances_keep_full_precision_under_autocast():
    vectors, codes = draw(9, 16, seed=1).float(), draw(5, 16, seed=2).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = squared_distances(vectors, codes)
    exact = (vectors.double()[:, None] - codes.double()).square().sum(-1)
    torch.testing.assert_close(found.double(), exact, atol=1e-4, rtol=0)  # bf16 is off by 0.1


def test_losses_stop_the_gradients_where_they_should():
    vectors, codes = draw(6, 3, seed=1).requires_grad_(), draw(4, 3, seed=2).requires_grad_()
    found = vector_quantise(vectors, codes)
    difference = (vectors - codes[found.ids]).detach()
    error = difference.square().mean()
    torch.testing.assert_close(found.codebook, error)
    torch.testing.assert_close(found.commitment, error)
    by_hand = torch.zeros_like(codes)
    for row, code in enumerate(found.ids.tolist()):
        by_hand[code] -= 2 * difference[row] / difference.numel()
    (to_codes,) = torch.autograd.grad(found.codebook, codes, retain_graph=True)
    torch.testing.assert_close(to_codes, by_hand)
    (to_vectors,) = torch.autograd.grad(found.commitment, vectors, retain_graph=True)
    torch.testing.assert_close(to_vectors, 2 * difference / difference.numel())
    for loss, other in ((found.codebook, vectors), (found.commitment, codes)):
        assert torch.autograd.grad(loss, other, retain_graph=True, allow_unused=True) == (None,)


def test_the_decoder_s_gradient_passes_the_nearest_code_unchanged():
    vectors, codes = draw(6, 3, seed=1).requires_grad_(), draw(4, 3, seed=2).requires_grad_()
    weight = draw(6, 3, seed=3)
    loss = (vector_quantise(vectors, codes).vectors * weight).sum()
    to_vectors, to_codes = torch.autograd.grad(loss, (vectors, codes), allow_unused=True)
    assert torch.equal(to_vectors, weight) and to_codes is None


def test_usage():
    ids = torch.tensor([[0, 0, 1], [2, 2, 2]])
    usage = code_usage(ids, 5)
    entropy = stats.entropy([2, 1, 3])
    assert usage.counts.tolist() == [2, 1, 3, 0, 0] and usage.used == 3
    assert usage.perplexity == pytest.approx(math.exp(entropy))
    assert code_usage(torch.arange(512), 512).perplexity == pytest.approx(512)
    assert code_usage(torch.zeros(9, dtype=torch.int64), 512).perplexity == pytest.approx(1)


# ---- the model


@pytest.mark.parametrize("quantiser", ["vq", "gumbel"])
def test_forward_outside_training_is_encode_and_decode(quantiser):
    model, batch = small(quantiser=quantiser).eval(), pictures(3)
    terms = model(batch)
    ids = model.encode(batch)
    assert torch.equal(terms.ids, ids) and ids.shape == (3, 2, 2)
    torch.testing.assert_close(terms.pictures.clamp(0, 1), model.decode(ids))


def test_codes_of_a_picture_do_not_depend_on_the_batch():
    model, batch = small().eval(), pictures(4)
    assert torch.equal(model.encode(batch)[2:3], model.encode(batch[2:3]))


def test_vectors_have_one_range_in_training():
    model = small().train()
    vectors = model.vectors(100 * pictures(16))
    torch.testing.assert_close(vectors.mean(0), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(vectors.var(0, correction=0), torch.ones(5), atol=1e-3, rtol=0)


def test_codes_stand_where_they_were_taken_from():
    # A corner of 4 × 4 pixels changes. With no residual block a code sees 10 × 10 pixels around
    # its own 4 × 4, so it is that corner's and its three neighbours' vectors that change.
    model = small(blocks=(0, 0), size=32).eval()
    first = pictures(1, 32)
    second = first.clone()
    second[:, :, 28:, :4] = 1 - second[:, :, 28:, :4]
    difference = (model.vectors(first) - model.vectors(second)).abs().sum(1).view(8, 8)
    assert (difference > 1e-6).nonzero().tolist() == [[6, 0], [6, 1], [7, 0], [7, 1]]


def test_terms_of_the_nearest_code_written_out():
    model, batch = small(revive=0).train(), pictures(3)
    terms = model(batch, beta=0.5)
    error = (terms.pictures - batch).square()
    variance, numbers = error.mean(), batch[0].numel()
    density = -error.flatten(1).sum(1) / (2 * variance)
    density = density - numbers / 2 * (2 * math.pi * variance).log()
    torch.testing.assert_close(terms.reconstruction, density)
    torch.testing.assert_close(terms.kl, torch.full((3,), 4 * math.log(7)))
    torch.testing.assert_close(terms.elbo, terms.reconstruction - terms.kl)
    # The best variance leaves minus half the numbers times log(MSE), and constants.
    best = -numbers / 2 * (1 + math.log(2 * math.pi) + variance.log())
    torch.testing.assert_close(terms.reconstruction.mean(), best)
    model.train()
    found = vector_quantise(model.vectors(batch), model.codebook)
    extra = (found.codebook + COMMITMENT * found.commitment) * numbers / 2
    torch.testing.assert_close(terms.loss, (0.5 * terms.kl - terms.reconstruction).mean() + extra)


def test_terms_of_the_drawn_codes_written_out():
    model, batch = small(quantiser="gumbel", revive=0).train(), pictures(3)
    terms = model(batch, beta=2.0, temperature=0.5, variance=0.1, generator=generator(4))
    logits = model.logits(batch)
    expected = -squared_distances(model.vectors(batch), model.codebook).view(3, 4, 7)
    torch.testing.assert_close(logits, expected * model.log_sharpness.exp())
    share = gumbel_softmax(logits, 0.5, generator=generator(4))
    grid = (share @ model.codebook).transpose(1, 2).reshape(3, 5, 2, 2)
    painted = model.decoder(grid) / 2 + 0.5
    torch.testing.assert_close(terms.pictures, painted)
    density = torch.distributions.Normal(painted, math.sqrt(0.1)).log_prob(batch)
    torch.testing.assert_close(terms.reconstruction, density.flatten(1).sum(1))
    torch.testing.assert_close(terms.kl, categorical_kl(logits).sum(1))
    torch.testing.assert_close(terms.loss, (2 * terms.kl - terms.reconstruction).mean())


@pytest.mark.parametrize("quantiser", ["vq", "gumbel"])
def test_every_parameter_is_trained(quantiser):
    model = small(quantiser=quantiser)
    model(pictures(), generator=generator()).loss.backward()
    untouched = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert untouched == []


@pytest.mark.parametrize("quantiser", ["vq", "gumbel"])
def test_unused_codes_move_to_vectors_of_the_batch(quantiser):
    model, batch = small(codes=64, revive=0.5, quantiser=quantiser).train(), pictures(16)
    with torch.no_grad():
        model.codebook[:60] += 100.0  # nothing lies there
    model.usage[60:] = 1 / 64
    kept = model.codebook[60:].clone()
    model(batch, generator=generator(1))
    vectors = model.vectors(batch)
    distance = (model.codebook[:60, None] - vectors).abs().sum(-1).min(1).values
    assert distance.max() == 0
    assert torch.equal(model.codebook[60:], kept)
    moved = model.codebook.clone()
    model.usage[:60] = 0.0
    model.eval()(batch)  # outside training nothing moves
    assert torch.equal(model.codebook, moved)


def test_the_first_batch_places_all_codes():
    model, batch = small(codes=9, revive=0.1).train(), pictures(4)
    model(batch, generator=generator(1))
    vectors = model.vectors(batch)
    assert torch.equal(
        model.codebook, vectors[(model.codebook[:, None] == vectors).all(-1).int().argmax(1)]
    )
    assert len(model.codebook.unique(dim=0)) == 9  # no vector is taken twice
    placed = model.codebook.clone()
    model(batch, generator=generator(2))  # all were placed a moment ago
    assert torch.equal(model.codebook, placed)


def test_more_codes_than_vectors_are_placed_batch_by_batch():
    model, batch = small(codes=20, revive=0.1).train(), pictures(2)  # 8 vectors
    for placed in (8, 16, 20):
        model(batch, generator=generator(1))
        assert int((model.usage > 0.5 / 20).sum()) == placed


def test_unused_codes_prefer_vectors_that_are_far_from_all_codes():
    model, noise = small(codes=2, revive=0.5).train(), generator(1)
    vectors = torch.cat([torch.full((999, 5), 0.1), torch.full((1, 5), 100.0)])
    far = 0
    for _ in range(50):
        model.codebook.data.zero_()
        model.usage[:] = torch.tensor([1.0, 0.0])
        model._revive(vectors, noise)
        assert not model.codebook[0].any()  # it is used, and stays
        far += int(model.codebook[1, 0] == 100)
    # Squared distances 5 · 100² against 999 · 5 · 0.1²; drawn all alike it would be 1 in 1,000.
    assert far >= 48


def test_use_is_followed():
    model, batch = small(revive=0).train(), pictures(4)
    model.usage.fill_(1 / 7)
    before = model.usage.clone()
    share = torch.bincount(model(batch).ids.flatten(), minlength=7) / 16
    torch.testing.assert_close(model.usage, 0.97 * before + 0.03 * share)


@pytest.mark.parametrize("quantiser", ["vq", "gumbel"])
def test_training_goes_the_same_way_from_the_same_generator(quantiser):
    def run(seed):
        model, noise = small(quantiser=quantiser), generator(seed)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(5):
            optimizer.zero_grad()
            model(pictures(4), generator=noise).loss.backward()
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    state = torch.get_rng_state()
    first = run(1)
    torch.set_rng_state(state)
    assert torch.equal(first, run(1))


@pytest.mark.parametrize("quantiser", ["vq", "gumbel"])
def test_it_learns_four_pictures_by_heart(quantiser):
    batch = (pictures(4, 2) > 0.5).float().repeat_interleave(4, -1).repeat_interleave(4, -2)
    model = small(quantiser=quantiser, widths=(16, 32), codes=16)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    steps, noise = 120, generator()
    for step in range(steps):
        optimizer.zero_grad()
        loss = model(batch, temperature=temperature_at(step, steps), generator=noise).loss
        (loss / batch[0].numel()).backward()
        optimizer.step()
    model.eval()
    error = (model.decode(model.encode(batch)) - batch).square().mean().item()
    assert error < 0.1 * batch.var().item()


def test_inputs_stay_as_they_were():
    model, batch = small(), pictures()
    before = batch.clone()
    model(batch).loss.backward()
    assert torch.equal(batch, before)


# ---- the two halves


@pytest.mark.parametrize("widths", [(4,), (4, 6), (4, 6, 8)])
def test_halves_mirror_each_other(widths):
    encoder = PictureEncoder(3, widths, (1,) * len(widths), 5)
    decoder = PictureDecoder(5, widths, (1,) * len(widths), 2)
    grid = encoder(torch.rand(2, 3, 16, 24))
    assert grid.shape == (2, 5, 16 >> len(widths), 24 >> len(widths))
    assert decoder(grid).shape == (2, 2, 16, 24)


def test_a_block_of_gain_zero_changes_nothing():
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(ResidualBlock(4, 0.0)(x), x)
    assert not torch.allclose(ResidualBlock(4, 1.0)(x), x)


def test_the_last_layer_paints_in_full_precision_under_autocast():
    decoder, grid = PictureDecoder(5, (4, 6), (0, 0), 3), torch.randn(2, 5, 2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        painted = decoder(grid)
    assert painted.dtype == torch.float32
    assert not torch.equal(painted, painted.bfloat16().float())


# ---- bad input


def call(function, *arguments, **named):
    return lambda unchecked: unchecked(function)(*arguments, **named)


BAD = {
    "temperature": (call(gumbel_softmax, torch.zeros(2), 0), "temperature must be above 0: got 0"),
    "step": (call(temperature_at, 11, 10), "step must be from 0 to steps: got 11 of 10"),
    "end": (call(temperature_at, 1, 10, 1.0, 0.0), "end must be above 0"),
    "share": (call(temperature_at, 1, 10, share=2), "share above 0 and at most 1"),
    "no ids": (call(code_usage, torch.zeros(0, dtype=torch.int64), 4), "at least one: got none"),
    "id": (call(code_usage, torch.tensor([4]), 4), "ids must be from 0 to 3: got 4 to 4"),
    "picture": (
        lambda unchecked: unchecked(DiscreteVAE.vectors)(small(), torch.zeros(1, 3, 8, 4)),
        r"of shape \(batch, 3, 8, 8\): got \(1, 3, 8, 4\)",
    ),
    "grid": (
        lambda unchecked: unchecked(DiscreteVAE.decode)(
            small(), torch.zeros(1, 3, 2, dtype=torch.int64)
        ),
        r"ids must be of shape \(batch, 2, 2\): got \(1, 3, 2\)",
    ),
    "code": (
        lambda unchecked: unchecked(DiscreteVAE.decode)(
            small(), torch.full((1, 2, 2), 7, dtype=torch.int64)
        ),
        "ids must be from 0 to 6: got 7 to 7",
    ),
    "beta": (
        lambda unchecked: unchecked(DiscreteVAE.forward)(small(), pictures(), beta=-1),
        "beta must be at least 0: got -1",
    ),
    "variance": (
        lambda unchecked: unchecked(DiscreteVAE.forward)(small(), pictures(), variance=0),
        "variance must be above 0: got 0",
    ),
    "stages": (call(DiscreteVAEConfig, widths=(), blocks=()), "one entry for each stage"),
    "width": (call(DiscreteVAEConfig, widths=(0, 4)), "widths must be at least 1"),
    "codes": (call(DiscreteVAEConfig, codes=1), "codes must be at least 2: got 1"),
    "size": (call(DiscreteVAEConfig, size=30), "size must be a multiple of 4.*got 30"),
    "revive": (call(DiscreteVAEConfig, revive=1), "revive must be from 0 to below 1: got 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, unchecked):
    attempt, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        attempt(unchecked)


def test_quantiser_is_one_of_two():
    # Under the shape checks jaxtyping says so first.
    with pytest.raises((ValueError, TypeCheckError), match="fsq"):
        DiscreteVAEConfig(quantiser="fsq")
