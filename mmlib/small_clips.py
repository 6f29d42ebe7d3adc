"""The two small CLIPs that chapter 10 trains, and what their pairs are made of.

**Scenes**: a convolutional network or a small ViT for pictures of 32 pixels, and a causal
Transformer for the 40 words of canonical captions. **Emoji and clip art**: a causal Transformer for
English and Chinese from scratch, beside a picture tower that is locked (its vectors are computed
once, :class:`FixedFeatures`) or from scratch, too.

References:
    Zhai et al., *LiT: Zero-Shot Transfer with Locked-image text Tuning*, CVPR 2022.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmlib.clip import CLIP, CLIPConfig
from mmlib.data import emoji, scenes
from mmlib.data.scenes import Scene
from mmlib.encoders.encoded import Encoded
from mmlib.encoders.image import EfficientNetLite0, ViTConfig
from mmlib.encoders.pooling import check_text, mean_tokens
from mmlib.encoders.preprocessing import Recipe, preprocess
from mmlib.encoders.small_cnn import SmallCNN
from mmlib.encoders.text import TextTransformerConfig
from mmlib.encoders.tokenizers import Tokenizer, bpe_tokenizer, word_tokenizer
from mmlib.training import load_weights

__all__ = [
    "GROUPS",
    "TEMPLATES",
    "BagOfWords",
    "FixedFeatures",
    "picture_clip",
    "picture_features",
    "picture_tokenizer",
    "scene_clip",
    "scene_ids",
    "scene_tokenizer",
    "scene_vectors",
    "sentence",
]

CHECKPOINTS = Path(__file__).parent / "checkpoints"
_HALVES = Recipe(128, None, "bicubic", (0.5,) * 3, (0.5,) * 3)
#: Sentences about a picture, by language; the first is the name itself.
TEMPLATES = {
    "en": ("{}", "a picture of {}", "a drawing of {}", "an emoji of {}"),
    "zh": ("{}", "{}的图片", "一幅{}的图画", "{}表情符号"),
}
#: Unicode's groups in words; "Component" (hair and skin) has five pictures and is left out.
GROUPS = {
    "Smileys & Emotion": {"en": "face", "zh": "脸"},
    "People & Body": {"en": "person", "zh": "人"},
    "Animals & Nature": {"en": "animal", "zh": "动物"},
    "Food & Drink": {"en": "food", "zh": "食物"},
    "Travel & Places": {"en": "travel", "zh": "旅行"},
    "Activities": {"en": "sport", "zh": "运动"},
    "Objects": {"en": "tool", "zh": "工具"},
    "Symbols": {"en": "sign", "zh": "标志"},
}


class BagOfWords(nn.Module):
    r"""A text tower that cannot tell who owns which colour: it does not know the order of words.

    .. math:: \operatorname{MLP}\Big(\frac1{|\text{text}|} \sum_t E_{x_t}\Big)

    Args:
        vocab_size: Number of ids.
        dim: Width.
        pad_id: Of padding, which does not count; :class:`~mmlib.clip.CLIP` gives no ``keep``.

    Attributes:
        dim: As given.
    """

    def __init__(self, vocab_size: int, dim: int, pad_id: int) -> None:
        super().__init__()
        self.dim, self.pad_id = dim, pad_id
        self.token = nn.Embedding(vocab_size, dim)
        self.layers = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(
        self,
        ids: Int[Tensor, "batch length"],
        keep: Bool[Tensor, "batch length"] | None = None,
        *,
        return_weights: bool = False,
    ) -> Encoded:
        """Encode texts.

        Args:
            ids: Token ids.
            keep: Which exist; all but padding by default.
            return_weights: There are none.

        Raises:
            TypeError: ``ids`` does not hold integers, or ``keep`` is not boolean.
            ValueError: a wrong shape, or an id outside the vocabulary.
        """
        check_text(ids, keep, self.token.num_embeddings)
        keep = ids != self.pad_id if keep is None else keep
        tokens = self.token(ids)
        return Encoded(tokens, keep, self.layers(mean_tokens(tokens, keep)))


class FixedFeatures(nn.Module):
    """A locked tower whose vectors were computed before: they go in as pictures of one pixel.

    Each number is brought to zero mean and unit spread over the training pictures.

    Args:
        dim: Width of the vectors.
        reference: The training pictures' vectors; without them, zero and one until weights are
            loaded.

    Attributes:
        dim: As given.
    """

    def __init__(self, dim: int, reference: Float[Tensor, "pictures dim"] | None = None) -> None:
        super().__init__()
        self.dim = dim
        mean, spread = torch.zeros(dim), torch.ones(dim)
        if reference is not None:
            mean, spread = reference.mean(dim=0), reference.std(dim=0) + 1e-6
        self.register_buffer("mean", mean)
        self.register_buffer("spread", spread)

    def forward(self, images: Float[Tensor, "batch dim 1 1"]) -> Encoded:
        """Vectors, in the shape in which :class:`~mmlib.clip.CLIP` takes pictures.

        Raises:
            ValueError: another shape.
        """
        if images.shape[1:] != (self.dim, 1, 1):
            raise ValueError(
                f"images must have shape (batch, {self.dim}, 1, 1): got {tuple(images.shape)}"
            )
        x = (images.flatten(1) - self.mean) / self.spread
        return Encoded(x[:, None], torch.ones_like(x[:, :1], dtype=torch.bool), x)


@functools.cache
def scene_tokenizer() -> Tokenizer:
    """The words of canonical captions."""
    return word_tokenizer([" ".join(scenes.vocabulary("en", "canonical"))])


def scene_clip(
    image: str = "cnn", text: str = "transformer", *, seed: int = 0, trained: bool = False
) -> CLIP:
    """A CLIP for scenes of 32 pixels, width 128.

    Args:
        image: ``"cnn"`` or ``"vit"``.
        text: ``"transformer"`` or ``"bag"`` (:class:`BagOfWords`).
        seed: What the weights are drawn from.
        trained: With the weights of chapter 10's long run, of the CNN and the Transformer.

    Raises:
        ValueError: an unknown word, or there are no trained weights for these towers.
    """
    for name, value, allowed in (
        ("image", image, ("cnn", "vit")),
        ("text", text, ("transformer", "bag")),
    ):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}: got {value!r}")
    if trained and (image, text) != ("cnn", "transformer"):
        raise ValueError(f"trained must be False for these towers: got {image!r} and {text!r}")
    tokenizer, dim = scene_tokenizer(), 128
    vit = ViTConfig(image_size=32, patch_size=8, dim=dim, heads=4, layers=4)
    causal = _text_config(tokenizer, dim, max_length=48)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIP(
            CLIPConfig(
                vit if image == "vit" else None, causal if text == "transformer" else None, dim
            ),
            image=None if image == "vit" else SmallCNN(64),
            text=BagOfWords(tokenizer.vocab_size, dim, tokenizer.pad_id) if text == "bag" else None,
        )
    if trained:
        load_weights(model, CHECKPOINTS / "10_scenes.safetensors")
        model.eval()
    return model


def scene_ids(items: Sequence[Scene]) -> Int[Tensor, "scenes length"]:
    """Token ids of the scenes' canonical captions."""
    return scene_tokenizer().encode([scenes.caption(scene) for scene in items]).ids


