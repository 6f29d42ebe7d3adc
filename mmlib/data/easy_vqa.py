r"""easy-VQA: 48,248 questions about 5,000 pictures of one coloured shape (视觉问答).

A real, published benchmark for visual question answering, small enough for a laptop: every
picture shows a circle, a rectangle or a triangle in one of eight colours, and each of the about
ten questions on it has one of thirteen answers. The split into training and test set is the
publisher's. The data come from the Python package ``easy-vqa`` 1.0 by Victor Zhou (MIT licence),
fetched and checked by :mod:`mmlib.download`; see his `article
<https://victorzhou.com/blog/easy-vqa/>`_.

**What a number is worth.** Questions repeat, and "is there not a teal shape?" is mostly answered
"yes". So an accuracy stands beside two that look at no picture:

.. math::
    \text{majority:}\quad \hat a = \arg\max_a n(a), \qquad
    \text{question only:}\quad \hat a(q) = \arg\max_a n(q, a)

where :math:`n` counts in the training set. On the test set they reach 37.3 % and 67.0 %
(:func:`majority`, :func:`question_only`); a model that sees can reach 100 %, because every answer
can be read off the picture.

Models are chosen on pictures held out of the *training* set (:func:`hold_out`), and the test set
is looked at once.
"""

import hashlib
import json
import re
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int64, UInt8
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from mmlib.download import WHOLE, File, Source, Wheel, fetch

SPLITS = ("train", "test")

ANSWERS = (
    *("circle", "green", "red", "gray", "yes", "teal", "black"),
    *("rectangle", "yellow", "triangle", "brown", "blue", "no"),
)
"""The thirteen answers, in the publisher's order; an answer's index is its place here."""

PAD, UNKNOWN = "<pad>", "<unk>"
"""The first two words of a vocabulary; their ids are 0 and 1."""

_WHEEL = "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f"
SOURCE = Source(
    name="easy-vqa",
    about="questions about pictures of one coloured shape",
    licence="MIT",
    # The 5,000 pictures are fewer bytes in the wheel than their blocks on a disk would be.
    wheel=Wheel("easy-vqa", "1.0", _WHEEL, 3_215_672, {"wheel": File(WHOLE, 3_215_672, _WHEEL)}),
)
"""Where the data come from."""

_PICTURES = {
    "train": (4000, "eab3402e21bb0b3302a48c7c612b7b7820c4d012c39008a158362de0a83db4e2"),
    "test": (1000, "441921d7bb137a2ba613fc72d48ca08c0bdcdf3bd313729fc953fcf8a235163c"),
}
"""Number of pictures, and the SHA-256 digest of their bytes once decoded, (n, 3, 64, 64)."""


@dataclass(frozen=True, eq=False, repr=False)
class EasyVQA:
    """Pictures and the questions about them.

    Item ``i`` of ``questions``, ``image_index`` and ``answers`` is about the same question.

    Attributes:
        images: uint8, 0 to 255; red, green, blue.
        questions: English, lower case.
        image_index: For each question, which picture it is about.
        answers: For each question, the index of its answer in ``answer_names``.
        answer_names: The thirteen answers.
    """

    images: UInt8[Tensor, "images 3 64 64"]
    questions: tuple[str, ...]
    image_index: Int64[Tensor, "questions"]  # noqa: F821
    answers: Int64[Tensor, "questions"]  # noqa: F821
    answer_names: tuple[str, ...] = ANSWERS

    def __len__(self) -> int:
        """The number of questions."""
        return len(self.questions)

    def __repr__(self) -> str:
        return f"EasyVQA({len(self)} questions about {len(self.images)} pictures)"

    def of_images(self, indices: Sequence[int] | Tensor) -> "EasyVQA":
        """Take some pictures, in the order given, with all their questions.

        Args:
            indices: Whole numbers below ``len(self.images)``, none twice.

        Returns:
            A new set that shares no memory with this one. Questions keep their order.

        Raises:
            TypeError: The indices are not whole numbers.
            IndexError: One is out of range.
            ValueError: One comes twice.
        """
        index = torch.as_tensor(indices, dtype=None if len(indices) else torch.int64)
        if index.ndim != 1 or index.dtype not in (torch.int64, torch.int32):
            raise TypeError(
                "indices must be a sequence of whole numbers: "
                f"got dtype {index.dtype}, shape {tuple(index.shape)}"
            )
        count = len(self.images)
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < count:
            raise IndexError(
                f"indices must be between 0 and {count - 1}: "
                f"got {int(index.min())} to {int(index.max())}"
            )
        if len(index.unique()) < len(index):
            raise ValueError("indices must be different: got one twice")
        place = torch.full((count,), -1)
        place[index.long()] = torch.arange(len(index))
        moved = place[self.image_index]
        chosen = (moved >= 0).nonzero().flatten()
        return EasyVQA(
            images=self.images[index.long()],
            questions=tuple(self.questions[i] for i in chosen.tolist()),
            image_index=moved[chosen],
            answers=self.answers[chosen],
            answer_names=self.answer_names,
        )


