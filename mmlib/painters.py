"""The small generators that chapter 11 trains, and what they need around them: chapter 11.

Two Transformers over chapter 09's codes, one of scenes and one of emoji, and the prior and the
decoder between chapter 10's vectors and pictures of scenes.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmlib.clip import CLIP
from mmlib.dalle import Dalle, DalleConfig
from mmlib.dalle_generate import generate
from mmlib.data import scenes
from mmlib.data.scenes import Object, Scene
from mmlib.discrete_vae import DiscreteVAE, DiscreteVAEConfig
from mmlib.small_clips import picture_tokenizer, scene_tokenizer
from mmlib.training import load_weights
from mmlib.unclip import CodeFlow, Prior, UnclipConfig, draw_flow

__all__ = [
    "caption_ids",
    "emoji_dalle",
    "grid_scenes",
    "name_ids",
    "paint",
    "paint_flow",
    "rerank",
    "scene_dalle",
    "scene_flows",
    "tokenizer",
]

CHECKPOINTS = Path(__file__).parent / "checkpoints"
CAPTION_LENGTH, NAME_LENGTH = 16, 12


@functools.cache
def tokenizer() -> DiscreteVAE:
    """Chapter 09's discrete autoencoder with its weights, in evaluation mode."""
    return _made(lambda: DiscreteVAE(DiscreteVAEConfig()), 0, "09_dvae")