@torch.no_grad()
def scene_vectors(
    model: CLIP,
    items: Sequence[Scene],
    style: Callable[[Tensor], Tensor] | None = None,
    chunk: int = 250,
) -> tuple[Float[Tensor, "scenes dim"], Float[Tensor, "scenes dim"]]:
    """Vectors of scenes' pictures and of their captions, with the model in evaluation mode.

    Args:
        model: A CLIP for scenes; its mode is put back.
        items: The scenes.
        style: What is done to the pictures first, such as
            :func:`mmlib.data.scene_styles.outlines`.
        chunk: How many are encoded at a time.
    """
    image, text, training = [], [], model.training
    model.eval()
    for start in range(0, len(items), chunk):
        part = items[start : start + chunk]
        pictures = scenes.render(part, 32)
        image.append(model.encode_image(pictures if style is None else style(pictures)))
        text.append(model.encode_text(scene_ids(part)))
    model.train(training)
    return torch.cat(image), torch.cat(text)


@functools.cache
def picture_tokenizer() -> Tokenizer:
    """2,000 byte pairs of the training emoji's English and Chinese names and keywords."""
    data, texts = emoji.load("train", 8), []
    for names, tags, joint in (
        (data.names, data.tags, ", "),
        (data.names_zh, data.tags_zh, "、"),
    ):
        texts += [joint.join((name, *more)) for name, more in zip(names, tags, strict=True)]
    return bpe_tokenizer([*texts, *TEMPLATES["en"], *TEMPLATES["zh"]], 2000)


@torch.no_grad()
def picture_features(
    images: Float[Tensor, "batch 3 height width"], chunk: int = 64
) -> Float[Tensor, "batch 1280"]:
    """What EfficientNet-Lite0 makes of pictures in [0, 1]: the locked tower's vectors.

    Args:
        images: Of 128 pixels; others are resized.
        chunk: How many are encoded at a time.
    """
    tower = EfficientNetLite0(frozen=True).eval()
    return torch.cat([tower(preprocess(part, _HALVES)).pooled for part in images.split(chunk)])


def picture_clip(image: nn.Module | None = None, *, seed: int = 0) -> CLIP:
    """A CLIP for emoji and clip art: a text tower of width 128 beside a given picture tower.

    Args:
        image: The picture tower. None for :class:`FixedFeatures` of EfficientNet-Lite0 with the
            trained weights of chapter 10's long run, in evaluation mode.
        seed: What the weights are drawn from.
    """
    tokenizer = picture_tokenizer()
    tower = FixedFeatures(1280) if image is None else image
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        text = _text_config(tokenizer, 128, max_length=96, dropout=0.1)
        model = CLIP(CLIPConfig(None, text, 128), image=tower)
    if image is None:
        load_weights(model, CHECKPOINTS / "10_locked.safetensors")
        model.eval()
    return model


def sentence(words: Sequence[str], language: str, generator: torch.Generator) -> str:
    """One to three of a picture's names and keywords, in one of the :data:`TEMPLATES`.

    Args:
        words: At least one.
        language: ``"en"`` or ``"zh"``.
        generator: What is drawn from.

    Raises:
        ValueError: there are no words, or the language is unknown.

    >>> sentence(["cat"], "zh", torch.Generator().manual_seed(1))
    'cat表情符号'
    """
    if language not in TEMPLATES:
        raise ValueError(f"language must be one of {', '.join(TEMPLATES)}: got {language!r}")
    if not words:
        raise ValueError("words must not be empty")
    order = torch.randperm(len(words), generator=generator)[:3].tolist()
    count = 1 + int(torch.randint(len(order), (), generator=generator))
    template = TEMPLATES[language][int(torch.randint(4, (), generator=generator))]
    joint = "、" if language == "zh" else ", "
    return template.replace("{}", joint.join(words[i] for i in order[:count]))


def _text_config(tokenizer: Tokenizer, dim: int, **options) -> TextTransformerConfig:
    return TextTransformerConfig(
        tokenizer.vocab_size,
        dim=dim,
        heads=4,
        layers=3,
        causal=True,
        pool="end",
        end_id=tokenizer.end_id,
        **options,
    )