class Prior(NamedTuple):
    """What can be had without looking at a picture.

    Attributes:
        answers: The answer to each question of the test set.
        accuracy: The share of them that is right, 0 to 1.
    """

    answers: Int64[Tensor, "questions"]  # noqa: F821
    accuracy: float


def load(split: str = "train", *, offline: bool | None = None, progress: bool = True) -> EasyVQA:
    """Load the training or the test set, as its publisher divided it.

    The first call fetches 3.2 MB and decodes the pictures into the cache; the wheel and the
    decoded pictures are checked against their digests each time. Two calls share no memory.

    Args:
        split: ``"train"`` (4,000 pictures, 38,575 questions) or ``"test"`` (1,000 and 9,673).
        offline: Use no network; None asks the environment (:func:`mmlib.download.is_offline`).
        progress: Say what is downloaded, and show a bar.

    Returns:
        The set, in the publisher's order: questions sorted by picture.

    Raises:
        ValueError: There is no such split.
        mmlib.download.SourceUnavailable: The data are to be had in no way; it says why.

    >>> test = load("test")
    >>> test, test.questions[0], test.answer_names[test.answers[0]]
    (EasyVQA(9673 questions about 1000 pictures), 'what is the red shape?', 'triangle')
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}: got {split!r}")
    wheel = fetch(SOURCE, offline=offline, progress=progress)["wheel"]
    with zipfile.ZipFile(wheel) as archive:
        rows = json.loads(archive.read(f"easy_vqa/data/{split}/questions.json"))
        images = _images(wheel.with_name(f"pictures-{split}.safetensors"), archive, split)
    index = {answer: i for i, answer in enumerate(ANSWERS)}
    questions, answers, pictures = zip(*rows, strict=True)
    return EasyVQA(
        images=images,
        questions=questions,
        image_index=torch.tensor(pictures),
        answers=torch.tensor([index[answer] for answer in answers]),
    )


def hold_out(data: EasyVQA, images: int = 400, seed: int = 0) -> tuple[EasyVQA, EasyVQA]:
    """Divide a set by pictures: to train on, and to choose a model with (验证集).

    No picture is in both parts; a random split of *questions* would put each picture in both.

    Args:
        data: The training set.
        images: How many pictures to hold out, with all their questions.
        seed: Which ones; the same seed chooses the same.

    Returns:
        The rest and the held-out part.

    Raises:
        ValueError: ``images`` leaves nothing on one side.
    """
    count = len(data.images)
    if isinstance(images, bool) or not isinstance(images, int) or not 0 < images < count:
        raise ValueError(f"images must be a whole number from 1 to {count - 1}: got {images!r}")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    held, rest = order[:images].sort().values, order[images:].sort().values
    return data.of_images(rest), data.of_images(held)


def tokenize(question: str) -> list[str]:
    """Split a question into lower-case words and marks.

    >>> tokenize("Is there NOT a red shape?")
    ['is', 'there', 'not', 'a', 'red', 'shape', '?']
    """
    return re.findall(r"\w+|[^\w\s]", question.lower())


def vocabulary(questions: Iterable[str]) -> tuple[str, ...]:
    """Collect the words of questions; give it the training questions only.

    Returns:
        :data:`PAD`, :data:`UNKNOWN`, then every word once, sorted.

    >>> vocabulary(["is a red shape present?"])
    ('<pad>', '<unk>', '?', 'a', 'is', 'present', 'red', 'shape')
    """
    return PAD, UNKNOWN, *sorted({word for text in set(questions) for word in tokenize(text)})


def encode(
    questions: Sequence[str], vocabulary: Sequence[str]
) -> tuple[Int64[Tensor, "batch length"], Bool[Tensor, "batch length"]]:
    """Turn questions into ids, padded at the end to the longest.

    Args:
        questions: Any texts, at least one.
        vocabulary: Words by id, as :func:`vocabulary` gives them; a word that is not among them
            becomes :data:`UNKNOWN`.

    Returns:
        Ids (batch, length), and a mask that is True where there is a word.

    Raises:
        TypeError: ``questions`` is one string.
        ValueError: There are no questions, or the vocabulary does not start with
            :data:`PAD` and :data:`UNKNOWN`.

    >>> ids, keep = encode(["a red shape", "red"], ("<pad>", "<unk>", "a", "red"))
    >>> ids.tolist(), keep.tolist()
    ([[2, 3, 1], [3, 0, 0]], [[True, True, True], [True, False, False]])
    """
    if isinstance(questions, str):
        raise TypeError(f"questions must be a sequence of strings: got one, {questions!r}")
    if not len(questions):
        raise ValueError("questions must hold at least one: got none")
    if tuple(vocabulary[:2]) != (PAD, UNKNOWN):
        raise ValueError(f"vocabulary must start with {PAD}, {UNKNOWN}: got {vocabulary[:2]!r}")
    index = {word: i for i, word in enumerate(vocabulary)}
    rows = [[index.get(word, 1) for word in tokenize(question)] for question in questions]
    length = max(map(len, rows))
    keep = torch.arange(length) < torch.tensor([len(row) for row in rows])[:, None]
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows], dtype=torch.int64)
    return ids, keep


def majority(train: EasyVQA, test: EasyVQA) -> Prior:
    """Answer every question with the most frequent answer of the training set.

    Of equally frequent answers the first in :data:`ANSWERS` is given.

    Raises:
        ValueError: A set has no questions.
    """
    _check_questions(train, test)
    best = torch.bincount(train.answers, minlength=len(ANSWERS)).argmax()
    return _prior(best.expand(len(test)).clone(), test)


def question_only(train: EasyVQA, test: EasyVQA) -> Prior:
    """Answer with the training set's most frequent answer to the same question.

    A question that the training set does not have gets the answer of :func:`majority`. Of
    answers to it that are equally frequent, the one that is more frequent overall is given.

    Raises:
        ValueError: A set has no questions.
    """
    fallback = majority(train, test).answers
    overall = Counter(train.answers.tolist())
    counts = Counter(zip(train.questions, train.answers.tolist(), strict=True))
    # In rising order of frequency, so that the last answer to a question is its most frequent.
    rising = sorted(counts, key=lambda pair: (counts[pair], overall[pair[1]], -pair[1]))
    best = dict(rising)
    said = [best.get(q, other) for q, other in zip(test.questions, fallback.tolist(), strict=True)]
    return _prior(torch.tensor(said), test)


def _check_questions(train: EasyVQA, test: EasyVQA) -> None:
    for name, data in (("train", train), ("test", test)):
        if not len(data):
            raise ValueError(f"{name} must have questions: got {data!r}")


def _prior(answers: Int64[Tensor, "questions"], test: EasyVQA) -> Prior:  # noqa: F821
    return Prior(answers, (answers == test.answers).double().mean().item())


def _images(path: Path, archive: zipfile.ZipFile, split: str) -> UInt8[Tensor, "images 3 64 64"]:
    """Read the decoded pictures; decode and keep them where they are not there or damaged."""
    count, digest = _PICTURES[split]
    if path.exists():
        try:
            images = load_file(path)["images"]
        except (SafetensorError, KeyError, OSError):
            images = None
        if images is not None and hashlib.sha256(images.numpy().data).hexdigest() == digest:
            return images
        warnings.warn(f"{path} is damaged: decoding the pictures again", stacklevel=3)
    names = (f"easy_vqa/data/{split}/images/{i}.png" for i in range(count))
    tiles = []
    for name in names:
        with archive.open(name) as file, Image.open(file) as picture:
            tiles.append(np.asarray(picture.convert("RGB")))
    images = torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2).contiguous()
    try:
        with tempfile.TemporaryDirectory(prefix=".decoded-", dir=path.parent) as scratch:
            part = Path(scratch) / path.name
            part.write_bytes(save({"images": images}))  # save_file's would be for us alone
            part.replace(path)
    except OSError:
        pass  # a cache that cannot be written to: the next call decodes again
    return images
