r"""How to join modalities: chapter 04.

The operators here take one vector of each modality, ``(batch, dim_m)``, and give one for all:
the documents' three as functions, and five layers with parameters. Those that leave each modality
its tokens, cross-modal attention and bottleneck tokens, are in :mod:`mmlib.fusion_tokens`; what is
built of both, early, late and hybrid fusion, in :mod:`mmlib.fusion_models`.

**Missing modalities.** ``keep`` has the shape ``(batch, modalities)``; False means that the row
lacks this modality. What stands in its place, even NaN, changes nothing, and a row that has no
modality gives zeros.

References:
    Baltrušaitis, Ahuja, Morency, *Multimodal Machine Learning: A Survey and Taxonomy*, TPAMI 2019.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

__all__ = [
    "OPERATORS",
    "Bilinear",
    "Concatenation",
    "Gate",
    "Product",
    "WeightedSum",
    "concatenate",
    "multiply",
    "weighted_average",
]

Vectors = Sequence[Float[Tensor, "batch _"]]
Present = Bool[Tensor, "batch modalities"] | None


def concatenate(vectors: Vectors, keep: Present = None) -> Float[Tensor, "batch total"]:
    r"""Put the vectors of all modalities side by side (拼接), :math:`h = [h_1; \dots; h_M]`.

    A missing modality is a block of zeros. The vectors may differ in width.

    Args:
        vectors: One for each modality, ``(batch, dim_m)``.
        keep: Which of them exist, all by default.

    Raises:
        TypeError: ``keep`` is not boolean.
        ValueError: there are no vectors, or shapes do not fit each other.

    The example of document 001, §4.2:

    >>> text, image = torch.tensor([[0.2, 0.5, 0.8]]), torch.tensor([[0.1, 0.7, 0.9]])
    >>> concatenate([text, image])
    tensor([[0.2000, 0.5000, 0.8000, 0.1000, 0.7000, 0.9000]])
    """
    vectors, _ = _checked(vectors, keep)
    return torch.cat(vectors, dim=-1)


def multiply(vectors: Vectors, keep: Present = None) -> Float[Tensor, "batch dim"]:
    r"""Multiply element by element (元素级乘法), :math:`h = h_1 \odot \dots \odot h_M`.

    A missing modality is left out, as if it were all ones.

    Args:
        vectors: One for each modality, all of one width.
        keep: Which of them exist, all by default.

    Raises:
        TypeError: ``keep`` is not boolean.
        ValueError: there are no vectors, or shapes do not fit each other.

    >>> text, image = torch.tensor([[0.2, 0.5, 0.8]]), torch.tensor([[0.1, 0.7, 0.9]])
    >>> multiply([text, image])
    tensor([[0.0200, 0.3500, 0.7200]])
    """
    vectors, keep = _checked(vectors, keep, same=True)
    product = torch.ones_like(vectors[0])
    for index, vector in enumerate(vectors):
        product = product * vector.masked_fill(~keep[:, index, None], 1.0)
    return product.masked_fill(~keep.any(dim=1, keepdim=True), 0.0)


def weighted_average(
    vectors: Vectors, weights: Float[Tensor, " modalities"], keep: Present = None
) -> Float[Tensor, "batch dim"]:
    r"""Average the vectors (加权平均), :math:`h = \sum_m w_m h_m / \sum_m w_m`.

    The documents write :math:`\sum_m w_m h_m` and call it an average, which it is only when the
    weights are not negative and sum to one. Here they are divided by their sum, over the
    modalities that the row has.

    Args:
        vectors: One for each modality, all of one width.
        weights: One number for each modality, not negative.
        keep: Which of them exist, all by default.

    Raises:
        TypeError: ``keep`` is not boolean.
        ValueError: there are no vectors, shapes do not fit each other, or the weights are
            negative or all zero.

    >>> text, image = torch.tensor([[0.2, 0.5, 0.8]]), torch.tensor([[0.1, 0.7, 0.9]])
    >>> weighted_average([text, image], torch.tensor([0.5, 0.5]))
    tensor([[0.1500, 0.6000, 0.8500]])
    """
    vectors, keep = _checked(vectors, keep, same=True)
    if weights.shape != (len(vectors),):
        raise ValueError(
            f"weights must be one number for each of {len(vectors)} modalities: "
            f"got shape {tuple(weights.shape)}"
        )
    if not bool((weights >= 0).all()) or not bool((weights > 0).any()):
        raise ValueError(f"weights must not be negative, and not all zero: got {weights.tolist()}")
    share = weights * keep.to(weights.dtype)
    share = share / share.sum(dim=1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    return sum(share[:, m, None].to(v.dtype) * v for m, v in enumerate(vectors))


class _Projected(nn.Module):
    """What the learned operators share: a linear map of each modality to one width."""

    def __init__(self, dims: Sequence[int], dim: int) -> None:
        super().__init__()
        _check_dims(dims, dim)
        self.dims, self.dim = tuple(dims), dim
        self.projections = nn.ModuleList(nn.Linear(given, dim) for given in dims)

    def project(
        self, vectors: Sequence[Tensor], keep: Tensor | None
    ) -> tuple[list[Tensor], Tensor]:
        vectors, keep = _checked(vectors, keep, dims=self.dims)
        return [map_(v) for map_, v in zip(self.projections, vectors, strict=True)], keep


class Concatenation(nn.Module):
    r"""Concatenate and map to one width, :math:`h = W [h_1; \dots; h_M] + b`.

    By itself it is **additive**: :math:`W` falls into a block for each modality, and
    :math:`h = \sum_m W_m h_m + b`. Modalities meet only in what comes after, if that is not linear.

    Args:
        dims: Width of each modality.
        dim: Width of the result.
    """

    def __init__(self, dims: Sequence[int], dim: int) -> None:
        super().__init__()
        _check_dims(dims, dim)
        self.dims, self.dim = tuple(dims), dim
        self.map = nn.Linear(sum(dims), dim)

    def forward(self, vectors: Vectors, keep: Present = None) -> Float[Tensor, "batch dim"]:
        """Join; the arguments are those of :func:`concatenate`."""
        vectors, keep = _checked(vectors, keep, dims=self.dims)
        joined = self.map(torch.cat(vectors, dim=-1))
        return joined.masked_fill(~keep.any(dim=1, keepdim=True), 0.0)


class Product(_Projected):
    r"""Project each to one width and multiply, :math:`h = \bigodot_m (W_m h_m + b_m)`.

    Args:
        dims: Width of each modality.
        dim: Width of the result.
    """

    def forward(self, vectors: Vectors, keep: Present = None) -> Float[Tensor, "batch dim"]:
        """Join; the arguments are those of :func:`concatenate`."""
        return multiply(*self.project(vectors, keep))


class WeightedSum(_Projected):
    r"""Project each to one width and average with learned weights.

    .. math:: h = \sum_m w_m (W_m h_m + b_m), \qquad w = \operatorname{softmax}(a)

    with one learned number :math:`a_m` for each modality, the same for every input. It is additive,
    like :class:`Concatenation`.

    Args:
        dims: Width of each modality.
        dim: Width of the result.

    Attributes:
        logits: The numbers :math:`a`, zero at first.
    """

    def __init__(self, dims: Sequence[int], dim: int) -> None:
        super().__init__(dims, dim)
        self.logits = nn.Parameter(torch.zeros(len(self.dims)))

    def forward(self, vectors: Vectors, keep: Present = None) -> Float[Tensor, "batch dim"]:
        """Join; the arguments are those of :func:`concatenate`."""
        vectors, keep = self.project(vectors, keep)
        return weighted_average(vectors, self.logits.softmax(dim=0), keep)


class Gate(_Projected):
    r"""Average with weights that depend on the input, feature by feature (门控).

    .. math::

        u_m = \tanh(W_m h_m + b_m), \qquad
        z = \operatorname{softmax}_m(V_m [h_1; \dots; h_M] + c_m), \qquad
        h = \sum_m z_m \odot u_m

    The softmax runs over the modalities that the row has. For two modalities it is the sigmoid
    of Arevalo et al., *Gated Multimodal Units for Information Fusion*, 2017, whose form for more
    has a sigmoid for each instead, and no sum of one.

    Args:
        dims: Width of each modality.
        dim: Width of the result.
    """

    def __init__(self, dims: Sequence[int], dim: int) -> None:
        super().__init__(dims, dim)
        self.gates = nn.Linear(sum(self.dims), len(self.dims) * dim)

    def forward(self, vectors: Vectors, keep: Present = None) -> Float[Tensor, "batch dim"]:
        """Join; the arguments are those of :func:`concatenate`."""
        projected, keep = self.project(vectors, keep)
        values = torch.stack(projected, dim=1).tanh()
        return (self.weights(vectors, keep) * values).sum(dim=1)

    def weights(
        self, vectors: Vectors, keep: Present = None
    ) -> Float[Tensor, "batch modalities dim"]:
        """How much of each modality passes: they sum to 1 over those that the row has."""
        vectors, keep = _checked(vectors, keep, dims=self.dims)
        scores = self.gates(torch.cat(vectors, dim=-1)).unflatten(1, (len(self.dims), self.dim))
        missing = ~keep[..., None]
        scores = scores.masked_fill(missing, torch.finfo(scores.dtype).min)
        return scores.softmax(dim=1).masked_fill(missing, 0.0)


class Bilinear(nn.Module):
    r"""All products of the features of all modalities, with few parameters (低秩双线性).

    With a one appended to each vector, :math:`\tilde h_m = [h_m; 1]`, a full multilinear map has a
    weight for each product of one feature of each. It is factored into ``rank`` terms:

    .. math::

        h_k = \sum_{i,j} T_{kij}\, \tilde h_{1,i}\, \tilde h_{2,j}, \qquad
        T_{kij} = \sum_{r=1}^{R} A^{(1)}_{rik} A^{(2)}_{rjk}
        \quad\Longrightarrow\quad
        h = \sum_{r=1}^{R} \bigodot_m A^{(m)\top}_r \tilde h_m

    so :math:`T` is never formed, and the cost grows with the sum of the widths and not with their
    product. The ones make single features part of it too, and a missing modality is the vector
    that has only its one.

    From Liu et al., *Efficient Low-rank Multimodal Fusion with Modality-Specific Factors*,
    ACL 2018, after the full tensor of Zadeh et al., *Tensor Fusion Network for Multimodal
    Sentiment Analysis*, EMNLP 2017. They also learn a weight for each of the ``rank`` terms, which
    the factors already hold.

    Args:
        dims: Width of each modality.
        dim: Width of the result.
        rank: Number of terms.

    Attributes:
        factors: One for each modality, ``(rank, dim_m + 1, dim)``.
    """

    def __init__(self, dims: Sequence[int], dim: int, rank: int = 4) -> None:
        super().__init__()
        _check_dims(dims, dim)
        if rank < 1:
            raise ValueError(f"rank must be at least 1: got {rank}")
        self.dims, self.dim, self.rank = tuple(dims), dim, rank
        self.factors = nn.ParameterList(torch.empty(rank, given + 1, dim) for given in self.dims)
        for factor in self.factors:
            # Each factor keeps the size of its input; the sum over rank terms keeps it too.
            nn.init.normal_(factor, std=(factor.shape[1]) ** -0.5 * rank ** (-0.5 / len(self.dims)))

    def forward(self, vectors: Vectors, keep: Present = None) -> Float[Tensor, "batch dim"]:
        """Join; the arguments are those of :func:`concatenate`."""
        vectors, keep = _checked(vectors, keep, dims=self.dims)
        product = None
        for vector, factor in zip(vectors, self.factors, strict=True):
            term = torch.einsum("bi,rid->brd", vector, factor[:, :-1]) + factor[:, -1]
            product = term if product is None else product * term
        return product.sum(dim=1).masked_fill(~keep.any(dim=1, keepdim=True), 0.0)

    def tensor(self) -> Float[Tensor, "dim ..."]:
        """The full tensor: ``dim``, then one axis of ``dim_m + 1`` for each modality."""
        letters = "ijklmn"[: len(self.dims)]
        parts = ",".join(f"r{letter}d" for letter in letters)
        return torch.einsum(f"{parts}->d{letters}", *self.factors)


OPERATORS = {
    "concat": Concatenation,
    "product": Product,
    "weighted": WeightedSum,
    "gate": Gate,
    "bilinear": Bilinear,
}
"""The operators on vectors; each is made by ``(dims, dim)``."""


def _checked(
    vectors: Sequence[Tensor],
    keep: Tensor | None,
    *,
    same: bool = False,
    dims: tuple[int, ...] | None = None,
) -> tuple[list[Tensor], Tensor]:
    """The vectors with zeros for those that do not exist, and a mask that is there."""
    if not len(vectors):
        raise ValueError("vectors must be one for each modality: got none")
    shapes = [tuple(vector.shape) for vector in vectors]
    if any(len(shape) != 2 for shape in shapes) or len({shape[0] for shape in shapes}) > 1:
        raise ValueError(f"vectors must have shape (batch, dim) with one batch: got {shapes}")
    if same and len(set(shapes)) > 1:
        raise ValueError(f"vectors must have one width to be added or multiplied: got {shapes}")
    if dims is not None and tuple(shape[1] for shape in shapes) != dims:
        raise ValueError(f"vectors must have the widths {dims}: got {shapes}")
    batch = shapes[0][0]
    if keep is None:
        keep = torch.ones(batch, len(vectors), dtype=torch.bool, device=vectors[0].device)
    if keep.dtype != torch.bool:
        raise TypeError(f"keep must be boolean (True = exists): got {keep.dtype}")
    if keep.shape != (batch, len(vectors)):
        raise ValueError(f"keep must have shape {(batch, len(vectors))}: got {tuple(keep.shape)}")
    # Filled and not multiplied: zero times NaN would be NaN.
    return [v.masked_fill(~keep[:, m, None], 0.0) for m, v in enumerate(vectors)], keep


def _check_dims(dims: Sequence[int], dim: int) -> None:
    if len(dims) < 1 or min(*dims, dim) < 1:
        raise ValueError(
            f"dims must be at least one width, and all at least 1: got dims={tuple(dims)}, "
            f"dim={dim}"
        )
