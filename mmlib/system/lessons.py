"""What the documents of a batch are about: scenes and emoji, drawn anew for every batch.

A batch is a function of its number and nothing else, so that a run that was stopped finds its
batches again, and processes that take turns share none. Scenes hold no combination of colour and
shape that the tests ask for.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor

from mmlib.dalle_training import codes_to_hide
from mmlib.data import emoji, scenes
from mmlib.data.scenes import DEFAULT_HOLDOUT, Scene
from mmlib.painters import grid_scenes
from mmlib.system.pictures import Pictures
from mmlib.system.requests import wordings
from mmlib.system.sequence import Document, Rows, pack
from mmlib.system.tasks import Turn, Writer

__all__ = ["INSTRUCTIONS", "PRETRAINING", "Lessons", "Menu"]

#: Shares of the tasks in stages 3 and 4.
PRETRAINING: Mapping[str, float] = MappingProxyType({"caption": 0.35, "draw": 0.65})
INSTRUCTIONS: Mapping[str, float] = MappingProxyType(
    {"ask": 0.4, "describe": 0.1, "request": 0.2, "talk": 0.1, "caption": 0.05, "draw": 0.15}
)
_LANGUAGES = ("en", "zh")


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
        emoji: Share of captions, descriptions, drawings and requests that are about emoji.
        chinese: Share of documents in Chinese.
        hide: Largest share of a picture's codes that is hidden; see
            :func:`mmlib.dalle_training.codes_to_hide`.
        drop: Share of drawings without a text, for guidance.
        blind: Whether pictures that are looked at are replaced by zeros: the baseline that has the
            question alone.

    Raises:
        ValueError: a number out of its range, or an unknown task.
    """

    shares: Mapping[str, float] = field(default_factory=lambda: dict(PRETRAINING))
    documents: int = 32
    length: int = 192
    objects: tuple[int, int] = (1, 2)
    kinds: tuple[str, ...] = scenes.KINDS
    emoji: float = 0.1
    chinese: float = 0.4
    hide: float = 0.4
    drop: float = 0.1
    blind: bool = False

    def __post_init__(self) -> None:
        unknown = set(self.shares) - set(PRETRAINING) - set(INSTRUCTIONS)
        if unknown or not self.shares:
            raise ValueError(f"shares must be of known tasks: got {sorted(self.shares)}")
        if min(self.shares.values()) < 0 or not sum(self.shares.values()) > 0:
            raise ValueError(f"shares must be at least 0, not all of them 0: got {self.shares}")
        if self.documents < 1:
            raise ValueError(f"documents must be at least 1: got {self.documents}")
        for name in ("emoji", "chinese", "hide", "drop"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1: got {getattr(self, name)}")


class Lessons:
    """Batches by number.

    Args:
        pictures: How pictures are looked at and drawn.
        writer: Writes the documents.
        menu: What batches are made of.
        seed: Another gives other batches.
    """

    def __init__(self, pictures: Pictures, writer: Writer, menu: Menu, seed: int = 0) -> None:
        self.pictures, self.writer, self.menu, self.seed = pictures, writer, menu, seed
        if menu.emoji:
            data = emoji.load("train", 32)
            images = data.images.float() / 255
            self._names = {"en": data.names, "zh": data.names_zh}
            self._emoji_seen, self._emoji_codes = pictures.look(images), pictures.codes(images)

    def __call__(self, number: int) -> Rows:
        """A batch."""
        shape = (self._side**2, self.pictures.feature_dim)
        return pack(self.documents(number), self.writer.known.pad, self.menu.length, shape=shape)

    def documents(self, number: int) -> list[Document]:
        """The documents of a batch."""
        menu = self.menu
        seed = self.seed * 1_000_003 + number
        dice = torch.Generator().manual_seed(seed)
        names, shares = list(menu.shares), torch.tensor(list(menu.shares.values()))
        chosen = torch.multinomial(shares, menu.documents, replacement=True, generator=dice)
        tasks = [names[i] for i in chosen.tolist()]
        # Two scenes each: one to look at, and one on the corners of the codes' cells to draw.
        seen = scenes.sample(menu.documents, 2 * seed, split="train", objects=menu.objects)
        drawn = grid_scenes(menu.documents, 2 * seed + 1, "train")
        images = scenes.render(seen, 32)
        features = self.pictures.look(images)
        codes = self._codes(drawn, [task in ("draw", "request", "talk") for task in tasks])
        places = self.pictures.autoencoder.config.side**2
        hidden = codes_to_hide(menu.documents, places, menu.hide, dice).tolist()
        numbers = torch.rand(menu.documents, 4, generator=dice).tolist()
        found = []
        for row, task in enumerate(tasks):
            from_emoji, chinese, dropped, which = numbers[row]
            language = _LANGUAGES[chinese < menu.chinese]
            if from_emoji < menu.emoji and task in ("caption", "describe", "draw", "request"):
                item = int(which * len(self._names["en"]))
                text, said = (self._names[language][item],) * 2
                look, code = self._emoji_seen[item], self._emoji_codes[item].tolist()
            else:
                text = scenes.caption(seen[row], language)
                said = scenes.caption(drawn[row], language)
                look, code = features[row], codes[row]
            look = torch.zeros_like(look) if menu.blind else look
            paint = Turn(codes=code, hidden=hidden[row])
            write = self.writer
            if task == "caption":
                found.append(write.caption(look, text, language))
            elif task == "draw":
                told = None if dropped < menu.drop else said
                found.append(write.drawing(told, language, code, hidden[row]))
            elif task == "describe":
                turns = [Turn(_one(wordings("caption", language), which), picture=look), Turn(text)]
                found.append(write.dialogue(turns))
            elif task == "request":
                asked = _one(wordings("draw", language), which).format(said)
                found.append(write.dialogue([Turn(asked), paint]))
            else:
                turns = self._asked(seen[row], look, language, seed + row)
                if task == "talk":
                    asked = _one(wordings("draw", language), which).format(said)
                    turns = [*turns[:2], Turn(asked), paint]
                found.append(write.dialogue(turns))
        return found

    @property
    def _side(self) -> int:
        return 8 // self.pictures.join

    def _codes(self, drawn: list[Scene], needed: list[bool]) -> list[list[int]]:
        """Codes of the scenes that are needed: they cost most of a batch's time."""
        rows = [row for row, need in enumerate(needed) if need]
        codes: list[list[int]] = [[] for _ in drawn]
        if rows:
            found = self.pictures.codes(scenes.render([drawn[row] for row in rows], 32))
            for row, code in zip(rows, found.tolist(), strict=True):
                codes[row] = code
        return codes

    def _asked(self, scene: Scene, look: Tensor, language: str, seed: int) -> list[Turn]:
        """Up to three questions about a picture, which is shown with the first."""
        asked = scenes.questions(scene, seed, self.menu.kinds, DEFAULT_HOLDOUT)
        dice = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(asked), generator=dice)[:3].tolist()
        turns = []
        for question in (asked[i] for i in order):
            zh = language == "zh"
            turns += [
                Turn(question.text_zh if zh else question.text, picture=None if turns else look),
                Turn(question.answer_zh if zh else question.answer),
            ]
        return turns


def _one(items: tuple[str, ...], share: float) -> str:
    return items[int(share * len(items))]
