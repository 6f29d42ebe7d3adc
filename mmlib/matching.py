r"""Matching pictures and sentences: two towers, and a score for any pair: chapter 07.

One tower turns a picture into a vector :math:`v_I`, the other a sentence into :math:`v_T`, and the
score is a bilinear form of the two, with a matrix of low rank, or the cosine:

.. math::
    f(I, T) = v_I^\top W v_T = (A v_I)^\top (B v_T), \quad W = A^\top B, \qquad
    f_{\cos}(I, T) = s\, \frac{(A v_I)^\top (B v_T)}{\|A v_I\|\, \|B v_T\|} .

Whatever the towers are, each picture and each sentence is encoded once, on its own, and then
everything is compared with everything by one matrix product. That is what makes a search among
millions possible, and what :mod:`mmlib.cross_encoder` gives up for the last few.

The towers come pretrained, out of :mod:`mmlib.towers`, where it is also said how much of one is
trained. The model keeps what stands still in evaluation mode, batch norms above all.

References:
    Frome et al., *DeViSE: A Deep Visual-Semantic Embedding Model*, NeurIPS 2013. Faghri et al.,
    *VSE++: Improving Visual-Semantic Embeddings with Hard Negatives*, BMVC 2018. Radford et al.,
    *Learning Transferable Visual Models From Natural Language Supervision*, ICML 2021.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmlib.class_words import ClassWords
from mmlib.contrastive import LogitScale
from mmlib.data.batch import Batch

__all__ = [
    "Features",
    "Heads",
    "MatchingConfig",
    "MatchingModel",
    "hard_batch",
    "hard_negatives",
    "matching_loss",
]


@dataclass(frozen=True)
class MatchingConfig:
    """How two towers are joined.

    Attributes:
        dim: Width of the space in which pictures and sentences meet: the rank of :math:`W`.
        score: ``"cosine"`` with a learned scale, or the ``"bilinear"`` form.
        dropout: Share of the picture tower's features that are left out, in training.

    Raises:
        ValueError: A number or a choice is out of range.
    """

    dim: int = 256
    score: Literal["cosine", "bilinear"] = "cosine"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ValueError(f"dim must be at least 1: got {self.dim}")
        if self.score not in ("cosine", "bilinear"):
            raise ValueError(f"score must be 'cosine' or 'bilinear': got {self.score!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be from 0 to below 1: got {self.dropout}")


class Heads(nn.Module):
    r"""The two maps into one space, and the score there.

    A picture's features are brought to zero mean and unit spread first (layer norm without
    parameters), since those of a convolutional network are all positive and of any size, and a
    sentence's to unit length, as a sentence encoder's are meant to be compared. Where the words
    of a classifier are given as well, they have a map of their own, and both results are added.
    Where the text encoder's space has the width ``dim``, the maps from that space start as the
    identity: its neighbourhoods are what unknown things have to be found by.

    Args:
        image_dim: Width of the picture tower.
        text_dim: Width of the text tower.
        config: How they are joined.
        words: Says in the text tower's space what a picture's features look like.

    Attributes:
        image: :math:`A`, with what stands before it.
        text: :math:`B`.
        word_map: From the space of ``words``, or None.
        scale: The factor on the cosines, or None for the bilinear form.

    >>> _ = torch.manual_seed(0)
    >>> heads = Heads(8, 6, MatchingConfig(dim=4, score="bilinear"))
    >>> images, texts = heads(torch.rand(3, 8), torch.rand(2, 6))
    >>> heads.score(images, texts).shape
    torch.Size([3, 2])
    """

    def __init__(
        self,
        image_dim: int,
        text_dim: int,
        config: MatchingConfig,
        words: ClassWords | None = None,
    ) -> None:
        super().__init__()
        self.config, self.dim = config, config.dim
        cosine = config.score == "cosine"
        self.image = nn.Sequential(
            nn.LayerNorm(image_dim, elementwise_affine=False),
            nn.Dropout(config.dropout),
            nn.Linear(image_dim, config.dim, bias=cosine),
        )
        self.text = nn.Linear(text_dim, config.dim, bias=cosine)
        self.words = words
        self.word_map = None if words is None else nn.Linear(words.dim, config.dim, bias=cosine)
        for layer in (self.text, self.word_map):
            if layer is not None and layer.in_features == config.dim:
                nn.init.eye_(layer.weight)
        self.scale = LogitScale(20.0) if cosine else None

    def images(self, features: Float[Tensor, "images image_dim"]) -> Float[Tensor, "images dim"]:
        """Pictures in the shared space, from the picture tower's pooled vectors."""
        vectors = self.image(features)
        if self.words is not None:
            # Of the length that vectors have at the start, so that neither drowns the other.
            vectors = vectors + self.dim**0.5 * self.word_map(self.words(features)) / 5
        return self._measured(vectors)

    def texts(self, features: Float[Tensor, "texts text_dim"]) -> Float[Tensor, "texts dim"]:
        """Sentences in the shared space, from the text tower's pooled vectors."""
        return self._measured(self.text(F.normalize(features, dim=1)))

    def _measured(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=1) if self.config.score == "cosine" else vectors

    def forward(
        self, image: Float[Tensor, "images image_dim"], text: Float[Tensor, "texts text_dim"]
    ) -> tuple[Float[Tensor, "images dim"], Float[Tensor, "texts dim"]]:
        """Vectors in the shared space; of unit length where the score is a cosine."""
        return self.images(image), self.texts(text)

    def score(
        self, image: Float[Tensor, "images dim"], text: Float[Tensor, "texts dim"]
    ) -> Float[Tensor, "images texts"]:
        """Every picture against every text, from vectors of the shared space.

        Raises:
            ValueError: The widths differ from each other or from ``dim``.
        """
        if not image.shape[-1] == text.shape[-1] == self.dim:
            raise ValueError(
                f"image and text must have width {self.dim}: got {image.shape[-1]} and "
                f"{text.shape[-1]}"
            )
        scores = image @ text.T
        return scores if self.scale is None else self.scale() * scores

    @property
    def weight(self) -> Float[Tensor, "image_dim text_dim"]:
        r"""The matrix :math:`W = A^\top B` written out; its rank is at most ``dim``."""
        return self.image[-1].weight.T @ self.text.weight


