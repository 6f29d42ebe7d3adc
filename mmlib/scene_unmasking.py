"""The decoder of chapter 11 that uncovers codes: its sizes, its weights, and what it paints."""

from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmlib.painters import scene_dalle, tokenizer
from mmlib.training import load_weights
from mmlib.unmasking import Unmasker, uncover

__all__ = ["paint_uncovered", "scene_unmasker"]

CHECKPOINT = Path(__file__).parent / "checkpoints" / "11_unmasker.safetensors"
CLIP_WIDTH = 128


def scene_unmasker(*, seed: int = 0, begun: bool = False, trained: bool = False) -> Unmasker:
    """The decoder for scenes of one or two objects, of the sizes of chapter 11's DALL·E.

    Args:
        seed: What the weights are drawn from.
        begun: With the weights of the trained DALL·E where it has them.
        trained: With the weights of chapter 11's long run, in evaluation mode.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Unmasker(scene_dalle().config, tokenizer().codebook, CLIP_WIDTH)
    if trained:
        load_weights(model, CHECKPOINT)
        return model.eval()
    return model.start_from(scene_dalle(trained=True)) if begun else model


@torch.no_grad()
def paint_uncovered(
    model: Unmasker,
    vectors: Float[Tensor, "batch vector"],
    text: Int[Tensor, "batch length"],
    generator: torch.Generator | None = None,
    **options,
) -> Float[Tensor, "batch 3 32 32"]:
    """Uncover codes and paint them.

    Args:
        model: The decoder of :func:`scene_unmasker`.
        vectors: CLIP's of a picture.
        text: Ids of :func:`mmlib.painters.caption_ids`.
        generator: What is drawn from.
        options: Of :func:`mmlib.unmasking.uncover`.

    Raises:
        ValueError: see :func:`mmlib.unmasking.uncover`.
    """
    codes = uncover(model, vectors, text, generator, **options)
    return torch.cat([tokenizer().decode(part) for part in codes.split(64)])
