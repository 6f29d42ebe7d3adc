"""A multimodal Transformer that writes, a word at a time: chapter 12."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmlib.multimodal import Memory, MultimodalTransformer

__all__ = ["MultimodalDecoding"]


class MultimodalDecoding:
    """A :class:`MultimodalTransformer` writing, for :func:`mmlib.decoding.greedy` and beam search.

    Args:
        model: The model; put it into ``eval()`` first.
        memory: What it has read.
    """

    def __init__(self, model: MultimodalTransformer, memory: Memory) -> None:
        self.model, self.memory = model, memory
        self.cache = model.decoder.new_cache()

    @property
    def rows(self) -> int:
        """Number of sequences that are being written."""
        return len(self.memory.tokens)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.memory.tokens.device

    @torch.no_grad()
    def __call__(self, tokens: Int[Tensor, " rows"]) -> Float[Tensor, "rows vocab"]:
        """Take one more word for each row and return the logits of the word after it."""
        logits, _ = self.model.write(self.memory, tokens[:, None], cache=self.cache)
        return logits[:, -1]

    def select(self, rows: Int[Tensor, " new_rows"]) -> None:
        """Keep these rows, in this order."""
        self.memory = self.memory.select(rows)
        for layer in self.cache:
            layer.select(rows)
