r"""Which region of a picture does a word mean? Learned from pairs of picture and caption alone.

No box and no region is ever labelled. A picture is a grid of region vectors, a caption a row of
word vectors, and the score of the two lets **each word look for its own region**:

.. math::

    c_{wr} = \frac{t_w \cdot v_r}{\sqrt d}, \qquad
    A_{wr} = \operatorname{softmax}_r(\lambda\, c_{wr}), \qquad
    s = \frac{1}{|W|} \sum_w \sum_r A_{wr}\, c_{wr}

A dot product, not a cosine: a region with a red star carries *red* and *star*, and a cosine would
divide by the length of both, so that a region with some red and nothing else could score higher.

The negatives of a batch rarely ask for everything: where colours alone tell its pictures apart,
nothing has to learn a shape. :mod:`mmlib.swapped_words` asks for each word. Where a word looks is
traced back to the pixels by :meth:`RegionWordModel.trace` and marked by :func:`points_inside`.

References:
    Karpathy, Fei-Fei, *Deep Visual-Semantic Alignments for Generating Image Descriptions*, CVPR
    2015 (dot products; each word takes its best region). Lee et al., *Stacked Cross Attention for
    Image-Text Matching*, ECCV 2018 (attention instead of the best; there the word is compared by
    a cosine with the attended mean of regions, here the comparisons themselves are averaged,
    which costs one product less). Zhang et al., *Top-Down Neural Attention by Excitation
    Backprop*, ECCV 2016 (the pointing game). Shrikumar et al.,
    *Not Just a Black Box*, 2016 (gradient times input).
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmlib.contrastive import LogitScale

__all__ = [
    "RegionWordModel",
    "matching_loss",
    "points_inside",
    "word_region_scores",
]


def word_region_scores(
    regions: Float[Tensor, "pictures regions dim"],
    words: Float[Tensor, "texts length dim"],
    keep: Bool[Tensor, "texts length"],
    sharpness: float = 4.0,
    region_keep: Bool[Tensor, "pictures regions"] | None = None,
    *,
    cosine: bool = False,
) -> Float[Tensor, "pictures texts"]:
    r"""The score :math:`s` of every picture with every text.

    Args:
        regions: Region vectors.
        words: Word vectors.
        keep: Which words exist. A text without words scores 0.
        sharpness: :math:`\lambda`. At 0 each word sees the mean over the picture; the larger, the
            more only its best region counts.
        region_keep: Which regions exist, at least one in each picture; all by default.
        cosine: Compare by the cosine instead of the dot product over the root of ``dim``.

    Raises:
        TypeError: a mask is not boolean.
        ValueError: shapes that do not fit, or a negative ``sharpness``.

    >>> picture = torch.eye(3)[None]  # three regions at right angles
    >>> keep = torch.ones(1, 1, dtype=torch.bool)
    >>> score = word_region_scores(picture, picture[:, :1], keep, sharpness=0.0, cosine=True)
    >>> round(score.item(), 4)
    0.3333
    """
    _check(regions, words, keep, sharpness, region_keep)
    if cosine:
        words, regions = F.normalize(words, dim=-1), F.normalize(regions, dim=-1)
    else:
        words = words / math.sqrt(words.shape[-1])
    similarity = torch.einsum("twd,prd->ptwr", words, regions)
    logits = sharpness * similarity
    if region_keep is not None:
        logits = logits.masked_fill(~region_keep[:, None, None], -torch.inf)
    best = (logits.softmax(-1) * similarity).sum(-1)
    count = keep.sum(1).clamp(min=1)
    return best.where(keep, 0.0).sum(-1) / count


def matching_loss(
    scores: Float[Tensor, "batch batch"], logit_scale: Float[Tensor, ""] | float
) -> Float[Tensor, ""]:
    r"""Symmetric contrastive loss of scores whose diagonal holds the true pairs.

    It is :func:`mmlib.contrastive.clip_loss` for scores that are no product of one vector for the
    picture and one for the text.

    Raises:
        ValueError: ``scores`` is not square.
    """
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1] or not len(scores):
        raise ValueError(f"scores must be a square matrix: got shape {tuple(scores.shape)}")
    logits, own = logit_scale * scores, torch.arange(len(scores), device=scores.device)
    return 0.5 * (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own))


class RegionWordModel(nn.Module):
    """A small convolutional network for the regions, one vector for each word of the vocabulary.

    Three convolutions give a grid of a quarter of the picture's side. A region sees 18 × 18
    pixels and nothing beyond: it can know what is there, but not what is elsewhere. Words have no
    context either: *red* has one vector, whatever it stands before.

    Args:
        vocab: How many words there are.
        dim: Width of a region's and a word's vector.
        sharpness: See :func:`word_region_scores`.

    Raises:
        ValueError: a number below 1.
    """

    #: Side of the square of pixels that a region sees.
    sees = 18

    def __init__(self, vocab: int, dim: int = 64, sharpness: float = 60.0) -> None:
        super().__init__()
        for name, value in (("vocab", vocab), ("dim", dim)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1: got {value}")
        self.sharpness = sharpness
        # Even kernels keep what a region sees centred on its cell; odd ones with a stride would
        # shift it by half a step each time, and every word would point beside its object.
        self.picture = nn.Sequential(
            nn.Conv2d(3, 32, 4, stride=2, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, dim, 4, stride=2, padding=1),
            nn.BatchNorm2d(dim),
            nn.ReLU(),
            nn.Conv2d(dim, dim, 3, padding=1),
            nn.BatchNorm2d(dim),
            nn.ReLU(),
            nn.Conv2d(dim, dim, 1),
        )
        self.word = nn.Embedding(vocab, dim)
        self.logit_scale = LogitScale(initial=20.0)

    def fits(
        self, pictures: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch vocab regions"]:
        """How well every word of the vocabulary fits every region, row by row from the top left."""
        words = self.word.weight / math.sqrt(self.word.embedding_dim)
        return torch.einsum("wd,bdr->bwr", words, self.picture(pictures).flatten(2))

    def forward(
        self,
        pictures: Float[Tensor, "pictures 3 height width"],
        words: Int[Tensor, "texts length"],
        keep: Bool[Tensor, "texts length"],
    ) -> Float[Tensor, "pictures texts"]:
        """The score of every picture with every text, each word looking for itself.

        It is :func:`word_region_scores`. As words have no context, each kind of word is scored
        once with each picture, however many texts have it.
        """
        fits = self.fits(pictures)
        best = ((self.sharpness * fits).softmax(-1) * fits).sum(-1)
        return best[:, words].where(keep, 0.0).sum(-1) / keep.sum(1).clamp(min=1)

    def heat(
        self,
        pictures: Float[Tensor, "batch 3 height width"],
        words: Int[Tensor, "batch length"],
        said: Bool[Tensor, "batch length"],
    ) -> Float[Tensor, "batch rows columns"]:
        """How well the words that are said, together, fit each region of their picture."""
        wanted = (self.word(words) * said[..., None]).sum(1) / math.sqrt(self.word.embedding_dim)
        return torch.einsum("bd,bdij->bij", wanted, self.picture(pictures))

    def trace(
        self,
        pictures: Float[Tensor, "batch 3 height width"],
        words: Int[Tensor, "batch length"],
        said: Bool[Tensor, "batch length"],
    ) -> Float[Tensor, "batch height width"]:
        r"""Which pixels the words see: from their best region back to the picture.

        A region sees 18 pixels across, and nothing in the training asks that what it
        has found be in the middle of them. So where the best region lies is not yet where the
        thing is; the pixels that its fit rests on are:

        .. math::
            h_{ij} = \Big|\sum_k x_{kij} \, \frac{\partial}{\partial x_{kij}}
            \max_r \sum_w c_{wr}\Big|,

        the gradient times the input, averaged over squares of 5 pixels. Black pixels explain
        nothing, so things light up and dark backgrounds do not.

        Raises:
            ValueError: the model is in training mode, where batch norm mixes the pictures.
        """
        if self.training:
            raise ValueError("model must be in eval mode: call eval() first")
        with torch.enable_grad():
            leaf = pictures.detach().requires_grad_()
            best = self.heat(leaf, words, said).flatten(1).amax(1)
            (gradient,) = torch.autograd.grad(best.sum(), leaf)
        seen = (gradient * pictures).sum(1, keepdim=True).abs()
        return F.avg_pool2d(seen, 5, stride=1, padding=2, count_include_pad=False)[:, 0]


def points_inside(
    heat: Float[Tensor, "batch rows columns"], boxes: Float[Tensor, "batch boxes 4"]
) -> Bool[Tensor, " batch"]:
    """The pointing game: is the centre of the hottest cell inside one of the boxes?

    Args:
        heat: One map for each question. Of equal cells the first counts.
        boxes: Left, top, right and bottom edge of each right answer, in picture widths. Rows of
            zeros are no boxes.

    Raises:
        ValueError: shapes that do not fit.

    >>> heat = torch.zeros(1, 4, 4)
    >>> heat[0, 0, 3] = 1  # the cell at the top right, with its centre at (0.875, 0.125)
    >>> points_inside(heat, torch.tensor([[[0.7, 0.0, 1.0, 0.3]]]))
    tensor([True])
    """
    if heat.ndim != 3 or 0 in heat.shape:
        raise ValueError(f"heat must have shape (batch, rows, columns): got {tuple(heat.shape)}")
    if boxes.ndim != 3 or len(boxes) != len(heat) or boxes.shape[2] != 4:
        raise ValueError(f"boxes must have shape ({len(heat)}, boxes, 4): got {tuple(boxes.shape)}")
    rows, columns = heat.shape[1:]
    at = heat.flatten(1).argmax(1)
    x, y = (at % columns + 0.5) / columns, (at // columns + 0.5) / rows
    left, top, right, bottom = boxes.unbind(-1)
    inside = (left <= x[:, None]) & (x[:, None] < right)
    return (inside & (top <= y[:, None]) & (y[:, None] < bottom)).any(1)


def _check(
    regions: Tensor, words: Tensor, keep: Tensor, sharpness: float, region_keep: Tensor | None
) -> None:
    for name, x in (("regions", regions), ("words", words)):
        if x.ndim != 3 or 0 in x.shape:
            raise ValueError(
                f"{name} must have shape (items, places, dim), not empty: got {tuple(x.shape)}"
            )
    if regions.shape[2] != words.shape[2]:
        raise ValueError(
            f"regions and words must have one dim: got {regions.shape[2]} and {words.shape[2]}"
        )
    masks = [("keep", keep, words.shape[:2]), ("region_keep", region_keep, regions.shape[:2])]
    for name, mask, shape in masks:
        if mask is None:
            continue
        if mask.dtype != torch.bool:
            raise TypeError(f"{name} must be boolean (True = exists): got {mask.dtype}")
        if mask.shape != shape:
            raise ValueError(f"{name} must have shape {tuple(shape)}: got {tuple(mask.shape)}")
    if region_keep is not None and not region_keep.any(1).all():
        raise ValueError("region_keep must keep at least one region of each picture")
    if not sharpness >= 0:
        raise ValueError(f"sharpness must be at least 0: got {sharpness}")
