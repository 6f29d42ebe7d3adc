r"""How long each word takes to say, and words stretched to it: chapter 12.

The times of the words that are learned from are known
(:class:`mmlib.data.speech.Utterance`), so nothing has to be aligned: each token of the text is
given the frames from its own start to the next one's, as in FastSpeech, whose durations come from
an aligner.

References:
    Ren et al., *FastSpeech: Fast, Robust and Controllable Text to Speech*, NeurIPS 2019.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mmlib.data.speech import Span

__all__ = ["regulate", "word_starts", "word_steps"]


def word_starts(text: str, spans: Sequence[Span]) -> list[float]:
    """When each written word begins, in seconds.

    A span may hold two words ("in the"): its time is divided by their letters.

    Args:
        text: What was said: words between spaces.
        spans: What was measured, in order.

    Raises:
        ValueError: the spans do not spell the text.

    >>> word_starts("in the sky", [Span("in the", 0.0, 0.5), Span("sky", 0.5, 1.0)])
    [0.0, 0.2, 0.5]
    """
    said = [(word, span) for span in spans for word in span.text.split()]
    if [_plain(word) for word in text.split()] != [_plain(word) for word, _ in said]:
        raise ValueError(f"spans must spell {text!r}: got {[span.text for span in spans]}")
    starts = []
    for span in spans:
        words = span.text.split()
        letters = sum(map(len, words))
        before = 0
        for word in words:
            starts.append(span.start + (span.end - span.start) * before / letters)
            before += len(word)
    return starts


def _plain(word: str) -> str:
    return "".join(letter for letter in word.lower() if letter.isalnum())


def word_steps(
    text: str, spans: Sequence[Span], frames: int, step: int, hop: float = 0.01
) -> list[int]:
    r"""How many steps of the decoder each token takes to say.

    The tokens are the begin token, the words and the end token: the begin token has the silence
    before the first word, each word what lies between its start and the next one's, and the end
    token nothing, since the last word lasts until the sound ends.

    Args:
        text: What was said.
        spans: The times of its words.
        frames: Log-mel frames of the whole.
        step: Frames that one step speaks.
        hop: Seconds from one frame to the next.

    Returns:
        Steps of each token; their sum is :math:`\lceil \text{frames} / \text{step} \rceil`.

    Raises:
        ValueError: as :func:`word_starts`, or a number below 1.

    >>> word_steps("a star", [Span("a", 0.02, 0.1), Span("star", 0.1, 0.5)], 60, 4)
    [0, 2, 13, 0]
    """
    if min(frames, step) < 1 or not hop > 0.0:
        raise ValueError(f"frames, step and hop must be above 0: got {frames}, {step} and {hop}")
    total = -(-frames // step)
    edges = [round(start / (hop * step)) for start in word_starts(text, spans)]
    edges = [0, *(min(edge, total) for edge in edges), total]
    return [after - before for before, after in zip(edges, edges[1:], strict=False)] + [0]


def regulate(
    durations: Int[Tensor, "batch tokens"],
) -> tuple[
    Int[Tensor, "batch steps"],
    Int[Tensor, "batch steps"],
    Int[Tensor, "batch steps"],
    Bool[Tensor, "batch steps"],
]:
    """Spread tokens over time: FastSpeech's length regulator, as indices.

    Args:
        durations: Steps of each token, at least 0.

    Returns:
        Of each step: its token, the token's steps before it, those after it, and whether the step
        exists; where it does not, the numbers are 0.

    >>> [x.tolist() for x in regulate(torch.tensor([[2, 0, 3]]))[:3]]
    [[[0, 0, 2, 2, 2]], [[0, 1, 0, 1, 2]], [[1, 0, 2, 1, 0]]]
    """
    ends = durations.cumsum(1)
    steps = torch.arange(int(ends[:, -1].max()), device=durations.device)
    keep = steps < ends[:, -1:]
    owner = torch.searchsorted(ends, steps.expand(len(ends), -1).contiguous(), right=True)
    owner = owner.masked_fill(~keep, 0)
    end = ends.gather(1, owner)
    since = steps - (end - durations.gather(1, owner))
    until = end - 1 - steps
    return owner, since.masked_fill(~keep, 0), until.masked_fill(~keep, 0), keep
