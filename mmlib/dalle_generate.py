"""Drawing a picture's codes with DALL·E, one after the other: chapter 11."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Int
from torch import Tensor, nn

from mmlib.dalle import Dalle, check_text
from mmlib.sampling import draw, guide

__all__ = ["generate"]


@torch.no_grad()
def generate(
    model: Dalle,
    text: Int[Tensor, "batch length"],
    generator: torch.Generator | None = None,
    *,
    guidance: float | int = 1.0,
    temperature: float | int = 1.0,
    top_k: int | None = None,
    top_p: float | int = 1.0,
    use_cache: bool = True,
) -> Int[Tensor, "batch rows columns"]:
    """Draw a picture's codes for each text, one after the other.

    Args:
        model: Its mode is put back.
        text: As :meth:`Dalle.forward` takes it; a text may stand there several times.
        generator: What is drawn from.
        guidance: Scale of :func:`~mmlib.sampling.guide`, with the text of padding alone as no
            condition. Any but 0 and 1 costs twice the time.
        temperature: See :func:`~mmlib.sampling.draw`.
        top_k: See :func:`~mmlib.sampling.filter_logits`.
        top_p: See :func:`~mmlib.sampling.filter_logits`.
        use_cache: False runs the model over all tokens at each step, which gives the same and
            takes longer: it is here to be compared with.

    Returns:
        Grids that :meth:`mmlib.discrete_vae.DiscreteVAE.decode` paints.

    Raises:
        ValueError: a wrong shape, an id outside its vocabulary, or a number out of its range.
    """
    config = model.config
    check_text(text, config)
    if not math.isfinite(guidance):
        raise ValueError(f"guidance must be finite: got {guidance}")
    count, nothing = len(text), torch.full_like(text, config.pad_id)
    if guidance == 0:
        prompt = nothing
    else:
        prompt = text if guidance == 1 else torch.cat([text, nothing])
    cache = model.decoder.new_cache() if use_cache else None
    codes = text.new_empty(count, 0)
    with _evaluating(model):
        for _ in range(config.places):
            rows = codes.repeat(len(prompt) // count, 1)
            if cache is None:
                logits = model(prompt, rows).codes[:, -1]
            elif rows.shape[1]:
                logits = model.step(rows[:, -1], cache)
            else:
                logits = model.begin(prompt, cache)
            if len(logits) > count:
                logits = guide(logits[:count].float(), logits[count:].float(), guidance)
            new = draw(logits, generator, temperature=temperature, top_k=top_k, top_p=top_p)
            codes = torch.cat([codes, new[:, None]], dim=1)
    return codes.unflatten(1, (config.side, config.side))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
