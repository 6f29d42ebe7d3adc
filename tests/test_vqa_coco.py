"""The command for VQAv2 on a folder in its format: it learns, sees the pictures, and reports."""

import inspect
import json

import pytest
import torch
from torch import nn

from mmlib import vqa_coco
from mmlib.data.coco_example import write_example
from mmlib.data.vqa_v2 import VQA as Questions
from mmlib.encoders.encoded import Encoded
from mmlib.encoders.preprocessing import RECIPES, preprocess
from mmlib.encoders.text import TextTransformer, TextTransformerConfig, embed_texts
from mmlib.encoders.tokenizers import word_tokenizer
from mmlib.metrics.vqa_accuracy import vqa_accuracy
from mmlib.towers import Towers
from mmlib.vqa_coco import Settings, encode_all, main, run


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
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("vqa")
    files = write_example(root, 30, size=32)
    for split, (asked, answered) in vqa_coco.FILES.items():
        assert getattr(files, f"{split}_questions") == root / asked
        assert getattr(files, f"{split}_annotations") == root / answered
    return root


@pytest.fixture(scope="module")
def small(folder) -> Towers:
    data = Questions(folder / vqa_coco.FILES["train"][0])
    tokenizer = word_tokenizer([item.question for item in data.items])
    torch.manual_seed(0)
    config = TextTransformerConfig(tokenizer.vocab_size, dim=32, heads=2, layers=1, max_length=48)
    return Towers(SmallPictures(), TextTransformer(config), tokenizer, RECIPES["imagenet"])


def test_every_picture_and_question_keeps_its_vector(folder, small):
    asked, answered = vqa_coco.FILES["val"]
    data = Questions(folder / asked, folder / answered, folder / "val2014")
    encoded = encode_all(data, small, 16, batch_size=3)
    assert len(encoded.pictures) == len({item.image_id for item in data.items})
    for i in range(0, len(data), 5):
        image = preprocess(data[i].image, small.recipe.at(16))
        want = small.image(image).pooled[0].half()
        torch.testing.assert_close(encoded.pictures[encoded.of[i]], want)
        text = embed_texts(small.text, small.tokenizer, [data[i].question])[0]
        torch.testing.assert_close(encoded.questions[i].float(), text, rtol=1e-2, atol=1e-3)


def test_targets_are_those_of_the_data_set(folder):
    asked, answered = vqa_coco.FILES["train"]
    data = Questions(folder / asked, folder / answered)
    for most in (3, 30):
        vocabulary = data.vocabulary(most)
        want = torch.stack([data.targets(i, vocabulary) for i in range(len(data))])
        assert (want > 0).sum(1).max() > 1  # people disagree on some
        rows = torch.arange(len(data)).flip(0)
        assert torch.equal(vqa_coco._Targets(data, vocabulary)[rows], want[rows])


def test_an_epoch_is_every_question_once_in_a_new_order():
    ten = torch.arange(10.0)
    train = vqa_coco.Encodings(ten[:, None], -ten[:, None], torch.arange(10))
    draw = inspect.unwrap(vqa_coco._batches)(train, ten[:, None], 5, seed=0)
    epochs = [torch.cat([draw(n)[0] for n in (k, k + 1)]).flatten() for k in (0, 2)]
    assert all(sorted((-epoch).tolist()) == ten.tolist() for epoch in epochs)
    assert not torch.equal(*epochs)
    questions, pictures, targets = draw(0)
    assert torch.equal(-questions, pictures) and torch.equal(pictures, targets)


def test_it_learns_and_reports(folder, small, tmp_path):
    settings = Settings(
        str(folder), str(tmp_path), dim=32, at_least=2, epochs=20, batch_size=32,
        learning_rate=1e-2, size=16,
    )  # fmt: skip
    report = run(settings, small, progress=False)
    assert report["losses"][1] < report["losses"][0] / 2
    assert json.loads((tmp_path / "report.json").read_text()) == report
    asked, answered = vqa_coco.FILES["val"]
    data = Questions(folder / asked, folder / answered)
    assert report["validation"]["questions"] == len(data)
    assert 0.2 < report["validation"]["overall"] <= report["reach"] <= 1
    # Blank pictures are another model's input: the answers change.
    assert report["question_only"]["overall"] != report["validation"]["overall"]
    assert set(report["validation"]["by_type"]) == {item.answer_type for item in data.items}
    names = json.loads((tmp_path / "answers.json").read_text())
    assert report["answers"] == len(names)
    trained = Questions(*(folder / name for name in vqa_coco.FILES["train"]))
    assert (
        names == list(trained.vocabulary(at_least=2).answers) != list(trained.vocabulary(9).answers)
    )
    always = [vqa_accuracy(names[0], item.answers) for item in data.items]
    assert report["validation"]["overall"] > sum(always) / len(always) - 0.1


def test_the_command(folder, small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(vqa_coco, "towers", lambda image, text: small)
    given = f"--folder {folder} --out {tmp_path} --dim 8 --at-least 3 --epochs 1 --size 16"
    main(given.split())
    report = json.loads(capsys.readouterr().out)
    assert report["settings"]["at_least"] == 3 and report["settings"]["learning_rate"] == 1e-3


@pytest.mark.parametrize("name", ["dim", "at_least", "epochs", "batch_size", "size"])
def test_bad_settings(name):
    with pytest.raises(ValueError, match=name):
        Settings("a", "b", **{name: 0})


def test_a_folder_without_the_files(small, tmp_path):
    with pytest.raises(FileNotFoundError):
        run(Settings(str(tmp_path), str(tmp_path)), small)
