r"""Visual question answering (视觉问答): chapter 13.

A question about a picture is answered by a classifier over the answers that are known:

.. math:: p(a \mid q, I) = \operatorname{softmax}_a\bigl(h(\text{question}, \text{picture})\bigr)

:class:`VQA` is the classic form, two towers whose vectors are fused; :class:`Reader` lets the words
of the question read the regions of the picture by cross-attention, block after block. In both,
several questions may share a picture, which is encoded once: ``of`` says which one each is about.

References:
    Antol et al., *VQA: Visual Question Answering*, ICCV 2015. Teney et al., *Tips and Tricks for
    Visual Question Answering: Learnings from the 2017 Challenge*, CVPR 2018.
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
from mmlib.fusion import OPERATORS
from mmlib.positions import LearnedPositions

__all__ = ["VQA", "Answered", "Reader", "ReaderConfig", "VQAConfig", "soft_target_loss"]


@dataclass(frozen=True)
class VQAConfig:
    """Sizes and choices of a :class:`VQA`.

    Attributes:
        answers: How many answers there are.
        dim: Width of the fused vector and of the hidden layer.
        fusion: One of :data:`mmlib.fusion.OPERATORS`.
        normalise: Whether a layer norm brings each tower's vector to unit spread before they are
            fused. Without it a product of two small vectors is smaller still, and so is what the
            towers learn from it.
        dropout: Probability, on the fused vector and the hidden layer.

    Raises:
        ValueError: a number or a choice out of its range.
    """

    answers: int
    dim: int = 128
    fusion: str = "concat"
    normalise: bool = True
    dropout: float = 0.0

    def __post_init__(self) -> None:
        _check_sizes(self, "answers", "dim")
        if self.fusion not in OPERATORS:
            raise ValueError(f"fusion must be one of {tuple(OPERATORS)}: got {self.fusion!r}")


class VQA(nn.Module):
    r"""A question tower, a picture tower, a fusion and a classifier.

    .. math::

        h = \operatorname{fusion}\bigl(\operatorname{norm}(f(q)),\,
            \operatorname{norm}(g(I))\bigr), \qquad
        \text{logits} = W_2\,\phi\bigl(W_1\,\phi(h) + b_1\bigr) + b_2

    Args:
        question: A text encoder, e.g. :class:`mmlib.encoders.bert.Bert`; its vector is ``pooled``.
        image: A picture encoder, the same.
        config: Sizes and choices.
    """

    def __init__(self, question: nn.Module, image: nn.Module, config: VQAConfig) -> None:
        super().__init__()
        self.config, self.question, self.image = config, question, image
        dims = (question.dim, image.dim)
        self.norms = nn.ModuleList(
            nn.LayerNorm(width) if config.normalise else nn.Identity() for width in dims
        )
        self.fusion = OPERATORS[config.fusion](dims, config.dim)
        self.head = nn.Sequential(
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.dim, config.dim),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.dim, config.answers),
        )

    def forward(
        self,
        ids: Int[Tensor, "questions length"],
        keep: Bool[Tensor, "questions length"] | None,
        images: Float[Tensor, "pictures channels height width"],
        of: Int[Tensor, " questions"] | None = None,
    ) -> Float[Tensor, "questions answers"]:
        """Logits of the answers.

        Args:
            ids: The questions' tokens.
            keep: Which of them exist; all by default.
            images: The pictures.
            of: Which picture each question is about; by default its own.

        Raises:
            ValueError: ``of`` does not say for every question which picture.
        """
        of = _about(of, len(ids), len(images))
        return self.answer(self.question(ids, keep).pooled, self.image(images).pooled[of])

    def answer(
        self,
        questions: Float[Tensor, "questions question_dim"],
        pictures: Float[Tensor, "questions picture_dim"],
    ) -> Float[Tensor, "questions answers"]:
        """Logits from vectors: a locked tower need encode a question only once in its life."""
        pairs = zip(self.norms, (questions, pictures), strict=True)
        return self.head(self.fusion([norm(vector) for norm, vector in pairs]))


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
        _check_sizes(self, "vocab_size", "answers", "regions")
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
        self.region_pos = nn.Parameter(0.02 * torch.randn(config.regions, config.dim))
        self.region_norm = nn.LayerNorm(config.dim)
        blocks = (TransformerBlock(config.transformer, cross=True) for _ in range(config.layers))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(config.dim)
        self.head = nn.Linear(config.dim, config.answers)
        # As loud as what a block adds: with 0.02 the words are drowned by it, and which region a
        # word means is learned several times later.
        nn.init.normal_(self.token.weight, std=0.3)

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
        of = _about(of, len(ids), len(regions))
        x = self.position(self.embed(ids) if words is None else words)
        x = torch.cat([self.answer_token.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
        if keep is not None:
            keep = F.pad(keep, (1, 0), value=True)
        memory, weights = regions[of], []
        for block in self.blocks:
            x, layer = block(x, memory, keep=keep, return_weights=return_weights)
            weights.append(layer)
        return Answered(self.head(self.norm(x[:, 0])), weights if return_weights else None)


def soft_target_loss(
    logits: Float[Tensor, "questions answers"], targets: Float[Tensor, "questions answers"]
) -> Float[Tensor, ""]:
    r"""The loss of VQAv2, where people disagree: a yes or no for each answer.

    .. math::

        L = -\frac1N \sum_{i,a} \bigl[ s_{ia} \log \sigma(z_{ia})
            + (1 - s_{ia}) \log(1 - \sigma(z_{ia})) \bigr]

    The scores :math:`s` are those of :func:`mmlib.data.answers.soft_scores`, in [0, 1]. Summed
    over the answers and averaged over the questions: the mean over both, which
    ``F.binary_cross_entropy_with_logits`` takes, is smaller by the number of answers, 3,129.

    Raises:
        ValueError: the shapes differ, there is no question, or a target is outside [0, 1].

    >>> soft_target_loss(torch.zeros(2, 4), torch.zeros(2, 4)).item() / 4  # log 2
    0.6931471824645996
    """
    if logits.shape != targets.shape or logits.ndim != 2 or not len(logits):
        raise ValueError(
            "logits and targets must have one shape (questions, answers), not empty: "
            f"got {tuple(logits.shape)} and {tuple(targets.shape)}"
        )
    if bool((targets < 0).any()) or bool((targets > 1).any()):
        raise ValueError(
            f"targets must lie in [0, 1]: got {targets.min().item()} to {targets.max().item()}"
        )
    total = F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="sum")
    return total / len(logits)


def _about(of: Tensor | None, questions: int, pictures: int) -> Tensor | slice:
    if of is None:
        if questions != pictures:
            raise ValueError(
                "of must say which picture each question is about when there are not as many: "
                f"got {questions} questions and {pictures} pictures"
            )
        return slice(None)
    if of.shape != (questions,):
        raise ValueError(f"of must have shape ({questions},): got {tuple(of.shape)}")
    return of


def _check_sizes(config: object, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1: got {getattr(config, name)}")
    if not 0.0 <= config.dropout < 1.0:
        raise ValueError(f"dropout must lie in [0, 1): got {config.dropout}")
