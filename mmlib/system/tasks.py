"""What the language model learns, as documents: looking and drawing, then requests and dialogues.

Stage 3, everything is told::

    begin <picture> R...R <english> a small red star on the left end       (a caption)
    begin <chinese> 在左边有一个红色的小星形 <draw> C...C end                  (a picture)

Stage 4, what the assistant says is told, and nothing else::

    begin <user> what colour is the star? <picture> R...R end <assistant> red end
          <user> please draw a small red star end <assistant> <draw> C...C end

:class:`Writer` writes a document; :mod:`mmlib.system.lessons` draws what they are about.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from mmlib.data.scenes.world import choice
from mmlib.system.sequence import Document
from mmlib.system.words import Marker, Words

__all__ = ["LANGUAGES", "Turn", "Writer"]

LANGUAGES = {"en": Marker.ENGLISH, "zh": Marker.CHINESE}


class Turn:
    """What one side of a dialogue says.

    Attributes:
        text: The words; empty where there are none.
        picture: Features of a picture that is shown with it, behind the words, or None.
        codes: Codes of a picture that is drawn, or None.
        hidden: Which of them the later ones do not see, or None.
    """

    def __init__(
        self,
        text: str = "",
        *,
        picture: Float[Tensor, "regions feature_dim"] | None = None,
        codes: Sequence[int] | None = None,
        hidden: Sequence[bool] | None = None,
    ) -> None:
        self.text, self.picture, self.codes, self.hidden = text, picture, codes, hidden


class Writer:
    """Writes documents in the system's words.

    Args:
        known: The words.
    """

    def __init__(self, known: Words) -> None:
        self.known = known

    def caption(
        self, picture: Float[Tensor, "regions feature_dim"], text: str | None, language: str
    ) -> Document:
        """A picture and what it shows; without a text, the prompt for one.

        Raises:
            ValueError: an unknown language.
        """
        choice("language", language, tuple(LANGUAGES))
        document = self._picture(Document().words([self.known.begin]), picture)
        document.words([self._marker(LANGUAGES[language])])
        if text is not None:
            document.words([*self.known.encode(text), self.known.end], wanted=True)
        return document

    def drawing(
        self,
        text: str | None,
        language: str,
        codes: Sequence[int] | None,
        hidden: Sequence[bool] | None = None,
    ) -> Document:
        """A text and its picture; without codes the prompt for one, without a text no condition.

        Raises:
            ValueError: an unknown language.
        """
        choice("language", language, tuple(LANGUAGES))
        document, told = Document().words([self.known.begin]), codes is not None
        if text is not None:
            document.words([self._marker(LANGUAGES[language])])
            document.words(self.known.encode(text))
        document.words([self._marker(Marker.DRAW)], wanted=told and text is not None)
        if codes is not None:
            document.codes(codes, hidden=hidden).words([self.known.end], wanted=True)
        return document

    def dialogue(self, turns: Sequence[Turn]) -> Document:
        """A person and the assistant in turn, the person first.

        A dialogue that ends with the person is a prompt: the marker "assistant" is put behind.

        Raises:
            ValueError: there are no turns.
        """
        if not turns:
            raise ValueError("turns must not be empty")
        document = Document().words([self.known.begin])
        for number, turn in enumerate(turns):
            answers = number % 2 == 1
            document.words([self._marker(Marker.ASSISTANT if answers else Marker.USER)])
            if turn.text:
                document.words(self.known.encode(turn.text), wanted=answers)
            # Behind the words, so that every region can be looked at with the question in mind.
            if turn.picture is not None:
                self._picture(document, turn.picture)
            if turn.codes is not None:
                document.words([self._marker(Marker.DRAW)], wanted=answers)
                document.codes(turn.codes, wanted=answers, hidden=turn.hidden)
            document.words([self.known.end], wanted=answers)
        if len(turns) % 2:
            document.words([self._marker(Marker.ASSISTANT)])
        return document

    def _picture(
        self, document: Document, picture: Float[Tensor, "regions feature_dim"]
    ) -> Document:
        return document.words([self._marker(Marker.PICTURE)]).regions(picture)

    def _marker(self, marker: Marker) -> int:
        return self.known.marker(marker)
