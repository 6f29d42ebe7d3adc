"""The variational autoencoder: bounds, likelihoods, gradients, the linear case, bad input."""

import collections
import math

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import nn
from torch.distributions import Normal as TorchNormal
from torch.distributions import kl_divergence

from mmlib import importance, likelihoods, vae
from mmlib.importance import importance_bound, importance_log_weights
from mmlib.likelihoods import (
    PixelHistogram,
    Pixels,
    discretised_logistic,
    gaussian_log_density,
)
from mmlib.vae import VAE, Normal, VAEConfig, active_units, elbo, gaussian_kl, reparameterise


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def pictures(count, size=8, channels=3, seed=0, dtype=torch.float32):
    levels = torch.randint(256, (count, channels, size, size), generator=generator(seed))
    return levels.to(dtype) / 255


def small(likelihood="logistic", **changes):
    sizes = {"size": 8, "widths": (4, 8), "blocks": (1, 0), "latent": 3} | changes
    torch.manual_seed(0)
    return VAE(VAEConfig(likelihood=likelihood, **sizes))


# ---- the terms of the bound


def test_kl_is_that_of_torch_distributions():
    mean, log_variance = 3 * draw(5, 4, seed=1), 3 * draw(5, 4, seed=2)
    expected = kl_divergence(
        TorchNormal(mean, (log_variance / 2).exp()),
        TorchNormal(torch.zeros_like(mean), torch.ones_like(mean)),
    )
    torch.testing.assert_close(gaussian_kl(Normal(mean, log_variance)), expected)


def test_kl_near_the_prior_loses_no_digits():
    tiny = torch.full((1, 1), 1e-4)  # in fp32, exp(v) - 1 - v would keep one digit of v ** 2 / 2
    found = gaussian_kl(Normal(torch.zeros(1, 1), tiny)).item()
    assert found == pytest.approx(2.5e-9, rel=0.02)


def test_elbo_names_its_terms():
    reconstruction, kl = -100 * draw(5, seed=1).abs(), draw(5, 3, seed=2).abs()
    terms = elbo(reconstruction, kl, beta=4.0)
    torch.testing.assert_close(terms.reconstruction, reconstruction)
    torch.testing.assert_close(terms.kl, kl[:, 0] + kl[:, 1] + kl[:, 2])
    torch.testing.assert_close(terms.elbo, reconstruction - kl.sum(1))
    torch.testing.assert_close(terms.loss, (4 * kl.sum(1) - reconstruction).mean())
    torch.testing.assert_close(elbo(reconstruction, kl).loss, -terms.elbo.mean())


def test_free_bits_hold_each_dimension_on_the_average_of_the_batch():
    floor = 0.5 * math.log(2)
    # Averages 0.1, below the floor of 0.35, and 1.55, above it, though one number there is not.
    kl = torch.tensor([[0.0, 0.1], [0.2, 3.0]], requires_grad=True)
    terms = elbo(torch.zeros(2), kl, beta=3.0, free_bits=0.5)
    torch.testing.assert_close(terms.loss, torch.tensor(3 * (floor + 1.55)))
    torch.testing.assert_close(terms.elbo, -kl.sum(1))  # the bound itself has none
    (gradient,) = torch.autograd.grad(terms.loss, kl)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 1.5], [0.0, 1.5]]))


def test_reparameterised_draws_have_the_posterior_as_distribution():
    posterior = Normal(torch.tensor([[2.0, -1.0]]), torch.tensor([[0.5, -3.0]]))
    z = reparameterise(posterior, torch.randn(100_000, 1, 2, generator=generator()))
    torch.testing.assert_close(z.mean(0), posterior.mean, atol=0.02, rtol=0)
    torch.testing.assert_close(z.var(0), posterior.log_variance.exp(), atol=0.02, rtol=0.01)


