r"""Dual learning (对偶学习): two mappings that check each other, on pictures of one thing.

Paired examples are few, pictures without words and words without pictures many. A **describer**
:math:`f` turns a picture into words, a **painter** :math:`g` words into a picture. Without a pair
one can still ask that there and back again comes out where it began:

.. math::

    \mathcal{L}_{\text{dual}} =
        \underbrace{\tfrac1{10} \lVert g(f(x)) - x \rVert^2}_{\text{a picture alone}}
        + \underbrace{\mathrm{CE}\big(f(g(y)),\, y\big)}_{\text{words alone}}

It is a signal, not an identity: words leave out what a painter would need. And it does not know
which word means what: any renaming of all words that :math:`g` undoes costs nothing. Only pairs
can say that.

References:
    He et al., *Dual Learning for Machine Translation*, NeurIPS 2016 (sampled sentences and policy
    gradients; here the describer's distribution itself is painted, so that gradients flow).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmlib.data.scenes import COLOURS, RADIUS, SHAPES, SIZES, Object, Scene, render

__all__ = [
    "KINDS",
    "Describer",
    "Painter",
    "dual_loss",
    "exact",
    "one_thing",
    "paired_loss",
    "soft_words",
]

#: How many words there are for size, colour and shape: a description is one of each.
KINDS = (len(SIZES), len(COLOURS), len(SHAPES))
SIDE = 24


def one_thing(
    count: int, seed: int, *, anywhere: bool = False
) -> tuple[Float[Tensor, "count 3 24 24"], Int[Tensor, "count 3"]]:
    """Pictures of one thing, and the numbers of its size, colour and shape.

    In the middle, words and pictures determine each other. Anywhere, the picture says more than
    the words: where the thing is. The things are as large in both; anywhere, a small one is moved
    by up to 7 of the 24 pixels each way, a large one by up to 4, so that it stays inside.

    Args:
        count: How many.
        seed: Which.
        anywhere: Whether the thing may be anywhere in the picture.

    Raises:
        ValueError: ``count`` below 1.

    >>> pictures, words = one_thing(2, seed=0)
    >>> pictures.shape, words.shape
    (torch.Size([2, 3, 24, 24]), torch.Size([2, 3]))
    """
    if count < 1:
        raise ValueError(f"count must be at least 1: got {count}")
    generator = torch.Generator().manual_seed(seed)
    words = torch.stack([torch.randint(k, (count,), generator=generator) for k in KINDS], dim=1)
    share = torch.rand(count, 2, generator=generator, dtype=torch.float64)
    scenes = []
    for (size, colour, shape), place in zip(words.tolist(), share.tolist(), strict=True):
        room = 0.25 - RADIUS[SIZES[size]]  # the picture is the middle half of a larger one
        x, y = (0.5 + (2 * p - 1) * room if anywhere else 0.5 for p in place)
        scenes.append(Scene((Object(SHAPES[shape], COLOURS[colour], SIZES[size], x, y),)))
    edge = SIDE // 2
    return render(scenes, size=2 * SIDE)[:, :, edge:-edge, edge:-edge].contiguous(), words


def exact(logits: Float[Tensor, "batch words"], words: Int[Tensor, "batch 3"]) -> float:
    """Share of the pictures whose size, colour and shape are all described rightly.

    Raises:
        ValueError: shapes that do not fit.
    """
    said = torch.stack([part.argmax(-1) for part in _parts(logits)], dim=1)
    if said.shape != words.shape:
        raise ValueError(f"words must have shape {tuple(said.shape)}: got {tuple(words.shape)}")
    return (said == words).all(1).double().mean().item()


class Describer(nn.Module):
    """From a picture of 24 × 24 pixels to logits for its size, colour and shape.

    Args:
        width: Channels of the second convolution.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        if width < 2:
            raise ValueError(f"width must be at least 2: got {width}")
        self.net = nn.Sequential(
            nn.Conv2d(3, width // 2, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width // 2, width, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(width * (SIDE // 4) ** 2, 4 * width),
            nn.ReLU(),
            nn.Linear(4 * width, sum(KINDS)),
        )

    def forward(self, pictures: Float[Tensor, "batch 3 24 24"]) -> Float[Tensor, "batch words"]:
        """Logits, those of the sizes first, then colours, then shapes."""
        return self.net(pictures)


class Painter(nn.Module):
    """From a description, as one share for each word, to a picture of 24 × 24 pixels.

    Args:
        width: Channels before the last convolution but one.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        if width < 2:
            raise ValueError(f"width must be at least 2: got {width}")
        self.net = nn.Sequential(
            nn.Linear(sum(KINDS), 4 * width),
            nn.ReLU(),
            nn.Linear(4 * width, width * (SIDE // 4) ** 2),
            nn.ReLU(),
            nn.Unflatten(1, (width, SIDE // 4, SIDE // 4)),
            nn.ConvTranspose2d(width, width // 2, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(width // 2, 3, 4, stride=2, padding=1),
        )

    def forward(self, words: Float[Tensor, "batch words"]) -> Float[Tensor, "batch 3 24 24"]:
        """The picture; values near 0 … 1, not clipped."""
        return self.net(words)


def soft_words(logits: Float[Tensor, "batch words"]) -> Float[Tensor, "batch words"]:
    """A share for each word: softmax over sizes, over colours, and over shapes.

    Raises:
        ValueError: the last axis is not one logit for each word.

    >>> soft_words(torch.zeros(1, sum(KINDS)))[0, [0, 2, 10]]
    tensor([0.5000, 0.1250, 0.1250])
    """
    return torch.cat([part.softmax(-1) for part in _parts(logits)], dim=-1)


def paired_loss(
    describer: nn.Module,
    painter: nn.Module,
    pictures: Float[Tensor, "batch 3 24 24"],
    words: Int[Tensor, "batch 3"],
) -> Float[Tensor, ""]:
    """Both mappings learn from pairs: cross-entropy of the words, squared error of the picture.

    Args:
        describer: From pictures to logits.
        painter: From shares of words to pictures.
        pictures: Pictures.
        words: Numbers of size, colour and shape of each.

    Raises:
        ValueError: shapes that do not fit.
    """
    if len(pictures) != len(words):
        raise ValueError(
            f"pictures and words must be as many: got {len(pictures)} and {len(words)}"
        )
    said = _cross_entropy(describer(pictures), words)
    return said + _painted(painter(_one_hot(words)), pictures)


def dual_loss(
    describer: nn.Module,
    painter: nn.Module,
    pictures: Float[Tensor, "some 3 24 24"],
    words: Int[Tensor, "others 3"],
) -> Float[Tensor, ""]:
    r"""There and back again, for pictures and for words that do not belong together.

    Args:
        describer: From pictures to logits.
        painter: From shares of words to pictures.
        pictures: Pictures without words.
        words: Descriptions without pictures, not of these.

    Raises:
        ValueError: shapes that do not fit.
    """
    back = painter(soft_words(describer(pictures)))
    said = describer(painter(_one_hot(words)))
    return _painted(back, pictures) + _cross_entropy(said, words)


def _parts(logits: Tensor) -> tuple[Tensor, ...]:
    if logits.shape[-1] != sum(KINDS):
        raise ValueError(f"logits must have {sum(KINDS)} columns: got {logits.shape[-1]}")
    return logits.split(KINDS, dim=-1)


def _one_hot(words: Tensor) -> Tensor:
    if words.ndim != 2 or words.shape[1] != len(KINDS):
        raise ValueError(f"words must have shape (batch, {len(KINDS)}): got {tuple(words.shape)}")
    columns = [F.one_hot(word, kinds) for word, kinds in zip(words.unbind(1), KINDS, strict=True)]
    return torch.cat(columns, dim=1).to(torch.get_default_dtype())


def _cross_entropy(logits: Tensor, words: Tensor) -> Tensor:
    parts = zip(_parts(logits), words.unbind(1), strict=True)
    return sum(F.cross_entropy(part, word) for part, word in parts)


def _painted(painted: Tensor, pictures: Tensor) -> Tensor:
    """A tenth of the squared error summed over the pixels: about the size of a cross-entropy."""
    if painted.shape != pictures.shape:
        raise ValueError(
            f"pictures must have the shape {tuple(painted.shape)}: got {tuple(pictures.shape)}"
        )
    return (painted - pictures).square().flatten(1).sum(1).mean() / 10.0
