"""Preprocessing is that of each checkpoint's own library, pixel by pixel where that can be."""

import io
from functools import cache

import numpy as np
import open_clip
import pytest
import timm
import torch
import torchvision.transforms.v2.functional as tv
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter, ImageOps
from timm.data import create_transform, resolve_data_config
from torchvision.models import ResNet18_Weights, ResNet50_Weights
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification
from transformers import CLIPImageProcessor, ViTImageProcessor

from mmlib.data import emoji
from mmlib.encoders.preprocessing import RECIPES, Recipe, denormalise, preprocess

LEVEL = 1 / 255


def noise(width, height, mode="RGB", seed=0, smooth=True):
    """A coloured picture with edges and flat parts, of any size."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (max(2, height // 8), max(2, width // 8), 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST)
    if smooth:
        image = image.filter(ImageFilter.GaussianBlur(1))
    return image.convert(mode)


@cache
def pictures():
    """Sizes and modes as they come: up- and down-scaling, both orientations, one pixel wide."""
    drawn = emoji.load(background=None).images[200].permute(1, 2, 0).numpy()
    return {
        "wide": noise(300, 200),
        "high": noise(201, 333, seed=1),
        "odd": noise(227, 229, seed=2),
        "exact": noise(224, 224, seed=3),
        "small": noise(31, 40, seed=4),
        "large": noise(900, 700, seed=5),
        "grey": noise(250, 260, "L", seed=6),
        "bilevel": noise(250, 230, "1", seed=7),
        "palette": noise(240, 260, seed=8).quantize(16),
        "cmyk": noise(240, 260, "CMYK", seed=9),
        "one wide": noise(1, 9, seed=10),
        "one high": noise(7, 1, seed=11),
        "drawing": Image.fromarray(drawn, "RGBA"),
    }


OPAQUE = [name for name in pictures() if name != "drawing"]


def lite0_transform():
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    return create_transform(**resolve_data_config(model=model), is_training=False)


PEERS = {
    "imagenet": ResNet18_Weights.IMAGENET1K_V1.transforms(),
    "resnet50": ResNet50_Weights.IMAGENET1K_V2.transforms(),
    "efficientnet-lite0": lite0_transform(),
    "clip": open_clip.image_transform(
        224,
        is_train=False,
        mean=open_clip.OPENAI_DATASET_MEAN,
        std=open_clip.OPENAI_DATASET_STD,
        interpolation="bicubic",
        resize_mode="shortest",
    ),
}


@pytest.mark.parametrize("recipe", PEERS)
@pytest.mark.parametrize("name", OPAQUE)
def test_equals_the_own_transform_of_the_weights(recipe, name):
    image = pictures()[name]
    # torchvision's preset takes RGB for granted, timm and open_clip convert.
    expected = PEERS[recipe](image.convert("RGB"))[None]
    torch.testing.assert_close(preprocess(image, recipe), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("recipe", PEERS)
def test_transparency_dropped_equals_the_libraries(recipe):
    image = pictures()["drawing"]
    expected = PEERS[recipe](image.convert("RGB"))[None]
    found = preprocess(image, recipe, background=None)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


# transformers resamples with torch on 256 levels, Pillow in fixed point; on pictures this smooth
# they differ by a level or two, and on the steps of "bilevel" or one-pixel pictures by few more.
@pytest.mark.parametrize("name", ["wide", "exact", "small", "large", "grey", "palette"])
def test_clip_equals_transformers_within_two_levels(name):
    image = pictures()[name]
    expected = CLIPImageProcessor()(image, return_tensors="pt")["pixel_values"]
    difference = preprocess(image, "clip") - expected
    assert difference.abs().max() < 2.1 * LEVEL / min(RECIPES["clip"].std)
    assert difference.abs().mean() < 0.3 * LEVEL / min(RECIPES["clip"].std)


@pytest.mark.parametrize("name", ["wide", "high", "odd", "exact", "small", "large", "palette"])
def test_vit_equals_transformers_within_two_levels(name):
    image = pictures()[name]
    expected = ViTImageProcessor()(image.convert("RGB"), return_tensors="pt")["pixel_values"]
    difference = preprocess(image, "vit") - expected
    assert difference.abs().max() < 2.1 * LEVEL / 0.5
    assert difference.abs().mean() < 0.3 * LEVEL / 0.5


def test_transformers_crops_one_pixel_aside_at_every_fourth_size():
    # 227 pixels: the corner is 1.5, which torchvision rounds to 2 and transformers to 1.
    image = noise(227, 224)
    expected = CLIPImageProcessor()(image, return_tensors="pt")["pixel_values"]
    mine = preprocess(image, "clip")
    torch.testing.assert_close(mine[..., :-1], expected[..., 1:], rtol=1e-5, atol=1e-5)
    assert (mine - expected).abs().max() > 0.5


@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    resize=st.integers(8, 40),
    cut=st.integers(0, 7),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
)
def test_any_size_equals_torchvision(width, height, resize, cut, interpolation):
    image = noise(width, height, seed=width, smooth=False)
    recipe = Recipe(resize, resize - cut, interpolation, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
    peer = ImageClassification(
        crop_size=resize - cut,
        resize_size=resize,
        mean=recipe.mean,
        std=recipe.std,
        interpolation=InterpolationMode(interpolation),
    )
    torch.testing.assert_close(preprocess(image, recipe), peer(image)[None], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("recipe", ["imagenet", "resnet50", "efficientnet-lite0", "clip", "vit"])
@pytest.mark.parametrize("size", [(300, 200), (100, 141), (229, 227)])
def test_tensors_equal_torchvision(recipe, size):
    images = torch.rand(2, 3, *size, dtype=torch.float64)
    before, r = images.clone(), RECIPES[recipe]
    x = tv.resize(
        images,
        [r.resize, r.resize] if r.whole else [r.resize],
        InterpolationMode(r.interpolation),
        antialias=True,
    )
    x = x.clamp(0, 1)  # the one difference: torchvision lets bicubic overshoot
    if r.crop:
        x = tv.center_crop(x, [r.crop, r.crop])
    expected = tv.normalize(x, r.mean, r.std)
    found = preprocess(images, recipe)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(images, before)


@pytest.mark.parametrize("recipe", ["resnet50", "efficientnet-lite0", "clip", "vit"])
@pytest.mark.parametrize("name", ["wide", "small", "large"])
def test_tensors_and_pillow_images_agree_within_a_few_levels(recipe, name):
    image = pictures()[name]
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
    std = torch.tensor(RECIPES[recipe].std)[:, None, None]
    levels = (preprocess(tensor, recipe) - preprocess(image, recipe)).abs() * std / LEVEL
    # Pillow rounds after the horizontal and after the vertical pass, and cuts off there what a
    # bicubic filter overshoots.
    assert levels.max() < (6 if RECIPES[recipe].interpolation == "bicubic" else 1.1)
    assert levels.mean() < 0.35


def test_without_antialiasing_it_would_be_another_picture():
    image = noise(900, 700, seed=5, smooth=False)
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
    wrong = torch.nn.functional.interpolate(tensor, (224, 224), mode="bilinear")
    right = denormalise(preprocess(image, "vit"), "vit")
    assert (wrong - right).abs().max() > 50 * LEVEL


def test_gradients_reach_the_picture():
    images = torch.rand(1, 3, 30, 20, dtype=torch.float64, requires_grad=True)
    recipe = Recipe(16, 14, "bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    assert torch.autograd.gradcheck(lambda x: preprocess(x, recipe), images)


def test_several_images_are_each_as_alone():
    images = list(pictures().values())
    together = preprocess(images, "clip")
    alone = torch.cat([preprocess(image, "clip") for image in images])
    assert together.shape == (len(images), 3, 224, 224)
    assert together.dtype == torch.float32
    assert together.is_contiguous()
    torch.testing.assert_close(together, alone, rtol=0, atol=0)


def test_images_and_tensors_are_left_as_they_were():
    for image in pictures().values():
        before = (image.mode, image.size, image.tobytes())
        preprocess(image, "clip")
        assert before == (image.mode, image.size, image.tobytes())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_followed(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    noise(300, 200).save(buffer, "PNG", exif=exif)
    image = Image.open(buffer)
    upright = ImageOps.exif_transpose(image)
    assert (upright.size == (200, 300)) == (orientation >= 5)
    expected = PEERS["clip"](upright)[None]
    torch.testing.assert_close(preprocess(image, "clip"), expected, rtol=1e-6, atol=1e-6)


def transparent(mode):
    """Left half opaque red, right half transparent with black below."""
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (4, 0, 8, 8))
    if mode == "P":
        made = Image.new("P", (8, 8), 0)
        made.putpalette([255, 0, 0, 0, 0, 0])
        made.paste(1, (4, 0, 8, 8))
        made.info["transparency"] = 1
        return made
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "LA", "P"])
def test_transparent_pixels_show_the_background(mode):
    image = transparent(mode)
    white = preprocess(image, "scenes")
    assert (white[..., 4:] == 1).all()
    green = preprocess(image, "scenes", background=(0, 255, 0))
    assert torch.equal(green[0, :, 0, 7], torch.tensor([0.0, 1.0, 0.0]))
    assert torch.equal(green[..., :4], white[..., :4])
    dropped = preprocess(image, "scenes", background=None)
    assert (dropped[..., 4:] == 0).all()


def test_half_opacity_mixes():
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 128))
    mixed = preprocess(image, "scenes", background=(0, 0, 255))[0, :, 0, 0]
    torch.testing.assert_close(mixed, torch.tensor([128, 0, 127]) * LEVEL)


@pytest.mark.parametrize("recipe", RECIPES)
def test_denormalise_undoes_the_normalisation(recipe):
    image = noise(224, 224, smooth=False)
    plain = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
    r = RECIPES[recipe]
    normalised = tv.normalize(plain, r.mean, r.std)
    torch.testing.assert_close(denormalise(normalised, recipe), plain, rtol=0, atol=1e-6)


def test_scenes_are_left_alone():
    images = torch.rand(2, 3, 5, 7)
    found = preprocess(images, "scenes")
    assert torch.equal(found, images)
    assert found.data_ptr() != images.data_ptr()


@pytest.mark.parametrize("size", [32, 64, 128, 192, 240, 256])
def test_another_size_cuts_as_timm_does(size):
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    config = resolve_data_config({"input_size": (3, size, size)}, model=model)
    expected = create_transform(**config, is_training=False)
    image = noise(300, 200)
    found = preprocess(image, RECIPES["efficientnet-lite0"].at(size))
    torch.testing.assert_close(found, expected(image)[None], rtol=1e-6, atol=1e-6)


def test_another_size_of_a_recipe_that_crops_nothing():
    assert RECIPES["vit"].at(32) == Recipe(
        32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), whole=True
    )


BAD = [
    ((torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "clip"), TypeError, "divide uint8.*uint8"),
    ((torch.zeros(1, 1, 4, 4), "clip"), ValueError, r"\(batch, 3, height, width\).*\(1, 1, 4, 4\)"),
    ((torch.zeros(3, 4, 4), "clip"), ValueError, r"\(3, 4, 4\)"),
    ((torch.zeros(0, 3, 4, 4), "clip"), ValueError, "not empty"),
    ((torch.full((1, 3, 4, 4), 255.0), "clip"), ValueError, r"\[0, 1\]: got 255 to 255"),
    ((torch.full((1, 3, 4, 4), -0.1), "clip"), ValueError, "got -0.1"),
    ((torch.zeros(1, 3, 4, 4), "resnet"), ValueError, "recipe must be one of.*'resnet'"),
    (([], "clip"), ValueError, "at least one picture"),
    (([np.zeros((4, 4, 3), np.uint8)], "clip"), TypeError, "ndarray"),
    (([Image.new("I;16", (4, 4))], "clip"), ValueError, "8 bits.*'I;16'"),
    ((Image.new("F", (4, 4)), "clip"), ValueError, "8 bits.*'F'"),
    (([Image.new("L", (4, 4)), Image.new("L", (4, 5))], "scenes"), ValueError, "one size"),
    ((Image.new("L", (1, 100_000)), "clip"), ValueError, "long and thin: 100000 × 1"),
    ((torch.zeros(1, 3, 4, 4), Recipe(crop=5)), ValueError, "crop must fit.*crop=5, 4 × 4"),
]


@pytest.mark.parametrize("arguments, error, message", BAD, ids=[row[2] for row in BAD])
def test_bad_input(unchecked, arguments, error, message):
    with pytest.raises(error, match=message):
        unchecked(preprocess)(*arguments)


def test_bad_input_of_denormalise(unchecked):
    with pytest.raises(TypeError, match="uint8"):
        unchecked(denormalise)(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "clip")
    with pytest.raises(ValueError, match=r"\(1, 4, 4, 4\)"):
        unchecked(denormalise)(torch.zeros(1, 4, 4, 4), "clip")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"resize": 0}, "resize must be at least 1"),
        ({"crop": -1}, "crop must be at least 1"),
        ({"resize": 10, "crop": 11}, "crop must be at most resize"),
        ({"interpolation": "nearest"}, "interpolation"),
        ({"whole": True}, "whole needs"),
        ({"std": (1.0, 0.0, 1.0)}, "std"),
        ({"mean": (1.0,)}, "mean and std"),
    ],
)
def test_bad_recipes(unchecked, options, message):
    with pytest.raises(ValueError, match=message):
        unchecked_recipe(options)


def unchecked_recipe(options):
    """Build one past the shape checks, to see the recipe's own errors."""
    recipe = object.__new__(Recipe)
    defaults = {"resize": None, "crop": None, "interpolation": "bilinear", "whole": False}
    values = defaults | {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)} | options
    for name, value in values.items():
        object.__setattr__(recipe, name, value)
    Recipe.__post_init__(recipe)


def test_bad_size_of_a_recipe():
    with pytest.raises(ValueError, match="does not resize"):
        RECIPES["scenes"].at(32)
    with pytest.raises(ValueError, match="size must be at least 1"):
        RECIPES["clip"].at(0)
