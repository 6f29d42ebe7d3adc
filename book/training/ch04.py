"""Train early, late and hybrid fusion on the irony task, five folds of emoji.

Every number is a mean over runs: a run holds out one fold of the emoji and has its own seed of
weights and messages. What chapter 04 says of more than one seed comes from here. No label is used
but that of the message, ironic or not; the probe alone is told the polarity of emoji.
"""

import copy
import statistics
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlib import results
from mmlib.data import irony
from mmlib.data.emoji_ratings import folds, polar_emoji
from mmlib.encoders.encoded import Encoded
from mmlib.encoders.image import EfficientNetLite0
from mmlib.encoders.preprocessing import RECIPES, preprocess
from mmlib.encoders.spectrogram import LogMel, LogMelConfig
from mmlib.encoders.text import TextTransformer, TextTransformerConfig
from mmlib.encoders.tokenizers import word_tokenizer
from mmlib.fusion import OPERATORS
from mmlib.fusion_models import (
    FusionConfig,
    FusionModel,
    count_parameters,
    drop_modalities,
    matched,
    without,
)
from mmlib.training import TrainConfig, fit

MINUTES = 12
DIM, LENGTH = 32, 14
TOKENIZER = word_tokenizer(irony.vocabulary())
TEXT, IMAGE, VOICE = ("text", DIM), ("image", DIM), ("voice", DIM)
TWO, THREE = (TEXT, IMAGE), (TEXT, IMAGE, VOICE)
LATE = FusionConfig(TWO, kind="late", mlp_dim=128, dropout=0.1)
KINDS = {
    "late": LATE,
    "early": FusionConfig(TWO, kind="early", dropout=0.1),
    "hybrid": FusionConfig(TWO, exchange="attention", operator="product", dropout=0.1),
    "bottleneck": FusionConfig(TWO, exchange="bottleneck", operator="product", dropout=0.1),
    "text": FusionConfig((TEXT,), kind="early", dropout=0.1),
    "image": FusionConfig((IMAGE,), kind="early", dropout=0.1),
}
ALL_FOLDS = ("early", "hybrid")

Inputs = Mapping[str, Tensor]


