"""VQAv2's format: nothing lost or mixed up, and what is broken is named or counted."""

import json
import re
from collections import Counter

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from mmlib.data import coco_example, scenes, vqa_v2
from mmlib.data.answers import AnswerVocabulary, normalise, soft_scores
from mmlib.data.records import RecordError
from mmlib.data.vqa_v2 import VQA


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> coco_example.ExampleFiles:
    return coco_example.write_example(tmp_path_factory.mktemp("vqa"), images=40)


@pytest.fixture(scope="module")
def data(files) -> VQA:
    return VQA(files.train_questions, files.train_annotations, files.train_images)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def write(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


# The example


def test_the_example_has_the_fields_of_the_real_files(files):
    questions = read(files.train_questions)
    assert set(questions) == {
        *("info", "task_type", "data_type", "license", "data_subtype", "questions"),
    }
    assert (questions["task_type"], questions["data_subtype"]) == ("Open-Ended", "train2014")
    assert set(questions["questions"][0]) == {"image_id", "question", "question_id"}
    annotations = read(files.train_annotations)
    assert set(annotations) == {"info", "license", "data_subtype", "annotations", "data_type"}
    assert set(annotations["annotations"][0]) == {
        *("question_type", "multiple_choice_answer", "answers", "image_id", "answer_type"),
        "question_id",
    }
    for entry in annotations["annotations"]:
        assert [one["answer_id"] for one in entry["answers"]] == list(range(1, 11))
        assert {one["answer_confidence"] for one in entry["answers"]} <= {"yes", "maybe", "no"}
        assert entry["answer_type"] in ("yes/no", "number", "other")
    assert files.train_questions.name == "v2_OpenEnded_mscoco_train2014_questions.json"
    assert files.train_annotations.name == "v2_mscoco_train2014_annotations.json"


def test_answers_of_the_example_are_right_with_some_noise(data):
    world = scenes.sample(44, seed=0)
    asked = iter(data)
    agreed = Counter()
    for scene in (world[n] for n in range(40) if n % 10 < 6):
        for question in scenes.questions(scene, 0):
            item = next(asked)
            assert item.question.lower() == question.text
            assert item.answer == question.answer
            right = sum(normalise(answer) == question.answer for answer in item.answers)
            assert right >= 6
            agreed[right] += 1
    assert next(asked, None) is None
    assert set(agreed) == {6, 7, 8, 9, 10}
    spelled = Counter(answer for item in data.items for answer in item.answers)
    assert spelled["Yes."] and spelled["a star"] and spelled["zero"]  # not yet normalised


# Reading


def test_every_question_keeps_its_picture_and_answers(files, data):
    annotations = {e["question_id"]: e for e in read(files.train_annotations)["annotations"]}
    questions = read(files.train_questions)["questions"]
    assert len(data) == len(questions) == len(annotations)
    for item, question in zip(data, questions, strict=True):
        entry = annotations[question["question_id"]]
        assert (item.question, item.question_id) == (question["question"], question["question_id"])
        assert item.image_id == question["image_id"] == entry["image_id"]
        assert item.answers == tuple(one["answer"] for one in entry["answers"])
        assert item.confidence == tuple(one["answer_confidence"] for one in entry["answers"])
        assert item.answer == entry["multiple_choice_answer"]
        assert (item.question_type, item.answer_type) == (
            entry["question_type"],
            entry["answer_type"],
        )
        name = f"COCO_train2014_{item.image_id:012d}.jpg"
        with Image.open(files.train_images / name) as image:
            assert item.image.tobytes() == image.convert("RGB").tobytes()


def test_annotations_may_come_in_another_order(files, data, tmp_path):
    content = read(files.train_annotations)
    content["annotations"].reverse()
    mixed = VQA(files.train_questions, write(tmp_path / "mixed.json", content))
    assert mixed.items == data.items


def test_test_questions_have_no_answers(files):
    test = VQA(files.test_questions, images=files.test_images)
    assert len(test) == len(read(files.test_questions)["questions"]) > 0
    item = test[0]
    assert item.image.size == (64, 64)
    assert item.answers is item.answer is item.answer_type is item.question_type is None
    for call in (test.vocabulary, lambda: test.targets(0, AnswerVocabulary(["yes"]))):
        with pytest.raises(ValueError, match="annotations must be given to know the answers"):
            call()


def test_test_dev_questions_use_the_pictures_of_the_test_set(files, tmp_path):
    content = read(files.test_questions)
    content["data_subtype"] = "test-dev2015"
    file = write(tmp_path / "v2_OpenEnded_mscoco_test-dev2015_questions.json", content)
    dev, test = VQA(file, images=files.test_images), VQA(files.test_questions)
    assert dev[0].image.size == (64, 64)
    assert dev.items == test.items


def test_without_pictures_for_the_question_only_prior(files, data):
    blind = VQA(files.train_questions, files.train_annotations)
    assert blind[3].image is None
    assert blind.items == data.items
    with pytest.raises(ValueError, match="images must be given to know the pictures' files"):
        blind.path(9)


def test_transform(files):
    data = VQA(files.train_questions, images=files.train_images, transform=v2.PILToTensor())
    assert data[0].image.shape == (3, 64, 64)
    image, question, *_ = data[0]
    assert question == data[0].question


def test_splits_share_no_picture(files, data):
    val = VQA(files.val_questions, files.val_annotations)
    assert not {item.image_id for item in val.items} & {item.image_id for item in data.items}


# Answers


def test_vocabulary_counts_the_most_frequent_answer_of_each_question(data):
    counts = Counter(item.answer for item in data.items)
    ranked = sorted(counts, key=lambda answer: (-counts[answer], answer))
    assert data.vocabulary().answers == tuple(ranked)
    assert data.vocabulary(most=5).answers == tuple(ranked[:5])
    frequent = tuple(answer for answer in ranked if counts[answer] >= 9)
    assert 0 < len(frequent) < len(ranked)
    assert data.vocabulary(at_least=9).answers == frequent


def test_targets_by_hand(data):
    vocabulary = data.vocabulary(most=6)
    for index in range(len(data)):
        expected = torch.zeros(6)
        counts = Counter(normalise(answer) for answer in data.items[index].answers)
        for number, answer in enumerate(vocabulary.answers):
            expected[number] = min(counts[answer] / 3, 1)
        assert torch.equal(data.targets(index, vocabulary), expected)


def test_reach_is_the_mean_of_the_best_score(data):
    vocabulary = data.vocabulary(most=2)
    best = [
        max([0.0, *(s for a, s in soft_scores(item.answers, True).items() if a in
                    vocabulary.answers)])
        for item in data.items
    ]  # fmt: skip
    assert data.reach(vocabulary) == pytest.approx(sum(best) / len(best), abs=1e-6)
    assert 0.3 < data.reach(vocabulary) < data.reach(data.vocabulary()) <= 1


# Broken files and records

# Which file, what is done to it, the reason, the message, how many records are left out.
FAULTS = {
    "question without id": (
        *("questions", lambda q: q[3].pop("question_id"), "bad record"),
        *(r"questions\[3\]: no question_id, but None", 2),  # and its annotation
    ),
    "question is no object": (
        *("questions", lambda q: q.__setitem__(3, "why?"), "bad record"),
        *(r"questions\[3\]: no question_id", 2),
    ),
    "duplicate question": (
        *("questions", lambda q: q.append(dict(q[3])), "duplicate id"),
        *(r"question \d+: its id came before", 1),
    ),
    "question without image": (
        *("questions", lambda q: q[3].update(image_id=None), "bad record"),
        *(r"question \d+: no image_id, but None", 1),
    ),
    "question is empty": (
        *("questions", lambda q: q[3].update(question=""), "bad text"),
        *(r"question \d+: question must be text: got ''", 1),
    ),
    "question without annotation": (
        *("annotations", lambda a: a.pop(3), "nothing to learn"),
        *(r"question \d+: it has no annotation in", 1),
    ),
    "annotation without id": (
        *("annotations", lambda a: a[3].update(question_id=True), "bad record"),
        *(r"annotations\[3\]: no question_id, but True", 2),  # and its question
    ),
    "duplicate annotation": (
        *("annotations", lambda a: a.append(dict(a[3])), "duplicate id"),
        *(r"question \d+: it was annotated before", 1),
    ),
    "annotation of no question": (
        *("annotations", lambda a: a.append({**a[3], "question_id": 5}), "unknown id"),
        *("question 5: there is no such question", 1),
    ),
    "annotation of another image": (
        *("annotations", lambda a: a[3].update(image_id=1), "unknown id"),
        *(r"question \d+: image 1 is not that of the question", 1),
    ),
    "no answers": (
        *("annotations", lambda a: a[3].update(answers=[]), "nothing to learn"),
        *(r"question \d+: answers must be a list: got \[\]", 1),
    ),
    "answer is a number": (
        *("annotations", lambda a: a[3]["answers"][4].update(answer=2), "bad text"),
        *(r"question \d+: each of answers must have an answer that is text", 1),
    ),
    "no most frequent answer": (
        *("annotations", lambda a: a[3].pop("multiple_choice_answer"), "bad text"),
        *(r"question \d+: multiple_choice_answer must be text: got None", 1),
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_or_skipped_and_counted(files, tmp_path, name):
    which, spoil, reason, message, skipped = FAULTS[name]
    changed = {"questions": read(files.train_questions), "annotations":
               read(files.train_annotations)}  # fmt: skip
    spoil(changed[which][which])
    paths = {kind: write(tmp_path / f"{kind}.json", changed[kind]) for kind in changed}
    named = "questions" if "without annotation" in name else which
    with pytest.raises(RecordError, match=f"{re.escape(str(paths[named]))}: {message}") as caught:
        VQA(**paths)
    assert caught.value.reason == reason
    data = VQA(**paths, images=files.train_images, on_error="skip")
    assert data.skipped[reason] >= 1
    assert data.skipped.total() == len(data.problems) == skipped
    assert re.search(message, str(data.problems[0]))
    lost = not (name.startswith("duplicate") or name == "annotation of no question")
    assert len(list(data)) == 138 - lost


def test_a_missing_picture_is_named_or_its_questions_are_skipped(files, data, tmp_path):
    for path in files.train_images.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    gone = data.items[0].image_id
    (tmp_path / f"COCO_train2014_{gone:012d}.jpg").unlink()
    arguments = (files.train_questions, files.train_annotations, tmp_path)
    message = rf"question {gone}000: there is no file .*COCO_train2014_{gone:012d}\.jpg"
    with pytest.raises(RecordError, match=message):
        VQA(*arguments)
    some = VQA(*arguments, on_error="skip")
    assert some.items == [item for item in data.items if item.image_id != gone]
    assert some.skipped == {"missing image": len(data) - len(some)}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_truncated_picture_is_named_or_replaced_and_counted(files, data, tmp_path, workers):
    for path in files.train_images.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    broken = data.items[0].image_id
    path = tmp_path / f"COCO_train2014_{broken:012d}.jpg"
    path.write_bytes(path.read_bytes()[:500])
    arguments = (files.train_questions, files.train_annotations, tmp_path)
    with pytest.raises(RecordError, match=rf"{path.name} .question {broken}000.: not a readable"):
        VQA(*arguments)[0]
    some = VQA(*arguments, on_error="skip")
    loader = DataLoader(some, 30, num_workers=workers, collate_fn=list)
    ids = [item.question_id for batch in loader for item in batch]
    lost = sum(item.image_id == broken for item in data.items)
    assert ids == [data.items[max(i, lost)].question_id for i in range(len(data))]
    # Question i of the picture tries all of its questions from i on.
    assert some.skipped == {"broken image": lost * (lost + 1) // 2}
    assert list(some.check()) == list(range(lost))


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "is not JSON"),
        ("[]", "questions must be a list"),
        ('{"questions": []}', "questions must not be empty"),
        (
            '{"questions": [{"question_id": 1, "image_id": 1, "question": "x"}]}',
            "data_subtype must be text: got None",
        ),
        ('{"data_subtype": "val2014", "questions": [1]}', "no question can be used"),
    ],
)
def test_a_bad_file_is_an_error_even_when_records_are_skipped(tmp_path, content, message):
    file = tmp_path / "questions.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(RecordError, match=f"{re.escape(str(file))}.*{message}"):
        VQA(file, on_error="skip")


def test_bad_arguments(files, data, tmp_path):
    content = {**read(files.train_annotations), "data_subtype": "val2014"}
    other = write(tmp_path / "a.json", content)
    with pytest.raises(ValueError, match="same pictures as the questions: got val2014 in"):
        VQA(files.train_questions, other)
    with pytest.raises(FileNotFoundError, match="images must be a folder: there is none at"):
        VQA(files.train_questions, images=tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        VQA(tmp_path / "none.json")
    with pytest.raises(ValueError, match="on_error must be one of raise, skip"):
        VQA(files.train_questions, on_error="none")
    with pytest.raises(IndexError, match="index must be below 138: got 138"):
        data[138]
    assert vqa_v2.image_name("val2014", 42) == "COCO_val2014_000000000042.jpg"
