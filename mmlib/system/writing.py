"""What the language model writes and draws, token by token, with a cache.

A turn is words. If the model says the marker "draw" it stops speaking and paints all codes of a
picture; then only the end can follow. Prompts of different length end together: they are filled up
in front (:func:`~mmlib.system.sequence.pad`), and nobody sees what fills them up.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor, nn

from mmlib.sampling import draw, guide
from mmlib.system.model import MultimodalLM
from mmlib.system.sequence import CODE, WORD, Document, Rows, pad
from mmlib.system.words import Marker, Words

__all__ = ["Reply", "paint", "reply", "write"]


class Reply(NamedTuple):
    """An answer.

    Attributes:
        text: What is said, the empty text where something is drawn at once.
        codes: What is drawn, or None.
    """

    text: str
    codes: Int[Tensor, "rows columns"] | None


@torch.no_grad()
def write(
    model: MultimodalLM,
    known: Words,
    prompts: Sequence[Document],
    *,
    most: int = 32,
    generator: torch.Generator | None = None,
    temperature: float | int = 0.0,
    top_p: float | int = 1.0,
    use_cache: bool = True,
) -> list[list[int]]:
    """Words after each prompt, up to the end token or the marker "draw", which is the last then.

    Args:
        model: Its mode is put back.
        known: The words.
        prompts: What is there already.
        most: Most words that are written.
        generator: What is drawn from.
        temperature: See :func:`mmlib.sampling.draw`; at 0 the most probable word is taken.
        top_p: See :func:`mmlib.sampling.filter_logits`.
        use_cache: False runs the model over everything at each step, which gives the same and
            takes longer: it is here to be compared with.

    Raises:
        ValueError: no prompts, ``most`` is below 1 or leaves the places that the model knows, or
            a number is out of its range.
    """
    said = max((prompt.kinds.count(WORD) for prompt in prompts), default=0)
    room = model.config.length - said
    if not 1 <= most <= max(room, 0):
        raise ValueError(
            f"most must be from 1 to {room}, the places after prompts of {said} words: got {most}"
        )
    stops = (known.end, known.marker(Marker.DRAW))
    texts: list[list[int]] = [[] for _ in prompts]
    done = torch.zeros(len(prompts), dtype=torch.bool)
    with _going_on(model, known, prompts, use_cache) as going:
        while not bool(done.all()) and len(max(texts, key=len)) < most:
            logits = model.tell(going.known).float()
            new = draw(logits, generator, temperature=temperature, top_p=top_p).cpu()
            for row, (token, over) in enumerate(zip(new.tolist(), done.tolist(), strict=True)):
                if not over and token != known.end:
                    texts[row].append(token)
            done = done | torch.isin(new, torch.tensor(stops))
            # A text that is over stays where it is: its last place would soon not exist.
            going.add(WORD, new, ~done)
    return texts


@torch.no_grad()
def paint(
    model: MultimodalLM,
    known: Words,
    prompts: Sequence[Document],
    *,
    guidance: float | int = 1.0,
    generator: torch.Generator | None = None,
    temperature: float | int = 1.0,
    top_p: float | int = 1.0,
    use_cache: bool = True,
) -> Int[Tensor, "prompts rows columns"]:
    """Codes after prompts that end with the marker "draw".

    Args:
        model: Its mode is put back.
        known: The words.
        prompts: What is to be drawn.
        guidance: See :func:`mmlib.sampling.guide`; without a condition is a document that begins
            with the marker. Any but 1 costs twice the time.
        generator: What is drawn from.
        temperature: See :func:`mmlib.sampling.draw`.
        top_p: See :func:`mmlib.sampling.filter_logits`.
        use_cache: As in :func:`write`.

    Raises:
        ValueError: a prompt ends otherwise, or a number is out of its range.
    """
    marker, config = known.marker(Marker.DRAW), model.config
    if not math.isfinite(guidance):
        raise ValueError(f"guidance must be finite: got {guidance}")
    if any(
        not prompt.ids or (prompt.kinds[-1], prompt.ids[-1]) != (WORD, marker) for prompt in prompts
    ):
        raise ValueError("prompts must end with the marker 'draw'")
    count, guided = len(prompts), guidance != 1
    nothing = Document().words([known.begin, marker])
    everyone = [*prompts, *([nothing] * count if guided else [])]
    codes = torch.zeros(count, 0, dtype=torch.long)
    with _going_on(model, known, everyone, use_cache) as going:
        for _ in range(config.places):
            logits = model.paint(going.known).float()
            if guided:
                logits = guide(logits[:count], logits[count:], guidance)
            new = draw(logits, generator, temperature=temperature, top_p=top_p).cpu()
            codes = torch.cat([codes, new[:, None]], dim=1)
            if codes.shape[1] < config.places:
                going.add(CODE, new.repeat(2) if guided else new)
    return codes.unflatten(1, (config.code_side, config.code_side))


def reply(
    model: MultimodalLM,
    known: Words,
    prompts: Sequence[Document],
    *,
    most: int = 32,
    generator: torch.Generator | None = None,
    guidance: float | int = 1.5,
    temperature: float | int = 0.5,
    candidates: int = 1,
    choose: Callable[[int, Int[Tensor, "candidates rows columns"]], int] | None = None,
) -> list[Reply]:
    """Let the model speak, and draw where it says that it will.

    Words are the most probable ones; codes are drawn.

    Args:
        model: Its mode is put back.
        known: The words.
        prompts: Dialogues that end with the marker "assistant".
        most: As in :func:`write`.
        generator: As in :func:`paint`.
        guidance: As in :func:`paint`.
        temperature: As in :func:`paint`.
        candidates: How many pictures are drawn for each that is shown.
        choose: Which of them is shown: a function of the prompt's number and of the candidates'
            codes. By default the first.

    Raises:
        ValueError: see :func:`write` and :func:`paint`; or ``candidates`` is below 1.
    """
    if candidates < 1:
        raise ValueError(f"candidates must be at least 1: got {candidates}")
    marker = known.marker(Marker.DRAW)
    said = write(model, known, prompts, most=most)
    drawing = [row for row, text in enumerate(said) if text[-1:] == [marker]]
    pictures: dict[int, Tensor] = {}
    if drawing:
        asked = [prompts[row].copy().words(said[row]) for row in drawing for _ in range(candidates)]
        codes = paint(
            model, known, asked, guidance=guidance, generator=generator, temperature=temperature
        )
        for row, grids in zip(drawing, codes.split(candidates), strict=True):
            pictures[row] = grids[0 if choose is None else choose(row, grids)]
    return [Reply(known.decode(text), pictures.get(row)) for row, text in enumerate(said)]


class _Going:
    """Documents that grow by one token each at a time, and what is known after the last."""

    def __init__(
        self, model: MultimodalLM, known: Words, prompts: Sequence[Document], use_cache: bool
    ) -> None:
        config = model.config
        self.model = model
        shape = (config.regions, config.feature_dim)
        self.rows = self._moved(pad(prompts, known.pad, left=True, shape=shape))
        self.cache = model.decoder.new_cache() if use_cache else None
        said = [prompt.kinds.count(WORD) for prompt in prompts]
        self.next = {WORD: torch.tensor(said), CODE: torch.zeros(len(prompts), dtype=torch.long)}
        self.known = model(self.rows, self.cache)[:, -1]

    def add(self, kind: int, ids: Tensor, move: Tensor | None = None) -> None:
        """Add a token to each document; ``move`` says whose next place is the one after it."""
        old, count = self.rows, len(ids)
        places = self.next[kind].clone()
        self.next[kind] += 1 if move is None else move.long()
        new = self._moved(
            Rows(
                torch.full((count, 1), kind),
                ids[:, None],
                places[:, None],
                torch.zeros(count, 1, dtype=torch.bool),
                torch.arange(count)[:, None],
                old.features[:0],
                *(old.from_words[:0],) * 4,
            )
        )
        whole = [torch.cat([a, b], dim=1) for a, b in zip(old[:5], new[:5], strict=True)]
        self.rows = old._replace(**dict(zip(Rows._fields[:5], whole, strict=True)))
        given = self.rows if self.cache is None else new._replace(document=whole[4])
        self.known = self.model(given, self.cache)[:, -1]

    def _moved(self, rows: Rows) -> Rows:
        return rows.to(next(self.model.parameters()).device)


@contextmanager
def _going_on(
    model: MultimodalLM, known: Words, prompts: Sequence[Document], use_cache: bool
) -> Iterator[_Going]:
    training = model.training
    nn.Module.eval(model)
    try:
        yield _Going(model, known, prompts, use_cache)
    finally:
        model.train(training)
