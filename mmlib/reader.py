r"""A reader of pictures (阅读器): words that read regions by cross-attention, for chapter 13.

The :class:`Reader` keeps every region of the picture; an answer token and the words of the question
read them block after block, and the answers are classes as in :mod:`mmlib.vqa`. Several questions
may share a picture, which is encoded once: ``of`` says which one each is about.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils import skip_init

from mmlib.block import LayerWeights, TransformerBlock, TransformerConfig
from mmlib.encoders.pooling import check_text
from mmlib.positions import LearnedPositions
from mmlib.vqa import about, check_sizes

__all__ = ["Answered", "Reader", "ReaderConfig"]

#: Spread of the words at the start: that of what a block adds. With 0.02 they are drowned by it,
#: and which region a word means is learned several times later.
LOUD_WORDS = 0.3

#: Spread of the regions' places at the start: near that of what is seen there. It makes hardly
#: a difference: after 2,000 steps chapter 13's reader answers 68 % of the questions for a relation,
#: and 71 % from a start with the usual 0.02. What relations need is steps: 5,000 for 87 %.
LOUD_PLACES = 0.5


@dataclass(frozen=True)
class ReaderConfig:
    """Sizes and choices of a :class:`Reader`.

    Attributes:
        vocab_size: Number of token ids.
        answers: How many answers there are.
        regions: Tokens that the picture encoder gives.
        dim: Width of the stream.
        heads: Attention heads; must divide ``dim``.
        layers: Blocks.
        max_length: Longest question.
        dropout: Probability.

    Raises:
        ValueError: a number out of its range.
    """

    vocab_size: int
    answers: int
    regions: int
    dim: int = 128
    heads: int = 4
    layers: int = 3
    max_length: int = 32
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_sizes(self, "vocab_size", "answers", "regions")
        self.transformer  # noqa: B018 - checks the rest

    @property
    def transformer(self) -> TransformerConfig:
        """What the blocks are made of."""
        return TransformerConfig(
            dim=self.dim,
            heads=self.heads,
            layers=self.layers,
            dropout=self.dropout,
            max_length=self.max_length,
        )


class Answered(NamedTuple):
    """What a :class:`Reader` gives.

    Attributes:
        logits: Of the answers.
        weights: Attention weights of each block, where they were asked for. In
            ``cross_attention`` query 0 is the answer token and keys are regions, row by row.
    """

    logits: Float[Tensor, "questions answers"]
    weights: list[LayerWeights] | None = None


class Reader(nn.Module):
    r"""The question's words read the picture's regions, and an answer token reads both.

    .. math::

        x \leftarrow \operatorname{block}_l\bigl([a; x_1, \dots, x_T],\; \text{regions}\bigr),
        \qquad \text{logits} = W \operatorname{norm}(x_a) + b

    Each block is a decoder's of chapter 02 without its causal mask: self-attention among the
    answer token :math:`a` and the words, cross-attention to the regions, a feed-forward layer.
    After Li et al., *Align before Fuse*, NeurIPS 2021, whose blocks are such, but whose answers
    are generated.

    Args:
        image: A picture encoder whose ``tokens`` are the regions.
        config: Sizes and choices.

    Attributes:
        token: The embedding table.
        head: From the answer token to the logits; a new task gets a new one (:meth:`new_head`).
    """

    def __init__(self, image: nn.Module, config: ReaderConfig) -> None:
        super().__init__()
        self.config, self.image = config, image
        self.token = nn.Embedding(config.vocab_size, config.dim)
        self.position = LearnedPositions(config.dim, config.max_length)
        self.answer_token = nn.Parameter(0.3 * torch.randn(config.dim))
        self.region_map = nn.Linear(image.dim, config.dim)
        self.region_pos = nn.Parameter(LOUD_PLACES * torch.randn(config.regions, config.dim))
        self.region_norm = nn.LayerNorm(config.dim)
        blocks = (TransformerBlock(config.transformer, cross=True) for _ in range(config.layers))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(config.dim)
        self.head = nn.Linear(config.dim, config.answers)
        nn.init.normal_(self.token.weight, std=LOUD_WORDS)

    def new_head(self, answers: int, seed: int = 0) -> "Reader":
        """Replace the classifier by a fresh one for other answers; returns the model."""
        if answers < 1:
            raise ValueError(f"answers must be at least 1: got {answers}")
        draw = torch.Generator().manual_seed(seed)
        head = skip_init(nn.Linear, self.config.dim, answers).to(self.head.weight)
        with torch.no_grad():
            weight = 0.02 * torch.randn(answers, self.config.dim, generator=draw)
            head.weight.copy_(weight)
            head.bias.zero_()
        self.head = head
        return self

    def embed(self, ids: Int[Tensor, "questions length"]) -> Float[Tensor, "questions length dim"]:
        """The words' vectors, before positions: what an adversary may move."""
        check_text(ids, None, self.config.vocab_size, self.config.max_length)
        return self.token(ids)

    def read(
        self,
        images: Float[Tensor, "pictures channels height width"]
        | Float[Tensor, "pictures regions image_dim"],
    ) -> Float[Tensor, "pictures regions dim"]:
        """The regions as the blocks read them.

        Args:
            images: Pictures, or what the picture encoder made of them: a locked one need look at
                a picture only once.

        Raises:
            ValueError: Their regions are not as many as the configuration says.
        """
        tokens = images if images.ndim == 3 else self.image(images).tokens
        regions = self.region_map(tokens)
        if regions.shape[1] != self.config.regions:
            raise ValueError(
                f"images must give {self.config.regions} regions: got {regions.shape[1]}"
            )
        return self.region_norm(regions + self.region_pos)

    def forward(
        self,
        ids: Int[Tensor, "questions length"],
        keep: Bool[Tensor, "questions length"] | None,
        images: Float[Tensor, "pictures ..."] | None,
        of: Int[Tensor, " questions"] | None = None,
        *,
        words: Float[Tensor, "questions length dim"] | None = None,
        regions: Float[Tensor, "pictures regions dim"] | None = None,
        return_weights: bool = False,
    ) -> Answered:
        """Answer questions.

        Args:
            ids: The questions' tokens.
            keep: Which of them exist; all by default.
            images: The pictures, or their tokens (:meth:`read`); not needed when ``regions`` are
                given.
            of: Which picture each question is about; by default its own.
            words: In place of :meth:`embed` of the ids.
            regions: In place of :meth:`read` of the pictures.
            return_weights: Return the attention weights too.

        Raises:
            TypeError: ``ids`` does not hold integers, or ``keep`` is not boolean.
            ValueError: a wrong shape, an id outside the vocabulary, or neither pictures nor
                regions.
        """
        check_text(ids, keep, self.config.vocab_size, self.config.max_length)
        if regions is None:
            if images is None:
                raise ValueError("images or regions must be given: got neither")
            regions = self.read(images)
        of = about(of, len(ids), len(regions))
        x = self.position(self.token(ids) if words is None else words)
        x = torch.cat([self.answer_token.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
        if keep is not None:
            keep = F.pad(keep, (1, 0), value=True)
        memory, weights = regions[of], []
        for block in self.blocks:
            x, layer = block(x, memory, keep=keep, return_weights=return_weights)
            weights.append(layer)
        return Answered(self.head(self.norm(x[:, 0])), weights if return_weights else None)
