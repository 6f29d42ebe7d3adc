"""What DALL·E is not shown in training: captions now and then, and some of the codes: chapter 11.

Without a caption now and then it can be guided. Without some of the codes it cannot tell from the
half of a shape which shape this is, and has to read the caption on: else it finishes a green thing
as one of the green things that it has seen, whatever the caption says.

References:
    Ho and Salimans, *Classifier-Free Diffusion Guidance*, 2022. Bowman et al., *Generating
    Sentences from a Continuous Space*, CoNLL 2016 (words that a decoder reads are hidden so that
    it uses what it is given).
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

__all__ = ["codes_to_hide", "without_caption"]


def without_caption(
    text: Int[Tensor, "batch length"], drop: Bool[Tensor, " batch"], pad_id: int
) -> Int[Tensor, "batch length"]:
    """A copy of the texts, some of them replaced by padding alone.

    In training for guidance about one in ten is dropped.

    Args:
        text: Token ids.
        drop: True where the caption goes.
        pad_id: The padding.

    Raises:
        ValueError: ``drop`` does not have one entry for each text.

    >>> without_caption(torch.tensor([[1, 5, 2], [1, 6, 2]]), torch.tensor([True, False]), 0)
    tensor([[0, 0, 0],
            [1, 6, 2]])
    """
    if drop.shape != text.shape[:1]:
        raise ValueError(
            f"drop must have shape ({len(text)},), one for each text: got {tuple(drop.shape)}"
        )
    return text.masked_fill(drop[:, None], pad_id)


def codes_to_hide(
    count: int, places: int, most: float | int, generator: torch.Generator | None = None
) -> Bool[Tensor, "count places"]:
    r"""Draw which codes :class:`~mmlib.dalle.Dalle` hides from those after them.

    .. math:: r_i \sim U(0, r_{\text{most}}), \qquad \text{hidden}_{ij} \sim \text{Bernoulli}(r_i)

    Each picture has a share of its own, so that the model meets pictures with next to nothing
    hidden, as it will when it draws, and pictures with much.

    Args:
        count: Pictures.
        places: Codes of a picture.
        most: The largest share, from 0 to 1.
        generator: What is drawn from.

    Raises:
        ValueError: ``most`` is out of its range.

    >>> codes_to_hide(2, 3, 0.0)
    tensor([[False, False, False],
            [False, False, False]])
    """
    if not 0 <= most <= 1:
        raise ValueError(f"most must be from 0 to 1: got {most}")
    share = most * torch.rand(count, 1, generator=generator)
    return torch.rand(count, places, generator=generator) < share
