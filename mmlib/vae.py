r"""The variational autoencoder: a bound of the likelihood, in nats per picture: chapter 09.

A picture :math:`x` is explained by a latent vector :math:`z` with the prior :math:`p(z) =
\mathcal N(0, I)` and a decoder :math:`p(x \mid z)`. The encoder gives :math:`q(z \mid x)`, and

.. math::

    \log p(x) \;\ge\; \underbrace{\mathbb E_{q(z \mid x)} \log p(x \mid z)}_{\text{reconstruction}}
        \; - \; \underbrace{\mathrm{KL}\bigl(q(z \mid x) \,\|\, p(z)\bigr)}_{\text{kl}}
        \; = \; \text{elbo}.

Everything is in nats per picture: summed over pixels and latent dimensions, never averaged. A
mean over pixels beside a sum over dimensions would weigh the two terms by chance, and that is how
most collapsed autoencoders come about.

Which likelihood a decoder has, and why, is in :mod:`mmlib.likelihoods`.

References:
    Kingma and Welling, *Auto-Encoding Variational Bayes*, ICLR 2014. Kingma et al., *Improved
    Variational Inference with Inverse Autoregressive Flow*, NeurIPS 2016 (free bits). Higgins et
    al., *beta-VAE*, ICLR 2017.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from mmlib.autoencoder import PictureDecoder, PictureEncoder
from mmlib.likelihoods import Pixels, discretised_logistic, gaussian_log_density

__all__ = [
    "VAE",
    "Elbo",
    "Normal",
    "VAEConfig",
    "active_units",
    "elbo",
    "gaussian_kl",
    "reparameterise",
    "standard_normal",
]

LOWEST_LOG_SCALE = -7.0  # a logistic that narrow puts 0.9 on one of 256 levels


class Normal(NamedTuple):
    """Independent normal distributions.

    Attributes:
        mean: Means.
        log_variance: Logarithms of the variances.
    """

    mean: Float[Tensor, "batch latent"]
    log_variance: Float[Tensor, "batch latent"]


class Elbo(NamedTuple):
    r"""The bound and its terms, all in nats per picture.

    Attributes:
        reconstruction: :math:`\log p(x \mid z)` of one drawn :math:`z`, an unbiased estimate.
        kl: The Kullback–Leibler divergence from prior to posterior, exact.
        elbo: Their difference: the bound itself, whatever ``beta`` and ``free_bits`` are.
        loss: What is minimised: the mean over the batch, with ``beta`` and ``free_bits``.
    """

    reconstruction: Float[Tensor, " batch"]
    kl: Float[Tensor, " batch"]
    elbo: Float[Tensor, " batch"]
    loss: Float[Tensor, ""]


def gaussian_kl(posterior: Normal) -> Float[Tensor, "batch latent"]:
    r"""Divergence of a normal posterior from the standard normal prior, in nats per dimension.

    .. math:: \mathrm{KL} = \tfrac12 \bigl(\mu^2 + \sigma^2 - 1 - \log \sigma^2\bigr)

    >>> gaussian_kl(Normal(torch.tensor([[0.0, 2.0]]), torch.zeros(1, 2)))
    tensor([[0., 2.]])
    """
    mean, log_variance = posterior
    # expm1(v) - v loses no digits where the variance is near 1.
    return (mean.square() + torch.expm1(log_variance) - log_variance) / 2


def reparameterise(
    posterior: Normal, noise: Float[Tensor, "*draws batch latent"]
) -> Float[Tensor, "*draws batch latent"]:
    r"""Draw from a posterior so that gradients reach its parameters.

    .. math:: z = \mu + \sigma \epsilon

    Args:
        posterior: :math:`\mu` and :math:`\log \sigma^2`.
        noise: :math:`\epsilon`, standard normal; axes in front of the batch are further draws.
    """
    return posterior.mean + (posterior.log_variance / 2).exp() * noise


def standard_normal(
    shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Standard normal numbers of ``like``'s dtype on its device, from a generator of any device."""
    device = like.device if generator is None else generator.device
    return torch.randn(shape, generator=generator, device=device, dtype=like.dtype).to(like.device)


