"""Train towers, a cross-encoder and a Chinese tower on emoji and clip art, three seeds each.

Two questions are asked of every model: 500 pictures of concepts that no training picture shows, and
500 pictures drawn at random, most of whose concepts are known. All pictures go once through the
stages of the picture tower that stand still, as they are and changed at random, and all texts once
through the text tower; what is trained starts from there.

For the second question there is a recipe of its own, which validation chose on another 500 pictures
drawn at random from the training part of that split: larger pictures, what earlier stages saw, and
far more steps. On unknown concepts none of the three helps.
"""

import statistics
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlib import results
from mmlib.chinese_tower import ChineseTower, distillation_loss
from mmlib.class_words import ClassWords
from mmlib.cross_encoder import CrossEncoder, CrossEncoderConfig, rerank
from mmlib.data import emoji, pairs
from mmlib.data.augment import ImageAugment
from mmlib.data.batch import Batch
from mmlib.data.pairs import PairSet
from mmlib.data.rewrite import replace_name
from mmlib.encoders.encoded import Encoded
from mmlib.encoders.image import EfficientNetLite0, imagenet_classes, imagenet_head
from mmlib.encoders.preprocessing import Recipe, preprocess
from mmlib.encoders.regions import encode_map
from mmlib.encoders.text import embed_texts
from mmlib.matching import (
    Heads,
    MatchingConfig,
    MatchingModel,
    hard_batch,
    hard_negatives,
    matching_loss,
)
from mmlib.metrics.bootstrap import interval
from mmlib.metrics.retrieval import hit_rate, median_rank, ranks
from mmlib.picture_details import PictureDetails
from mmlib.picture_search import CHECKPOINTS, RECIPE, chinese_tower, matching_model
from mmlib.towers import stages, towers, tune, tuned_parts
from mmlib.training import TrainConfig, fit, save_weights
from mmlib.triplet import triplet_loss

MINUTES = 25
SEEDS = (0, 1, 2)
RECIPE_NAME = "partly"
VIEWS, SIDE = 1, 128
CROSS = CrossEncoderConfig(image_dim=1280, text_dim=384, dim=128, layers=2, dropout=0.2)
AUGMENT = ImageAugment(
    rotation=20.0, scale=0.25, crop=0.2, brightness=0.2, contrast=0.2, saturation=0.2
)
IMAGE, TEXT, TOKENIZER, _ = towers()


@torch.no_grad()
def see(images: Tensor, seed: int | None = None, recipe: Recipe = RECIPE) -> Tensor:
    """What the stages that stand still make of pictures: maps of 192 channels, 4 by 4 or 7 by 7."""
    generator, maps = torch.Generator().manual_seed(seed or 0), []
    for part in images.split(32):
        x = part.float() / 255
        x = preprocess(x if seed is None else AUGMENT(x, generator), recipe)
        for stage in stages(IMAGE)[:-2]:
            for module in stage:
                x = module(x)
        maps.append(x.half())
    return torch.cat(maps)


def wordings(items: PairSet) -> dict[str, list[str]]:
    """Each picture's caption, and two other ways to say what it shows."""
    rows = list(zip(items.names, items.tags, strict=True))
    return {
        "name": list(items.names),
        "keywords": [", ".join(tags) for _, tags in rows],
        "one keyword": [replace_name(n, n, tags, seed=i) for i, (n, tags) in enumerate(rows)],
    }


@torch.no_grad()
def load() -> dict:
    """Everything that is computed once."""
    items = pairs.load("all", SIDE)
    maps = torch.stack([see(items.images, seed) for seed in (None, *range(VIEWS))])
    texts = [
        embed_texts(TEXT, TOKENIZER, said, max_length=64, truncate=True)
        for said in wordings(items).values()
    ]
    classes = embed_texts(TEXT, TOKENIZER, list(imagenet_classes()))
    tower = Matcher(replace(FROZEN, words=False), {}, maps[0, :1])
    # MiniLM's words for the cross-encoder, a few at a time.
    ids, keep = TOKENIZER.encode(list(items.names))
    words = [TEXT(i, k).tokens.half() for i, k in zip(ids.split(64), keep.split(64), strict=True)]
    return {
        "items": items,
        "maps": maps,
        "pooled": torch.stack([tower.pooled(view) for view in maps]),
        "texts": torch.stack(texts),
        "classes": classes,
        "words": (torch.cat(words), keep),
        "tags_zh": emoji.load("all", 8).tags_zh,
    }


