r"""Weights and activations as whole numbers of eight bits (动态量化): chapter 15.

**Symmetric, by rows.** A row of weights is divided by its largest size and rounded:

.. math:: w \approx s\, q, \qquad s = \frac{\max_j |w_j|}{127}, \qquad
          q_j = \operatorname{round}(w_j / s) \in \{-127, \dots, 127\}

so that no weight is further than :math:`s/2` from what it was. **Dynamic** (动态): the rows of the
input are treated in the same way when they arrive, each with its own scale, so that no data are
needed beforehand:

.. math:: y_{bo} = s^x_b\, s^w_o \sum_j q^x_{bj}\, q^w_{oj} + b_o

The sum is exact: of whole numbers, in 32 bits. A quarter of the memory of fp32; whether it is
faster depends on the machine's instructions for products of 8 bits, and on the rest of the model.

References:
    Jacob et al., *Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference*, CVPR 2018. Dettmers et al., *LLM.int8()*, NeurIPS 2022
    (scales by rows of the input). torchao is the library for this; here is what it does inside.
"""

import copy

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int8
from torch import Tensor, nn

__all__ = ["Int8Embedding", "Int8Linear", "dequantise", "megabytes", "quantise", "quantise_model"]


def quantise(
    x: Float[Tensor, "rows columns"],
) -> tuple[Int8[Tensor, "rows columns"], Float[Tensor, " rows"]]:
    """Rows of whole numbers, and the scale of each row; a row of zeros has scale 1.

    Raises:
        TypeError: ``x`` is not floating point.
        ValueError: another shape, NaN or infinity.

    >>> quantise(torch.tensor([[-2.54, 1.0, 0.0]]))
    (tensor([[-127,   50,    0]], dtype=torch.int8), tensor([0.0200]))
    """
    if not x.is_floating_point():
        raise TypeError(f"x must be floating point: got {x.dtype}")
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(f"x must have shape (rows, columns), not empty: got {tuple(x.shape)}")
    largest = x.detach().abs().amax(1).float()
    if not largest.isfinite().all():
        raise ValueError("x must be finite: got NaN or infinity")
    scale = torch.where(largest > 0, largest / 127, 1.0)
    return (x.detach().float() / scale[:, None]).round().clamp(-127, 127).to(torch.int8), scale


def dequantise(
    q: Int8[Tensor, "rows columns"], scale: Float[Tensor, " rows"]
) -> Float[Tensor, "rows columns"]:
    """What the numbers stand for."""
    return q.to(scale.dtype) * scale[:, None]


class Int8Linear(nn.Module):
    """A linear layer with weights, inputs and products in whole numbers; see the module.

    Args:
        linear: The layer to replace; it is not changed.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        codes, scale = quantise(linear.weight)
        # As the product wants it: columns of outputs.
        self.register_buffer("codes", codes.T.contiguous())
        self.register_buffer("scale", scale)
        bias = linear.bias
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    @property
    def weight(self) -> Float[Tensor, "outputs inputs"]:
        """What the numbers stand for, where a model reads the weights itself (attention does)."""
        return dequantise(self.codes.T, self.scale)

    def forward(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        """The layer's output, in the dtype of the input."""
        rows = x.reshape(-1, self.in_features)
        largest = rows.abs().amax(1, keepdim=True).float()
        scale = torch.where(largest > 0, largest / 127, 1.0)
        q = (rows / scale).round().to(torch.int8)
        y = torch._int_mm(q, self.codes).float() * scale * self.scale
        if self.bias is not None:
            y = y + self.bias
        return y.to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """The sizes."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


class Int8Embedding(nn.Module):
    """A table of vectors in whole numbers, a scale for each.

    Args:
        embedding: The table to replace; it is not changed.
    """

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = embedding.weight.shape
        codes, scale = quantise(embedding.weight)
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)

    @property
    def weight(self) -> Float[Tensor, "items dim"]:
        """What the numbers stand for."""
        return dequantise(self.codes, self.scale)

    def forward(self, ids: Int[Tensor, "..."]) -> Float[Tensor, "... dim"]:
        """The vectors."""
        return F.embedding(ids, self.codes).to(self.scale.dtype) * self.scale[ids][..., None]


def quantise_model(model: nn.Module, *, embeddings: bool = True) -> nn.Module:
    """A copy with every linear layer, and every table of vectors, in whole numbers.

    Convolutions, norms and recurrent cells stay as they are. A layer whose weight is used
    elsewhere too (a tied output layer) stays as well.

    Args:
        model: The model; it is not changed.
        embeddings: Whether tables are replaced as well.

    >>> model = quantise_model(nn.Sequential(nn.Linear(8, 4), nn.ReLU()))
    >>> type(model[0]).__name__, model(torch.ones(2, 8)).shape
    ('Int8Linear', torch.Size([2, 4]))
    """
    kinds = {nn.Linear: Int8Linear} | ({nn.Embedding: Int8Embedding} if embeddings else {})
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    replaced = {
        name: kinds[type(module)](module)
        for name, module in model.named_modules()
        if type(module) in kinds and owners[id(module.weight)] == 1
    }
    if "" in replaced:
        return replaced[""]
    model = copy.deepcopy(model)
    for name, module in replaced.items():
        model.set_submodule(name, module)
    return model.eval()


def megabytes(model: nn.Module) -> float:
    """Size of the parameters and buffers, what is shared counted once.

    >>> megabytes(nn.Linear(1000, 250, bias=False))
    1.0
    """
    tensors = {id(t): t for t in [*model.parameters(), *model.buffers()]}.values()
    return sum(t.numel() * t.element_size() for t in tensors) / 1e6
