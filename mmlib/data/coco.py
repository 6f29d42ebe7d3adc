r"""Pictures with several captions each: COCO, Flickr30k, and whatever has their format.

:class:`Captions` is torchvision's ``CocoCaptions`` with what training and retrieval need beyond
it: checked records, the captions of a picture kept together, Karpathy's splits, pictures turned
the right way up, and one caption chosen by seed and epoch::

    from mmlib.data import coco

    data = coco.Captions("val2017", "annotations/captions_val2017.json")
    image, captions, image_id = data[0]

The page :doc:`/book/data` says what COCO is and how to get it. Without it,
:func:`~mmlib.data.coco_example.write_example` (here too as ``coco.write_example``) writes a small
folder in exactly its format.

Lin et al. 2014, https://arxiv.org/abs/1405.0312; Chen et al. 2015,
https://arxiv.org/abs/1504.00325; the splits: Karpathy & Fei-Fei 2015,
https://arxiv.org/abs/1412.2306.
"""

import contextlib
import copy
import io
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from mmlib.data.coco_example import ExampleFiles, write_example
from mmlib.data.records import (
    RecordDataset,
    RecordError,
    Sieve,
    Skipped,
    check_images,
    is_id,
    is_text,
    open_image,
    read_json,
    records_of,
)
from mmlib.data.scenes.draws import check_seed, key

try:
    from pycocotools.coco import COCO
    from torchvision.datasets import CocoCaptions, VisionDataset
except ImportError as error:
    raise ImportError(
        'mmlib.data.coco needs torchvision and pycocotools: pip install "mmlib[coco]"'
    ) from error

__all__ = ["SPLITS", "Captioned", "Captions", "ExampleFiles", "Retrieval", "write_example"]

#: Karpathy's splits. ``train`` includes ``restval``, as is usual, unless asked otherwise.
SPLITS = ("train", "restval", "val", "test")


class Captioned(NamedTuple):
    """A picture and what people said of it.

    Attributes:
        image: The picture, transformed if a transform was given.
        captions: Its captions, in the order of their ids.
        image_id: Its id.
    """

    image: Any
    captions: list[str]
    image_id: int


class Retrieval(NamedTuple):
    """Which caption is about which picture, with several captions a picture.

    Attributes:
        captions: All captions, those of a picture together.
        image_of: For each caption the index of its picture in the data set.
        captions_of: For each picture the indices of its captions.
        text_group: For each caption the number of its text; captions that read the same apart
            from case and spaces share one, and are no negatives of each other.
        images_per_caption: For each caption how many pictures have a caption of that text. Where
            it is above 1, several pictures answer the caption equally well.
    """

    captions: list[str]
    image_of: Int[Tensor, " captions"]
    captions_of: list[list[int]]
    text_group: Int[Tensor, " captions"]
    images_per_caption: Int[Tensor, " captions"]