def test_gradients_through_the_reparameterisation():
    model = small().double()
    batch, noise = pictures(2, dtype=torch.float64), draw(2, 3, seed=3)

    def bound(mean, log_variance):
        posterior = Normal(mean, log_variance)
        pixels = model.decode(reparameterise(posterior, noise))
        return elbo(discretised_logistic(batch, pixels), gaussian_kl(posterior), beta=0.7).loss

    inputs = [draw(2, 3, seed=4).requires_grad_(), draw(2, 3, seed=5).requires_grad_()]
    assert torch.autograd.gradcheck(bound, inputs)


@pytest.mark.parametrize("likelihood", ["logistic", "gaussian"])
def test_gradients_of_the_whole_model(likelihood):
    model = small(likelihood, size=2, channels=1, widths=(), blocks=(), latent=2).double()
    batch, noise = pictures(3, 2, 1, dtype=torch.float64), draw(3, 2, seed=3)
    names, weights = zip(*model.named_parameters(), strict=True)

    def loss(*weights):
        given = dict(zip(names, weights, strict=True))
        return torch.func.functional_call(model, given, (batch,), {"noise": noise}).loss

    assert torch.autograd.gradcheck(loss, weights)


# ---- likelihoods


@pytest.mark.parametrize("mean", [-0.4, 0.0, 0.3, 1.0, 1.7])
@pytest.mark.parametrize("log_scale", [-7.0, -4.0, -1.0, 2.0])
def test_levels_have_probabilities_that_sum_to_one(mean, log_scale):
    levels = (torch.arange(256, dtype=torch.float64) / 255).view(-1, 1, 1, 1)
    pixels = Pixels(torch.full_like(levels, mean), torch.full_like(levels, log_scale))
    chance = discretised_logistic(levels, pixels).exp()
    assert chance.sum().item() == pytest.approx(1, abs=1e-12)
    assert (chance >= 0).all()


def test_discretised_logistic_is_a_difference_of_the_distribution():
    levels = pictures(2, dtype=torch.float64)
    levels[0, 0, 0, :2] = torch.tensor([0.0, 1.0])
    pixels = Pixels(levels + 0.1 * draw(2, 3, 8, 8, seed=1), draw(2, 3, 8, 8, seed=2) / 3 - 2)

    def cdf(x):
        return torch.sigmoid((x - pixels.mean) / pixels.log_scale.exp())

    below = torch.where(levels == 0, 0, cdf(levels - 0.5 / 255))
    above = torch.where(levels == 1, 1, cdf(levels + 0.5 / 255))
    expected = (above - below).log().flatten(1).sum(1)
    torch.testing.assert_close(discretised_logistic(levels, pixels), expected, rtol=1e-9, atol=0)


def test_discretised_logistic_is_finite_where_the_difference_is_not():
    # The level is 200 scales away from the mean: in fp32 both ends of its interval round to 1.
    pixel = torch.zeros(1, 1, 1, 1, requires_grad=True)
    black = torch.full((1, 1, 1, 1), 128 / 255)
    value = discretised_logistic(black, Pixels(pixel + 1, pixel - 6))
    (gradient,) = torch.autograd.grad(value.sum(), pixel)
    assert torch.isfinite(value).all() and torch.isfinite(gradient).all()
    assert value.item() == pytest.approx(-200.3, abs=1)


def test_gaussian_density_is_that_of_torch_distributions():
    batch = pictures(4, dtype=torch.float64)
    pixels = Pixels(draw(4, 3, 8, 8, seed=1), draw(4, 3, 8, 8, seed=2))
    expected = TorchNormal(pixels.mean, pixels.log_scale.exp()).log_prob(batch)
    torch.testing.assert_close(gaussian_log_density(batch, pixels), expected.flatten(1).sum(1))


def test_a_density_has_no_upper_limit_on_white_and_a_probability_has():
    white, narrow = torch.ones(1, 1, 4, 4), torch.full((1, 1, 4, 4), -20.0)
    assert gaussian_log_density(white, Pixels(white, narrow)).item() > 250
    assert discretised_logistic(white, Pixels(white, narrow)).item() <= 0


