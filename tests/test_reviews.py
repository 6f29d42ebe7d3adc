"""The reviews: what ships, what loads, and that no review is on both sides."""

import hashlib
import inspect
import re
from importlib import resources

import pytest
import torch

from mmlib.data import reviews

FOLDER = resources.files("mmlib.data") / "files" / "reviews"


def test_what_ships_is_what_was_published():
    # The digest of the published file with Unix line ends, not only the one beside it.
    digest = hashlib.sha256((FOLDER / "reviews.tsv").read_bytes()).hexdigest()
    assert digest == "e4559b1299fd793ab64794ba706421ce088b6c580b782529388997f7aedcc545"
    assert "MIT License" in (FOLDER / "LICENSE-vaderSentiment.txt").read_text()
    assert "hutto_ICWSM_2014" in (FOLDER / "ATTRIBUTION.md").read_text()


def test_every_line_is_loaded_as_it_stands():
    everything = reviews.load(margin=0.0)
    lines = (FOLDER / "reviews.tsv").read_text().splitlines()
    assert len(everything) == len(lines) == 3708
    for index in (0, 1, 1000, 3707):
        name, rating, text = lines[index].split("\t")
        assert everything.texts[index] == text
        assert everything.ratings[index] == torch.tensor(float(rating))
        assert int(everything.review[index]) == int(name.split("_")[0])
    assert everything.ratings.abs().max() <= 4


def test_no_review_is_in_both_parts():
    train, test = reviews.load("train"), reviews.load("test")
    assert not set(train.review.tolist()) & set(test.review.tolist())
    assert len(train) + len(test) == len(reviews.load("all"))
    assert len(test) > 700


@pytest.mark.parametrize("margin", [0.5, 1.0, 2.5])
def test_margin_leaves_out_what_people_are_divided_about(margin):
    kept, everything = reviews.load(margin=margin), reviews.load(margin=0.0)
    assert kept.ratings.abs().min() >= margin
    assert len(kept) == (everything.ratings.abs() >= margin).sum()


def test_positive_is_the_sign_of_the_rating():
    data = reviews.load()
    assert torch.equal(data.positive, data.ratings > 0)
    text = dict(zip(data.texts, data.positive.tolist(), strict=True))
    assert not text["their customer service sucks."]


def test_repr_counts():
    assert repr(reviews.load("test")) == "Reviews(819 sentences of 99 reviews)"


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"split": "dev"}, "split must be one of train, test, all: got 'dev'"),
        ({"margin": -0.1}, "margin must be at least 0 and below 4: got -0.1"),
        ({"margin": 4.0}, "margin must be at least 0 and below 4: got 4.0"),
        ({"margin": float("nan")}, "margin must be at least 0"),
    ],
)
def test_bad_input_is_named(arguments, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        inspect.unwrap(reviews.load)(**arguments)


def test_a_damaged_file_is_refused(tmp_path, monkeypatch):
    for file in FOLDER.iterdir():
        (tmp_path / "files" / "reviews").mkdir(parents=True, exist_ok=True)
        (tmp_path / "files" / "reviews" / file.name).write_bytes(file.read_bytes())
    path = tmp_path / "files" / "reviews" / "reviews.tsv"
    path.write_text(path.read_text().replace("sucks", "rocks"))
    monkeypatch.setattr(reviews.resources, "files", lambda package: tmp_path)
    with pytest.raises(ValueError, match=r"reviews\.tsv is not the file that was shipped"):
        reviews.load()
