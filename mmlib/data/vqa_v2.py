"""Questions about pictures with the answers of ten people, in the format of VQAv2.

::

    from mmlib.data import vqa_v2

    train = vqa_v2.VQA(
        "v2_OpenEnded_mscoco_train2014_questions.json",
        "v2_mscoco_train2014_annotations.json",
        "train2014",
    )
    vocabulary = train.vocabulary(at_least=9)
    image, question, *_ = train[0]
    targets = train.targets(0, vocabulary)

The page :doc:`/book/data` says what VQAv2 is and how to get it. Without it,
:func:`~mmlib.data.coco_example.write_example` writes a small folder in exactly its format.

Goyal et al. 2017, https://arxiv.org/abs/1612.00837; Antol et al. 2015,
https://arxiv.org/abs/1505.00468.
"""

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mmlib.data.answers import AnswerVocabulary
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

__all__ = ["VQA", "Asked", "image_name"]


class Asked(NamedTuple):
    """A question about a picture.

    Attributes:
        image: The picture, transformed if a transform was given; None if the pictures' folder
            was not.
        question: The question.
        question_id: Its id.
        image_id: The picture's.
        answers: What people answered, ten of them in VQAv2, not normalised; None if unknown.
        answer: The most frequent one, ``multiple_choice_answer``; None if unknown.
        question_type: Its first words, one of the 65 kinds of the data set; None if unknown.
        answer_type: ``"yes/no"``, ``"number"`` or ``"other"``; None if unknown.
        confidence: How sure each of the people was: ``"yes"``, ``"maybe"`` or ``"no"``; None if
            unknown.
    """

    image: Any
    question: str
    question_id: int
    image_id: int
    answers: tuple[str, ...] | None = None
    answer: str | None = None
    question_type: str | None = None
    answer_type: str | None = None
    confidence: tuple[str, ...] | None = None


def image_name(subset: str, image_id: int) -> str:
    """The file name of a picture of COCO 2014 or 2015.

    Args:
        subset: ``data_subtype`` of the questions' file: ``"train2014"``, ``"val2014"``,
            ``"test2015"`` or ``"test-dev2015"``, whose pictures are among those of the test set.
        image_id: The id.

    Returns:
        The name.

    >>> image_name("train2014", 9), image_name("test-dev2015", 1)
    ('COCO_train2014_000000000009.jpg', 'COCO_test2015_000000000001.jpg')
    """
    return f"COCO_{subset.replace('-dev', '')}_{image_id:012d}.jpg"


