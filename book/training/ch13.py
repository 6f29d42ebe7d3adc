"""Train for easy-VQA, three seeds, and a reader of scenes; then fine-tune it in every way.

First the reader, whose test scenes hold combinations of colour and shape that no training scene
has, beside the same reader without pictures or words. Then a task that it has never seen, in
wordings that are not the test's, from 200 and from 2,000 labels: five seeds of every way to
fine-tune, at learning rates chosen on wordings held out of training. Then the reader is trained on
against adversaries. Last easy-VQA: 400 of the training pictures choose the step, and the test set
is looked at once a seed.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlib import results
from mmlib.adapters import Adapters
from mmlib.adversarial import fgm, noise, pgd
from mmlib.data import easy_vqa, scenes
from mmlib.easy_model import KnownQuestions, easy_accuracy, easy_batches, easy_loss
from mmlib.easy_model import easy_vqa as easy_model
from mmlib.reader import LOUD_PLACES, Reader
from mmlib.scene_vqa import (
    PLACE_ANSWERS,
    Asked,
    accuracies,
    ask_places,
    ask_scenes,
    batches,
    blind,
    looked_at,
    question_loss,
    scene_reader,
)
from mmlib.trainable import bitfit, count, head_only, train_only
from mmlib.training import TrainConfig, fit, save_weights

MINUTES = 40
CHECKPOINTS = Path("mmlib/checkpoints")
CARD = {"command": "make train CHAPTER=13", "seed": 0}
SEEDS, LABELS = range(5), (200, 2000)


def note(name: str, value: float, metric: str, tolerance: float = 0.05, **options) -> None:
    """Record a number of chapter 13."""
    results.record(f"13.{name}", value, metric=metric, tolerance=tolerance, **options)


def mean(numbers: list[float]) -> float:
    """Their mean."""
    return sum(numbers) / len(numbers)


# --- easy-VQA ----------------------------------------------------------------------------------


def easy_runs(steps: int = 1200, seeds: int = 3) -> None:
    """Three seeds; each keeps its best step on held-out pictures and is tested once."""
    full, test = easy_vqa.load("train"), easy_vqa.load("test")
    train, held = easy_vqa.hold_out(full, 400)
    questions = KnownQuestions(sorted(set(full.questions) | set(test.questions)))
    found = []
    for seed in range(seeds):
        model = easy_model(questions, seed=seed)
        config = TrainConfig(
            steps,
            learning_rate=4e-3,
            warmup=steps // 20,
            weight_decay=0.05,
            precision="auto",
            evaluate_every=max(1, steps // 8),
            patience=4,
            keep_best=True,
            progress=False,
            seed=seed,
        )
        history = fit(
            model,
            easy_loss,
            easy_batches(train, questions, seed=seed),
            config,
            evaluate=lambda model: easy_accuracy(model, held),
        )
        found.append(easy_accuracy(model, test))
        note(f"easy_steps_{seed}", history.steps, "steps until training stopped", steps, seed=seed)
        text = f"easy-VQA test, official split, seed {seed}"
        note(f"easy_{seed}", found[-1], text, 0.01, seed=seed, baseline=0.67)
        text = f"easy-VQA, 400 held-out training pictures, seed {seed}"
        note(f"easy_held_{seed}", history.best_score, text, 0.01, seed=seed)
        note(f"easy_minutes_{seed}", history.seconds / 60, "training, wall clock", 60.0, unit="min")
        if seed == 0:
            card = CARD | {"data": "easy-VQA, train, but for 400 pictures", "steps": steps}
            save_weights(model, CHECKPOINTS / "13_easy_vqa.safetensors", card, dtype=torch.bfloat16)
    note("easy_mean", mean(found), f"easy-VQA test, mean of {seeds} seeds", 0.005, baseline=0.67)


# --- scenes ------------------------------------------------------------------------------------


def reader_run(
    train: Asked,
    steps: int,
    seed: int = 0,
    watched: tuple[Asked, int] | None = None,
    places: float = LOUD_PLACES,
    whole: int | None = None,
) -> Reader:
    """A reader on a locked picture tower, whose tokens the questions hold.

    With ``watched`` questions its accuracy on them is noted so many times on the way; ``places`` is
    the spread of the regions' places at the start. The steps may be the first of a ``whole`` run of
    so many, at whose rates they are made.
    """
    whole = whole or steps
    warmup = whole // 20
    end = (1 + math.cos(math.pi * (steps - warmup) / (whole - warmup))) / 2
    model = scene_reader(seed=seed)
    model.region_pos.data.mul_(places / LOUD_PLACES)
    config = TrainConfig(
        steps,
        learning_rate=2e-3,
        warmup=warmup,
        final=end,
        weight_decay=0.02,
        evaluate_every=0 if watched is None else steps // watched[1],
        progress=False,
        seed=seed,
    )
    passed = 0

    def watch(model: Reader) -> float:
        nonlocal passed
        passed += steps // watched[1]
        found = accuracies(model, watched[0])
        for kind, share in found.items():
            note(f"curve_{passed}_{kind}", share, f"scenes, step {passed}, seen: {kind}", 0.1)
        return found["all"]

    evaluate = None if watched is None else watch
    fit(model, question_loss, batches(train, 16, seed), config, evaluate=evaluate)
    return model.eval()


def scene_sets(pictures: int = 12_000, tests: int = 600) -> tuple[Asked, Asked, Asked]:
    """Training questions, questions on unseen combinations, and on seen ones."""
    tower = scene_reader().image
    drawn = (("train", pictures, 1), ("test", tests, 2), ("train", tests, 3))
    return tuple(
        looked_at(ask_scenes(scenes.sample(n, seed, split=split, objects=(1, 3)), seed), tower)
        for split, n, seed in drawn
    )


def scene_runs(steps: int = 8000, blind_steps: int = 1500) -> tuple[Asked, Asked]:
    """The reader and two that lack something; returns the training and the test questions."""
    train, test, seen = scene_sets()
    model = reader_run(train, steps, watched=(seen, 8))
    card = CARD | {"data": "questions about scenes, split train", "steps": steps}
    save_weights(model, CHECKPOINTS / "13_scenes.safetensors", card, dtype=torch.bfloat16)
    note("distinct", len(set(train.texts)), "distinct questions of training", 0)
    quiet = reader_run(train, steps // 4, places=0.02, whole=steps)
    for kind, share in accuracies(quiet, seen).items():
        text = f"scenes, places that start quiet, {steps // 4} steps, seen: {kind}"
        note(f"quiet_{steps // 4}_{kind}", share, text, 0.1, seed=0)
    runs = {"": (model, test), "seen_": (model, seen)}
    for what, name in (("pictures", "question_only_"), ("words", "image_only_")):
        runs[name] = (reader_run(blind(train, what), blind_steps), blind(test, what))
    for name, (reader, asked) in runs.items():
        for kind, share in accuracies(reader, asked).items():
            note(f"scenes_{name}{kind}", share, f"scenes, {name or 'reader '}{kind}", 0.06, seed=0)
    return train, test


# --- fine-tuning -------------------------------------------------------------------------------

#: Peak learning rates of each way, of which :func:`chosen_rates` takes one.
RATES: dict[str, tuple[float, ...]] = {
    "frozen": (0.0,),
    "head": (3e-3, 1e-2, 3e-2),
    "bitfit": (3e-3, 1e-2, 3e-2),
    "lora_2": (2e-3, 5e-3, 1.2e-2),
    "lora_8": (2e-3, 5e-3, 1.2e-2),
    "full": (3e-4, 7e-4, 1.7e-3),
}
#: Steps for 200 and for 2,000 labels.
STEPS = {200: 100, 2000: 300}
#: Two of the eight wordings of each kind, with which a rate is chosen: no model that is compared
#: for it has trained on them, and none is a wording of the test.
HELD = ("tell me", "look at")
TARGETS = ("qkv_proj", "out_proj", "mlp.0", "mlp.3")


def class_means(model: Reader, asked: Asked) -> None:
    """Nothing learns: a new answer is the mean of what the model makes of its questions."""
    caught: list[Tensor] = []
    hook = model.norm.register_forward_hook(lambda module, given, out: caught.append(out))
    with torch.no_grad():
        model(asked.ids, asked.keep, asked.images, asked.of)
        vectors = caught[0]
        hook.remove()
        for answer in range(len(PLACE_ANSWERS)):
            mine = vectors[asked.answers == answer]
            centre = mine.mean(0) if len(mine) else torch.zeros(vectors.shape[1])
            model.head.weight[answer] = centre
            # The nearest mean, as a linear layer: x·m - |m|²/2.
            model.head.bias[answer] = -centre.square().sum() / 2


def prepared(method: str, seed: int) -> Reader:
    """The trained reader, ready to be fine-tuned in one way; its old head is kept beside it."""
    model = scene_reader(trained=True)
    old = model.head
    model.new_head(len(PLACE_ANSWERS), seed)
    if method.startswith("lora"):
        adapters = Adapters(model, TARGETS, heads=["head"])
        adapters.add("places", int(method.partition("_")[2]), seed=seed)
    elif method in ("head", "frozen"):
        head_only(model)
    elif method == "bitfit":
        bitfit(model)
        model.image.requires_grad_(False)
    else:
        train_only(model, lambda name: not name.startswith("image."))
    model.old_head = (old,)  # in a tuple, so that it is no part of the model
    return model


def tuned(method: str, asked: Asked, seed: int, steps: int, rate: float) -> tuple[Reader, float]:
    """Fine-tune in one way; returns the model and the seconds of a step."""
    model = prepared(method, seed)
    if method == "frozen":
        class_means(model, asked)
        return model, 0.0
    config = TrainConfig(
        steps,
        learning_rate=rate,
        warmup=steps // 10,
        weight_decay=0.01,
        progress=False,
        seed=seed,
    )
    history = fit(model, question_loss, batches(asked, 32, seed), config)
    return model, history.seconds / steps


def place_sets(pictures: int = 9000, tests: int = 500) -> tuple[Asked, Asked]:
    """Training questions, and unseen wordings about unseen combinations."""
    tower = scene_reader(trained=True).image
    drawn = (("train", pictures, 11), ("test", tests, 12))
    train, test = (
        ask_places(scenes.sample(n, seed, split=split, objects=(1, 3)), seed, split)
        for split, n, seed in drawn
    )
    return looked_at(train, tower), looked_at(test, tower)


def part_of(asked: Asked, labels: int, seed: int) -> Asked:
    """The questions of one seed: a stretch of the pool that the next seed does not share."""
    begin = int(asked.of[(seed * labels) % (len(asked) - labels)])
    row = int((asked.of == begin).nonzero()[0])
    rows, pictures = range(row, row + labels), slice(begin, int(asked.of[row + labels - 1]) + 1)
    some = taken(asked, rows)
    return replace(some, images=asked.images[pictures], of=some.of - begin)


def taken(asked: Asked, rows: Sequence[int]) -> Asked:
    """Some of the questions, in their order; the pictures stay."""
    rows = list(rows)
    return Asked(
        asked.images,
        asked.ids[rows],
        asked.keep[rows],
        asked.of[rows],
        asked.answers[rows],
        tuple(asked.texts[row] for row in rows),
        tuple(asked.kinds[row] for row in rows),
    )


def choosing_sets(pictures: int = 2500, tests: int = 1600) -> tuple[Asked, Asked]:
    """Questions to compare rates with: two sets of scenes of split train, and wordings apart."""
    tower, sets = scene_reader(trained=True).image, []
    for n, seed, held in ((pictures, 13, False), (tests, 14, True)):
        asked = ask_places(scenes.sample(n, seed, split="train", objects=(1, 3)), seed, "train")
        rows = [row for row, text in enumerate(asked.texts) if text.startswith(HELD) == held]
        sets.append(looked_at(taken(asked, rows), tower))
    return sets[0], sets[1]


def chosen_rates(labels: int = 2000) -> dict[str, float]:
    """The rate with which each way answers best in wordings held out of training and test."""
    train, held = choosing_sets()
    train, best = train.first(labels), {}
    for method, rates in RATES.items():
        scores = {}
        for rate in rates if len(rates) > 1 else ():
            model, _ = tuned(method, train, 100, STEPS[labels], rate)
            scores[rate] = accuracies(model, held)["all"]
            text = f"{method}, learning rate {rate:g}: wordings held out of training"
            note(f"rate_{method}_{round(1e5 * rate)}", scores[rate], text, 0.1)
        best[method] = max(scores, key=scores.get, default=rates[0])
    return best


def tuning_runs(retained: Asked, rates: dict[str, float]) -> None:
    """Every way, 200 and 2,000 labels, five seeds."""
    pool, test = place_sets()
    note("pool", len(set(pool.texts)), "distinct questions of the fine-tuning pool", 0)
    note("unseen", len(set(test.texts)), "distinct questions of its test, none in the pool", 0)
    before = accuracies(scene_reader(trained=True), retained)["all"]
    note("retained", before, "scenes, before fine-tuning", 0.05)
    for method, rate in rates.items():
        for labels in LABELS:
            scores, after, seconds = [], [], []
            for seed in SEEDS:
                mine = part_of(pool, labels, seed)
                model, second = tuned(method, mine, seed, STEPS[labels], rate)
                scores.append(accuracies(model, test)["all"])
                after.append(accuracies(model, retained, model.old_head[0])["all"])
                seconds.append(second)
            text = f"{method}, {labels} labels, mean of 5 seeds"
            name = f"tune_{method}_{labels}"
            note(name, mean(scores), f"{text}: unseen wordings", 0.08, baseline=1 / 11)
            spread = torch.tensor(scores).std().item()
            note(f"{name}_spread", spread, f"{text}: standard deviation", 0.05)
            note(f"{name}_retained", mean(after), f"{text}: the old task", 0.15, baseline=before)
        note(f"tune_{method}_ms", 1e3 * min(seconds), f"{method}: a step", 1e4, unit="ms")
        note(f"tune_{method}_rate", rate, f"{method}: peak learning rate, chosen", 1.0)
        numbers = 0 if method == "frozen" else count(model)
        note(f"tune_{method}_parameters", numbers, f"{method}: numbers that learn", 0)


# --- adversarial -------------------------------------------------------------------------------


def adversarial_loss(kind: str, epsilon: float) -> Callable[..., tuple[Tensor, int]]:
    """A loss for fit: half clean, half on embedded words that an adversary has moved."""

    def loss(model: Reader, batch: tuple[Tensor, ...]) -> tuple[Tensor, int]:
        ids, keep, images, of, answers = batch
        regions, words = model.read(images), model.embed(ids)

        def attacked(moved: Tensor, seen: Tensor) -> Tensor:
            logits = model(ids, keep, None, of, words=moved, regions=seen).logits
            return F.cross_entropy(logits.float(), answers, reduction="sum")

        clean = attacked(words, regions)
        if kind == "clean":
            return clean, len(answers)
        attack = fgm if kind == "fgm" else pgd
        delta = attack(
            lambda moved: attacked(moved, regions.detach()), words, epsilon, keep=keep[..., None]
        )
        return (clean + attacked(words + delta, regions)) / 2, len(answers)

    return loss


def robustness(model: Reader, asked: Asked, epsilon: float, how: str) -> float:
    """The share of right answers when the words of each question are moved by up to epsilon."""
    regions, words = model.read(asked.images).detach(), model.embed(asked.ids).detach()
    keep = asked.keep[..., None]

    def logits(moved: Tensor) -> Tensor:
        return model(asked.ids, asked.keep, None, asked.of, words=moved, regions=regions).logits

    def loss(moved: Tensor) -> Tensor:
        return F.cross_entropy(logits(moved), asked.answers, reduction="sum")

    if how == "pgd":
        delta = pgd(loss, words, epsilon, steps=8, keep=keep)
    elif how == "fgm":
        delta = fgm(loss, words, epsilon, keep=keep)
    else:
        delta = noise(words, epsilon, torch.Generator().manual_seed(0), keep)
    with torch.no_grad():
        return (logits(words + delta).argmax(1) == asked.answers).double().mean().item()


EPSILONS = (0.0, 0.25, 0.5, 1.0, 2.0)


def armed(train: Asked, kind: str, epsilon: float, steps: int) -> tuple[Reader, float]:
    """The trained reader, trained on against an adversary; returns it and the seconds of a step.

    The table of the words stays locked, with or without an adversary: a model that may make its
    words longer escapes from a ball of fixed radius and becomes no steadier (Miyato et al., section
    3, normalise the table for this reason).
    """
    model = scene_reader(trained=True)
    train_only(model, lambda name: not name.startswith(("image.", "token.")))
    config = TrainConfig(
        steps, learning_rate=5e-4, warmup=steps // 10, weight_decay=0.01, progress=False
    )
    history = fit(model, adversarial_loss(kind, epsilon), batches(train, 16, 5), config)
    return model.eval().requires_grad_(False), history.seconds / steps


def adversarial_runs(train: Asked, test: Asked, steps: int = 300, epsilon: float = 1.0) -> None:
    """Train the reader on with and without an adversary, and attack what comes out."""
    for kind in ("clean", "fgm", "pgd"):
        model, seconds = armed(train, kind, epsilon, steps)
        note(f"robust_{kind}_ms", 1e3 * seconds, f"a step, {kind}", 1e4, unit="ms")
        for how in ("noise", "fgm", "pgd"):
            for value in EPSILONS[1:] if how != "noise" else EPSILONS:
                share = robustness(model, test, value, how)
                text = f"trained {kind}, words moved by {value} ({how})"
                note(f"robust_{kind}_{how}_{round(100 * value)}", share, text, 0.15)


def main() -> None:
    """Run every part; keep the weights of easy-VQA's first seed and of the reader."""
    began = time.time()
    for run in (scenes_and_after, easy_runs):
        run()
        print(f"{run.__name__}: {(time.time() - began) / 60:.1f} minutes")


def scenes_and_after() -> None:
    """The reader, and what is done with it afterwards."""
    train, test = scene_runs()
    tuning_runs(test.first(600), chosen_rates())
    adversarial_runs(train, test.first(600))


if __name__ == "__main__":
    main()
