"""The system behind chapter 15's service: over HTTP, and as a page in the browser.

::

    python -m mmlib.system serve [RUN] --pictures FOLDER --port 8000

Four functions of one system, with the queues, limits and refusals of :mod:`mmlib.serving`:
``caption`` and ``ask`` look at a picture, ``paint`` draws a text, ``search`` finds the pictures of
a folder that fit one. Texts are in English or Chinese, about coloured shapes: what the system never
heard is refused, because it would answer, and mean nothing.
"""

import functools
import mimetypes
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from pydantic import AfterValidator, ConfigDict, Field
from torch import Tensor

from mmlib.data import scenes
from mmlib.encoders.preprocessing import Recipe, preprocess
from mmlib.serving.__main__ import parser, start
from mmlib.serving.functions import (
    Function,
    Job,
    Limits,
    Reply,
    Request,
    Text,
    check_words,
    png_url,
)
from mmlib.serving.image_search import Match, SearchReply, SearchRequest
from mmlib.serving.problems import Refused
from mmlib.serving.scene_painting import PaintingReply
from mmlib.serving.uploads import decode_picture
from mmlib.small_clips import scene_tokenizer
from mmlib.system.answers import answers
from mmlib.system.requests import REQUESTS, wordings
from mmlib.system.sequence import pad
from mmlib.system.stages import System, load_system, shipped_system
from mmlib.system.tasks import Turn
from mmlib.system.words import Marker
from mmlib.system.writing import paint

__all__ = [
    "AnswerReply",
    "DescriptionReply",
    "DescriptionRequest",
    "DrawingRequest",
    "QuestionRequest",
    "SystemCaption",
    "SystemPainting",
    "SystemQuestions",
    "SystemSearch",
    "TextRequest",
    "main",
    "system_functions",
]

_PROGRAM = "python -m mmlib.system serve"
_SIDE = 32  # pixels that CLIP looks at and the system paints
_SHOWN = 256  # pixels a side of what is sent
_OWN = 120  # scenes that are searched where no folder is given
_LONGEST = 24  # words of a question
_RECIPE = Recipe(_SIDE, whole=True)
_HAN = re.compile(r"[\u3400-\u9fff]")


@functools.cache
def _heard() -> frozenset[str]:
    """Words, marks and Chinese characters of the training scenes' questions, and of requests."""
    texts = [*scenes.vocabulary("en"), *scenes.vocabulary("zh")]
    texts += [text.format("") for by in REQUESTS.values() for one in by.values() for text in one]
    for number, scene in enumerate(scenes.sample(400, 16, split="train")):
        for question in scenes.questions(scene, number):
            texts += [question.text, question.text_zh]
    return frozenset(piece for text in texts for piece in _pieces(text))