class VQA(RecordDataset):
    """Questions about pictures, from files in the format of VQAv2.

    An item is an :class:`Asked`. Items come in the order of the questions' file.

    Args:
        questions: The questions' JSON file.
        annotations: The answers' JSON file; None for test questions, which have none.
        images: The folder of the pictures; None to leave them out, e.g. for a model that sees
            the question alone.
        transform: Of the picture.
        on_error: ``"raise"``, or ``"skip"`` to leave broken records out and count them.

    Attributes:
        items: The questions, without their pictures.

    Raises:
        RecordError: A file is not in the format, or a record is broken and ``on_error`` is
            ``"raise"``; the message names file and record.
        FileNotFoundError: A file or the folder does not exist.
        ValueError: The two files are not about the same pictures, or ``on_error`` is unknown.
    """

    def __init__(
        self,
        questions: str | os.PathLike,
        annotations: str | os.PathLike | None = None,
        images: str | os.PathLike | None = None,
        transform: Callable | None = None,
        *,
        on_error: str = "raise",
    ):
        self.on_error, self._skipped = on_error, Skipped()
        sieve = Sieve(on_error, self._skipped)
        self.images = None if images is None else Path(images)
        if self.images is not None and not self.images.is_dir():
            raise FileNotFoundError(f"images must be a folder: there is none at {images}")
        self.transform = transform
        content = read_json(questions)
        asked, refused = _questions(content, questions, sieve)
        self.subset = content.get("data_subtype")
        if not is_text(self.subset):
            raise RecordError(f"{questions}: data_subtype must be text: got {self.subset!r}")
        answered: dict[int, dict] = {}
        if annotations is not None:
            content = read_json(annotations)
            answered, faulty = _annotations(content, annotations, asked, refused, sieve)
            if content.get("data_subtype", self.subset) != self.subset:
                raise ValueError(
                    f"annotations must be about the same pictures as the questions: got "
                    f"{content['data_subtype']} in {annotations}, {self.subset} in {questions}"
                )
            for name in asked.keys() - answered.keys() - faulty:
                detail = f"it has no annotation in {annotations}"
                sieve.refuse("nothing to learn", questions, f"question {name}", detail)
            asked = {name: asked[name] for name in asked if name in answered}
        if self.images is not None:
            names = {entry["image_id"]: self._name(entry["image_id"]) for entry in asked.values()}
            missing = check_images(self.images, list(names.values()))
            for name, entry in list(asked.items()):
                file = names[entry["image_id"]]
                if file in missing:
                    detail = f"there is no file {self.images / file}"
                    sieve.refuse("missing image", questions, f"question {name}", detail)
                    del asked[name]
        if not asked:
            raise RecordError(f"{questions}: no question can be used", "nothing to learn")
        self.items = [_asked(entry, answered.get(name)) for name, entry in asked.items()]
        self.problems = sieve.problems

    def __len__(self) -> int:
        return len(self.items)

    def _name(self, image_id: int) -> str:
        return image_name(self.subset, image_id)

    def path(self, image_id: int) -> Path:
        """The file of a picture.

        Raises:
            ValueError: The data set was made without the folder of the pictures.
        """
        if self.images is None:
            raise ValueError("images must be given to know the pictures' files: got None")
        return self.images / self._name(image_id)

    def read(self, index: int) -> Asked:
        """See :class:`~mmlib.data.records.RecordDataset`."""
        item = self.items[self.position(index)]
        if self.images is None:
            return item
        path = self.path(item.image_id)
        image = open_image(path, f"{path} (question {item.question_id})")
        if self.transform is not None:
            image = self.transform(image)
        return item._replace(image=image)

    def select(self, indices: Sequence[int]) -> "VQA":
        """Some of the questions, in the order given; counts of skipped records start anew."""
        chosen = copy.copy(self)
        chosen.items = [self.items[self.position(index)] for index in indices]
        chosen._skipped = Skipped()
        return chosen

    def vocabulary(self, most: int | None = None, at_least: int = 1) -> AnswerVocabulary:
        """The frequent answers: see :meth:`mmlib.data.answers.AnswerVocabulary.build`.

        Counted are the ``multiple_choice_answer`` of the questions, as in the literature.

        Raises:
            ValueError: The answers are not known, or none is frequent enough.
        """
        self._need_answers()
        return AnswerVocabulary.build((item.answer for item in self.items), most, at_least)

    def targets(
        self, index: int, vocabulary: AnswerVocabulary, leave_one_out: bool = False
    ) -> Float[Tensor, " answers"]:
        """Soft scores of item ``index``: see :meth:`mmlib.data.answers.AnswerVocabulary.targets`.

        Raises:
            ValueError: The answers are not known.
        """
        self._need_answers()
        return vocabulary.targets(self.items[self.position(index)].answers, leave_one_out)

    def reach(self, vocabulary: AnswerVocabulary) -> float:
        """The mean of the best score that the vocabulary allows: what no model can surpass.

        Raises:
            ValueError: The answers are not known.
        """
        best = [self.targets(i, vocabulary, True).max() for i in range(len(self))]
        return float(torch.stack(best).mean())

    def _need_answers(self) -> None:
        if self.items[0].answers is None:
            raise ValueError("annotations must be given to know the answers: got None")

    def records(self) -> Iterator[dict]:
        """Pictures with their questions, for :func:`~mmlib.data.shard_writer.write_shards`."""
        by_image: dict[int, list[Asked]] = {}
        for item in self.items:
            by_image.setdefault(item.image_id, []).append(item)
        fields = ("question", "question_id", "answers", "answer", "question_type", "answer_type")
        for image_id, items in sorted(by_image.items()):
            questions = [{name: getattr(item, name) for name in fields} for item in items]
            yield {
                "key": f"{image_id:012d}",
                "image": self.path(image_id),
                "record": {"image_id": image_id, "questions": questions},
            }


