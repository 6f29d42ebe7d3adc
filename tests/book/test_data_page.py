"""The page on the data: its numbers and figures are those of the data."""

import re

import data_page
import figures_data
import numpy as np
import pytest
from emoji_concepts import NEAR
from PIL import Image

from mmlib.data import emoji, scenes

ASSETS = figures_data.ASSETS
# Numbers of the prose that are no counts of the data, each with the words around it.
GIVEN = (
    *("64 × 64 pixels", "16 × 16 pixels", "SHA-256", "have 0, half", "rule 4"),
    "Rules 1 to 3",
)


@pytest.fixture(scope="module")
def page() -> str:
    return data_page.PAGE.read_text(encoding="utf-8")


def test_the_page_is_what_the_script_writes(page):
    assert data_page.filled(page) == page


def test_a_wrong_number_or_part_is_noticed(page):
    spoilt = page.replace("1,641<!--D:emoji.count-->", "1,640<!--D:emoji.count-->")
    assert spoilt != page
    assert data_page.filled(spoilt) == page
    spoilt = page.replace("| **all** |", "| **All** |")
    assert spoilt != page
    assert data_page.filled(spoilt) == page
    with pytest.raises(KeyError, match="emoji.flags"):
        data_page.filled("270<!--D:emoji.flags-->")


def test_every_number_and_part_is_used(page):
    assert set(data_page.NUMBER.findall(page)) == set(data_page.numbers())
    assert {match[2] for match in data_page.BLOCK.finditer(page)} == set(data_page.blocks())


def test_no_number_is_typed_by_hand(page):
    prose = data_page.BLOCK.sub("", page)
    prose = re.sub(r"```.*?```|`[^`]*`", "", prose, flags=re.DOTALL)  # code and figures
    prose = "\n".join(line for line in prose.splitlines() if not line.startswith("|"))
    prose = re.sub(r"^\d\. ", "", prose, flags=re.MULTILINE)
    prose = data_page.NUMBER.sub("", prose)
    prose = re.sub(r"<!--.*?-->", "", prose)
    for words in GIVEN:
        prose = prose.replace(words, "")
    assert re.findall(r".{0,20}\d.{0,20}", prose) == []


def test_counts_by_other_means():
    # The numbers that matter most, counted here without the script's help.
    values = data_page.numbers()
    train, test = emoji.load("train", size=8), emoji.load("test", size=8)
    assert values["emoji.train"] == f"{len(train):,}"
    assert values["emoji.test"] == f"{len(test):,}"
    assert int(values["emoji.concepts_test"]) == len(set(test.concepts))
    assert int(values["emoji.concepts"]) == len(set(test.concepts)) + len(set(train.concepts))
    assert values["emoji.straddling"] == "0"
    assert float(values["emoji.nearest"]) >= NEAR
    held = [scenes.DEFAULT_HOLDOUT.split(scene) for scene in scenes.sample(10_000, seed=0)]
    share = 100 * held.count("test") / len(held)
    assert float(values["scenes.held_percent"]) == pytest.approx(share, abs=0.051)


def test_the_scene_on_the_page_is_described_truly():
    scene = data_page.scene_at(data_page.EXAMPLE)
    for language, column in (("en", 2), ("zh", 3)):
        rows = [row.split("|") for row in data_page.blocks()["scene"].splitlines()]
        captions = [row[column].strip() for row in rows if "caption" in row[1]]
        assert len(captions) == 3
        assert all(scenes.is_true(caption, scene, language) for caption in captions)


def test_figures_are_there_small_and_described(page):
    figures = re.findall(r"```\{figure\} assets/(data_\S+)\n((?::.*\n)*)", page)
    assert {name for name, _ in figures} == set(figures_data.FIGURES)
    for name, options in figures:
        path = ASSETS / name
        assert path.stat().st_size <= 200_000, name
        alt = re.search(r":alt: (.+)", options)
        assert alt and len(alt[1]) > 40, name
        if path.suffix == ".svg":
            svg = path.read_text(encoding="utf-8")
            assert 'role="img"' in svg
            assert "<title>" in svg
        else:
            assert "dark-light" in options  # no white behind the gaps on a dark page


@pytest.mark.parametrize("name", [name for name in figures_data.FIGURES if "webp" in name])
def test_pictures_show_todays_data(name):
    def on_white(sheet: Image.Image) -> np.ndarray:
        page = Image.new("RGBA", sheet.size, "white")
        page.alpha_composite(sheet.convert("RGBA"))
        return np.asarray(page, float)

    stored = on_white(Image.open(ASSETS / name))
    drawn = on_white(figures_data.FIGURES[name]())
    assert stored.shape == drawn.shape
    # The emoji are stored lossily; elsewhere only the last bit may depend on the machine.
    assert np.abs(stored - drawn).mean() < (3 if "emoji" in name else 0.1)


def test_example_seeds_show_what_the_page_says():
    assert len(data_page.scene_at(data_page.EXAMPLE).objects) == 3
    moves = [motion for motion in data_page.clip_at(data_page.CLIP).motions if motion.speed]
    assert len({motion.speed for motion in moves}) == 2
