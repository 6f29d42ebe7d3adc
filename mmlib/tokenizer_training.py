r"""What chapter 09's tokenizer of pictures is trained on, and what its errors count for.

**Pictures.** Emoji, clip art and scenes, in one batch. Nothing is interpolated, so that edges stay
as sharp as those of the test set and levels stay whole.

**Errors.** A mean over pixels hardly sees an object that fills a fiftieth of its scene. Two terms
are added to the negative bound, so that objects survive:

.. math::

    \mathcal L = -\text{elbo} + D \Bigl(\frac{1}{2 D \sigma^2} \sum_i w_i \, (x_i - \hat x_i)^2
        + \lambda \, \text{loss}_{\text{reader}}(\hat x)\Bigr)

with :math:`D` numbers in a picture. The bracket is :func:`object_loss`. Its weights :math:`w`
(:func:`object_weights`) give each object of a scene the same total, however
small it is; :math:`\sigma^2` is the variance of the bound, so that the sum is of errors in the same
measure. The last term asks a second network, trained before and left as it is, what it sees in the
painting: a perceptual loss, as VQGAN has, from a reader of scenes in place of a network for
photographs.

References:
    Esser, Rombach, Ommer, *Taming Transformers for High-Resolution Image Synthesis*, CVPR 2021: a
    perceptual loss beside the squared error; there a distance between features.
"""

import functools
import hashlib
import itertools
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmlib.data import clipart, emoji, scenes
from mmlib.data.scenes import MAX_OBJECTS, Scene
from mmlib.judge import Judge

__all__ = ["Pictures", "TrainingBatch", "held_back", "object_loss", "object_weights"]

SIZE = 32
SIZES = (28, 30, 32, 32, 32, 34, 36)
#: How far around its square an object's errors count, in picture widths: one pixel.
MARGIN = 1 / SIZE
_CHANNELS = torch.tensor(list(itertools.permutations(range(3))))


class TrainingBatch(NamedTuple):
    """Pictures, of which the last ones are scenes.

    Attributes:
        pictures: In [0, 1], whole multiples of 1/255.
        drawn: The scenes of the last pictures.
    """

    pictures: Float[Tensor, "batch channels height width"]
    drawn: list[Scene]


def held_back(concepts: Sequence[str]) -> Bool[Tensor, " concepts"]:
    """One training concept in eight, for choosing a design: True where it is not trained on.

    Args:
        concepts: Their names; a concept is held back or not whatever stands beside it.
    """

    def eighth(concept: str) -> bool:
        return hashlib.sha256(f"validation/{concept}".encode()).digest()[0] < 32

    return torch.tensor([eighth(concept) for concept in concepts], dtype=torch.bool)


@functools.cache
def _training_pictures(source: ModuleType, size: int) -> tuple[Tensor, Tensor]:
    """Training pictures of a source, and which of them :func:`held_back` names."""
    items = source.load("train", size=size)
    return items.images, held_back(items.concepts)


