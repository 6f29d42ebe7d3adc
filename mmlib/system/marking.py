"""What a system has learned, on combinations of colour and shape that training never showed.

- Captions: the share of sizes, colours and shapes that are right, in English and in Chinese.
- Questions: the share of right answers, over all and of each kind; beside it that of a system that
  is shown nothing (the same questions with zeros for the picture), and of the commonest answer.
- Pictures: drawn on request, and marked by the independent judge, attribute by attribute.
- Photographs, where a run had some: their captions by BLEU and CIDEr, answers by VQAv2's accuracy.

Requests are put in wordings that training never used.
"""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from mmlib.data import scenes
from mmlib.data.scene_captions import attribute_scores
from mmlib.data.scenes import DEFAULT_HOLDOUT, Question, Scene
from mmlib.judge import Judge, load_judge
from mmlib.marks import Marks, mark
from mmlib.metrics.bleu import bleu
from mmlib.metrics.cider import cider
from mmlib.metrics.rouge import words as spoken
from mmlib.metrics.vqa_accuracy import vqa_scores
from mmlib.painters import grid_scenes
from mmlib.system.answers import answers
from mmlib.system.photos import Photos
from mmlib.system.requests import wordings
from mmlib.system.stages import System, photos_of
from mmlib.system.tasks import Turn
from mmlib.system.writing import Reply

__all__ = [
    "ask",
    "describe",
    "draw",
    "mark_answers",
    "mark_captions",
    "mark_photos",
    "mark_pictures",
    "marks_of",
]


def marks_of(system: System, count: int = 200, seed: int = 16_001) -> dict[str, float]:
    """All marks of a system on held-out combinations.

    Args:
        system: In evaluation mode.
        count: How many scenes to describe, to ask about and to draw, and how many photographs
            (:func:`mark_photos`) where the run had some.
        seed: Of the scenes.

    Raises:
        FileNotFoundError: the run had photographs, and they are not where they were.
    """
    found: dict[str, float] = {}
    if system.config.photos:
        found |= mark_photos(system, photos_of(system, "val", count))
    objects = (1, system.config.most_objects)
    items = scenes.sample(count, seed, split="test", objects=objects)
    side = system.pictures.recipe.resize
    for language in ("en", "zh"):
        said = describe(system, scenes.render(items, side), language)
        for name, value in mark_captions(said, items, language).items():
            found[f"caption_{language}_{name}"] = value
    pairs = questions_about(items, seed, system.config.kinds)
    pictures = scenes.render([items[number] for number, _ in pairs], side)
    asked = [question for _, question in pairs]
    for name, shown, language, looks in (
        ("ask", pictures, "en", False),
        ("ask_zh", pictures, "zh", False),
        ("ask_looks", pictures, "en", True),
        ("ask_blind", None, "en", False),
    ):
        said = ask(system, asked, shown, language, looks=looks)
        for kind, value in mark_answers(said, asked).items():
            found[f"{name}_{kind}"] = value
    found["ask_commonest"] = commonest(asked)
    wanted = grid_scenes(count, seed + 1, "test")
    for language in ("en", "zh"):
        painted = draw(system, [scenes.caption(scene, language) for scene in wanted], language)
        for name, value in mark_pictures(painted, wanted).items():
            found[f"draw_{language}_{name}"] = value
    return found


def mark_photos(system: System, photos: Photos) -> dict[str, float]:
    """Marks on photographs that training did not see, with the metrics of COCO and VQAv2.

    Args:
        system: In evaluation mode.
        photos: To describe and to ask about, all questions of each.

    Returns:
        BLEU-4 and CIDEr-D of captions; the accuracy of answers against those of ten people, and
        beside it that of a system that is shown nothing, and of the commonest answer.
    """
    taken = range(len(photos))
    request = wordings("caption", "en", "test")[0]
    looks = photos.features.float()
    said = _replies(system, [[Turn(request, picture=looks[i])] for i in taken])
    told = [spoken(reply.text) for reply in said]
    references = [[spoken(text) for text in photos.captions[i]] for i in taken]
    found = {
        "photo_caption_bleu": bleu(told, references).score,
        "photo_caption_cider": cider(told, references).score,
    }
    asked = [(i, question) for i in taken for question in photos.questions[i]]
    if not asked:
        return found
    people = {question.question_id: question.answers for _, question in asked}
    common = Counter(question.answer for _, question in asked).most_common(1)[0][0]
    for name, seen in (("ask", looks), ("ask_blind", torch.zeros_like(looks))):
        turns = [[Turn(question.question, picture=seen[i])] for i, question in asked]
        replies = _replies(system, turns)
        answers_by = {q.question_id: r.text for (_, q), r in zip(asked, replies, strict=True)}
        found[f"photo_{name}"] = vqa_scores(answers_by, people).overall
    found["photo_ask_commonest"] = vqa_scores(dict.fromkeys(people, common), people).overall
    return found


def describe(system: System, pictures: Tensor, language: str = "en") -> list[str]:
    """What the system says of pictures, on request."""
    request = wordings("caption", language, "test")[0]
    seen = system.pictures.look(pictures)
    return [r.text for r in _replies(system, [[Turn(request, picture=one)] for one in seen])]


