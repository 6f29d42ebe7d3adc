"""What a function of the service is: a name, a typed request, a typed reply, and a batch of work.

Whoever follows :class:`Function` gets a route, a place in the OpenAPI page, a queue, metrics and
limits from :mod:`mmlib.serving.app`; it knows nothing of HTTP.
"""

import base64
import io
import unicodedata
from collections.abc import Collection, Sequence
from typing import Annotated, NamedTuple, Protocol, runtime_checkable

from PIL import Image
from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints

__all__ = ["Function", "Job", "Limits", "Reply", "Request", "Text", "check_words", "png_url"]


class Request(BaseModel):
    """The base of every request: unknown fields, NaN and infinity are refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


class Reply(BaseModel):
    """The base of every reply."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


def _printable(text: str) -> str:
    for character in text:
        kind = unicodedata.category(character)
        # Cs: half of a pair, which JSON can write as \ud800 and UTF-8 cannot.
        if kind in ("Cc", "Cs"):
            raise ValueError(f"U+{ord(character):04X} is not allowed: no control characters")
    return text


#: What a user writes: 1 to 300 characters, without control characters.
Text = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=300),
    AfterValidator(_printable),
]


class Job(NamedTuple):
    """One request as a function sees it: checked, its picture decoded.

    Attributes:
        request: Of the function's own type.
        picture: RGB, where the function takes one.
    """

    request: Request
    picture: Image.Image | None = None


class Limits(NamedTuple):
    """What a function needs otherwise than :class:`~mmlib.serving.settings.Settings` has it.

    Attributes:
        max_batch: In place of the setting of that name, where it is not None.
        max_queue: Likewise.
        timeout: Likewise, in seconds.
    """

    max_batch: int | None = None
    max_queue: int | None = None
    timeout: float | None = None


@runtime_checkable
class Function(Protocol):
    """What the service needs of a function.

    Attributes:
        name: In the address, ``/v1/NAME``.
        title: On the page.
        summary: One sentence for the OpenAPI page.
        request: Type of the fields that come with a request.
        reply: Type of an answer.
        takes_picture: Whether a picture comes with the request; then it is a form, else JSON.
        limits: Of a function that is slower than others, or cannot work in batches.
    """

    name: str
    title: str
    summary: str
    request: type[Request]
    reply: type[Reply]
    takes_picture: bool
    limits: Limits

    def load(self) -> None:
        """Bring the weights, and answer one request, so that the first user does not wait."""
        ...

    def run(self, jobs: Sequence[Job]) -> list[Reply]:
        """Answer jobs, one reply each in their order. A batch or one by one: the same answers."""
        ...


def check_words(words: Sequence[str], known: Collection[str], most: int) -> None:
    """Refuse a sentence with words that a model never saw: it would answer, and mean nothing.

    Args:
        words: Of the sentence.
        known: All that the model was trained on.
        most: How many it reads.

    Raises:
        ValueError: There is no word, one that is not known, or one too many.

    >>> check_words(["a", "red", "star"], {"a", "red", "star"}, 16)
    >>> check_words(["a", "cat"], {"a", "red", "star"}, 16)
    Traceback (most recent call last):
    ValueError: the model was trained on shapes and never saw the word 'cat'
    """
    if not words:
        raise ValueError("there is no word in it")
    if len(words) > most:
        raise ValueError(f"at most {most} words and marks are read: got {len(words)}")
    for word in words:
        if word not in known:
            raise ValueError(
                f"the model was trained on shapes and never saw the word {word[:40]!r}"
            )


def png_url(picture: Image.Image) -> str:
    """A picture as a ``data:`` address, which a browser shows and JSON carries.

    >>> png_url(Image.new("L", (1, 1)))[:32]
    'data:image/png;base64,iVBORw0KGg'
    """
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
