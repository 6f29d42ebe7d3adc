"""Train CLIP from scratch on scenes, and on emoji and clip art with a locked picture tower.

First the scenes: two picture towers as long as each other, then short runs that differ in one
thing (more objects, twins in the batch, words written into the pictures). Every test scene holds a
combination of colour and shape that no training scene has. Then emoji and clip art, English and
Chinese, with a locked ImageNet tower and with one from scratch; their test sets hold out whole
concepts. What is chosen was chosen on scenes of other seeds and on training concepts held back.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from mmlib import results
from mmlib.clip import CLIP, CLIPConfig
from mmlib.data import clipart, emoji, scenes
from mmlib.data.augment import ImageAugment
from mmlib.data.scenes import Scene
from mmlib.data.twins import EXCHANGES, exchange, twin_scores, twins
from mmlib.encoders.encoded import Encoded
from mmlib.encoders.image import EfficientNetLite0, ViTConfig
from mmlib.encoders.preprocessing import Recipe, preprocess
from mmlib.encoders.small_cnn import SmallCNN
from mmlib.encoders.text import TextTransformerConfig
from mmlib.encoders.tokenizers import Tokenizer, bpe_tokenizer, word_tokenizer
from mmlib.metrics.retrieval import hit_rate, ranks
from mmlib.training import TrainConfig, fit, save_weights
from mmlib.zero_shot import accuracy, class_vectors, few_shot, linear_probe, nearest

MINUTES = 28
CHECKPOINTS, RUNS = Path("mmlib/checkpoints"), Path("runs/10_clip")
SIDE = 32

# --- scenes ------------------------------------------------------------------------------------

TOKENIZER = word_tokenizer([" ".join(scenes.vocabulary("en", "canonical"))])


@dataclass(frozen=True)
class Variant:
    """What differs between runs on scenes."""

    label: str
    steps: int = 300
    tower: str = "cnn"
    objects: tuple[int, int] = (2, 2)
    twins: str = ""
    written: float = 0.0


VARIANTS = {
    "cnn": Variant("CNN tower", 1500, objects=(1, 2)),
    "vit": Variant("ViT tower", 1500, "vit", objects=(1, 2)),
    "two": Variant("short run, two objects"),
    "three": Variant("short run, three objects", objects=(3, 3)),
    "four": Variant("short run, four objects", objects=(4, 4)),
    "twins": Variant("short run, colour twins in the batch", twins="colour"),
    "reads": Variant("short run, shapes' names written in", objects=(1, 1), written=0.5),
}


def scene_model(tower: str = "cnn", seed: int = 0) -> CLIP:
    """Towers of width 128, drawn from a seed."""
    text = TextTransformerConfig(
        TOKENIZER.vocab_size,
        dim=128,
        heads=4,
        layers=3,
        max_length=48,
        causal=True,
        pool="end",
        end_id=TOKENIZER.end_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if tower == "vit":
            return CLIP(CLIPConfig(ViTConfig(SIDE, 8, dim=128, heads=4, layers=4), text, dim=128))
        return CLIP(CLIPConfig(None, text, dim=128), image=SmallCNN(64))


def captions(items: list[Scene]) -> Tensor:
    """Token ids of the scenes' canonical captions."""
    return TOKENIZER.encode([scenes.caption(scene) for scene in items]).ids


def scene_batches(variant: Variant, size: int = 256) -> Callable[[int], tuple[Tensor, Tensor]]:
    """New training scenes for every step, each followed by its twin if twins are asked for."""

    def batch(n: int) -> tuple[Tensor, Tensor]:
        drawn = scenes.sample(size, seed=1000 + n, split="train", objects=variant.objects)
        if variant.twins:
            pairs = ((scene, exchange(scene, variant.twins)) for scene in drawn)
            drawn = [
                scene
                for pair in pairs
                for scene in pair
                if scene is not None and scenes.DEFAULT_HOLDOUT.split(scene) == "train"
            ][:size]
        pictures = scenes.render(drawn, SIDE)
        if variant.written:
            generator = torch.Generator().manual_seed(n)
            chosen = torch.rand(len(drawn), generator=generator) < variant.written
            words = [scene.objects[0].shape for scene in drawn]
            pictures = torch.where(
                chosen[:, None, None, None], write(pictures, words, generator), pictures
            )
        return pictures, captions(drawn)

    return batch


