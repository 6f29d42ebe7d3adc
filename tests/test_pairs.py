"""Emoji and clip art as one set of pairs: what is in it, how it is split, bad input."""

import pytest
import torch

from mmlib.data import clipart, emoji, pairs


def test_pairs_are_both_data_sets_in_order():
    found = pairs.load("all", 16)
    faces, drawings = emoji.load(size=16), clipart.load(size=16)
    assert torch.equal(found.images, torch.cat([faces.images, drawings.images]))
    for field in ("names", "tags", "concepts"):
        assert getattr(found, field) == getattr(faces, field) + getattr(drawings, field)
    assert found.names_zh[: len(faces)] == faces.names_zh and set(found.names_zh[len(faces) :]) == {
        None
    }
    assert found.sources == ("emoji",) * len(faces) + ("clipart",) * len(drawings)


def test_splits_share_no_concept_and_leave_nothing_out():
    parts = {s: pairs.load(s, 8) for s in ("train", "validation", "test", "development", "all")}
    concepts = {s: set(p.concepts) for s, p in parts.items()}
    assert not concepts["train"] & concepts["validation"]
    assert not concepts["development"] & concepts["test"]
    assert concepts["train"] | concepts["validation"] == concepts["development"]
    sizes = {s: len(p) for s, p in parts.items()}
    assert sizes["train"] + sizes["validation"] == sizes["development"] == sizes["all"] - 635
    assert 0.15 < len(concepts["validation"]) / len(concepts["development"]) < 0.25
    assert set(parts["validation"].sources) == {"emoji", "clipart"}


def test_select_takes_rows_of_every_field():
    some = pairs.load("test", 8)
    found = some.select([5, 0])
    assert found.names == (some.names[5], some.names[0]) and len(found) == 2
    assert torch.equal(found.images, some.images[[5, 0]])
    assert found.tags == (some.tags[5], some.tags[0]) and "2 pairs" in repr(found)


def test_distinct_captions():
    names = pairs.load("test", 8).names
    rows = pairs.distinct(names, 500)
    assert len({names[i] for i in rows}) == 500 and rows.tolist() == sorted(rows.tolist())
    assert torch.equal(rows, pairs.distinct(names, 500))
    assert not torch.equal(rows, pairs.distinct(names, 500, seed=1))
    counts = torch.zeros(3)
    for seed in range(60):  # each of two pictures with one caption is drawn now and then
        counts[pairs.distinct(["a", "b", "a"], 2, seed)] += 1
    assert counts[1] == 60 and counts[0] > 10 and counts[2] > 10


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: pairs.load("valid"), "split must be one of train"),
        (lambda: pairs.load("test", 0), "size must be"),
        (lambda: pairs.distinct(["a", "a"], 2), "at most 1 different"),
        (lambda: pairs.distinct(["a", "a"], -1), "at most 1 different"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
