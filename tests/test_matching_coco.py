"""The training command on a folder in COCO's format: it learns, goes on, and measures rightly."""

import json

import pytest
import torch
from torch import nn

from mmlib import matching_coco
from mmlib.data import coco
from mmlib.encoders.encoded import Encoded
from mmlib.encoders.preprocessing import RECIPES
from mmlib.encoders.text import TextTransformer, TextTransformerConfig
from mmlib.encoders.tokenizers import word_tokenizer
from mmlib.matching_coco import Settings, main, retrieval_report, run
from mmlib.towers import Towers


class SmallPictures(nn.Module):
    """The mean colour of each of 16 squares."""

    dim = 48

    def __init__(self):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(4)

    def forward(self, images, keep=None):
        pooled = self.pool(images).flatten(1)
        return Encoded(pooled[:, None], torch.ones(len(pooled), 1).bool(), pooled)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> coco.ExampleFiles:
    return coco.write_example(tmp_path_factory.mktemp("coco"), images=60, size=32)


@pytest.fixture
def small(files) -> Towers:
    torch.manual_seed(0)
    captions = coco.Captions.karpathy(files.root, files.karpathy, "train").retrieval().captions
    tokenizer = word_tokenizer(captions)
    config = TextTransformerConfig(tokenizer.vocab_size, dim=16, heads=2, layers=1, max_length=48)
    return Towers(SmallPictures(), TextTransformer(config), tokenizer, RECIPES["imagenet"])


def settings(files, out, **changes) -> Settings:
    values = {
        "dim": 16,
        "size": 16,
        "epochs": 6,
        "batch_size": 16,
        "learning_rate": 1e-2,
        "fold": 3,
    }
    values |= {"precision": "fp32"} | changes
    return Settings(files.root, files.karpathy, out, **values)


def test_it_learns_and_reports(files, small, tmp_path):
    report = run(settings(files, tmp_path / "run", epochs=12), small, progress=False)
    first, last = report["losses"]
    assert last < 0.6 * first
    assert len(report["validation"]) == 12
    test = report["test"]
    assert (test["pictures"], test["captions"]) == (6, 30)
    # Three pictures in a fold, six in all.
    assert test["folds"]["image"]["R@5"] == 1.0 == test["all"]["image"]["R@10"]
    assert test["folds"]["image"]["R@1"] > test["all"]["image"]["R@1"]
    assert json.loads((tmp_path / "run" / "report.json").read_text()) == report
    assert (tmp_path / "run" / "weights.safetensors").exists()


class Stopped(Exception):
    pass


def test_a_run_that_was_stopped_goes_on(files, small, tmp_path, monkeypatch):
    whole = run(settings(files, tmp_path / "whole", epochs=3, augment=True), small, progress=False)
    states = [{k: v.clone() for k, v in small.text.state_dict().items()}]
    start = matching_coco.measure
    calls = []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise Stopped
        return start(*arguments)

    again = settings(files, tmp_path / "again", epochs=3, augment=True)
    fresh = Towers(SmallPictures(), _fresh(small), small.tokenizer, small.recipe)
    monkeypatch.setattr(matching_coco, "measure", interrupted)
    with pytest.raises(Stopped):
        run(again, fresh, progress=False)
    monkeypatch.undo()
    fresh = Towers(SmallPictures(), _fresh(small), small.tokenizer, small.recipe)
    resumed = run(again, fresh, progress=False)
    assert {**resumed, "settings": None} == {**whole, "settings": None}
    for name, value in fresh.text.state_dict().items():
        assert torch.equal(value, states[0][name])


def _fresh(small: Towers) -> TextTransformer:
    """A text tower as the fixture makes it, before any training."""
    torch.manual_seed(0)
    return TextTransformer(small.text.config)


def test_it_starts_from_the_weights_of_another_run(files, small, tmp_path):
    run(settings(files, tmp_path / "one", epochs=12), small, progress=False)
    weights = tmp_path / "one" / "weights.safetensors"
    other = settings(files, tmp_path / "two", epochs=1, start=weights, learning_rate=1e-6)
    fresh = Towers(SmallPictures(), _fresh(small), small.tokenizer, small.recipe)
    first = json.loads((tmp_path / "one" / "report.json").read_text())["losses"]
    assert run(other, fresh, progress=False)["losses"][0] < 0.7 * first[0]