def _questions(
    content: Any, file: str | os.PathLike, sieve: Sieve
) -> tuple[dict[int, dict], set[int]]:
    """The good questions by their ids, and the ids of the others."""
    asked: dict[int, dict] = {}
    refused: set[int] = set()
    for number, entry in enumerate(records_of(content, "questions", file)):
        entry = entry if isinstance(entry, dict) else {}
        name, image_id, text = (entry.get(k) for k in ("question_id", "image_id", "question"))
        what = f"question {name}"
        if not is_id(name):
            sieve.refuse(
                "bad record", file, f"questions[{number}]", f"no question_id, but {name!r}"
            )
        elif name in asked:
            sieve.refuse("duplicate id", file, what, "its id came before")
        elif not is_id(image_id):
            sieve.refuse("bad record", file, what, f"no image_id, but {image_id!r}")
        elif not is_text(text):
            sieve.refuse("bad text", file, what, f"question must be text: got {text!r}")
        else:
            asked[name] = entry
            continue
        refused.add(name if is_id(name) else -1)
    return asked, refused - asked.keys()


def _annotations(
    content: Any,
    file: str | os.PathLike,
    asked: dict[int, dict],
    refused: set[int],
    sieve: Sieve,
) -> tuple[dict[int, dict], set[int]]:
    """The good annotations by the ids of their questions, and the ids of the others.

    Annotations of questions that were refused go without a word: the record was counted.
    """
    answered: dict[int, dict] = {}
    faulty: set[int] = set()
    for number, entry in enumerate(records_of(content, "annotations", file)):
        entry = entry if isinstance(entry, dict) else {}
        name = entry.get("question_id")
        what = f"question {name}"
        given = entry.get("answers")
        if is_id(name) and name in refused:
            continue
        if not is_id(name):
            sieve.refuse(
                "bad record", file, f"annotations[{number}]", f"no question_id, but {name!r}"
            )
        elif name in answered:
            sieve.refuse("duplicate id", file, what, "it was annotated before")
        elif name not in asked:
            sieve.refuse("unknown id", file, what, "there is no such question")
        elif entry.get("image_id") != asked[name]["image_id"]:
            detail = f"image {entry.get('image_id')!r} is not that of the question"
            sieve.refuse("unknown id", file, what, detail)
        elif not isinstance(given, list) or not given:
            sieve.refuse("nothing to learn", file, what, f"answers must be a list: got {given!r}")
        elif not all(isinstance(one, dict) and isinstance(one.get("answer"), str) for one in given):
            sieve.refuse("bad text", file, what, "each of answers must have an answer that is text")
        elif not isinstance(entry.get("multiple_choice_answer"), str):
            got = entry.get("multiple_choice_answer")
            sieve.refuse(
                "bad text", file, what, f"multiple_choice_answer must be text: got {got!r}"
            )
        else:
            answered[name] = entry
            continue
        faulty.add(name if is_id(name) else -1)
    return answered, faulty


def _asked(question: dict, annotation: dict | None) -> Asked:
    names = (question["question"], question["question_id"], question["image_id"])
    if annotation is None:
        return Asked(None, *names)
    given = annotation["answers"]
    return Asked(
        None,
        *names,
        answers=tuple(one["answer"] for one in given),
        answer=annotation["multiple_choice_answer"],
        question_type=annotation.get("question_type"),
        answer_type=annotation.get("answer_type"),
        confidence=tuple(one.get("answer_confidence") for one in given),
    )