class Listener(nn.Module):
    """Words, picture and voice to tokens of one width, and a fusion model on them."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        words = TextTransformerConfig(TOKENIZER.vocab_size, dim=DIM, layers=1, max_length=LENGTH)
        makers = {
            "text": lambda: TextTransformer(words),
            "image": lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(1280, DIM)),
            "voice": lambda: nn.Sequential(nn.Dropout(0.1), nn.Linear(80, DIM)),
        }
        self.encoders = nn.ModuleDict({name: makers[name]() for name in config.names})
        self.fusion = FusionModel(config)

    def encode(self, inputs: Inputs) -> dict[str, Encoded]:
        """What each encoder gives, by modality; inputs that the model does not know are left."""
        encoded = {}
        for name, encoder in self.encoders.items():
            given = inputs[name]
            if name == "text":
                encoded[name] = encoder(given, given != TOKENIZER.pad_id)
                continue
            x = encoder(given)
            there = torch.ones(x.shape[:2], dtype=torch.bool)
            encoded[name] = Encoded(x, there, x.mean(dim=1))
        return encoded

    def forward(self, inputs: Inputs) -> Tensor:
        """The logit that the message is ironic."""
        return self.fusion(self.encode(inputs))[:, 0]


def look(images: Tensor) -> Tensor:
    """Frozen features of all emoji, one token each: (emoji, 1, 1280)."""
    encoder = EfficientNetLite0(frozen=True).eval()
    recipe = RECIPES["efficientnet-lite0"].at(128)
    with torch.no_grad():
        parts = [encoder(preprocess(x.float() / 255, recipe)).pooled for x in images.split(32)]
    return torch.cat(parts)[:, None]


def listen(waveforms: list[Tensor], segments: int = 8) -> Tensor:
    """Mean and mean change of log-mel frames in eight parts: (messages, 8, 80)."""
    log_mel, out = LogMel(LogMelConfig(mels=40)), []
    for waveform in waveforms:
        frames = log_mel(waveform[None])[0][0]
        both = torch.cat([frames[1:], frames.diff(dim=0).abs()], dim=1)
        out.append(torch.stack([part.mean(dim=0) for part in both.tensor_split(segments)]))
    return torch.stack(out)


def standardise(x: Tensor, rows: Tensor) -> Tensor:
    """Zero mean and unit spread of each feature, measured on the rows of the training set."""
    seen = x[rows].flatten(0, 1)
    return (x - seen.mean(dim=0)) / (seen.std(dim=0) + 0.05)


def ids(messages: irony.Messages) -> Tensor:
    """Token ids of the words."""
    return TOKENIZER.encode(list(messages.texts), pad_to=LENGTH).ids


def cut(ids: Tensor) -> Tensor:
    """Without the columns at the end that are padding in every row."""
    return ids[:, : int((ids != TOKENIZER.pad_id).sum(dim=1).max())]


def probe(x: Tensor, positive: Tensor, rows: Tensor) -> Tensor:
    """Logistic regression on some emoji; what it says of all. Both polarities weigh the same."""
    y = positive[rows].float()
    weight = torch.where(y > 0, 0.5 / y.mean(), 0.5 / (1 - y.mean()))
    w = torch.zeros(x.shape[1] + 1, requires_grad=True)
    optimiser = torch.optim.LBFGS([w], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        logits = x[rows] @ w[:-1] + w[-1]
        fit_ = F.binary_cross_entropy_with_logits(logits, y, weight, reduction="sum")
        loss = 0.01 * fit_ + 0.5 * w[:-1].square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return (x @ w[:-1] + w[-1]).detach() > 0


def train(
    model: Listener,
    draw: Callable,
    targets: Tensor,
    seed: int,
    *,
    drop: float = 0.0,
    steps: int = 200,
) -> None:
    """Train on rows drawn by ``draw``, with modality dropout if wanted."""
    generator = torch.Generator().manual_seed(seed)

    def loss_fn(model: Listener, rows: Tensor) -> tuple[Tensor, int]:
        encoded = model.encode(draw(rows))
        if drop:
            encoded = drop_modalities(encoded, drop, generator=generator)
        loss = F.binary_cross_entropy_with_logits(
            model.fusion(encoded)[:, 0], targets[rows], reduction="sum"
        )
        return loss, len(rows)

    def batches(step: int) -> Tensor:
        return torch.randint(
            len(targets), (64,), generator=torch.Generator().manual_seed(10_000 * seed + step)
        )

    how = {"learning_rate": 3e-3, "warmup": 20, "weight_decay": 0.1, "progress": False}
    fit(model.train(), loss_fn, batches, TrainConfig(steps, seed=seed, **how))
    model.eval()


def new(config: FusionConfig, seed: int) -> Listener:
    """A model of the budget of late fusion, drawn from a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Listener(matched(config, count_parameters(LATE)))


@torch.no_grad()
def right(model: Listener, inputs: Inputs, ironic: Tensor) -> float:
    """Accuracy."""
    return ((model(inputs) > 0) == ironic).double().mean().item()


