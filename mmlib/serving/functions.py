"""What a function of the service is: a name, a typed request, a typed reply, and a batch of work.

Whoever follows :class:`Function` gets a route, a place in the OpenAPI page, a queue, metrics and
limits from :mod:`mmlib.serving.app`; it knows nothing of HTTP.
"""

import base64
import io
import unicodedata
from collections.abc import Sequence
from typing import Annotated, NamedTuple, Protocol, runtime_checkable

from PIL import Image
from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints

__all__ = ["Function", "Job", "Reply", "Request", "Text", "png_url"]


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
    """

    name: str
    title: str
    summary: str
    request: type[Request]
    reply: type[Reply]
    takes_picture: bool

    def load(self) -> None:
        """Bring the weights, and answer one request, so that the first user does not wait."""
        ...

    def run(self, jobs: Sequence[Job]) -> list[Reply]:
        """Answer jobs, one reply each in their order. A batch or one by one: the same answers."""
        ...


def png_url(picture: Image.Image) -> str:
    """A picture as a ``data:`` address, which a browser shows and JSON carries.

    >>> png_url(Image.new("L", (1, 1)))[:32]
    'data:image/png;base64,iVBORw0KGg'
    """
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