def grid_scenes(count: int, seed: int, split: str = "train") -> list[Scene]:
    """Scenes of one or two objects whose centres lie on the corners of the codes' cells.

    A code tells of four by four pixels, so an object that is moved by one pixel is another pattern
    of codes: sixteen patterns for each that a caption can ask for. On the corners it is one, and a
    Transformer learns it from a sixteenth of the pictures. A caption tells no place so finely.

    Args:
        count: How many.
        seed: Of :func:`mmlib.data.scenes.sample`, of whose scenes the objects are moved; where two
            would overlap, the scene is left out.
        split: Which combinations of colour and shape; see :func:`mmlib.data.scenes.sample`.

    Raises:
        ValueError: an unknown split, or a count below 0.

    >>> {(item.x * 8 % 1, item.y * 8 % 1) for s in grid_scenes(9, 0) for item in s.objects}
    {(0.0, 0.0)}
    """
    if count < 0:
        raise ValueError(f"count must be at least 0: got {count}")
    found: list[Scene] = []
    for scene in scenes.sample(count + count // 2 + 16, seed, split=split, objects=(1, 2)):
        try:
            found.append(replace(scene, objects=tuple(map(_on_corner, scene.objects))))
        except ValueError:  # two objects overlap
            continue
    return found[:count]


def _on_corner(item: Object) -> Object:
    inside = math.ceil(8 * item.radius) / 8
    x, y = (min(max(round(8 * v) / 8, inside), 1 - inside) for v in (item.x, item.y))
    return replace(item, x=x, y=y)


def caption_ids(items: Sequence[Scene]) -> Int[Tensor, "scenes length"]:
    """Word ids of scenes' canonical captions, of one or two objects, filled up to 16.

    Raises:
        ValueError: there are no scenes, or a caption is too long.
    """
    texts = [scenes.caption(scene) for scene in items]
    return scene_tokenizer().encode(texts, CAPTION_LENGTH, pad_to=CAPTION_LENGTH).ids


def name_ids(names: Sequence[str]) -> Int[Tensor, "names length"]:
    """Ids of names of emoji, filled up or cut to 12.

    Raises:
        ValueError: there are no names.
    """
    tokens = picture_tokenizer().encode(names, NAME_LENGTH, truncate=True, pad_to=NAME_LENGTH)
    return tokens.ids


def scene_dalle(*, seed: int = 0, trained: bool = False) -> Dalle:
    """DALL·E for scenes of one or two objects.

    Args:
        seed: What the weights are drawn from.
        trained: With the weights of chapter 11's long run, in evaluation mode.
    """
    words, pad = scene_tokenizer().vocab_size, scene_tokenizer().pad_id
    config = DalleConfig(words, CAPTION_LENGTH, pad_id=pad, dim=128, heads=4, layers=4)
    return _made(
        lambda: Dalle(config, tokenizer().codebook), seed, "11_scenes" if trained else None
    )


def emoji_dalle(*, seed: int = 0, trained: bool = False) -> Dalle:
    """DALL·E for names of emoji.

    Args:
        seed: What the weights are drawn from.
        trained: With the weights of chapter 11's long run, in evaluation mode.
    """
    words, pad = picture_tokenizer().vocab_size, picture_tokenizer().pad_id
    config = DalleConfig(words, NAME_LENGTH, pad_id=pad, dim=128, heads=4, layers=4, dropout=0.1)
    return _made(lambda: Dalle(config, tokenizer().codebook), seed, "11_emoji" if trained else None)


def scene_flows(*, seed: int = 0, trained: bool = False) -> tuple[Prior, CodeFlow]:
    """The prior and the decoder for scenes.

    Args:
        seed: What the weights are drawn from.
        trained: With the weights of chapter 11's long run, in evaluation mode.
    """
    config = UnclipConfig()
    return (
        _made(lambda: Prior(config), seed, "11_prior" if trained else None),
        _made(
            lambda: CodeFlow(config, tokenizer().codebook),
            seed,
            "11_decoder" if trained else None,
        ),
    )


@torch.no_grad()
def paint(
    model: Dalle,
    text: Int[Tensor, "batch length"],
    generator: torch.Generator | None = None,
    *,
    chunk: int = 400,
    **options,
) -> Float[Tensor, "batch 3 32 32"]:
    """Draw codes for texts and paint them.

    Args:
        model: Trained on chapter 09's codes.
        text: Ids.
        generator: What is drawn from.
        chunk: How many are drawn at a time.
        options: Of :func:`mmlib.dalle_generate.generate`.

    Raises:
        ValueError: see :func:`mmlib.dalle_generate.generate`.
    """
    parts = [generate(model, part, generator, **options) for part in text.split(chunk)]
    return torch.cat([tokenizer().decode(part) for ids in parts for part in ids.split(64)])


@torch.no_grad()
def paint_flow(
    flow: CodeFlow,
    vectors: Float[Tensor, "batch 2 vector"],
    generator: torch.Generator | None = None,
    **options,
) -> Float[Tensor, "batch 3 32 32"]:
    """Draw codes with the decoder of :func:`scene_flows` and paint them.

    Args:
        flow: The decoder.
        vectors: CLIP's vectors of a picture and of a text.
        generator: What is drawn from.
        options: Of :func:`mmlib.unclip.draw_flow`.

    Raises:
        ValueError: see :func:`mmlib.unclip.draw_flow`.
    """
    shape = (flow.config.side**2, flow.table.shape[1])
    codes = flow.nearest(draw_flow(flow, vectors, shape, generator, **options))
    return torch.cat([tokenizer().decode(part) for part in codes.split(64)])


@torch.no_grad()
def rerank(
    clip: CLIP,
    pictures: Float[Tensor, "texts candidates channels height width"],
    text: Int[Tensor, "texts length"],
) -> Float[Tensor, "texts channels height width"]:
    r"""Of the candidates for each text the one that CLIP finds nearest to it.

    .. math:: \arg\max_j\; I_j \cdot T

    Ramesh et al. (2021) take the best of 512.

    Args:
        clip: In evaluation mode.
        pictures: Candidates.
        text: Ids as the CLIP takes them.

    Raises:
        ValueError: there are not as many texts as sets of candidates, or no candidates.
    """
    if pictures.ndim != 5 or len(pictures) != len(text) or not pictures.shape[1]:
        raise ValueError(
            "pictures must have shape (texts, candidates, channels, height, width), with "
            f"{len(text)} texts: got {tuple(pictures.shape)}"
        )
    flat = pictures.flatten(0, 1)
    image = torch.cat([clip.encode_image(part) for part in flat.split(250)])
    scores = torch.einsum(
        "tcd,td->tc", image.unflatten(0, pictures.shape[:2]), clip.encode_text(text)
    )
    return pictures[torch.arange(len(text)), scores.argmax(dim=1)]


def _made(build, seed: int, weights: str | None) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build()
    if weights:
        load_weights(model, CHECKPOINTS / f"{weights}.safetensors")
        model.eval()
    return model