class Features(NamedTuple):
    """Pictures and sentences of a batch in the shared space; zeros for what does not exist."""

    image: Float[Tensor, "batch dim"]
    text: Float[Tensor, "batch dim"]


class MatchingModel(nn.Module):
    """Two towers and their heads, from pictures and token ids to scores.

    Args:
        image: A picture encoder: :class:`~mmlib.encoders.encoded.Encoded` out, with ``dim``.
        text: A text encoder, likewise.
        config: How they are joined.
        words: The picture tower's own classifier, in words; see :class:`Heads`.

    Attributes:
        image: The picture tower.
        text: The text tower.
        heads: Maps into the shared space and the score; see :class:`Heads`. They can be trained
            alone on stored vectors where both towers stand still.
    """

    def __init__(
        self,
        image: nn.Module,
        text: nn.Module,
        config: MatchingConfig,
        words: ClassWords | None = None,
    ) -> None:
        super().__init__()
        self.image, self.text = image, text
        self.heads = Heads(image.dim, text.dim, config, words)

    def train(self, mode: bool = True) -> "MatchingModel":
        """Change to training or evaluation, but for what stands still in the towers.

        A part of a tower without a trainable parameter stays in evaluation, and every batch norm
        does: a few dozen pictures at a time would make its statistics worse, not better.
        """
        super().train(mode)
        if mode:
            for module in (*self.image.modules(), *self.text.modules()):
                parameters = list(module.parameters())
                still = bool(parameters) and not any(p.requires_grad for p in parameters)
                if still or isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def encode_images(
        self,
        images: Float[Tensor, "batch channels height width"],
        keep: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch dim"]:
        """Pictures, preprocessed as the tower wants them, in the shared space."""
        return _existing(self.heads.images(self.image(images, keep).pooled), keep)

    def encode_texts(
        self,
        ids: Int[Tensor, "batch length"],
        keep: Bool[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch dim"]:
        """Sentences, as ids of the tower's tokenizer, in the shared space."""
        exists = None if keep is None else keep.any(dim=1)
        return _existing(self.heads.texts(self.text(ids, keep).pooled), exists)

    def forward(self, batch: Batch) -> Features:
        """Encode the pictures and texts of a batch; row ``i`` of both belongs together.

        Raises:
            ValueError: The batch lacks pictures or texts.
        """
        if batch.images is None or batch.text is None:
            have = ", ".join(batch.modalities) or "none"
            raise ValueError(f"batch must have images and text: got {have}")
        return Features(
            self.encode_images(batch.images, batch.images_keep),
            self.encode_texts(batch.text, batch.text_keep),
        )


def matching_loss(
    scores: Float[Tensor, "batch batch"],
    groups: Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    r"""Pictures find their texts and texts their pictures, whatever the score is.

    The mean of both directions' cross-entropy. On cosines it is
    :func:`mmlib.contrastive.clip_loss`; taking scores, it trains the bilinear form too.

    Args:
        scores: Picture ``i`` against text ``j``; pairs are on the diagonal.
        groups: Equal numbers for items that belong together, none of which is a negative of
            another; all different by default. Several captions of one picture in a batch have one.

    Raises:
        ValueError: The scores are not square, or there is not one group an item.

    >>> matching_loss(torch.zeros(4, 4)).item() == torch.tensor(4.0).log().item()
    True
    """
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1] or not len(scores):
        raise ValueError(f"scores must have shape (batch, batch): got {tuple(scores.shape)}")
    same = _same(groups, len(scores), scores.device)
    targets = same / same.sum(1, keepdim=True)
    both = F.cross_entropy(scores, targets) + F.cross_entropy(scores.T, targets)
    return both / 2


def hard_negatives(
    scores: Float[Tensor, "queries items"],
    relevant: Bool[Tensor, "queries items"],
    count: int,
) -> Int[Tensor, "queries count"]:
    """What a model confuses most: for each query the wrong items that score highest.

    Args:
        scores: Of a model as it is now, on the training set.
        relevant: Which items belong to a query, or mean the same; they are no negatives.
        count: How many, best first.

    Raises:
        TypeError: ``relevant`` is not boolean.
        ValueError: The shapes differ, or a query has fewer than ``count`` wrong items.

    >>> hard_negatives(torch.tensor([[0.9, 0.8, 0.1]]), torch.tensor([[True, False, False]]), 1)
    tensor([[1]])
    """
    if relevant.dtype != torch.bool:
        raise TypeError(f"relevant must be boolean: got {relevant.dtype}")
    if scores.shape != relevant.shape or scores.ndim != 2:
        raise ValueError(
            "scores and relevant must have one shape (queries, items): got "
            f"{tuple(scores.shape)} and {tuple(relevant.shape)}"
        )
    fewest = int((~relevant).sum(1).min()) if len(relevant) else 0
    if not 1 <= count <= fewest:
        raise ValueError(
            f"count must be from 1 to the wrong items of every query, {fewest}: got {count}"
        )
    return scores.masked_fill(relevant, -torch.inf).topk(count, dim=1).indices


def hard_batch(
    negatives: Int[Tensor, "items count"], size: int, generator: torch.Generator
) -> Int[Tensor, " size"]:
    """Items for a batch in which each meets what it is most easily confused with.

    Seeds are drawn at random, and each brings its hard negatives along, until ``size`` different
    items are together. As every item of a batch is a negative of every other, no loss has to know.

    Args:
        negatives: For each item others, best first (:func:`hard_negatives`).
        size: Items in the batch.
        generator: What is drawn from.

    Raises:
        ValueError: ``size`` is below 1 or above the number of items.
    """
    if not 1 <= size <= len(negatives):
        raise ValueError(f"size must be from 1 to {len(negatives)} items: got {size}")
    chosen: dict[int, None] = {}  # a dictionary keeps the order in which items came
    for seed in torch.randperm(len(negatives), generator=generator).tolist():
        chosen |= dict.fromkeys([seed, *negatives[seed].tolist()])
        if len(chosen) >= size:
            break
    return torch.tensor(list(chosen)[:size])


def _existing(vectors: Tensor, keep: Tensor | None) -> Tensor:
    return vectors if keep is None else vectors.masked_fill(~keep[:, None], 0.0)


def _same(groups: Tensor | None, batch: int, device: torch.device) -> Tensor:
    if groups is None:
        groups = torch.arange(batch, device=device)
    if groups.shape != (batch,) or groups.is_floating_point():
        raise ValueError(
            f"groups must hold {batch} whole numbers: got {groups.dtype}, {tuple(groups.shape)}"
        )
    return (groups[:, None] == groups).float()
