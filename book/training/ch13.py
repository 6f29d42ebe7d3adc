"""Train for easy-VQA, three seeds, and a reader of scenes; then fine-tune it in every way.

First easy-VQA: 400 of the training pictures choose the step, and the test set is looked at once a
seed. Then the reader, whose test scenes hold combinations of colour and shape that no training
scene has, beside the same reader without pictures or words. Then a task that it has never seen, in
wordings that are not the test's, from 200 and from 2,000 labels: five seeds of every way to
fine-tune. Last, adversarial training on that task.
"""

import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlib import results
from mmlib.adapters import Adapters, bitfit, count, head_only, train_only
from mmlib.adversarial import fgm, noise, pgd
from mmlib.data import easy_vqa, scenes
from mmlib.easy_model import KnownQuestions, easy_accuracy, easy_batches, easy_loss
from mmlib.easy_model import easy_vqa as easy_model
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
from mmlib.training import TrainConfig, fit, save_weights
from mmlib.vqa import Reader

MINUTES = 25
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


def reader_run(train: Asked, steps: int, seed: int = 0) -> Reader:
    """A reader on a locked picture tower, whose tokens the questions hold."""
    model = scene_reader(seed=seed)
    config = TrainConfig(
        steps, learning_rate=1e-3, warmup=steps // 20, weight_decay=0.02, progress=False, seed=seed
    )
    fit(model, question_loss, batches(train, 16, seed), config)
    return model.eval()


def scene_sets(pictures: int = 6000, tests: int = 300) -> tuple[Asked, Asked, Asked]:
    """Training questions, questions on unseen combinations, and on seen ones."""
    tower = scene_reader().image
    drawn = (("train", pictures, 1), ("test", tests, 2), ("train", tests, 3))
    return tuple(
        looked_at(ask_scenes(scenes.sample(n, seed, split=split, objects=(1, 3)), seed), tower)
        for split, n, seed in drawn
    )


def scene_runs(steps: int = 1000, blind_steps: int = 200) -> tuple[Reader, Asked]:
    """The reader and two that lack something; returns the reader and the test questions."""
    train, test, seen = scene_sets()
    model = reader_run(train, steps)
    card = CARD | {"data": "questions about scenes, split train", "steps": steps}
    save_weights(model, CHECKPOINTS / "13_scenes.safetensors", card, dtype=torch.bfloat16)
    note("distinct", len(set(train.texts)), "distinct questions of training", 0)
    runs = {"": (model, test), "seen_": (model, seen)}
    for what, name in (("pictures", "question_only_"), ("words", "image_only_")):
        runs[name] = (reader_run(blind(train, what), blind_steps), blind(test, what))
    for name, (reader, asked) in runs.items():
        for kind, share in accuracies(reader, asked).items():
            note(f"scenes_{name}{kind}", share, f"scenes, {name or 'reader '}{kind}", 0.06, seed=0)
    return model, test


# --- fine-tuning -------------------------------------------------------------------------------

#: Peak learning rate of each way, chosen of two or three with another seed's labels.
METHODS: dict[str, float] = {
    "frozen": 0.0,
    "head": 1e-2,
    "bitfit": 1e-2,
    "lora_2": 5e-3,
    "lora_8": 5e-3,
    "full": 7e-4,
}
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


def kept_bytes(model: Reader, asked: Asked) -> int:
    """What a step holds in memory beside the weights: gradients, AdamW's two means, activations."""
    sizes: dict[int, int] = {}
    weights = {p.data_ptr() for p in model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if tensor.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = question_loss(model, (asked.ids, asked.keep, asked.images, asked.of, asked.answers))
    del loss
    return sum(sizes.values()) + 3 * 4 * count(model)


def tuned(method: str, asked: Asked, seed: int, steps: int) -> tuple[Reader, float]:
    """Fine-tune in one way; returns the model and the seconds of a step."""
    model = prepared(method, seed)
    if method == "frozen":
        class_means(model, asked)
        return model, 0.0
    config = TrainConfig(
        steps,
        learning_rate=METHODS[method],
        warmup=steps // 10,
        weight_decay=0.01,
        progress=False,
        seed=seed,
    )
    history = fit(model, question_loss, batches(asked, 32, seed), config)
    return model, history.seconds / steps


def place_sets(pictures: int = 6000, tests: int = 200) -> tuple[Asked, Asked]:
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
    rows, pictures = slice(row, row + labels), slice(begin, int(asked.of[row + labels - 1]) + 1)
    return Asked(
        asked.images[pictures],
        asked.ids[rows],
        asked.keep[rows],
        asked.of[rows] - begin,
        asked.answers[rows],
        asked.texts[rows],
        asked.kinds[rows],
    )


def tuning_runs(retained: Asked, steps: dict[int, int] | None = None) -> None:
    """Every way, 200 and 2,000 labels, five seeds."""
    steps = steps or {200: 30, 2000: 80}
    pool, test = place_sets()
    note("pool", len(set(pool.texts)), "distinct questions of the fine-tuning pool", 0)
    note("unseen", len(set(test.texts)), "distinct questions of its test, none in the pool", 0)
    before = accuracies(scene_reader(trained=True), retained)["all"]
    note("retained", before, "scenes, before fine-tuning", 0.05)
    for method in METHODS:
        for labels in LABELS:
            scores, after, seconds = [], [], []
            for seed in SEEDS:
                mine = part_of(pool, labels, seed)
                model, second = tuned(method, mine, seed, steps[labels])
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
        numbers = 0 if method == "frozen" else count(model)
        note(f"tune_{method}_parameters", numbers, f"{method}: numbers that learn", 0)
        if method != "frozen":
            sample = part_of(pool, 64, 0)
            megabytes = kept_bytes(prepared(method, 0), sample) / 2**20
            text = f"{method}: gradients, AdamW, activations of 64 questions"
            note(f"tune_{method}_memory", megabytes, text, 2.0, unit="MB")


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


EPSILONS = (0.0, 0.1, 0.25, 0.5, 1.0)


def adversarial_runs(steps: int = 60, epsilon: float = 0.5) -> None:
    """Fine-tune in full with and without an adversary, and attack what comes out."""
    pool, test = place_sets(1200, 150)
    mine = part_of(pool, 2000, 0)
    for kind in ("clean", "fgm", "pgd"):
        model = prepared("full", 0)
        config = TrainConfig(
            steps, learning_rate=1e-3, warmup=steps // 10, weight_decay=0.01, progress=False
        )
        history = fit(model, adversarial_loss(kind, epsilon), batches(mine, 32, 0), config)
        model.eval().requires_grad_(False)
        milliseconds = 1e3 * history.seconds / steps
        note(f"robust_{kind}_ms", milliseconds, f"a step, {kind}", 1e4, unit="ms")
        for how in ("noise", "fgm", "pgd"):
            for value in EPSILONS[1:] if how != "noise" else EPSILONS:
                share = robustness(model, test, value, how)
                text = f"trained {kind}, words moved by {value} ({how})"
                note(f"robust_{kind}_{how}_{round(100 * value)}", share, text, 0.15)


def main() -> None:
    """Run every part; keep the weights of easy-VQA's first seed and of the reader."""
    began = time.time()
    _, test = scene_runs()
    tuning_runs(test.first(400))
    adversarial_runs()
    easy_runs()
    print(f"{(time.time() - began) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
