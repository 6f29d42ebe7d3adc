"""How long easy-VQA takes to load from the cache, beside decoding its pictures each time."""

import io
import zipfile

import numpy as np
import torch
from PIL import Image

from mmlib.data import easy_vqa
from mmlib.download import fetch

AREA = "easy-VQA"


def decoded_each_time() -> torch.Tensor:
    """The plain way: open each of the 4,000 files."""
    with zipfile.ZipFile(fetch(easy_vqa.SOURCE)["wheel"]) as archive:
        names = [f"easy_vqa/data/train/images/{i}.png" for i in range(4000)]
        tiles = [np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in names]
    return torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2).contiguous()


def test_loading(side_by_side):
    assert torch.equal(easy_vqa.load("train").images, decoded_each_time())
    table = side_by_side(
        "load easy-VQA's training set, digests checked",
        {"load": lambda: easy_vqa.load("train"), "decode the pictures": decoded_each_time},
        rounds=5,
    )
    table.at_most("load", "decode the pictures", 0.6)
