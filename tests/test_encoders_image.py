"""The picture encoders: what they compute, what they take and what they refuse."""

import sys

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from mmlib.data import emoji
from mmlib.encoders import image, pretrained
from mmlib.encoders.image import (
    EfficientNetLite0,
    PatchEmbedding,
    ResNet,
    ResNetConfig,
    TorchvisionResNet,
    ViT,
    ViTConfig,
    imagenet_classes,
    imagenet_head,
)
from mmlib.encoders.preprocessing import RECIPES, preprocess

ENCODERS = {
    "vit": lambda: ViT(ViTConfig(image_size=32, dim=32, layers=2)),
    "vit mean": lambda: ViT(
        ViTConfig(image_size=32, dim=32, layers=2, pool="mean", class_token=False)
    ),
    "vit clip": lambda: ViT(
        ViTConfig(image_size=32, dim=32, layers=2, norm_before=True, patch_bias=False)
    ),
    "resnet": lambda: ResNet(ResNetConfig(widths=(8, 16), blocks=(1, 2))),
    "resnet large stem": lambda: ResNet(ResNetConfig(widths=(8, 16), blocks=(1, 1), stem="large")),
    "torchvision": lambda: TorchvisionResNet("resnet18"),
    "efficientnet": lambda: EfficientNetLite0(pretrained=False),
}
LENGTHS = {"vit": 17, "vit mean": 16, "vit clip": 17, "resnet": 256, "resnet large stem": 16}


@pytest.fixture(params=ENCODERS)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def lite0() -> EfficientNetLite0:
    return EfficientNetLite0().eval()


