"""Photographs, clip art and ImageNet's network in the full system.

- Regions of both networks lie at the same place; each has the same say; pictures of any size.
- Photographs: features, captions and questions are those of the picture; what does not fit, or is
  broken, is left out; bad input.
- Lessons: about the photograph that is shown, in its people's words; blind, zeros; clip art speaks
  English; without them batches are what they were.
- Marks: the people's own words and answers are worth most; the commonest answer is counted; who is
  shown nothing sees zeros.
- A run with photographs and ImageNet's network is trained, loaded and marked; a picture from a file
  is looked at in a dialogue.
"""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from mmlib.data import clipart
from mmlib.data.coco_example import write_example
from mmlib.encoders.backbones import EfficientNetLite0
from mmlib.metrics.vqa_accuracy import vqa_accuracy
from mmlib.painters import tokenizer
from mmlib.small_clips import scene_clip
from mmlib.system import marking
from mmlib.system.commands import Chat, evaluate
from mmlib.system.lessons import Lessons, Menu
from mmlib.system.marking import mark_photos
from mmlib.system.material import Material
from mmlib.system.photos import Photos
from mmlib.system.pictures import Pictures
from mmlib.system.profiles import SystemConfig
from mmlib.system.sequence import REGION, WORD
from mmlib.system.stages import load_system, new_system, train_system
from mmlib.system.tasks import Writer
from mmlib.system.words import words
from mmlib.system.writing import Reply


@pytest.fixture(scope="module")
def pictures():
    return Pictures(scene_clip(trained=True), tokenizer())


@pytest.fixture(scope="module")
def both():
    return Pictures(scene_clip(trained=True), tokenizer(), imagenet=True)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_example(tmp_path_factory.mktemp("coco"), images=20, size=96)


@pytest.fixture(scope="module")
def photos(files, pictures):
    return Photos(files.root, "train", pictures)


@pytest.fixture(scope="module")
def material(pictures, photos):
    return Material(pictures, 4, drawings=["emoji", "clipart"], photos=photos)


def test_imagenet_looks_beside_clip(both, pictures):
    images = torch.rand(3, 3, 128, 128)
    seen = both.look(images)
    assert seen.shape == (3, 16, both.feature_dim) == (3, 16, 256 + 1280)
    network = EfficientNetLite0(frozen=True).eval()
    with torch.no_grad():
        wanted = network(2 * images - 1).tokens
    torch.testing.assert_close(seen[..., 256:], F.layer_norm(wanted, (1280,)))
    smaller = F.interpolate(images, size=(32, 32), mode="bilinear", antialias=True)
    mine = F.layer_norm(pictures.look(smaller), (256,))
    torch.testing.assert_close(seen[..., :256], mine, rtol=1e-3, atol=1e-3)
    assert both.recipe.resize == 128
    assert pictures.recipe.resize == 32
    assert both.look(torch.rand(1, 3, 50, 70)).shape == (1, 16, 1536)
    assert not any(parameter.requires_grad for parameter in both.parameters())


def test_both_see_a_thing_in_the_same_region(both):
    nothing = torch.full((1, 3, 128, 128), 0.1)
    for row, column in ((0, 0), (0, 3), (2, 1)):
        there = nothing.clone()
        there[..., 32 * row + 8 : 32 * row + 24, 32 * column + 8 : 32 * column + 24] = torch.tensor(
            [0.9, 0.1, 0.1]
        ).view(3, 1, 1)
        change = both.look(there) - both.look(nothing)
        for part in (change[0, :, :256], change[0, :, 256:]):
            strength = part.norm(dim=1).view(4, 4)
            assert strength[row, column] > 1.2 * strength[3 - row, 3 - column]
            assert strength[row, column] > 0.8 * strength.max()  # it changes what is near, too


