r"""Which token comes next, drawn from the logits: temperature, top-k, nucleus: chapter 11.

:func:`mmlib.decoding.greedy` takes the most probable token. A picture made so is the same for
every call, and often a poor one: the most probable next token is the background. Drawing gives
pictures that differ, and three numbers say how far from the model's own distribution one draws.

References:
    Fan, Lewis and Dauphin, *Hierarchical Neural Story Generation*, ACL 2018 (top-k). Holtzman et
    al., *The Curious Case of Neural Text Degeneration*, ICLR 2020 (nucleus). Ho and Salimans,
    *Classifier-Free Diffusion Guidance*, 2022.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["draw", "filter_logits", "guide"]


def guide(
    conditional: Float[Tensor, "*shape"], unconditional: Float[Tensor, "*shape"], scale: float | int
) -> Float[Tensor, "*shape"]:
    r"""Classifier-free guidance (无分类器引导): away from what is likely without the condition.

    .. math:: \ell = \ell_\varnothing + s\,(\ell_c - \ell_\varnothing)

    Of logits it samples from :math:`p(x \mid c)^s\, p(x)^{1-s}`, scaled to one, at each step; by
    Bayes' rule that is :math:`p(x)\,p(c \mid x)^s`: the condition counted :math:`s` times. Of the
    velocities of a flow it is used in the same form. 1 leaves the condition as it is, 0 leaves it
    out.

    Args:
        conditional: :math:`\ell_c`.
        unconditional: :math:`\ell_\varnothing`.
        scale: :math:`s`, finite.

    Raises:
        ValueError: other shapes, or a scale that is not finite.

    >>> guide(torch.tensor([2.0, 0.0]), torch.tensor([1.0, 1.0]), 3.0)
    tensor([ 4., -2.])
    """
    if conditional.shape != unconditional.shape:
        raise ValueError(
            "conditional and unconditional must be of one shape: "
            f"got {tuple(conditional.shape)} and {tuple(unconditional.shape)}"
        )
    if not math.isfinite(scale):
        raise ValueError(f"scale must be finite: got {scale}")
    return unconditional + scale * (conditional - unconditional)


def filter_logits(
    logits: Float[Tensor, "batch vocab"], top_k: int | None = None, top_p: float | int = 1.0
) -> Float[Tensor, "batch vocab"]:
    r"""Forbid improbable tokens: their logits become :math:`-\infty`.

    Top-k keeps the :math:`k` most probable. The nucleus keeps the smallest set of the most probable
    ones whose probabilities, after top-k, sum to at least :math:`p`; so it is wide where the model
    does not know and narrow where it does. The most probable token always stays.

    Args:
        logits: Finite, or :math:`-\infty` for what is forbidden already.
        top_k: :math:`k`; None keeps all. Of tokens as probable as the last of them, all are kept.
        top_p: :math:`p`, above 0; 1 keeps all.

    Raises:
        ValueError: a number out of its range, or logits that are NaN or forbid everything.

    >>> filter_logits(torch.tensor([[2.0, 1.0, 0.0, -1.0]]), top_k=3, top_p=0.8)
    tensor([[2., 1., -inf, -inf]])
    """
    if logits.ndim != 2 or 0 in logits.shape:
        raise ValueError(
            f"logits must have shape (batch, vocab), not empty: got {tuple(logits.shape)}"
        )
    if not bool((logits.amax(dim=1) > -torch.inf).all()):  # NaN is not above either
        raise ValueError("logits must hold numbers: a row has NaN, or -inf only")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1: got {top_k}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1: got {top_p}")
    if top_k is not None and top_k < logits.shape[1]:
        least = logits.topk(top_k, dim=1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(dim=1, descending=True)
        probs = ordered.softmax(dim=1)
        # A token goes if those before it reach p already; the one that reaches it stays.
        late = probs.cumsum(dim=1) - probs >= top_p
        logits = logits.masked_fill(late.scatter(1, order, late), -torch.inf)
    return logits


def draw(
    logits: Float[Tensor, "batch vocab"],
    generator: torch.Generator | None = None,
    *,
    temperature: float | int = 1.0,
    top_k: int | None = None,
    top_p: float | int = 1.0,
) -> Int[Tensor, " batch"]:
    r"""Draw a token for each row.

    .. math:: x \sim \operatorname{softmax}(\ell / \tau)

    Below 1 the temperature :math:`\tau` makes the probable more probable, above 1 less; at 0 the
    most probable token is taken. The filters see the logits after the temperature.

    Args:
        logits: As :func:`filter_logits` takes them.
        generator: What is drawn from; on its own device, where the drawing is done.
        temperature: :math:`\tau`, at least 0.
        top_k: See :func:`filter_logits`.
        top_p: See :func:`filter_logits`.

    Raises:
        ValueError: a number out of its range, or logits that are NaN or forbid everything.

    >>> draw(torch.tensor([[0.0, 3.0, 1.0]]), temperature=0)
    tensor([1])
    """
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be finite and at least 0: got {temperature}")
    # bf16 has too few digits for sums over a vocabulary.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    kept = filter_logits(logits / temperature if temperature else logits, top_k, top_p)
    if temperature == 0:
        return kept.argmax(dim=1)
    device = kept.device if generator is None else generator.device
    probs = kept.softmax(dim=1).to(device)
    return torch.multinomial(probs, 1, generator=generator)[:, 0].to(kept.device)
