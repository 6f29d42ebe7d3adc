r"""Contrastive losses: what belongs together near, everything else apart: chapter 05.

Every loss here normalises its inputs to unit length first, so that a similarity is a cosine; a
caller cannot forget it. ``logit_scale`` is the factor on the cosines, already exponentiated: one
over the temperature. Logits are computed in fp32, under autocast too: times a scale of 100, the
rounding of bf16 would move them by up to a half.

**Several positives.** In a batch of a thousand captions some say the same thing twice, and the
twin of an item is no negative. ``groups`` gives equal numbers to items that belong together: all
of a group are positives of each other, each with an equal share of the target.

**Several processes.** With ``gather=True`` each rank compares its own items with those of all
ranks, and the gradient, averaged over the ranks by DistributedDataParallel, is that of one
process with the whole batch. :mod:`mmlib.large_batches` has the versions that save memory.

:mod:`mmlib.triplet` has the older loss of three, :mod:`mmlib.hypersphere` what to watch.

References:
    van den Oord, Li, Vinyals, *Representation Learning with Contrastive Predictive Coding*,
    2018. Radford et al., *Learning Transferable Visual Models From Natural Language
    Supervision*, ICML 2021. Khosla et al., *Supervised Contrastive Learning*, NeurIPS 2020.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmlib.large_batches import chunked_clip_loss, cosines, in_row_chunks
from mmlib.pairs import check_groups, group_numbers, same_group, unit, unit_pair
from mmlib.training.distributed import all_gather, rank, world_size

__all__ = ["LogitScale", "clip_loss", "info_nce", "siglip_loss"]


class LogitScale(nn.Module):
    r"""The learned factor on the cosines, :math:`s = \min(e^\theta, s_{\max})`.

    It is learned as a logarithm, so that it stays positive and moves by ratios, and held below a
    maximum, without which it can run away until a few pairs make up the whole gradient. As in
    CLIP's own training, the parameter itself is clamped: were only the output, the parameter
    could drift far above the maximum, with no gradient to come back. Its name keeps
    :func:`mmlib.training.optimizer.decay_groups` from decaying it.

    Args:
        initial: The factor at the start, 1 / 0.07 as in CLIP.
        maximum: The largest factor, 100 as in CLIP.

    Raises:
        ValueError: not 0 < ``initial`` <= ``maximum``.

    >>> scale = LogitScale(initial=20.0)
    >>> round(scale().item(), 4)
    20.0
    """

    def __init__(self, initial: float = 1 / 0.07, maximum: float = 100.0) -> None:
        super().__init__()
        if not 0 < initial <= maximum < math.inf:
            raise ValueError(
                f"initial must be above 0 and at most maximum: got {initial} and {maximum}"
            )
        self.log_limit = math.log(maximum)
        self.log_scale = nn.Parameter(torch.tensor(math.log(initial)))

    def forward(self) -> Float[Tensor, ""]:
        """The factor, which gradients flow through."""
        with torch.no_grad():
            self.log_scale.clamp_(max=self.log_limit)
        return self.log_scale.exp()


def info_nce(
    queries: Float[Tensor, "batch dim"],
    keys: Float[Tensor, "candidates dim"],
    logit_scale: Float[Tensor, ""] | float,
    *,
    positives: Bool[Tensor, "batch candidates"] | None = None,
    keep: Bool[Tensor, "batch candidates"] | None = None,
) -> Float[Tensor, ""]:
    r"""InfoNCE one way: each query must find its positive among the candidates.

    .. math::

        L = -\frac{1}{n} \sum_i \frac{1}{|P_i|} \sum_{j \in P_i}
            \log \frac{\exp(s\, q_i \cdot k_j)}{\sum_{l \in K_i} \exp(s\, q_i \cdot k_l)}

    in nats, with the mean over the queries that have a positive; 0 when none has. With one
    positive each it is the cross-entropy of a classifier whose classes are the candidates, and
    :math:`\log n - L` is a lower bound of the mutual information.

    Args:
        queries: One row for each query; any length above 0.
        keys: The candidates; row ``i`` is the positive of query ``i`` unless ``positives`` says
            otherwise.
        logit_scale: :math:`s`, the factor on the cosines.
        positives: :math:`P_i`, True where a candidate belongs to a query.
        keep: :math:`K_i`, True where a candidate takes part; positives always do.

    Raises:
        TypeError: a mask is not boolean.
        ValueError: shapes that do not fit, or fewer keys than queries without ``positives``.

    >>> items = torch.eye(4)
    >>> loss = info_nce(items, items, 1.0)  # a cosine of 1 for itself, 0 for three others
    >>> round(loss.item(), 4), round(-math.log(math.e / (math.e + 3)), 4)
    (0.7437, 0.7437)
    """
    queries, keys = unit(queries=queries), unit(keys=keys)
    if queries.shape[1] != keys.shape[1]:
        raise ValueError(
            f"queries and keys must have one dim: got {queries.shape[1]} and {keys.shape[1]}"
        )
    shape = (len(queries), len(keys))
    for name, mask in (("positives", positives), ("keep", keep)):
        _check_mask(name, mask, shape)
    if positives is None:
        if shape[1] < shape[0]:
            raise ValueError(
                f"keys must have a row for each query, or positives must be given: got {shape[1]} "
                f"keys for {shape[0]} queries"
            )
        positives = torch.eye(*shape, dtype=torch.bool, device=queries.device)
    logits = logit_scale * cosines(queries, keys)
    if keep is not None:
        logits = logits.masked_fill(~(keep | positives), -torch.inf)
    return _cross_entropy(logits, positives)


def clip_loss(
    image_features: Float[Tensor, "batch dim"],
    text_features: Float[Tensor, "batch dim"],
    logit_scale: Float[Tensor, ""] | float,
    *,
    groups: Int[Tensor, " batch"] | None = None,
    gather: bool = False,
    chunk: int | None = None,
) -> Float[Tensor, ""]:
    r"""The symmetric loss of CLIP: pictures find their texts, and texts their pictures.

    .. math::

        L = \tfrac12 \left( L_{\text{InfoNCE}}(I \to T) + L_{\text{InfoNCE}}(T \to I) \right)

    Equal to ``open_clip.ClipLoss``, which expects features of unit length.

    Args:
        image_features: Row ``i`` belongs to row ``i`` of the texts.
        text_features: As many.
        logit_scale: The factor on the cosines.
        groups: Equal numbers for items that belong together, on whatever rank they are: equal
            captions, say.
        gather: Compare with the items of all ranks, which must have as many each.
        chunk: Rows of the logits held at a time; all by default. Less memory, the same result.

    Raises:
        ValueError: shapes that do not fit, or a ``chunk`` below 1.

    >>> image, text = torch.eye(3), torch.eye(3)
    >>> round(clip_loss(image, text, 100.0).item(), 4)
    0.0
    """
    image, text = unit_pair(image_features, text_features)
    check_groups(groups, len(image))
    _check_chunk(chunk)
    if gather and world_size() > 1:
        images, texts, every, own = _gather(image, text, groups)

        def total(queries: Tensor, own: Tensor, keys: Tensor) -> Tensor:
            return _row_losses(logit_scale * cosines(queries, keys), own[:, None] == every).sum()

        both = in_row_chunks(total, (image, own), texts, chunk)
        both = both + in_row_chunks(total, (text, own), images, chunk)
        return both / (2 * len(image))
    if chunk is not None and chunk < len(image):
        return chunked_clip_loss(image, text, logit_scale, groups, chunk)
    logits = logit_scale * cosines(image, text)
    positives = same_group(groups, len(image), image.device)
    return 0.5 * (_cross_entropy(logits, positives) + _cross_entropy(logits.T, positives))


def siglip_loss(
    image_features: Float[Tensor, "batch dim"],
    text_features: Float[Tensor, "batch dim"],
    logit_scale: Float[Tensor, ""] | float,
    logit_bias: Float[Tensor, ""] | float,
    *,
    groups: Int[Tensor, " batch"] | None = None,
    gather: bool = False,
    chunk: int | None = None,
) -> Float[Tensor, ""]:
    r"""The pairwise sigmoid loss of SigLIP: each pair alone is a yes-or-no question.

    .. math::

        L = -\frac{1}{n} \sum_{i,j} \log \sigma\!\left(
            z_{ij} (s\, I_i \cdot T_j + b)\right), \qquad
        z_{ij} = \begin{cases} 1 & i \text{ belongs to } j \\ -1 & \text{else} \end{cases}

    No row needs the others' sum, so a batch can be cut anywhere. Almost all pairs are negative,
    which the bias makes up for: start at ``logit_scale`` 10 and ``logit_bias`` -10, as the paper.
    Equal to ``open_clip.SigLipLoss``. Zhai et al., ICCV 2023.

    Args:
        image_features: Row ``i`` belongs to row ``i`` of the texts.
        text_features: As many.
        logit_scale: :math:`s`.
        logit_bias: :math:`b`.
        groups: Equal numbers for items that belong together.
        gather: Compare with the items of all ranks, which must have as many each.
        chunk: Rows of the logits held at a time; all by default.

    Raises:
        ValueError: shapes that do not fit, or a ``chunk`` below 1.

    >>> image = torch.eye(2)
    >>> round(siglip_loss(image, image, 10.0, -10.0).item(), 4)  # log 2 for each true pair
    0.6932
    """
    image, text = unit_pair(image_features, text_features)
    check_groups(groups, len(image))
    _check_chunk(chunk)
    if gather and world_size() > 1:
        _, texts, every, own = _gather(image, text, groups)
    else:
        own = every = group_numbers(groups, len(image), image.device)
        texts = text

    def total(queries: Tensor, own: Tensor, keys: Tensor) -> Tensor:
        logits = logit_scale * cosines(queries, keys) + logit_bias
        belongs = own[:, None] == every
        return -F.logsigmoid(torch.where(belongs, logits, -logits)).sum()

    return in_row_chunks(total, (image, own), texts, chunk) / len(image)


# ---- what the losses share


def _cross_entropy(logits: Tensor, positives: Tensor) -> Tensor:
    """Mean of the rows' losses over the rows that have a positive."""
    return _row_losses(logits, positives).sum() / positives.any(1).sum().clamp(min=1)


def _row_losses(logits: Tensor, positives: Tensor) -> Tensor:
    """Cross-entropy of each row against equal shares for its positives; 0 without any."""
    log_p = logits.log_softmax(dim=1)
    # where, not a product: the log-probability of a candidate that takes no part is -inf.
    return -log_p.where(positives, 0.0).sum(1) / positives.sum(1).clamp(min=1)


def _check_mask(name: str, mask: Tensor | None, shape: tuple[int, int]) -> None:
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise TypeError(f"{name} must be boolean: got {mask.dtype}")
    if mask.shape != shape:
        raise ValueError(f"{name} must have shape {shape}: got {tuple(mask.shape)}")


def _check_chunk(chunk: int | None) -> None:
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1, or None: got {chunk}")


def _gather(image: Tensor, text: Tensor, groups: Tensor | None) -> tuple[Tensor, ...]:
    """Features and numbers of all ranks, and this rank's own numbers."""
    own = group_numbers(groups, len(image), image.device)
    if groups is None:
        own = own + rank() * len(image)
    return all_gather(image), all_gather(text), all_gather(own), own