def elbo(
    reconstruction: Float[Tensor, " batch"],
    kl: Float[Tensor, "batch latent"],
    *,
    beta: float | int = 1.0,
    free_bits: float | int = 0.0,
) -> Elbo:
    r"""The evidence lower bound, and the loss to train with.

    .. math::

        \text{loss} = \frac1n \sum_i -\log p(x_i \mid z_i)
            + \beta \sum_j \max\Bigl(\lambda \ln 2,\; \frac1n \sum_i \mathrm{KL}_{ij}\Bigr)

    With :math:`\beta = 1, \lambda = 0` that is the bound's negative mean. Below :math:`\lambda`
    bits a latent dimension costs the same whether it says something or not, so that none is given
    up early in training.

    Args:
        reconstruction: :math:`\log p(x \mid z)` of each picture, in nats.
        kl: In nats, each latent dimension apart.
        beta: :math:`\beta`, the weight of the KL term.
        free_bits: :math:`\lambda`, bits of each dimension that are free on the batch's average.

    Raises:
        ValueError: an argument is negative, or the batches differ.

    >>> terms = elbo(torch.tensor([-100.0]), torch.tensor([[3.0, 0.1]]), beta=2.0)
    >>> terms.elbo, terms.loss
    (tensor([-103.1000]), tensor(106.2000))
    """
    for name, value in (("beta", beta), ("free_bits", free_bits)):
        if not value >= 0:
            raise ValueError(f"{name} must be at least 0: got {value}")
    if len(reconstruction) != len(kl) or not len(kl):
        raise ValueError(
            "reconstruction and kl must have one row for each picture, at least one: "
            f"got {len(reconstruction)} and {len(kl)}"
        )
    floor = free_bits * math.log(2)
    penalty = kl.mean(0).clamp(min=floor).sum() if free_bits else kl.mean(0).sum()
    total = kl.sum(1)
    loss = beta * penalty - reconstruction.mean()
    return Elbo(reconstruction, total, reconstruction - total, loss)


@dataclass(frozen=True)
class VAEConfig:
    """Sizes and choices of a :class:`VAE`.

    Attributes:
        size: Height and width of the pictures: a multiple of two to the number of stages.
        channels: Of the pictures.
        widths: Channels of the encoder after each halving; none makes both halves linear.
        blocks: Residual blocks after each halving.
        latent: Dimensions of the latent vector.
        likelihood: ``"logistic"``, of 8-bit pictures, each channel of each pixel with a scale of
            its own, or ``"gaussian"``, a density with one learned scale for all.

    Raises:
        ValueError: a number or a choice out of its range.
    """

    size: int = 32
    channels: int = 3
    widths: tuple[int, ...] = (32, 64, 128)
    blocks: tuple[int, ...] = (1, 1, 1)
    latent: int = 64
    likelihood: Literal["logistic", "gaussian"] = "logistic"

    def __post_init__(self) -> None:
        if len(self.widths) != len(self.blocks):
            raise ValueError(
                "widths and blocks must have one entry for each stage: "
                f"got {self.widths} and {self.blocks}"
            )
        if min(self.channels, self.latent, *self.widths) < 1 or min((0, *self.blocks)) < 0:
            raise ValueError(
                "channels, latent and widths must be at least 1, blocks at least 0: got "
                f"{self.channels}, {self.latent}, {self.widths}, {self.blocks}"
            )
        if self.size < 1 or self.size % 2 ** len(self.widths):
            raise ValueError(
                f"size must be a multiple of {2 ** len(self.widths)}, as there are "
                f"{len(self.widths)} stages: got {self.size}"
            )
        if self.likelihood not in ("logistic", "gaussian"):
            raise ValueError(
                f"likelihood must be 'logistic' or 'gaussian': got {self.likelihood!r}"
            )


