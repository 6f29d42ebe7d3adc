r"""From vectors to words of a codebook, so that gradients pass: Gumbel-softmax and nearest codes.

Two ways to choose one of :math:`K` codes and still train what stands before the choice:

* :func:`gumbel_softmax` *draws* a code from a distribution. The draw is relaxed to a mixture of
  codes, which gradients pass and which a falling temperature brings close to one code.
* :func:`vector_quantise` *takes* the nearest code, and hands its gradient to the vector as if
  nothing had happened (straight through).

References:
    Jang, Gu, Poole, *Categorical Reparameterization with Gumbel-Softmax*, ICLR 2017. Maddison,
    Mnih, Teh, *The Concrete Distribution*, ICLR 2017. van den Oord, Vinyals, Kavukcuoglu, *Neural
    Discrete Representation Learning*, NeurIPS 2017.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

__all__ = [
    "NearestCodes",
    "Usage",
    "categorical_kl",
    "code_usage",
    "gumbel_noise",
    "gumbel_softmax",
    "squared_distances",
    "temperature_at",
    "vector_quantise",
]


class NearestCodes(NamedTuple):
    """What became of some vectors.

    Attributes:
        vectors: The nearest codes; their gradient goes to the vectors that were given.
        ids: Numbers of these codes.
        codebook: What pulls the codes to their vectors, a mean over all numbers.
        commitment: The same number; it pulls the vectors to their codes.
    """

    vectors: Float[Tensor, "tokens dim"]
    ids: Int[Tensor, " tokens"]
    codebook: Float[Tensor, ""]
    commitment: Float[Tensor, ""]


class Usage(NamedTuple):
    """How a codebook is used.

    Attributes:
        counts: How often each code was chosen.
        perplexity: e to the entropy of the shares: as many codes, all used alike, say as much.
        used: How many codes were chosen at all.
    """

    counts: Int[Tensor, " codes"]
    perplexity: float
    used: int


def gumbel_noise(
    shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    r"""Standard Gumbel numbers :math:`-\log E` with :math:`E` exponential, of ``like``'s dtype.

    Drawn in fp32 at least: in bf16 an exponential has too few values near 0, where the largest
    Gumbel numbers come from.

    Args:
        shape: Of the result.
        like: Whose dtype and device the result has.
        generator: What is drawn from, of any device; by default torch's own.
    """
    device = like.device if generator is None else generator.device
    dtype = torch.promote_types(like.dtype, torch.float32)
    drawn = torch.empty(shape, dtype=dtype, device=device).exponential_(generator=generator)
    return -drawn.clamp(min=torch.finfo(dtype).tiny).log().to(like)


def gumbel_softmax(
    logits: Float[Tensor, "*batch codes"],
    temperature: float | int,
    *,
    hard: bool = False,
    noise: Float[Tensor, "*batch codes"] | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*batch codes"]:
    r"""Draw from a categorical distribution so that gradients reach its logits.

    .. math:: y = \operatorname{softmax}\bigl((\ell + g) / \tau\bigr),
        \qquad g_k = -\log E_k, \quad E_k \sim \operatorname{Exp}(1)

    At every temperature :math:`\tau` the largest number of :math:`\ell + g` is at :math:`k` with
    probability :math:`\operatorname{softmax}(\ell)_k`, and :math:`y` becomes that one code as
    :math:`\tau \to 0`.

    Args:
        logits: Any numbers; a constant added to all codes changes nothing.
        temperature: :math:`\tau`.
        hard: Whether to return the one-hot vector, with the gradient of the soft one (straight
            through).
        noise: :math:`g`; drawn where it is not given.
        generator: What the noise is drawn from, by default torch's own.

    Raises:
        ValueError: ``temperature`` is not positive.

    >>> logits = torch.tensor([0.0, 5.0])
    >>> gumbel_softmax(logits, 0.5, hard=True, noise=torch.tensor([0.0, 1.0]))
    tensor([0., 1.])
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0: got {temperature}")
    if noise is None:
        noise = gumbel_noise(logits.shape, logits, generator)
    soft = ((logits + noise) / temperature).softmax(-1)
    if not hard:
        return soft
    one_hot = torch.zeros_like(soft).scatter_(-1, soft.argmax(-1, keepdim=True), 1.0)
    return one_hot + (soft - soft.detach())  # the bracket is exactly zero


