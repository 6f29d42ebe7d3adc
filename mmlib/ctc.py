r"""Connectionist temporal classification: sentences from frames without a decoder: chapter 12.

References:
    Graves et al., *Connectionist Temporal Classification: Labelling Unsegmented Sequence Data with
    Recurrent Neural Networks*, ICML 2006.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["ctc_best_path", "ctc_collapse", "ctc_loss"]


def ctc_loss(
    log_probs: Float[Tensor, "batch frames vocab"],
    frames_keep: Bool[Tensor, "batch frames"],
    labels: Int[Tensor, "batch length"],
    labels_keep: Bool[Tensor, "batch length"],
    blank: int = 0,
) -> Float[Tensor, " batch"]:
    r"""Minus the logarithm of the probability that the frames say these labels.

    A path names a label or the blank :math:`\varnothing` in each frame; read, it loses repetitions
    and then blanks. Of all paths that read :math:`y`, the probabilities are summed:

    .. math::

        L = -\log \sum_{\pi \in \mathcal{B}^{-1}(y)} \prod_t p_t(\pi_t)

    The sum runs over exponentially many paths and takes :math:`T \cdot (2U + 1)` steps. With
    :math:`\ell = \varnothing, y_1, \varnothing, \dots, y_U, \varnothing`, all that read
    :math:`\ell_{1..s}` at time :math:`t` came from the same place, the one before it, or, past a
    blank between two labels that differ, the one before that:

    .. math::

        \alpha_t(s) = p_t(\ell_s)\,\big(\alpha_{t-1}(s) + \alpha_{t-1}(s-1)
            + [\ell_s \ne \varnothing,\ \ell_s \ne \ell_{s-2}]\;\alpha_{t-1}(s-2)\big)

    computed in logarithms. Equal to ``F.ctc_loss``, which is faster; this one is differentiated by
    autograd and is read in chapter 12.

    Args:
        log_probs: Logarithms of probabilities.
        frames_keep: Which frames exist; the real ones come first.
        labels: Ids, none of them the blank.
        labels_keep: Which labels exist; the real ones come first.
        blank: Id of the blank.

    Returns:
        The loss of each item in nats; infinity where the frames are too few for the labels.

    Raises:
        TypeError: a mask is not boolean.
        ValueError: shapes do not fit, or a label is the blank or not in the vocabulary.

    >>> p = torch.tensor([[[0.4, 0.6], [0.5, 0.5]]])  # blank, a
    >>> labels = torch.tensor([[1]])
    >>> ctc_loss(p.log(), torch.ones(1, 2).bool(), labels, torch.tensor([[True]])).exp()
    tensor([1.2500])
    """
    _check(log_probs, frames_keep, labels, labels_keep, blank)
    batch, frames, _ = log_probs.shape
    # Where no label is, the blank stands: such places are never read from.
    path = labels.new_full((batch, 2 * labels.shape[1] + 1), blank)
    path[:, 1::2] = torch.where(labels_keep, labels, blank)
    score = log_probs.gather(2, path[:, None].expand(-1, frames, -1))
    never = torch.finfo(log_probs.dtype).min / 4  # -inf would make gradients NaN
    skips = torch.zeros_like(path, dtype=torch.bool)
    skips[:, 2:] = (path[:, 2:] != blank) & (path[:, 2:] != path[:, :-2])
    at = torch.arange(path.shape[1], device=path.device)
    alpha = torch.where(at < 2, score[:, 0], never)
    for frame in range(1, frames):
        one = torch.nn.functional.pad(alpha, (1, 0), value=never)[:, :-1]
        two = torch.nn.functional.pad(alpha, (2, 0), value=never)[:, :-2]
        ways = torch.stack([alpha, one, two.masked_fill(~skips, never)])
        grown = score[:, frame] + ways.logsumexp(0)
        alpha = torch.where(frames_keep[:, frame, None], grown, alpha)
    last = 2 * labels_keep.sum(1, keepdim=True)
    ends = torch.cat([last, (last - 1).clamp(min=0)], dim=1)
    found = alpha.gather(1, ends)
    # Without labels both ends are the same blank: count it once.
    found = torch.cat([found[:, :1], torch.where(last > 0, found[:, 1:], never)], dim=1)
    total = found.logsumexp(1)
    return torch.where(total > never / 2, -total, torch.inf)


def ctc_collapse(path: list[int], blank: int = 0) -> list[int]:
    """Read a path: repetitions become one, then blanks go.

    >>> ctc_collapse([0, 7, 7, 0, 7, 3, 3, 0])
    [7, 7, 3]
    """
    return [
        label
        for place, label in enumerate(path)
        if label != blank and (place == 0 or path[place - 1] != label)
    ]


def ctc_best_path(
    logits: Float[Tensor, "batch frames vocab"],
    keep: Bool[Tensor, "batch frames"],
    blank: int = 0,
) -> list[list[int]]:
    """Read the path of the most probable label in each frame.

    The most probable path is not always of the most probable reading, whose paths may be many.

    Args:
        logits: Scores of labels.
        keep: Which frames exist.
        blank: Id of the blank.

    Raises:
        ValueError: ``keep`` is not ``(batch, frames)``.
    """
    if logits.ndim != 3 or keep.shape != logits.shape[:2]:
        raise ValueError(
            f"keep must be (batch, frames) of logits: got {tuple(keep.shape)} for "
            f"{tuple(logits.shape)}"
        )
    rows = zip(logits.argmax(2), keep, strict=True)
    return [ctc_collapse(row[real].tolist(), blank) for row, real in rows]


def _check(
    log_probs: Tensor, frames_keep: Tensor, labels: Tensor, labels_keep: Tensor, blank: int
) -> None:
    for name, keep in (("frames_keep", frames_keep), ("labels_keep", labels_keep)):
        if keep.dtype != torch.bool:
            raise TypeError(f"{name} must be boolean (True = exists): got {keep.dtype}")
    if log_probs.ndim != 3 or 0 in log_probs.shape or frames_keep.shape != log_probs.shape[:2]:
        raise ValueError(
            "log_probs must have shape (batch, frames, vocab), not empty, and frames_keep "
            f"(batch, frames): got {tuple(log_probs.shape)} and {tuple(frames_keep.shape)}"
        )
    if (
        labels.ndim != 2
        or len(labels) != len(log_probs)
        or labels_keep.shape != labels.shape
        or not bool(frames_keep[:, 0].all())
    ):
        raise ValueError(
            "labels and labels_keep must have shape (batch, length), and each item a frame: "
            f"got {tuple(labels.shape)} and {tuple(labels_keep.shape)} for {len(log_probs)} items"
        )
    vocab = log_probs.shape[2]
    real = labels[labels_keep]
    if not 0 <= blank < vocab or bool(((real < 0) | (real >= vocab) | (real == blank)).any()):
        raise ValueError(
            f"labels must be from 0 to {vocab - 1} and none of them the blank, {blank}: "
            f"got {sorted(set(real.tolist()))}"
        )