def write(pictures: Tensor, words: list[str], generator: torch.Generator) -> Tensor:
    """Pictures with a word in white letters, each at a random height."""
    font, written = ImageFont.load_default(size=8), pictures.clone()
    for i, word in enumerate(words):
        left, top, right, bottom = font.getbbox(word)
        sheet = Image.new("L", (SIDE, bottom - top + 1))
        ImageDraw.Draw(sheet).text(((SIDE - right + left) / 2, -top), word, 255, font)
        ink = torch.from_numpy(np.asarray(sheet).copy()).float() / 255
        row = int(torch.randint(SIDE - len(ink) + 1, (), generator=generator))
        strip = written[i, :, row : row + len(ink)]
        written[i, :, row : row + len(ink)] = strip + ink * (1 - strip)
    return written


def scene_run(variant: Variant, seed: int = 0, checkpoint: Path | None = None) -> CLIP:
    """Train one variant."""
    model = scene_model(variant.tower, seed)
    fit(
        model,
        lambda model, batch: model.loss(*batch),
        scene_batches(variant),
        TrainConfig(
            variant.steps,
            learning_rate=2e-3 if variant.tower == "cnn" else 1e-3,
            warmup=variant.steps // 10,
            weight_decay=0.05,
            seed=seed,
            checkpoint_every=250 if checkpoint else 0,
            progress=False,
        ),
        checkpoint=checkpoint,
        resume=checkpoint is not None,
    )
    return model.eval()