def temperature_at(
    step: int,
    steps: int,
    start: float | int = 1.0,
    end: float | int = 1 / 16,
    share: float | int = 0.75,
) -> float:
    r"""The temperature of a step: falling by equal ratios, then constant.

    .. math:: \tau_t = \tau_0 \, (\tau_1 / \tau_0)^{\min(1,\; t / (s T))}

    Args:
        step: :math:`t`, from 0.
        steps: :math:`T`.
        start: :math:`\tau_0`.
        end: :math:`\tau_1`; 1/16 as in DALL·E.
        share: :math:`s`, the part of the steps after which the end is reached.

    Raises:
        ValueError: a step or a temperature out of its range.

    >>> [round(temperature_at(step, 100), 3) for step in (0, 25, 75, 99)]
    [1.0, 0.397, 0.062, 0.062]
    """
    if not 0 <= step <= steps or steps < 1:
        raise ValueError(f"step must be from 0 to steps: got {step} of {steps}")
    if not (start > 0 and end > 0 and 0 < share <= 1):
        raise ValueError(
            "start and end must be above 0 and share above 0 and at most 1: "
            f"got {start}, {end} and {share}"
        )
    return start * (end / start) ** min(1.0, step / (share * steps))


def categorical_kl(logits: Float[Tensor, "*batch codes"]) -> Float[Tensor, "*batch"]:
    r"""Divergence of categorical distributions from the uniform one, in nats.

    .. math:: \mathrm{KL} = \log K + \sum_k p_k \log p_k, \qquad p = \operatorname{softmax}(\ell)

    >>> categorical_kl(torch.zeros(2, 512))
    tensor([0., 0.])
    """
    log_share = logits.log_softmax(-1)
    # Where a share is 0 its logarithm may be -inf; 0 · -inf would be NaN.
    terms = log_share.exp() * log_share.clamp(min=torch.finfo(log_share.dtype).min)
    return (terms.sum(-1) + math.log(logits.shape[-1])).clamp(min=0)


def squared_distances(
    vectors: Float[Tensor, "tokens dim"], codes: Float[Tensor, "codes dim"]
) -> Float[Tensor, "tokens codes"]:
    r"""Squared distance of every vector to every code: one matrix product.

    .. math:: \|v - e\|^2 = \|v\|^2 - 2 v \cdot e + \|e\|^2
    """
    # A difference of large numbers: under autocast the product would be rounded to bf16.
    with torch.autocast(vectors.device.type, enabled=False):
        product = vectors @ codes.T
    return vectors.square().sum(1, keepdim=True) - 2 * product + codes.square().sum(1)


def vector_quantise(
    vectors: Float[Tensor, "tokens dim"], codes: Float[Tensor, "codes dim"]
) -> NearestCodes:
    r"""Replace each vector by its nearest code, straight through.

    .. math::

        k = \operatorname{argmin}_j \|v - e_j\|^2, \qquad
        \hat v = v + \operatorname{sg}(e_k - v), \qquad
        \text{codebook} = \overline{(\operatorname{sg}(v) - e_k)^2}, \quad
        \text{commitment} = \overline{(v - \operatorname{sg}(e_k))^2}

    where :math:`\operatorname{sg}` stops the gradient and the bar is the mean over all numbers.

    Args:
        vectors: What is to be replaced.
        codes: The codebook.

    Returns:
        The codes, their numbers and the two losses, still to be weighed.

    >>> codes = torch.tensor([[0.0, 0.0], [4.0, 4.0]])
    >>> vector_quantise(torch.tensor([[3.0, 5.0]]), codes)[:2]
    (tensor([[4., 4.]]), tensor([1]))
    """
    with torch.no_grad():
        ids = squared_distances(vectors, codes).argmin(1)
    nearest = codes[ids]
    return NearestCodes(
        nearest.detach() + (vectors - vectors.detach()),  # the bracket is exactly zero
        ids,
        F.mse_loss(nearest, vectors.detach()),
        F.mse_loss(vectors, nearest.detach()),
    )


def code_usage(ids: Int[Tensor, "*batch"], codes: int) -> Usage:
    r"""Count codes: how many are used, and how evenly.

    .. math:: \text{perplexity} = \exp\Bigl(-\sum_k p_k \log p_k\Bigr)

    with the shares :math:`p` of all ids together. It is at most the number of codes.

    Args:
        ids: Numbers of codes, any shape.
        codes: Size of the codebook.

    Raises:
        ValueError: there are no ids, or one is out of range.

    >>> usage = code_usage(torch.tensor([[0, 0], [3, 3]]), 512)
    >>> round(usage.perplexity, 4), usage.used
    (2.0, 2)
    """
    if not ids.numel():
        raise ValueError("ids must hold at least one: got none")
    low, high = (int(value) for value in ids.aminmax())
    if low < 0 or high >= codes:
        raise ValueError(f"ids must be from 0 to {codes - 1}: got {low} to {high}")
    counts = torch.bincount(ids.flatten(), minlength=codes)
    share = counts[counts > 0].double() / ids.numel()
    perplexity = (-(share * share.log()).sum()).exp().item()
    return Usage(counts, perplexity, int((counts > 0).sum()))
