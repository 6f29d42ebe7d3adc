"""COCO's format: equal to torchvision, nothing lost, and what is broken is named or counted."""

import importlib
import json
import re
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from mmlib.data import coco, records, scenes
from mmlib.data.records import RecordError


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> coco.ExampleFiles:
    return coco.write_example(tmp_path_factory.mktemp("coco"), images=40)


@pytest.fixture(scope="module")
def data(files) -> coco.Captions:
    return coco.Captions(files.train_images, files.train_captions)


def write(path: Path, content) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def keys(items) -> list:
    """What can be compared of items."""
    return [(item.image.tobytes(), item.captions, item.image_id) for item in items]


# The example


def test_the_example_has_the_fields_of_the_real_files(files):
    captions = json.loads(files.train_captions.read_text(encoding="utf-8"))
    assert set(captions) == {"info", "images", "licenses", "annotations"}
    assert set(captions["images"][0]) == {
        *("license", "file_name", "coco_url", "height", "width", "date_captured", "flickr_url"),
        "id",
    }
    assert set(captions["annotations"][0]) == {"image_id", "id", "caption"}
    assert len(captions["images"]) == 24 and len(captions["annotations"]) == 5 * 24
    karpathy = json.loads(files.karpathy.read_text(encoding="utf-8"))
    assert set(karpathy) == {"images", "dataset"}
    assert set(karpathy["images"][0]) == {
        *("filepath", "sentids", "filename", "imgid", "split", "sentences", "cocoid"),
    }
    assert set(karpathy["images"][0]["sentences"][0]) == {"tokens", "raw", "imgid", "sentid"}
    assert Counter(entry["split"] for entry in karpathy["images"]) == {
        "train": 24,
        "restval": 8,
        "val": 4,
        "test": 4,
    }
    assert all(re.fullmatch(r"COCO_train2014_\d{12}\.jpg", entry["file_name"])
               for entry in captions["images"])  # fmt: skip


def test_the_example_is_a_function_of_its_arguments(files, tmp_path):
    again = coco.write_example(tmp_path / "again", images=40)
    other = coco.write_example(tmp_path / "other", images=40, seed=1)
    for one, same, different in zip(files, again, other, strict=True):
        if one.is_file():
            assert one.read_bytes() == same.read_bytes() != different.read_bytes()
        else:
            names = sorted(path.name for path in one.iterdir())
            assert names == sorted(path.name for path in same.iterdir())


def test_captions_of_the_example_are_true_of_its_pictures(data):
    world = scenes.sample(44, seed=0)
    for index, scene in enumerate(world[n] for n in range(40) if n % 10 < 6):
        assert len(set(data.captions(index))) == 5
        assert all(scenes.is_true(text, scene) for text in data.captions(index))
        shown = np.asarray(data[index].image, dtype=np.float32) / 255
        drawn = scenes.render(scene, 64)[0].permute(1, 2, 0).numpy()
        assert np.abs(shown - drawn).mean() < 0.02  # JPEG is not exact


# Reading


def test_equal_to_torchvision(files, data):
    theirs = torchvision.datasets.CocoCaptions(files.train_images, files.train_captions)
    assert len(data) == len(theirs) == 24
    assert data.ids == theirs.ids
    assert keys(data) == [
        (image.tobytes(), captions, image_id)
        for (image, captions), image_id in zip(theirs, theirs.ids, strict=True)
    ]
    assert isinstance(data, torchvision.datasets.CocoCaptions)


def test_captions_stay_with_their_picture(files, data):
    content = json.loads(files.train_captions.read_text(encoding="utf-8"))
    expected: dict[int, list[str]] = {}
    for entry in content["annotations"]:
        expected.setdefault(entry["image_id"], []).append(entry["caption"])
    assert {item.image_id: item.captions for item in data} == expected


