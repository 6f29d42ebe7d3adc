"""Every picture encoder: the Vision Transformer, residual networks, pretrained backbones.

All take pictures ``(batch, channels, height, width)``, preprocessed as their weights want it
(:mod:`mmlib.encoders.preprocessing`), and give an :class:`~mmlib.encoders.encoded.Encoded`: one
token for each patch or region, row by row, and one vector for the whole. ``keep`` says which
pictures of the batch exist. They are defined in :mod:`mmlib.encoders.vit`,
:mod:`mmlib.encoders.resnet` and :mod:`mmlib.encoders.backbones`.

====================================================  ==================  =========================
encoder                                               tokens of 224 px    weights
====================================================  ==================  =========================
:class:`~mmlib.encoders.vit.ViT` (B/16)               1 + 196 of 768      transformers' ViT or CLIP
:class:`~mmlib.encoders.resnet.ResNet` (18)           7 × 7 of 512        none
:class:`~mmlib.encoders.backbones.TorchvisionResNet`  7 × 7 of 2048 (50)  ImageNet, from the hub
:class:`~mmlib.encoders.backbones.EfficientNetLite0`  7 × 7 of 1280       ImageNet, from pip
====================================================  ==================  =========================
"""

from mmlib.encoders.backbones import (
    EfficientNetLite0,
    TorchvisionResNet,
    imagenet_classes,
    imagenet_head,
)
from mmlib.encoders.resnet import BasicBlock, ResNet, ResNetConfig
from mmlib.encoders.vit import PatchEmbedding, ViT, ViTConfig

__all__ = [
    "BasicBlock",
    "EfficientNetLite0",
    "PatchEmbedding",
    "ResNet",
    "ResNetConfig",
    "TorchvisionResNet",
    "ViT",
    "ViTConfig",
    "imagenet_classes",
    "imagenet_head",
]