def architectures(features: Tensor, positive: Tensor, fold: Tensor) -> None:
    """Every architecture on every fold: seen and unseen emoji, beside the probe."""
    found: dict[str, list[float]] = {}
    for seed in range(5):
        seen, unseen = (fold != seed).nonzero()[:, 0], (fold == seed).nonzero()[:, 0]
        x = standardise(features, seen)
        said = irony.messages(3000, positive, among=seen, seed=seed)
        tests = {
            name: irony.messages(1000, positive, among=among, templates="unseen", seed=90 + seed)
            for name, among in (("seen", seen), ("unseen", unseen))
        }
        # On the same messages as the models, so that both polarities weigh the same in both.
        sees = probe(x[:, 0], positive, seen) == positive
        found.setdefault("probe", []).append(sees[tests["unseen"].emoji].double().mean().item())
        words, targets = ids(said), said.ironic.float()

        def draw(rows: Tensor, words=words, x=x, said=said) -> Inputs:
            return {"text": cut(words[rows]), "image": x[said.emoji[rows]]}

        for kind, config in KINDS.items():
            if kind not in ALL_FOLDS and seed > 1:
                continue
            model = new(config, seed)
            train(model, draw, targets, seed, steps=400 if kind in ALL_FOLDS else 200)
            for where, test in tests.items():
                inputs = {"text": ids(test), "image": x[test.emoji]}
                score = right(model, inputs, test.ironic)
                found.setdefault(f"{kind}_{where}", []).append(score)
            scores = [round(found[f"{kind}_{where}"][-1], 3) for where in tests]
            print(kind, seed, scores, round(found["probe"][-1], 3), flush=True)
    for name, scores in found.items():
        metric = f"irony: {name.replace('_', ' ')} emoji, unseen templates, {len(scores)} folds"
        keep(name, scores, metric)
        if name in ("early_seen", "hybrid_seen"):
            what = f"{metric}, worst"
            results.record(f"04.{name}_worst", min(scores), tolerance=0.1, metric=what)
    spread = statistics.stdev(found["probe"])
    results.record("04.probe_spread", spread, tolerance=0.1, metric="its spread over folds")
    for kind in ALL_FOLDS:
        pairs = zip(found["probe"], found[f"{kind}_unseen"], strict=True)
        gaps = [ceiling - score for ceiling, score in pairs]
        what = f"irony, unseen emoji: probe less {kind}, {len(gaps)} folds"
        keep(f"{kind}_gap", gaps, what)
        error = statistics.stdev(gaps) / len(gaps) ** 0.5
        results.record(f"04.{kind}_gap_error", error, tolerance=0.1, metric=f"{what}, its error")


def operators(features: Tensor, positive: Tensor) -> None:
    """The operators on one vector each, before a linear classifier and one with a hidden layer."""
    x = standardise(features, torch.arange(len(positive)))[:, 0]
    said = irony.messages(3000, positive, seed=1)
    test = irony.messages(1000, positive, templates="unseen", seed=2)
    for name in OPERATORS:
        for head in ("linear", "mlp"):
            scores = []
            for seed in range(3):
                model = join(name, head, (ids(said), x[said.emoji], said.ironic.float()), seed)
                with torch.no_grad():
                    out = model(ids(test), x[test.emoji]) > 0
                scores.append((out == test.ironic).double().mean().item())
            keep(f"operator_{name}_{head}", scores, f"irony: {name}, {head} classifier, 3 seeds")
            print(name, head, scores, flush=True)


def join(name: str, head: str, data: tuple[Tensor, Tensor, Tensor], seed: int) -> nn.Module:
    """Train one operator."""
    words, pictures, target = data
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Pair(OPERATORS[name], head)

    def loss_fn(model: Pair, rows: Tensor) -> Tensor:
        out = model(words[rows], pictures[rows])
        return F.binary_cross_entropy_with_logits(out, target[rows])

    def batches(step: int) -> Tensor:
        return torch.randint(3000, (64,), generator=torch.Generator().manual_seed(step))

    config = TrainConfig(300, learning_rate=5e-3, seed=seed, progress=False)
    fit(model, loss_fn, batches, config)
    return model.eval()