def _pieces(text: str) -> list[str]:
    """English words, marks, and Chinese characters one by one."""
    return re.findall(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+|[^\w\s]", text.lower())


def _language(text: str) -> str:
    return "zh" if _HAN.search(text) else "en"


def _question(text: str) -> str:
    pieces = _pieces(text)
    check_words(pieces, _heard(), 2 * _LONGEST if _language(text) == "zh" else _LONGEST)
    return text


def _caption(text: str) -> str:
    """A caption that CLIP can read, too."""
    text = text.lower().rstrip(" .。")
    if _language(text) == "en":
        check_words(_pieces(text), scenes.vocabulary("en", "canonical"), _LONGEST)
    else:
        _in_english(text)
    return text


def _in_english(text: str) -> str:
    """What CLIP reads of a caption.

    Raises:
        ValueError: it is Chinese, and neither a caption nor what one says there is.
    """
    if _language(text) == "en":
        return text
    for begin in ("", "有", "有一个"):
        try:
            return scenes.translate(begin + text, "zh", "en").removeprefix("there is ")
        except ValueError:
            continue
    raise ValueError(f"the system was trained on captions of shapes and cannot read {text[:40]!r}")


class DescriptionRequest(Request):
    """In which language."""

    language: Annotated[Literal["en", "zh"], Field(description="English or Chinese")] = "en"


class DescriptionReply(Reply):
    """What is seen."""

    caption: str
    probability: Annotated[float, Field(description="that the model gives to this caption")]


class QuestionRequest(Request):
    """What is asked, in English or Chinese."""

    question: Annotated[
        Text,
        AfterValidator(_question),
        Field(description="such as: what colour is the circle?"),
    ]


class AnswerReply(Reply):
    """What the system says."""

    answer: str
    probability: Annotated[float, Field(description="that the model gives to this answer")]


class DrawingRequest(Request):
    """What is to be seen, in English or Chinese."""

    model_config = ConfigDict(strict=True)

    caption: Annotated[
        Text,
        AfterValidator(_caption),
        Field(description="such as: a small red star to the left of a large blue ring"),
    ]
    candidates: Annotated[int, Field(ge=1, le=16, description="of which CLIP's best is given")] = 4
    seed: Annotated[int, Field(ge=0, lt=2**32, description="the same gives the same")] = 0


class TextRequest(SearchRequest):
    """What is looked for, in English or Chinese."""

    query: Annotated[Text, AfterValidator(_caption)]


class _Talk:
    """What caption and question have in common: one turn about a picture."""

    takes_picture, limits = True, Limits()

    def __init__(self, system: System) -> None:
        self.system = system

    @torch.no_grad()
    def _say(self, texts: Sequence[str], jobs: Sequence[Job]) -> list[tuple[str, float]]:
        """What the system says to each text with its picture, and how probable it finds that."""
        recipe = self.system.pictures.recipe
        pictures = torch.cat([preprocess([job.picture], recipe).clamp(0, 1) for job in jobs])
        seen = self.system.pictures.look(pictures)
        asked = [[Turn(text, picture=one)] for text, one in zip(texts, seen, strict=True)]
        said = [reply.text for reply in answers(self.system, asked)]
        whole = [
            self.system.writer.dialogue([*turns, Turn(text)])
            for turns, text in zip(asked, said, strict=True)
        ]
        rows = pad(whole, self.system.known.pad).to(self.system.pictures.device)
        nats, _ = self.system.language.losses(rows)
        each = nats.cpu().split([sum(document.wanted) for document in whole])
        return [
            (text, round(float((-part.sum()).exp()), 4))
            for text, part in zip(said, each, strict=True)
        ]


class SystemCaption(_Talk):
    """Describe a picture, in English or Chinese."""

    name, title = "caption", "Captioning"
    summary = "Describe a picture of coloured shapes in a sentence, in English or Chinese."
    request, reply = DescriptionRequest, DescriptionReply

    def load(self) -> None:
        """Answer once."""
        self.run([Job(DescriptionRequest(), Image.new("RGB", (_SIDE, _SIDE), "white"))])

    def run(self, jobs: Sequence[Job]) -> list[Reply]:
        """A sentence for each picture."""
        texts = [wordings("caption", job.request.language)[0] for job in jobs]
        return [
            DescriptionReply(caption=text, probability=chance)
            for text, chance in self._say(texts, jobs)
        ]


class SystemQuestions(_Talk):
    """Answer questions about a picture, in the language in which they are asked."""

    name, title = "ask", "Question answering"
    summary = "Answer a question about a picture of coloured shapes, in English or Chinese."
    request, reply = QuestionRequest, AnswerReply

    def load(self) -> None:
        """Answer once; it gathers the words that were heard."""
        request = QuestionRequest(question="what shape is there?")
        self.run([Job(request, Image.new("RGB", (_SIDE, _SIDE), "white"))])

    def run(self, jobs: Sequence[Job]) -> list[Reply]:
        """An answer to each question."""
        texts = [job.request.question for job in jobs]
        return [
            AnswerReply(answer=text, probability=chance) for text, chance in self._say(texts, jobs)
        ]


class SystemPainting:
    """Draw what a text in English or Chinese says; CLIP chooses among some drawings."""

    name, title = "paint", "Text to image"
    summary = "Draw a caption of one or two coloured shapes, in English or Chinese."
    request, reply, takes_picture = DrawingRequest, PaintingReply, False
    # As in chapter 15: a request is a batch already, of its candidates.
    limits = Limits(max_batch=1, max_queue=8, timeout=30.0)

    def __init__(self, system: System) -> None:
        self.system = system

    def load(self) -> None:
        """Draw once."""
        self.run([Job(DrawingRequest(caption="a small red star in the centre", candidates=1))])

    def run(self, jobs: Sequence[Job]) -> list[Reply]:
        """A picture for each text, one after the other."""
        return [PaintingReply(image=_png(self._draw(job.request))) for job in jobs]

    def _draw(self, request: DrawingRequest) -> Float[Tensor, "3 height width"]:
        system = self.system
        asked = wordings("draw", _language(request.caption))[0].format(request.caption)
        prompt = system.writer.dialogue([Turn(asked)])
        prompt.words([system.known.marker(Marker.DRAW)])  # it draws, and does not talk about it
        codes = paint(
            system.language,
            system.known,
            [prompt] * request.candidates,
            guidance=system.config.guidance,
            generator=torch.Generator().manual_seed(request.seed),
            temperature=system.config.temperature,
        )
        made = system.pictures.paint(codes)
        return made[system.pictures.find(made, _clip_ids([request.caption]))[0].argmax()]


class SystemSearch:
    """Find the pictures that fit a text in English or Chinese.

    Args:
        system: Its CLIP compares.
        folder: Pictures to search, PNG, JPEG or WebP; by default some scenes, drawn here.
    """

    name, title = "search", "Image search"
    summary = "Find the pictures that fit a caption of coloured shapes, in English or Chinese."
    request, reply, takes_picture = TextRequest, SearchReply, False
    limits = Limits()
    examples = ("a small red star", "a large blue ring", "红色的小星形")

    def __init__(self, system: System, folder: Path | None = None) -> None:
        self.system, self.folder = system, folder

    def load(self) -> None:
        """Compute the vectors of the pictures, and search once.

        Raises:
            ValueError: a folder is given, and there is no picture in it.
        """
        if self.folder is None:
            drawn = scenes.sample(_OWN, 16_003, split="test", objects=(1, 2))
            self._names = [(scenes.caption(one), scenes.caption(one, "zh")) for one in drawn]
            self._images = scenes.render(drawn, _SIDE)
        else:
            found = list(_pictures(self.folder))
            if not found:
                raise ValueError(f"folder must hold PNG, JPEG or WebP pictures: got {self.folder}")
            self._names = [(name, "") for name, _ in found]
            self._images = preprocess([picture for _, picture in found], _RECIPE)
        clip, device = self.system.pictures.clip, self.system.pictures.device
        with torch.no_grad():
            parts = [clip.encode_image(part.to(device)) for part in self._images.split(256)]
        self._vectors = torch.cat(parts)
        self.run([Job(TextRequest(query="a red star"))])

    @torch.no_grad()
    def run(self, jobs: Sequence[Job]) -> list[Reply]:
        """The pictures of each query, the best first."""
        ids = _clip_ids([job.request.query for job in jobs])
        texts = self.system.pictures.clip.encode_text(ids.to(self._vectors.device))
        scores = (texts @ self._vectors.T).cpu()
        replies = []
        for job, row in zip(jobs, scores, strict=True):
            best = row.topk(min(job.request.count, len(row)))
            pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
            replies.append(
                SearchReply(
                    results=[
                        Match(
                            name=self._names[i][0],
                            name_zh=self._names[i][1],
                            score=round(score, 4),
                            image=_png(self._images[i]),
                        )
                        for score, i in pairs
                        if round(score, 4) >= job.request.min_score
                    ]
                )
            )
        return replies


def system_functions(system: System, pictures: Path | None = None) -> dict[str, Function]:
    """The four functions of a system, by name.

    Args:
        system: In evaluation mode.
        pictures: See :class:`SystemSearch`.
    """
    functions = (
        SystemSearch(system, pictures),
        SystemCaption(system),
        SystemQuestions(system),
        SystemPainting(system),
    )
    return {function.name: function for function in functions}


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve a system until a signal comes; gives the exit code.

    Args:
        arguments: By default those of the program.
    """
    options = parser(_PROGRAM, ("search", "caption", "ask", "paint"))
    add = options.add_argument
    add("run", nargs="?", type=Path, metavar="RUN", help="folder of a complete run (default: ours)")
    add("--pictures", type=Path, metavar="FOLDER", help="what is searched (default: some scenes)")
    given = options.parse_args(arguments)

    def make() -> list[Function]:
        system = shipped_system() if given.run is None else load_system(given.run)
        if given.pictures is not None and not given.pictures.is_dir():
            raise NotADirectoryError(f"--pictures must be a folder: got {given.pictures}")
        functions = system_functions(system, given.pictures)
        return [functions[name] for name in given.functions]

    return start(given, _PROGRAM, make)


def _clip_ids(captions: Sequence[str]) -> Any:
    return scene_tokenizer().encode([_in_english(caption) for caption in captions]).ids


def _pictures(folder: Path) -> Any:
    """Names and pictures of a folder; what cannot be decoded is left out, and said so."""
    for path in sorted(folder.iterdir()):
        kind, _ = mimetypes.guess_type(path.name)
        if path.is_file() and kind is not None and kind.startswith("image/"):
            try:
                yield path.stem, decode_picture(path.read_bytes(), kind)
            except Refused as refused:
                print(f"left out {path.name}: {refused.detail}", file=sys.stderr)


def _png(picture: Float[Tensor, "3 height width"]) -> str:
    pixels = (255 * picture.clamp(0, 1)).round().byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return png_url(image.resize((_SHOWN, _SHOWN), Image.Resampling.NEAREST))
