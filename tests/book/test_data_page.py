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


@pytest.fixture(scope="module", params=data_page.PAGES, ids=lambda path: path.stem)
def page(request) -> str:
    return request.param.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def overview() -> str:
    return data_page.PAGES[0].read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def everything() -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in data_page.PAGES)


def test_the_page_is_what_the_script_writes(page):
    assert data_page.filled(page) == page


def test_a_wrong_number_or_part_is_noticed(overview):
    spoilt = overview.replace("1,641<!--D:emoji.count-->", "1,640<!--D:emoji.count-->")
    assert spoilt != overview
    assert data_page.filled(spoilt) == overview
    spoilt = overview.replace("| **all** |", "| **All** |")
    assert spoilt != overview
    assert data_page.filled(spoilt) == overview
    with pytest.raises(KeyError, match="emoji.flags"):
        data_page.filled("270<!--D:emoji.flags-->")


def test_every_number_and_part_is_used(everything):
    assert set(data_page.NUMBER.findall(everything)) == set(data_page.numbers())
    assert {match[2] for match in data_page.BLOCK.finditer(everything)} == set(data_page.blocks())


def test_no_number_is_typed_by_hand(overview):
    prose = data_page.BLOCK.sub("", overview)
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


def test_figures_are_there_small_and_described(everything):
    figures = re.findall(r"```\{figure\} assets/(data_\S+)\n((?::.*\n)*)", everything)
    assert {name for name, _ in figures} == {path.name for path in ASSETS.glob("data_*.*")}
    assert set(figures_data.FIGURES) < {name for name, _ in figures}
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


def test_players_have_a_name_and_a_small_sound(everything):
    players = re.findall(r"<audio [^>]*>", everything)
    sounds = {path.name for path in (ASSETS / "static" / "audio").iterdir()}
    assert {re.search(r'src="../_static/audio/([^"]+)"', player)[1] for player in players} == sounds
    assert all(re.search(r'aria-label="[^"]{10,}"', player) for player in players)
    assert sum(path.stat().st_size for path in (ASSETS / "static" / "audio").iterdir()) < 200_000


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
