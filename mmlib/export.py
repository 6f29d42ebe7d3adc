"""A model without the Python it was written in: torch.export and ONNX: chapter 15.

**torch.export** traces a model into one graph of tensor operations, and says where that fails. It
is checked here against the model it came from, on other sizes than those it was traced with: a
size that was meant to vary and was fixed by the trace is the usual mistake. **ONNX** is such a
graph in a format that other programs run; :class:`OnnxModel` runs it with ONNX Runtime, in which
there is no PyTorch.

References:
    https://onnx.ai and https://onnxruntime.ai (``pip install "mmlib[export]"``).
"""

import contextlib
import copy
import io
import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.passes import move_to_device_pass

__all__ = ["Method", "OnnxModel", "export", "largest_difference", "write_onnx"]


class Method(nn.Module):
    """A method of a model as a model: ``Method(clip, "encode_text")(ids)``.

    Args:
        model: The model.
        name: Of the method.

    Raises:
        AttributeError: There is no such method.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        getattr(model, name)
        self.model, self.name = model, name
        self.train(model.training)

    def forward(self, *inputs: Tensor) -> Tensor:
        """What the method gives."""
        return getattr(self.model, self.name)(*inputs)


def export(
    model: nn.Module, inputs: Sequence[Tensor], dynamic: Sequence[Sequence[int]]
) -> ExportedProgram:
    """The model as one graph.

    Args:
        model: In evaluation mode.
        inputs: An example of its positional inputs; sizes that may vary must not be 0 or 1 here,
            which the trace would take for fixed.
        dynamic: Which dimensions of each input may vary.

    Raises:
        ValueError: the model is in training mode, ``dynamic`` does not fit the inputs, or a size
            that may vary is 0 or 1.

    >>> program = export(nn.Linear(3, 2).eval(), [torch.zeros(4, 3)], [[0]])
    >>> program.module()(torch.zeros(7, 3)).shape
    torch.Size([7, 2])
    """
    if model.training:
        raise ValueError("model must be in evaluation mode: call eval() first")
    if len(dynamic) != len(inputs):
        raise ValueError(
            f"dynamic must have one entry an input: got {len(dynamic)} for {len(inputs)}"
        )
    for i, (x, dims) in enumerate(zip(inputs, dynamic, strict=True)):
        for dim in dims:
            if not 0 <= dim < x.ndim:
                raise ValueError(f"dynamic[{i}] must hold dimensions below {x.ndim}: got {dim}")
            if x.shape[dim] < 2:
                raise ValueError(
                    f"inputs[{i}] must be at least 2 long where it may vary: got {tuple(x.shape)}"
                )
    shapes = tuple(dict.fromkeys(dims, Dim.DYNAMIC) for dims in dynamic)
    if isinstance(model, Method):  # its forward takes *inputs, which is one argument
        shapes = (shapes,)
    # A graph cannot ask for a value, and on a CPU the library's checks do ("an id outside the
    # vocabulary"). Where reading a value would make the host wait they leave it: so the trace is
    # made on no device at all, and the weights come in afterwards.
    hollow = copy.deepcopy(model).to("meta")
    with torch.no_grad():
        program = torch.export.export(
            hollow, tuple(x.to("meta") for x in inputs), dynamic_shapes=shapes, strict=False
        )
    for values in (program.state_dict, program.constants):
        for name, value in values.items():
            if isinstance(value, Tensor) and value.is_meta:
                values[name] = _named(model, name)
    program.example_inputs = (tuple(inputs), {})
    return move_to_device_pass(program, str(inputs[0].device))


def _named(model: nn.Module, name: str) -> Tensor:
    """A parameter or buffer."""
    module, _, last = name.rpartition(".")
    return getattr(model.get_submodule(module), last)


def write_onnx(program: ExportedProgram, path: str | os.PathLike) -> Path:
    """Write an exported program as one ONNX file, weights included.

    Args:
        program: From :func:`export`.
        path: ``….onnx``.

    Raises:
        ImportError: onnx or onnxscript is missing.
        ValueError: the path has another suffix.
    """
    path = Path(path)
    if path.suffix != ".onnx":
        raise ValueError(f"path must end in .onnx: got {path.name!r}")
    _require("onnxscript")
    logs = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # of the exporter's own parts
            made = torch.onnx.export(program, dynamo=True, verbose=False)
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
    made.save(path, external_data=False)
    return path


class OnnxModel:
    """An ONNX file, run by ONNX Runtime on the CPU.

    Args:
        path: The file.
        threads: For one call.

    Raises:
        ImportError: onnxruntime is missing.
        FileNotFoundError: There is no such file.
    """

    def __init__(self, path: str | os.PathLike, threads: int = 1) -> None:
        ort = _require("onnxruntime")
        if not Path(path).exists():
            raise FileNotFoundError(f"there is no {path}")
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._names = [one.name for one in self._session.get_inputs()]

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The first output.

        Raises:
            ValueError: another number of inputs.
        """
        if len(inputs) != len(self._names):
            raise ValueError(f"{len(self._names)} inputs are wanted: got {len(inputs)}")
        arrays = {n: x.detach().cpu().numpy() for n, x in zip(self._names, inputs, strict=True)}
        return torch.from_numpy(self._session.run(None, arrays)[0])


def largest_difference(a: Tensor, b: Tensor) -> float:
    """The largest difference of two tensors, in double precision.

    Raises:
        ValueError: the shapes differ, which broadcasting would hide.

    >>> largest_difference(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5]))
    0.5
    """
    if a.shape != b.shape:
        raise ValueError(f"a and b must have one shape: got {tuple(a.shape)} and {tuple(b.shape)}")
    return (a.detach().double() - b.detach().double()).abs().max().item()


def _require(name: str):
    try:
        return __import__(name)
    except ImportError as error:
        raise ImportError(f'this needs {name}: pip install "mmlib[export]"') from error
