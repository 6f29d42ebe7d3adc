"""Train CLIP from scratch on scenes, and on emoji and clip art with a locked picture tower.

First the scenes: one long run, the same without twins, then short ones that differ from each other
in one thing (a text tower without order, twins in the batch, half of the combinations held out,
more objects, words written into the pictures, a ViT). Every test scene holds a combination of
colour and shape that no training scene has. Then emoji and clip art, English and Chinese, with a
locked ImageNet tower and with one from scratch; their test sets hold out whole concepts.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlib import results
from mmlib.clip import CLIP
from mmlib.data import clipart, emoji, scenes
from mmlib.data.augment import ImageAugment
from mmlib.data.scene_styles import outlines, write
from mmlib.data.scenes import Holdout, Scene
from mmlib.data.twins import EXCHANGES, exchange, twin_scores, twins
from mmlib.encoders.small_cnn import SmallCNN
from mmlib.metrics.retrieval import hit_rate, ranks
from mmlib.small_clips import (
    GROUPS,
    TEMPLATES,
    FixedFeatures,
    picture_clip,
    picture_features,
    picture_tokenizer,
    scene_clip,
    scene_ids,
    scene_vectors,
    sentence,
)
from mmlib.training import TrainConfig, fit, save_weights
from mmlib.zero_shot import accuracy, class_vectors, few_shot, linear_probe, nearest

MINUTES = 25
CHECKPOINTS, RUNS = Path("mmlib/checkpoints"), Path("runs/10_clip")
CARD = {"command": "make train CHAPTER=10", "seed": 0}

# --- scenes ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """What differs between runs on scenes."""

    label: str
    steps: int = 200
    batch: int = 128
    image: str = "cnn"
    text: str = "transformer"
    objects: tuple[int, int] = (2, 2)
    holdout: Holdout = scenes.DEFAULT_HOLDOUT
    twins: tuple[str, ...] = ()
    written: bool = False


VARIANTS = {
    "cnn": Variant("long run", 1200, 256, objects=(1, 2), twins=("shape", "place")),
    "plain": Variant("long run without twins", 800, 256, objects=(1, 2)),
    "two": Variant("short run, two objects"),
    "bag": Variant("short run, bag of words", text="bag"),
    "twins": Variant("short run, colour twins in the batch", twins=("colour",)),
    "half": Variant("short run, half of the combinations", holdout=scenes.holdout(4)),
    "four": Variant("short run, four objects", objects=(4, 4)),
    "reads": Variant("short run, words written in", objects=(1, 1), written=True),
    "vit": Variant("short run, ViT", image="vit"),
}


def scene_batches(variant: Variant) -> Callable[[int], tuple[Tensor, Tensor]]:
    """New training scenes for every step, each followed by its twin if twins are asked for.

    Of several kinds of twins, one scene has the first kind, the next one the second.
    """

    def batch(n: int) -> tuple[Tensor, Tensor]:
        drawn = scenes.sample(
            variant.batch, 1000 + n, split="train", holdout=variant.holdout, objects=variant.objects
        )
        if variant.twins:
            kinds = itertools.cycle(variant.twins)
            both = ((scene, exchange(scene, next(kinds))) for scene in drawn)
            known = variant.holdout.split
            drawn = [s for pair in both for s in pair if s is not None and known(s) == "train"]
            drawn = drawn[: variant.batch]
        pictures = scenes.render(drawn, 32)
        if variant.written:
            generator = torch.Generator().manual_seed(n)
            chosen = torch.rand(len(drawn), 1, 1, 1, generator=generator) < 0.5
            words = [scene.objects[0].shape for scene in drawn]
            pictures = torch.where(chosen, write(pictures, words, generator), pictures)
        return pictures, scene_ids(drawn)

    return batch


def scene_run(variant: Variant, checkpoint: Path | None = None) -> CLIP:
    """Train one variant."""
    model = scene_clip(variant.image, variant.text)
    config = TrainConfig(
        variant.steps,
        learning_rate=2e-3 if variant.image == "cnn" else 1e-3,
        warmup=variant.steps // 10,
        weight_decay=0.05,
        precision="auto",
        checkpoint_every=200 if checkpoint else 0,
        progress=False,
    )
    fit(
        model,
        lambda model, batch: model.loss(*batch),
        scene_batches(variant),
        config,
        checkpoint=checkpoint,
        resume=checkpoint is not None,
    )
    return model.eval()


def distinct(count: int, objects: int, split: str = "test", **options) -> list[Scene]:
    """Scenes with captions that are all different."""
    found: dict[str, Scene] = {}
    for scene in scenes.sample(4 * count, 7, split=split, objects=objects, **options):
        found.setdefault(scenes.caption(scene), scene)
    return list(found.values())[:count]


def retrieval(image: Tensor, text: Tensor) -> tuple[float, float]:
    """R@1 of pictures' captions, and of captions' pictures."""
    score, own = image @ text.T, torch.eye(len(image), dtype=torch.bool)
    return hit_rate(ranks(score, own), 1), hit_rate(ranks(score.T, own.T), 1)


def shape_answers(model: CLIP, items: list[Scene], pictures: Tensor) -> Tensor:
    """Which shape each picture of one object is given, of captions that differ in it only."""
    others = [
        replace(scene, objects=(replace(scene.objects[0], shape=shape),))
        for scene in items
        for shape in scenes.SHAPES
    ]
    with torch.no_grad():
        text = model.encode_text(scene_ids(others)).reshape(len(items), len(scenes.SHAPES), -1)
        image = model.encode_image(pictures)
    return torch.einsum("nd,nsd->ns", image, text).argmax(1)


def noter(name: str, label: str) -> Callable[..., None]:
    """A function that records a number of one run."""

    def note(key: str, value: float, metric: str, tolerance: float = 0.05, **options) -> None:
        options = {"tolerance": tolerance, "seed": 0} | options
        results.record(f"10.{name}_{key}", value, metric=f"{label}: {metric}", **options)

    return note


def scene_marks(name: str, variant: Variant, model: CLIP) -> None:
    """Measure one run and record it."""
    note, long = noter(name, variant.label), name == "cnn"
    most = max(variant.objects)
    for objects in (1, 2, 3) if long else (most,):
        items = distinct(500 if objects > 1 else 300, objects, holdout=variant.holdout)
        there, back = retrieval(*scene_vectors(model, items))
        text = f"{len(items)} distinct captions, unseen combinations, objects: {objects}"
        for key, value, way in (("r1", there, "picture to text"), ("r1_back", back, "back")):
            chance = 1 / len(items)
            note(f"{key}_{objects}", value, f"R@1 {way}, {text}", 0.1, baseline=chance)
    if most > 1:
        seen = distinct(500, most, "train", holdout=variant.holdout)
        share = retrieval(*scene_vectors(model, seen))[0]
        note("r1_seen", share, f"R@1, seen combinations, objects: {most}", 0.1)
        for what in EXCHANGES:
            pairs = twins(
                500 if long else 300, 9, what, split="test", holdout=variant.holdout, objects=most
            )
            scores = twin_scores(*zip(*(scene_vectors(model, side) for side in pairs), strict=True))
            for kind, score in scores.items():
                note(f"twin_{what}_{kind}", score, f"{what}s exchanged, {kind}", 0.1)
    if long:
        many = distinct(4000, 2)
        note("r1_many", retrieval(*scene_vectors(model, many))[0], "R@1 of 4,000 captions", 0.1)
        for level in (0.1, 0.2, 0.4):
            found = retrieval(*scene_vectors(model, distinct(500, 2, noise=level)))[0]
            note(f"noise_{level * 10:.0f}", found, f"R@1 with pixel noise {level}", 0.2)
        found = retrieval(*scene_vectors(model, distinct(500, 2, background="brown")))[0]
        note("brown", found, "R@1 on a brown background", 0.2)
        found = retrieval(*scene_vectors(model, distinct(500, 2), outlines))[0]
        note("outlines", found, "R@1 of outlines", 0.2)
    if long or variant.written:
        word_marks(note, model)


def word_marks(note: Callable[..., None], model: CLIP) -> None:
    """Measure what a word in the picture does to the shape that is seen."""
    items = scenes.sample(500, 11, split="test", objects=1)
    truth = torch.tensor([scenes.SHAPES.index(s.objects[0].shape) for s in items])
    generator = torch.Generator().manual_seed(0)
    wrong = (truth + torch.randint(1, 8, (len(items),), generator=generator)) % 8
    clean = scenes.render(items, 32)
    for kind, given in {"none": None, "right": truth, "wrong": wrong}.items():
        pictures = clean
        if given is not None:
            pictures = write(clean, [scenes.SHAPES[i] for i in given], generator)
        answers = shape_answers(model, items, pictures)
        share = accuracy(answers, truth)
        note(f"word_{kind}", share, f"shape right, word: {kind}", 0.1, baseline=1 / 8)
    note("word_fooled", accuracy(answers, wrong), "shape as the wrong word says", 0.1)


# --- emoji and clip art ------------------------------------------------------------------------

AUGMENT = ImageAugment()


@dataclass(frozen=True)
class Pictures:
    """Pictures of one split, with what can be said of each.

    Attributes:
        images: In [0, 1], 128 pixels.
        words: Names and keywords of each by language; none in Chinese for clip art.
        concepts: Numbers of what is shown.
        groups: Numbers of :data:`mmlib.small_clips.GROUPS`, -1 outside them.
    """

    images: Tensor
    words: dict[str, list[tuple[str, ...]]]
    concepts: Tensor
    groups: Tensor


def load(split: str) -> Pictures:
    """Emoji, and for training the clip art behind them."""
    found = emoji.load(split, 128)
    images, names, order = [found.images], list(found.concepts), list(GROUPS)
    english = [(name, *tags) for name, tags in zip(found.names, found.tags, strict=True)]
    chinese = [(name, *tags) for name, tags in zip(found.names_zh, found.tags_zh, strict=True)]
    groups = [order.index(g) if g in GROUPS else -1 for g in found.groups]
    if split == "train":
        drawn = clipart.load("train", 128)
        images.append(drawn.images)
        names += drawn.concepts
        english += [(name, *tags) for name, tags in zip(drawn.names, drawn.tags, strict=True)]
        chinese += [()] * len(drawn)
        groups += [-1] * len(drawn)
    numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
    concepts = torch.tensor([numbers[name] for name in names])
    words = {"en": english, "zh": chinese}
    return Pictures(torch.cat(images).float() / 255, words, concepts, torch.tensor(groups))


def picture_run(
    data: Pictures, model: CLIP, look: Callable[[Tensor, torch.Generator], Tensor], steps: int
) -> CLIP:
    """Train on pairs in both languages; pictures of one concept are no negatives of each other.

    Args:
        data: Training pictures.
        model: What is trained, but for a locked tower.
        look: From numbers of pictures to what the picture tower takes.
        steps: How many.
    """

    def batch(n: int) -> tuple[Tensor, Tensor, Tensor]:
        dice = torch.Generator().manual_seed(50_000 + n)
        rows = torch.randperm(len(data.images), generator=dice)[:256]
        texts = []
        for i in rows.tolist():
            chinese = data.words["zh"][i] and torch.rand((), generator=dice) < 0.5
            language = "zh" if chinese else "en"
            texts.append(sentence(data.words[language][i], language, dice))
        ids = picture_tokenizer().encode(texts, 96, truncate=True).ids
        return look(rows, dice), ids, data.concepts[rows]

    def loss(model: CLIP, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        return model.loss(*batch[:2], groups=batch[2])

    config = TrainConfig(
        steps, warmup=steps // 10, weight_decay=0.1, precision="auto", progress=False
    )
    fit(model, loss, batch, config)
    return model.eval()


@torch.no_grad()
def picture_marks(
    name: str, model: CLIP, test: Pictures, seen: Tensor, train: Pictures, known: Tensor
) -> None:
    """Measure retrieval of held-out concepts, zero-shot classes, probes; record them.

    Args:
        name: Of the run.
        model: What was trained.
        test: Held-out emoji.
        seen: What the picture tower takes of them.
        train: Training pictures.
        known: What the picture tower takes of them.
    """
    note = noter(name, f"{name} picture tower")
    image, mine = (torch.cat([model.encode_image(p) for p in x.split(250)]) for x in (seen, known))

    def encode(texts: list[str]) -> Tensor:
        return model.encode_text(picture_tokenizer().encode(texts, 96, truncate=True).ids)

    own, inside, labels = torch.eye(len(image)).bool(), test.groups >= 0, test.groups
    for language, templates in TEMPLATES.items():
        vectors = encode([words[0] for words in test.words[language]])
        found = ranks(image @ vectors.T, own)
        for k in (1, 10):
            text = f"R@{k} of {len(image)} held-out emoji's names, {language}"
            note(f"{language}_r{k}", hit_rate(found, k), text, 0.08, baseline=k / len(image))
        names = [group[language] for group in GROUPS.values()]
        for kind, forms in (("one", templates[:1]), ("many", templates)):
            classes = class_vectors(encode, names, forms)
            share = accuracy(nearest(image[inside], classes), labels[inside], balanced=True)
            text = f"zero-shot, 8 groups, {language}, prompts: {kind}, balanced"
            note(f"zero_{language}_{kind}", share, text, 0.1, baseline=1 / 8)
    spaces = {"clip": (image, mine)}
    if name == "locked":
        spaces["tower"] = (model.image(seen).pooled, model.image(known).pooled)
    taught = train.groups >= 0
    for space, (features, probed) in spaces.items():
        probe_marks(
            note, space, features[inside], labels[inside], probed[taught],
            train.groups[taught], train.concepts[taught],
        )  # fmt: skip


def probe_marks(
    note: Callable[..., None], space: str, features: Tensor, truth: Tensor, probed: Tensor,
    labels: Tensor, concepts: Tensor,
) -> None:  # fmt: skip
    """Measure linear probes on all training emoji and on a few of each group.

    The penalty is the one that does best on a fifth of the training concepts.
    """

    def marked(rows: Tensor, penalty: float, x: Tensor, y: Tensor) -> float:
        probe = linear_probe(probed[rows], labels[rows], 8, penalty=penalty, steps=300)
        return accuracy(probe(x).argmax(1), y, balanced=True)

    held, rows = concepts % 5 == 0, torch.arange(len(labels))
    penalties = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
    best = max(penalties, key=lambda p: marked(rows[~held], p, probed[held], labels[held]))
    share = marked(rows, best, features, truth)
    note(f"probe_{space}", share, f"linear probe on {space} vectors, balanced", baseline=1 / 8)
    for shots in (1, 4, 16):
        draws = [marked(few_shot(labels, shots, s), best, features, truth) for s in range(5)]
        text = f"{shots} pictures a group, linear probe on {space} vectors, balanced, mean of 5"
        note(f"few_{shots}_{space}", sum(draws) / 5, text, 0.1)


def picture_runs(steps: int = 240) -> None:
    """The locked tower and the one from scratch, on the same pairs."""
    train, test = load("train"), load("test")
    known, seen = (picture_features(x.images)[..., None, None] for x in (train, test))
    model = picture_clip(FixedFeatures(1280, known.flatten(1)))
    picture_run(train, model, lambda rows, dice: known[rows], steps)
    picture_marks("locked", model, test, seen, train, known)
    card = CARD | {"data": "emoji and clip art, split train", "steps": steps}
    save_weights(model, CHECKPOINTS / "10_locked.safetensors", card, dtype=torch.bfloat16)
    small = [F.interpolate(x.images, size=32, mode="area") for x in (train, test)]
    model = picture_clip(SmallCNN(64))
    picture_run(train, model, lambda rows, dice: AUGMENT(small[0][rows], dice), steps)
    picture_marks("scratch", model, test, small[1], train, small[0])


def main() -> None:
    """Run every part; keep the weights of the scenes' long run and of the locked tower's text."""
    long = VARIANTS["cnn"]
    model = scene_run(long, RUNS / "cnn")
    scene_marks("cnn", long, model)
    data = "scenes of one or two objects, split train, drawn anew for every step"
    card = CARD | {"data": data, "steps": long.steps}
    save_weights(model, CHECKPOINTS / "10_scenes.safetensors", card, dtype=torch.bfloat16)
    picture_runs()
    for name, variant in VARIANTS.items():
        if name != "cnn":
            scene_marks(name, variant, scene_run(variant))


if __name__ == "__main__":
    main()
