"""Export: the graph says what the model says, on sizes it was not traced with."""

import logging

import pytest
import torch
from torch import nn

from mmlib.data import scenes
from mmlib.export import Method, OnnxModel, export, largest_difference, write_onnx
from mmlib.small_clips import scene_clip, scene_ids


@pytest.fixture(scope="module")
def clip():
    return scene_clip(trained=True)


def inputs_of(name, count, seed=0):
    items = scenes.sample(count, seed=seed, objects=2 if seed else (1, 2))
    return scenes.render(items, 32) if name == "encode_image" else scene_ids(items)


TOWERS = [("encode_image", [0]), ("encode_text", [0, 1])]


@pytest.mark.parametrize("name, dims", TOWERS)
def test_towers_of_chapter_10(clip, name, dims, tmp_path, caplog):
    program = export(Method(clip, name), [inputs_of(name, 4)], [dims])
    path = write_onnx(program, tmp_path / "tower.onnx")
    remarks = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    assert remarks == []  # the exporter's own are none of the reader's business
    graph, onnx = program.module(), OnnxModel(path)
    assert path.stat().st_size > 400_000  # the weights are inside
    assert list(tmp_path.iterdir()) == [path]
    for count, seed in ((1, 1), (3, 2), (9, 3)):
        x = inputs_of(name, count, seed)
        with torch.no_grad():
            wanted = getattr(clip, name)(x)
        assert largest_difference(graph(x), wanted) < 1e-6
        assert largest_difference(onnx(x), wanted) < 1e-5


def test_a_method_is_that_method(clip):
    x = inputs_of("encode_image", 2)
    assert torch.equal(Method(clip, "encode_image")(x), clip.encode_image(x))
    with pytest.raises(AttributeError):
        Method(clip, "encode_smell")


class Ten(nn.Module):
    def forward(self, a, b):
        return a @ b + a.shape[0]


class Four(nn.Module):
    def forward(self, a):
        return a + len(a)  # `len` gives a number, and the graph would keep it


def test_a_size_that_the_trace_fixes_is_an_error():
    with pytest.raises(Exception, match="specialized it to be a constant"):
        export(Four().eval(), [torch.rand(4, 3)], [[0]])


def test_several_inputs_and_what_may_not_vary(tmp_path):
    a, b = torch.rand(4, 3), torch.rand(3, 5)
    program = export(Ten().eval(), [a, b], [[0], []])
    onnx = OnnxModel(write_onnx(program, tmp_path / "x.onnx"))
    other = torch.rand(6, 3)
    assert largest_difference(program.module()(other, b), other @ b + 6) < 1e-6
    assert largest_difference(onnx(other, b), other @ b + 6) < 1e-5
    with pytest.raises(Exception, match="shape|expected|Guard"):
        program.module()(other, torch.rand(3, 7))
    with pytest.raises(ValueError, match="2 inputs"):
        onnx(a)


BAD = {
    "training": (nn.Linear(3, 2), [torch.zeros(4, 3)], [[0]], "evaluation"),
    "too few": (nn.Linear(3, 2).eval(), [torch.zeros(4, 3)], [], "one entry"),
    "no such dimension": (nn.Linear(3, 2).eval(), [torch.zeros(4, 3)], [[2]], "below 2"),
    "one item": (nn.Linear(3, 2).eval(), [torch.zeros(1, 3)], [[0]], "at least 2"),
}


@pytest.mark.parametrize("model, inputs, dynamic, words", BAD.values(), ids=BAD)
def test_bad_exports(model, inputs, dynamic, words):
    with pytest.raises(ValueError, match=words):
        export(model, inputs, dynamic)


def test_bad_paths(tmp_path):
    program = export(nn.Linear(3, 2).eval(), [torch.zeros(4, 3)], [[0]])
    with pytest.raises(ValueError, match=r"\.onnx"):
        write_onnx(program, tmp_path / "x.pt")
    with pytest.raises(FileNotFoundError):
        OnnxModel(tmp_path / "none.onnx")


def test_a_missing_package_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"mmlib\[export\]"):
        OnnxModel(tmp_path / "x.onnx")


def test_different_shapes_are_no_small_difference():
    with pytest.raises(ValueError, match="one shape"):
        largest_difference(torch.zeros(3, 1), torch.zeros(3))
