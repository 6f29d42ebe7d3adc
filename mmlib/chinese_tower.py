r"""A second language for towers that know one: a Chinese text tower, taught by an English one.

The teacher's vector of a sentence is the student's target for its translation (Reimers and
Gurevych, *Making Monolingual Sentence Embeddings Multilingual using Knowledge Distillation*, EMNLP
2020), and no picture is needed: what has been matched with the teacher's space can be searched in
Chinese at once. That paper's student is a large multilingual model and its loss the squared error;
here the student reads single characters and starts from nothing, and its loss is contrastive, since
with so few translations the squared error is cheapest at the mean of all vectors.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmlib.contrastive import clip_loss
from mmlib.encoders.encoded import Encoded
from mmlib.encoders.text import TextTransformer, TextTransformerConfig
from mmlib.encoders.tokenizers import character_tokenizer

__all__ = ["ChineseTower", "distillation_loss"]


class ChineseTower(nn.Module):
    """Characters to the space of a sentence encoder; a text tower like any other.

    Args:
        texts: What the tower knows characters from; any other becomes the unknown one.
        out_dim: Width of the teacher's vectors.
        dim: Width of the Transformer.
        layers: Blocks.
        dropout: Probability, during training.

    Attributes:
        dim: Width of the pooled vector: that of the teacher's. Tokens have it too.
        tokenizer: One id a character.

    >>> tower = ChineseTower(["红色的苹果", "月亮"], out_dim=6, dim=8, layers=1)
    >>> ids, keep = tower.tokenizer.encode(["苹果", "红月亮"])
    >>> tower(ids, keep).pooled.shape
    torch.Size([2, 6])
    """

    def __init__(
        self,
        texts: Sequence[str],
        out_dim: int = 384,
        *,
        dim: int = 128,
        layers: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if out_dim < 1:
            raise ValueError(f"out_dim must be at least 1: got {out_dim}")
        self.dim, self.tokenizer = out_dim, character_tokenizer(texts, max_length=64)
        self.encoder = TextTransformer(
            TextTransformerConfig(
                self.tokenizer.vocab_size, dim=dim, layers=layers, max_length=64, dropout=dropout
            )
        )
        self.out = nn.Linear(dim, out_dim)

    def forward(
        self,
        ids: Int[Tensor, "batch length"],
        keep: Bool[Tensor, "batch length"] | None = None,
        *,
        return_weights: bool = False,
    ) -> Encoded:
        """Encode texts as :class:`~mmlib.encoders.text.TextTransformer` does, and widen."""
        tokens, exists, pooled, weights = self.encoder(ids, keep, return_weights=return_weights)
        tokens = self.out(tokens).masked_fill(~exists[..., None], 0.0)
        return Encoded(tokens, exists, self.out(pooled), weights)


def distillation_loss(
    student: Float[Tensor, "batch dim"],
    teacher: Float[Tensor, "batch dim"],
    logit_scale: float = 20.0,
) -> Float[Tensor, ""]:
    r"""A translation must be nearest to its own original, both ways, and point the same way.

    .. math:: L = L_{\text{CLIP}}(v, t) + \frac1n \sum_i \bigl(1 - \cos(v_i, t_i)\bigr)

    Args:
        student: Vectors of the translations.
        teacher: Vectors of the originals, in the same order.
        logit_scale: The factor on the cosines of the first term.

    Raises:
        ValueError: The shapes differ.

    >>> import torch
    >>> round(distillation_loss(torch.eye(3), torch.eye(3), 50.0).item(), 4)
    0.0
    """
    apart = 1 - F.cosine_similarity(student, teacher.detach(), dim=1)
    return clip_loss(student, teacher.detach(), logit_scale) + apart.mean()
