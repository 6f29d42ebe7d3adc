r"""Visual question answering (视觉问答): chapter 13.

A question about a picture is answered by a classifier over the answers that are known:

.. math:: p(a \mid q, I) = \operatorname{softmax}_a\bigl(h(\text{question}, \text{picture})\bigr)

:class:`VQA` is the classic form, two towers whose vectors are fused; the
:class:`~mmlib.reader.Reader` of :mod:`mmlib.reader` keeps the regions of the picture. In both,
several questions may share a picture, which is encoded once: ``of`` says which one each is about.

References:
    Antol et al., *VQA: Visual Question Answering*, ICCV 2015. Teney et al., *Tips and Tricks for
    Visual Question Answering: Learnings from the 2017 Challenge*, CVPR 2018.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmlib.fusion import OPERATORS

__all__ = ["VQA", "VQAConfig", "soft_target_loss"]


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
        check_sizes(self, "answers", "dim")
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
        of = about(of, len(ids), len(images))
        return self.answer(self.question(ids, keep).pooled, self.image(images).pooled[of])

    def answer(
        self,
        questions: Float[Tensor, "questions question_dim"],
        pictures: Float[Tensor, "questions picture_dim"],
    ) -> Float[Tensor, "questions answers"]:
        """Logits from vectors: a locked tower need encode a question only once in its life."""
        pairs = zip(self.norms, (questions, pictures), strict=True)
        return self.head(self.fusion([norm(vector) for norm, vector in pairs]))


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

    >>> import torch
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


def about(of: Tensor | None, questions: int, pictures: int) -> Tensor | slice:
    """Which picture each question is about, to index pictures with; by default its own.

    Raises:
        ValueError: ``of`` does not say it for every question.
    """
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


def check_sizes(config: object, *names: str) -> None:
    """Refuse sizes below 1 and a dropout outside [0, 1).

    Raises:
        ValueError: One of them.
    """
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1: got {getattr(config, name)}")
    if not 0.0 <= config.dropout < 1.0:
        raise ValueError(f"dropout must lie in [0, 1): got {config.dropout}")