class Captions(RecordDataset, CocoCaptions):
    """Pictures and their captions, from a file in the format of COCO's ``captions_*.json``.

    An item is a :class:`Captioned`: the picture, its captions as a list, its id. Items come in the
    order of image ids, as torchvision's do. Faults of the file, pictures without a caption among
    them, are errors or are skipped and counted (:class:`~mmlib.data.records.RecordDataset`).

    Args:
        root: The folder of the pictures.
        annotations: The JSON file.
        transform: Of the picture alone.
        target_transform: Of the list of captions alone.
        transforms: Of both; instead of the two.
        captions_per_image: Keep at most this many captions of a picture, the first ones. Some of
            COCO's have six or seven; retrieval is usually measured with five.
        on_error: ``"raise"``, or ``"skip"`` to leave broken records out and count them.

    Attributes:
        ids: The image ids.

    Raises:
        RecordError: The file is not in the format, or a record is broken and ``on_error`` is
            ``"raise"``; the message names file and record.
        FileNotFoundError: The JSON file or the folder does not exist.
        ValueError: Another argument is not one of the above.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        annotations: str | os.PathLike,
        transform: Callable | None = None,
        target_transform: Callable | None = None,
        transforms: Callable | None = None,
        *,
        captions_per_image: int | None = None,
        on_error: str = "raise",
    ):
        content = read_json(annotations)
        self._build(
            root, content, annotations, (transforms, transform, target_transform),
            captions_per_image, on_error,
        )  # fmt: skip

    @classmethod
    def karpathy(
        cls,
        root: str | os.PathLike,
        file: str | os.PathLike,
        split: str,
        transform: Callable | None = None,
        *,
        restval: bool = True,
        captions_per_image: int | None = None,
        on_error: str = "raise",
    ) -> "Captions":
        """Read Karpathy's ``dataset_coco.json``, ``dataset_flickr30k.json`` or ``…8k.json``.

        Args:
            root: The folder that holds ``train2014`` and ``val2014`` (COCO), or the pictures
                (Flickr).
            file: The JSON file.
            split: One of :data:`SPLITS`.
            transform: Of the picture.
            restval: Whether ``"train"`` includes the 30,504 pictures of COCO's validation set
                that are neither in ``val`` nor in ``test``.
            captions_per_image: See :class:`Captions`.
            on_error: See :class:`Captions`.

        Returns:
            The pictures of the split. Ids are COCO's where the file has them, else its own.
        """
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}: got {split!r}")
        wanted = {split, "restval"} if split == "train" and restval else {split}
        content = _from_karpathy(read_json(file), file, wanted)
        data = cls.__new__(cls)
        transforms = (None, transform, None)
        data._build(root, content, file, transforms, captions_per_image, on_error)
        return data

    def _build(self, root, content, file, transforms, captions_per_image, on_error) -> None:
        """Set everything up; ``content`` is in COCO's format."""
        if captions_per_image is not None and captions_per_image < 1:
            raise ValueError(f"captions_per_image must be at least 1: got {captions_per_image}")
        if not Path(root).is_dir():
            raise FileNotFoundError(f"root must be a folder: there is none at {root}")
        VisionDataset.__init__(self, str(root), *transforms)
        self.on_error, self._skipped = on_error, Skipped()
        sieve = Sieve(on_error, self._skipped)
        self.coco = COCO()
        self.coco.dataset = _checked(content, file, Path(root), sieve, captions_per_image)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
            self.coco.createIndex()
        self.ids = sorted(self.coco.imgs)
        self.problems = sieve.problems

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, index: int) -> Captioned:
        """See :class:`~mmlib.data.records.RecordDataset`."""
        # torchvision's __getitem__ reads through _load_image and _load_target.
        image, captions = CocoCaptions.__getitem__(self, self.position(index))
        return Captioned(image, captions, self.ids[index])

    def _load_image(self, id: int) -> Any:
        return open_image(self.path(id), f"{self.path(id)} (image {id})")

    def path(self, image_id: int) -> Path:
        """The file of a picture."""
        return Path(self.root) / self.coco.imgs[image_id]["file_name"]

    def captions(self, index: int) -> list[str]:
        """The captions of item ``index``, without opening the picture."""
        found = self.coco.imgToAnns[self.ids[self.position(index)]]
        return [entry["caption"] for entry in found]

    def caption(self, index: int, seed: int, epoch: int = 0) -> str:
        """One caption of item ``index``: a function of seed, epoch and image id alone.

        So it does not depend on workers, on the order of reading, or on what else is in the set.
        """
        captions = self.captions(index)
        word = key(check_seed(seed), epoch, self.ids[self.position(index)])
        return captions[(word >> 32) * len(captions) >> 32]

    def select(self, indices: Sequence[int]) -> "Captions":
        """Some of the pictures, in the order given; counts of skipped records start anew."""
        chosen = copy.copy(self)
        chosen.ids = [self.ids[self.position(index)] for index in indices]
        chosen._skipped = Skipped()
        return chosen

    def retrieval(self) -> Retrieval:
        """All captions, and which is about which picture.

        Broken pictures are not noticed here: leave them out first (see ``check``), or the rows of
        pictures and captions no longer belong together.
        """
        texts, image_of, captions_of = [], [], []
        for index in range(len(self)):
            captions = self.captions(index)
            captions_of.append(list(range(len(texts), len(texts) + len(captions))))
            texts += captions
            image_of += [index] * len(captions)
        numbers: dict[str, int] = {}
        groups = [numbers.setdefault(" ".join(t.lower().split()), len(numbers)) for t in texts]
        seen: list[set[int]] = [set() for _ in numbers]
        for group, image in zip(groups, image_of, strict=True):
            seen[group].add(image)
        return Retrieval(
            texts,
            torch.tensor(image_of, dtype=torch.int64),
            captions_of,
            torch.tensor(groups, dtype=torch.int64),
            torch.tensor([len(seen[group]) for group in groups], dtype=torch.int64),
        )

    def records(self) -> Iterator[dict]:
        """Pictures' files and captions, for :func:`~mmlib.data.shard_writer.write_shards`."""
        for index, image_id in enumerate(self.ids):
            yield {
                "key": f"{image_id:012d}",
                "image": self.path(image_id),
                "record": {"image_id": image_id, "captions": self.captions(index)},
            }