def test_pixel_histogram_counts_each_place_by_itself():
    train, test = pictures(20, size=3, seed=1), pictures(4, size=3, seed=2)
    train[:10, 0, 0, 0] = test[0, 0, 0, 0]
    expected = []
    for picture in test:
        total = 0.0
        for place in range(27):
            counts = collections.Counter(
                round(x * 255) for x in train.flatten(1)[:, place].tolist()
            )
            count = counts[round(picture.flatten()[place].item() * 255)]
            total += math.log((count + 0.5) / (20 + 128))
        expected.append(total)
    found = PixelHistogram(train, smoothing=0.5).log_likelihood(test)
    torch.testing.assert_close(found, torch.tensor(expected))


def test_pixel_histogram_is_a_distribution():
    model = PixelHistogram(pictures(7, size=1, channels=1), smoothing=0.1)
    levels = torch.arange(256).view(-1, 1, 1, 1) / 255
    assert model.log_likelihood(levels).exp().sum().item() == pytest.approx(1, abs=1e-5)


# ---- the linear case, which has a closed form: probabilistic PCA


def linear_data(count=300):
    """Vectors of a linear model with 2 factors, as pictures of 2 × 2 with 2 channels."""
    loadings = torch.linalg.qr(draw(8, 2))[0] * torch.tensor([4.0, 2.0]).double()
    x = draw(count, 2, seed=1) @ loadings.T + 0.5 * draw(count, 8, seed=2)
    return (x + draw(8, seed=3)).view(count, 2, 2, 2)


def best_fit(x, latent=2):
    """Tipping and Bishop's maximum of the likelihood: mean, loadings and noise variance."""
    x = x.flatten(1)
    values, vectors = torch.linalg.eigh(torch.cov(x.T, correction=0))
    values, vectors = values.flip(0), vectors.flip(1)
    noise = values[latent:].mean()
    return x.mean(0), vectors[:, :latent] * (values[:latent] - noise).sqrt(), noise


def exact(x, mean, loadings, noise):
    """Log-density of each row: a normal of covariance W Wᵀ + σ² I."""
    covariance = loadings @ loadings.T + noise * torch.eye(len(mean)).double()
    return torch.distributions.MultivariateNormal(mean, covariance).log_prob(x.flatten(1))


def linear_model():
    return small("gaussian", size=2, channels=2, widths=(), blocks=(), latent=2).double()


def linear_vae(mean, loadings, noise):
    """The VAE whose decoder is that model, and whose encoder is its exact posterior."""
    latent = loadings.shape[1]
    model = linear_model()
    inverse = torch.linalg.inv(loadings.T @ loadings + noise * torch.eye(latent).double())
    encode = inverse @ loadings.T
    with torch.no_grad():
        model.from_latent.weight.copy_(loadings)
        model.from_latent.bias.copy_(mean)
        model.log_scale.copy_(noise.log() / 2)
        model.to_posterior.weight[:latent].copy_(encode)
        model.to_posterior.weight[latent:].zero_()
        model.to_posterior.bias[:latent].copy_(-encode @ mean)
        # The loadings are orthogonal, so the posterior's covariance is diagonal.
        model.to_posterior.bias[latent:].copy_((noise * inverse.diagonal()).log())
    return model


def test_with_the_exact_posterior_every_draw_weighs_the_likelihood():
    x = linear_data()
    fit = best_fit(x)
    weights = importance_log_weights(linear_vae(*fit), x, 5, generator=generator())
    torch.testing.assert_close(weights, exact(x, *fit).expand(5, -1))


def test_the_elbo_of_the_exact_posterior_is_the_likelihood():
    x = linear_data()
    fit = best_fit(x)
    model = linear_vae(*fit)
    found = torch.stack([model(x, generator=generator(n)).elbo for n in range(200)]).mean(0)
    assert found.mean().item() == pytest.approx(exact(x, *fit).mean().item(), abs=0.02)