def test_captions_come_in_the_order_of_their_ids_and_can_be_limited(files, tmp_path):
    content = json.loads(files.train_captions.read_text(encoding="utf-8"))
    content["annotations"].reverse()
    mixed = coco.Captions(files.train_images, write(tmp_path / "mixed.json", content))
    straight = coco.Captions(files.train_images, files.train_captions)
    assert [item.captions for item in mixed] == [item.captions for item in straight]
    two = coco.Captions(files.train_images, files.train_captions, captions_per_image=2)
    assert [item.captions for item in two] == [item.captions[:2] for item in straight]


def test_transforms_are_torchvisions(files):
    data = coco.Captions(
        files.train_images, files.train_captions, v2.Compose([v2.Resize(32), v2.PILToTensor()]), len
    )
    image, captions, _ = data[-1]
    assert image.shape == (3, 32, 32) and image.dtype == torch.uint8
    assert captions == 5
    both = coco.Captions(files.train_images, files.train_captions, transforms=lambda i, c: (c, i))
    assert isinstance(both[0].image, list)


def test_one_caption_by_seed_epoch_and_image(data):
    again = data.select(range(10, 20))
    chosen = [data.caption(i, seed=3, epoch=1) for i in range(24)]
    assert [again.caption(i, seed=3, epoch=1) for i in range(10)] == chosen[10:20]
    assert all(text in data.captions(i) for i, text in enumerate(chosen))
    draws = Counter(
        data.captions(i).index(data.caption(i, seed=0, epoch=e))
        for i in range(24)
        for e in range(100)
    )
    assert sorted(draws) == [0, 1, 2, 3, 4]
    # 480 expected each, standard deviation 20
    assert all(abs(n - 480) < 80 for n in draws.values())
    seeds = [[data.caption(i, seed=s) for i in range(24)] for s in (0, 1)]
    assert seeds[0] != seeds[1]


def test_select_keeps_order_and_leaves_the_first_alone(data):
    part = data.select([5, 0, -1])
    assert part.ids == [data.ids[5], data.ids[0], data.ids[-1]]
    assert keys(part) == keys([data[5], data[0], data[-1]])
    assert len(data) == 24


# Karpathy's splits


def test_karpathys_splits_make_up_everything(files, data):
    parts = {split: coco.Captions.karpathy(files.root, files.karpathy, split, restval=False)
             for split in coco.SPLITS}  # fmt: skip
    assert {split: len(part) for split, part in parts.items()} == {
        "train": 24,
        "restval": 8,
        "val": 4,
        "test": 4,
    }
    ids = [image_id for part in parts.values() for image_id in part.ids]
    assert len(set(ids)) == len(ids) == 40
    assert keys(parts["train"]) == keys(data)
    official = coco.Captions(files.val_images, files.val_captions)
    assert set(official.ids) == set(ids) - set(data.ids)


def test_restval_joins_train_by_default(files):
    train = coco.Captions.karpathy(files.root, files.karpathy, "train")
    assert len(train) == 32
    assert {Path(path).parent.name for path in map(train.path, train.ids)} == {
        "train2014",
        "val2014",
    }


def test_flickr30k_has_neither_cocoid_nor_filepath(files, data, tmp_path):
    content = json.loads(files.karpathy.read_text(encoding="utf-8"))
    content["dataset"] = "flickr30k"
    content["images"] = [e for e in content["images"] if e["filepath"] == "train2014"]
    for entry in content["images"]:
        del entry["cocoid"], entry["filepath"]
    file = write(tmp_path / "dataset_flickr30k.json", content)
    flickr = coco.Captions.karpathy(files.train_images, file, "train")
    assert flickr.ids == [entry["imgid"] for entry in content["images"]]
    assert [item.captions for item in flickr] == [item.captions for item in data]


# Retrieval


