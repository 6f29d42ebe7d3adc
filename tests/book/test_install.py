"""The commands on a bare machine: what they say when something is missing, and the stamp that
tells a finished install from an interrupted one. Python and pip are stand-ins here."""

import os
import shutil
import subprocess
from pathlib import Path

import common
import pytest

SCRIPT = common.ROOT / "book" / "scripts" / "install.sh"
pytestmark = pytest.mark.skipif(os.name == "nt", reason="the commands need a Unix shell")


def program(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def python(path: Path, venv: str = "", pip: str = "exit 0", suits: int = 0) -> Path:
    """A stand-in: ``-c`` says whether it is new enough, ``-m venv`` copies it, ``-m pip`` ..."""
    venv = venv or 'mkdir -p "$4/bin" && cp "$0" "$4/bin/python"'
    return program(
        path,
        f'case "$1 $2" in "-c "*) exit {suits};; "-m venv") {venv};; "-m pip") {pip};; esac',
    )


@pytest.fixture
def machine(tmp_path) -> Path:
    """A folder of programs with git and what the script itself calls, but no Python."""
    tools = tmp_path / "tools"
    for name in ("git", "rm", "touch", "mkdir", "cp", "sh"):
        found = shutil.which(name)
        tools.mkdir(exist_ok=True)
        (tools / name).symlink_to(found)
    return tmp_path


def install(machine: Path, **variables: str) -> subprocess.CompletedProcess:
    environment = {"PATH": str(machine / "tools"), "VENV": ".venv", **variables}
    command = [shutil.which("bash"), str(SCRIPT)]
    return subprocess.run(command, cwd=machine, env=environment, capture_output=True, text=True)


def test_a_finished_install_leaves_a_stamp(machine):
    python(machine / "tools" / "python3", pip='echo "$@" > said')
    done = install(machine, CONSTRAINTS="constraints.txt", EXTRAS="dev")
    assert done.returncode == 0, done.stderr
    assert (machine / ".venv" / ".installed").exists()
    said = (machine / "said").read_text()
    assert "--constraint constraints.txt --editable .[dev]" in said


def test_without_constraints_the_newest_versions_are_taken(machine):
    python(machine / "tools" / "python3", pip='echo "$@" > said')
    assert install(machine).returncode == 0
    assert "--constraint" not in (machine / "said").read_text()


def test_no_python(machine):
    done = install(machine)
    assert done.returncode == 1
    assert "No Python 3.11 or newer was found" in done.stderr
    assert "apt-get install python3" in done.stderr


def test_an_old_python_is_passed_over_for_a_new_one(machine):
    python(machine / "tools" / "python3", suits=1)
    python(machine / "tools" / "python3.12")
    done = install(machine)
    assert done.returncode == 0, done.stderr
    assert "(python3.12)" in done.stdout


def test_a_python_that_was_named_but_does_not_suit(machine):
    python(machine / "tools" / "python3")
    done = install(machine, PYTHON="python3.9")
    assert done.returncode == 1
    assert "PYTHON=python3.9 does not run or is older" in done.stderr


def test_no_venv_module(machine):
    python(machine / "tools" / "python3", venv="exit 1")
    done = install(machine)
    assert done.returncode == 1
    assert "apt-get install python3-venv" in done.stderr


def test_no_git(machine):
    (machine / "tools" / "git").unlink()
    done = install(machine)
    assert done.returncode == 1
    assert "git is missing" in done.stderr


def test_a_failed_install_says_what_to_do_and_leaves_no_stamp(machine):
    python(machine / "tools" / "python3", pip="echo no space >&2; exit 1")
    (machine / ".venv").mkdir()
    (machine / ".venv" / ".installed").touch()  # of an earlier, finished install
    done = install(machine)
    assert done.returncode == 1
    assert "no space" in done.stderr
    assert "What helps most often" in done.stderr
    assert not (machine / ".venv" / ".installed").exists()


def test_an_environment_that_still_runs_is_kept(machine):
    python(machine / ".venv" / "bin" / "python")
    assert install(machine).returncode == 0  # there is no other Python to make one with


def make(*arguments: str) -> subprocess.CompletedProcess:
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=common.ROOT, capture_output=True, text=True)


def test_make_alone_lists_the_commands():
    done = make()
    assert done.returncode == 0
    for command in ("book", "test", "execute", "serve", "lab", "train", "bench", "lint", "clean"):
        assert f"\n  {command} " in done.stdout


def test_the_install_runs_again_when_pyproject_or_the_constraints_are_newer(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(common.ROOT / name, tmp_path)
    stamp = tmp_path / ".venv" / ".installed"
    stamp.parent.mkdir()

    def installs() -> bool:
        command = ["make", "-n", "lint"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return "install.sh" in done.stdout

    assert installs()
    stamp.touch()
    assert not installs()
    for name in ("pyproject.toml", "constraints.txt"):
        later = stamp.stat().st_mtime + 10
        os.utime(tmp_path / name, (later, later))
        assert installs()
        os.utime(tmp_path / name, (later - 20, later - 20))
        assert not installs()