class Matcher(nn.Module):
    """Heads, with the picture tower's last stages before them, which are trained or not."""

    def __init__(self, variant: "Variant", data: dict, seen: Tensor) -> None:
        super().__init__()
        self.tower = EfficientNetLite0().eval()
        tune(self.tower, variant.stages)
        words = ClassWords(imagenet_head(), data["classes"]) if variant.words else None
        config = MatchingConfig(variant.dim, variant.score, variant.dropout)
        self.heads = Heads(self.tower.dim, 384, config, words)
        if words is not None:
            words.adapt(seen)

    def train(self, mode: bool = True) -> "Matcher":
        """Batch norms keep their statistics, as in :class:`mmlib.matching.MatchingModel`."""
        super().train(mode)
        self.tower.eval()
        return self

    def regions(self, maps: Tensor) -> Encoded:
        """The last two stages of the tower on what those before them made."""
        x = maps.float()
        for stage in stages(self.tower)[-2:]:
            for module in stage:
                x = module(x)
        return encode_map(x, None)

    def pooled(self, maps: Tensor) -> Tensor:
        """One vector for each picture."""
        return torch.cat([self.regions(part).pooled for part in maps.split(256)])

    def forward(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Vectors in the shared space; pictures come as maps, or as vectors already."""
        images, texts = batch[:2]
        return self.heads(images if images.ndim == 2 else self.pooled(images), texts)


@dataclass(frozen=True)
class Variant:
    """What differs between runs; as it stands, the recipe that validation chose."""

    label: str = "the recipe"
    score: str = "cosine"
    loss: str = "softmax"
    negatives: str = "random"
    words: bool = True
    views: bool = True
    texts: bool = True
    stages: int = 0
    dim: int = 384
    dropout: float = 0.5
    steps: int = 40
    batch: int = 256
    rate: float = 1e-3


LINEAR = Variant(
    "frozen towers + linear heads", words=False, views=False, texts=False, dropout=0.0, steps=80
)
FROZEN = Variant("frozen towers, class words, augmentation")
MAIN = {
    "linear": LINEAR,
    "frozen": FROZEN,
    "partly": Variant("last two stages tuned", stages=2, steps=60, batch=128),
}
ABLATIONS = {
    "no_words": replace(FROZEN, label="frozen, without class words", words=False),
    "no_views": replace(FROZEN, label="frozen, pictures not augmented", views=False),
    "no_texts": replace(FROZEN, label="frozen, texts not augmented", texts=False),
    "bilinear": replace(FROZEN, label="frozen, bilinear score", score="bilinear"),
    "mined": replace(FROZEN, label="frozen, mined negatives", negatives="mined"),
    "hardest": replace(FROZEN, label="frozen, hardest negative of the batch", loss="hardest"),
}


def objective(model: Matcher, batch: tuple[Tensor, ...], kind: str) -> Tensor:
    """The loss of one batch; pictures with one caption are no negatives of each other."""
    image, text = model(batch)
    if kind == "hardest":
        there = triplet_loss(image, text, 0.2, "hardest", groups=batch[2])
        return there + triplet_loss(text, image, 0.2, "hardest", groups=batch[2])
    return matching_loss(model.heads.score(image, text), batch[2])


def train(variant: Variant, data: dict, rows: Tensor, seed: int) -> Matcher:
    """Train on some of the pairs."""
    batch = variant.batch
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Matcher(variant, data, data["pooled"][0, rows])
    # Where the last stages stand still too, each picture's vectors stay the same.
    maps = data["maps" if variant.stages else "pooled"][:, rows]
    texts = data["texts"][:, rows]
    names = [data["items"].names[i] for i in rows.tolist()]
    groups = torch.tensor([names.index(name) for name in names])
    mined: dict[str, Tensor] = {}

    def batches(n: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + n)
        if variant.negatives == "mined" and n >= variant.steps // 4:
            if n % (variant.steps // 4) == 0:
                mined["negatives"] = mine(model, maps[0], texts[0], groups)
            chosen = hard_batch(mined["negatives"], batch, generator)
        else:
            chosen = torch.randperm(len(rows), generator=generator)[:batch]
        view, kind = torch.rand(2, batch, generator=generator)
        view = (view * len(maps)).long() if variant.views else torch.zeros_like(chosen)
        # Half of the texts are the captions that will be asked for.
        kind = (kind * 4 - 1).clamp(min=0).long() if variant.texts else torch.zeros_like(chosen)
        return maps[view, chosen], texts[kind, chosen], groups[chosen]

    fit(
        model,
        lambda model, batch: objective(model, batch, variant.loss),
        batches,
        TrainConfig(
            variant.steps,
            learning_rate=variant.rate,
            warmup=variant.steps // 10,
            weight_decay=0.05,
            seed=seed,
            progress=False,
        ),
    )
    return model.eval()


@torch.no_grad()
def mine(model: Matcher, maps: Tensor, texts: Tensor, groups: Tensor) -> Tensor:
    """Each picture's seven most confusing others, as the model is now."""
    was = model.training
    scores = model.eval().heads.score(*model((maps, texts)))
    model.train(was)
    return hard_negatives(scores, groups[:, None] == groups, 7)


@torch.no_grad()
def scores_of(model: Matcher, data: dict, rows: Tensor) -> Tensor:
    """Every picture against every caption."""
    maps = data["maps"][0, rows]
    return model.heads.score(*model((maps, data["texts"][0, rows])))


def measure(scores: Tensor) -> dict[str, float]:
    """Both directions; pairs are on the diagonal."""
    right = torch.eye(len(scores), dtype=torch.bool)
    found = {}
    for side, r in (("text", ranks(scores, right)), ("image", ranks(scores.T, right.T))):
        found |= {f"{side}_r{k}": hit_rate(r, k) for k in (1, 5, 10)}
        found[f"{side}_median"] = median_rank(r)
    return found


def protocols(items: PairSet) -> dict[str, tuple[Tensor, Tensor]]:
    """Pairs to train on and 500 to be asked about, by concept and at random."""
    held_out = set(pairs.load("test", 8).concepts)
    test = torch.tensor([concept in held_out for concept in items.concepts])
    seen, unseen = (~test).nonzero()[:, 0], test.nonzero()[:, 0]
    unseen = unseen[pairs.distinct([items.names[i] for i in unseen.tolist()], 500)]
    drawn = pairs.distinct(items.names, 500, seed=1)
    rest = torch.ones(len(items), dtype=torch.bool).index_fill(0, drawn, False).nonzero()[:, 0]
    return {"concept": (seen, unseen), "random": (rest, drawn)}


def cross_pairs(
    negatives: dict[str, Tensor], size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures, texts and whether they match: a third do, the rest are mined both ways."""
    own = torch.randperm(len(negatives["text"]), generator=generator)[:size]
    which = torch.randint(negatives["text"].shape[1], (2, size), generator=generator)
    images = torch.cat([own, own, negatives["image"][own, which[1]]])
    texts = torch.cat([own, negatives["text"][own, which[0]], own])
    return images, texts, (torch.arange(3 * size) < size).float()


def train_cross(towers_: Matcher, data: dict, rows: Tensor, seed: int) -> CrossEncoder:
    """Train a cross-encoder on pairs and on what the towers take for pairs."""
    names = [data["items"].names[i] for i in rows.tolist()]
    same = torch.tensor([names.index(name) for name in names])
    same = same[:, None] == same
    with torch.no_grad():
        scores = scores_of(towers_, data, rows)
    negatives = {
        "text": hard_negatives(scores, same, 7),
        "image": hard_negatives(scores.T, same, 7),
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CrossEncoder(CROSS)

    def batches(n: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + n)
        images, texts, match = cross_pairs(negatives, 32, generator)
        return rows[images], rows[texts], match

    def loss(model: CrossEncoder, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        with torch.no_grad():
            regions = towers_.regions(data["maps"][0, batch[0]])
        logits = model(regions, read(data, batch[1]))
        return F.binary_cross_entropy_with_logits(logits, batch[2])

    config = TrainConfig(
        60, learning_rate=1e-3, warmup=6, weight_decay=0.05, seed=seed, progress=False
    )
    fit(model, loss, batches, config)
    return model.eval()


def read(data: dict, texts: Tensor) -> Encoded:
    """The words of captions, by number."""
    tokens, keep = data["words"]
    keep = keep[texts]
    longest = int(keep.sum(1).max())
    return Encoded(tokens[texts, :longest].float(), keep[:, :longest], tokens[texts, 0].float())


@torch.no_grad()
def rescored(towers_: Matcher, cross: CrossEncoder, data: dict, rows: Tensor) -> dict[str, Tensor]:
    """Scores with the first twenty in a new order, by both models together, for both directions."""
    scores = scores_of(towers_, data, rows)
    regions = towers_.regions(data["maps"][0, rows])

    def ask(images: Tensor, texts: Tensor) -> Tensor:
        found = []
        for i, t in zip(images.split(250), texts.split(250), strict=True):
            picked = Encoded(*(part[i] for part in regions[:3]))
            found.append(cross(picked, read(data, rows[t])))
        return torch.cat(found) + scores[images, texts]

    return {
        "text": rerank(scores, ask, 20),
        "image": rerank(scores.T.contiguous(), lambda t, i: ask(i, t), 20),
    }


def note(name: str, value: float, metric: str, tolerance: float = 0.05, **kw) -> None:
    """One row."""
    results.record(f"07.{name}", value, metric=metric, tolerance=tolerance, **kw)


def compare(
    variants: dict[str, Variant], data: dict, rows: dict[str, tuple[Tensor, Tensor]]
) -> list[Matcher]:
    """Each variant on unknown concepts, the main ones on a random split too; the best's models."""
    kept = []
    for name, variant in variants.items():
        for protocol in ("concept", "random") if name in MAIN else ("concept",):
            runs, train_rows = [], rows[protocol][0]
            for seed in SEEDS:
                model = train(variant, data, train_rows, seed)
                scores = scores_of(model, data, rows[protocol][1])
                runs.append(measure(scores))
                print(name, protocol, seed, runs[-1], flush=True)
                if (name, protocol, seed) == ("frozen", "concept", SEEDS[0]):
                    fully(data, rows[protocol], model.heads)
                if (name, protocol) == (RECIPE_NAME, "concept"):
                    kept.append(model)
                    if seed == SEEDS[0]:
                        sources_and_intervals(scores, data["items"], rows[protocol][1])
            for key in runs[0]:
                values = [run[key] for run in runs]
                short = f"{name}_{key}" if protocol == "concept" else f"{name}_random_{key}"
                what = f"{variant.label}: {key}, 500 pairs, {protocol} split"
                loose = 15.0 if "median" in key else 0.05
                note(short, statistics.mean(values), f"{what}, mean of 3 seeds", loose)
                if key in ("text_r1", "text_r10", "image_r1", "image_r10"):
                    what = f"{what}, standard deviation of 3 seeds"
                    note(f"{short}_sd", statistics.stdev(values), what, loose)
    return kept


@dataclass(frozen=True)
class Known:
    """What differs between runs on the random split; as it stands, what validation chose."""

    label: str = "the recipe for known concepts"
    large: bool = True
    words: bool = True
    details: bool = True
    steps: int = 300


KNOWN = {
    "known": Known(),
    "known_no_details": Known("without what earlier stages saw", details=False),
    "known_no_words": Known("without class words", words=False),
    "known_small": Known("pictures of 128 pixels", large=False),
    "known_short": Known("80 steps", steps=80),
}


@torch.no_grad()
def long_vectors(data: dict, maps: Tensor, variant: Known, train_rows: Tensor) -> Tensor:
    """All that stands still of each picture, one after the other, each number standardised."""
    tower = Matcher(replace(FROZEN, words=False), {}, maps[:1])
    pooled = tower.pooled(maps)
    parts = [pooled]
    if variant.words:
        words = ClassWords(imagenet_head(), data["classes"]).adapt(pooled[train_rows])
        parts.append(words(pooled))
    vectors = torch.cat(parts, dim=1)
    norm = nn.BatchNorm1d(vectors.shape[1], affine=False, momentum=None)
    norm(vectors[train_rows])
    vectors = norm.eval()(vectors).clamp(-4, 4)
    if variant.details:
        details = PictureDetails(maps.shape[1])
        pictures = zip(data["items"].images.split(256), maps.split(256), strict=True)
        measured = torch.cat([details.measure(i.float() / 255, m.float()) for i, m in pictures])
        vectors = torch.cat([vectors, details.adapt(measured[train_rows])(measured)], dim=1)
    return vectors


def train_known(variant: Known, images: Tensor, data: dict, rows: Tensor, seed: int) -> Heads:
    """Train heads on vectors that stand still."""
    texts = data["texts"][0, rows]
    names = [data["items"].names[i] for i in rows.tolist()]
    groups = torch.tensor([names.index(name) for name in names])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        heads = Heads(images.shape[1], 384, MatchingConfig(384, dropout=0.5))

    def batches(n: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + n)
        chosen = torch.randperm(len(rows), generator=generator)[:512]
        return images[rows[chosen]], texts[chosen], groups[chosen]

    def loss(heads: Heads, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        return matching_loss(heads.score(*heads(*batch[:2])), batch[2])

    config = TrainConfig(
        variant.steps,
        learning_rate=1e-3,
        warmup=variant.steps // 10,
        weight_decay=0.05,
        seed=seed,
        progress=False,
    )
    fit(heads, loss, batches, config)
    return heads.eval()


@torch.no_grad()
def known(data: dict, rows: tuple[Tensor, Tensor]) -> None:
    """500 pictures drawn at random, most of whose concepts are known."""
    items, (train_rows, test) = data["items"], rows
    large = see(items.images, recipe=replace(RECIPE, resize=224))
    for name, variant in KNOWN.items():
        maps = large if variant.large else data["maps"][0]
        vectors, runs = long_vectors(data, maps, variant, train_rows), []
        for seed in SEEDS:
            with torch.enable_grad():
                heads = train_known(variant, vectors, data, train_rows, seed)
            scores = heads.score(*heads(vectors[test], data["texts"][0, test]))
            runs.append(measure(scores))
            print(name, seed, runs[-1], flush=True)
            if name == "known" and seed == SEEDS[0]:
                sources_and_intervals(scores, items, test, "known_", 1)
        for key in runs[0]:
            values = [run[key] for run in runs]
            what = f"{variant.label}: {key}, 500 pairs, random split"
            loose = 3.0 if "median" in key else 0.05
            note(f"{name}_{key}", statistics.mean(values), f"{what}, mean of 3 seeds", loose)
            if key.endswith("_r1"):
                what = f"{what}, standard deviation of 3 seeds"
                note(f"{name}_{key}_sd", statistics.stdev(values), what)
    seen = {items.concepts[i] for i in train_rows.tolist()}
    share = statistics.mean(items.concepts[i] in seen for i in test.tolist())
    note("known_share", share, "test pictures of the random split whose concept is trained on")


def fully(data: dict, rows: tuple[Tensor, Tensor], start: Heads) -> None:
    """Both towers whole, on from trained heads: a few hundred pictures, one seed.

    A picture through all layers and back costs as much as a dozen through the last stages.
    """
    items, (train_rows, test) = data["items"], rows
    model = matching_model(trained=False)
    model.heads.load_state_dict(start.state_dict())
    tune(model.image, None), tune(model.text, None)
    names = [items.names[i] for i in train_rows.tolist()]
    groups = torch.tensor([names.index(name) for name in names])

    def batches(n: int) -> Batch:
        generator = torch.Generator().manual_seed(n)
        chosen = torch.randperm(len(train_rows), generator=generator)[:40]
        pictures = AUGMENT(items.images[train_rows[chosen]].float() / 255, generator)
        ids, keep = TOKENIZER.encode([names[i] for i in chosen.tolist()])
        return Batch(preprocess(pictures, RECIPE), text=ids, text_keep=keep, groups=groups[chosen])

    def loss(model: MatchingModel, batch: Batch) -> Tensor:
        return matching_loss(model.heads.score(*model(batch)), batch.groups)

    fit(model, loss, batches, TrainConfig(12, learning_rate=5e-5, warmup=3, progress=False))
    model.eval()
    with torch.no_grad():
        parts = items.images[test].split(50)
        images = [model.encode_images(preprocess(x.float() / 255, RECIPE)) for x in parts]
        texts = model.encode_texts(*TOKENIZER.encode([items.names[i] for i in test.tolist()]))
        found = measure(model.heads.score(torch.cat(images), texts))
    print("fully", found, flush=True)
    for key, value in found.items():
        what = f"both towers wholly tuned, 12 steps of 40: {key}, 500 pairs, concept split"
        note(f"fully_{key}", value, what, 15.0 if "median" in key else 0.05, seed=0)


def sources_and_intervals(
    scores: Tensor, items: PairSet, test: Tensor, prefix: str = "", k: int = 10
) -> None:
    """R@K for each source, and what another draw of concepts would have given."""
    right = torch.eye(len(scores), dtype=torch.bool)
    hits = {
        "text": (ranks(scores, right) <= k).float(),
        "image": (ranks(scores.T, right) <= k).float(),
    }
    concepts = [items.concepts[i] for i in test.tolist()]
    groups = torch.tensor([concepts.index(concept) for concept in concepts])
    sources = [items.sources[i] for i in test.tolist()]
    for side, hit in hits.items():
        for end, value in zip(("low", "high"), interval(hit, groups), strict=True):
            what = f"{prefix}{side} R@{k}, {end} end of the 95 % interval, bootstrap over concepts"
            note(f"{prefix}{side}_r{k}_{end}", value, what, seed=0)
        for source in ("emoji", "clipart"):
            rows = torch.tensor([s == source for s in sources])
            what = f"{prefix}{side} R@{k} of {source}"
            note(f"{prefix}{side}_r{k}_{source}", hit[rows].mean(), what, 0.08, seed=0)


def cross(data: dict, rows: tuple[Tensor, Tensor], matchers: list[Matcher]) -> CrossEncoder:
    """What re-ranking adds, for each seed."""
    runs: list[dict[str, float]] = []
    made = []
    for seed, matcher in zip(SEEDS, matchers, strict=True):
        model = train_cross(matcher, data, rows[0], seed)
        made.append(model)
        right = torch.eye(len(rows[1]), dtype=torch.bool)
        found = {}
        for side, scores in rescored(matcher, model, data, rows[1]).items():
            found |= {f"{side}_r{k}": hit_rate(ranks(scores, right), k) for k in (1, 5, 10)}
        runs.append(found)
        print("cross", seed, found, flush=True)
    for key in runs[0]:
        values = [run[key] for run in runs]
        what = f"re-ranked by the cross-encoder: {key}, 500 pairs of unknown concepts"
        note(f"cross_{key}", statistics.mean(values), f"{what}, mean of 3 seeds")
        if key.endswith("r1"):
            note(f"cross_{key}_sd", statistics.stdev(values), f"{what}, sd of 3 seeds")
    return made[0]


def train_chinese(data: dict, rows: Tensor, seed: int) -> ChineseTower:
    """Names and keywords of the training emoji, Chinese to English."""
    items = data["items"]
    known = [i for i in rows.tolist() if items.sources[i] == "emoji"]
    said = [items.names_zh[i] for i in known], [", ".join(data["tags_zh"][i]) for i in known]
    taught = data["texts"][0, known], data["texts"][1, known]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tower = chinese_tower(trained=False)
    encoded = [tower.tokenizer.encode(texts, 64, truncate=True) for texts in said]

    def batches(n: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + n)
        chosen = torch.randperm(len(known), generator=generator)[:256]
        kind = 0 if n % 3 else 1
        return encoded[kind].ids[chosen], encoded[kind].keep[chosen], taught[kind][chosen]

    def loss(tower: ChineseTower, batch: tuple[Tensor, ...]) -> Tensor:
        return distillation_loss(tower(*batch[:2]).pooled, batch[2])

    config = TrainConfig(
        100, learning_rate=2e-3, warmup=10, weight_decay=0.1, seed=seed, progress=False
    )
    fit(tower, loss, batches, config)
    return tower.eval()


@torch.no_grad()
def chinese(data: dict, rows: tuple[Tensor, Tensor], matchers: list[Matcher]) -> ChineseTower:
    """Held-out emoji among the 500 pictures, asked for in both languages."""
    items, (train_rows, test) = data["items"], rows
    asked = torch.tensor([k for k, i in enumerate(test.tolist()) if items.sources[i] == "emoji"])
    right = F.one_hot(asked, len(test)).bool()
    runs: dict[str, list[dict[str, float]]] = {"zh": [], "en": []}
    made = []
    for seed, matcher in zip(SEEDS, matchers, strict=True):
        with torch.enable_grad():
            tower = train_chinese(data, train_rows, seed)
        made.append(tower)
        names = [items.names_zh[i] for i in test[asked].tolist()]
        pooled = tower(*tower.tokenizer.encode(names, 64, truncate=True)).pooled
        images, english = matcher((data["maps"][0, test], data["texts"][0, test[asked]]))
        for language, texts in (("zh", matcher.heads.texts(pooled)), ("en", english)):
            r = ranks(matcher.heads.score(images, texts).T, right)
            runs[language].append({f"r{k}": hit_rate(r, k) for k in (1, 10)})
            runs[language][-1]["median"] = median_rank(r)
            print(language, seed, runs[language][-1], flush=True)
    for language, found in runs.items():
        for key in found[0]:
            what = f"names of held-out emoji ({language}) to 500 pictures: {key}, mean of 3 seeds"
            loose = 30.0 if key == "median" else 0.05
            note(f"{language}_{key}", statistics.mean(run[key] for run in found), what, loose)
    note("chinese_queries", len(asked), "held-out emoji among the 500 test pictures", 0)
    return made[0]


def save(matcher: Matcher, crosser: CrossEncoder, tower: ChineseTower) -> None:
    """Write the three checkpoints of seed 0."""
    card = {"command": "make train CHAPTER=07", "data": "emoji and clip art, training concepts"}
    parts = nn.ModuleDict({"heads": matcher.heads, "image": tuned_parts(matcher.tower)})
    for name, model in (("matching", parts), ("cross", crosser), ("chinese", tower)):
        path = CHECKPOINTS / f"07_{name}.safetensors"
        print(save_weights(model, path, card | {"seed": SEEDS[0]}, torch.bfloat16))


def main() -> None:
    """Compute what stands still, compare, re-rank, teach Chinese, save, ablate."""
    data = load()
    rows = protocols(data["items"])
    matchers = compare(MAIN, data, rows)
    crosser = cross(data, rows["concept"], matchers)
    tower = chinese(data, rows["concept"], matchers)
    save(matchers[0], crosser, tower)
    known(data, rows["random"])
    compare(ABLATIONS, data, rows)


if __name__ == "__main__":
    main()
