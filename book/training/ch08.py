"""Train captioners: on scenes with an LSTM and a Transformer, on pictures with frozen features.

First the scenes, where every word can be marked: short runs of an LSTM that differ in one thing
each, the LSTM and the Transformer that are shipped, and the short runs by which grey pictures were
chosen, with other combinations held out. Then emoji and clip art, whose test set holds out whole
concepts. What is chosen (steps, widths, dropout) was chosen on concepts and combinations held out
of the training sets; that attribute words are swapped was decided after a look at 300 held-out
scenes of other seeds.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlib import results
from mmlib.captioning import CaptionDecoding, CaptionerConfig, ImageCaptioner, LSTMCaptioner
from mmlib.captioning_attention import doubly_stochastic, mass_inside
from mmlib.captioning_transformer import TransformerCaptioner
from mmlib.data import clipart, emoji, scenes
from mmlib.data.scene_captions import (
    CaptionBatch,
    attribute_scores,
    caption_batch,
    named_things,
    without_colour,
)
from mmlib.data.scenes import Scene
from mmlib.data.translation import BEGIN, END, PAD, Vocabulary
from mmlib.decoding import beam_search, greedy
from mmlib.encoders.image import EfficientNetLite0
from mmlib.encoders.small_cnn import SmallCNN
from mmlib.encoders.text import Bert, embed_texts
from mmlib.encoders.tokenizers import Tokenizer, bpe_tokenizer, wordpiece_tokenizer
from mmlib.language_model import next_token_loss
from mmlib.metrics.bleu import bleu
from mmlib.metrics.bootstrap import interval
from mmlib.metrics.cider import cider
from mmlib.metrics.retrieval import hit_rate, median_rank, ranks
from mmlib.region_words import points_inside
from mmlib.training import History, TrainConfig, fit, save_weights

MINUTES = 26
CHECKPOINTS, RUNS = Path("mmlib/checkpoints"), Path("runs/08_captioning")
VOCABULARY = Vocabulary([*scenes.vocabulary("en", "free"), "<free>"])
FREE = VOCABULARY.encode(["<free>"])[0]  # what a free caption begins with
PICTURE_STEPS = 400
NEIGHBOURS = 10  # whose captions the captioner chooses from
LIMIT = 40  # tokens of a caption, most

# --- scenes ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """What differs between runs on scenes.

    Attributes:
        label: In the ledger.
        steps: Of training.
        transformer: The decoder of chapter 02 in place of the LSTM.
        varied: Whether half of the captions are free ones.
        swapped: Whether half of the sizes, colours and shapes that are read are replaced by others
            of their kind.
        odd: What is done to the colours of every second picture, where they are not to be named
            then: ``"grey"``, ``"mixed"`` (channels exchanged and dimmed), or nothing.
        pooled: Whether the decoder sees the mean of the regions only.
        penalty: Weight of the doubly stochastic penalty.
        own_share: Of scheduled sampling.
        start: The run whose weights it starts from.
        choice: Whether further combinations are held out, on which the others are compared.
    """

    label: str
    steps: int = 400
    transformer: bool = False
    varied: bool = False
    swapped: bool = False
    odd: str = ""
    pooled: bool = False
    penalty: float = 0.0
    own_share: float = 0.0
    start: str = ""
    choice: bool = False


ALL = {"varied": True, "swapped": True, "odd": "grey"}
CHOICE = {"steps": 250, "swapped": True, "choice": True}
VARIANTS = {
    "plain": Variant("plain LSTM"),
    "swapped": Variant("swapped words", swapped=True),
    "pale": Variant("grey pictures", odd="grey"),
    "both": Variant("swapped words and grey pictures", swapped=True, odd="grey"),
    "lstm": Variant("LSTM", 1200, **ALL),
    "transformer": Variant("Transformer", 600, transformer=True, **ALL),
    "pooled": Variant("plain LSTM on the mean of the regions", pooled=True),
    "forced": Variant("plain LSTM, then teacher forcing", 100, start="plain"),
    "sampled": Variant("plain LSTM, then scheduled sampling", 100, own_share=0.5, start="plain"),
    "penalty": Variant("plain LSTM, then doubly stochastic", 100, penalty=1.0, start="plain"),
    "choice_swapped": Variant("swapped words", **CHOICE),
    "choice_grey": Variant("swapped words and grey pictures", odd="grey", **CHOICE),
    "choice_mixed": Variant("swapped words and mixed channels", odd="mixed", **CHOICE),
}
SHIPPED = ("lstm", "transformer")
RECIPES = ("plain", "swapped", "pale", "both", "lstm")  # compared by what they say of shapes
LOOKS = ("forced", "penalty", *SHIPPED)  # compared by where they look
MISTAKES = ("forced", "sampled")  # compared by what comes after a mistake
POSITIONS = 15  # of a caption, that are compared
#: One more shape of each colour, never seen in the runs that choose.
OTHERS = next(h for seed in range(1, 100) if not (h := scenes.holdout(seed=seed)).pairs
              & scenes.DEFAULT_HOLDOUT.pairs)  # fmt: skip


def scene_model(transformer: bool = False, seed: int = 0) -> ImageCaptioner:
    """A picture network and a captioner, drawn from a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = SmallCNN(64)
        config = CaptionerConfig(len(VOCABULARY), encoder.dim, max_regions=64, dim=96)
        kind = TransformerCaptioner if transformer else LSTMCaptioner
        return ImageCaptioner(encoder, kind(config))


