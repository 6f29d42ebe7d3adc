"""The drawings of the front pages are what their script draws, and fit a phone."""

import importlib.util
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "book" / "scripts" / "figures_front.py"


@pytest.fixture(scope="module")
def front():
    spec = importlib.util.spec_from_file_location("figures_front", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_stored_drawings_are_current(front, capsys):
    assert front.main(["--check"]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("name", ["system.svg", "masks.svg", "shapes.svg"])
def test_drawings_are_described_and_readable(front, name):
    root = ElementTree.fromstring(front.FIGURES[name]())
    space = "{http://www.w3.org/2000/svg}"
    assert root.get("role") == "img"
    assert root.get("aria-label") == root.find(f"{space}title").text
    assert len(root.get("aria-label")) > 100
    left, _, width, height = map(float, root.get("viewBox").split())
    assert width == front.WIDTH
    for text in root.iter(f"{space}text"):
        size = float(re.search(r"font-size: ([\d.]+)px", text.get("style"))[1])
        assert size * 320 / width >= 11, text.text  # a figure has 320 pixels on a phone
        assert left <= float(text.get("x")) <= left + width
        assert float(text.get("y")) <= height


def test_every_chapter_is_in_the_system(front):
    numbers = re.findall(r">(\d\d)</text>", front.system())
    assert sorted(set(numbers)) == [f"{number:02d}" for number in range(1, 17)]


def test_check_names_a_stale_drawing(front, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(front, "ASSETS", tmp_path)
    assert front.main(["--check"]) == 1
    assert "system.svg" in capsys.readouterr().out
