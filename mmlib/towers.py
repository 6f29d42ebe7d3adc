"""Pretrained towers by name, and how much of them is trained: nothing, the last stages, all.

A tower is any encoder that gives an :class:`~mmlib.encoders.encoded.Encoded`; its stages are its
parts in order from the input. A network that others trained on a million pictures knows edges and
textures that a few thousand pairs would spoil, so that one often tunes the last stages alone.
:class:`mmlib.matching.MatchingModel` joins two towers.

References:
    Yosinski et al., *How transferable are features in deep neural networks?*, NeurIPS 2014.
"""

from typing import Any, NamedTuple

from torch import nn

from mmlib.encoders.backbones import Backbone, EfficientNetLite0, TorchvisionResNet
from mmlib.encoders.bert import Bert
from mmlib.encoders.preprocessing import RECIPES, Recipe
from mmlib.encoders.tokenizers import wordpiece_tokenizer

__all__ = ["Towers", "stages", "towers", "tune", "tuned_parts"]


class Towers(NamedTuple):
    """Two pretrained encoders and what goes into them.

    Attributes:
        image: The picture encoder.
        text: The text encoder.
        tokenizer: What makes ids of a text.
        recipe: What is done to a picture first (:func:`mmlib.encoders.preprocessing.preprocess`).
    """

    image: Backbone
    text: Bert
    tokenizer: Any
    recipe: Recipe


def towers(image: str = "efficientnet-lite0", text: str = "minilm") -> Towers:
    """Load pretrained towers by name, frozen and in evaluation mode.

    Args:
        image: ``"efficientnet-lite0"``, which pip brings, or ``"resnet50"``, which the hub has.
        text: ``"minilm"`` (pip) or ``"bert-base-uncased"`` (hub).

    Raises:
        ValueError: There is no such tower.
        mmlib.download.SourceUnavailable: The weights are not to be had.
    """
    makers = {
        "efficientnet-lite0": EfficientNetLite0,
        "resnet50": lambda: TorchvisionResNet("resnet50", "imagenet"),
    }
    if image not in makers:
        raise ValueError(f"image must be one of {', '.join(makers)}: got {image!r}")
    encoders = makers[image](), Bert.pretrained(text)
    for encoder in encoders:
        tune(encoder.eval(), 0)
    return Towers(*encoders, wordpiece_tokenizer(), RECIPES[image])


def stages(encoder: nn.Module) -> list[list[nn.Module]]:
    """The parts of a tower from the input to the output, as :func:`tune` counts them.

    Raises:
        TypeError: The encoder is of a kind whose parts are not known.
    """
    if isinstance(encoder, Bert):
        last = [] if encoder.pooler is None else [[encoder.pooler]]
        return [[encoder.embeddings], *([block] for block in encoder.encoder.blocks), *last]
    if isinstance(encoder, EfficientNetLite0):
        net = encoder.backbone
        return [[net.conv_stem, net.bn1], *([b] for b in net.blocks), [net.conv_head, net.bn2]]
    if isinstance(encoder, TorchvisionResNet):
        net = encoder.backbone
        return [[net.conv1, net.bn1], [net.layer1], [net.layer2], [net.layer3], [net.layer4]]
    raise TypeError(
        "encoder must be a Bert, EfficientNetLite0 or TorchvisionResNet: "
        f"got {type(encoder).__name__}"
    )


def tune(encoder: nn.Module, last: int | None) -> list[str]:
    """Let only the last stages of a tower be trained; change nothing else.

    Args:
        encoder: A tower that :func:`stages` knows.
        last: How many stages, from the output; 0 freezes all, None frees all.

    Returns:
        The names of the parameters that are trained from now on.

    Raises:
        ValueError: There are not so many stages.
    """
    parts = stages(encoder)
    count = len(parts) if last is None else last
    if not 0 <= count <= len(parts):
        raise ValueError(f"last must be from 0 to {len(parts)} stages, or None: got {last}")
    encoder.requires_grad_(last is None)
    for part in parts[len(parts) - count :]:
        for module in part:
            module.requires_grad_(True)
    return [name for name, p in encoder.named_parameters() if p.requires_grad]


def tuned_parts(encoder: nn.Module) -> nn.ModuleDict:
    """The stages of a tower that are trained, to save them without the rest.

    They are the encoder's own modules: :func:`mmlib.training.load_weights` on the result fills the
    encoder.

    Returns:
        The stages that have a trainable parameter, by number.
    """
    found = {}
    for number, part in enumerate(stages(encoder)):
        if any(p.requires_grad for module in part for p in module.parameters()):
            found[str(number)] = nn.ModuleList(part)
    return nn.ModuleDict(found)
