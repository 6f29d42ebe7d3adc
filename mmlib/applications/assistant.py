r"""A help desk that answers from a knowledge base, or says that it does not know (智能客服).

A question is words and perhaps a picture. Two things must be understood, and then the article is
one look into a table:

.. math::
    \hat j = \arg\max_j\, p(j \mid \text{words}), \qquad
    \hat i = \arg\max_i \begin{cases}
        \cos(v_{\text{picture}}, v_i) & \text{with a picture} \\
        \cos(v_{\text{words}}, t_i) & \text{without} \end{cases}

the **intent** (意图) by a linear classifier on the sentence vector, the **thing** by the nearest
vector: :math:`v_i` of the shop's own picture and name in the space of chapter 07's two towers,
:math:`t_i` of its articles' titles. No article was trained on, so that a shop can change what it
sells and what it says without any training.

**When to be silent.** A softmax over the things always names one, also for a thing that is not
sold. So a third model, a logistic regression, says from the certainty of the intent, the best
cosine and its lead over the second whether the answer will be right. It learns from answers to
questions about *other* things, right and wrong ones.
"""

import json
import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mmlib.data import emoji
from mmlib.data.dialogues import INTENTS, Questions, Shop
from mmlib.encoders.preprocessing import preprocess
from mmlib.encoders.text import embed_texts
from mmlib.encoders.tokenizers import wordpiece_tokenizer
from mmlib.matching import MatchingModel
from mmlib.picture_search import RECIPE, matching_model
from mmlib.zero_shot import linear_probe

__all__ = ["UNKNOWN", "Answers", "Assistant", "Dialogue", "Reply"]

UNKNOWN = "I do not know. A colleague will answer you."
"""What is said when no article is near enough."""

_OTHER = len(INTENTS)  # the class of questions that no article is about
_PRONOUN = re.compile(r"\b(it|they|them)\b")


class Answers(NamedTuple):
    """What an assistant would answer to each question.

    Attributes:
        articles: Number of the article.
        confidence: Estimated probability that it is the right one.
        intents: An index into :data:`mmlib.data.dialogues.INTENTS`.
        things: An index into the shop's things.
    """

    articles: Int64[Tensor, " questions"]
    confidence: Float[Tensor, " questions"]
    intents: Int64[Tensor, " questions"]
    things: Int64[Tensor, " questions"]