def ask(
    system: System,
    asked: Sequence[Question],
    pictures: Tensor | None,
    language: str = "en",
    *,
    looks: bool = False,
) -> list[str]:
    """The system's answers to questions.

    Args:
        system: In evaluation mode.
        asked: The questions.
        pictures: One for each; None shows zeros instead of regions.
        language: ``"en"`` or ``"zh"``.
        looks: Whether the system is asked to describe the picture first, and answers with its own
            description before it.
    """
    config = system.language.config
    if pictures is None:
        seen = torch.zeros(len(asked), config.regions, config.feature_dim)
    else:
        seen = system.pictures.look(pictures)
    texts = [question.text_zh if language == "zh" else question.text for question in asked]
    if system.config.mute:
        texts = [""] * len(texts)
    turns = [[Turn(text, picture=one)] for text, one in zip(texts, seen, strict=True)]
    if looks:
        request = wordings("caption", language, "test")[0]
        first = [Turn(request, picture=one) for one in seen]
        said = _replies(system, [[turn] for turn in first])
        turns = [
            [turn, Turn(answer.text), Turn(text)]
            for turn, answer, text in zip(first, said, texts, strict=True)
        ]
    return [found.text for found in _replies(system, turns)]


def draw(
    system: System, texts: Sequence[str], language: str = "en", seed: int = 0
) -> list[Tensor | None]:
    """Pictures of texts, on request; None where the system only speaks."""
    request = wordings("draw", language, "test")[0]
    turns = [[Turn(request.format(text))] for text in texts]
    codes = [found.codes for found in _replies(system, turns, seed)]
    drawn = [grid for grid in codes if grid is not None]
    pictures = iter(system.pictures.paint(torch.stack(drawn)) if drawn else ())
    return [None if grid is None else next(pictures) for grid in codes]


def questions_about(
    items: Sequence[Scene], seed: int, kinds: Sequence[str] = scenes.KINDS
) -> list[tuple[int, Question]]:
    """One question of each kind a scene, where it allows one, with the scene's number."""
    return [
        (number, question)
        for number, scene in enumerate(items)
        for question in scenes.questions(scene, seed + number, kinds, DEFAULT_HOLDOUT)
    ]


def mark_captions(
    said: Sequence[str], items: Sequence[Scene], language: str = "en"
) -> dict[str, float]:
    """See :func:`mmlib.data.scene_captions.attribute_scores`; Chinese is translated first.

    A Chinese sentence outside the grammar is all wrong.
    """
    if language == "zh":
        said = [_in_english(text) for text in said]
    return attribute_scores([text.split() for text in said], items)


def mark_answers(said: Sequence[str], asked: Sequence[Question]) -> dict[str, float]:
    """The share of right answers: over all questions, and of each kind.

    Raises:
        ValueError: there is not one answer for each question, or there are none.
    """
    if not asked or len(said) != len(asked):
        raise ValueError(f"said must be one for each question: got {len(said)} for {len(asked)}")
    right: dict[str, list[bool]] = {"all": []}
    for text, question in zip(said, asked, strict=True):
        good = text in (question.answer, question.answer_zh)
        right["all"].append(good)
        right.setdefault(question.kind, []).append(good)
    return {kind: sum(marks) / len(marks) for kind, marks in right.items()}


def commonest(asked: Sequence[Question]) -> float:
    """The share of right answers of one who gives each kind's commonest answer."""
    kinds: dict[str, Counter[str]] = {}
    for question in asked:
        kinds.setdefault(question.kind, Counter())[question.answer] += 1
    return sum(counts.most_common(1)[0][1] for counts in kinds.values()) / len(asked)


def mark_pictures(
    painted: Sequence[Tensor | None], wanted: Sequence[Scene], judge: Judge | None = None
) -> dict[str, float]:
    """The judge's marks; what was not drawn is wrong in everything.

    Args:
        painted: Pictures of 32 pixels.
        wanted: The scenes that were asked for.
        judge: By default that of chapter 09.

    Returns:
        The share of pictures with each attribute right, ``attributes``, the mean over colour,
        shape and size, and ``right``, where everything is.
    """
    judge = load_judge() if judge is None else judge
    drawn = [picture for picture in painted if picture is not None]
    seen = iter(judge.read(torch.stack(drawn)) if drawn else ())
    found = [[] if picture is None else next(seen) for picture in painted]
    marks: Marks = mark(found, wanted)
    shares = {name: good.double().mean().item() for name, good in marks._asdict().items()}
    shares["attributes"] = (shares["colour"] + shares["shape"] + shares["size"]) / 3
    return shares | {"right": marks.right.double().mean().item()}


def _replies(system: System, turns: Sequence[Sequence[Turn]], seed: int = 0) -> list[Reply]:
    return answers(system, turns, torch.Generator().manual_seed(seed))


def _in_english(text: str) -> str:
    try:
        return scenes.translate(text, "zh", "en")
    except ValueError:
        return ""