def test_workers_change_nothing(files, small, tmp_path):
    one = run(settings(files, tmp_path / "0", epochs=1), small, progress=False)
    fresh = Towers(SmallPictures(), _fresh(small), small.tokenizer, small.recipe)
    two = run(settings(files, tmp_path / "2", epochs=1, workers=2), fresh, progress=False)
    assert two["losses"] == one["losses"]
    assert two["test"] == one["test"]


def test_the_command(files, small, tmp_path, monkeypatch, capsys):
    asked, tuned = [], []
    monkeypatch.setattr(matching_coco, "towers", lambda *names: asked.append(names) or small)
    monkeypatch.setattr(matching_coco, "tune", lambda tower, last: tuned.append(last))
    line = f"--folder {files.root} --karpathy {files.karpathy} --out {tmp_path / 'run'}"
    line += " --epochs 1 --batch-size 16 --size 16 --dim 8 --precision fp32 --augment"
    line += " --image-tower resnet50 --text-tower bert-base-uncased --tune-image 2"
    main(line.split())
    report = json.loads(capsys.readouterr().out)
    assert asked == [("resnet50", "bert-base-uncased")]
    assert tuned == [2, 0]
    assert report["settings"]["augment"] is True
    assert report["settings"]["folder"] == str(files.root)
    assert len(report["validation"]) == 1


def test_the_command_says_what_it_lacks(capsys):
    with pytest.raises(SystemExit):
        main(["--folder", "coco"])
    assert "--karpathy, --out" in capsys.readouterr().err


# ---- the two protocols


def test_folds_are_the_mean_of_their_parts():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(7, 4, generator=generator)
    image_of = torch.arange(7).repeat_interleave(torch.tensor([5, 4, 5, 3, 5, 5, 5]))
    texts = images[image_of] + torch.randn(32, 4, generator=generator)
    parts = []
    for rows in ([0, 1, 2], [3, 4, 5]):  # the seventh picture is left out
        inside = (image_of[:, None] == torch.tensor(rows)).any(1)
        parts.append(retrieval_report(images[rows], texts[inside], image_of[inside] - rows[0]))
    folds = retrieval_report(images, texts, image_of, 3)
    for direction in ("text", "image"):
        for name, value in folds[direction].items():
            assert value == pytest.approx(sum(part[direction][name] for part in parts) / 2)
    whole = retrieval_report(images, texts, image_of)
    assert whole == retrieval_report(images, texts, image_of, 99)
    assert folds["image"]["R@1"] > whole["image"]["R@1"]  # fewer to choose from


def test_any_caption_of_a_picture_counts():
    images = torch.eye(2)
    texts = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.2, 1.0]])
    report = retrieval_report(images, texts, torch.tensor([0, 0, 1]))
    assert report["text"]["R@1"] == 0.5  # picture 1 finds a caption of picture 0 first
    assert report["image"]["R@1"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"dim": 0}, "dim must be at least 1: got 0"),
        ({"epochs": 0}, "epochs must be at least 1: got 0"),
        ({"workers": -1}, "workers must be at least 0: got -1"),
        ({"tune_image": -1}, "tune_image must be at least 0: got -1"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        Settings(**changes)


def test_bad_input_of_the_report(unchecked):
    with pytest.raises(ValueError, match="image_of must have 3 rows: got 2"):
        unchecked(retrieval_report)(torch.eye(3), torch.eye(3), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="query 2 has none"):
        retrieval_report(torch.eye(3), torch.eye(3)[:2], torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="fold must be at least 1: got -1"):
        retrieval_report(torch.eye(3), torch.eye(3), torch.arange(3), -1)


def test_a_split_smaller_than_a_batch_is_named(files, small, tmp_path):
    with pytest.raises(ValueError, match="batch"):
        run(settings(files, tmp_path, batch_size=100), small, progress=False)
