"""Train the full system of profile ``cpu``, what it is compared with, and on a GPU ``h100``.

Every system is trained by :func:`mmlib.system.stages.train_system`, as the command does it, and
marked on combinations of colour and shape that no training scene has, in wordings that it never
heard. ``PARTS`` names what is done, by default everything that the machine is for:

- ``cpu``: profile ``cpu``, whose language model is shipped. Stages 1 and 2 are the shipped weights
  of chapters 10 and 09, stage 3 begins with chapter 11's painter.
- ``quarter``: the same at a quarter of the steps, whole and with one thing taken away each.
- ``smoke``: profile ``smoke``, likewise, with three seeds.
- ``scaling``: stage 3 alone, in several sizes and lengths.
- ``divided``: what each of two processes holds, with the model whole and divided (FSDP).
- ``h100``: on a GPU, its speed and memory beside what was worked out, and profile ``h100`` whole.

Every part goes on where it was stopped. ``JOBS`` systems are trained at a time, one thread each.
"""

import dataclasses
import os
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor, nn

from mmlib import results
from mmlib.painters import tokenizer
from mmlib.small_clips import scene_clip
from mmlib.system import faster
from mmlib.system.faster import Ahead, compiled, recomputed, workers
from mmlib.system.lessons import Lessons
from mmlib.system.marking import marks_of
from mmlib.system.material import Material
from mmlib.system.profiles import PROFILES, SystemConfig, cost
from mmlib.system.samples import write_samples
from mmlib.system.sequence import Rows
from mmlib.system.stages import CHECKPOINT, System, new_system, placed, train_system
from mmlib.training import save_weights
from mmlib.training.distributed import spawn
from mmlib.training.optimizer import adamw
from mmlib.training.run_folder import RunFolder

MINUTES = 55
RUNS = Path(os.environ.get("RUNS", "runs"))
GPU = torch.cuda.is_available()
PARTS = os.environ.get("PARTS", "h100" if GPU else "smoke quarter scaling divided cpu").split()
JOBS = int(os.environ.get("JOBS", "2"))
COUNT, SEED = 200, 16_001  # scenes to be marked on
#: What is taken away.
WITHOUT = {
    "whole": {},
    "question_only": {"blind": True},
    "picture_only": {"mute": True},
    "no_stage_1": {"untrained_clip": True},
    "no_stage_4": {"instruction_steps": 0},
}
WIDTHS, LENGTHS = (32, 64, 128, 256), (125, 250, 500)
#: A language model as large as one H100 is for, to measure speed and memory.
LARGE = {"dim": 1024, "heads": 16, "layers": 16, "documents": 512}
#: A middling one, to be divided among processes.
DIVIDED = {"dim": 256, "heads": 8, "layers": 6}


def note(name: str, value: float, metric: str, tolerance: float = 0.06, **options) -> None:
    """Record a number of chapter 16."""
    options = {"tolerance": tolerance, "seed": 0} | options
    results.record(f"16.{name}", value, metric=metric, **options)


def trained(name: str, config: SystemConfig, **options) -> System:
    """A system in the folder of this name, trained or trained on."""
    began = time.time()
    system = train_system(config, RUNS / f"16_{name}", progress=False, **options)
    print(f"{name}: {(time.time() - began) / 60:.1f} minutes", flush=True)
    return system


# --- profile cpu -------------------------------------------------------------------------------


def on_two_cores() -> None:
    """Train profile ``cpu``, mark and ship it."""
    config = PROFILES["cpu"]
    system = trained("cpu", config, sample=write_samples)
    card = {
        "what": "the language model of the full system, profile cpu",
        "command": "make train CHAPTER=16",
        "seed": config.seed,
        "data": "scenes of one or two objects, split train, and training emoji",
        "steps": config.pretraining_steps + config.instruction_steps,
        "stages_1_and_2": "10_scenes and 09_dvae; stage 3 begins with 11_scenes of version 0.7",
    }
    save_weights(system.language, CHECKPOINT, card, dtype=torch.bfloat16)
    for stage in ("3_pretraining", "4_instructions"):
        history = RunFolder(RUNS / "16_cpu" / stage, 1).newest()["history"]
        note(f"minutes_{stage[0]}", history["seconds"] / 60, f"stage {stage[0]}", 60, unit="min")
    for name, value in marks_of(system, COUNT, SEED).items():
        note(name, value, f"profile cpu: {name.replace('_', ' ')}")
    found = cost(config, system.known.size)
    note("parameters", found.parameters, "numbers of the language model", 0)


# --- what it is compared with ------------------------------------------------------------------


def one_thread() -> None:
    """What each of several training processes begins with."""
    torch.set_num_threads(1)


def in_turns(job, given: Iterable[tuple]) -> list:
    """Results of a function in processes of their own, :data:`JOBS` at a time."""
    sys.path.append(str(Path(__file__).parent))  # where they find this file
    with ProcessPoolExecutor(JOBS, get_context("spawn"), one_thread) as pool:
        return list(pool.map(job, *zip(*given, strict=True)))