def randomise(module):
    """Random biases, norms and statistics too: zeros and ones would hide a missing one."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.copy_(1 + 0.3 * torch.randn_like(parameter))
        for key, buffer in module.named_buffers():
            if "running" in key:
                buffer.copy_(0.5 + torch.rand_like(buffer))
    return module.eval()


# What every encoder keeps to


def test_interface(name):
    encoder = ENCODERS[name]().eval()
    encoded = encoder(torch.rand(3, 3, 32, 32))
    assert encoded.tokens.shape == (3, LENGTHS.get(name, 1), encoder.dim)
    assert encoded.pooled.shape == (3, encoder.dim)
    assert encoded.keep.shape == encoded.tokens.shape[:2]
    assert encoded.keep.dtype == torch.bool and encoded.keep.all()
    assert encoded.weights is None
    with_weights = encoder(torch.rand(3, 3, 32, 32), return_weights=True).weights
    if name.startswith("vit"):
        assert len(with_weights) == 2
        assert with_weights[0].self_attention.shape == (3, 4, LENGTHS[name], LENGTHS[name])
    else:
        assert with_weights is None


def test_pictures_that_do_not_exist_are_zeros_and_change_no_other(name):
    encoder, keep = randomise(ENCODERS[name]()), torch.tensor([True, False, True])
    images = torch.rand(3, 3, 32, 32)
    images[1] = torch.nan
    encoded = encoder(images, keep)
    assert (encoded.tokens[1] == 0).all() and (encoded.pooled[1] == 0).all()
    assert torch.equal(encoded.keep, keep[:, None].expand(encoded.tokens.shape[:2]))
    alone = encoder(images[keep])
    torch.testing.assert_close(encoded.tokens[keep], alone.tokens, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoded.pooled[keep], alone.pooled, rtol=1e-4, atol=1e-5)


def test_a_picture_does_not_depend_on_its_batch_and_stays_as_it_was(name):
    encoder, images = randomise(ENCODERS[name]()), torch.rand(4, 3, 32, 32)
    before = images.clone()
    together = encoder(images).tokens
    one_by_one = torch.cat([encoder(row[None]).tokens for row in images])
    torch.testing.assert_close(together, one_by_one, rtol=1e-4, atol=1e-4)
    assert torch.equal(images, before)


def test_every_weight_gets_a_gradient(name):
    encoder, images = ENCODERS[name]().train(), torch.rand(4, 3, 64, 64, requires_grad=True)
    options = {"interpolate_positions": True} if name.startswith("vit") else {}
    encoded = encoder(images, **options)
    probe = torch.randn_like(encoded.tokens)
    ((encoded.tokens * probe).sum() + encoded.pooled.square().sum()).backward()
    for key, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key
    assert images.grad.abs().sum() > 0


def test_float64_and_bfloat16_autocast(name):
    encoder, images = randomise(ENCODERS[name]()), torch.rand(2, 3, 32, 32)
    single = encoder(images)
    with torch.autocast("cpu", torch.bfloat16):
        half = encoder(images)
    scale = single.tokens.std().item()
    assert 0 < (half.tokens - single.tokens).abs().mean() < 0.05 * scale
    double = encoder.double()(images.double())
    assert double.tokens.dtype == double.pooled.dtype == torch.float64
    torch.testing.assert_close(single.tokens.double(), double.tokens, rtol=1e-3, atol=1e-3 * scale)


BAD = [
    ((torch.zeros(1, 3, 32, 32, dtype=torch.uint8),), TypeError, "divide by 255.*uint8"),
    ((torch.zeros(1, 1, 32, 32),), ValueError, r"\(batch, 3, height, width\).*\(1, 1, 32, 32\)"),
    ((torch.zeros(3, 32, 32),), ValueError, r"\(3, 32, 32\)"),
    ((torch.zeros(0, 3, 32, 32),), ValueError, "not empty"),
    ((torch.zeros(1, 3, 32, 32), torch.ones(1)), TypeError, "keep must be boolean.*float32"),
    (
        (torch.zeros(1, 3, 32, 32), torch.ones(2, dtype=torch.bool)),
        ValueError,
        r"keep must have shape \(1,\)",
    ),
]


@pytest.mark.parametrize("arguments, error, message", BAD, ids=[row[2] for row in BAD])
@pytest.mark.parametrize("name", ["vit", "resnet", "torchvision", "efficientnet"])
def test_bad_input(unchecked, name, arguments, error, message):
    encoder = ENCODERS[name]()
    with pytest.raises(error, match=message):
        unchecked(type(encoder).forward)(encoder, *arguments)


# Patches and the Vision Transformer


@pytest.mark.parametrize("size", [(16, 16), (8, 24)])
def test_patch_embedding_is_a_linear_map_of_patches(size):
    embedding = PatchEmbedding(4, 2, 6).double()
    nn.init.normal_(embedding.projection.bias)
    images = torch.randn(3, 2, *size, dtype=torch.float64)
    patches = F.unfold(images, 4, stride=4).mT  # (batch, patches, channels · 4 · 4)
    weight, bias = embedding.projection.weight.flatten(1), embedding.projection.bias
    torch.testing.assert_close(embedding(images), patches @ weight.T + bias, rtol=1e-12, atol=1e-12)


def test_patches_are_numbered_row_by_row():
    embedding = PatchEmbedding(2, 1, 1)
    nn.init.ones_(embedding.projection.weight)
    picture = torch.arange(6.0).reshape(1, 1, 2, 3).repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert embedding(picture).flatten().tolist() == [0.0, 4.0, 8.0, 12.0, 16.0, 20.0]


@pytest.mark.parametrize("pool, class_token", [("cls", True), ("mean", True), ("mean", False)])
def test_pooling(pool, class_token):
    config = ViTConfig(image_size=16, dim=16, layers=1, pool=pool, class_token=class_token)
    encoded = randomise(ViT(config))(torch.rand(2, 3, 16, 16))
    assert encoded.tokens.shape[1] == 4 + class_token
    if pool == "cls":
        expected = encoded.tokens[:, 0]
    else:
        expected = encoded.tokens[:, -4:].mean(dim=1)
    torch.testing.assert_close(encoded.pooled, expected)


def test_attention_goes_back_on_the_picture():
    vit = ViT(ViTConfig(image_size=32, dim=16, heads=2, layers=1))
    assert vit.grid == (4, 4)
    values = torch.arange(17.0)
    assert torch.equal(vit.on_grid(values), torch.arange(1.0, 17.0).reshape(4, 4))
    assert vit.on_grid(torch.rand(2, 3, 7), size=(16, 24)).shape == (2, 3, 2, 3)
    # The patch that differs from the others is where its token says it is.
    with torch.no_grad():
        vit.positions.zero_()
    picture = torch.zeros(1, 3, 32, 32)
    picture[..., 8:16, 24:32] = 1.0
    tokens = vit(picture).tokens[0]
    odd = vit.on_grid((tokens - tokens[1]).abs().sum(-1))
    assert odd.argmax() == 1 * 4 + 3
    assert (odd > 1e-4).sum() == 1
    with pytest.raises(ValueError, match="one for each of 17 tokens"):
        vit.on_grid(torch.zeros(16))


def test_positions_tell_the_order():
    vit = ViT(ViTConfig(image_size=16, dim=16, layers=1, pool="mean"))
    picture = torch.rand(1, 3, 16, 16)
    assert (vit(picture).pooled - vit(picture.roll(8, dims=3)).pooled).abs().max() > 1e-4
    with torch.no_grad():
        vit.positions.zero_()
    torch.testing.assert_close(vit(picture).pooled, vit(picture.roll(8, dims=3)).pooled)


def test_another_size_needs_to_be_asked_for():
    vit = ViT(ViTConfig(image_size=32, dim=16, layers=1))
    images = torch.rand(1, 3, 40, 24)
    with pytest.raises(ValueError, match="32 × 32 pixels: got 40 × 24"):
        vit(images)
    assert vit(images, interpolate_positions=True).tokens.shape == (1, 1 + 5 * 3, 16)
    with pytest.raises(ValueError, match="patch_size=8, 33 × 32 pixels"):
        vit(torch.rand(1, 3, 33, 32), interpolate_positions=True)


def test_dropout_only_in_training():
    vit = ViT(ViTConfig(image_size=16, dim=16, layers=1, dropout=0.5))
    images = torch.rand(1, 3, 16, 16)
    assert not torch.equal(vit(images).tokens, vit(images).tokens)
    vit.eval()
    assert torch.equal(vit(images).tokens, vit(images).tokens)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"image_size": 30}, "patch_size must divide image_size"),
        ({"patch_size": 0}, "patch_size must be at least 1"),
        ({"channels": 0}, "channels must be at least 1"),
        ({"heads": 3}, "heads must divide dim"),
        ({"class_token": False}, "class_token=True"),
        ({"dropout": 1.0}, "dropout"),
        ({"norm_eps": 0.0}, "norm_eps"),
        ({"layers": 0}, "layers must be at least 1"),
    ],
)
def test_bad_vit_config(options, message):
    with pytest.raises(ValueError, match=message):
        ViTConfig(**options)


def test_bad_choices(unchecked):
    for config, options in ((ViTConfig, {"pool": "max"}), (ResNetConfig, {"stem": "tiny"})):
        given = object.__new__(config)
        for key, value in (vars(config()) | options).items():
            object.__setattr__(given, key, value)
        with pytest.raises(ValueError, match="must be 'cls' or 'mean'|must be 'small' or 'large'"):
            config.__post_init__(given)


def test_from_transformers_refuses_another_model():
    with pytest.raises(TypeError, match="got Linear"):
        ViT.from_transformers(nn.Linear(2, 2))


# Our own ResNet


@pytest.mark.parametrize("layers, blocks", [(18, (2, 2, 2, 2)), (34, (3, 4, 6, 3))])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_resnet_equals_torchvision(layers, blocks, training):
    theirs = randomise(torchvision.models.get_model(f"resnet{layers}", num_classes=1))
    theirs.fc = nn.Identity()
    ours = ResNet(ResNetConfig(widths=(64, 128, 256, 512), blocks=blocks, stem="large"))
    state, given = ours.state_dict(), theirs.state_dict()
    assert [v.shape for v in state.values()] == [v.shape for v in given.values()]
    ours.load_state_dict(dict(zip(state, given.values(), strict=True)))
    # In float64: the random norms let single precision's rounding grow from block to block.
    ours.double().train(training), theirs.double().train(training)
    images = torch.randn(2, 3, 70, 97, dtype=torch.float64)
    encoded, expected = ours(images), theirs(images)
    torch.testing.assert_close(encoded.pooled, expected, rtol=1e-9, atol=1e-9)
    # The statistics that training updates are the same too.
    after = theirs.state_dict().values()
    for (key, mine), other in zip(ours.state_dict().items(), after, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9, msg=key)


def test_resnet_tokens_are_the_regions_row_by_row():
    net = randomise(ResNet(ResNetConfig(widths=(4, 8), blocks=(1, 1))))
    assert net.stride == 2
    images = torch.rand(1, 3, 11, 14)
    tokens = net(images).tokens.unflatten(1, (6, 7))  # ⌈11 / 2⌉ · ⌈14 / 2⌉
    changed = images.clone()
    changed[..., 10, 13] += 1.0
    difference = (net(changed).tokens.unflatten(1, (6, 7)) - tokens).abs().sum(-1)[0]
    assert difference[-1, -1] > 0 and difference[:2].sum() == 0 and difference[:, :3].sum() == 0


@pytest.mark.parametrize("size", [(1, 1), (5, 9), (33, 64)])
@pytest.mark.parametrize("stem", ["small", "large"])
def test_resnet_takes_odd_sizes(size, stem):
    net = ResNet(ResNetConfig(widths=(4, 8, 8), blocks=(1, 1, 1), stem=stem)).eval()
    rows, columns = (-(-side // net.stride) for side in size)
    assert net(torch.rand(1, 3, *size)).tokens.shape == (1, rows * columns, 8)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"channels": 0}, "channels"),
        ({"widths": ()}, "one entry for each stage"),
        ({"widths": (8, 8)}, "one entry for each stage"),
        ({"widths": (8, 0, 8)}, "at least 1"),
        ({"blocks": (1, 1, 0)}, "at least 1"),
    ],
)
def test_bad_resnet_config(options, message):
    with pytest.raises(ValueError, match=message):
        ResNetConfig(**options)


# Backbones of other libraries


@pytest.mark.parametrize("net", ["resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2"])
def test_pooled_is_what_torchvisions_classifier_sees(net):
    encoder = randomise(TorchvisionResNet(net))
    theirs = torchvision.models.get_model(net, num_classes=3)
    theirs.fc = nn.Identity()
    theirs.load_state_dict(encoder.backbone.state_dict())
    images = torch.randn(2, 3, 60, 65)
    encoded = encoder(images)
    assert torch.equal(encoded.pooled, theirs.eval()(images))
    assert encoder.dim == encoded.pooled.shape[1] == {"resnet18": 512}.get(net, 2048)
    assert encoded.tokens.shape[1] == 2 * 3
    torch.testing.assert_close(encoded.tokens.mean(1), encoded.pooled)


def test_imagenet_weights_come_through_pretrained(monkeypatch):
    theirs = randomise(torchvision.models.resnet50())
    asked = []

    def weights(name):
        asked.append(name)
        return theirs.state_dict()

    monkeypatch.setattr(pretrained, "weights", weights)
    encoder = TorchvisionResNet("resnet50", "imagenet").eval()
    assert asked == ["resnet50"]
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(theirs.fc(encoder(images).pooled), theirs(images))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("vgg16",), "name must be one of resnet101, .*'vgg16'"),
        (("resnet18", "imagenet"), "for 'resnet50': got name='resnet18'"),
    ],
)
def test_bad_torchvision_resnet(arguments, message):
    with pytest.raises(ValueError, match=message):
        TorchvisionResNet(*arguments)


@pytest.mark.parametrize(
    "make, package",
    [
        (TorchvisionResNet, "torchvision"),
        (EfficientNetLite0, "timm"),
        (imagenet_classes, "torchvision"),
    ],
)
def test_a_missing_library_names_the_extra(monkeypatch, make, package):
    for module in [key for key in sys.modules if key.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'{package}: pip install "mmlib\[pretrained\]"'):
        make()


@pytest.mark.parametrize("make", [lambda **k: TorchvisionResNet("resnet18", **k), None])
def test_frozen_stays_as_it_is(make):
    make = make or (lambda **k: EfficientNetLite0(pretrained=False, **k))
    encoder = make(frozen=True)
    assert not encoder.backbone.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    model = nn.Sequential(encoder)  # train() of a model around it reaches it too
    model.train()
    assert encoder.training and not any(m.training for m in encoder.backbone.modules())
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    images = torch.rand(2, 3, 64, 64, requires_grad=True)
    encoder(images).pooled.sum().backward()
    assert images.grad.abs().sum() > 0
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
    loose = make().train()
    loose(images)
    assert any(m.training for m in loose.backbone.modules())
    assert any("running_mean" in k and v.abs().sum() > 0 for k, v in loose.state_dict().items())


# EfficientNet-Lite0 with its weights


def test_efficientnet_is_the_network_that_was_published(lite0):
    stem, block = lite0.backbone.conv_stem, lite0.backbone.blocks[1][0]
    assert type(stem).__name__ == type(block.conv_dw).__name__ == "Conv2dSame"
    norms = [m for m in lite0.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 49 and {norm.eps for norm in norms} == {1e-3}
    assert sum(isinstance(m, nn.ReLU6) for m in lite0.modules()) == 33
    assert sum(parameter.numel() for parameter in lite0.parameters()) == 3_371_008
    assert lite0.dim == 1280


@pytest.mark.parametrize("size", [224, 128, 65])
def test_efficientnet_equals_plain_convolutions(lite0, size):
    """The published network written down again, with TensorFlow's padding by hand."""
    state = pretrained.weights("efficientnet-lite0")

    def norm(x, prefix):
        statistics = (state[f"{prefix}.running_{kind}"] for kind in ("mean", "var"))
        weight, bias = state[f"{prefix}.weight"], state[f"{prefix}.bias"]
        return F.batch_norm(x, *statistics, weight, bias, eps=1e-3)

    def same(x, prefix, stride=1, groups=1):
        weight = state[f"{prefix}.weight"]
        pads = []
        for side in (x.shape[3], x.shape[2]):  # F.pad begins with the last axis
            total = max((-(-side // stride) - 1) * stride + weight.shape[-1] - side, 0)
            pads += [total // 2, total - total // 2]  # TensorFlow: the odd pixel at the end
        return F.conv2d(F.pad(x, pads), weight, stride=stride, groups=groups)

    x = images = torch.rand(2, 3, size, size) * 2 - 1
    x = F.relu6(norm(same(x, "_conv_stem", 2), "_bn0"))
    strides = {1: 2, 3: 2, 5: 2, 11: 2}  # of the first block of stages 2, 3, 4 and 6
    for index in range(16):
        entry, prefix = x, f"_blocks.{index}"
        if index:
            x = F.relu6(norm(same(x, f"{prefix}._expand_conv"), f"{prefix}._bn0"))
        x = same(x, f"{prefix}._depthwise_conv", strides.get(index, 1), groups=x.shape[1])
        x = F.relu6(norm(x, f"{prefix}._bn1"))
        x = norm(same(x, f"{prefix}._project_conv"), f"{prefix}._bn2")
        if x.shape == entry.shape:
            x = x + entry
    x = F.relu6(norm(same(x, "_conv_head"), "_bn1"))
    logits = x.mean((2, 3)) @ state["_fc.weight"].T + state["_fc.bias"]
    with torch.no_grad():
        encoded = lite0(images)
        torch.testing.assert_close(encoded.tokens, x.flatten(2).mT, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(encoded.pooled, x.mean((2, 3)), rtol=1e-4, atol=1e-4)
        found = imagenet_head()(encoded.pooled)
    torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-4)


# Emoji that look like what the network saw in photographs, and what it must say to them first.
DRAWN = {
    "soccer ball": "soccer ball",
    "penguin": "king penguin",
    "hammer": "hammer",
    "umbrella": "umbrella",
    "ambulance": "ambulance",
    "teapot": "teapot",
    "pretzel": "pretzel",
    "shopping cart": "shopping cart",
    "basketball": "basketball",
    "necktie": "Windsor tie",
    "hourglass done": "hourglass",
    "parachute": "parachute",
    "abacus": "abacus",
    "shield": "shield",
    "screwdriver": "screwdriver",
    "guitar": "electric guitar",
}


def test_efficientnet_knows_drawn_things(lite0):
    emojis = emoji.load()
    chosen = emojis.select([emojis.names.index(name) for name in DRAWN])
    images = preprocess(chosen.images / 255, RECIPES["efficientnet-lite0"].at(224))
    with torch.no_grad():
        logits = imagenet_head()(lite0(images).pooled)
    classes = imagenet_classes()
    first = [classes[i] for i in logits.argmax(1).tolist()]
    hits = [said == wanted for said, wanted in zip(first, DRAWN.values(), strict=True)]
    assert sum(hits) >= 14, first


def test_imagenet_head_and_classes_belong_together():
    classes, head = imagenet_classes(), imagenet_head()
    assert len(classes) == head.out_features == 1000
    assert head.in_features == 1280
    assert classes[0] == "tench" and classes[999] == "toilet tissue"
    assert len(set(classes)) == 1000


def test_everything_is_there_under_one_name():
    for exported in image.__all__:
        assert getattr(image, exported) is not None
