"""The container's file: what it names exists, and it starts the service as the user says."""

import json
import re
import tomllib

from common import ROOT

from mmlib.serving.__main__ import parser

TEXT = (ROOT / "Containerfile").read_text(encoding="utf-8")
# Continued lines joined, comments taken out.
LINES = [
    line
    for line in TEXT.replace("\\\n", " ").splitlines()
    if line.strip() and not line.startswith("#")
]


def arguments_of(instruction):
    return [line.split(None, 1)[1] for line in LINES if line.split()[0] == instruction]


def test_what_is_copied_exists_and_is_not_ignored():
    names = [name for line in arguments_of("COPY") for name in line.split()[:-1]]
    assert "mmlib" in names
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for name in names:
        assert (ROOT / name).exists(), name
        assert f"!{name}" in ignored


def test_the_extras_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (extras,) = re.findall(r'"\.\[([\w,]+)\]"', TEXT)
    assert set(extras.split(",")) <= set(project["optional-dependencies"])


def test_the_command_is_understood_and_the_port_is_the_services():
    (command,) = map(json.loads, arguments_of("CMD"))
    assert command[:3] == ["python", "-m", "mmlib.serving"]
    options = parser().parse_args(command[3:])
    assert options.host == "0.0.0.0"  # a container's own network
    assert arguments_of("EXPOSE") == [str(options.port)]
    (health,) = arguments_of("HEALTHCHECK")
    assert f"http://127.0.0.1:{options.port}/health/live" in health


def test_it_does_not_run_as_root_and_holds_no_secret():
    last = [line.split()[0] for line in LINES].index("CMD")
    assert "USER service" in LINES[:last]
    assert not [line for line in arguments_of("ENV") if "TOKEN" in line]
    assert not [line for line in LINES if line.startswith("ADD")]
