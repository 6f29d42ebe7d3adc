r"""What a picture looks like, coarsely: what the last layer of a classifier has thrown away.

A classifier's last features say *heart* and no longer how many, where, in which colours: to the
class it makes no difference. To a caption it does. So three things are taken from before that:

.. math::
    d(I) = \bigl[\;\tfrac12\, \text{thumbnail}(I);\;\; \operatorname{mean}_{r,c} F_{:,r,c};\;\;
    \operatorname{std}_{r,c} F_{:,r,c};\;\; \tfrac12\, \operatorname{pool}_{g \times g}(F) \;\bigr]

with :math:`F` the map of a middle stage. Every number is brought to zero mean and unit spread on
training pictures before the halves are taken; the two parts that say *where* are the widest and
would drown the others.

References:
    Hariharan et al., *Hypercolumns for Object Segmentation and Fine-grained Localization*,
    CVPR 2015, who read several stages for each pixel; here they are read for the whole picture.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["PictureDetails"]


class PictureDetails(nn.Module):
    """From pictures and the maps of a middle stage to one vector a picture.

    Nothing of it is trained; :meth:`adapt` measures the training pictures.

    Args:
        channels: Of the maps.
        thumbnail: Height and width of the thumbnail, three colours.
        grid: Rows and columns into which a map is pooled.

    Attributes:
        dim: Width of the vectors.
        norm: What brings every number to zero mean and unit spread.

    Raises:
        ValueError: A number is below 1.

    >>> PictureDetails(channels=5, thumbnail=2, grid=3).dim  # 12 + 5 + 5 + 45
    67
    """

    def __init__(self, channels: int, thumbnail: int = 8, grid: int = 3) -> None:
        super().__init__()
        for name, size in (("channels", channels), ("thumbnail", thumbnail), ("grid", grid)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1: got {size}")
        self.channels, self.thumbnail, self.grid = channels, thumbnail, grid
        where = torch.full((3 * thumbnail**2,), 0.5), torch.full((channels * grid**2,), 0.5)
        self.register_buffer(
            "weight", torch.cat([where[0], torch.ones(2 * channels), where[1]]), persistent=False
        )
        self.dim = len(self.weight)
        # A batch norm whose running statistics are the plain ones of all it was shown.
        self.norm = nn.BatchNorm1d(self.dim, affine=False, momentum=None).eval()

    def measure(
        self,
        images: Float[Tensor, "batch 3 height width"],
        maps: Float[Tensor, "batch channels rows columns"],
    ) -> Float[Tensor, "batch dim"]:
        """The numbers as they are.

        Raises:
            ValueError: A wrong shape, a picture smaller than the thumbnail, a map smaller than
                the grid or of one cell, or not as many maps as pictures.
        """
        if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < self.thumbnail:
            raise ValueError(
                f"images must have shape (batch, 3, height, width), at least {self.thumbnail} "
                f"pixels high and wide: got {tuple(images.shape)}"
            )
        least = max(2, self.grid)
        if maps.ndim != 4 or maps.shape[1] != self.channels or min(maps.shape[2:]) < least:
            raise ValueError(
                f"maps must have shape (batch, {self.channels}, rows, columns), at least {least} "
                f"rows and columns: got {tuple(maps.shape)}"
            )
        if len(images) != len(maps):
            raise ValueError(
                f"there must be one map a picture: got {len(maps)} maps, {len(images)} images"
            )
        parts = (
            F.interpolate(images, (self.thumbnail, self.thumbnail), mode="area"),
            maps.mean(dim=(2, 3)),
            maps.std(dim=(2, 3)),
            F.adaptive_avg_pool2d(maps, self.grid),
        )
        return torch.cat([part.flatten(1) for part in parts], dim=1)

    def adapt(self, details: Float[Tensor, "batch dim"]) -> "PictureDetails":
        """Measure mean and spread on training pictures, from what :meth:`measure` gave.

        Raises:
            ValueError: There are fewer than two pictures.
        """
        if len(details) < 2:
            raise ValueError(f"details must be those of at least two pictures: got {len(details)}")
        self.norm.reset_running_stats()
        self.norm.train()(details)
        self.norm.eval()
        return self

    def forward(self, details: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        """What :meth:`measure` gave, scaled; beyond four standard deviations it is cut."""
        return self.weight * self.norm(details).clamp(-4, 4)

    def train(self, mode: bool = True) -> "PictureDetails":
        """Stay in evaluation mode: only :meth:`adapt` changes the statistics."""
        return super().train(False)
