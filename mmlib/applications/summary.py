r"""The sentences and pictures of an article that tell most (图文摘要).

Sentences and pictures are the nodes of one graph, and who is like many others that are themselves
like many others is central: PageRank on similarities, as in LexRank, with pictures in it,

.. math::
    r = (1 - d)\,\tfrac1n \mathbf{1} + d\, P^\top r, \qquad
    P_{ij} \propto w_{ij}\, e^{\cos(v_i, v_j) / \tau}, \quad P_{ii} = 0

where two sentences are compared by MiniLM, and a picture with a sentence or with a picture in the
space of chapter 07's towers, whose edges count :math:`w_{ij} = \beta` and the others 1. Then nodes
are picked one by one, each by its rank less its likeness to what is there already (maximal marginal
relevance):

.. math:: \arg\max_{i \notin S}\; \frac{r_i}{\max_k r_k} - \lambda \max_{j \in S} \cos(v_i, v_j)

References:
    Erkan and Radev, *LexRank: Graph-based Lexical Centrality as Salience in Text Summarization*,
    JAIR 2004. Carbonell and Goldstein, *The Use of MMR, Diversity-Based Reranking for Reordering
    Documents and Producing Summaries*, SIGIR 1998.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mmlib.data.samplers import at_least

__all__ = ["Summary", "page_rank", "pick", "summarise"]


class Summary(NamedTuple):
    """What was picked, in the order of the article.

    Attributes:
        sentences: Numbers of sentences.
        pictures: Numbers of pictures.
    """

    sentences: list[int]
    pictures: list[int]


def page_rank(
    weights: Float[Tensor, "nodes nodes"], damping: float = 0.85
) -> Float[Tensor, " nodes"]:
    """The stationary distribution of a walk along the weights that now and then jumps anywhere.

    Solved as a linear system, not iterated. A node without an edge jumps.

    Args:
        weights: Not negative; the diagonal is left out.
        damping: Probability of a step along an edge, in [0, 1).

    Raises:
        ValueError: no square matrix, a negative weight, or a damping outside [0, 1).

    >>> chain = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    >>> page_rank(chain).round(decimals=3)
    tensor([0.2570, 0.4860, 0.2570])
    """
    if weights.ndim != 2 or weights.shape[0] != weights.shape[1] or not len(weights):
        raise ValueError(f"weights must be square, not empty: got {tuple(weights.shape)}")
    if not (weights >= 0).all():
        raise ValueError("weights must not be negative or NaN")
    if not 0 <= damping < 1:
        raise ValueError(f"damping must be from 0 to below 1: got {damping}")
    count = len(weights)
    w = weights.double() * (1 - torch.eye(count, dtype=torch.float64, device=weights.device))
    total = w.sum(1, keepdim=True)
    step = torch.where(total > 0, w / total.clamp(min=1e-300), torch.full_like(w, 1 / count))
    unit = torch.eye(count, dtype=torch.float64, device=weights.device)
    start = torch.full((count,), (1 - damping) / count, dtype=torch.float64, device=weights.device)
    return torch.linalg.solve(unit - damping * step.T, start).to(weights.dtype)


def pick(
    rank: Float[Tensor, " nodes"],
    likeness: Float[Tensor, "nodes nodes"],
    count: int,
    redundancy: float = 0.5,
) -> list[int]:
    """Pick nodes one by one, each by its rank less its likeness to those that are there.

    Args:
        rank: Above 0.
        likeness: Of the nodes, 1 at most.
        count: How many, or all if there are fewer.
        redundancy: The factor λ, not negative.

    Returns:
        Numbers in the order in which they were picked.

    Raises:
        TypeError: ``count`` is not whole.
        ValueError: shapes that do not fit, ``count`` below 1, or a negative λ.

    >>> likeness = torch.tensor([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]])
    >>> pick(torch.tensor([0.5, 0.4, 0.3]), likeness, 2)
    [0, 2]
    """
    at_least(1, "count", count)
    if rank.ndim != 1 or likeness.shape != (len(rank), len(rank)):
        raise ValueError(
            "rank and likeness must have shapes (nodes,) and (nodes, nodes): "
            f"got {tuple(rank.shape)} and {tuple(likeness.shape)}"
        )
    if redundancy < 0:
        raise ValueError(f"redundancy must not be negative: got {redundancy}")
    value, picked = rank / rank.max(), []
    for _ in range(min(count, len(rank))):
        left = value.clone()
        if picked:
            left -= redundancy * likeness[:, picked].amax(1)
            left[picked] = -torch.inf
        picked.append(int(left.argmax()))
    return picked


def summarise(
    read: Float[Tensor, "sentences width"],
    said: Float[Tensor, "sentences dim"],
    seen: Float[Tensor, "pictures dim"],
    *,
    sentences: int = 3,
    pictures: int = 2,
    temperature: float = 0.2,
    bridge: float = 1.0,
    redundancy: float = 0.3,
    damping: float = 0.85,
) -> Summary:
    r"""Pick sentences and pictures out of an article.

    Args:
        read: Sentences as a sentence encoder has them, of unit length.
        said: The same sentences in the space of the pictures, of unit length.
        seen: The pictures there; there may be none.
        sentences: How many sentences.
        pictures: How many pictures.
        temperature: :math:`\tau`, above 0.
        bridge: :math:`\beta`; 0 ranks sentences without pictures, and pictures all alike.
        redundancy: :math:`\lambda` of the sentences. Two pictures of one thing may both be right,
            so that none is held against another.
        damping: :math:`d`.

    Raises:
        ValueError: shapes that do not fit, no sentences, or a number out of its range.
    """
    if len(read) != len(said) or not len(read) or said.shape[1] != seen.shape[1]:
        raise ValueError(
            "read and said must be of the same sentences, said and seen of one width: "
            f"got {tuple(read.shape)}, {tuple(said.shape)} and {tuple(seen.shape)}"
        )
    if not temperature > 0 or bridge < 0:
        raise ValueError(
            f"temperature must be above 0, bridge not negative: got {temperature} and {bridge}"
        )
    likeness, joint = read @ read.T, torch.cat([said, seen])
    weights = bridge * (_standard(joint @ joint.T, len(said)) / temperature).exp()
    weights[: len(read), : len(read)] = (likeness / temperature).exp()
    rank = page_rank(weights, damping)
    chosen = pick(rank[: len(read)], likeness, sentences, redundancy)
    shown = rank[len(read) :].topk(min(pictures, len(seen))).indices.tolist()
    return Summary(sorted(chosen), sorted(shown))


def _standard(cosines: Tensor, sentences: int) -> Tensor:
    """Cosines between kinds brought to the mean and spread of those among sentences."""
    out = cosines.clone()
    own = cosines[:sentences, :sentences]
    for rows, columns in (
        (slice(0, sentences), slice(sentences, None)),
        (slice(sentences, None), slice(0, sentences)),
        (slice(sentences, None), slice(sentences, None)),
    ):
        block = cosines[rows, columns]
        if block.numel() > 1:
            out[rows, columns] = (block - block.mean()) / block.std().clamp(min=1e-6)
            out[rows, columns] = own.mean() + own.std(correction=0) * out[rows, columns]
    return out