def test_retrieval_index_by_hand(files, tmp_path):
    images = [
        {"id": 7 + n, "file_name": path.name}
        for n, path in enumerate(sorted(files.train_images.iterdir())[:3])
    ]
    texts = {7: ["a dog", "A  Dog ", "a cat"], 8: ["a dog"], 9: ["a bird", "two birds"]}
    annotations = [
        {"id": 10 * image + k, "image_id": image, "caption": text}
        for image, found in texts.items()
        for k, text in enumerate(found)
    ]
    file = write(tmp_path / "captions.json", {"images": images, "annotations": annotations})
    found = coco.Captions(files.train_images, file).retrieval()
    assert found.captions == ["a dog", "A  Dog ", "a cat", "a dog", "a bird", "two birds"]
    assert found.image_of.tolist() == [0, 0, 0, 1, 2, 2]
    assert found.captions_of == [[0, 1, 2], [3], [4, 5]]
    assert found.text_group.tolist() == [0, 0, 1, 0, 2, 3]
    assert found.images_per_caption.tolist() == [2, 2, 1, 2, 1, 1]


def test_retrieval_agrees_with_the_items(data):
    found = data.retrieval()
    assert len(found.captions) == 120
    for image, item in enumerate(data):
        assert [found.captions[c] for c in found.captions_of[image]] == item.captions
        assert all(found.image_of[c] == image for c in found.captions_of[image])


# Kinds of pictures


def one_picture(folder: Path, name: str = "p.jpg") -> coco.Captions:
    content = {
        "images": [{"id": 1, "file_name": name}],
        "annotations": [{"id": 2, "image_id": 1, "caption": "a picture"}],
    }
    return coco.Captions(folder, write(folder / "captions.json", content))


def test_grey_cmyk_palette_and_transparent_pictures_become_rgb(tmp_path):
    red = Image.new("RGB", (16, 8), (200, 30, 40))
    for mode, name in (("L", "p.jpg"), ("CMYK", "c.jpg"), ("P", "p.png"), ("RGBA", "a.png")):
        red.convert(mode).save(tmp_path / name, quality=95)
        shown = one_picture(tmp_path, name)[0].image
        assert shown.mode == "RGB" and shown.size == (16, 8)
        colour = np.asarray(shown).reshape(-1, 3).mean(0)
        expected = [82.0] * 3 if mode == "L" else [200, 30, 40]
        # The palette of 256 web colours is coarse.
        assert np.abs(colour - expected).max() < (26 if mode == "P" else 4), mode


def test_pictures_are_turned_as_the_camera_noted(tmp_path):
    # The upper half is white. Orientation 6 says: turn clockwise, then the right half is white.
    image = Image.new("RGB", (32, 16))
    image.paste((255, 255, 255), (0, 0, 32, 8))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "p.jpg", exif=exif)
    shown = one_picture(tmp_path)[0].image
    assert shown.size == (16, 32)
    pixels = np.asarray(shown)
    assert pixels[:, 9:].mean() > 240 > 15 > pixels[:, :7].mean()
    theirs = torchvision.datasets.CocoCaptions(tmp_path, tmp_path / "captions.json")
    assert theirs[0][0].size == (32, 16)  # the reason why we do it ourselves


# Broken files and records


def change(content: dict, where: str, number: int, **values) -> None:
    content[where][number].update(values)


