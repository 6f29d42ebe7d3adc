r"""Look at picture and sentence together: a cross-encoder, to put the first few in order.

Two towers compare two vectors, and a vector that was made without knowing the question leaves most
of a picture out. A cross-encoder (交叉编码器) reads the regions of the picture and the words of the
sentence in one Transformer, so that every word can look at every region, and says whether they
match. It must run once for every pair: a thousand pictures and a thousand sentences are a million
runs, where towers need two thousand. So towers search, and a cross-encoder orders what they found.

References:
    Li et al., *Align before Fuse*, NeurIPS 2021, and Li et al., *BLIP*, ICML 2022, whose matching
    head is trained with hard negatives of the two towers too. Nogueira and Cho, *Passage Re-ranking
    with BERT*, 2019.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmlib.block import TransformerConfig
from mmlib.encoders.encoded import Encoded
from mmlib.transformer import Encoder

__all__ = ["CrossEncoder", "CrossEncoderConfig", "rerank"]


@dataclass(frozen=True)
class CrossEncoderConfig:
    """Sizes of a :class:`CrossEncoder`.

    Attributes:
        image_dim: Width of the picture tower's tokens.
        text_dim: Width of the text tower's tokens.
        dim: Width of the Transformer.
        heads: Attention heads; must divide ``dim``.
        layers: Blocks.
        dropout: Probability, during training; on the incoming tokens too.

    Raises:
        ValueError: A number is out of its range.
    """

    image_dim: int
    text_dim: int
    dim: int = 128
    heads: int = 4
    layers: int = 2
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for name in ("image_dim", "text_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1: got {getattr(self, name)}")
        self.transformer  # noqa: B018 - checks the rest

    @property
    def transformer(self) -> TransformerConfig:
        """What the blocks are made of. Words have their order from the text tower already."""
        return TransformerConfig(
            dim=self.dim,
            heads=self.heads,
            layers=self.layers,
            dropout=self.dropout,
            cross_attention=False,
            positions="none",
        )


class CrossEncoder(nn.Module):
    """One Transformer over a first token of its own, the picture's regions and the words.

    Args:
        config: Its sizes.

    Attributes:
        image: Regions to the Transformer's width.
        text: Words to the Transformer's width.
        match: From the first token to one logit.

    >>> _ = torch.manual_seed(0)
    >>> model = CrossEncoder(CrossEncoderConfig(image_dim=6, text_dim=5, dim=8, heads=2, layers=1))
    >>> regions, words = torch.rand(3, 4, 6), torch.rand(3, 2, 5)
    >>> both = [Encoded(x, torch.ones(x.shape[:2]) > 0, x[:, 0]) for x in (regions, words)]
    >>> model(*both).shape
    torch.Size([3])
    """

    def __init__(self, config: CrossEncoderConfig) -> None:
        super().__init__()
        self.config = config

        def entrance(width: int) -> nn.Sequential:
            return nn.Sequential(
                nn.LayerNorm(width, elementwise_affine=False),
                nn.Dropout(config.dropout),
                nn.Linear(width, config.dim),
            )

        self.image, self.text = entrance(config.image_dim), entrance(config.text_dim)
        # What each token is: the first, a region, a word.
        self.kind_embedding = nn.Parameter(0.02 * torch.randn(3, config.dim))
        self.stack = Encoder(config.transformer)
        self.match = nn.Linear(config.dim, 1)

    def forward(self, image: Encoded, text: Encoded) -> Float[Tensor, " batch"]:
        """The logit that picture ``i`` and sentence ``i`` belong together.

        Args:
            image: What a picture tower gave; its tokens are read.
            text: What a text tower gave, likewise. Tokens that do not exist change nothing.

        Raises:
            ValueError: There are not as many sentences as pictures, or a width is another.
        """
        config = self.config
        for name, given, width in (
            ("image", image, config.image_dim),
            ("text", text, config.text_dim),
        ):
            if given.tokens.shape[-1] != width:
                raise ValueError(
                    f"{name} tokens must have width {width}: got {given.tokens.shape[-1]}"
                )
        if len(image.tokens) != len(text.tokens):
            raise ValueError(
                "image and text must have as many items: got "
                f"{len(image.tokens)} and {len(text.tokens)}"
            )
        first, region, word = self.kind_embedding
        x = torch.cat(
            [
                first.expand(len(image.tokens), 1, -1),
                self.image(image.tokens) + region,
                self.text(text.tokens) + word,
            ],
            dim=1,
        )
        exists = torch.cat([image.keep.new_ones(len(x), 1), image.keep, text.keep], dim=1)
        tokens, _ = self.stack(x, exists)
        return self.match(tokens[:, 0])[:, 0]


def rerank(
    scores: Float[Tensor, "queries items"],
    rescore: Callable[[Int[Tensor, " pairs"], Int[Tensor, " pairs"]], Float[Tensor, " pairs"]],
    top: int = 20,
) -> Float[Tensor, "queries items"]:
    """Put the best few items of each query into another order.

    The places are kept and only who stands on them changes: the ``top`` highest scores of a query
    are dealt out anew among the same items, the highest to the one that ``rescore`` likes best. So
    all other scores, and every rank below ``top``, stay what they were.

    Args:
        scores: Of every item for every query, from a model that is quick.
        rescore: Called once with the numbers of queries and of items, one of each a pair; gives
            better scores of these pairs. Equal ones keep their order.
        top: How many items of each query are looked at again.

    Returns:
        New scores.

    Raises:
        ValueError: ``top`` is not from 1 to the number of items, or ``rescore`` gives another
            number of scores.

    >>> scores = torch.tensor([[0.9, 0.5, 0.7]])
    >>> rerank(scores, lambda queries, items: items.float(), top=2)
    tensor([[0.7000, 0.5000, 0.9000]])
    """
    if not 1 <= top <= scores.shape[1]:
        raise ValueError(f"top must be from 1 to {scores.shape[1]} items: got {top}")
    # Stable, so that equal scores stand in the order of their numbers, on every machine.
    values, items = (x[:, :top] for x in scores.sort(dim=1, descending=True, stable=True))
    queries = torch.arange(len(scores), device=scores.device).repeat_interleave(top)
    fresh = rescore(queries, items.flatten())
    if fresh.shape != queries.shape:
        raise ValueError(
            f"rescore must give {len(queries)} scores, one a pair: got {tuple(fresh.shape)}"
        )
    order = fresh.view_as(items).argsort(dim=1, descending=True, stable=True)
    return scores.scatter(1, items.gather(1, order), values)
