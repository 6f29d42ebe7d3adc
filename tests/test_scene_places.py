"""Questions for size and place: true answers, names that fit one object, wordings kept apart."""

import inspect

import pytest

from mmlib.data import easy_vqa, scenes
from mmlib.data.scene_places import ANSWERS, FORMS, place_questions
from mmlib.data.scenes import COLOURS, SHAPES, SIZES, Object, Scene, place

SCENES = scenes.sample(300, 3)


def asked(split="train"):
    return [(s, q) for i, s in enumerate(SCENES) for q in place_questions(s, i, split)]


def test_the_words_of_a_question_fit_the_object_and_no_other():
    for scene, question in asked() + asked("test"):
        words = easy_vqa.tokenize(question.text)
        if question.kind == "size":  # "is the star small or large?" names both
            words = [word for word in words if word not in SIZES]
        fits = [
            number
            for number, item in enumerate(scene.objects)
            if all(
                getattr(item, field) in words or not set(values) & set(words)
                for field, values in (("size", SIZES), ("colour", COLOURS), ("shape", SHAPES))
            )
        ]
        assert fits == [question.number]
        item = scene.objects[question.number]
        assert question.answer == (item.size if question.kind == "size" else place(item))


def test_every_answer_and_every_wording_comes():
    for split in ("train", "test"):
        questions = [question for _, question in asked(split)]
        assert {question.answer for question in questions} == set(ANSWERS)
        for kind, forms in FORMS.items():
            texts = [question.text for question in questions if question.kind == kind]
            for form in forms[split]:
                start, end = form.split("{}")
                assert any(text.startswith(start) and text.endswith(end) for text in texts)


def test_wordings_of_the_test_are_new_but_their_words_are_not():
    for forms in FORMS.values():
        assert not set(forms["train"]) & set(forms["test"])
    words = {
        split: {w for forms in FORMS.values() for form in forms[split] for w in form.split()}
        for split in ("train", "test")
    }
    known = {word.strip("?,") for word in words["train"]}
    assert {word.strip("?,") for word in words["test"]} <= known


def test_twins_are_not_asked_about():
    twins = Scene(tuple(Object("star", "red", "small", x, 0.5) for x in (0.2, 0.8)))
    assert place_questions(twins, 0) == []


def test_the_seed_decides():
    one, same, other = (
        [place_questions(s, seed + i) for i, s in enumerate(SCENES)] for seed in (0, 0, 5000)
    )
    assert one == same and one != other


@pytest.mark.parametrize("options", [{"split": "all"}, {"seed": -1}])
def test_bad_input(options):
    with pytest.raises(ValueError, match="split|seed"):
        inspect.unwrap(place_questions)(**({"scene": SCENES[0], "seed": 0} | options))
