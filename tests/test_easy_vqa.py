"""easy-VQA: the published data and nothing else, read exactly, with honest baselines."""

import importlib
import io
import json
import os
import sys
import zipfile
from collections import Counter

import data_numbers_easy_vqa as facts
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmlib.data import easy_vqa
from mmlib.download import SourceUnavailable, cache_folder, fetch


@pytest.fixture(scope="module")
def train() -> easy_vqa.EasyVQA:
    return easy_vqa.load("train")


@pytest.fixture(scope="module")
def test() -> easy_vqa.EasyVQA:
    return easy_vqa.load("test")


@pytest.fixture
def small(test) -> easy_vqa.EasyVQA:
    return test.of_images(range(20))


# What is loaded


def test_counts(train, test):
    assert (len(train.images), len(train)) == (4000, 38_575)
    assert (len(test.images), len(test)) == (1000, 9_673)
    for data in (train, test):
        assert data.images.shape[1:] == (3, 64, 64) and data.images.dtype == torch.uint8
        assert data.image_index.dtype == data.answers.dtype == torch.int64
        assert len(data.questions) == len(data.image_index) == len(data.answers)
        assert set(data.answers.tolist()) == set(range(13))
        assert set(data.image_index.tolist()) == set(range(len(data.images)))
    assert len(set(train.questions)) == len(set(train.questions) | set(test.questions)) == 107
    assert repr(test) == "EasyVQA(9673 questions about 1000 pictures)"


def test_the_same_as_the_publishers_own_reader(train, test, tmp_path, monkeypatch):
    wheel = fetch(easy_vqa.SOURCE)["wheel"]
    with zipfile.ZipFile(wheel) as archive:
        # Every fortieth picture; extracting all takes longer than everything else here.
        names = [name for name in archive.namelist() if not name.endswith(".png")]
        names += [f"easy_vqa/data/{s}/images/{i}.png" for s in ("train", "test") for i in PICTURES]
        archive.extractall(tmp_path, [name for name in names if "easy_vqa/" in name])
    monkeypatch.syspath_prepend(tmp_path)
    theirs = importlib.import_module("easy_vqa")
    assert tuple(theirs.get_answers()) == easy_vqa.ANSWERS == train.answer_names
    readers = (theirs.get_train_questions, theirs.get_test_questions)
    paths = (theirs.get_train_image_paths(), theirs.get_test_image_paths())
    for data, read, path in zip((train, test), readers, paths, strict=True):
        texts, answers, images = read()
        assert data.questions == tuple(texts)
        assert [data.answer_names[a] for a in data.answers.tolist()] == answers
        assert data.image_index.tolist() == images
        assert sorted(path) == list(PICTURES)
        for i, file in path.items():
            expected = np.asarray(Image.open(file).convert("RGB"))
            assert np.array_equal(data.images[i].permute(1, 2, 0).numpy(), expected)
    del sys.modules["easy_vqa"]


PICTURES = range(0, 1000, 40)


def test_every_answer_can_be_read_off_its_picture():
    assert facts.wrong_answers("train") == facts.wrong_answers("test") == 0
    # And this check can fail: shown the next picture, many answers are wrong.
    seen = facts.truth("test")
    test = facts.sets()[1]
    shifted = [seen[(i + 1) % len(seen)] for i in test.image_index.tolist()]
    rows = zip(test.questions, shifted, test.answers.tolist(), strict=True)
    wrong = [facts.answer(q, *picture) != test.answer_names[a] for q, picture, a in rows]
    assert 0.3 < np.mean(wrong) < 0.6


def test_no_picture_is_in_both_splits_and_no_question_twice(train, test):
    pictures = [{image.numpy().tobytes() for image in data.images} for data in (train, test)]
    assert len(pictures[0]) == 4000 and len(pictures[1]) == 1000
    assert not pictures[0] & pictures[1]
    for data in (train, test):
        asked = set(zip(data.questions, data.image_index.tolist(), strict=True))
        assert len(asked) == len(data)


def test_loading_is_deterministic_and_shares_nothing(test):
    again = easy_vqa.load("test")
    assert torch.equal(again.images, test.images)
    assert torch.equal(again.answers, test.answers)
    again.images.zero_()
    again.answers.zero_()
    assert torch.equal(easy_vqa.load("test").images, test.images)
    assert torch.equal(easy_vqa.load("test").answers, test.answers)


def cached(split: str = "test"):
    return cache_folder() / "easy-vqa-1.0" / f"pictures-{split}.safetensors"


@pytest.fixture
def own_cache(test, tmp_path, monkeypatch) -> None:
    """A cache of our own that holds the wheel."""
    wheel = fetch(easy_vqa.SOURCE)["wheel"]
    monkeypatch.setenv("MMLIB_CACHE", str(tmp_path / "cache"))
    cached().parent.mkdir(parents=True)
    os.link(wheel, cached().with_name(wheel.name))


