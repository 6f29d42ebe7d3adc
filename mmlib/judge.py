r"""An independent judge of small pictures of scenes: which objects it sees, and where.

A generated picture is right if somebody who has not seen the caption names the same objects. The
judge is that somebody: a small convolutional network of its own, which shares no layer, no weight
and no training picture with the models that it marks (chapter 09's tokenizer, chapters 10 and 11).

**The grid.** The network looks at a picture of 32 × 32 pixels in 8 × 8 cells. Each cell says
whether the centre of an object lies within :data:`REACH` of the cell's own centre; if so, how far
from there, and which colour, shape and size the object has. No two centres are nearer than 7.5
pixels, so the cells that speak of one object speak of no other, and the surest of them is heard.

**Its pictures** differ from those that it is to mark: drawn three times as large and averaged,
blurred, brightened, tinted and noisy, of all combinations of colour and shape, from a seed of
their own. So edges that are a little soft do not disturb it.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mmlib.data import scenes
from mmlib.data.scenes import COLOURS, RADIUS, SHAPES, SIZES, Object, Scene
from mmlib.training import load_weights

__all__ = ["CELLS", "REACH", "Judge", "JudgeConfig", "judge_pictures", "load_judge"]

CHECKPOINTS = Path(__file__).parent / "checkpoints"
SIZE = 32
#: Rows, and columns, of the grid.
CELLS = 8
#: How far an object's centre may lie from that of a cell that speaks of it, in x and in y, in
#: picture widths: three pixels. The nearest cell's centre lies within two.
REACH = 3 / SIZE
#: Two answers whose centres are nearer than this, in picture widths, are about one object.
APART = 5 / SIZE
_KINDS = {"shape": SHAPES, "colour": COLOURS, "size": SIZES}


@dataclass(frozen=True)
class JudgeConfig:
    """Sizes of a :class:`Judge`.

    Attributes:
        widths: Channels at 16 × 16 pixels, and at 8 × 8.

    Raises:
        ValueError: a width below 1, or not two of them.
    """

    widths: tuple[int, int] = (64, 96)

    def __post_init__(self) -> None:
        if len(self.widths) != 2 or min(self.widths) < 1:
            raise ValueError(f"widths must be two numbers of at least 1: got {self.widths}")


class Judge(nn.Module):
    """Reads pictures of scenes.

    Attributes:
        config: Sizes.

    >>> judge = Judge(JudgeConfig(widths=(8, 16))).eval()
    >>> judge(torch.rand(2, 3, 32, 32)).shape  # one score, x and y, 8 shapes, 8 colours, 2 sizes
    torch.Size([2, 21, 8, 8])
    """

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        self.config = config
        first, second = config.widths
        layers: list[nn.Module] = []
        for before, after, kernel in (
            (3, first, 4),
            (first, first, 3),
            (first, first, 3),
            (first, second, 4),
            (second, second, 3),
            (second, second, 3),
        ):
            # An even kernel that halves keeps the cells centred on the picture.
            stride = 2 if kernel == 4 else 1
            layers += [
                nn.Conv2d(before, after, kernel, stride, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
        outputs = 3 + sum(map(len, _KINDS.values()))
        self.layers = nn.Sequential(*layers, nn.Conv2d(second, outputs, 1))

    def forward(
        self, pictures: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch outputs rows columns"]:
        """What each cell says: the logit of an object, its place, and logits of what it is.

        Args:
            pictures: 32 × 32 pixels in [0, 1].

        Raises:
            ValueError: pictures of another size.
        """
        if pictures.shape[1:] != (3, SIZE, SIZE):
            raise ValueError(
                f"pictures must be of shape (batch, 3, {SIZE}, {SIZE}): got {tuple(pictures.shape)}"
            )
        return self.layers(2 * pictures - 1)

    def loss(
        self, pictures: Float[Tensor, "batch 3 height width"], drawn: Sequence[Scene]
    ) -> Float[Tensor, ""]:
        r"""What is minimised: cross-entropies of all answers, and the squared error of places.

        .. math:: 4\, \overline{\text{CE}(\text{object})} + \overline{\text{CE}(\text{shape})}
            + \overline{\text{CE}(\text{colour})} + \overline{\text{CE}(\text{size})}
            + \overline{\|\Delta\|^2}

        The first mean is over all cells, the others over those that speak of an object;
        :math:`\Delta` is the error of the centre in units of :data:`REACH`.

        Args:
            pictures: Pictures.
            drawn: Their scenes.

        Raises:
            ValueError: pictures of another size or not one for each scene.
        """
        if len(pictures) != len(drawn):
            raise ValueError(
                f"pictures must be one for each scene: got {len(pictures)} for {len(drawn)}"
            )
        said = self(pictures).float()
        exists, offset, labels = (part.to(said.device) for part in _answers(drawn))
        losses = 4 * F.binary_cross_entropy_with_logits(said[:, 0], exists.float())
        said = said.permute(0, 2, 3, 1)[exists]
        losses = losses + (said[:, 1:3] - offset[exists]).square().sum(1).mean()
        kinds = said[:, 3:].split([len(words) for words in _KINDS.values()], dim=1)
        for kind, logits in enumerate(kinds):
            losses = losses + F.cross_entropy(logits, labels[exists][:, kind])
        return losses

    @torch.no_grad()
    def read(self, pictures: Float[Tensor, "batch 3 height width"]) -> list[list[Object]]:
        """The objects of each picture, in reading order (from left to right).

        The judge should be in eval mode: then a picture is read as if it stood alone.

        Args:
            pictures: 32 × 32 pixels in [0, 1].

        Returns:
            For each picture its objects; none where nothing is seen. They may overlap, unlike those
            of a :class:`~mmlib.data.scenes.Scene`.

        Raises:
            ValueError: pictures of another size.
        """
        said = torch.cat([self(part).float() for part in pictures.split(256)] or [self(pictures)])
        said = said.permute(0, 2, 3, 1).flatten(1, 2).cpu()
        centres = _cell_centres() + said[:, :, 1:3] * REACH
        kinds = [
            part.argmax(-1)
            for part in said[:, :, 3:].split([len(words) for words in _KINDS.values()], dim=2)
        ]
        found: list[list[Object]] = [[] for _ in pictures]
        # From the surest cell to the least sure, over all pictures.
        rows, cells = (said[:, :, 0] > 0).nonzero(as_tuple=True)
        order = said[rows, cells, 0].argsort(descending=True)
        for row, cell in zip(rows[order].tolist(), cells[order].tolist(), strict=True):
            words = {
                name: choices[int(kind[row, cell])]
                for (name, choices), kind in zip(_KINDS.items(), kinds, strict=True)
            }
            inside = RADIUS[words["size"]]
            x, y = (min(max(v, inside), 1 - inside) for v in centres[row, cell].tolist())
            if all(max(abs(x - o.x), abs(y - o.y)) >= APART for o in found[row]):
                found[row].append(Object(**words, x=x, y=y))
        return [sorted(objects, key=lambda item: (item.x, item.y)) for objects in found]


def load_judge() -> Judge:
    """The judge that chapter 09 trained, in eval mode."""
    judge = Judge(JudgeConfig())
    load_weights(judge, CHECKPOINTS / "09_judge.safetensors")
    return judge.eval()


def judge_pictures(
    drawn: Sequence[Scene], generator: torch.Generator
) -> Float[Tensor, "batch 3 height width"]:
    """Pictures to train a judge on: drawn otherwise than :func:`mmlib.data.scenes.render` does.

    Drawn at 96 pixels and averaged over 3 × 3; then, each to a random degree, blurred (a normal
    kernel of up to 0.8 pixels' deviation, half of the pictures), brightened and tinted (each
    channel times 0.9 … 1.08, plus at most 0.04), and noisy (a deviation of up to 0.06).

    Args:
        drawn: Scenes.
        generator: What is drawn from.

    Returns:
        Pictures of 32 × 32 pixels in [0, 1].
    """

    def between(low: float, high: float, channels: int = 1) -> Tensor:
        shape = (len(drawn), channels, 1, 1)
        return low + (high - low) * torch.rand(shape, generator=generator)

    pictures = F.avg_pool2d(scenes.render(drawn, 3 * SIZE), 3)
    deviation = between(-0.8, 0.8).clamp(min=0.05)
    steps = torch.arange(-2, 3)
    kernel = (-(steps**2) / (2 * deviation.flatten()[:, None] ** 2)).exp()
    kernel = kernel / kernel.sum(1, keepdim=True)
    for shape, border in (((-1, 1, 1, 5), (2, 2, 0, 0)), ((-1, 1, 5, 1), (0, 0, 2, 2))):
        # Each picture has a kernel of its own: it is a group, and its channels are the batch.
        padded = F.pad(pictures.transpose(0, 1), border, mode="replicate")
        pictures = F.conv2d(padded, kernel.view(shape), groups=len(drawn)).transpose(0, 1)
    pictures = pictures * between(0.9, 1.08, 3) + between(-0.04, 0.04, 3)
    noise = torch.randn(pictures.shape, generator=generator)
    return (pictures + between(0.0, 0.06) * noise).clamp(0, 1)


@functools.cache
def _cell_centres() -> Float[Tensor, "cells 2"]:
    """Centres of the cells, x and y, row by row, in picture widths."""
    along = (torch.arange(CELLS) + 0.5) / CELLS
    return torch.cartesian_prod(along, along).flip(1)


def _answers(drawn: Sequence[Scene]) -> tuple[Tensor, Tensor, Tensor]:
    """What each cell should say: whether there is an object, how far off, and what it is."""
    exists = torch.zeros(len(drawn), CELLS**2, dtype=torch.bool)
    offset = torch.zeros(len(drawn), CELLS**2, 2)
    labels = torch.zeros(len(drawn), CELLS**2, len(_KINDS), dtype=torch.long)
    rows = [
        (number, item.x, item.y, *(_KINDS[name].index(getattr(item, name)) for name in _KINDS))
        for number, scene in enumerate(drawn)
        for item in scene.objects
    ]
    table = torch.tensor(rows, dtype=torch.float64).reshape(-1, 3 + len(_KINDS))
    picture = table[:, 0].long()
    away = (table[:, None, 1:3].float() - _cell_centres()) / REACH
    item, cell = (away.abs().amax(2) <= 1).nonzero(as_tuple=True)
    exists[picture[item], cell] = True
    offset[picture[item], cell] = away[item, cell]
    labels[picture[item], cell] = table[item, 3:].long()
    grid = (len(drawn), CELLS, CELLS)
    return exists.view(grid), offset.view(*grid, 2), labels.view(*grid, -1)
