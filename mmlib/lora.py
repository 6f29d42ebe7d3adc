r"""Low-rank adaptation (低秩适配, LoRA) of one linear layer, for chapter 13.

To a matrix :math:`W` that stays as it is a product of two thin ones is added,

.. math:: W' = W + \frac{\alpha}{r}\, B A, \qquad
          A \in \mathbb{R}^{r \times d_\text{in}},\; B \in \mathbb{R}^{d_\text{out} \times r}

with :math:`B = 0` at first, so that nothing changes before the first step. Merged into :math:`W`
it costs nothing at inference. :mod:`mmlib.adapters` puts such layers into a whole model.

References:
    Hu et al., *LoRA: Low-Rank Adaptation of Large Language Models*, ICLR 2022.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["LoRALinear"]


class LoRALinear(nn.Module):
    r"""A linear layer with low-rank additions, of which at most one is in use.

    .. math:: y = W x + b + \frac{\alpha}{r}\, B\,(A\,\operatorname{dropout}(x))

    Args:
        base: The layer; it is used itself, and frozen.

    Attributes:
        base: As given.
        down: :math:`A` of each addition by name, drawn as torch draws a linear layer's weights.
        up: :math:`B` of each, zeros at first.
        active: The name of the one in use, or None.
        merged: The name of the one that is inside ``base.weight`` at present, or None.
    """

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        if not isinstance(base, nn.Linear):
            raise TypeError(f"base must be a linear layer: got {type(base).__name__}")
        self.base = base.requires_grad_(False)
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        self.factors: dict[str, float] = {}
        self.dropouts: dict[str, float] = {}
        self.active: str | None = None
        self.merged: str | None = None
        self._plain: Tensor | None = None

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        r"""The matrix in effect, :math:`W + \frac{\alpha}{r} B A`.

        Layers that use a part of a projection (queries only, in cross-attention) read this and
        not the layer's output; without it they would pass the addition by.
        """
        if self.active is None or self.merged is not None:
            return self.base.weight
        return self.base.weight + self.delta(self.active)

    @property
    def bias(self) -> Float[Tensor, " out"] | None:
        """That of the base."""
        return self.base.bias

    def add(
        self,
        name: str,
        rank: int,
        alpha: float | None = None,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        r"""Add an addition and use it.

        Args:
            name: Of the addition.
            rank: :math:`r`.
            alpha: :math:`\alpha`, by default the rank: a factor of 1.
            dropout: Probability, on what enters :math:`A`.
            generator: Of the random draw.

        Raises:
            ValueError: A number is out of range, the name is taken, or one is merged.
        """
        wide = min(self.base.weight.shape)
        if not 1 <= rank <= wide:
            raise ValueError(f"rank must be from 1 to {wide}, the layer's smaller side: got {rank}")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1): got {dropout}")
        if not name or "." in name or name in self.down:
            raise ValueError(f"name must be new, not empty and without a dot: got {name!r}")
        self.need_apart()
        weight = self.base.weight
        bound = weight.shape[1] ** -0.5
        draw = torch.rand(rank, weight.shape[1], generator=generator)
        self.down[name] = nn.Parameter(((2 * draw - 1) * bound).to(weight))
        self.up[name] = nn.Parameter(weight.new_zeros(weight.shape[0], rank))
        self.factors[name] = (rank if alpha is None else alpha) / rank
        self.dropouts[name] = dropout
        self.active = name

    def delta(self, name: str) -> Float[Tensor, "out in"]:
        r"""What is added to the matrix: :math:`\frac{\alpha}{r} B A`."""
        return self.factors[name] * self.up[name] @ self.down[name]

    def forward(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        """Apply the base and the addition in use, without forming their sum."""
        y = self.base(x)
        if self.active is None or self.merged is not None:
            return y
        name = self.active
        low = F.linear(F.dropout(x, self.dropouts[name], self.training), self.down[name])
        return y + self.factors[name] * F.linear(low, self.up[name])

    @torch.no_grad()
    def merge(self) -> None:
        """Put the addition in use into the base's matrix, which is kept to be put back."""
        self.need_apart()
        if self.active is not None:
            self._plain = self.base.weight.detach().clone()
            self.base.weight.add_(self.delta(self.active))
            self.merged = self.active

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put the base's matrix back, bit for bit: subtracting would leave a rounding error."""
        if self.merged is not None:
            self.base.weight.copy_(self._plain)
            self._plain, self.merged = None, None

    def need_apart(self) -> None:
        """Refuse while an addition is merged.

        Raises:
            ValueError: One is.
        """
        if self.merged is not None:
            raise ValueError(f"{self.merged!r} is merged into the weights: unmerge it first")