class VAE(nn.Module):
    """A variational autoencoder of pictures with a diagonal normal posterior.

    Attributes:
        config: Sizes and choices.

    >>> model = VAE(VAEConfig(widths=(8, 16), blocks=(0, 0), latent=4))
    >>> terms = model(torch.zeros(2, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    >>> torch.equal(terms.elbo, terms.reconstruction - terms.kl)
    True
    """

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.side = config.size // 2 ** len(config.widths)
        width = config.widths[-1] if config.widths else config.channels
        inner = width * self.side**2
        out = config.channels * (2 if config.likelihood == "logistic" else 1)
        self.encoder = nn.Identity()
        self.decoder = nn.Identity()
        self.to_posterior = nn.Linear(inner, 2 * config.latent)
        if config.widths:
            self.encoder = PictureEncoder(config.channels, config.widths, config.blocks, width)
            self.decoder = PictureDecoder(width, config.widths, config.blocks, out)
        else:
            inner = out * config.size**2
        self.from_latent = nn.Linear(config.latent, inner)
        if config.likelihood == "gaussian":
            self.log_scale = nn.Parameter(torch.tensor(-1.0))

    def encode(self, pictures: Float[Tensor, "batch channels height width"]) -> Normal:
        """The posterior of each picture.

        Raises:
            ValueError: the pictures are of another size or number of channels.
        """
        config = self.config
        if pictures.shape[1:] != (config.channels, config.size, config.size):
            raise ValueError(
                f"pictures must be of shape (batch, {config.channels}, {config.size}, "
                f"{config.size}): got {tuple(pictures.shape)}"
            )
        x = self.to_posterior(self.encoder(pictures).flatten(1))
        return Normal(*x.to(self.to_posterior.weight.dtype).chunk(2, dim=1))

    def decode(self, z: Float[Tensor, "batch latent"]) -> Pixels:
        """What each latent vector says of every pixel."""
        x = rearrange(self.from_latent(z), "b (c h w) -> b c h w", h=self.side, w=self.side)
        x = self.decoder(x)
        if self.config.likelihood == "gaussian":
            return Pixels(x, self.log_scale.expand_as(x))
        mean, log_scale = x.chunk(2, dim=1)
        # Zeros mean mid-grey, give or take a tenth.
        return Pixels(mean / 2 + 0.5, (log_scale - 2).clamp(min=LOWEST_LOG_SCALE))

    def log_likelihood(
        self, pictures: Float[Tensor, "batch channels height width"], pixels: Pixels
    ) -> Float[Tensor, "*draws batch"]:
        r""":math:`\log p(x \mid z)` of each picture, in nats; of each draw where there are more."""
        if self.config.likelihood == "gaussian":
            return gaussian_log_density(pictures, pixels)
        return discretised_logistic(pictures, pixels)

    def forward(
        self,
        pictures: Float[Tensor, "batch channels height width"],
        *,
        beta: float | int = 1.0,
        free_bits: float | int = 0.0,
        noise: Float[Tensor, "batch latent"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Elbo:
        """The bound for each picture, from one draw of its latent vector.

        Args:
            pictures: In [0, 1]; whole multiples of 1/255 for the logistic likelihood.
            beta: See :func:`elbo`.
            free_bits: Likewise.
            noise: Standard normal; drawn where it is not given.
            generator: What the noise is drawn from, by default torch's own.
        """
        posterior = self.encode(pictures)
        if noise is None:
            noise = standard_normal(posterior.mean.shape, posterior.mean, generator)
        pixels = self.decode(reparameterise(posterior, noise))
        reconstruction = self.log_likelihood(pictures, pixels)
        return elbo(reconstruction, gaussian_kl(posterior), beta=beta, free_bits=free_bits)

    def sample(
        self, count: int, generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch channels height width"]:
        """Decode draws from the prior: the mean of each pixel, in [0, 1]."""
        z = standard_normal((count, self.config.latent), self.from_latent.weight, generator)
        return self.decode(z).mean.clamp(0, 1)


def active_units(means: Float[Tensor, "pictures latent"], threshold: float = 0.01) -> int:
    r"""How many latent dimensions say anything: whose posterior mean varies over pictures.

    A dimension counts where :math:`\operatorname{Var}_x \mathbb E_{q(z \mid x)}[z_j]` is above the
    threshold (Burda, Grosse, Salakhutdinov, ICLR 2016).

    Args:
        means: Posterior means of many pictures.
        threshold: 0.01, as there.

    Raises:
        ValueError: fewer than two pictures.
    """
    if len(means) < 2:
        raise ValueError(f"means must be of at least two pictures: got {len(means)}")
    return int((means.var(0) > threshold).sum())