class Assistant:
    """The help desk of one shop.

    Args:
        shop: What is sold, and the knowledge base.
        model: Two towers; chapter 07's by default.
        weights: How much the shop's picture of a thing counts, and its name, beside a customer's
            picture.

    Attributes:
        shop: As given.

    Raises:
        mmlib.download.SourceUnavailable: The published weights are not to be had.
    """

    def __init__(
        self,
        shop: Shop,
        model: MatchingModel | None = None,
        weights: tuple[float, float] = (0.6, 0.4),
    ) -> None:
        self.shop, self._weights = shop, weights
        self._model = matching_model() if model is None else model
        self._tokenizer = wordpiece_tokenizer()
        self._intent: nn.Linear | None = None
        self._sure: nn.Linear | None = None
        shown = self.picture_vectors(emoji.load("all", 128).images[shop.emoji])
        with torch.no_grad():
            ids, keep = self._tokenizer.encode(list(shop.names), 64, truncate=True)
            named = self._model.encode_texts(ids, keep)
        self._seen = F.normalize(weights[0] * shown + weights[1] * named, dim=1)
        titles = self._sentences(shop.titles).reshape(len(shop), len(INTENTS), -1)
        self._titled = F.normalize(titles.mean(1), dim=1)

    def with_shop(self, shop: Shop) -> "Assistant":
        """An assistant for another shop, with what this one has learned."""
        other = Assistant(shop, self._model, self._weights)
        other._intent, other._sure = self._intent, self._sure
        return other

    @torch.no_grad()
    def picture_vectors(self, images: Tensor, chunk: int = 32) -> Float[Tensor, "images dim"]:
        """Pictures in the space of the shop's things.

        Args:
            images: uint8, shape (images, 3, height, width).
            chunk: How many are encoded at once.
        """
        return torch.cat(
            [
                self._model.encode_images(preprocess(part.float() / 255, RECIPE))
                for part in images.split(chunk)
            ]
        )

    def fit(
        self,
        questions: Questions,
        drawings: Float[Tensor, "drawings dim"],
        *,
        penalty: float = 1.0,
    ) -> "Assistant":
        """Learn intents from one half of the questions, and when to be silent from the other.

        Args:
            questions: To this shop, with their answer key.
            drawings: Vectors of all drawings, which ``questions.pictures`` counts.
            penalty: Of the two logistic regressions.

        Raises:
            ValueError: fewer than 20 questions.
        """
        if len(questions) < 20:
            raise ValueError(f"questions must be at least 20: got {len(questions)}")
        vectors, half = self._sentences(questions.texts), torch.arange(len(questions)) % 2 == 0
        labels = torch.where(questions.intents < 0, _OTHER, questions.intents)
        self._intent = linear_probe(
            vectors[half], labels[half], _OTHER + 1, penalty=penalty, steps=200
        )
        articles, evidence, *_ = self._read(questions.texts, vectors, questions.pictures, drawings)
        right = (articles == questions.articles).long()
        self._sure = linear_probe(evidence[~half], right[~half], 2, penalty=penalty, steps=200)
        return self

    def answers(
        self,
        texts: Sequence[str],
        pictures: Int64[Tensor, " questions"] | None = None,
        drawings: Float[Tensor, "drawings dim"] | None = None,
    ) -> Answers:
        """Find the article of each question, and say how sure that is.

        Args:
            texts: What the customers wrote.
            pictures: For each, a row of ``drawings``, or -1 for no picture; none by default.
            drawings: Vectors of pictures (:meth:`picture_vectors`).

        Raises:
            RuntimeError: :meth:`fit` was not called.
            ValueError: no texts, or pictures that do not fit.
        """
        if self._intent is None or self._sure is None:
            raise RuntimeError("fit the assistant before it answers")
        if isinstance(texts, str) or not len(texts):
            raise ValueError(f"texts must be sentences, at least one: got {texts!r}")
        if pictures is None:
            pictures = torch.full((len(texts),), -1)
        if pictures.shape != (len(texts),):
            raise ValueError(
                f"pictures must have shape ({len(texts)},): got {tuple(pictures.shape)}"
            )
        if int(pictures.max()) >= (0 if drawings is None else len(drawings)):
            raise ValueError(f"pictures must be rows of drawings: got {int(pictures.max())}")
        vectors = self._sentences(texts)
        articles, evidence, intents, things = self._read(texts, vectors, pictures, drawings)
        with torch.no_grad():
            confidence = self._sure(evidence).softmax(1)[:, 1]
        return Answers(articles, confidence, intents, things)

    @torch.no_grad()
    def intent_certainty(self, texts: Sequence[str]) -> Float[Tensor, " questions"]:
        """Probability of the likeliest intent of each text."""
        return self._intent(self._sentences(texts)).softmax(1)[:, :_OTHER].amax(1)

    @torch.no_grad()
    def _read(
        self, texts: Sequence[str], vectors: Tensor, pictures: Tensor, drawings: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Articles, what tells whether they are right, intents and things."""
        chance = self._intent(vectors).softmax(1)
        sure, intents = chance[:, :_OTHER].max(1)
        score = vectors @ self._titled.T
        shown = pictures >= 0
        if shown.any():
            score[shown] = drawings[pictures[shown]] @ self._seen.T
        best, places = score.topk(2, dim=1)
        lead = best[:, 0] - best[:, 1]
        own = shown.float()
        # Cosines of words and of pictures have other scales: each kind has weights of its own.
        measures = torch.stack(
            [sure.clamp(min=1e-6).log(), best[:, 0], lead, torch.ones_like(own)], 1
        )
        evidence = torch.cat([measures * own[:, None], measures * (1 - own)[:, None]], 1)
        return len(INTENTS) * places[:, 0] + intents, evidence, intents, places[:, 0]

    def _sentences(self, texts: Sequence[str]) -> Tensor:
        return embed_texts(
            self._model.text, self._tokenizer, list(texts), max_length=64, truncate=True
        )


class Reply(NamedTuple):
    """One turn of a dialogue.

    Attributes:
        text: What the customer reads.
        article: The article, or -1 for :data:`UNKNOWN`.
        confidence: Of the article that was found, said or not.
    """

    text: str
    article: int
    confidence: float


class Dialogue:
    """A talk with one customer: it remembers the thing that was spoken of, and keeps a log.

    A question that says "it" and shows no picture is about the thing of the turn before.

    Args:
        assistant: Fitted.
        threshold: Answers with less confidence are not given.

    Attributes:
        log: One dictionary a turn: what came in, what was found and what was said.

    Raises:
        ValueError: ``threshold`` is not in [0, 1].
    """

    def __init__(self, assistant: Assistant, threshold: float = 0.5) -> None:
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must be from 0 to 1: got {threshold}")
        self.assistant, self.threshold = assistant, threshold
        self.log: list[dict] = []
        self._thing: int | None = None

    def ask(self, text: str, picture: Tensor | None = None) -> Reply:
        """Answer one question.

        Args:
            text: What the customer wrote.
            picture: uint8, shape (3, height, width); none by default.

        Raises:
            TypeError: ``text`` is no string.
            ValueError: ``text`` is empty.
        """
        if not isinstance(text, str):
            raise TypeError(f"text must be a string: got {type(text).__name__}")
        if not text.strip():
            raise ValueError("text must not be empty")
        drawings = None if picture is None else self.assistant.picture_vectors(picture[None])
        place = torch.tensor([-1 if picture is None else 0])
        found = self.assistant.answers([text], place, drawings)
        thing, sure = int(found.things), float(found.confidence)
        meant = picture is None and self._thing is not None and bool(_PRONOUN.search(text.lower()))
        if meant:
            # The thing is known from the turn before: only the intent can be wrong.
            thing = self._thing
            sure = float(self.assistant.intent_certainty([text]))
        article = len(INTENTS) * thing + int(found.intents)
        known = sure >= self.threshold
        if known:
            self._thing = thing
        reply = Reply(
            self.assistant.shop.articles[article] if known else UNKNOWN,
            article if known else -1,
            sure,
        )
        self.log.append(
            {
                "turn": len(self.log) + 1,
                "question": text,
                "picture": picture is not None,
                "intent": INTENTS[int(found.intents)],
                "thing": self.assistant.shop.names[thing],
                "from_memory": meant,
                "confidence": round(sure, 3),
                "reply": reply.text,
            }
        )
        return reply

    def log_lines(self) -> str:
        """The log as JSON, one turn a line."""
        return "\n".join(json.dumps(turn, ensure_ascii=False) for turn in self.log)
