r"""Language models that predict the next token: by a decoder, and by counting: chapter 03.

.. math:: p(x) = \prod_t p(x_t \mid x_{<t})

A large language model is :class:`CausalLM` made large. :class:`NGram` is what it is compared with.

References:
    Radford et al., *Improving Language Understanding by Generative Pre-Training*, 2018. Witten and
    Bell, *The Zero-Frequency Problem*, IEEE Transactions on Information Theory, 1991.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmlib.block import LayerCache, TransformerConfig
from mmlib.positions import LearnedPositions
from mmlib.transformer import Decoder

__all__ = ["CausalLM", "NGram", "next_token_loss", "sample"]


class CausalLM(nn.Module):
    r"""The decoder-only Transformer of GPT: tokens in, logits of the token after each out.

    .. math::

        p(x_{t+1} \mid x_{\le t}) = \operatorname{softmax}(E\,h_t), \qquad
        h = \operatorname{Decoder}(E_{x} + P)

    The table of token embeddings :math:`E` is the output matrix too.

    Args:
        config: ``target_vocab`` and ``max_length`` are read; ``cross_attention`` is off, whatever
            is said.

    Attributes:
        config: The configuration.
        token: The table :math:`E`.
        position: The learned positions :math:`P`.
        decoder: The blocks.

    Raises:
        ValueError: ``target_vocab`` is missing.

    >>> model = CausalLM(TransformerConfig(dim=16, heads=2, layers=1, target_vocab=50))
    >>> model(torch.tensor([[3, 1, 4]])).shape
    torch.Size([1, 3, 50])
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        if config.target_vocab is None:
            raise ValueError("target_vocab must be given: got None")
        self.config = replace(config, cross_attention=False)
        self.token = nn.Embedding(config.target_vocab, config.dim)
        self.position = LearnedPositions(config.dim, config.max_length)
        self.dropout = nn.Dropout(config.dropout)
        self.decoder = Decoder(self.config)
        nn.init.normal_(self.token.weight, std=0.02)

    def forward(
        self,
        ids: Int[Tensor, "batch length"],
        keep: Bool[Tensor, "batch length"] | None = None,
        *,
        cache: list[LayerCache] | None = None,
    ) -> Float[Tensor, "batch length vocab"]:
        """Logits of the token after each.

        Args:
            ids: Token ids; with a cache only the new ones.
            keep: Which of them exist; padding at the end needs none, since no token looks ahead.
            cache: From ``decoder.new_cache()``.

        Raises:
            TypeError: ``ids`` does not hold integers.
            ValueError: a wrong shape, too long a sequence, or an id outside the vocabulary.
        """
        _check_ids(ids, self.token.num_embeddings)
        offset = len(cache[0].self_attention) if cache else 0
        x = self.dropout(self.position(self.token(ids), offset))
        x, _ = self.decoder(x, keep=keep, cache=cache)
        return F.linear(x, self.token.weight)


def next_token_loss(
    logits: Float[Tensor, "batch length vocab"],
    ids: Int[Tensor, "batch length"],
    keep: Bool[Tensor, "batch length"] | None = None,
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    r"""Sum of the cross-entropies of every token but the first, and their number.

    .. math:: S = -\sum_{t \ge 2} \log p(x_t \mid x_{<t}), \qquad
              \text{perplexity} = \exp(S / N)

    Args:
        logits: From :class:`CausalLM` with the same ``ids``: the shift is done here.
        ids: Token ids.
        keep: Which of them exist.

    Raises:
        ValueError: the shapes do not fit, or there is nothing to predict.
    """
    if logits.shape[:2] != ids.shape or ids.shape[1] < 2:
        raise ValueError(
            "logits must have shape (batch, length, vocab) and ids (batch, length), length 2 or "
            f"more: got {tuple(logits.shape)} and {tuple(ids.shape)}"
        )
    real = torch.ones_like(ids, dtype=torch.bool) if keep is None else keep
    losses = F.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    )
    real = real[:, 1:]
    return losses.masked_fill(~real.flatten(), 0.0).sum(), real.sum()


