"""Shrink two models of earlier chapters, and put a load on the service.

The text tower of chapter 07's search (MiniLM, 22.7 million weights) in bf16, in whole numbers of
eight bits and as an ONNX graph: its size, its time and what it still finds. Chapter 10's towers of
scenes with weights and units left out, before and after a short training, and a student of the
picture tower beside the same network trained without a teacher; every form of them in one table.
Then the service with 64 clients.
"""

import asyncio
import contextlib
import copy
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn

from mmlib import results
from mmlib.clip import CLIP
from mmlib.data import pairs, scenes
from mmlib.distillation import vector_loss
from mmlib.encoders.preprocessing import preprocess
from mmlib.encoders.small_cnn import SmallCNN
from mmlib.encoders.tokenizers import wordpiece_tokenizer
from mmlib.export import OnnxModel, export, largest_difference, write_onnx
from mmlib.int8 import megabytes, quantise_model
from mmlib.metrics.retrieval import hit_rate, ranks
from mmlib.picture_search import RECIPE, matching_model
from mmlib.pruning import MaskKeeper, magnitude_masks, prune_hidden, sparsity
from mmlib.serving.load import caption_messages, load, percentile, running_service
from mmlib.small_clips import scene_clip, scene_ids, scene_vectors
from mmlib.training import TrainConfig, fit

MINUTES = 20
THREADS = 2  # of what is timed: one for each core
STEPS = 600  # of training after weights were left out
SHARES = (0.5, 0.8, 0.9, 0.95)

# --- what is measured of every form ------------------------------------------------------------


def times(function: Callable[[], object], calls: int) -> list[float]:
    """Seconds of each call, sorted, after some to warm up."""
    for _ in range(5):
        function()
    taken = []
    for _ in range(calls):
        start = time.perf_counter()
        function()
        taken.append(time.perf_counter() - start)
    return sorted(taken)