def test_training_reaches_the_closed_form():
    x = linear_data()
    best = exact(x, *best_fit(x)).mean().item()
    model, steps = linear_model(), 1000
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    noise = generator(2)
    for _ in range(steps):
        optimizer.zero_grad()
        model(x, generator=noise).loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        found = torch.stack([model(x, generator=noise).elbo.mean() for _ in range(100)])
    assert best - 0.05 < found.mean().item() < best + 0.02


def test_more_draws_tighten_the_bound_up_to_the_likelihood():
    x = linear_data(100)
    fit = best_fit(x)
    model = linear_vae(*fit)
    with torch.no_grad():  # an encoder that is wrong: too wide, and off by half a deviation
        model.to_posterior.bias[2:] += 0.8
        model.to_posterior.bias[:2] += 0.5 * (model.to_posterior.bias[2:] / 2).exp()
        weights = importance_log_weights(model, x, 4096, generator=generator(), chunk=1024)
        bounds = [
            weights.unflatten(0, (-1, k)).logsumexp(1).sub(math.log(k)).mean().item()
            for k in (1, 4, 16, 64, 256)
        ]
        terms = torch.stack([model(x, generator=generator(n)).elbo for n in range(300)])
    likelihood = exact(x, *fit)
    assert all(a < b for a, b in zip(bounds, bounds[1:], strict=False)), bounds
    assert bounds[0] < likelihood.mean().item() - 0.9 and bounds[-1] < likelihood.mean().item()
    assert bounds[0] == pytest.approx(terms.mean().item(), abs=0.05)  # one draw: the elbo
    torch.testing.assert_close(importance_bound(weights), likelihood, atol=0.15, rtol=0)
    assert importance_bound(weights).mean().item() == pytest.approx(
        likelihood.mean().item(), abs=0.01
    )


def test_chunks_of_draws_change_nothing():
    model, batch = small(), pictures(2)
    whole = importance_log_weights(model, batch, 7, generator=generator(), chunk=7)
    parts = importance_log_weights(model, batch, 7, generator=generator(), chunk=3)
    torch.testing.assert_close(parts, whole)


# ---- the model


def test_a_picture_has_its_terms_whatever_else_is_in_the_batch():
    model, batch, noise = small(), pictures(4), draw(4, 3).float()
    together = model(batch, noise=noise)
    alone = model(batch[1:2], noise=noise[1:2])
    for name in ("reconstruction", "kl", "elbo"):
        torch.testing.assert_close(getattr(alone, name)[0], getattr(together, name)[1])


def test_noise_comes_from_the_generator_alone():
    model, batch = small(), pictures(2)
    state = torch.get_rng_state()
    first = model(batch, generator=generator(5))
    second = model(batch, generator=generator(5))
    assert torch.equal(first.elbo, second.elbo)
    assert not torch.equal(first.elbo, model(batch, generator=generator(6)).elbo)
    assert torch.equal(model.sample(3, generator(1)), model.sample(3, generator(1)))
    importance_log_weights(model, batch, 2, generator=generator(5))
    assert torch.equal(torch.get_rng_state(), state)


def test_inputs_stay_as_they_were():
    model, batch = small(), pictures(2)
    before = batch.clone()
    model(batch).loss.backward()
    assert torch.equal(batch, before)


@pytest.mark.parametrize("likelihood", ["logistic", "gaussian"])
@pytest.mark.parametrize("widths", [(), (4,), (4, 6, 8)])
def test_samples_are_pictures(likelihood, widths):
    model = small(likelihood, size=16, channels=1, widths=widths, blocks=(1,) * len(widths))
    samples = model.sample(5, generator())
    assert samples.shape == (5, 1, 16, 16)
    assert samples.min() >= 0 and samples.max() <= 1


def test_every_parameter_is_trained():
    for likelihood in ("logistic", "gaussian"):
        model = small(likelihood)
        model(pictures(2), generator=generator()).loss.backward()
        untouched = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        assert untouched == []


