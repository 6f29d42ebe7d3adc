r"""Clicks of people whose taste is known to nobody but this process (用户点击).

The items are the drawings of :mod:`mmlib.data.clipart`. A person likes two categories and one kind
of colour; an item has a category, a colour and a quality of its own, and is clicked with

.. math::
    p(i \mid u) \propto \exp\big(
        \alpha\, [c_i \in C_u] + \beta\, [h_i = h_u] + \gamma\, q_i \big)

one after the other, none twice. What a model is given are the pictures, the names and the clicks:
never a category, a colour or a quality. A category shows in name and picture, a colour in the
picture (and in some names), the **quality**, normally distributed, in nothing but how often an
item was clicked. So each source has something that the others lack, and an item that
nobody has clicked yet (**cold start**, 冷启动) has a picture and a name only.

**Who knows the process** but not the person can do no better than the posterior over all tastes
given the person's clicks, which are few enough to be summed over (:func:`bayes_scores`).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from mmlib.data import clipart
from mmlib.data.samplers import at_least

__all__ = ["COLOURS", "Clicks", "Items", "bayes_scores", "clicks", "items"]

COLOURS = ("red", "yellow", "green", "blue", "dark", "light")
"""The kinds of colour that people like."""

_ALPHA, _BETA, _GAMMA = 3.0, 2.0, 1.2


@dataclass(frozen=True, eq=False, repr=False)
class Items:
    """What can be clicked, and the hidden properties of it.

    Attributes:
        names: Captions, for a model.
        warm: Whether an item was in the shop while the clicks of training were made.
        categories: Hidden: number of the category.
        colours: Hidden: an index into :data:`COLOURS`.
        quality: Hidden: standard normal.
    """

    names: tuple[str, ...]
    warm: Bool[Tensor, " items"]
    categories: Int64[Tensor, " items"]
    colours: Int64[Tensor, " items"]
    quality: Float[Tensor, " items"]

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"Items({len(self)}, {int((~self.warm).sum())} of them cold)"


@dataclass(frozen=True, eq=False, repr=False)
class Clicks:
    """What each person clicked, in order.

    Attributes:
        history: Warm items.
        target: The click after them: any item, warm or cold.
    """

    history: Int64[Tensor, "people clicks"]
    target: Int64[Tensor, " people"]

    def __len__(self) -> int:
        return len(self.target)

    def __repr__(self) -> str:
        return f"Clicks({len(self)} people, {self.history.shape[1]} clicks before the target)"


def items(*, seed: int = 0) -> Items:
    """Every drawing of the clip art; those of its test split are cold.

    Args:
        seed: Draws the qualities.

    >>> items()
    Items(1751, 349 of them cold)
    """
    drawn, cold = clipart.load("all", 32), set(clipart.load("test", 8).concepts)
    categories = {name: i for i, name in enumerate(sorted(set(drawn.categories)))}
    return Items(
        names=drawn.names,
        warm=torch.tensor([concept not in cold for concept in drawn.concepts]),
        categories=torch.tensor([categories[name] for name in drawn.categories]),
        colours=_colours(drawn.images),
        quality=torch.randn(len(drawn), generator=torch.Generator().manual_seed(seed)),
    )


def clicks(count: int, of: Items, length: int = 8, *, cold: bool = True, seed: int = 0) -> Clicks:
    """Draw people and what they click.

    Args:
        count: People.
        of: The items.
        length: Clicks before the target.
        cold: Whether the target may be a cold item; never in training.
        seed: The same seed draws the same people.

    Raises:
        TypeError: ``count`` or ``length`` is not whole.
        ValueError: ``count`` or ``length`` is below 1, or there are not so many items.
    """
    at_least(1, "count", count)
    if at_least(1, "length", length) >= int(of.warm.sum()):
        raise ValueError(f"length must be below the {int(of.warm.sum())} warm items: got {length}")
    generator = torch.Generator().manual_seed(seed)
    tastes = _tastes(int(of.categories.max()) + 1)
    mine = tastes[torch.randint(len(tastes), (count,), generator=generator)]
    utility = _utility(of, mine)
    # Gumbel's trick: the largest of utility + noise are draws without replacement, in order.
    noise = -torch.empty(utility.shape, dtype=torch.float64).exponential_(generator=generator).log()
    history = (utility + noise).masked_fill(~of.warm, -torch.inf).topk(length, dim=1).indices
    left = utility.scatter(1, history, -torch.inf)
    if not cold:
        left = left.masked_fill(~of.warm, -torch.inf)
    target = torch.multinomial(left.softmax(1), 1, generator=generator).flatten()
    return Clicks(history, target)


def bayes_scores(
    of: Items, history: Int64[Tensor, "people clicks"]
) -> Float[Tensor, "people items"]:
    r"""Probability of every item to be clicked next, for who knows the process but no person.

    .. math:: p(i \mid H) = \sum_u p(u \mid H)\, p(i \mid u), \qquad
              p(u \mid H) \propto \prod_t \frac{e^{s_u(h_t)}}{\sum_{j \notin h_{<t}} e^{s_u(j)}}

    Ranking by it is the best that can be done with this history, whatever the model. The quality of
    a cold item can be known from nothing, so that its mean attraction,
    :math:`\log \mathbb{E}\, e^{\gamma q} = \gamma^2 / 2`, stands for it.

    Args:
        of: The items with their hidden properties.
        history: Warm items, none twice in a row.
    """
    utility = _utility(of, _tastes(int(of.categories.max()) + 1))  # tastes, items
    weight = utility.exp().masked_fill(~of.warm, 0)
    taken = weight.T[history]  # people, clicks, tastes
    left = weight.sum(1) - taken.cumsum(1) + taken
    posterior = (taken.log() - left.log()).sum(1).softmax(1)
    blind = utility + torch.where(of.warm, 0.0, _GAMMA**2 / 2 - _GAMMA * of.quality.double())
    chance = posterior @ blind.softmax(1)
    return chance.scatter(1, history, 0.0)


def _tastes(categories: int) -> Int64[Tensor, "tastes 3"]:
    """Every taste: two categories and a colour."""
    pairs = torch.combinations(torch.arange(categories), 2)
    colours = torch.arange(len(COLOURS)).repeat(len(pairs))[:, None]
    return torch.cat([pairs.repeat_interleave(len(COLOURS), 0), colours], 1)


def _utility(of: Items, tastes: Tensor) -> Tensor:
    liked = (of.categories == tastes[:, :2, None]).any(1).double()
    colour = (of.colours == tastes[:, 2:]).double()
    return _ALPHA * liked + _BETA * colour + _GAMMA * of.quality.double()


def _colours(images: Tensor) -> Tensor:
    """The kind of colour that most of a drawing's coloured pixels have; by lightness if none."""
    x = images.double() / 255
    high, low = x.amax(1), x.amin(1)
    spread = (high - low).clamp(min=1e-9)
    r, g, b = x.unbind(1)
    hue = torch.where(high == r, (g - b) / spread, torch.where(high == g, 2 + (b - r) / spread,
                      4 + (r - g) / spread)) % 6  # fmt: skip
    drawn = low < 0.95  # what is not paper
    coloured = drawn & (high - low > 0.25)
    edges = torch.tensor([0.5, 1.2, 2.7, 4.7], dtype=torch.float64)  # red|yellow|green|blue|red
    kind = torch.bucketize(hue, edges) % 4
    counts = torch.stack([(coloured & (kind == k)).flatten(1).sum(1) for k in range(4)], 1)
    mean = (x.mean(1) * drawn).flatten(1).sum(1) / drawn.flatten(1).sum(1).clamp(min=1)
    plain = torch.where(mean < 0.5, 4, 5)
    few = counts.sum(1) < 0.15 * drawn.flatten(1).sum(1)
    return torch.where(few, plain, counts.argmax(1))
