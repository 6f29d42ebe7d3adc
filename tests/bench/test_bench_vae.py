"""Speed and memory of chapter 09's parts beside a plain way to write them."""

import torch
import torch.nn.functional as F

from mmlib.discrete_vae import DiscreteVAE, DiscreteVAEConfig
from mmlib.likelihoods import Pixels, discretised_logistic
from mmlib.quantise import gumbel_softmax, squared_distances, vector_quantise

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
    assert table.ratio("mmlib", "torch.cdist") < 1.2
    assert table.memory("mmlib") < table.memory("all differences") / 4


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
    assert table.ratio("mmlib", "one-hot") < 1


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
    assert table.ratio("mmlib", "torch") < 1.3


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
    assert table.ratio("mmlib", "four cases") < 1.2


def test_training_step(side_by_side):
    pictures = torch.rand(32, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def step(quantiser, precision, layout):
        model = DiscreteVAE(DiscreteVAEConfig(quantiser=quantiser)).to(memory_format=layout)
        batch, noise = pictures.to(memory_format=layout), torch.Generator().manual_seed(0)

        def run():
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = model(batch, generator=noise).loss
            loss.backward()
            model.zero_grad()

        return run

    last, first = torch.channels_last, torch.contiguous_format
    side_by_side(
        "discrete autoencoder, 32 pictures, forward and backward",
        {
            "vq, fp32": step("vq", "fp32", last),
            "vq, fp32, channels first": step("vq", "fp32", first),
            "vq, bf16": step("vq", "bf16", last),
            "gumbel, bf16": step("gumbel", "bf16", last),
        },
        rounds=5,
    )
