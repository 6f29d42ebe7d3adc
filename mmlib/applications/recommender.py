r"""What a person may click next, from pictures, names and clicks (个性化推荐).

Every item is a vector that others computed: CLIP's of its picture, CLIP's of its name, or both. One
map makes an item of it, the mean over what a person clicked makes the person, and both meet in an
inner product:

.. math::
    z_i = W x_i + e_i, \qquad u = \operatorname{MLP}\Big(\frac{1}{|H|} \sum_{i \in H} z_i\Big),
    \qquad s_i = u \cdot z_i + b_i

The bias :math:`b_i` is an item's popularity, and :math:`e_i` what its clicks say and its vector
does not. A **cold** item (冷启动) has neither: in training each item's own part is left out at
random, so that the rest learns to do without. The loss is a softmax over all items; each click is
predicted from those before it.

References:
    Covington, Adams and Sargin, *Deep Neural Networks for YouTube Recommendations*, RecSys 2016.
    Volkovs, Yu and Poutanen, *DropoutNet: Addressing Cold Start in Recommender Systems*, NeurIPS
    2017.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from mmlib.training import TrainConfig, fit

__all__ = ["Recommender", "components", "popularity", "target_ranks", "train"]


def components(
    features: Float[Tensor, "items width"], warm: Bool[Tensor, " items"], count: int = 24
) -> Float[Tensor, "items count"]:
    """The first principal components of unit vectors, as the warm items have them.

    A long vector tells one item from every other, and a map of it learns each item's clicks by
    heart, which says nothing of a cold one; a few components tell kinds of items apart.

    Args:
        features: A frozen vector for each item.
        warm: Which items have clicks; mean and directions are theirs.
        count: How many components.

    Raises:
        ValueError: shapes that do not fit, or more components than there can be.
    """
    if features.ndim != 2 or warm.shape != features.shape[:1]:
        raise ValueError(
            f"features must have shape ({len(warm)}, width): got {tuple(features.shape)}"
        )
    most = min(int(warm.sum()), features.shape[1])
    if not 1 <= count <= most:
        raise ValueError(f"count must be from 1 to {most}: got {count}")
    unit = F.normalize(features, dim=1)
    mean = unit[warm].mean(0)
    directions = torch.linalg.svd(unit[warm] - mean, full_matrices=False).Vh[:count]
    return (unit - mean) @ directions.T


class Recommender(nn.Module):
    """The model of the module.

    Args:
        features: A frozen vector for each item, any length; None for items that are known by their
            clicks alone.
        warm: Which items have clicks; only they have a part of their own.
        dim: Width of the space in which people and items meet.
        dropout: Probability with which an item's own part is left out in training.

    Raises:
        ValueError: shapes that do not fit, or a number out of its range.
    """

    def __init__(
        self,
        features: Float[Tensor, "items width"] | None,
        warm: Bool[Tensor, " items"],
        dim: int = 64,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if features is not None and (features.ndim != 2 or len(features) != len(warm)):
            raise ValueError(
                f"features must have shape ({len(warm)}, width): got {tuple(features.shape)}"
            )
        if dim < 1 or not 0 <= dropout < 1:
            raise ValueError(f"dim must be at least 1, dropout in [0, 1): got {dim} and {dropout}")
        self.dropout = dropout
        self.register_buffer("warm", warm)
        width = 1 if features is None else features.shape[1]
        known = torch.zeros(len(warm), 1) if features is None else features.detach().clone()
        if features is not None:
            known = (known - known[warm].mean(0)) / (known[warm].std(0) + 1e-6)
        self.register_buffer("features", known)
        self.map = nn.Linear(width, dim)
        self.own = nn.Embedding(len(warm), dim)
        self.bias = nn.Embedding(len(warm), 1)
        self.person = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        nn.init.normal_(self.own.weight, std=0.02)
        nn.init.zeros_(self.bias.weight)

    def items(self) -> tuple[Float[Tensor, "items dim"], Float[Tensor, " items"]]:
        """Vectors and biases of all items; a cold one has no part and no bias of its own."""
        there = self.warm.to(self.own.weight.dtype)
        if self.training:
            there = there * (torch.rand_like(there) >= self.dropout)
        mean = (self.bias.weight[:, 0] * self.warm).sum() / self.warm.sum()
        own, bias = self.own.weight, self.bias.weight[:, 0]
        return self.map(self.features) + there[:, None] * own, there * bias + (1 - there) * mean

    def forward(
        self, history: Int64[Tensor, "people clicks"], keep: Bool[Tensor, "people clicks"]
    ) -> Float[Tensor, "people items"]:
        """Scores of all items for each person.

        Args:
            history: What was clicked.
            keep: Which of these clicks count; at least one a person.

        Raises:
            ValueError: shapes that do not fit, or a person without a click.
        """
        if history.shape != keep.shape or history.ndim != 2:
            raise ValueError(
                "history and keep must have one shape, (people, clicks): "
                f"got {tuple(history.shape)} and {tuple(keep.shape)}"
            )
        if not keep.any(1).all():
            raise ValueError("keep must leave every person a click: got a row without one")
        vectors, bias = self.items()
        weight = keep.to(vectors.dtype)
        mean = torch.einsum("pcd,pc->pd", vectors[history], weight) / weight.sum(1, keepdim=True)
        return self.person(mean) @ vectors.T + bias


def train(
    model: Recommender,
    history: Int64[Tensor, "people clicks"],
    *,
    steps: int = 600,
    batch: int = 256,
    learning_rate: float = 3e-3,
    weight_decay: float = 0.05,
    seed: int = 0,
) -> list[float]:
    """Train on clicks: each is predicted from those before it, among the warm items.

    Args:
        model: Is trained; ends in evaluation mode.
        history: At least two clicks a person, all of warm items.
        steps: Batches.
        batch: People a batch; each with a random number of clicks before the one to predict.
        learning_rate: At its highest.
        weight_decay: Of AdamW.
        seed: Of the batches.

    Returns:
        The loss of each step.

    Raises:
        ValueError: one click a person, or a cold item among the clicks.
    """
    if history.ndim != 2 or history.shape[1] < 2:
        raise ValueError(f"history must have two clicks or more: got {tuple(history.shape)}")
    if not model.warm[history].all():
        raise ValueError("history must hold warm items only")

    def draw(n: int) -> tuple[Tensor, Tensor, Tensor]:
        dice = torch.Generator().manual_seed(1_000_003 * seed + n)
        rows = torch.randint(len(history), (batch,), generator=dice)
        place = torch.randint(1, history.shape[1], (batch,), generator=dice)
        keep = torch.arange(history.shape[1]) < place[:, None]
        return history[rows], keep, history[rows, place]

    def loss(model: Recommender, drawn: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        clicked, keep, target = drawn
        scores = model(clicked, keep).masked_fill(~model.warm, -torch.inf)
        # What was clicked before is not clicked again.
        before = torch.zeros_like(scores, dtype=torch.bool)
        rows = torch.arange(len(clicked))[:, None].expand_as(clicked)
        before[rows[keep], clicked[keep]] = True
        return F.cross_entropy(scores.masked_fill(before, -torch.inf), target)

    config = TrainConfig(
        steps,
        learning_rate=learning_rate,
        warmup=max(1, steps // 20),
        weight_decay=weight_decay,
        seed=seed,
        progress=False,
    )
    history_of = fit(model, loss, draw, config)
    model.eval()
    return list(history_of.losses)


def popularity(history: Int64[Tensor, "people clicks"], count: int) -> Float[Tensor, " items"]:
    """How often each of ``count`` items was clicked: the baseline that knows no person.

    >>> popularity(torch.tensor([[0, 2], [2, 1]]), 4)
    tensor([1., 1., 2., 0.])
    """
    return torch.bincount(history.flatten(), minlength=count).float()


def target_ranks(
    scores: Float[Tensor, "people items"],
    history: Int64[Tensor, "people clicks"],
    target: Int64[Tensor, " people"],
) -> Int64[Tensor, " people"]:
    """Rank of each target among the items that the person has not clicked, from 1.

    Ties count against us, as in :func:`mmlib.metrics.retrieval.ranks`.

    Raises:
        ValueError: shapes that do not fit, NaN, or a target that is in the history.

    >>> target_ranks(torch.tensor([[9.0, 5.0, 7.0]]), torch.tensor([[0]]), torch.tensor([1]))
    tensor([2])
    """
    if len(scores) != len(history) or target.shape != (len(scores),):
        raise ValueError(
            "scores, history and target must be of the same people: "
            f"got {len(scores)}, {len(history)} and {tuple(target.shape)}"
        )
    if scores.isnan().any():
        raise ValueError("scores must be numbers: got NaN")
    if (history == target[:, None]).any():
        raise ValueError("target must not be in the history")
    open_ = scores.scatter(1, history, -torch.inf)
    own = scores.gather(1, target[:, None])
    # A score of -inf in the history must not count where the target's own is -inf, too.
    above = (open_ >= own).scatter(1, history, False)
    return above.sum(1)