def test_photographs_keep_what_was_said_of_them(files, photos, pictures):
    assert len(photos) == 12
    assert photos.features.shape == (12, 16, 256)
    assert photos.skipped == 0
    assert {len(said) for said in photos.captions} == {5}
    paths = sorted(files.train_images.iterdir())  # by id, as they come
    for item, path in enumerate(paths):
        with Image.open(path) as image:
            small = image.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
        pixels = torch.tensor(list(small.tobytes())).view(32, 32, 3).permute(2, 0, 1) / 255
        seen = pictures.look(pixels[None])[0]
        torch.testing.assert_close(photos.features[item].float(), seen, rtol=0.02, atol=0.02)
        image_id = int(path.stem.split("_")[-1])
        assert {question.image_id for question in photos.questions[item]} <= {image_id}
    assert sum(map(len, photos.questions)) > 20
    assert len(Photos(files.root, "train", pictures, most=3)) == 3


def test_what_does_not_fit_or_is_broken_is_left_out(tmp_path, pictures):
    files = write_example(tmp_path, images=10, size=40)
    whole = Photos(tmp_path, "train", pictures)
    lengths = sorted(len(text) for said in whole.captions for text in said)
    short = Photos(tmp_path, "train", pictures, fits=lambda text: len(text) < lengths[-1])
    assert short.skipped == sum(length == lengths[-1] for length in lengths)
    with pytest.raises(ValueError, match="folder must hold captions that fit"):
        Photos(tmp_path, "train", pictures, fits=lambda text: False)
    assert files.train_captions.parent.name == "annotations"  # as COCO's archive unpacks
    files.train_captions.rename(files.root / files.train_captions.name)
    assert len(Photos(tmp_path, "train", pictures)) == 6
    sorted(files.train_images.iterdir())[2].unlink()
    assert len(Photos(tmp_path, "train", pictures)) == 5


def test_wrong_folders_and_numbers(files, tmp_path, pictures):
    with pytest.raises(ValueError, match="split must be 'train' or 'val': got 'test'"):
        Photos(files.root, "test", pictures)
    with pytest.raises(ValueError, match="most must be at least 1: got 0"):
        Photos(files.root, "train", pictures, most=0)
    with pytest.raises(FileNotFoundError):
        Photos(tmp_path, "train", pictures)


def text_of(document):
    ids = zip(document.kinds, document.ids, document.wanted, strict=True)
    return words().decode([token for kind, token, wanted in ids if kind == WORD and wanted])


@pytest.mark.parametrize("task", ["caption", "describe", "ask"])
def test_lessons_are_about_the_photograph_that_is_shown(task, photos, pictures):
    material = Material(pictures, 4, photos=photos)
    menu = Menu({task: 1.0}, documents=40, photos=1.0, chinese=1.0, looks=0.0)
    lessons = Lessons(material, Writer(words()), menu)
    met = set()
    for document in lessons.documents(0):
        (shown,) = document.looked_at
        item = next(i for i, f in enumerate(photos.features) if torch.equal(f.float(), shown))
        met.add(item)
        answers = [question.answer for question in photos.questions[item]]
        right = answers if task == "ask" and answers else photos.captions[item]
        assert text_of(document) in [" ".join(text.split()) for text in right]
    assert len(met) > 6
    blind = Lessons(material, Writer(words()), dataclasses.replace(menu, blind=True))
    assert not any(d.looked_at[0].any() for d in blind.documents(0))
    with pytest.raises(ValueError, match="material must hold photos"):
        Lessons(Material(pictures, 4), Writer(words()), menu)


def test_a_description_may_come_before_the_questions(photos, pictures):
    material = Material(pictures, 4, photos=photos)
    menu = Menu({"ask": 1.0}, documents=20, photos=1.0, looks=1.0, questions=2)
    found = Lessons(material, Writer(words()), menu).documents(0)
    assert {document.kinds.count(REGION) for document in found} == {16}
    assert max(len(text_of(document).split()) for document in found) > 4