def _from_karpathy(content: Any, file: str | os.PathLike, wanted: set[str]) -> dict:
    """Bring Karpathy's format into COCO's. Faults inside the records are found later."""
    images, annotations = [], []
    for number, entry in enumerate(records_of(content, "images", file)):
        entry = entry if isinstance(entry, dict) else {}
        if entry.get("split", "train") not in wanted:
            continue
        # dataset_flickr30k.json has neither cocoid nor filepath.
        image_id = entry.get("cocoid", entry.get("imgid", number))
        name = entry.get("filename")
        if isinstance(name, str):
            name = os.path.join(entry.get("filepath", ""), name)
        images.append({"id": image_id, "file_name": name})
        for sentence in entry.get("sentences", []):
            annotations.append(
                {
                    "id": sentence.get("sentid"),
                    "image_id": image_id,
                    "caption": sentence.get("raw"),
                }
            )
    return {"images": images, "annotations": annotations}


def _checked(
    content: Any, file: str | os.PathLike, root: Path, sieve: Sieve, most: int | None
) -> dict:
    """The good records of a file in COCO's format, at most so many captions a picture."""
    images: dict[int, dict] = {}
    lost: set[int] = set()  # images that are known but cannot be used; nor can their captions
    for number, entry in enumerate(records_of(content, "images", file)):
        entry = entry if isinstance(entry, dict) else {}
        image_id, name = entry.get("id"), entry.get("file_name")
        if not is_id(image_id):
            sieve.refuse("bad record", file, f"images[{number}]", f"no id, but {image_id!r}")
        elif not is_text(name):
            sieve.refuse("bad record", file, f"image {image_id}", f"file_name is {name!r}")
            lost.add(image_id)
        elif image_id in images:
            sieve.refuse("duplicate id", file, f"image {image_id}", "its id came before")
        else:
            images[image_id] = entry
    missing = check_images(root, [entry["file_name"] for entry in images.values()])
    for image_id in [i for i, entry in images.items() if entry["file_name"] in missing]:
        path = root / images[image_id]["file_name"]
        sieve.refuse("missing image", file, f"image {image_id}", f"there is no file {path}")
        lost.add(image_id)
    seen: set[int] = set()
    known = images.keys() | lost
    captions_of: dict[int, list[dict]] = {}
    for number, entry in enumerate(records_of(content, "annotations", file)):
        entry = entry if isinstance(entry, dict) else {}
        name, image_id, text = entry.get("id"), entry.get("image_id"), entry.get("caption")
        what = f"annotation {name}"
        if not is_id(name):
            sieve.refuse("bad record", file, f"annotations[{number}]", f"no id, but {name!r}")
        elif name in seen:
            sieve.refuse("duplicate id", file, what, "its id came before")
        elif not is_id(image_id) or image_id not in known:
            sieve.refuse("unknown id", file, what, f"there is no image {image_id!r}")
        elif not is_text(text):
            sieve.refuse("bad text", file, what, f"caption must be text: got {text!r}")
        elif image_id not in lost:
            seen.add(name)
            captions_of.setdefault(image_id, []).append(entry)
    kept = []
    for image_id in sorted(images.keys() - lost):
        if image_id not in captions_of:
            sieve.refuse("nothing to learn", file, f"image {image_id}", "it has no caption")
        kept += sorted(captions_of.get(image_id, []), key=lambda entry: entry["id"])[:most]
    if not kept:
        raise RecordError(f"{file}: no picture has a good caption", "nothing to learn")
    return {"images": [images[i] for i in captions_of], "annotations": kept}
