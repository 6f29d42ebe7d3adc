"""A small folder in the formats of COCO, Karpathy's splits and VQAv2, made of scenes.

So that everything written for these data sets can be run, and is tested, without them.
"""

import json
import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from mmlib.data import scenes
from mmlib.data.scenes.draws import Dice, check_seed

_CAPTIONS = 5
_PEOPLE = 10
# Of ten pictures: where they lie, and which of Karpathy's splits they are in.
_PARTS = (*(("train2014", "train"),) * 6, *(("val2014", "restval"),) * 2,
          ("val2014", "val"), ("val2014", "test"))  # fmt: skip
_QUESTION_TYPES = {
    "exist": "is there",
    "count": "how many",
    "colour": "what colour is",
    "shape": "what shape is",
    "relation": "is the",
    "compare": "are there",
}
_WORDS = ("zero", "one", "two", "three", "four")
_LICENCE = {
    "id": 1,
    "name": "MIT License",
    "url": "https://opensource.org/license/mit",
}
_INFO = {
    "description": "Scenes of mmlib in the format of COCO and VQAv2",
    "url": "https://cocodataset.org",
    "version": "1.0",
    "year": 2014,
    "contributor": "mmlib",
    "date_created": "2014-01-01 00:00:00",
}


class ExampleFiles(NamedTuple):
    """Where the files of an example lie.

    Attributes:
        root: The folder, which holds the pictures' folders ``train2014``, ``val2014`` and
            ``test2015``.
        train_images: Folder of the training pictures.
        val_images: Folder of the validation pictures.
        test_images: Folder of pictures that have questions, but neither captions nor answers.
        train_captions: COCO's captions of the training pictures.
        val_captions: COCO's captions of the validation pictures.
        karpathy: Karpathy's ``dataset_coco.json``.
        train_questions: VQAv2's questions of the training pictures.
        train_annotations: Their answers.
        val_questions: VQAv2's questions of the validation pictures.
        val_annotations: Their answers.
        test_questions: Questions of the test pictures.
    """

    root: Path
    train_images: Path
    val_images: Path
    test_images: Path
    train_captions: Path
    val_captions: Path
    karpathy: Path
    train_questions: Path
    train_annotations: Path
    val_questions: Path
    val_annotations: Path
    test_questions: Path


