r"""Twins: two scenes of the same words, put together in another way.

A red square with a blue circle, and a blue square with a red circle: a model that counts words
cannot tell their captions apart, however well it does on random ones, in which some word almost
always differs. So each picture is asked which of the two captions is its own, as in Winoground
(Thrush et al., CVPR 2022) and ARO (Yuksekgonul et al., ICLR 2023), where models of the size of CLIP
do little better than chance.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from mmlib.data.scenes import DEFAULT_HOLDOUT, SPLITS, Holdout, Scene, caption, sample

__all__ = ["EXCHANGES", "exchange", "twin_scores", "twins"]

#: What two objects may exchange.
EXCHANGES = ("colour", "shape", "size", "place")


def exchange(scene: Scene, what: str) -> Scene | None:
    """A scene whose first two objects, in reading order, have exchanged something.

    Args:
        scene: The scene; it is left alone.
        what: ``"colour"``, ``"shape"``, ``"size"`` or ``"place"``.

    Returns:
        The twin, or None where there is none: with fewer than two objects, where nothing would
        change, or where the objects would not fit their new places.

    Raises:
        ValueError: ``what`` is unknown.

    >>> from mmlib.data.scenes import Object
    >>> scene = Scene((Object("square", "red", "small", 0.25, 0.5),
    ...                Object("circle", "blue", "small", 0.75, 0.5)))
    >>> [item.colour for item in exchange(scene, "colour").objects]
    ['blue', 'red']
    """
    if what not in EXCHANGES:
        raise ValueError(f"what must be one of {', '.join(EXCHANGES)}: got {what!r}")
    if len(scene.objects) < 2:
        return None
    first, second, *rest = scene.objects
    names = ("x", "y") if what == "place" else (what,)
    try:
        pair = [
            replace(mine, **{name: getattr(other, name) for name in names})
            for mine, other in ((first, second), (second, first))
        ]
        twin = replace(scene, objects=(*pair, *rest))
    except ValueError:  # an object too large for its new place
        return None
    # Captions, not scenes: two red things that exchange their colours are still the same.
    return None if caption(twin) == caption(scene) else twin


def twins(
    count: int,
    seed: int,
    what: str = "colour",
    *,
    split: str = "all",
    holdout: Holdout = DEFAULT_HOLDOUT,
    objects: int | tuple[int, int] = 2,
) -> tuple[list[Scene], list[Scene]]:
    """Draw scenes that have a twin, and their twins.

    Args:
        count: How many of each.
        seed: The same seed gives the same scenes.
        what: What is exchanged; see :func:`exchange`.
        split: ``"train"``: neither holds a combination that is held out; ``"test"``: the scene
            does, and its twin may; ``"all"``: no matter.
        holdout: What is held out.
        objects: How many objects a scene has, at least 2.

    Raises:
        ValueError: a wrong word or number, or too few scenes of this kind have a twin.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1: got {count}")
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}: got {split!r}")
    found: list[tuple[Scene, Scene]] = []
    for scene in sample(8 * count + 32, seed, split=split, holdout=holdout, objects=objects):
        twin = exchange(scene, what)
        if twin is not None and (split != "train" or holdout.split(twin) == "train"):
            found.append((scene, twin))
        if len(found) == count:
            first, second = zip(*found, strict=True)
            return list(first), list(second)
    raise ValueError(f"only {len(found)} scenes have a twin, of {count} wanted: objects={objects}")


def twin_scores(
    images: Sequence[Float[Tensor, "batch dim"]], texts: Sequence[Float[Tensor, "batch dim"]]
) -> dict[str, float]:
    """How often the right one of two is preferred, from vectors of scenes and of their twins.

    Args:
        images: Vectors of the scenes' pictures and of their twins' pictures.
        texts: Vectors of their captions, likewise.

    Returns:
        ``"caption"``: the share of pictures, of both kinds, that are nearer to their own caption
        than to their twin's; ``"picture"``: the share of captions that are nearer to their own
        picture; ``"all"``: the share of pairs in which all four are right. Chance is a half, a half
        and a sixth. Ties count as wrong.

    Raises:
        ValueError: not two of each, or their shapes differ.

    >>> sides = torch.eye(2)[:1], torch.eye(2)[1:]
    >>> twin_scores(sides, sides)
    {'caption': 1.0, 'picture': 1.0, 'all': 1.0}
    """
    shapes = [tuple(x.shape) for x in (*images, *texts)]
    if len(images) != 2 or len(texts) != 2 or len(set(shapes)) > 1 or len(shapes[0]) != 2:
        raise ValueError(f"images and texts must be two tensors of one shape each: got {shapes}")
    # score[i, j]: picture i of each pair with its caption j.
    score = torch.stack([torch.stack([(x * t).sum(dim=1) for t in texts]) for x in images])
    own = score.diagonal().T[:, None]  # of shape (2, 1, batch)
    caption_right = (own > score).sum(dim=1) == 1
    picture_right = (own.transpose(0, 1) > score).sum(dim=0) == 1
    return {
        "caption": caption_right.double().mean().item(),
        "picture": picture_right.double().mean().item(),
        "all": (caption_right.all(0) & picture_right.all(0)).double().mean().item(),
    }
