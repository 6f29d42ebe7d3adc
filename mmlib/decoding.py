r"""Generating token by token: greedy and beam search: chapter 02.

Both drive anything that follows :class:`NextToken`: a Transformer with or without a cache
(:class:`TransformerDecoding`), or later a recurrent network.

References:
    Graves, *Sequence Transduction with Recurrent Neural Networks*, 2012 (beam search). Wu et al.,
    *Google's Neural Machine Translation System*, 2016 (length penalty, equation 14).
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmlib.transformer import EncoderDecoder

__all__ = ["Hypotheses", "NextToken", "TransformerDecoding", "beam_search", "greedy"]


@runtime_checkable
class NextToken(Protocol):
    """What the search needs of a model: rows of unfinished sequences that grow in step."""

    @property
    def rows(self) -> int:
        """Number of sequences that are being written."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the tokens are wanted."""
        ...

    def __call__(self, tokens: Int[Tensor, " rows"]) -> Float[Tensor, "rows vocab"]:
        """Take one more token for each row and return the logits of the token after it."""
        ...

    def select(self, rows: Int[Tensor, " new_rows"]) -> None:
        """Keep these rows, in this order; a row may be taken more than once."""
        ...


class TransformerDecoding:
    """An :class:`~mmlib.transformer.EncoderDecoder` at work on one batch of sources.

    Args:
        model: The model; put it into ``eval()`` first if it has dropout.
        source: Source tokens.
        source_keep: Which of them exist.
        use_cache: True projects each new token once. False runs the decoder over the whole prefix
            at every step, which gives the same and takes longer: it is here to be compared with.
    """

    def __init__(
        self,
        model: EncoderDecoder,
        source: Int[Tensor, "batch source_length"],
        source_keep: Bool[Tensor, "batch source_length"] | None = None,
        use_cache: bool = True,
    ) -> None:
        self.model, self.source_keep = model, source_keep
        with torch.no_grad():
            self.memory, _ = model.encode(source, source_keep)
        self.cache = model.decoder.new_cache() if use_cache else None
        self.prefix: Tensor | None = None

    @property
    def rows(self) -> int:
        """Number of sequences that are being written."""
        return self.memory.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.memory.device

    @torch.no_grad()
    def __call__(self, tokens: Int[Tensor, " rows"]) -> Float[Tensor, "rows target_vocab"]:
        """Take one more token for each row and return the logits of the token after it."""
        new = tokens[:, None]
        if self.cache is None:
            self.prefix = new if self.prefix is None else torch.cat([self.prefix, new], dim=1)
            new = self.prefix
        logits, _ = self.model.decode(new, self.memory, self.source_keep, cache=self.cache)
        return logits[:, -1]

    def select(self, rows: Int[Tensor, " new_rows"]) -> None:
        """Keep these rows, in this order."""
        self.memory = self.memory[rows]
        if self.source_keep is not None:
            self.source_keep = self.source_keep[rows]
        if self.prefix is not None:
            self.prefix = self.prefix[rows]
        for layer in self.cache or ():
            layer.select(rows)


@dataclass(frozen=True)
class Hypotheses:
    r"""The sequences that a search returns, best first.

    Attributes:
        tokens: Ids ``(batch, beams, length)``, without the begin token. The end token closes a
            finished sequence and fills the rest of its row.
        lengths: Tokens of each, with the end token.
        finished: Whether the end token came before ``max_length`` cut the sequence off.
        log_probs: :math:`\log p(y \mid x)` in nats, summed over ``lengths`` tokens. It is -inf
            where there were fewer possible sequences than beams.
        scores: ``log_probs`` after the length penalty: what the order follows.
    """

    tokens: Int[Tensor, "batch beams length"]
    lengths: Int[Tensor, "batch beams"]
    finished: Bool[Tensor, "batch beams"]
    log_probs: Float[Tensor, "batch beams"]
    scores: Float[Tensor, "batch beams"]

    def best(self) -> list[list[int]]:
        """The best sequence of each row as a list of ids, without the end token."""
        count = (self.lengths - self.finished.int())[:, 0].tolist()
        rows = self.tokens[:, 0].tolist()
        return [row[:n] for row, n in zip(rows, count, strict=True)]


def greedy(
    step: NextToken, *, begin: int, end: int, max_length: int, min_length: int = 0
) -> Hypotheses:
    r"""Take the most probable token at every step.

    .. math::

        y_t = \arg\max_v\; p(v \mid y_{<t}, x)

    Args:
        step: The model at work on a batch; it is used up.
        begin: Id that starts every sequence.
        end: Id that ends one. A row that has ended waits for the others.
        max_length: Most tokens of a sequence, the end token counted.
        min_length: Fewest tokens, the end token not counted. Until then the end token is
            forbidden; the probabilities of the others are not scaled up for it.

    Returns:
        One hypothesis a row.

    Raises:
        ValueError: a number out of its range, or a model that gives NaN.
    """
    _check_limits(begin, end, max_length, min_length)
    last, finished, log_prob, lengths = _begin(step, begin)
    tokens = []
    while len(tokens) < max_length and not finished.all():
        log_probs = _next_log_probs(step, last, finished, end, len(tokens) < min_length)
        best, last = log_probs.max(dim=-1)
        log_prob, lengths = log_prob + best, lengths + ~finished
        finished = finished | (last == end)
        tokens.append(last)
    sequences = torch.stack(tokens, dim=-1)
    parts = sequences, lengths, finished, log_prob, log_prob
    return Hypotheses(*(part[:, None] for part in parts))