class Pair(nn.Module):
    """The mean of word vectors, a picture's features, an operator and a classifier."""

    def __init__(self, kind: type, head: str) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(TOKENIZER.vocab_size, DIM, padding_idx=TOKENIZER.pad_id)
        self.image = nn.Sequential(nn.Dropout(0.5), nn.Linear(1280, DIM))
        self.join = kind([DIM, DIM], DIM)
        self.head = nn.Linear(DIM, 1)
        if head == "mlp":
            self.head = nn.Sequential(nn.Linear(DIM, DIM), nn.GELU(), self.head)

    def forward(self, words: Tensor, picture: Tensor) -> Tensor:
        """The logit that the message is ironic."""
        return self.head(self.join([self.words(words), self.image(picture)]))[:, 0]


def missing(features: Tensor, positive: Tensor) -> None:
    """Three modalities, with and without modality dropout: missing and noisy modalities."""
    x = standardise(features, torch.arange(len(positive)))
    said = irony.messages(600, positive, seed=3)
    test = irony.messages(300, positive, templates="unseen", seed=4)
    voices = listen(said.waveforms() + test.waveforms())
    voices = standardise(voices, torch.arange(600))
    pools = [(positive == one).nonzero()[:, 0] for one in (False, True)]
    generator = torch.Generator().manual_seed(0)
    words, targets = ids(said), said.ironic.float()
    inputs = {"text": ids(test), "image": x[test.emoji], "voice": voices[600:]}
    scores: dict[str, list[float]] = {}

    def draw(rows: Tensor) -> Inputs:
        # Every time another emoji of the same feeling, so that no sentence has its own.
        place = torch.rand(len(rows), generator=generator).tolist()
        feels = said.feels[rows].long().tolist()
        shown = [int(pools[f][int(p * len(pools[f]))]) for f, p in zip(feels, place, strict=True)]
        return {"text": cut(words[rows]), "image": x[shown], "voice": voices[rows]}

    for seed in range(2):
        alone = new(FusionConfig((VOICE,), kind="early", dropout=0.1), seed)
        train(alone, draw, targets, seed)
        scores.setdefault("voice_alone", []).append(right(alone, inputs, test.ironic))
        # Both go on from one model: started with dropout, some never leave their first plateau.
        base = new(FusionConfig(THREE, kind="early", dropout=0.1), seed)
        train(base, draw, targets, seed)
        for name, drop in (("plain", 0.0), ("dropout", 0.3)):
            model = copy.deepcopy(base)
            train(model, draw, targets, seed + 10, drop=drop)
            with torch.no_grad():
                encoded = model.encode(inputs)
                for gone in ("image", "voice", "text"):
                    for share in (0, 25, 50, 75, 100):
                        chance = torch.rand(300, generator=torch.Generator().manual_seed(share))
                        rows = chance < share / 100
                        changed = encoded | {gone: without(encoded[gone], rows)}
                        out = model.fusion(changed)[:, 0] > 0
                        score = (out == test.ironic).double().mean().item()
                        scores.setdefault(f"missing_{gone}_{share}_{name}", []).append(score)
                for noise in (0, 1, 2, 4, 8):
                    spread = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
                    noisy = inputs | {"image": (x + noise * spread)[test.emoji]}
                    score = right(model, noisy, test.ironic)
                    scores.setdefault(f"noisy_image_{noise}_{name}", []).append(score)
            last = {key: round(value[-1], 2) for key, value in scores.items() if "_100_" in key}
            print(name, seed, last, flush=True)
    for name, values in scores.items():
        keep(name, values, f"irony, three modalities: {name.replace('_', ' ')}, 2 seeds")


def keep(name: str, scores: list[float], metric: str, tolerance: float = 0.15) -> None:
    """Record a mean over runs."""
    results.record(f"04.{name}", statistics.mean(scores), tolerance=tolerance, metric=metric)


def main() -> None:
    """Operators, missing and noisy modalities, architectures on five folds."""
    emoji = polar_emoji()
    features = look(emoji.emoji.images)
    operators(features, emoji.positive)
    missing(features, emoji.positive)
    architectures(features, emoji.positive, folds(emoji))


if __name__ == "__main__":
    main()