def scene_batches(variant: Variant, size: int = 64) -> Callable[[int], CaptionBatch]:
    """New scenes for every step.

    Scenes of one and of two objects share a batch: batch norm would tell the decoder how many
    there are if each batch had one number, and at test time it cannot.
    """
    both = scenes.Holdout(scenes.DEFAULT_HOLDOUT.pairs | OTHERS.pairs)
    holdout = both if variant.choice else scenes.DEFAULT_HOLDOUT

    def batch(n: int) -> CaptionBatch:
        drawn = scenes.sample(size, seed=1000 + n, split="train", holdout=holdout, objects=(1, 2))
        batch = caption_batch(drawn, VOCABULARY)
        if variant.varied:
            free = caption_batch(drawn[: size // 2], VOCABULARY, mode="free", seed=n * size)
            free.tokens[:, 0] = FREE
            length = max(batch.tokens.shape[1], free.tokens.shape[1])
            halves = (free.tokens, batch.tokens[size // 2 :])
            tokens = torch.cat([F.pad(x, (0, length - x.shape[1])) for x in halves])
            batch = CaptionBatch(batch.images, tokens, tokens != PAD)
        if variant.odd:
            odd = torch.arange(size) % 2 == 1
            changed = without_colour(batch, VOCABULARY, odd, seed=n)
            if variant.odd == "mixed":
                images = torch.where(odd[:, None, None, None], mixed(batch.images, n), batch.images)
                changed = changed._replace(images=images)
            batch = changed
        return batch

    return batch


def mixed(images: Tensor, seed: int) -> Tensor:
    """Each picture with its channels exchanged and dimmed at random: other colours, as many."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(len(images), 3, generator=generator).argsort(1)
    dimmed = 0.3 + 0.7 * torch.rand(len(images), 3, 1, 1, generator=generator)
    return images[torch.arange(len(images))[:, None], order] * dimmed


def swap(tokens: Tensor) -> Tensor:
    """Half of the sizes, colours and shapes that are read become others of their kind.

    What a caption said so far is then no sure sign of what it may say next, and the picture has
    to be asked. The words to be predicted stay.
    """
    draw = torch.rand(tokens.shape)
    for words in (scenes.SIZES, scenes.COLOURS, scenes.SHAPES):
        ids = torch.tensor(VOCABULARY.encode(words))
        other = ids[torch.randint(len(ids), tokens.shape)]
        tokens = torch.where(torch.isin(tokens, ids) & (draw < 0.5), other, tokens)
    return tokens


def scene_loss(model: ImageCaptioner, batch: CaptionBatch, variant: Variant):
    """Sum of the cross-entropies of the next words, and their number."""
    given = swap(batch.tokens) if variant.swapped else batch.tokens
    options = {"own_share": variant.own_share} if variant.own_share else {}
    logits, weights = model.captioner(
        see(model, batch.images, variant.pooled),
        given,
        return_weights=variant.penalty > 0,
        **options,
    )
    total, count = next_token_loss(logits, batch.tokens, batch.keep)
    if variant.penalty:
        # The last token of a row is read, but predicts nothing. The penalty is a mean over
        # regions, so that its size does not depend on their number.
        unseen = doubly_stochastic(weights[:, :-1], batch.keep[:, 1:]) / weights[:, 0].numel()
        total = total + variant.penalty * unseen * count
    return total, count


def see(model: ImageCaptioner, images: Tensor, pooled: bool) -> Tensor:
    """The regions, or their mean alone: then there is nothing to attend to."""
    regions = model.encoder(images).tokens
    return regions.mean(1, keepdim=True) if pooled else regions


def train_scenes(name: str) -> tuple[ImageCaptioner, History]:
    """One run; what was stopped goes on, what is finished is read."""
    variant = VARIANTS[name]
    model = scene_model(variant.transformer)
    if variant.start:
        model.load_state_dict(train_scenes(variant.start)[0].state_dict())
    history = fit(
        model,
        lambda model, batch: scene_loss(model, batch, variant),
        scene_batches(variant),
        TrainConfig(
            variant.steps,
            learning_rate=1.5e-3 if variant.start else 3e-3,
            warmup=20 if variant.start else 100,
            progress=False,
            checkpoint_every=100,
        ),
        checkpoint=RUNS / name,
        resume=True,
    )
    return model.eval(), history


@torch.no_grad()
def write(model: ImageCaptioner, drawn: list[Scene], pooled: bool = False):
    """Greedy captions as words, and where each word looked."""
    regions = see(model, scenes.render(drawn), pooled)
    decoding = CaptionDecoding(model.captioner, regions, keep_weights=True)
    made = greedy(decoding, begin=BEGIN, end=END, max_length=LIMIT)
    return [VOCABULARY.decode(ids) for ids in made.best()], decoding.weights


def looks(words: list[list[str]], weights: Tensor, drawn: list[Scene]) -> dict[str, float]:
    """Share of the attention in the object's box, and pointing, for its three words and even."""
    heat, at = [], []
    for row, scene in enumerate(drawn):
        things = named_things(words[row])
        if len(things) == len(scene.objects):
            for thing, box in zip(things, scenes.boxes(scene), strict=True):
                heat.append(weights[row, thing.at : thing.at + 3].reshape(3, 8, 8))
                at.append(box)
    maps, boxes = torch.stack(heat), torch.stack(at)
    found = {"even_mass": mass_inside(torch.ones_like(maps[:, 0]), boxes).mean().item()}
    # What pointing by chance gives: the share of cells whose centre lies in the box.
    cells = torch.eye(64).reshape(64, 1, 8, 8).expand(-1, len(boxes), -1, -1)
    hits = [points_inside(cell, boxes[:, None]).float() for cell in cells]
    found["even_points"] = torch.stack(hits).mean().item()
    for k, name in enumerate(("size", "colour", "shape")):
        found[f"mass_{name}"] = mass_inside(maps[:, k], boxes).mean().item()
        found[f"points_{name}"] = points_inside(maps[:, k], boxes[:, None]).float().mean().item()
    return found


@torch.no_grad()
def second_object_errors(model: ImageCaptioner, drawn: list[Scene], planted: bool) -> float:
    """Wrong words among the second object's three, when what was said before is given.

    With ``planted`` the shape of the first object is given wrongly: what follows is as true as
    before, but the model has never read its own mistakes.
    """
    batch = caption_batch(drawn, VOCABULARY)
    tokens, places = batch.tokens.clone(), []
    for row, scene in enumerate(drawn):
        first, second = named_things(scenes.tokenize(scenes.caption(scene), "en"))
        places.append([second.at, second.at + 1, second.at + 2])
        if planted:
            others = [shape for shape in scenes.SHAPES if shape != first.shape]
            wrong = VOCABULARY.encode([others[row % len(others)]])
            tokens[row, 1 + first.at + 2] = wrong[0]
    logits, _ = model(batch.images, tokens)
    at = torch.tensor(places)
    said, true = logits.argmax(-1).gather(1, at), batch.tokens.gather(1, at + 1)
    return (said != true).float().mean().item()


@torch.no_grad()
def errors_by_position(model: ImageCaptioner, drawn: list[Scene]) -> tuple[Tensor, Tensor]:
    """Share of wrong words at each position, when the true words before it are given or its own."""
    batch = caption_batch(drawn, VOCABULARY)
    true, keep = batch.tokens[:, 1:], batch.keep[:, 1:]
    forced = model(batch.images, batch.tokens)[0].argmax(-1)[:, :-1]
    step = CaptionDecoding(model.captioner, see(model, batch.images, False))
    free = greedy(step, begin=BEGIN, end=END, max_length=true.shape[1]).tokens[:, 0]
    free = F.pad(free, (0, true.shape[1] - free.shape[1]), value=END)
    wrong = [((said != true) & keep).sum(0) / keep.sum(0).clamp(min=1) for said in (forced, free)]
    return wrong[0], wrong[1]


@torch.no_grad()
def held_out_shapes(
    model: ImageCaptioner,
    drawn: list[Scene],
    wrong_colour: bool,
    pairs: frozenset[tuple[str, str]] = scenes.DEFAULT_HOLDOUT.pairs,
) -> float:
    """Wrong shapes of objects of ``pairs`` when the colour said before is right, or a wrong one.

    The wrong colour is one that was seen with this shape in training.
    """
    batch = caption_batch(drawn, VOCABULARY)
    tokens, rows, places = batch.tokens.clone(), [], []
    for row, scene in enumerate(drawn):
        things = named_things(scenes.tokenize(scenes.caption(scene), "en"))
        for thing in things:
            if (thing.colour, thing.shape) not in pairs:
                continue
            rows.append(row)
            places.append(thing.at + 2)
            if wrong_colour:
                seen = [
                    colour
                    for colour in scenes.COLOURS
                    if (colour, thing.shape) not in scenes.DEFAULT_HOLDOUT.pairs | OTHERS.pairs
                ]
                tokens[row, 1 + thing.at + 1] = VOCABULARY.encode([seen[row % len(seen)]])[0]
    said = model(batch.images, tokens)[0].argmax(-1)[rows, places]
    return (said != batch.tokens[rows, [p + 1 for p in places]]).float().mean().item()


def true_share(words: list[list[str]], drawn: list[Scene]) -> float:
    """Share of captions that are sentences of the grammar and true."""
    right = 0
    for caption, scene in zip(words, drawn, strict=True):
        try:
            right += scenes.is_true(scenes.detokenize(caption, "en"), scene)
        except ValueError:  # no sentence of the grammar
            continue
    return right / len(drawn)


def references(drawn: list[Scene]) -> list[list[list[str]]]:
    """The one canonical caption of each scene."""
    return [[scenes.tokenize(scenes.caption(scene), "en")] for scene in drawn]


# --- pictures ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pictures:
    """Emoji and clip art of one split, as frozen features.

    Attributes:
        regions: Features ``(pictures, regions, width)`` in fp16.
        names: Captions.
        concepts: What each shows.
    """

    regions: Tensor
    names: list[str]
    concepts: list[str]


def load_pictures(split: str, size: int = 128) -> Pictures:
    """Both sets through the frozen EfficientNet-Lite0; features are kept for the next time."""
    sets = [emoji.load(split, size), clipart.load(split, size)]
    names, concepts = ([x for s in sets for x in getattr(s, f)] for f in ("names", "concepts"))
    path = RUNS / f"features_{split}_{size}.pt"
    if not path.exists():
        encoder = EfficientNetLite0(frozen=True)
        images = torch.cat([items.images for items in sets])
        with torch.no_grad():  # every channel from -1 to 1, as the weights want it
            parts = [encoder(part / 127.5 - 1).tokens.half() for part in images.split(64)]
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(torch.cat(parts), path)
    return Pictures(torch.load(path, weights_only=True), names, concepts)


def picture_model(vocab: int, transformer: bool, seed: int = 0) -> nn.Module:
    """A captioner over 16 regions of 1,280 numbers."""
    config = CaptionerConfig(vocab, 1280, max_regions=16, dim=192, dropout=0.4)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return (TransformerCaptioner if transformer else LSTMCaptioner)(config)


def train_pictures(
    train: Pictures, tokenizer: Tokenizer, transformer: bool, seed: int = 0
) -> tuple[nn.Module, History]:
    """One run on frozen features."""
    ids, keep = tokenizer.encode(train.names)
    model = picture_model(tokenizer.vocab_size, transformer, seed)

    def batch(n: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1000 * seed + n)
        rows = torch.randint(len(ids), (128,), generator=generator)
        length = int(keep[rows].sum(1).max())
        return train.regions[rows].float(), ids[rows, :length], keep[rows, :length]

    def loss(model, batch):
        regions, tokens, real = batch
        return next_token_loss(model(regions, tokens)[0], tokens, real)

    history = fit(
        model,
        loss,
        batch,
        TrainConfig(
            PICTURE_STEPS, learning_rate=2e-3, warmup=50, weight_decay=0.1, seed=seed,
            progress=False, checkpoint_every=100,
        ),
        checkpoint=RUNS / f"pictures_{'transformer' if transformer else 'lstm'}_{seed}",
        resume=True,
    )  # fmt: skip
    return model.eval(), history


def caption_pictures(model: nn.Module, tokenizer: Tokenizer, regions: Tensor) -> list[str]:
    """The best caption of each picture by beam search."""
    made = beam_search(
        CaptionDecoding(model, regions.float()),
        begin=tokenizer.begin_id,
        end=tokenizer.end_id,
        beams=4,
        max_length=16,
        length_penalty=1.0,
    )
    return [text.strip() for text in tokenizer.decode(made.tokens[:, 0])]


@torch.no_grad()
def log_probs(
    model: nn.Module, tokenizer: Tokenizer, regions: Tensor, captions: list[str]
) -> Tensor:
    """What the captioner makes of one caption a picture: the sum of its log-probabilities."""
    found = []
    for start in range(0, len(captions), 500):
        ids, keep = tokenizer.encode(captions[start : start + 500])
        logs = model(regions[start : start + 500].float(), ids)[0][:, :-1].log_softmax(-1)
        logs = logs.gather(2, ids[:, 1:, None])[..., 0]
        found.append(logs.masked_fill(~keep[:, 1:], 0.0).sum(1))
    return torch.cat(found)


def choose(
    model: nn.Module, tokenizer: Tokenizer, train: Pictures, test: Pictures, similar: Tensor
) -> list[str]:
    """Of the captions of similar pictures the one that the captioner prefers for each picture.

    What counts is how much more probable it is here than for the mean of all training pictures:
    else the captions that are frequent anyway would win.
    """
    captions = [train.names[i] for i in similar.flatten().tolist()]
    regions = test.regions.repeat_interleave(similar.shape[1], 0)
    mean = train.regions.float().mean(0).expand(len(captions), -1, -1)
    gain = log_probs(model, tokenizer, regions, captions)
    gain = gain - log_probs(model, tokenizer, mean, captions)
    best = similar.gather(1, gain.reshape(similar.shape).argmax(1, keepdim=True))
    return [train.names[i] for i in best[:, 0].tolist()]


class Marks:
    """Marks of captions of one set of pictures."""

    def __init__(self, pictures: Pictures) -> None:
        self.names, self.concepts = pictures.names, pictures.concepts
        self.bert, self.tokenizer = Bert.pretrained("minilm"), wordpiece_tokenizer()
        self.vectors = embed_texts(self.bert, self.tokenizer, self.names)
        codes = {name: i for i, name in enumerate(self.names)}
        code = torch.tensor([codes[name] for name in self.names])
        self.relevant = code[:, None] == code  # pictures of one caption cannot be told apart by it

    def __call__(self, captions: list[str]) -> dict[str, float]:
        """BLEU, CIDEr, and where the picture is among all when one looks for its caption."""
        words, truth = [c.split() for c in captions], [[name.split()] for name in self.names]
        rank, scores = self.rank(captions), self.cider(captions)
        low, high = interval(scores, self.concepts)
        return {
            "bleu1": bleu(words, truth, order=1).score,
            "bleu2": bleu(words, truth, order=2).score,
            "bleu4": bleu(words, truth, smoothing="exp").score,
            "cider": sum(scores) / len(scores),
            "cider_low": low,
            "cider_high": high,
            "r1": hit_rate(rank, 1),
            "r10": hit_rate(rank, 10),
            "median": median_rank(rank),
        }

    def rank(self, captions: list[str]) -> Tensor:
        """Where each picture is when one looks for its caption."""
        vectors = embed_texts(self.bert, self.tokenizer, captions)
        return ranks(vectors @ self.vectors.T, self.relevant)

    def cider(self, captions: list[str]) -> list[float]:
        """CIDEr of each caption."""
        truth = [[name.split()] for name in self.names]
        return list(cider([caption.split() for caption in captions], truth).scores)


# --- the run -----------------------------------------------------------------------------------


def note(name: str, value: float, metric: str, tolerance: float, **more) -> None:
    """One row of the ledger."""
    results.record(f"08.{name}", value, metric=metric, tolerance=tolerance, seed=0, **more)


def save(model: nn.Module, name: str, what: str, history: History, metrics: dict) -> None:
    """A checkpoint in bf16 with its card."""
    save_weights(
        model,
        CHECKPOINTS / f"08_{name}.safetensors",
        card={
            "what": what,
            "command": "make train CHAPTER=08",
            "seed": 0,
            "steps": history.steps,
            "minutes": round(history.seconds / 60, 1),
            "metrics": metrics,
        },
        dtype=torch.bfloat16,
    )


def run_scenes() -> None:
    """Everything about scenes."""
    held_out = scenes.sample(400, seed=1, split="test", objects=(1, 2))
    for name, variant in VARIANTS.items():
        model, history = train_scenes(name)
        text = f"{variant.label}, {history.steps} steps"
        note(f"{name}_steps", history.steps, f"{variant.label}: steps of training", 0)
        if variant.choice:
            compare(name, text, model)
            continue
        marks = mark(name, text, model, held_out)
        if name in RECIPES:
            shapes_after_colours(name, text, model)
        if name in MISTAKES:
            errors_after_errors(name, text, model)
        if name in SHIPPED:
            save(model, f"scenes_{name}", f"{text}, captions of scenes", history, marks)
    run_free(train_scenes("lstm")[0], held_out)
    strangers = references(held_out[1:] + held_out[:1])
    other = [caption for (caption,) in strangers]
    scores = attribute_scores(other, held_out)
    scores["bleu4"] = bleu(other, references(held_out)).score
    for key in ("attributes", "objects", "bleu4"):
        note(f"stranger_{key}", scores[key], f"the caption of another scene: {key}", 0.05)


def mark(name: str, text: str, model: ImageCaptioner, held_out: list[Scene]) -> dict[str, float]:
    """What it says of new and of known combinations, and where it looks meanwhile."""
    pooled, shipped = VARIANTS[name].pooled, name in SHIPPED
    words, weights = write(model, held_out, pooled)
    marks = attribute_scores(words, held_out)
    marks["bleu4"] = bleu(words, references(held_out)).score
    marks["cider"] = cider(words, references(held_out)).score
    for key in ("attributes", "objects", "exact", "bleu4", "cider") if shipped else ("objects",):
        tolerance = 1.0 if key == "cider" else 0.1
        note(f"{name}_{key}", marks[key], f"{text}: {key}, held-out combinations", tolerance)
    known = scenes.sample(400, seed=3, split="train", objects=(1, 2))
    seen = attribute_scores(write(model, known, pooled)[0], known)
    for key in ("attributes", "objects") if shipped else ("objects",):
        note(f"{name}_seen_{key}", seen[key], f"{text}: {key}, known combinations", 0.1)
    if name in LOOKS:
        even = ("even_mass", "even_points") if name == "lstm" else ()
        found = looks(words, weights, held_out)
        for key in ("mass_size", "mass_shape", "points_shape", *even):
            note(f"{name}_{key}", found[key], f"{text}: attention, {key}", 0.15)
    return marks


def shapes_after_colours(name: str, text: str, model: ImageCaptioner) -> None:
    """Which shape it tells of a new combination, after a right and after a wrong colour."""
    drawn = scenes.sample(400, seed=2, split="test", objects=2)
    for key, colour, wrong in (("right", "the right", False), ("wrong", "a wrong", True)):
        error = held_out_shapes(model, drawn, wrong)
        what = f"{text}: wrong shapes of held-out objects after {colour} colour"
        note(f"{name}_shape_{key}", error, what, 0.15)
    coloured = scenes.DEFAULT_HOLDOUT.pairs - {("white", "square")}
    what = f"{text}: wrong shapes of held-out objects but for white ones, after the right colour"
    note(f"{name}_shape_coloured", held_out_shapes(model, drawn, False, coloured), what, 0.15)


def errors_after_errors(name: str, text: str, model: ImageCaptioner) -> None:
    """Known combinations: mistakes are not for their novelty."""
    known = scenes.sample(400, seed=4, split="train", objects=2)
    for key, after, planted in (("given", "the truth", False), ("planted", "a mistake", True)):
        error = second_object_errors(model, known, planted)
        what = f"{text}: wrong words of the second object after {after}"
        note(f"{name}_{key}", error, what, 0.15)
    for kind, errors in zip(("forced", "own"), errors_by_position(model, known), strict=True):
        for k, error in enumerate(errors[:POSITIONS].tolist()):
            what = f"{text}: wrong words at position {k + 1}, {kind} words before it"
            note(f"{name}_{kind}_{k:02d}", error, what, 0.2)


def compare(name: str, text: str, model: ImageCaptioner) -> None:
    """What the runs that choose are compared by: scenes that hold one of :data:`OTHERS`."""
    for objects, keys in (((1, 2), ("attributes",)), (2, ("shape",))):
        drawn = scenes.sample(800, seed=11, split="test", holdout=OTHERS, objects=objects)
        drawn = [s for s in drawn if scenes.DEFAULT_HOLDOUT.split(s) == "train"][:400]
        if keys == ("shape",):
            value = held_out_shapes(model, drawn, False, OTHERS.pairs)
        else:
            value = attribute_scores(write(model, drawn)[0], drawn)["attributes"]
        note(f"{name}_{keys[0]}", value, f"{text}: {keys[0]}, combinations to choose by", 0.15)


def run_free(model: ImageCaptioner, drawn: list[Scene]) -> None:
    """Free captions have no one right answer: the scene itself says whether they are true."""
    regions = see(model, scenes.render(drawn), False)
    limits = {"begin": FREE, "end": END, "max_length": LIMIT}
    found = {"greedy": greedy(CaptionDecoding(model.captioner, regions), **limits)}
    for alpha in (0.0, 0.6, 1.0, 2.0):
        made = beam_search(
            CaptionDecoding(model.captioner, regions), beams=4, length_penalty=alpha, **limits
        )
        found[f"beam{round(10 * alpha):02d}"] = made
    for name, made in found.items():
        words = [VOCABULARY.decode(ids) for ids in made.best()]
        true, length = true_share(words, drawn), sum(map(len, words)) / len(words)
        note(f"free_{name}_true", true, f"free captions by {name}: share that is true", 0.1)
        note(f"free_{name}_words", length, f"free captions by {name}: mean number of words", 3)
    own = [scenes.tokenize(scenes.caption(s, "en", "free", i), "en") for i, s in enumerate(drawn)]
    note("free_stranger_true", true_share(own[1:] + own[:1], drawn), "another scene's: true", 0.03)
    note("free_words", sum(map(len, own)) / len(own), "free captions: mean number of words", 1)


def run_pictures() -> None:
    """Emoji and clip art."""
    train, test = load_pictures("train"), load_pictures("test")
    tokenizer = bpe_tokenizer(train.names, vocab_size=1200)
    marks = Marks(test)
    common = Counter(train.names).most_common(1)[0][0]
    pooled = [F.normalize(part.regions.float().mean(1), dim=1) for part in (train, test)]
    similar = (pooled[1] @ pooled[0].T).topk(NEIGHBOURS, dim=1).indices
    found = {
        "common": marks([common] * len(test.names)),
        "nearest": marks([train.names[i] for i in similar[:, 0].tolist()]),
    }
    explain(train, marks, similar)
    nearest = marks.cider([train.names[i] for i in similar[:, 0].tolist()])
    for kind in ("lstm", "transformer"):
        model, history = train_pictures(train, tokenizer, kind == "transformer")
        name = f"pictures_{kind}"
        captions = caption_pictures(model, tokenizer, test.regions)
        found[name] = marks(captions)
        more = [a - b for a, b in zip(marks.cider(captions), nearest, strict=True)]
        for end, value in zip(("low", "high"), interval(more, test.concepts), strict=True):
            what = f"{name}: CIDEr above the nearest neighbour's, {end} end of the interval"
            note(f"{name}_more_{end}", value, what, 0.3)
        if kind == "lstm":
            found["chosen"] = marks(choose(model, tokenizer, train, test, similar))
            save(model, "pictures", "LSTM, emoji and clip art", history, found[name])
    for name, scores in found.items():
        for key, value in scores.items():
            tolerance = 30 if key == "median" else 0.3 if "cider" in key else 0.05
            note(f"{name}_{key}", value, f"{name} on held-out concepts: {key}", tolerance)


def explain(train: Pictures, marks: Marks, similar: Tensor) -> None:
    """Whether the training captions lack what is to be said, or whether it is not found in them.

    The best that could be done with them, by one who knows the true caption: to take the right one
    of each picture's neighbours, or of all.
    """
    vectors = embed_texts(marks.bert, marks.tokenizer, train.names)
    each = [ranks(vectors[column] @ marks.vectors.T, marks.relevant) for column in similar.T]
    note("oracle_r10", hit_rate(torch.stack(each).amin(0), 10), "R@10, best of 10 neighbours", 0.05)
    closest = (marks.vectors @ vectors.T).argmax(1)
    best = ranks(vectors[closest] @ marks.vectors.T, marks.relevant)
    note("any_r10", hit_rate(best, 10), "R@10, the training caption nearest to the true one", 0.05)


def main() -> None:
    """Both parts."""
    run_scenes()
    run_pictures()


if __name__ == "__main__":
    main()
