"""What the model is taught: batches of documents about the :mod:`~mmlib.system.material`.

A batch is a function of its number and nothing else, so that a run that was stopped finds its
batches again, and processes that take turns share none. Questions are asked anew each time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor

from mmlib.dalle_training import codes_to_hide
from mmlib.data import scenes
from mmlib.data.scenes import DEFAULT_HOLDOUT, Scene
from mmlib.system.material import Material
from mmlib.system.requests import wordings
from mmlib.system.sequence import Document, Rows, pack
from mmlib.system.tasks import Turn, Writer

__all__ = ["INSTRUCTIONS", "PRETRAINING", "Lessons", "Menu"]

#: Shares of the tasks in stages 3 and 4.
PRETRAINING: Mapping[str, float] = MappingProxyType({"caption": 0.65, "draw": 0.35})
INSTRUCTIONS: Mapping[str, float] = MappingProxyType(
    {"ask": 0.71, "describe": 0.06, "request": 0.1, "talk": 0.02, "caption": 0.03, "draw": 0.08}
)
_LANGUAGES = ("en", "zh")
#: Kinds of small drawings, and the tasks in which they and photographs come.
_DRAWN = ("emoji", "clipart")
_OF_DRAWINGS = ("caption", "describe", "draw", "request")
_OF_PHOTOS = ("caption", "describe", "ask")


@dataclass(frozen=True)
class Menu:
    """What batches are made of.

    Attributes:
        shares: Of the tasks: ``"caption"`` and ``"draw"`` of stage 3, ``"ask"``, ``"describe"``,
            ``"request"`` and ``"talk"`` of stage 4.
        documents: In a batch.
        length: Of a row, in tokens.
        objects: Fewest and most objects of a scene.
        kinds: Of questions; see :func:`mmlib.data.scenes.questions`.
        questions: Most questions about a picture.
        looks: Share of the dialogues with questions that begin with a description, so that the
            questions can be answered from it (:func:`mmlib.system.marking.ask`).
        emoji: Share of captions, descriptions, drawings and requests that are about emoji.
        clipart: The same for clip art, in English.
        photos: Share of captions, descriptions and questions that are about photographs, in
            English.
        chinese: Share of documents in Chinese.
        hide: Largest share of a picture's codes that is hidden; see
            :func:`mmlib.dalle_training.codes_to_hide`.
        drop: Share of drawings without a text, for guidance.
        blind: Whether pictures that are looked at are replaced by zeros: the baseline that has the
            question alone.
        mute: Whether the words of questions are left out: the baseline that has the picture alone.

    Raises:
        ValueError: a number out of its range, or an unknown task.
    """

    shares: Mapping[str, float] = field(default_factory=lambda: dict(PRETRAINING))
    documents: int = 32
    length: int = 160
    objects: tuple[int, int] = (1, 2)
    kinds: tuple[str, ...] = scenes.KINDS
    questions: int = 1
    looks: float = 0.15
    emoji: float = 0.0
    clipart: float = 0.0
    photos: float = 0.0
    chinese: float = 0.4
    hide: float = 0.4
    drop: float = 0.1
    blind: bool = False
    mute: bool = False

    def __post_init__(self) -> None:
        unknown = set(self.shares) - set(PRETRAINING) - set(INSTRUCTIONS)
        if unknown or not self.shares:
            raise ValueError(f"shares must be of known tasks: got {sorted(self.shares)}")
        if min(self.shares.values()) < 0 or not sum(self.shares.values()) > 0:
            raise ValueError(f"shares must be at least 0, not all of them 0: got {self.shares}")
        for name in ("documents", "questions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1: got {getattr(self, name)}")
        for name in ("emoji", "clipart", "photos", "chinese", "hide", "drop", "looks"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1: got {getattr(self, name)}")
        if self.emoji + self.clipart + self.photos > 1:
            raise ValueError(
                "emoji, clipart and photos must be at most 1 together: "
                f"got {self.emoji}, {self.clipart} and {self.photos}"
            )


class Lessons:
    """Batches by number.

    Args:
        material: What they are about.
        writer: Writes the documents.
        menu: What batches are made of.
        seed: Another gives other batches.

    Raises:
        ValueError: emoji, clip art or photographs are on the menu and not in the material.
    """

    def __init__(self, material: Material, writer: Writer, menu: Menu, seed: int = 0) -> None:
        for name in (*_DRAWN, "photos"):
            held = material.photos if name == "photos" else material.drawings.get(name)
            if getattr(menu, name) and held is None:
                raise ValueError(
                    f"material must hold {name}, which are on the menu: got {getattr(menu, name)}"
                )
        self.material, self.writer, self.menu, self.seed = material, writer, menu, seed

    def __call__(self, number: int) -> Rows:
        """A batch."""
        pad_id, shape = self.writer.known.pad, self.material.shape
        return pack(self.documents(number), pad_id, self.menu.length, shape=shape)

    def documents(self, number: int) -> list[Document]:
        """The documents of a batch."""
        menu, material = self.menu, self.material
        seed = self.seed * 1_000_003 + number
        dice = torch.Generator().manual_seed(seed)
        names, shares = list(menu.shares), torch.tensor(list(menu.shares.values()))
        chosen = torch.multinomial(shares, menu.documents, replacement=True, generator=dice)
        hidden = codes_to_hide(menu.documents, material.places, menu.hide, dice).tolist()
        of = torch.randint(len(material.seen), (menu.documents,), generator=dice).tolist()
        numbers = torch.rand(menu.documents, 5, generator=dice).tolist()
        # A seed of questions decides about yes and no: no two documents share one.
        seeds = torch.randint(2**40, (menu.documents,), generator=dice).tolist()
        found = []
        for row, choice in enumerate(chosen.tolist()):
            task = names[choice]
            kind, chinese, dropped, which, looks = numbers[row]
            language = _LANGUAGES[chinese < menu.chinese]
            about = self._about(kind)
            if about in _DRAWN and task in _OF_DRAWINGS:
                kept = material.drawings[about]
                language = language if language in kept.names else "en"
                item = int(which * len(kept.names[language]))
                text = said = kept.names[language][item]
                look, code = kept.features[item], kept.codes[item].tolist()
            elif about == "photos" and task in _OF_PHOTOS:
                found.append(self._about_photo(task, which, looks, seeds[row]))
                continue
            else:
                item = of[row]
                text = scenes.caption(material.seen[item], language)
                said = scenes.caption(material.drawn[item], language)
                look, code = material.features[item], material.codes[item].tolist()
            look = look.float() * (not menu.blind)
            paint = Turn(codes=code, hidden=hidden[row])
            write = self.writer
            if task == "caption":
                found.append(write.caption(look, text, language))
            elif task == "draw":
                told = None if dropped < menu.drop else said
                found.append(write.drawing(told, language, code, hidden[row]))
            elif task == "describe":
                found.append(write.dialogue(_described(look, text, language, which)))
            elif task == "request":
                asked = _one(wordings("draw", language), which).format(said)
                found.append(write.dialogue([Turn(asked), paint]))
            else:
                turns = self._asked(material.seen[item], look, language, seeds[row])
                if task == "talk":
                    asked = _one(wordings("draw", language), which).format(said)
                    turns = [*turns[:2], Turn(asked), paint]
                elif looks < menu.looks:
                    turns[0].picture = None
                    turns = [*_described(look, text, language, which), *turns]
                found.append(write.dialogue(turns))
        return found

    def _about(self, share: float) -> str:
        """What a number from 0 to 1 says a document is about."""
        for name in (*_DRAWN, "photos"):
            share -= getattr(self.menu, name)
            if share < 0:
                return name
        return "scenes"

    def _about_photo(self, task: str, which: float, looks: float, seed: int) -> Document:
        """A document about a photograph."""
        photos, menu = self.material.photos, self.menu
        dice = torch.Generator().manual_seed(seed)
        item = int(torch.randint(len(photos), (), generator=dice))
        look = photos.features[item].float() * (not menu.blind)
        text = _one(photos.captions[item], float(torch.rand((), generator=dice)))
        if task == "caption":
            return self.writer.caption(look, text, "en")
        described = _described(look, text, "en", which)
        asked = photos.questions[item]
        if task == "describe" or not asked:
            return self.writer.dialogue(described)
        turns = []
        for number in torch.randperm(len(asked), generator=dice)[: menu.questions].tolist():
            question = "" if menu.mute else asked[number].question
            turns += [Turn(question, picture=None if turns else look), Turn(asked[number].answer)]
        if looks < menu.looks:
            turns[0].picture = None
            turns = [*described, *turns]
        return self.writer.dialogue(turns)

    def _asked(self, scene: Scene, look: Tensor, language: str, seed: int) -> list[Turn]:
        """Some questions about a picture, which is shown with the first."""
        asked = scenes.questions(scene, seed, self.menu.kinds, DEFAULT_HOLDOUT)
        dice = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(asked), generator=dice)[: self.menu.questions].tolist()
        turns = []
        for question in (asked[i] for i in order):
            text, answer = (
                (question.text_zh, question.answer_zh)
                if language == "zh"
                else (question.text, question.answer)
            )
            said = "" if self.menu.mute else text
            turns += [Turn(said, picture=None if turns else look), Turn(answer)]
        return turns


def _described(look: Tensor, text: str, language: str, which: float) -> list[Turn]:
    return [Turn(_one(wordings("caption", language), which), picture=look), Turn(text)]


def _one(items: Sequence[str], share: float) -> str:
    return items[int(share * len(items))]