class Pictures:
    """Batches of emoji, clip art and scenes, each picture drawn at random sizes and places.

    A picture is taken at one of several sizes and cut, or set on white; half are mirrored. Scenes
    are of the training split and have any background. Batch ``number`` is always the same.

    Args:
        mix: How many emoji, drawings and scenes a batch has.
        recolour: The share of emoji and drawings whose colour channels change places.
        validation: Whether to leave out the emoji and drawings that :func:`held_back` names.
        objects: The smallest and the largest number of objects in a scene.

    Raises:
        ValueError: the mix is not three numbers from 0 that have a sum above 0, or ``recolour`` is
            no share.

    >>> Pictures((0, 0, 4)).batch(0).pictures.shape
    torch.Size([4, 3, 32, 32])
    """

    def __init__(
        self,
        mix: tuple[int, int, int],
        recolour: float | int = 0.0,
        validation: bool = False,
        objects: tuple[int, int] = (1, MAX_OBJECTS),
    ) -> None:
        if len(mix) != 3 or min(mix) < 0 or not sum(mix):
            raise ValueError(f"mix must be three numbers from 0, not all 0: got {mix}")
        if not 0 <= recolour <= 1:
            raise ValueError(f"recolour must be from 0 to 1: got {recolour}")
        self.mix, self.recolour, self.objects = mix, recolour, objects
        self.sources = []
        for source, count in zip((emoji, clipart), mix, strict=False):
            sized = {}
            for size in set(SIZES) if count else ():
                images, held = _training_pictures(source, size)
                sized[size] = images[~held] if validation else images
            self.sources.append(sized)

    def draw(self, sized: dict[int, Tensor], generator: torch.Generator) -> Tensor:
        """One picture of a source, as bytes.

        Args:
            sized: All its pictures, by size.
            generator: What is drawn from.
        """

        def below(limit: int) -> int:
            return int(torch.randint(limit, (), generator=generator))

        size = SIZES[below(len(SIZES))]
        picture = sized[size][below(len(sized[size]))]
        top, left = below(abs(size - SIZE) + 1), below(abs(size - SIZE) + 1)
        if size > SIZE:
            picture = picture[:, top : top + SIZE, left : left + SIZE]
        elif size < SIZE:
            canvas = picture.new_full((3, SIZE, SIZE), 255)
            canvas[:, top : top + size, left : left + size] = picture
            picture = canvas
        if below(2):
            picture = picture.flip(-1)
        if float(torch.rand((), generator=generator)) < self.recolour:
            picture = picture[_CHANNELS[below(len(_CHANNELS))]]
        return picture

    def batch(self, number: int) -> TrainingBatch:
        """Batch ``number``.

        Args:
            number: Any number from 0.
        """
        generator = torch.Generator().manual_seed(number)
        parts = [
            torch.stack([self.draw(sized, generator) for _ in range(count)])
            for sized, count in zip(self.sources, self.mix, strict=False)
            if count
        ]
        drawn: list[Scene] = []
        if self.mix[2]:
            drawn = scenes.sample(
                self.mix[2], seed=number, split="train", objects=self.objects, background="any"
            )
            parts.append((scenes.render(drawn, SIZE) * 255).round().byte())
        pictures = torch.cat(parts).float() / 255
        return TrainingBatch(pictures.contiguous(memory_format=torch.channels_last), drawn)


def object_weights(
    drawn: Sequence[Scene], total: float | int
) -> Float[Tensor, "batch 1 height width"]:
    """What the errors of scenes' pixels count for, beside the one that each counts for anyway.

    Args:
        drawn: Scenes.
        total: The sum over the pixels of one object: those whose centres lie in its square (twice
            its radius wide) or within a pixel of it.

    Returns:
        The weights, of pictures of 32 × 32 pixels.

    Raises:
        ValueError: ``total`` is below 0.

    >>> object_weights(scenes.sample(1, seed=0, objects=3), 400).sum().round()
    tensor(1200.)
    """
    if not total >= 0:
        raise ValueError(f"total must be at least 0: got {total}")
    middle = (torch.arange(SIZE) + 0.5) / SIZE
    weights = torch.zeros(len(drawn), SIZE, SIZE)
    for number, scene in enumerate(drawn):
        for item in scene.objects:
            columns, rows = (
                (middle - centre).abs() <= item.radius + MARGIN for centre in (item.x, item.y)
            )
            inside = rows[:, None] & columns
            weights[number] += inside * (total / inside.sum())
    return weights[:, None]


def object_loss(
    batch: TrainingBatch,
    painted: Float[Tensor, "batch channels height width"],
    *,
    total: float | int = 0.0,
    reader: Judge | None = None,
    strength: float | int = 0.2,
) -> Float[Tensor, ""]:
    r"""What is lost of the objects of a batch's scenes, beside the bound and per number.

    .. math:: \frac{1}{2 B D \sigma^2} \sum_{b, i} w_{bi} \, (x_{bi} - \hat x_{bi})^2
        + \lambda \, \text{loss}_{\text{reader}}(\hat x)

    Args:
        batch: What was to be painted.
        painted: What was painted. :math:`\sigma^2` is its mean squared error over the batch.
        total: Of each object's weights, see :func:`object_weights`.
        reader: A network that names what it sees, in eval mode; its weights get gradients, too,
            unless they are frozen.
        strength: :math:`\lambda`.

    Raises:
        ValueError: ``painted`` is of another shape, or the batch has no scene.
    """
    pictures, drawn = batch
    if painted.shape != pictures.shape or not drawn:
        raise ValueError(
            "painted must be of the batch's shape, and the batch must have scenes: got "
            f"{tuple(painted.shape)} for {tuple(pictures.shape)} with {len(drawn)} scenes"
        )
    errors = (pictures - painted).square()
    weights = object_weights(drawn, total).to(errors)
    variance = errors.detach().mean().clamp(min=1e-12)
    loss = (weights * errors[-len(drawn) :]).sum() / (2 * variance * errors.numel())
    if reader is not None:
        loss = loss + strength * reader.loss(painted[-len(drawn) :], drawn)
    return loss