def compared(name: str, config: SystemConfig, count: int) -> dict[str, float]:
    """The marks of a system that is trained for a comparison."""
    if GPU:  # so many at a time that each has one other process for its batches
        faster.MOST_WORKERS = 1
    return marks_of(trained(name, config), count, SEED)


def without_each(kind: str, config: SystemConfig, seeds: int, count: int) -> None:
    """Train a system whole and with one thing taken away each, and record their marks."""
    jobs = [
        (f"{kind}_{name}_{seed}", dataclasses.replace(config, seed=seed, **change), count)
        for name, change in WITHOUT.items()
        for seed in range(seeds)
    ]
    found = iter(in_turns(compared, jobs))
    for name in WITHOUT:
        runs = [next(found) for _ in range(seeds)]
        for mark in ("ask_all", "caption_en_attributes", "draw_en_attributes", "draw_en_right"):
            values = torch.tensor([run[mark] for run in runs], dtype=torch.float64)
            label = f"{kind}, {name.replace('_', ' ')}: {mark.replace('_', ' ')}"
            note(f"{kind}_{name}_{mark}", values.mean().item(), f"{label}, seeds: {seeds}", 0.1)
            if seeds > 1:
                spread = values.std().item()
                note(f"{kind}_{name}_{mark}_spread", spread, f"{label}, between seeds", 0.1)
    label = f"{kind}: the commonest answer of each kind"
    note(f"{kind}_commonest", runs[0]["ask_commonest"], label, 0.05)


def quarter() -> None:
    """A quarter of profile ``cpu``."""
    cpu = PROFILES["cpu"]
    config = dataclasses.replace(
        cpu,
        pretraining_steps=cpu.pretraining_steps // 4,
        instruction_steps=cpu.instruction_steps // 4,
        pool=cpu.pool // 3,
        candidates=1,
        precision="fp32" if GPU else "auto",
    )
    without_each("quarter", config, 1, 100)


def smoke() -> None:
    """Profile ``smoke``."""
    without_each("smoke", PROFILES["smoke"], 3, 60)


def told(name: str, config: SystemConfig) -> tuple[float, float]:
    """Nats a word of captions of new scenes after stage 3, and the model's parameters."""
    system = trained(name, config)
    material = Material(system.pictures, 400, (1, 2), 99)
    lessons = Lessons(material, system.writer, config.menu(3), 99)
    device = system.language.word_head.weight.device
    with torch.no_grad():
        parts = [system.language.losses(lessons(n).to(device))[0] for n in range(20)]
    count = sum(p.numel() for p in system.language.parameters())
    return torch.cat(parts).mean().item(), count