def test_pictures_are_decoded_once(test, own_cache, monkeypatch):
    assert torch.equal(easy_vqa.load("test").images, test.images)
    assert sorted(path.name for path in cached().parent.iterdir()) == [
        "easy-vqa.whl",
        "pictures-test.safetensors",
    ]

    def forbidden(file: object) -> None:
        raise AssertionError("a picture was decoded again")

    monkeypatch.setattr(easy_vqa.Image, "open", forbidden)
    assert torch.equal(easy_vqa.load("test", offline=True).images, test.images)


@pytest.mark.parametrize("how", ["truncated", "changed", "something else"])
def test_damaged_pictures_are_named_and_decoded_again(test, own_cache, how):
    easy_vqa.load("test")
    data = bytearray(cached().read_bytes())
    data[len(data) // 2] ^= 1
    cached().write_bytes({"truncated": data[:-9], "changed": data}.get(how, b"{}"))
    with pytest.warns(UserWarning, match=r"pictures-test.safetensors is damaged"):
        again = easy_vqa.load("test")
    assert torch.equal(again.images, test.images)
    assert torch.equal(easy_vqa.load("test").images, test.images)  # mended: no warning


def test_a_cache_that_cannot_be_written_to_does_not_matter(test, own_cache, monkeypatch):
    def full(**arguments: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(easy_vqa.tempfile, "TemporaryDirectory", full)
    assert torch.equal(easy_vqa.load("test").images, test.images)
    assert not cached().exists()


def test_without_the_data_the_error_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv("MMLIB_CACHE", str(tmp_path))
    with pytest.raises(SourceUnavailable, match="questions about pictures of one coloured shape"):
        easy_vqa.load("test", offline=True)


# The baselines


def test_priors_on_the_test_split(train, test):
    majority = easy_vqa.majority(train, test)
    assert {test.answer_names[a] for a in majority.answers.tolist()} == {"yes"}
    assert round(100 * majority.accuracy, 1) == 37.3
    blind = easy_vqa.question_only(train, test)
    assert round(100 * blind.accuracy, 1) == 67.0
    # Against a plain reading of the definition: count, take the largest.
    table = np.zeros((107, 13), dtype=int)
    row = {question: i for i, question in enumerate(sorted(set(train.questions)))}
    np.add.at(table, ([row[q] for q in train.questions], train.answers.numpy()), 1)
    said, asked = blind.answers.numpy(), [row[q] for q in test.questions]
    assert (table[asked, said] == table[asked].max(1)).all()
    assert blind.accuracy == pytest.approx((said == test.answers.numpy()).mean(), abs=1e-12)
    assert majority.accuracy == pytest.approx((test.answers == 4).double().mean().item())


def a_set(*rows: tuple[str, int]) -> easy_vqa.EasyVQA:
    return easy_vqa.EasyVQA(
        images=torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
        questions=tuple(question for question, _ in rows),
        image_index=torch.zeros(len(rows), dtype=torch.int64),
        answers=torch.tensor([answer for _, answer in rows], dtype=torch.int64),
    )


def test_ties_and_unseen_questions():
    train = a_set(("a?", 3), ("a?", 5), ("b?", 5), ("b?", 2), ("c?", 7), ("c?", 3), ("c?", 3))
    # 3 comes three times in all, 5 twice: "a?" and "b?" are ties.
    test = a_set(("a?", 3), ("b?", 5), ("c?", 3), ("never asked?", 3), ("a?", 5))
    assert easy_vqa.question_only(train, test) == (
        pytest.approx(torch.tensor([3, 5, 3, 3, 3])),
        0.8,
    )
    tie = a_set(("a?", 6), ("a?", 2))
    assert easy_vqa.majority(tie, tie).answers.tolist() == [2, 2]
    assert easy_vqa.question_only(tie, tie).answers.tolist() == [2, 2]


def test_priors_are_learnt_from_the_training_set_only(train, test):
    # A prior of the test set's own counts would be a little better.
    assert (
        easy_vqa.question_only(test, test).accuracy > easy_vqa.question_only(train, test).accuracy
    )


@pytest.mark.parametrize("prior", [easy_vqa.majority, easy_vqa.question_only])
def test_priors_need_questions(small, prior):
    nothing = small.of_images([])
    with pytest.raises(ValueError, match="train must have questions: got EasyVQA"):
        prior(nothing, small)
    with pytest.raises(ValueError, match="test must have questions: got EasyVQA"):
        prior(small, nothing)


# Holding out


def test_hold_out_divides_by_picture(train):
    before = torch.random.get_rng_state()
    rest, held = easy_vqa.hold_out(train, 400, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (len(rest.images), len(held.images)) == (3600, 400)
    assert len(rest) + len(held) == len(train)
    pictures = [{image.numpy().tobytes() for image in data.images} for data in (rest, held)]
    assert not pictures[0] & pictures[1]
    # Every question still has its picture and its answer.
    place = {image.numpy().tobytes(): i for i, image in enumerate(train.images)}
    rows = Counter(zip(train.questions, train.image_index.tolist(), train.answers.tolist()))  # noqa: B905
    found: Counter[tuple[str, int, int]] = Counter()
    for data in (rest, held):
        back = [place[image.numpy().tobytes()] for image in data.images]
        assert back == sorted(back)
        images = [back[i] for i in data.image_index.tolist()]
        found.update(zip(data.questions, images, data.answers.tolist(), strict=True))
    assert found == rows


def test_hold_out_depends_on_the_seed_alone(small):
    first, again, other = (easy_vqa.hold_out(small, 5, seed=seed)[1] for seed in (3, 3, 4))
    assert torch.equal(first.images, again.images) and first.questions == again.questions
    assert not torch.equal(first.images, other.images)


@pytest.mark.parametrize("images", [0, -1, 20, 2.0, True])
def test_hold_out_leaves_something_on_both_sides(small, unchecked, images):
    with pytest.raises(ValueError, match="images must be a whole number from 1 to 19: got "):
        unchecked(easy_vqa.hold_out)(small, images)


@given(st.lists(st.integers(0, 999), max_size=6, unique=True))
def test_of_images_takes_each_with_its_questions(indices):
    test = facts.sets()[1]
    part = test.of_images(indices)
    assert torch.equal(part.images, test.images[torch.tensor(indices, dtype=torch.int64)])
    for new, old in enumerate(indices):
        mine = [i for i, image in enumerate(part.image_index.tolist()) if image == new]
        theirs = (test.image_index == old).nonzero().flatten().tolist()
        assert [part.questions[i] for i in mine] == [test.questions[i] for i in theirs]
        assert part.answers[mine].tolist() == test.answers[theirs].tolist()
    part.images.zero_()
    assert test.images.flatten(1).any(1).all()


@pytest.mark.parametrize(
    "indices, error, message",
    [
        ([20], IndexError, "indices must be between 0 and 19: got 20 to 20"),
        ([3, -1], IndexError, "indices must be between 0 and 19: got -1 to 3"),
        ([1, 1], ValueError, "indices must be different: got one twice"),
        ([0.5], TypeError, "indices must be a sequence of whole numbers: got dtype torch.float32"),
        ([[1]], TypeError, "indices must be a sequence of whole numbers"),
        ([True], TypeError, "indices must be a sequence of whole numbers: got dtype torch.bool"),
    ],
)
def test_of_images_refuses(small, unchecked, indices, error, message):
    with pytest.raises(error, match=message):
        unchecked(easy_vqa.EasyVQA.of_images)(small, indices)


# Words


def test_the_vocabulary_of_the_training_questions(train, test):
    words = easy_vqa.vocabulary(train.questions)
    assert words[:3] == ("<pad>", "<unk>", "?")
    assert len(words) == len(set(words)) == 2 + 27
    assert list(words[2:]) == sorted(words[2:])
    ids, keep = easy_vqa.encode(test.questions, words)
    assert ids.shape == keep.shape == (9673, 10)
    assert not (ids[keep] < 2).any()  # no test question has a new word
    assert (ids[~keep] == 0).all()
    for i in (0, 17, 5000):
        text = " ".join(words[j] for j in ids[i][keep[i]].tolist())
        assert text.replace(" ?", "?") == test.questions[i]


def test_encoding_keeps_no_more_than_it_must():
    ids, keep = easy_vqa.encode(["Red?", "", "a RED, new shape"], ("<pad>", "<unk>", "a", "red"))
    assert ids.tolist() == [[3, 1, 0, 0, 0], [0] * 5, [2, 3, 1, 1, 1]]
    assert keep.sum(1).tolist() == [2, 0, 5]


@pytest.mark.parametrize(
    "questions, vocabulary, error, message",
    [
        ("one?", ("<pad>", "<unk>"), TypeError, "questions must be a sequence of strings: got one"),
        ([], ("<pad>", "<unk>"), ValueError, "questions must hold at least one: got none"),
        (["a"], ("a", "b"), ValueError, "vocabulary must start with <pad>, <unk>: got"),
    ],
)
def test_encoding_refuses(unchecked, questions, vocabulary, error, message):
    with pytest.raises(error, match=message):
        unchecked(easy_vqa.encode)(questions, vocabulary)


def test_load_refuses(unchecked):
    with pytest.raises(ValueError, match="split must be one of train, test: got 'val'"):
        unchecked(easy_vqa.load)("val")


def test_the_wheel_says_what_we_say(train, test):
    """Its own README counts what we count."""
    with zipfile.ZipFile(fetch(easy_vqa.SOURCE)["wheel"]) as archive:
        readme = archive.read("easy_vqa/data/README.md").decode()
        licence = archive.read("easy_vqa-1.0.dist-info/LICENSE").decode()
        rows = json.load(io.BytesIO(archive.read("easy_vqa/data/test/questions.json")))
    assert licence.startswith(f"{easy_vqa.SOURCE.licence} License")
    assert f"{len(train.images)} train images and {len(train)} train questions" in readme
    assert f"{len(test.images)} test images and {len(test)} test questions" in readme
    yes_no = sum(test.answer_names[a] in ("yes", "no") for a in test.answers.tolist())
    assert f"{yes_no} testing questions that are yes/no" in readme
    assert tuple(rows[0]) == (test.questions[0], test.answer_names[test.answers[0]], 0)