@torch.no_grad()
def encode(
    model: CLIP, items: list[Scene], style: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Vectors of scenes' pictures, drawn in a style, and of their captions."""
    image, text = [], []
    for start in range(0, len(items), 250):
        part = items[start : start + 250]
        pictures = scenes.render(part, SIDE)
        image.append(model.encode_image(pictures if style is None else style(pictures)))
        text.append(model.encode_text(captions(part)))
    return torch.cat(image), torch.cat(text)


def distinct(count: int, objects: int, seed: int = 7, split: str = "test", **options) -> list:
    """Scenes with captions that are all different."""
    found: dict[str, Scene] = {}
    for scene in scenes.sample(4 * count, seed, split=split, objects=objects, **options):
        found.setdefault(scenes.caption(scene), scene)
    return list(found.values())[:count]


def retrieval(image: Tensor, text: Tensor) -> tuple[float, float]:
    """R@1 of pictures' captions, and of captions' pictures."""
    score, own = image @ text.T, torch.eye(len(image), dtype=torch.bool)
    return hit_rate(ranks(score, own), 1), hit_rate(ranks(score.T, own.T), 1)


def outlines(pictures: Tensor) -> Tensor:
    """Another drawing style: the inner edge of every shape, two pixels wide, and nothing inside."""
    ground = pictures[:, :, :1, :1]
    inside = -F.max_pool2d(-(pictures - ground).abs().amax(1, keepdim=True), 5, 1, 2)
    return torch.where(inside > 0.1, ground, pictures)


def shape_answers(model: CLIP, items: list[Scene], pictures: Tensor) -> Tensor:
    """Which shape each picture of one object is given, of captions that differ in it only."""
    others = [
        replace(scene, objects=(replace(scene.objects[0], shape=shape),))
        for scene in items
        for shape in scenes.SHAPES
    ]
    with torch.no_grad():
        text = model.encode_text(captions(others)).reshape(len(items), len(scenes.SHAPES), -1)
        image = model.encode_image(pictures)
    return torch.einsum("nd,nsd->ns", image, text).argmax(1)


def scene_marks(name: str, variant: Variant, model: CLIP) -> None:
    """Measure one run and record it."""

    def note(key: str, value: float, metric: str, tolerance: float = 0.05, **options) -> None:
        print(f"{name} {key} {value:.4f}", flush=True)
        results.record(
            f"10.{name}_{key}",
            value,
            metric=f"{variant.label}: {metric}",
            tolerance=tolerance,
            seed=0,
            **options,
        )

    long = name in ("cnn", "vit")
    counts = (1, 2, 3) if long else (max(variant.objects),)
    for objects in counts:
        items = distinct(500, objects) if objects > 1 else distinct(300, 1)
        there, back = retrieval(*encode(model, items))
        text = f"{len(items)} distinct captions, unseen combinations, {objects} objects"
        note(f"r1_{objects}", there, f"R@1 picture to text, {text}", baseline=1 / len(items))
        note(f"r1_back_{objects}", back, f"R@1 text to picture, {text}", baseline=1 / len(items))
    if max(variant.objects) == 2:
        seen = distinct(500, 2, split="train")
        note("r1_seen", retrieval(*encode(model, seen))[0], "R@1, two objects, seen combinations")
        for what in EXCHANGES if long else ("colour", "place"):
            sides = [encode(model, side) for side in twins(500, 9, what, split="test")]
            scores = twin_scores(*zip(*sides, strict=True))
            note(f"twin_{what}", scores["caption"], f"own caption of two, {what}s exchanged", 0.04)
            note(f"twin_{what}_all", scores["all"], f"all four right, {what}s exchanged", 0.08)
    if long:
        for level in (0.1, 0.2, 0.4):
            found = retrieval(*encode(model, distinct(500, 2, noise=level)))[0]
            note(f"noise_{level * 10:.0f}", found, f"R@1 with pixel noise {level}", 0.15)
        ground = retrieval(*encode(model, distinct(500, 2, background="brown")))[0]
        note("brown", ground, "R@1 on a brown background", 0.15)
        outline = retrieval(*encode(model, distinct(500, 2), outlines))[0]
        note("outlines", outline, "R@1 of outlines", 0.15)
    if name in ("cnn", "reads"):
        items = scenes.sample(500, 11, split="test", objects=1)
        truth = torch.tensor([scenes.SHAPES.index(s.objects[0].shape) for s in items])
        generator = torch.Generator().manual_seed(0)
        wrong = (truth + torch.randint(1, 8, (len(items),), generator=generator)) % 8
        clean = scenes.render(items, SIDE)
        words = {
            "plain": None,
            "right": [scenes.SHAPES[i] for i in truth],
            "wrong": [scenes.SHAPES[i] for i in wrong],
        }
        for kind, given in words.items():
            pictures = clean if given is None else write(clean, given, generator)
            answers = shape_answers(model, items, pictures)
            share = (answers == truth).double().mean().item()
            note(f"word_{kind}", share, f"shape named rightly, word: {kind}", 0.1, baseline=1 / 8)
        fooled = (answers == wrong).double().mean().item()
        note("word_fooled", fooled, "shape named as the wrong word says", 0.1, baseline=1 / 8)


# --- emoji and clip art ------------------------------------------------------------------------

SEEN_SIZE, VIEWS, PICTURE_STEPS = 128, 6, 600
TEMPLATES_EN = ("{}", "a picture of {}", "a drawing of {}", "an emoji of {}")
TEMPLATES_ZH = ("{}", "{}的图片", "一幅{}的图画", "{}表情符号")
#: Unicode's groups in words; "Component" (hair and skin) has five pictures and is left out.
CLASSES = {
    "Smileys & Emotion": ("face", "脸"),
    "People & Body": ("person", "人"),
    "Animals & Nature": ("animal", "动物"),
    "Food & Drink": ("food", "食物"),
    "Travel & Places": ("travel", "旅行"),
    "Activities": ("sport", "运动"),
    "Objects": ("tool", "工具"),
    "Symbols": ("sign", "标志"),
}
AUGMENT = ImageAugment()
#: The locked tower's own normalisation, without its resizing: pictures are small enough.
HALVES = Recipe(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


class Stored(nn.Module):
    """A locked tower whose vectors were computed before: a picture of one pixel goes through.

    Each number is brought to zero mean and unit spread over the training pictures.
    """

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.dim = features.shape[1]
        self.register_buffer("mean", features.mean(0))
        self.register_buffer("spread", features.std(0) + 1e-6)

    def forward(self, images: Tensor) -> Encoded:
        """``(batch, dim, 1, 1)`` in."""
        x = (images.flatten(1) - self.mean) / self.spread
        return Encoded(x[:, None], torch.ones_like(x[:, :1], dtype=torch.bool), x)


@dataclass(frozen=True)
class Pictures:
    """Pictures of one split, with what can be said of each.

    Attributes:
        images: In [0, 1], 128 pixels.
        english: Names and keywords of each.
        chinese: Likewise; empty where there are none (clip art).
        concepts: Numbers of what is shown.
        groups: Numbers of :data:`CLASSES`, -1 outside them.
    """

    images: Tensor
    english: list[tuple[str, ...]]
    chinese: list[tuple[str, ...]]
    concepts: Tensor
    groups: Tensor


def load(split: str) -> Pictures:
    """Emoji, and for training the clip art behind them."""
    found = emoji.load(split, SEEN_SIZE)
    images, names = [found.images], list(found.concepts)
    english = [(name, *tags) for name, tags in zip(found.names, found.tags, strict=True)]
    chinese = [(name, *tags) for name, tags in zip(found.names_zh, found.tags_zh, strict=True)]
    order = list(CLASSES)
    groups = [order.index(g) if g in CLASSES else -1 for g in found.groups]
    if split == "train":
        drawn = clipart.load("train", SEEN_SIZE)
        images.append(drawn.images)
        names += drawn.concepts
        english += [(name, *tags) for name, tags in zip(drawn.names, drawn.tags, strict=True)]
        chinese += [()] * len(drawn)
        groups += [-1] * len(drawn)
    numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return Pictures(
        torch.cat(images).float() / 255,
        english,
        chinese,
        torch.tensor([numbers[name] for name in names]),
        torch.tensor(groups),
    )


def sentence(words: tuple[str, ...], templates: tuple[str, ...], dice: torch.Generator) -> str:
    """The name or a keyword, with up to two more keywords, in one of the templates."""
    pick = torch.randperm(len(words), generator=dice)[:3].tolist()
    count = 1 + int(torch.randint(len(pick), (), generator=dice))
    form = templates[int(torch.randint(len(templates), (), generator=dice))]
    joint = "、" if templates is TEMPLATES_ZH else ", "
    return form.replace("{}", joint.join(words[i] for i in pick[:count]))


def picture_tokenizer(data: Pictures) -> Tokenizer:
    """Byte pairs of both languages."""
    texts = [", ".join(words) for words in data.english]
    texts += ["、".join(words) for words in data.chinese if words]
    return bpe_tokenizer([*texts, *TEMPLATES_EN, *TEMPLATES_ZH], 2000)


def picture_model(tokenizer: Tokenizer, tower: nn.Module, seed: int = 0) -> CLIP:
    """A text tower of width 192 from scratch beside the picture tower."""
    text = TextTransformerConfig(
        tokenizer.vocab_size,
        dim=192,
        heads=6,
        layers=3,
        max_length=96,
        causal=True,
        pool="end",
        end_id=tokenizer.end_id,
        dropout=0.1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return CLIP(CLIPConfig(None, text, dim=192), image=tower)


@torch.no_grad()
def locked_features(images: Tensor, views: int) -> Tensor:
    """Vectors of the locked tower, ``(views, pictures, 1280)``; view 0 is the picture as it is."""
    tower, found = EfficientNetLite0(frozen=True).eval(), []
    for view in range(views):
        parts = []
        for start in range(0, len(images), 64):
            part = images[start : start + 64]
            if view:
                part = AUGMENT(part, 10_000 * view + start)
            parts.append(tower(preprocess(part, HALVES)).pooled)
        found.append(torch.cat(parts))
    return torch.stack(found)


def picture_run(
    data: Pictures,
    tokenizer: Tokenizer,
    model: CLIP,
    look: Callable[[Tensor, torch.Generator], Tensor],
    steps: int = PICTURE_STEPS,
    rate: float = 1e-3,
) -> CLIP:
    """Train on pairs in both languages; pictures of one concept are no negatives of each other.

    Args:
        data: Training pictures.
        tokenizer: Of the captions.
        model: What is trained, but for a locked tower.
        look: From numbers of pictures to what the picture tower takes.
        steps: How many.
        rate: Peak learning rate.
    """

    def batch(n: int) -> tuple[Tensor, Tensor, Tensor]:
        dice = torch.Generator().manual_seed(50_000 + n)
        rows = torch.randperm(len(data.images), generator=dice)[:256]
        texts = []
        for i in rows.tolist():
            chinese = data.chinese[i] and torch.rand((), generator=dice) < 0.5
            words = data.chinese[i] if chinese else data.english[i]
            texts.append(sentence(words, TEMPLATES_ZH if chinese else TEMPLATES_EN, dice))
        ids = tokenizer.encode(texts, 96, truncate=True).ids
        return look(rows, dice), ids, data.concepts[rows]

    def loss(model: CLIP, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        return model.loss(*batch[:2], groups=batch[2])

    config = TrainConfig(
        steps, learning_rate=rate, warmup=steps // 10, weight_decay=0.1, progress=False
    )
    fit(model, loss, batch, config)
    return model.eval()


@torch.no_grad()
def text_vectors(model: CLIP, tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """Vectors of texts."""
    return model.encode_text(tokenizer.encode(texts, 96, truncate=True).ids)


def picture_marks(
    name: str, model: CLIP, tokenizer: Tokenizer, test: Pictures, seen: Tensor, train: Pictures,
    known: Tensor,
) -> None:  # fmt: skip
    """Measure retrieval of held-out concepts, zero-shot classes, probes; record them.

    Args:
        name: Of the run.
        model: What was trained.
        tokenizer: Of the captions.
        test: Held-out emoji.
        seen: What the picture tower takes of them.
        train: Training pictures.
        known: What the picture tower takes of them.
    """

    def note(key: str, value: float, metric: str, tolerance: float = 0.08, **options) -> None:
        print(f"{name} {key} {value:.4f}", flush=True)
        results.record(
            f"10.{name}_{key}", value, metric=metric, tolerance=tolerance, seed=0, **options
        )

    with torch.no_grad():
        image = torch.cat([model.encode_image(part) for part in seen.split(250)])
        mine = torch.cat([model.encode_image(part) for part in known.split(250)])
    own = torch.eye(len(image), dtype=torch.bool)
    for language, texts in (("en", test.english), ("zh", test.chinese)):
        vectors = text_vectors(model, tokenizer, [words[0] for words in texts])
        found = ranks(image @ vectors.T, own)
        for k in (1, 10):
            share = hit_rate(found, k)
            text = f"R@{k} of {len(image)} held-out emoji's names, {language}"
            note(f"{language}_r{k}", share, text, baseline=k / len(image))
    labels, chance = test.groups, 1 / len(CLASSES)
    inside = labels >= 0
    for number, (language, templates) in enumerate((("en", TEMPLATES_EN), ("zh", TEMPLATES_ZH))):
        names = [words[number] for words in CLASSES.values()]
        for kind, forms in (("one", templates[:1]), ("many", templates)):
            vectors = class_vectors(
                lambda texts: text_vectors(model, tokenizer, texts), names, forms
            )
            share = accuracy(nearest(image[inside], vectors), labels[inside], balanced=True)
            text = f"zero-shot, {len(CLASSES)} groups, {language}, prompts: {kind}, balanced"
            note(f"zero_{language}_{kind}", share, text, baseline=chance)
    train_labels = train.groups[train.groups >= 0]
    for space, features, probed in (
        ("clip", image, mine),
        ("tower", *(standard(x, known) for x in (seen, known))),
    ):
        if space == "tower" and name != "locked":
            continue
        features, probed = features[inside], probed[train.groups >= 0]
        penalty = best_penalty(probed, train_labels, train.concepts[train.groups >= 0])
        probe = linear_probe(probed, train_labels, len(CLASSES), penalty=penalty, steps=300)
        share = accuracy(probe(features).argmax(1), labels[inside], balanced=True)
        note(f"probe_{space}", share, f"linear probe on {space} vectors, balanced", baseline=chance)
        for shots in (1, 4, 16):
            shares = []
            for seed in range(5):
                rows = few_shot(train_labels, shots, seed)
                few = linear_probe(
                    probed[rows], train_labels[rows], len(CLASSES), penalty=penalty, steps=300
                )
                predicted = few(features).argmax(1)
                shares.append(accuracy(predicted, labels[inside], balanced=True))
            text = f"{shots} pictures a group, linear probe on {space} vectors, balanced"
            note(f"few_{shots}_{space}", sum(shares) / 5, f"{text}, mean of 5 draws", 0.1)


def best_penalty(features: Tensor, labels: Tensor, concepts: Tensor) -> float:
    """The penalty of a linear probe that does best on a fifth of the training concepts."""
    held = concepts % 5 == 0
    scores = {}
    for penalty in (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0):
        probe = linear_probe(
            features[~held], labels[~held], len(CLASSES), penalty=penalty, steps=300
        )
        predicted = probe(features[held]).argmax(1)
        scores[penalty] = accuracy(predicted, labels[held], balanced=True)
    return max(scores, key=scores.get)


def standard(x: Tensor, reference: Tensor) -> Tensor:
    """Stored vectors with zero mean and unit spread over a reference."""
    x, reference = x.flatten(1), reference.flatten(1)
    return (x - reference.mean(0)) / (reference.std(0) + 1e-6)


def picture_runs(steps: int = PICTURE_STEPS, views: int = VIEWS) -> None:
    """The locked tower and the one from scratch, on the same pairs."""
    train, test = load("train"), load("test")
    tokenizer = picture_tokenizer(train)
    stored, seen = locked_features(train.images, views), locked_features(test.images, 1)[0]

    def locked(rows: Tensor, dice: torch.Generator) -> Tensor:
        view = torch.randint(views, (len(rows),), generator=dice)
        return stored[view, rows][:, :, None, None]

    model = picture_model(tokenizer, Stored(stored[0]))
    picture_run(train, tokenizer, model, locked, steps)
    picture_marks(
        "locked", model, tokenizer, test, seen[..., None, None], train, stored[0][..., None, None]
    )
    small = [F.interpolate(x.images, size=SIDE, mode="area") for x in (train, test)]

    def pictures(rows: Tensor, dice: torch.Generator) -> Tensor:
        return AUGMENT(small[0][rows], dice)

    model = picture_model(tokenizer, SmallCNN(96))
    picture_run(train, tokenizer, model, pictures, steps)
    picture_marks("scratch", model, tokenizer, test, small[1], train, small[0])


def main() -> None:
    """Run every part; keep the weights of the long run with the CNN tower."""
    for name, variant in VARIANTS.items():
        long = name in ("cnn", "vit")
        model = scene_run(variant, checkpoint=RUNS / name if long else None)
        scene_marks(name, variant, model)
        if name == "cnn":
            card = {
                "command": "make train CHAPTER=10",
                "data": "scenes of one or two objects, split train, drawn anew for every step",
                "seed": 0,
                "steps": variant.steps,
            }
            path = CHECKPOINTS / "10_clip.safetensors"
            save_weights(model, path, card, dtype=torch.bfloat16)
    picture_runs()


if __name__ == "__main__":
    main()