def write_example(
    folder: str | os.PathLike, images: int = 40, seed: int = 0, size: int = 64
) -> ExampleFiles:
    """Write a small data set in the formats of COCO captions, Karpathy's splits and VQAv2.

    Its pictures are scenes. Each has five free captions, and up to six questions with the answers
    of ten people, some of whom err or answer in words of their own ("two", "Yes."): at least six
    are right once normalised. Of ten pictures six lie in ``train2014`` and four in ``val2014``, of
    which Karpathy's file puts two into ``restval``, one into ``val`` and one into ``test``; a
    tenth as many more lie in ``test2015``, with questions alone.

    The same arguments give the same pictures and the same JSON files everywhere; the bytes of the
    JPEG files may differ between versions of Pillow.

    Args:
        folder: Where to; made if it is not there. Files of the same names are replaced.
        images: How many pictures with captions, at least 10.
        seed: Which scenes, captions and answers.
        size: Width and height of the pictures.

    Returns:
        The files.

    Raises:
        ValueError: There are fewer than 10 images, or the size is below 8.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     files = write_example(folder, images=10)
    ...     len(list(files.train_images.iterdir())), files.train_captions.name
    (6, 'captions_train2014.json')
    """
    check_seed(seed)
    if images < len(_PARTS):
        raise ValueError(f"images must be at least {len(_PARTS)}: got {images}")
    root = Path(folder)
    captions = {"train2014": [], "val2014": []}
    pictures = {"train2014": [], "val2014": []}
    questions = {"train2014": [], "val2014": [], "test2015": []}
    answers = {"train2014": [], "val2014": []}
    karpathy = []
    more = max(1, images // 10)
    batch = scenes.sample(images + more, seed)
    # COCO's ids are not consecutive either.
    ids = [9 + 16 * number + Dice(seed, 1, number).below(16) for number in range(len(batch))]
    for number, (scene, image_id) in enumerate(zip(batch, ids, strict=True)):
        subset, split = _PARTS[number % len(_PARTS)] if number < images else ("test2015", "")
        name = f"COCO_{subset}_{image_id:012d}.jpg"
        (root / subset).mkdir(parents=True, exist_ok=True)
        pixels = scenes.render(scene, size=size)[0].permute(1, 2, 0).mul(255).round().byte()
        Image.fromarray(pixels.numpy()).save(root / subset / name, quality=92)
        asked, answered = _questions(scene, image_id, seed)
        questions[subset] += asked
        if subset == "test2015":
            continue
        answers[subset] += answered
        pictures[subset].append(_picture(name, image_id, size))
        texts = _captions(scene, seed)
        sentence_ids = [image_id * 10 + k for k in range(_CAPTIONS)]
        captions[subset] += [
            {"image_id": image_id, "id": sentence, "caption": text}
            for sentence, text in zip(sentence_ids, texts, strict=True)
        ]
        karpathy.append(_karpathy(subset, name, number, image_id, split, sentence_ids, texts))
    paths = {}
    for subset in captions:
        content = {"info": _INFO, "images": pictures[subset], "licenses": [_LICENCE]}
        content["annotations"] = captions[subset]
        paths[f"{subset[:-4]}_captions"] = _write(root, f"annotations/captions_{subset}", content)
    for subset, found in questions.items():
        head = {"info": _INFO, "license": _LICENCE, "data_type": "mscoco", "data_subtype": subset}
        content = {**head, "task_type": "Open-Ended", "questions": found}
        name = f"v2_OpenEnded_mscoco_{subset}_questions"
        paths[f"{subset[:-4]}_questions"] = _write(root, name, content)
        if subset in answers:
            content = {**head, "annotations": answers[subset]}
            name = f"v2_mscoco_{subset}_annotations"
            paths[f"{subset[:-4]}_annotations"] = _write(root, name, content)
    content = {"images": karpathy, "dataset": "coco"}
    paths["karpathy"] = _write(root, "dataset_coco", content)
    for subset in questions:
        paths[f"{subset[:-4]}_images"] = root / subset
    return ExampleFiles(root=root, **paths)


def _write(root: Path, name: str, content: dict) -> Path:
    path = root / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def _picture(name: str, image_id: int, size: int) -> dict:
    return {
        "license": 1,
        "file_name": name,
        "coco_url": "",
        "height": size,
        "width": size,
        "date_captured": "2014-01-01 00:00:00",
        "flickr_url": "",
        "id": image_id,
    }


def _captions(scene: scenes.Scene, seed: int) -> list[str]:
    """Five captions, all different where the scene allows."""
    found: list[str] = []
    for turn in range(8 * _CAPTIONS):
        text = scenes.caption(scene, "en", "free", (seed + turn) % 2**62)
        if text not in found:
            found.append(text)
        if len(found) == _CAPTIONS:
            return found
    return [found[k % len(found)] for k in range(_CAPTIONS)]


def _karpathy(subset, name, number, image_id, split, sentence_ids, texts) -> dict:
    sentences = [
        {"tokens": scenes.tokenize(text, "en"), "raw": text, "imgid": number, "sentid": sentence}
        for sentence, text in zip(sentence_ids, texts, strict=True)
    ]
    return {
        "filepath": subset,
        "sentids": sentence_ids,
        "filename": name,
        "imgid": number,
        "split": split,
        "sentences": sentences,
        "cocoid": image_id,
    }


def _questions(scene: scenes.Scene, image_id: int, seed: int) -> tuple[list[dict], list[dict]]:
    """The questions about a picture, and their answers."""
    asked, answered = [], []
    for number, question in enumerate(scenes.questions(scene, seed)):
        # VQAv2 numbers questions so, too.
        names = {"image_id": image_id, "question_id": image_id * 1000 + number}
        text = question.text[0].upper() + question.text[1:]
        asked.append({**names, "question": text})
        given = _people(question.answer, Dice(seed, 2, image_id, number))
        answered.append(
            {
                **names,
                "question_type": _QUESTION_TYPES[question.kind],
                "answer_type": _answer_type(question.answer),
                "multiple_choice_answer": Counter(a for a, _ in given).most_common(1)[0][0],
                "answers": [
                    {"answer": answer, "answer_confidence": sure, "answer_id": k + 1}
                    for k, (answer, sure) in enumerate(given)
                ],
            }
        )
    return asked, answered


def _answer_type(answer: str) -> str:
    if answer in ("yes", "no"):
        return "yes/no"
    return "number" if answer.isdigit() else "other"


def _people(answer: str, dice: Dice) -> list[tuple[str, str]]:
    """Ten answers with their confidence; in half of the questions up to four people err."""
    kind = _answer_type(answer)
    wrong = [other for other in scenes.ANSWERS if other != answer and _answer_type(other) == kind]
    spelled = {"number": _WORDS[int(answer)] if answer.isdigit() else "", "other": f"a {answer}"}
    said = [answer] * _PEOPLE
    for at in range((1 + dice.below(4)) * dice.below(2)):
        said[at] = dice.choice(wrong)
    if dice.below(4) == 0:  # one more puts it in words of their own
        said[-1] = spelled.get(kind, answer.capitalize() + ".")
    sure = [dice.choice(("yes", "yes", "yes", "maybe", "no")) for _ in said]
    order = dice.shuffled(range(_PEOPLE))
    return [(said[k], sure[k]) for k in order]