def beam_search(
    step: NextToken,
    *,
    begin: int,
    end: int,
    beams: int,
    max_length: int,
    min_length: int = 0,
    length_penalty: float = 0.0,
) -> Hypotheses:
    r"""Keep the best few sequences at every step, finished or not.

    .. math::

        s(y) = \frac{\log p(y \mid x)}{\big((5 + |y|) / 6\big)^{\alpha}}

    where :math:`|y|` counts the end token and :math:`\alpha` is ``length_penalty``. Without it
    a longer sequence can only lose, since each token costs probability.

    A finished sequence keeps its place among the ``beams`` best until better ones push it out;
    the search ends when every place is held by a finished one. So one beam is :func:`greedy`,
    and with as many beams as there are prefixes the search is exhaustive.

    Args:
        step: The model at work on a batch; it is used up.
        begin: Id that starts every sequence.
        end: Id that ends one.
        beams: Sequences that are kept for each row.
        max_length: Most tokens of a sequence, the end token counted.
        min_length: Fewest tokens, the end token not counted (see :func:`greedy`).
        length_penalty: :math:`\alpha \ge 0` of Wu et al.; 0 ranks by probability.

    Returns:
        ``beams`` hypotheses a row, best first.

    Raises:
        ValueError: a number out of its range, or a model that gives NaN.
    """
    _check_limits(begin, end, max_length, min_length)
    if beams < 1:
        raise ValueError(f"beams must be at least 1: got {beams}")
    if not 0.0 <= length_penalty < float("inf"):
        raise ValueError(f"length_penalty must be finite and at least 0: got {length_penalty}")
    batch, device = step.rows, step.device
    last, *state = _begin(step, begin, beams)
    finished, log_prob, lengths = (part.reshape(batch, beams) for part in state)
    # All beams of a source start equal: only the first one may grow at the first step.
    log_prob = log_prob.masked_fill(torch.arange(beams, device=device) > 0, -torch.inf)
    scores, tokens = log_prob, lengths.new_empty(batch, beams, 0)
    first_row = torch.arange(batch, device=device)[:, None] * beams
    while tokens.shape[-1] < max_length and not (finished | log_prob.isneginf()).all():
        too_short = tokens.shape[-1] < min_length
        log_probs = _next_log_probs(step, last, finished.flatten(), end, too_short)
        vocab = log_probs.shape[-1]
        candidates = log_prob[..., None] + log_probs.reshape(batch, beams, vocab)
        penalty = ((5.0 + lengths + ~finished) / 6.0) ** length_penalty
        scores, chosen = (candidates / penalty[..., None]).flatten(1).topk(beams)

        parent, token = chosen // vocab, chosen % vocab
        step.select((first_row + parent).flatten())
        log_prob = candidates.flatten(1).gather(1, chosen)
        lengths, finished = (lengths + ~finished).gather(1, parent), finished.gather(1, parent)
        finished = finished | (token == end)
        tokens = tokens.gather(1, parent[..., None].expand_as(tokens))
        tokens = torch.cat([tokens, token[..., None]], dim=-1)
        last = token.flatten()
    return Hypotheses(tokens, lengths, finished, log_prob, scores)


def _begin(step: NextToken, begin: int, beams: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """First tokens, and that nothing is finished, probable or long yet."""
    if beams > 1:
        step.select(torch.arange(step.rows, device=step.device).repeat_interleave(beams))
    last = torch.full((step.rows,), begin, dtype=torch.long, device=step.device)
    finished = torch.zeros_like(last, dtype=torch.bool)
    return last, finished, torch.zeros_like(last, dtype=torch.float32), torch.zeros_like(last)


def _next_log_probs(
    step: NextToken, last: Tensor, finished: Tensor, end: int, too_short: bool
) -> Tensor:
    """Log-probabilities of the next token; a finished row can only go on with the end token."""
    logits = step(last)
    if end >= logits.shape[-1]:
        raise ValueError(f"end must be below the vocabulary's size {logits.shape[-1]}: got {end}")
    log_probs = logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    if log_probs.isnan().any():
        raise ValueError("step must give numbers: its logits hold NaN, or a row of -inf only")
    is_end = torch.arange(logits.shape[-1], device=logits.device) == end
    if too_short:
        log_probs = log_probs.masked_fill(is_end, -torch.inf)
    stay = torch.where(is_end, 0.0, -torch.inf).to(log_probs.dtype)
    return torch.where(finished[:, None], stay, log_probs)


def _check_limits(begin: int, end: int, max_length: int, min_length: int) -> None:
    if min(begin, end) < 0:
        raise ValueError(f"begin and end must be token ids: got begin={begin}, end={end}")
    if max_length < 1 or not 0 <= min_length < max_length:
        raise ValueError(
            "0 <= min_length < max_length is wanted: "
            f"got min_length={min_length}, max_length={max_length}"
        )