# What is done to the file, the reason, the message, how many records are left out (the captions of
# an image without an id are of an unknown image), how many images are left.
FAULTS = {
    "image without id": (
        *(lambda c: change(c, "images", 3, id=None), "bad record"),
        *(r"images\[3\]: no id, but None", 6, 23),
    ),
    "image with a string id": (
        *(lambda c: change(c, "images", 3, id="9"), "bad record"),
        *(r"images\[3\]: no id, but '9'", 6, 23),
    ),
    "image is no object": (
        *(lambda c: c["images"].__setitem__(3, 5), "bad record"),
        *(r"images\[3\]: no id", 6, 23),
    ),
    "no file name": (
        *(lambda c: change(c, "images", 3, file_name=""), "bad record"),
        *(r"image \d+: file_name is ''", 1, 23),
    ),
    "duplicate image": (
        *(lambda c: c["images"].append(dict(c["images"][3])), "duplicate id"),
        *(r"image \d+: its id came before", 1, 24),
    ),
    "missing image": (
        *(lambda c: change(c, "images", 3, file_name="gone.jpg"), "missing image"),
        *(r"image \d+: there is no file .*gone\.jpg", 1, 23),
    ),
    "annotation without id": (
        *(lambda c: c["annotations"][7].pop("id"), "bad record"),
        *(r"annotations\[7\]: no id, but None", 1, 24),
    ),
    "duplicate annotation": (
        *(lambda c: change(c, "annotations", 7, id=c["annotations"][6]["id"]), "duplicate id"),
        *(r"annotation \d+: its id came before", 1, 24),
    ),
    "annotation of no image": (
        *(lambda c: change(c, "annotations", 7, image_id=10**9), "unknown id"),
        *(r"annotation \d+: there is no image 1000000000", 1, 24),
    ),
    "caption is a number": (
        *(lambda c: change(c, "annotations", 7, caption=5), "bad text"),
        *(r"annotation \d+: caption must be text: got 5", 1, 24),
    ),
    "caption is empty": (
        *(lambda c: change(c, "annotations", 7, caption="  "), "bad text"),
        *(r"annotation \d+: caption must be text: got '  '", 1, 24),
    ),
    "image without captions": (
        *(lambda c: c["annotations"].__delitem__(slice(5, 10)), "nothing to learn"),
        *(r"image \d+: it has no caption", 1, 23),
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_or_skipped_and_counted(files, tmp_path, name):
    content = json.loads(files.train_captions.read_text(encoding="utf-8"))
    spoil, reason, message, skipped, left = FAULTS[name]
    spoil(content)
    file = write(tmp_path / "captions.json", content)
    with pytest.raises(RecordError, match=f"{re.escape(str(file))}: {message}") as caught:
        coco.Captions(files.train_images, file)
    assert caught.value.reason == reason
    data = coco.Captions(files.train_images, file, on_error="skip")
    assert data.skipped[reason] == 1
    assert data.skipped.total() == len(data.problems) == skipped
    assert re.search(message, str(data.problems[0]))
    assert len(list(data)) == left


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "is not JSON"),
        ('{"images": [', "is not JSON"),
        ("\ufeff{}", "is not JSON"),
        ("[]", "images must be a list: got NoneType"),
        ('{"annotations": []}', "images must be a list: got NoneType"),
        ('{"images": {}, "annotations": []}', "images must be a list: got dict"),
        ('{"images": [], "annotations": []}', "images must not be empty"),
        ('{"images": [{"id": 1, "file_name": "x.jpg"}]}', "annotations must be a list"),
        ('{"images": [{"id": 1, "file_name": "x.jpg"}], "annotations": []}', "must not be empty"),
        (
            '{"images": [{"id": 1, "file_name": "x.jpg"}], "annotations": [3]}',
            "no picture has a good caption",
        ),
    ],
)
def test_a_bad_file_is_an_error_even_when_records_are_skipped(tmp_path, text, message):
    (tmp_path / "x.jpg").touch()
    file = tmp_path / "captions.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(RecordError, match=re.escape(str(file)) + ".*" + message):
        coco.Captions(tmp_path, file, on_error="skip")