def test_clip_art_speaks_english_and_is_drawn(material, pictures):
    names = set(clipart.load("train", 8).names)
    menu = Menu({"caption": 1.0}, documents=20, clipart=1.0, chinese=1.0)
    said = [text_of(d) for d in Lessons(material, Writer(words()), menu).documents(0)]
    assert len(set(said)) > 10
    assert set(said) <= names
    menu = Menu({"draw": 1.0}, documents=4, clipart=1.0, drop=0.0, hide=0.0)
    assert Lessons(material, Writer(words()), menu)(0).to_codes.shape == (4 * 64,)
    with pytest.raises(ValueError, match="drawings must be of emoji, clipart: got"):
        Material(pictures, 4, drawings=["cartoons"])
    with pytest.raises(ValueError, match="at most 1 together: got 0.5, 0.3 and 0.4"):
        Menu(emoji=0.5, clipart=0.3, photos=0.4)


def test_shares_are_those_of_the_menu(material, photos):
    menu = Menu({"caption": 1.0}, documents=200, emoji=0.2, clipart=0.3, photos=0.1, chinese=0.0)
    lessons = Lessons(material, Writer(words()), menu)
    kinds = {"emoji": 0, "clipart": 0, "photos": 0, "scenes": 0}
    looked = {
        "emoji": material.drawings["emoji"].features,
        "clipart": material.drawings["clipart"].features,
        "photos": photos.features,
        "scenes": material.features,
    }
    for document in lessons.documents(0):
        shown = document.looked_at[0].bfloat16()
        (kind,) = (k for k, f in looked.items() if bool((f == shown).flatten(1).all(1).any()))
        kinds[kind] += 1
    for kind, share in (("emoji", 0.2), ("clipart", 0.3), ("photos", 0.1), ("scenes", 0.4)):
        assert abs(kinds[kind] / 200 - share) < 0.1


def test_marks_of_photographs(photos, pictures, monkeypatch):
    system = new_system(SystemConfig(dim=16, heads=2, layers=1), pictures.clip, tokenizer())
    shown = []

    def people(_, dialogues, seed=0):
        shown.append(torch.stack([turns[0].picture for turns in dialogues]))
        texts = [turns[0].text for turns in dialogues]
        if len({*texts}) == 1:  # the request for a description
            return [Reply(said[0], None) for said in photos.captions]
        told = [question.answer for about in photos.questions for question in about]
        return [Reply(answer, None) for answer in told]

    monkeypatch.setattr(marking, "_replies", people)
    found = mark_photos(system, photos)
    assert found["photo_caption_bleu"] == pytest.approx(1.0)
    assert found["photo_caption_cider"] > 1
    asked = [question for about in photos.questions for question in about]
    worth = [vqa_accuracy(question.answer, question.answers) for question in asked]
    assert found["photo_ask"] == found["photo_ask_blind"] == pytest.approx(sum(worth) / len(worth))
    assert 0.1 < found["photo_ask_commonest"] < 0.8 < found["photo_ask"]
    assert shown[1].any()
    assert not shown[2].any()  # who is blind
    monkeypatch.setattr(marking, "_replies", lambda _, d, seed=0: [Reply("um", None)] * len(d))
    found = mark_photos(system, photos)
    assert found["photo_caption_bleu"] == found["photo_ask"] == 0


def test_a_run_with_photographs(files, tmp_path, capsys):
    config = SystemConfig(
        pretraining_steps=2, instruction_steps=2, dim=16, heads=2, layers=1, documents=6, pool=8,
        photos=str(files.root), photo_share=0.7, imagenet=True, checkpoint_every=2,
    )  # fmt: skip
    train_system(config, tmp_path / "run", progress=False)
    system = load_system(tmp_path / "run")
    assert system.language.config.feature_dim == 1536
    assert system.pictures.imagenet is not None
    evaluate(tmp_path / "run", count=2)
    assert "photo_ask_commonest" in capsys.readouterr().out
    chat = Chat(system, tmp_path)
    path = sorted(files.val_images.iterdir())[0]
    assert chat.say(f"look {path}") == f"(you are shown: {path})"
    assert chat.shown.shape == (16, 1536)
    assert "there is no such file" in chat.say("look nowhere.png")
    assert chat.say(f"look {files.train_captions}").startswith("(nothing to look at: ")
