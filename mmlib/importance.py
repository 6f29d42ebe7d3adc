r"""How much the bound leaves out: the likelihood of a picture by importance sampling.

The bound of :mod:`mmlib.vae` is below the log-likelihood by the divergence from the true posterior
to the encoder's. Many draws from the encoder, each weighed by what it got wrong, close the gap.

References:
    Burda, Grosse, Salakhutdinov, *Importance Weighted Autoencoders*, ICLR 2016.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from mmlib.likelihoods import Pixels
from mmlib.vae import VAE, reparameterise, standard_normal

__all__ = ["importance_bound", "importance_log_weights"]


def importance_log_weights(
    model: VAE,
    pictures: Float[Tensor, "batch channels height width"],
    samples: int,
    *,
    generator: torch.Generator | None = None,
    chunk: int = 16,
) -> Float[Tensor, "samples batch"]:
    r"""Draw latent vectors from the posterior, and weigh them by how well they explain a picture.

    .. math:: \log w_k = \log p(x \mid z_k) + \log p(z_k) - \log q(z_k \mid x),
        \qquad z_k \sim q(z \mid x)

    Args:
        model: The autoencoder.
        pictures: As for its forward pass.
        samples: Draws for each picture.
        generator: What the noise is drawn from, by default torch's own.
        chunk: Draws that are decoded at once; it changes memory and time, and no number.

    Raises:
        ValueError: ``samples`` or ``chunk`` is below 1.
    """
    for name, value in (("samples", samples), ("chunk", chunk)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1: got {value}")
    posterior = model.encode(pictures)
    weights = []
    for start in range(0, samples, chunk):
        draws = min(chunk, samples - start)
        # One draw at a time: how torch fills a tensor depends on its size, and chunks must not.
        shape = posterior.mean.shape
        noise = torch.stack(
            [standard_normal(shape, posterior.mean, generator) for _ in range(draws)]
        )
        z = reparameterise(posterior, noise)
        decoded = model.decode(z.flatten(0, 1))
        pixels = Pixels(*(part.unflatten(0, (draws, len(pictures))) for part in decoded))
        # The constant of the two normal densities is the same and falls out.
        ratio = (noise.square() - z.square() + posterior.log_variance).sum(-1) / 2
        weights.append(model.log_likelihood(pictures, pixels) + ratio)
    return torch.cat(weights)


def importance_bound(
    log_weights: Float[Tensor, "samples batch"],
) -> Float[Tensor, " batch"]:
    r"""The importance-weighted bound of the log-likelihood, in nats per picture.

    .. math:: \log \frac1K \sum_{k=1}^K w_k \;\le\; \log p(x) \quad \text{on average}

    With one draw it is the elbo; with each more it grows on average, towards the log-likelihood.

    >>> bound = importance_bound(torch.log(torch.tensor([[1.0], [3.0]])))
    >>> round(bound.exp().item(), 4)
    2.0
    """
    return log_weights.logsumexp(0) - math.log(len(log_weights))
