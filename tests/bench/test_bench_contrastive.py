"""Contrastive losses: what chunks cost and save at the size where the logits are a gigabyte."""

import torch

from mmlib.contrastive import clip_loss, siglip_loss

AREA = "Contrastive losses (chapter 5)"

BATCH, DIM, CHUNK = 16_384, 512, 512


def features():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(BATCH, DIM, generator=generator).requires_grad_() for _ in range(2)]


def test_chunked_clip_loss(side_by_side):
    image, text = features()

    def step(chunk):
        def run():
            loss = clip_loss(image, text, 20.0, chunk=chunk)
            torch.autograd.grad(loss, (image, text))

        return run

    table = side_by_side(
        f"CLIP loss, {BATCH} pairs, {DIM} dimensions, forward and backward",
        {"whole": step(None), f"chunks of {CHUNK}": step(CHUNK)},
        rounds=1,  # a call takes 15 seconds
    )
    table.at_most(f"chunks of {CHUNK}", "whole", 1.3)
    table.light(f"chunks of {CHUNK}", "whole", 1 / 8, 0)


def test_chunked_siglip_loss(side_by_side):
    image, text = features()

    def step(chunk):
        def run():
            loss = siglip_loss(image, text, 10.0, -10.0, chunk=chunk)
            torch.autograd.grad(loss, (image, text))

        return run

    table = side_by_side(
        f"SigLIP loss, {BATCH} pairs, {DIM} dimensions, forward and backward",
        {"whole": step(None), f"chunks of {CHUNK}": step(CHUNK)},
        rounds=1,  # a call takes 15 seconds
    )
    table.at_most(f"chunks of {CHUNK}", "whole", 1.5)
    table.light(f"chunks of {CHUNK}", "whole", 1 / 8, 0)
