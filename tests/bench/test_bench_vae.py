"""Speed and memory of chapter 09's parts beside a plain way to write them."""

import torch
import torch.nn.functional as F
from torch import nn

from mmlib.autoencoder import PictureDecoder, PictureEncoder
from mmlib.discrete_vae import DiscreteVAE, DiscreteVAEConfig
from mmlib.likelihoods import Pixels, discretised_logistic
from mmlib.quantise import gumbel_softmax, squared_distances, vector_quantise

AREA = "Autoencoders (chapter 9)"

TOKENS, CODES, DIM = 4096, 512, 32  # a batch of 64 pictures


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_distances(side_by_side):
    vectors, codes = draw(TOKENS, DIM, seed=1), draw(CODES, DIM, seed=2)
    table = side_by_side(
        f"squared distances of {TOKENS} vectors to {CODES} codes of length {DIM}",
        {
            "mmlib": lambda: squared_distances(vectors, codes),
            "torch.cdist": lambda: torch.cdist(vectors, codes).square(),
            "all differences": lambda: (vectors[:, None] - codes).square().sum(-1),
        },
    )
    table.at_most("mmlib", "torch.cdist", 1.2)
    table.light("mmlib", "all differences", 1 / 4, 0)


def test_vector_quantise(side_by_side):
    vectors, codes = draw(TOKENS, DIM, seed=1), draw(CODES, DIM, seed=2)

    def with_one_hot():
        """As in the first published code: one-hot vectors times the codebook."""
        distance = vectors.square().sum(1, keepdim=True) + codes.square().sum(1)
        distance = distance - 2 * vectors @ codes.T
        one_hot = F.one_hot(distance.argmin(1), CODES).float()
        nearest = one_hot @ codes
        share = one_hot.mean(0)
        (share * (share + 1e-10).log()).sum()
        return F.mse_loss(nearest, vectors), vectors + (nearest - vectors)

    table = side_by_side(
        f"nearest of {CODES} codes for {TOKENS} vectors",
        {"mmlib": lambda: vector_quantise(vectors, codes), "one-hot": with_one_hot},
    )
    table.at_most("mmlib", "one-hot", 1)


def test_gumbel_softmax(side_by_side):
    logits = draw(TOKENS, CODES).requires_grad_()
    generator = torch.Generator().manual_seed(0)

    def step(function):
        def run():
            torch.autograd.grad(function().square().sum(), logits)

        return run

    table = side_by_side(
        f"Gumbel-softmax of {TOKENS} × {CODES} logits, hard, forward and backward",
        {
            "mmlib": step(lambda: gumbel_softmax(logits, 0.5, hard=True, generator=generator)),
            "torch": step(lambda: F.gumbel_softmax(logits, tau=0.5, hard=True)),
        },
    )
    table.at_most("mmlib", "torch", 1.3)


def test_discretised_logistic(side_by_side):
    pictures = torch.randint(256, (64, 3, 32, 32), generator=torch.Generator()) / 255
    mean = draw(64, 3, 32, 32, seed=1).requires_grad_()
    log_scale = draw(64, 3, 32, 32, seed=2).requires_grad_()

    def cases():
        """As in PixelCNN++: four cases, of which each pixel takes one."""
        inverse, centred = (-log_scale).exp(), pictures - mean
        plus, minus = inverse * (centred + 0.5 / 255), inverse * (centred - 0.5 / 255)
        delta = plus.sigmoid() - minus.sigmoid()
        middle = inverse * centred
        density = middle - log_scale - 2 * F.softplus(middle) - 5.541
        inner = torch.where(delta > 1e-5, delta.clamp(min=1e-12).log(), density)
        upper = torch.where(pictures > 0.999, -F.softplus(minus), inner)
        return torch.where(pictures < 0.001, plus - F.softplus(plus), upper).sum()

    def step(function):
        def run():
            torch.autograd.grad(function(), (mean, log_scale))

        return run

    table = side_by_side(
        "discretised logistic of 64 pictures of 32 × 32, forward and backward",
        {
            "mmlib": step(lambda: discretised_logistic(pictures, Pixels(mean, log_scale)).sum()),
            "four cases": step(cases),
        },
    )
    table.at_most("mmlib", "four cases", 1.2)


class PlainVQ(nn.Module):
    """Codebook and straight-through as in the first published code, between the same halves."""

    def __init__(self, config):
        super().__init__()
        sizes = config.widths, config.blocks
        self.encoder = PictureEncoder(config.channels, *sizes, config.code_dim)
        self.norm = nn.BatchNorm2d(config.code_dim, affine=False)
        self.codebook = nn.Embedding(config.codes, config.code_dim)
        self.decoder = PictureDecoder(config.code_dim, *sizes, config.channels)

    def forward(self, pictures):
        grid = self.norm(self.encoder(pictures))
        vectors = grid.permute(0, 2, 3, 1).reshape(-1, grid.shape[1])
        codes = self.codebook.weight
        distance = vectors.square().sum(1, keepdim=True) + codes.square().sum(1)
        one_hot = F.one_hot((distance - 2 * vectors @ codes.T).argmin(1), len(codes)).float()
        nearest = one_hot @ codes
        extra = F.mse_loss(nearest, vectors.detach())
        extra = extra + 0.25 * F.mse_loss(vectors, nearest.detach())
        straight = vectors + (nearest - vectors).detach()
        count, _, height, width = grid.shape
        painted = self.decoder(straight.view(count, height, width, -1).permute(0, 3, 1, 2))
        return F.mse_loss(painted / 2 + 0.5, pictures).log() + extra


def test_training_step(side_by_side):
    """Likelihood, counting and the check for unused codes must cost next to nothing."""
    pictures = torch.rand(32, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    pictures = pictures.contiguous(memory_format=torch.channels_last)
    ours = DiscreteVAE(DiscreteVAEConfig()).to(memory_format=torch.channels_last)
    plain = PlainVQ(DiscreteVAEConfig()).to(memory_format=torch.channels_last)
    noise = torch.Generator().manual_seed(0)

    def step(model, loss):
        def run():
            loss().backward()
            model.zero_grad()

        return run

    table = side_by_side(
        "discrete autoencoder, 32 pictures, forward and backward, fp32",
        {
            "mmlib": step(ours, lambda: ours(pictures, generator=noise).loss),
            "plain torch": step(plain, lambda: plain(pictures)),
        },
        rounds=15,
    )
    table.as_fast("mmlib", "plain torch")
