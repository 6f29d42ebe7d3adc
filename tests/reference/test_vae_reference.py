"""The autoencoders' formulas against scikit-learn, scipy and torch.distributions."""

import numpy as np
import torch
from scipy import stats
from sklearn.decomposition import PCA
from torch.distributions import AffineTransform, SigmoidTransform, TransformedDistribution, Uniform

from mmlib.importance import importance_log_weights
from mmlib.likelihoods import Pixels, discretised_logistic
from mmlib.vae import VAE, VAEConfig


def test_a_linear_vae_gives_the_likelihood_of_scikit_learn_s_pca():
    # PCA.score_samples is the log-likelihood of probabilistic PCA (Tipping and Bishop 1999).
    generator = np.random.default_rng(0)
    x = generator.normal(size=(60, 3)) @ generator.normal(size=(3, 16))
    x = x + 0.3 * generator.normal(size=(60, 16)) + generator.normal(size=16)
    pca = PCA(3).fit(x)
    noise = pca.noise_variance_
    loadings = pca.components_.T * np.sqrt(pca.explained_variance_ - noise)
    precision = loadings.T @ loadings + noise * np.eye(3)
    encode = np.linalg.solve(precision, loadings.T)
    model = VAE(
        VAEConfig(size=4, channels=1, widths=(), blocks=(), latent=3, likelihood="gaussian")
    ).double()
    with torch.no_grad():
        model.from_latent.weight.copy_(torch.from_numpy(loadings))
        model.from_latent.bias.copy_(torch.from_numpy(pca.mean_))
        model.log_scale.fill_(np.log(noise) / 2)
        model.to_posterior.weight.zero_()
        model.to_posterior.weight[:3].copy_(torch.from_numpy(encode))
        model.to_posterior.bias[:3].copy_(torch.from_numpy(-encode @ pca.mean_))
        variances = np.diag(noise * np.linalg.inv(precision))
        model.to_posterior.bias[3:].copy_(torch.from_numpy(np.log(variances)))
        pictures = torch.from_numpy(x).view(60, 1, 4, 4)
        weights = importance_log_weights(
            model, pictures, 3, generator=torch.Generator().manual_seed(0)
        )
    expected = torch.from_numpy(pca.score_samples(x))
    # Every draw weighs the same: the encoder is the exact posterior.
    torch.testing.assert_close(weights, expected.expand(3, -1))


def test_the_discretised_logistic_against_scipy_and_torch():
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(256, (4, 2, 3, 5), generator=generator)
    levels[0, 0, 0] = torch.tensor([0, 255, 1, 254, 128])
    x = levels.double() / 255
    mean = x + 0.2 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    log_scale = torch.randn(x.shape, generator=generator, dtype=torch.float64) / 3 - 2
    ends = (
        np.where(levels == 0, -np.inf, x - 0.5 / 255),
        np.where(levels == 255, np.inf, x + 0.5 / 255),
    )
    logistic = stats.logistic(mean.numpy(), log_scale.exp().numpy())
    by_scipy = np.log(logistic.cdf(ends[1]) - logistic.cdf(ends[0])).reshape(4, -1).sum(1)
    found = discretised_logistic(x, Pixels(mean, log_scale))
    torch.testing.assert_close(found, torch.from_numpy(by_scipy), rtol=1e-9, atol=0)

    # In the limit of fine levels it is the density times the width; at 256, nearly.
    base = Uniform(torch.zeros_like(mean), torch.ones_like(mean))
    transforms = [SigmoidTransform().inv, AffineTransform(mean, log_scale.exp())]
    density = TransformedDistribution(base, transforms).log_prob(x) - np.log(255)
    inside = (levels > 0) & (levels < 255)
    alone = torch.stack(
        [
            discretised_logistic(p.view(1, 1, 1, 1), Pixels(m.view(1, 1, 1, 1), s.view(1, 1, 1, 1)))
            for p, m, s in zip(x[inside], mean[inside], log_scale[inside], strict=True)
        ]
    )
    torch.testing.assert_close(alone[:, 0], density[inside], atol=1e-3, rtol=0)