def measured(prefix: str, what: str, size: float, one: Callable[[], object],
             sixteen: Callable[[], object], calls: int) -> None:  # fmt: skip
    """Size in MB, and the time of one request and of a batch of 16."""
    single, batch = times(one, calls), times(sixteen, calls // 4)
    for key, value, unit, metric, tolerance in (
        ("megabytes", size, "MB", "size", 0.5),
        ("p50", 1000 * percentile(single, 0.5), "ms", "one request, median", 50.0),
        ("p99", 1000 * percentile(single, 0.99), "ms", "one request, 99th percentile", 200.0),
        ("rate", 16 / statistics.median(batch), "", "requests a second in batches of 16", 20_000.0),
    ):
        results.record(f"15.{prefix}_{key}", value, tolerance=tolerance, unit=unit,
                       metric=f"{what}: {metric}")  # fmt: skip


@contextlib.contextmanager
def two_threads() -> Iterator[None]:
    """As many threads as there are cores, for what is timed."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# --- the search's text tower -------------------------------------------------------------------


def text_form(name: str, label: str, encode: Callable[[Tensor, Tensor], Tensor], size: float,
              images: Tensor, data: pairs.PairSet, calls: int) -> None:  # fmt: skip
    """Size, time and R@10 of one form of the text tower."""
    tokenizer = wordpiece_tokenizer()

    def tokens(texts):
        return tokenizer.encode(texts, 64, truncate=True)

    texts = torch.cat(
        [encode(*tokens(list(data.names[i : i + 32]))) for i in range(0, len(data), 32)]
    )
    own = torch.tensor([[a == b for b in data.names] for a in data.names])
    found = hit_rate(ranks(texts.float() @ images.T, own), 10)
    what = f"text tower of search, {label}"
    results.record(f"15.text_{name}_r10", found, tolerance=0.01,
                   metric=f"{what}: R@10 of {len(data)} test pictures")  # fmt: skip
    one, many = tokens(["an animal that lives in the sea"]), tokens(list(data.names[:16]))
    measured(f"text_{name}", what, size, lambda: encode(*one), lambda: encode(*many), calls)


class TextTower(nn.Module):
    """The text tower and its head, as one module of ids and mask."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.text, self.head = model.text, model.heads.text

    def forward(self, ids: Tensor, keep: Tensor) -> Tensor:
        """Vectors of unit length."""
        pooled = nn.functional.normalize(self.text(ids, keep).pooled, dim=1)
        return nn.functional.normalize(self.head(pooled), dim=1)


@torch.no_grad()
@two_threads()
def text_tower(data: pairs.PairSet | None = None, calls: int = 200) -> None:
    """Every form of the text tower: size, time and what is found with each."""
    data = data or pairs.load("test")
    model = matching_model()
    images = torch.cat(
        [
            model.encode_images(preprocess(part.float() / 255, RECIPE))
            for part in data.images.split(32)
        ]
    )
    tower = TextTower(model).eval()
    example = wordpiece_tokenizer().encode(["a red apple", "two people who dance"])
    wanted = tower(*example)
    assert largest_difference(wanted, model.encode_texts(*example)) < 1e-6
    text_form("fp32", "fp32", tower, megabytes(tower), images, data, calls)
    half = copy.deepcopy(tower).bfloat16()
    text_form("bf16", "bf16", half, megabytes(half), images, data, calls)
    small = quantise_model(tower)
    text_form("int8", "int8", small, megabytes(small), images, data, calls)
    program = export(tower, list(example), [[0, 1], [0, 1]])
    other = wordpiece_tokenizer().encode(["x", "a longer sentence than before", "y"])
    with tempfile.TemporaryDirectory() as folder:
        path = write_onnx(program, Path(folder) / "text.onnx")
        onnx = OnnxModel(path, THREADS)
        for name, run in (("export", program.module()), ("onnx", onnx)):
            gap = largest_difference(run(*other), tower(*other))
            results.record(f"15.gap_{name}", gap, tolerance=1e-5,
                           metric=f"largest difference of the {name} graph")  # fmt: skip
        text_form("onnx", "ONNX Runtime", onnx, path.stat().st_size / 1e6, images, data, calls)


# --- leaving out, and teaching -----------------------------------------------------------------


def batch(n: int, size: int = 128) -> tuple[Tensor, Tensor]:
    """New training scenes."""
    drawn = scenes.sample(size, 50_000 + n, split="train", objects=(1, 2))
    return scenes.render(drawn, 32), scene_ids(drawn)


def test_scenes() -> list[scenes.Scene]:
    """500 scenes of two objects with different captions, of combinations held out."""
    found = {scenes.caption(s): s for s in scenes.sample(2000, 7, split="test", objects=2)}
    return list(found.values())[:500]


def recall(model: CLIP) -> float:
    """R@1 of the captions of 500 scenes."""
    image, text = scene_vectors(model, test_scenes())
    own = torch.eye(len(image), dtype=torch.bool)
    return hit_rate(ranks(image @ text.T, own), 1)


def tuned(
    model: CLIP, steps: int, masks: dict[str, Tensor] | None = None, learning_rate: float = 5e-4
) -> CLIP:
    """The model after a short training; weights that were left out stay away."""
    keeper = None if masks is None else MaskKeeper(model, masks)

    def loss(model: CLIP, given: tuple[Tensor, Tensor]) -> Tensor:
        if keeper is not None:
            keeper.apply()  # what the step before moved
        return model.loss(*given)

    config = TrainConfig(steps, learning_rate=learning_rate, warmup=10, weight_decay=0.05,
                         precision="auto", progress=False)  # fmt: skip
    fit(model, loss, batch, config)
    if keeper is not None:
        keeper.apply()
    return model.eval()


def pruned(steps: int) -> dict[str, CLIP]:
    """Weights by size, then whole units; one of each for the table."""
    kept = {}
    start = scene_clip(trained=True)
    baseline = recall(start)
    results.record("15.prune_none", baseline, tolerance=0.05, metric="R@1 before pruning")
    for share in SHARES:
        model = copy.deepcopy(start)
        masks = magnitude_masks(model, share)
        MaskKeeper(model, masks)
        name = f"15.prune_{round(100 * share)}"
        results.record(name, recall(model), baseline=baseline, tolerance=0.1,
                       metric=f"R@1 without {share:.0%} of the weights")  # fmt: skip
        tuned(model, steps, masks)
        assert abs(sparsity(model) - share) < 0.001
        results.record(f"{name}_tuned", recall(model), baseline=baseline, tolerance=0.1,
                       metric=f"R@1 without {share:.0%}, trained again", seed=0)  # fmt: skip
        kept[f"sparse_{round(100 * share)}"] = model
    perceptrons = mlp_pairs(start.text)
    for share in (0.5, 0.75):
        model = prune_hidden(start, [(f"text.{a}", f"text.{b}") for a, b in perceptrons], share)
        name = f"15.units_{round(100 * share)}"
        size = megabytes(model.text) / megabytes(start.text)
        results.record(f"{name}_size", size, tolerance=0.001, metric="size of the text tower")
        results.record(name, recall(model), baseline=baseline, tolerance=0.1,
                       metric=f"R@1 without {share:.0%} of the text tower's units")  # fmt: skip
        tuned(model, steps // 4, learning_rate=1e-4)  # little was lost: it need not go far
        results.record(f"{name}_tuned", recall(model), baseline=baseline, tolerance=0.1,
                       metric=f"R@1 without {share:.0%} of the units, trained again")  # fmt: skip
        kept[f"units_{round(100 * share)}"] = model
    return {"sparse": kept["sparse_90"], "units": kept["units_50"]}


def mlp_pairs(model: nn.Module) -> list[tuple[str, str]]:
    """The two linear layers of each block's perceptron, by name."""
    found = []
    for name, module in model.named_modules():
        if name.endswith(".mlp") and isinstance(module, nn.Sequential):
            linear = [i for i, layer in enumerate(module) if isinstance(layer, nn.Linear)]
            found.append((f"{name}.{linear[0]}", f"{name}.{linear[1]}"))
    return found


def student(width: int = 32) -> CLIP:
    """Chapter 10's towers with a narrower picture network, drawn anew; the text tower is known."""
    model = scene_clip(trained=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.image = SmallCNN(width)
        model.image_projection = nn.Linear(width, model.config.dim, bias=False)
    model.text.requires_grad_(False)
    model.text_projection.requires_grad_(False)
    return model


def distilled(steps: int) -> CLIP:
    """A student with a teacher, beside one without; the first for the table."""
    teacher, students = scene_clip(trained=True), {}

    def taught(model: CLIP, given: tuple[Tensor, Tensor]) -> Tensor:
        with torch.no_grad():
            wanted = teacher.encode_image(given[0])
        return vector_loss(model.encode_image(given[0]), wanted)

    baseline = recall(teacher)
    for name, loss in (("taught", taught), ("alone", lambda m, given: m.loss(*given))):
        model = student()
        config = TrainConfig(steps, learning_rate=2e-3, warmup=steps // 10, weight_decay=0.05,
                             precision="auto", progress=False)  # fmt: skip
        fit(model, loss, batch, config)
        results.record(f"15.student_{name}", recall(model.eval()), baseline=baseline,
                       tolerance=0.1, metric=f"R@1 of a student, {name}", seed=0)  # fmt: skip
        students[name] = model
    size = megabytes(student().image) / megabytes(teacher.image)
    results.record("15.student_size", size, tolerance=0.001, metric="size of the picture tower")
    return students["taught"]


# --- every form of the small towers ------------------------------------------------------------


class Both(nn.Module):
    """A picture's vector and its caption's, as one request."""

    def __init__(self, model: CLIP, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, images: Tensor, ids: Tensor) -> Tensor:
        """Side by side."""
        image = self.model.encode_image(images.to(self.dtype))
        return torch.cat([image, self.model.encode_text(ids)], 1)


@torch.no_grad()
@two_threads()
def all_forms(small: dict[str, CLIP], calls: int = 400) -> None:
    """Size, time and R@1 of chapter 10's towers in every form that this chapter makes."""
    clip, items = scene_clip(trained=True).eval(), test_scenes()
    images, ids = scenes.render(items, 32), scene_ids(items)
    both = {name: Both(model.eval()) for name, model in ({"fp32": clip} | small).items()}
    both["bf16"] = Both(copy.deepcopy(clip).bfloat16(), torch.bfloat16)
    both["int8"] = Both(quantise_model(clip))
    forms = {name: (model, megabytes(model)) for name, model in both.items()}
    with tempfile.TemporaryDirectory() as folder:
        program = export(both["fp32"].eval(), [images[:4], ids[:4]], [[0], [0]])
        path = write_onnx(program, Path(folder) / "both.onnx")
        forms["onnx"] = (OnnxModel(path, THREADS), path.stat().st_size / 1e6)
        for name, (run, size) in forms.items():
            what = f"small towers, {name}"
            parts = zip(images.split(50), ids.split(50), strict=True)
            vectors = torch.cat([run(a, b) for a, b in parts])
            image, text = vectors.float().chunk(2, 1)
            found = hit_rate(ranks(image @ text.T, torch.eye(len(image), dtype=torch.bool)), 1)
            results.record(f"15.form_{name}_r1", found, tolerance=0.1, metric=f"{what}: R@1")
            measured(f"form_{name}", what, size, lambda run=run: run(images[:1], ids[:1]),
                     lambda run=run: run(images[:16], ids[:16]), calls)  # fmt: skip
    values = [p.numpy().tobytes() for p in both["sparse"].parameters()]
    packed = len(zlib.compress(b"".join(values), 9)) / 1e6
    results.record("15.form_sparse_packed", packed, tolerance=0.05, unit="MB",
                   metric="small towers, sparse: packed by zlib")  # fmt: skip


# --- under load --------------------------------------------------------------------------------


def under_load(seconds: float = 60, before: float = 15) -> None:
    """64 clients of the captioner, more than may wait, with batches and without."""
    messages = caption_messages()
    for name, size in (("batched", 16), ("alone", 1)):
        arguments = ("--functions", "caption", "--max-queue", "32", "--max-batch", str(size))
        with running_service(*arguments) as (process, port):
            memory = psutil.Process(process.pid).memory_info

            def ask(clients, length, pause=None, port=port):
                return asyncio.run(
                    load(port, messages, clients=clients, seconds=length, pause=pause)
                )

            # What it can do: as many clients as may wait, so that nobody is refused. Before the
            # load and after it, because the machine is not always as quick.
            ask(16, before / 3)
            capacities, start = [ask(32, before)], memory().rss
            done = ask(64, seconds)  # who is refused waits for the second that it is told
            grown = memory().rss - start
            hasty = ask(64, before, pause=0.05)
            capacities.append(ask(32, before))
        assert {status for one in capacities for status in one.statuses} == {200}
        capacity = statistics.mean(one.rate for one in capacities)
        asked, p50, p99 = sum(done.statuses.values()), 0.5, 0.99
        errors = sum(
            count
            for one in (done, hasty)
            for status, count in one.statuses.items()
            if status not in (200, 429)
        )
        for key, value, unit, metric, tolerance in (
            ("capacity", capacity, "", "answers a second, 32 clients", 5000.0),
            ("rate", done.rate, "", "answers a second, 64 clients", 5000.0),
            ("share", done.rate / capacity, "", "rate under load, of the capacity", 0.3),
            ("p50", 1000 * percentile(done.latencies, p50), "ms", "median latency", 10_000.0),
            ("p99", 1000 * percentile(done.latencies, p99), "ms", "99th percentile", 10_000.0),
            ("refused", done.statuses[429] / asked, "", "share answered 429", 1.0),
            ("errors", errors, "", "answers but 200 and 429", 0),
            ("grown", grown / 1e6, "MB", "memory after, less memory before", 50.0),
            ("hasty", hasty.rate / capacity, "", "rate under clients that do not wait", 1.0),
        ):
            results.record(
                f"15.load_{name}_{key}", value, tolerance=tolerance, unit=unit,
                metric=f"service, batches of at most {size}: {metric}",
            )  # fmt: skip


def main() -> None:
    """Every part."""
    text_tower()
    small = pruned(STEPS) | {"student": distilled(2 * STEPS)}
    all_forms(small)
    under_load()


if __name__ == "__main__":
    main()
