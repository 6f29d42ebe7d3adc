"""An answer to a question about a picture of coloured shapes: chapter 13's reader as a function.

It was trained on questions made from templates, and knows their words and no others. It is good at
shapes, colours, numbers and what is there; where one thing stands beside another, and of which
there are more, it guesses (the chapter says how often).
"""

from collections.abc import Sequence
from typing import Annotated

import torch
from PIL import Image
from pydantic import AfterValidator, Field

from mmlib.data import easy_vqa
from mmlib.encoders.preprocessing import Recipe, preprocess
from mmlib.scene_vqa import SCENE_ANSWERS, VOCABULARY, scene_reader
from mmlib.serving.functions import Job, Limits, Reply, Request, Text, check_words

__all__ = ["QuestionReply", "QuestionRequest", "SceneQuestions"]

_LONGEST = 32  # words of a question, as the reader was made
_RECIPE = Recipe(32, whole=True)


def _known(question: str) -> str:
    check_words(easy_vqa.tokenize(question), VOCABULARY[2:], _LONGEST)
    return question


class QuestionRequest(Request):
    """What is asked."""

    question: Annotated[
        Text,
        AfterValidator(_known),
        Field(description="such as: what colour is the circle?"),
    ]


class QuestionReply(Reply):
    """The likeliest of the answers that it knows."""

    answer: str
    probability: Annotated[float, Field(description="that the model gives to this answer")]


class SceneQuestions:
    """Answer questions about shapes: what they are, what colour, how many, where."""

    name, title = "ask", "Question answering"
    summary = "Answer a question about a picture of coloured shapes."
    request, reply, takes_picture = QuestionRequest, QuestionReply, True
    limits = Limits()

    def load(self) -> None:
        """Load the reader."""
        self._model = scene_reader(trained=True)
        request = QuestionRequest(question="what shape is there?")
        self.run([Job(request, Image.new("RGB", (32, 32), "white"))])

    @torch.no_grad()
    def run(self, jobs: Sequence[Job]) -> list[Reply]:
        """An answer to each question."""
        ids, keep = easy_vqa.encode([job.request.question for job in jobs], VOCABULARY)
        pictures = torch.cat([preprocess([job.picture], _RECIPE) for job in jobs])
        chances, answers = self._model(ids, keep, pictures).logits.softmax(1).max(1)
        return [
            QuestionReply(answer=SCENE_ANSWERS[answer], probability=round(chance, 4))
            for answer, chance in zip(answers.tolist(), chances.tolist(), strict=True)
        ]
