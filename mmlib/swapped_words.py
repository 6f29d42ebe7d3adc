r"""Hard negative captions, made by swapping one word: chapter 06.

*A small red star* and *a small red ring*: a picture that fits one and not the other asks for the
shape, which the other captions of a batch seldom do. What words are of one kind is knowledge of
the language; nothing is known of the pictures.

Reference:
    Faghri et al., *VSE++: Improving Visual-Semantic Embeddings with Hard Negatives*, BMVC 2018
    (there the hard negatives are looked for in the batch).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["swapped_word_loss"]


def swapped_word_loss(
    fits: Float[Tensor, "pictures vocab regions"],
    things: Int[Tensor, "pictures things kinds"],
    kinds: Int[Tensor, " vocab"],
    said: Bool[Tensor, "pictures things kinds"],
    sharpness: float,
    logit_scale: Float[Tensor, ""] | float,
) -> Float[Tensor, ""]:
    r"""Each caption against itself with one word swapped; the words of a description look together.

    A description *d* (*a small red star*) is a set of words that attends as one,

    .. math::

        c_{dr} = \sum_{w \in d} c_{wr}, \qquad
        s_d = \sum_r \operatorname{softmax}_r(\lambda\, c_{dr})\, c_{dr} ,

    and each of its words is told from all others of its kind, *a small red ring*, by
    cross-entropy over :math:`s_d`. The other descriptions of the caption are the same on both
    sides, so they cancel. A swapped description that fits another thing of the caption is not
    false and is left out.

    Args:
        fits: :math:`c_{wr}` of every word of the vocabulary, see
            :meth:`mmlib.region_words.RegionWordModel.fits`.
        things: The words of each description, one of each kind, as numbers of the vocabulary; a
            row of -1 where a caption has no more descriptions.
        kinds: For each word of the vocabulary its kind, from 0; -1 for words that stand in none.
        said: Which words of the descriptions are used. One that keeps no word asks nothing.
        sharpness: :math:`\lambda`.
        logit_scale: The factor of the scores inside the cross-entropy.

    Returns:
        The mean over all words that are used.

    Raises:
        TypeError: ``said`` is not boolean.
        ValueError: shapes that do not fit, a negative ``sharpness``, a description with a word of
            another kind, or no word to ask for.
    """
    _check(fits, things, kinds, said, sharpness)
    picture, place = (things[..., 0] >= 0).nonzero(as_tuple=True)
    said, own, others = said[picture, place], things[picture, place], things[picture]
    fits = fits[picture]
    parts = fits.gather(1, own[..., None].expand(-1, -1, fits.shape[2]))
    whole = (parts * said[..., None]).sum(1, keepdim=True)
    losses = []
    for kind in range(things.shape[2]):
        asked = said[:, kind]
        words = (kinds == kind).nonzero().flatten()
        swapped = whole - parts[:, kind : kind + 1] + fits[:, words]
        scores = ((sharpness * swapped).softmax(-1) * swapped).sum(-1)
        # Another thing that has the rest of the description makes its own word true as well.
        rest = (others == own[:, None]) | ~said[:, None]
        rest[..., kind] = True
        true = (others[..., kind, None] == words) & rest.all(-1, keepdim=True)
        mine = own[:, kind, None] == words
        # Infinite only after the product: zero times infinity would be the gradient of the scale.
        logits = (logit_scale * scores).masked_fill(true.any(1) & ~mine, -torch.inf)
        target = mine.int().argmax(1)
        losses.append(F.cross_entropy(logits[asked], target[asked], reduction="sum"))
    return torch.stack(losses).sum() / said.sum()


def _check(fits: Tensor, things: Tensor, kinds: Tensor, said: Tensor, sharpness: float) -> None:
    if fits.ndim != 3 or things.ndim != 3 or len(fits) != len(things) or 0 in fits.shape:
        raise ValueError(
            "fits and things must have shapes (pictures, vocab, regions) and (pictures, things, "
            f"kinds): got {tuple(fits.shape)} and {tuple(things.shape)}"
        )
    if kinds.shape != fits.shape[1:2]:
        raise ValueError(f"kinds must have shape {tuple(fits.shape[1:2])}: got {(*kinds.shape,)}")
    if said.dtype != torch.bool:
        raise TypeError(f"said must be boolean (True = used): got {said.dtype}")
    if said.shape != things.shape:
        raise ValueError(f"said must have shape {tuple(things.shape)}: got {tuple(said.shape)}")
    if not sharpness >= 0:
        raise ValueError(f"sharpness must be at least 0: got {sharpness}")
    there = things[..., 0] >= 0
    if not said[there].any():
        raise ValueError("said must use at least one word")
    if not torch.equal(
        kinds[things[there]], torch.arange(things.shape[2]).expand_as(things[there])
    ):
        raise ValueError("things must hold one word of each kind, in the order of the kinds")