def test_it_learns_to_tell_two_pictures_apart():
    batch = pictures(2, seed=3)
    model = small(widths=(16, 32), blocks=(0, 0))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    noise = generator()
    for _ in range(100):
        optimizer.zero_grad()
        model(batch, generator=noise).loss.backward()
        optimizer.step()
    with torch.no_grad():
        posterior = model.encode(batch)
        right = model.log_likelihood(batch, model.decode(posterior.mean))
        wrong = model.log_likelihood(batch, model.decode(posterior.mean.flip(0)))
    assert (right > wrong + 30).all()
    assert isinstance(model.decoder, nn.Module) and active_units(posterior.mean) >= 1


def test_active_units_are_those_that_vary():
    means = torch.zeros(50, 4)
    means[:, 1] = torch.randn(50, generator=generator())
    means[:, 2] = 3.0  # far from the prior, and always the same
    means[:, 3] = 0.05 * torch.randn(50, generator=generator())
    assert active_units(means) == 1
    assert active_units(means, threshold=1e-4) == 2


# ---- bad input


def call(function, *arguments, **named):
    return lambda unchecked: unchecked(function)(*arguments, **named)


BLACK = torch.zeros(2, 3, 8, 8)
BAD = {
    "beta": (call(elbo, torch.zeros(2), torch.zeros(2, 3), beta=-1), "beta must be at least 0"),
    "free bits": (
        call(elbo, torch.zeros(2), torch.zeros(2, 3), free_bits=-0.1),
        "free_bits must be at least 0: got -0.1",
    ),
    "rows": (call(elbo, torch.zeros(2), torch.zeros(3, 3)), "one row for each picture.*2 and 3"),
    "no rows": (call(elbo, torch.zeros(0), torch.zeros(0, 3)), "at least one"),
    "levels": (
        call(discretised_logistic, BLACK + 0.5 / 255, Pixels(BLACK, BLACK)),
        "whole multiples of 1/255",
    ),
    "range": (call(discretised_logistic, BLACK + 2, Pixels(BLACK, BLACK)), "in .0, 1.: got values"),
    "nan": (call(discretised_logistic, BLACK * math.nan, Pixels(BLACK, BLACK)), "multiples"),
    "smoothing": (call(PixelHistogram, BLACK, 0), "smoothing must be above 0: got 0"),
    "histogram shape": (
        lambda unchecked: unchecked(PixelHistogram.log_likelihood)(
            PixelHistogram(BLACK), BLACK[..., :4]
        ),
        r"of shape \(batch, 3, 8, 8\): got \(2, 3, 8, 4\)",
    ),
    "picture size": (
        lambda unchecked: unchecked(VAE.encode)(small(), torch.zeros(2, 3, 8, 4)),
        r"of shape \(batch, 3, 8, 8\): got \(2, 3, 8, 4\)",
    ),
    "stages": (call(VAEConfig, widths=(8,), blocks=(1, 1)), "one entry for each stage"),
    "size": (call(VAEConfig, size=20), "size must be a multiple of 8.*got 20"),
    "latent": (call(VAEConfig, latent=0), "latent and widths must be at least 1"),
    "blocks": (call(VAEConfig, blocks=(1, -1, 1)), "blocks at least 0"),
    "samples": (call(importance_log_weights, None, BLACK, 0), "samples must be at least 1: got 0"),
    "chunk": (call(importance_log_weights, None, BLACK, 1, chunk=0), "chunk must be at least 1"),
    "one mean": (call(active_units, torch.zeros(1, 3)), "at least two pictures: got 1"),
}


def test_likelihood_is_one_of_two():
    # Under the shape checks jaxtyping says so first.
    with pytest.raises((ValueError, TypeCheckError), match="bernoulli"):
        VAEConfig(likelihood="bernoulli")


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, unchecked):
    attempt, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        attempt(unchecked)


def test_all_names_are_documented():
    for module in (vae, likelihoods, importance):
        for name in module.__all__:
            assert getattr(module, name).__doc__, name