def test_files_that_are_not_there_are_named(files, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        coco.Captions(files.train_images, tmp_path / "none.json")
    with pytest.raises(FileNotFoundError, match="root must be a folder: there is none at .*none"):
        coco.Captions(tmp_path / "none", files.train_captions)


@pytest.fixture
def damaged(files, tmp_path) -> coco.ExampleFiles:
    """A copy in which picture 4 is cut short and picture 5 is a text."""
    shutil.copytree(files.root, tmp_path / "copy")
    copy = coco.ExampleFiles(*(tmp_path / "copy" / p.relative_to(files.root) for p in files))
    pictures = sorted(copy.train_images.iterdir())
    pictures[4].write_bytes(pictures[4].read_bytes()[:700])
    pictures[5].write_text("404 not found", encoding="utf-8")
    return copy


def test_a_truncated_picture_is_named(damaged):
    data = coco.Captions(damaged.train_images, damaged.train_captions)
    for index in (4, 5):
        name = re.escape(str(data.path(data.ids[index])))
        with pytest.raises(RecordError, match=f"{name} .image {data.ids[index]}.: not a readable"):
            data[index]
    assert data[6].image_id == data.ids[6]


def test_a_worker_names_what_is_broken(damaged):
    data = coco.Captions(damaged.train_images, damaged.train_captions)
    # torch takes 5 s to end each worker after an error, whatever the error.
    loader = DataLoader(data, batch_size=8, collate_fn=list, num_workers=1)
    with pytest.raises(RecordError, match=r"COCO_train2014_\d+\.jpg .image \d+.: not a readable"):
        list(loader)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_skipped_pictures_are_replaced_and_counted_across_workers(damaged, workers):
    data = coco.Captions(damaged.train_images, damaged.train_captions, on_error="skip")
    assert not data.skipped
    loader = DataLoader(data, batch_size=5, collate_fn=list, num_workers=workers)
    ids = [item.image_id for batch in loader for item in batch]
    # 4 and 5 are both answered by 6: the next good one.
    assert ids == [*data.ids[:4], data.ids[6], data.ids[6], *data.ids[6:]]
    assert data.skipped == {"broken image": 3}  # 4 and 5 on behalf of 4, and 5 on its own
    list(loader)
    assert data.skipped == {"broken image": 6}


def test_broken_pictures_can_be_found_and_left_out(damaged):
    data = coco.Captions(damaged.train_images, damaged.train_captions)
    broken = data.check()
    assert list(broken) == [4, 5]
    assert all(error.reason == "broken image" for error in broken.values())
    good = data.select([i for i in range(len(data)) if i not in broken])
    assert len(list(good)) == 22


def test_when_nothing_can_be_read_it_says_so(damaged):
    data = coco.Captions(damaged.train_images, damaged.train_captions, on_error="skip")
    with pytest.raises(RecordError, match="no record of 2 can be read; the last error: .*readable"):
        data.select([4, 5])[0]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"on_error": "ignore"}, "on_error must be one of raise, skip: got 'ignore'"),
        ({"captions_per_image": 0}, "captions_per_image must be at least 1: got 0"),
    ],
)
def test_bad_arguments(files, arguments, message):
    with pytest.raises(ValueError, match=message):
        coco.Captions(files.train_images, files.train_captions, **arguments)


def test_more_bad_arguments(files, data, tmp_path):
    with pytest.raises(ValueError, match="split must be one of train, restval, val, test: got 'x'"):
        coco.Captions.karpathy(files.root, files.karpathy, "x")
    with pytest.raises(ValueError, match="images must be at least 10: got 9"):
        coco.write_example(tmp_path, images=9)
    for index in (24, -25):
        with pytest.raises(IndexError, match=f"index must be below 24: got {index}"):
            data[index]
    with pytest.raises(TypeError):
        data.caption(0, seed="0")
    file = write(tmp_path / "karpathy.json", {"images": [{"split": "train"}]})
    with pytest.raises(RecordError, match="file_name is None"):
        coco.Captions.karpathy(tmp_path, file, "train")


def test_without_pycocotools_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    monkeypatch.delitem(sys.modules, "mmlib.data.coco")
    with pytest.raises(ImportError, match=re.escape('pip install "mmlib[coco]"')):
        importlib.import_module("mmlib.data.coco")


def test_every_reason_of_an_error_can_be_counted():
    skipped = records.Skipped()
    for reason in records.REASONS:
        skipped.add(reason)
    assert skipped.total() == dict.fromkeys(records.REASONS, 1)