def scaling() -> None:
    """Stage 3 from nothing, in several widths and lengths."""
    base = dataclasses.replace(
        PROFILES["smoke"],
        from_painter=False,
        instruction_steps=0,
        pool=4000,
        learning_rate=1e-3,
        pretraining_chinese=0.5,
        chinese=0.15,
    )
    cases = [(width, steps) for steps in sorted(LENGTHS, reverse=True) for width in WIDTHS[::-1]]
    jobs = []
    for width, steps in cases:
        sizes = {"dim": width, "heads": max(1, width // 32), "pretraining_steps": steps}
        jobs.append((f"scale_{width}_{steps}", dataclasses.replace(base, **sizes)))
    for (width, steps), (nats, count) in zip(cases, in_turns(told, jobs), strict=True):
        note(f"scale_{width}_{steps}", nats, f"nats a word, width {width}, steps: {steps}", 0.1)
        note(f"scale_{width}_parameters", count, f"parameters of width {width}", 0)


# --- divided among processes --------------------------------------------------------------------


def held(divide: bool) -> int:
    """Bytes of weights, gradients and running means in this process after a step."""
    from mmlib.training.sharded import ShardedModel, held_bytes

    config = dataclasses.replace(PROFILES["smoke"], from_painter=False, **DIVIDED)
    system = new_system(config, scene_clip(trained=True), tokenizer())
    material = Material(system.pictures, 20, (1, 2), 1)
    rows = Lessons(material, system.writer, config.menu(4), 1)(0)
    model = objective = Loss(system.language)
    if divide:
        shards = ShardedModel(model, torch.device("cpu"))
        model = objective = shards.root(shards.copy)
    optimizer = adamw(model, 1e-4, 0.0)
    objective(rows).backward()
    optimizer.step()
    parameters = list(model.parameters())
    state = optimizer.state_dict()["state"]
    return held_bytes([parameters, [p.grad for p in parameters], state])


class Loss(nn.Module):
    """A language model that gives the mean of its loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, rows: Rows) -> Tensor:
        """The mean over everything that is wanted."""
        total, count = self.model.loss(rows)
        return total / count


def divided() -> None:
    """Measure it in two processes."""
    sys.path.append(str(Path(__file__).parent))  # where they find this file
    for name, divide in (("whole", False), ("parts", True)):
        found = spawn(held, 2, divide)
        label = f"each of two processes holds at most, {name}: weights, gradients, running means"
        note(f"divided_{name}", max(found) / 2**20, label, 0.5, unit="MiB")


# --- on a GPU ----------------------------------------------------------------------------------


def matrix_peak(size: int = 8192, times: int = 20) -> float:
    """Operations a second of a large product in bf16."""
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 * times / seconds(lambda: [a @ b for _ in range(times)])


def seconds(work) -> float:
    """How long the GPU works, after a call that does not count."""
    work()
    torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def speed(name: str, config: SystemConfig, peak: float) -> None:
    """Tokens a second and memory of steps on one batch, beside what was worked out."""
    system = placed(new_system(config, scene_clip(trained=True), tokenizer()))
    material = Material(system.pictures, 600, (1, config.most_objects), 1)
    rows = Lessons(material, system.writer, config.menu(4), 1)(0).to("cuda")
    model = system.language.train()
    optimizer = adamw(model, 1e-4, 0.0)

    def steps(count: int = 10) -> None:
        for _ in range(count):
            with torch.autocast("cuda", torch.bfloat16):
                total, told = model.loss(rows)
            (total / told).backward()
            optimizer.step()
            optimizer.zero_grad()

    blocks = model.decoder.blocks
    with recomputed(blocks, config.recompute), compiled(model, config.compile):
        steps(2)
        torch.cuda.reset_peak_memory_stats()
        taken = seconds(steps) / 10
    measured, worked_out = torch.cuda.max_memory_allocated(), cost(config, system.known.size)
    tokens = int((rows.document >= 0).sum())
    # A second forward pass is work, but not useful work: the share is of a plain step's operations.
    useful = cost(dataclasses.replace(config, recompute=False), system.known.size).flops
    note(f"gpu_{name}_parameters", worked_out.parameters, f"{name}: parameters", 0)
    note(f"gpu_{name}_tokens", tokens / taken, f"{name}: tokens a second", 1e6, unit="1/s")
    note(f"gpu_{name}_step", 1000 * taken, f"{name}: a step", 1e3, unit="ms")
    share = useful / taken / peak
    note(f"gpu_{name}_share", share, f"{name}: share of the matrix peak", 0.2)
    memory = measured / 2**20
    note(f"gpu_{name}_memory", memory, f"{name}: peak memory", 1e5, unit="MiB")
    expected = worked_out.peak / 2**20
    note(f"gpu_{name}_worked_out", expected, f"{name}: peak worked out", 1e5, unit="MiB")


def ahead(config: SystemConfig) -> None:
    """Batches a second with and without other processes that work them out."""
    system = placed(new_system(config, scene_clip(trained=True), tokenizer()))
    material = Material(system.pictures, 600, (1, config.most_objects), 1)
    lessons = Lessons(material, system.writer, config.menu(4), 1)
    for name, batches, count in (("alone", lessons, 8), ("ahead", Ahead(lessons, workers()), 100)):
        batches(0)
        began = time.perf_counter()
        for number in range(1, 1 + count):
            batches(number)
        rate = count / (time.perf_counter() - began)
        note(f"gpu_batches_{name}", rate, f"batches a second, {name}", 1e3, unit="1/s")


def h100() -> None:
    """Speed, memory, and profile ``h100`` whole."""
    torch.set_float32_matmul_precision("high")
    peak = matrix_peak()
    note("gpu_peak", peak / 1e12, "a bf16 product of 8192 x 8192", 300, unit="TFLOP/s")
    profile = PROFILES["h100"]
    config = dataclasses.replace(profile, emoji=0.0)  # scenes alone, to be there sooner
    large = dataclasses.replace(config, **LARGE)
    replace = dataclasses.replace
    for name, case in {
        "h100_plain": replace(config, compile=False),
        "h100": config,
        "large": large,
        "large_recomputed": replace(large, recompute=True),
    }.items():
        speed(name, case, peak)
        torch.cuda.empty_cache()
    ahead(config)
    began = time.time()
    system = trained("h100", profile, sample=write_samples)
    minutes = (time.time() - began) / 60
    note("gpu_minutes", minutes, "profile h100, all stages", 30, unit="min")
    for name, value in marks_of(system, COUNT, SEED).items():
        note(f"h100_{name}", value, f"profile h100: {name.replace('_', ' ')}", 0.1)


def main() -> None:
    """Do the parts."""
    parts = {
        "cpu": on_two_cores,
        "smoke": smoke,
        "quarter": quarter,
        "scaling": scaling,
        "divided": divided,
        "h100": h100,
    }
    unknown = set(PARTS) - set(parts)
    if unknown:
        raise SystemExit(f"PARTS must be of {', '.join(parts)}: got {', '.join(sorted(unknown))}")
    for name in PARTS:
        parts[name]()


if __name__ == "__main__":
    main()