@torch.no_grad()
def sample(
    model: CausalLM,
    prompt: Int[Tensor, "batch length"],
    *,
    end: int,
    max_length: int,
    generator: torch.Generator,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> list[list[int]]:
    r"""Write on, one drawn token after another, with a cache.

    .. math:: x_{t+1} \sim \operatorname{softmax}(z_t / \tau) \text{ restricted to the smallest set
              of tokens with a probability of at least } p

    Args:
        model: Its mode is left as it was.
        prompt: How each text begins, all equally long.
        end: Id that ends a text.
        max_length: Longest text, prompt included.
        generator: Of the draws.
        temperature: :math:`\tau`; below 1 the probable gets more probable, at 0 the most probable
            token is taken.
        top_p: :math:`p` of nucleus sampling (Holtzman et al., 2020); 1 for no restriction.

    Returns:
        The texts with their prompts, without the end token.

    Raises:
        ValueError: a number is out of its range.
    """
    _check_ids(prompt, model.token.num_embeddings, "prompt")
    if temperature < 0 or not math.isfinite(temperature):
        raise ValueError(f"temperature must be at least 0: got {temperature}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1: got {top_p}")
    if not prompt.shape[1] < max_length <= model.config.max_length:
        raise ValueError(
            f"max_length must be above the prompt's {prompt.shape[1]} and at most the model's "
            f"{model.config.max_length}: got {max_length}"
        )
    was_training = model.training
    model.eval()
    cache, ids, new = model.decoder.new_cache(), prompt, prompt
    done = torch.zeros(len(prompt), dtype=torch.bool, device=prompt.device)
    try:
        while ids.shape[1] < max_length and not done.all():
            logits = model(new, cache=cache)[:, -1].float()
            new = _draw(logits, temperature, top_p, generator).masked_fill(done[:, None], end)
            done = done | (new[:, 0] == end)
            ids = torch.cat([ids, new], dim=1)
    finally:
        model.train(was_training)
    texts, start = ids.tolist(), prompt.shape[1]
    return [text[: text.index(end, start)] if end in text[start:] else text for text in texts]


def _draw(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> Tensor:
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    probs, order = (logits / temperature).softmax(-1).sort(dim=-1, descending=True)
    # The most probable tokens until their sum reaches p; the one that reaches it counts.
    probs = probs.masked_fill(probs.cumsum(-1) - probs >= top_p, 0.0)
    return order.gather(1, torch.multinomial(probs, 1, generator=generator))


class NGram:
    r"""Count which token follows the last :math:`n - 1`, smoothed by interpolation (n 元语法).

    Witten and Bell's smoothing: with :math:`c(h)` the number of times that a history was seen and
    :math:`T(h)` the number of different tokens seen after it,

    .. math::

        p(x \mid h) = \frac{c(h, x) + T(h)\, p(x \mid h')}{c(h) + T(h)},

    where :math:`h'` is :math:`h` without its first token; below the single tokens stands the even
    distribution over the vocabulary. A history after which much is new trusts the shorter one
    more; nothing needs to be tuned, and no token has probability 0.

    Args:
        texts: Token ids of each text, with its begin and end tokens.
        order: :math:`n`: 1 counts tokens alone, 3 looks at the two before.
        vocab: Number of ids.

    Raises:
        ValueError: ``order`` is below 1, there is no token, or an id is outside the vocabulary.

    >>> model = NGram([[0, 1, 2, 1, 2]], order=2, vocab=3)
    >>> round(model.probability(2, [0, 1]), 3)
    0.815
    """

    def __init__(self, texts: Sequence[Sequence[int]], order: int, vocab: int) -> None:
        if order < 1:
            raise ValueError(f"order must be at least 1: got {order}")
        self.order, self.vocab = order, vocab
        self.counts: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for text in texts:
            self._check(text)
            # The first token is given, as it is to the Transformer.
            for at in range(1, len(text)):
                for length in range(min(order - 1, at) + 1):
                    self.counts[tuple(text[at - length : at])][text[at]] += 1
        if not self.counts:
            raise ValueError("texts must hold at least one token after the first of a text")
        self.totals = {history: seen.total() for history, seen in self.counts.items()}

    def probability(self, token: int, history: Sequence[int]) -> float:
        """Probability of a token after a history, of which the last ``order - 1`` tokens count."""
        self._check([token, *history])
        value = 1.0 / self.vocab
        for length in range(min(self.order - 1, len(history)) + 1):
            key = tuple(history[len(history) - length :])
            if key not in self.totals:
                break  # and so are all longer ones
            seen, total = self.counts[key], self.totals[key]
            value = (seen[token] + len(seen) * value) / (total + len(seen))
        return value

    def perplexity(self, texts: Sequence[Sequence[int]]) -> float:
        r""":math:`\exp(-\frac1N \sum \log p)` over every token but the first of each text.

        Raises:
            ValueError: there is no token to predict.
        """
        logs = [
            math.log(self.probability(text[at], text[:at]))
            for text in texts
            for at in range(1, len(text))
        ]
        if not logs:
            raise ValueError("texts must hold at least one token after the first of a text")
        return math.exp(-math.fsum(logs) / len(logs))

    def _check(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            if not 0 <= token < self.vocab:
                raise ValueError(f"texts must hold ids from 0 to {self.vocab - 1}: got {token}")


def _check_ids(ids: Tensor, vocab: int, name: str = "ids") -> None:
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise TypeError(f"{name} must hold whole numbers: got {ids.dtype}")
    if ids.ndim != 2 or 0 in ids.shape:
        raise ValueError(
            f"{name} must have shape (batch, length), not empty: got {tuple(ids.shape)}"
        )
    # On an accelerator reading the values would make the host wait.
    if ids.device.type == "cpu" and not 0 <= int(ids.min()) <= int(ids.max()) < vocab:
        raise ValueError(
            f"{name} must lie from 0 to {vocab - 1}: got {int(ids.min())} to {int(ids.max())}"
        )
