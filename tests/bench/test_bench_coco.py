"""What reading COCO's format costs beside plain torchvision, and shards beside a folder."""

import contextlib
import io

import pytest
import torchvision.datasets
from PIL import Image

from mmlib.data import coco, scenes, vqa_v2
from mmlib.data.answers import normalise
from mmlib.data.shards import ShardStream, write_shards

AREA = "COCO's and VQAv2's formats"

COUNT = 60  # training pictures of 640 × 480, COCO's usual size


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    files = coco.write_example(tmp_path_factory.mktemp("coco"), images=100)
    for image, path in enumerate(sorted(files.train_images.iterdir())):
        # Noise keeps the files at COCO's usual 150 kB or so.
        scene = scenes.sample(1, seed=image, noise=0.08)
        pixels = scenes.render(scene, size=640)[0, :, :480].permute(1, 2, 0).mul(255).byte()
        Image.fromarray(pixels.numpy()).save(path, quality=90)
    return files


def test_captions(side_by_side, files):
    with contextlib.redirect_stdout(io.StringIO()):
        plain = torchvision.datasets.CocoCaptions(files.train_images, files.train_captions)
    ours = coco.Captions(files.train_images, files.train_captions)
    tolerant = coco.Captions(files.train_images, files.train_captions, on_error="skip")
    table = side_by_side(
        f"{COUNT} pictures of 640 × 480 with captions",
        {
            "mmlib": lambda: [ours[i] for i in range(COUNT)],
            "mmlib, on_error=skip": lambda: [tolerant[i] for i in range(COUNT)],
            "torchvision": lambda: [plain[i] for i in range(COUNT)],
        },
        rounds=10,
    )
    table.as_fast("mmlib", "torchvision")
    table.as_fast("mmlib, on_error=skip", "torchvision")


def test_shards(side_by_side, files, tmp_path):
    data = coco.Captions(files.train_images, files.train_captions)
    write_shards(data.records(), tmp_path, per_shard=20)
    straight, shuffled = ShardStream(tmp_path), ShardStream(tmp_path, seed=0)
    table = side_by_side(
        f"{COUNT} pictures from a folder and from 3 shards (files in the system's cache)",
        {
            "folder": lambda: [data[i] for i in range(COUNT)],
            "shards": lambda: list(straight),
            "shards, shuffled": lambda: list(shuffled),
        },
        rounds=10,
    )
    table.as_fast("shards", "folder", 1.15)


def test_opening(side_by_side, files):
    def plain():
        with contextlib.redirect_stdout(io.StringIO()):
            return torchvision.datasets.CocoCaptions(files.train_images, files.train_captions)

    side_by_side(
        f"open {COUNT} pictures with {5 * COUNT} captions, and their questions",
        {
            "Captions": lambda: coco.Captions(files.train_images, files.train_captions),
            "torchvision": plain,
            "VQA": lambda: vqa_v2.VQA(files.train_questions, files.train_annotations),
        },
    )


def test_answers(side_by_side, files):
    data = vqa_v2.VQA(files.train_questions, files.train_annotations)
    given = [answer for item in data.items for answer in item.answers][:2000]
    vocabulary = data.vocabulary()
    table = side_by_side(
        "answers",
        {
            "normalise 2,000": lambda: [normalise(answer) for answer in given],
            "targets of 200": lambda: [data.targets(i, vocabulary) for i in range(200)],
        },
    )
    # VQAv2's training set has 4.4 million answers.
    table.goal(
        "answers normalised in a second",
        2000 / table.seconds("normalise 2,000"),
        at_least=50_000,
    )
