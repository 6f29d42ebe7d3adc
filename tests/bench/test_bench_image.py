"""Picture encoders beside the same networks in transformers, torchvision and timm."""

import pytest
import timm
import torch
import torchvision
import transformers
from torch import nn

from mmlib.encoders.image import EfficientNetLite0, ResNet, ResNetConfig, TorchvisionResNet, ViT

AREA = "Picture encoders"


def compare(side_by_side, title, ours, theirs, images, precision, backward=False, rounds=8):
    """Time both, forward only or with the gradients of all weights."""
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")

    def forward(run):
        with torch.no_grad(), autocast:
            return run(images)

    def step(run):
        with autocast:
            loss = run(images).float().square().mean()
        loss.backward()

    run = step if backward else forward
    if not backward and precision == "fp32":
        torch.testing.assert_close(forward(ours), forward(theirs), rtol=1e-3, atol=1e-3)
    title = f"{title}, {precision}, {'forward + backward' if backward else 'forward'}"
    contestants = {"mmlib": lambda: run(ours), "peer": lambda: run(theirs)}
    # Calls take up to seconds: few rounds, of which the fastest counts.
    table = side_by_side(title, contestants, rounds=rounds)
    table.per_second(len(images), "pictures")
    table.as_fast("mmlib", "peer")
    # Activations of a megabyte or so are freed at other moments than in the peer.
    table.light("mmlib", "peer", 1.15, 0)


def compare_vits(side_by_side, title, options, batch, precision, backward=False, rounds=8):
    config = transformers.ViTConfig(attn_implementation="sdpa", **options)
    theirs = transformers.ViTModel(config, add_pooling_layer=False).eval()
    ours = ViT.from_transformers(theirs)
    images = torch.randn(batch, 3, config.image_size, config.image_size)
    compare(
        side_by_side,
        title,
        lambda x: ours(x).tokens,
        lambda x: theirs(x).last_hidden_state,
        images,
        precision,
        backward,
        rounds,
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_vit_b16(side_by_side, precision):
    compare_vits(side_by_side, "ViT-B/16, 8 pictures of 224", {}, 8, precision, rounds=4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_small_vit(side_by_side, precision, backward):
    options = {
        "image_size": 64,
        "patch_size": 8,
        "hidden_size": 256,
        "num_attention_heads": 4,
        "num_hidden_layers": 6,
        "intermediate_size": 1024,
    }
    title = "ViT 256 wide, 32 pictures of 64"
    compare_vits(side_by_side, title, options, 32, precision, backward)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_own_resnet18(side_by_side, precision, backward):
    theirs = torchvision.models.resnet18()
    theirs.fc = nn.Identity()
    ours = ResNet(ResNetConfig(widths=(64, 128, 256, 512), blocks=(2, 2, 2, 2), stem="large"))
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    ours.train(backward), theirs.train(backward)
    images = torch.randn(8, 3, 224, 224)
    title = "ResNet-18, 8 pictures of 224"
    compare(side_by_side, title, lambda x: ours(x).pooled, theirs, images, precision, backward)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_torchvision_resnet50(side_by_side, precision):
    ours = TorchvisionResNet("resnet50").eval()
    theirs = torchvision.models.resnet50()
    theirs.fc = nn.Identity()
    theirs.load_state_dict(ours.backbone.state_dict())
    theirs.eval()
    images = torch.randn(8, 3, 224, 224)
    title = "ResNet-50, 8 pictures of 224"
    compare(side_by_side, title, lambda x: ours(x).pooled, theirs, images, precision)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("size", [224, 128])
def test_efficientnet_lite0(side_by_side, precision, size):
    ours = EfficientNetLite0(pretrained=False).eval()
    theirs = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0)
    theirs.load_state_dict(ours.backbone.state_dict())
    theirs.eval()
    images = torch.rand(8, 3, size, size)
    title = f"EfficientNet-Lite0, 8 pictures of {size}"
    compare(side_by_side, title, lambda x: ours(x).pooled, theirs, images, precision)
