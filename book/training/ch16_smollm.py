"""Train the system with SmolLM2 as its language model, and beside it the own one from nothing.

Both are given the same documents, English alone, as many as one CPU core takes through the
pretrained model in some twenty minutes: captions and drawings with frozen blocks (stage 3), then
questions, requests and dialogues with LoRA (stage 4). Both are marked on combinations of colour and
shape that no training scene has, in wordings that they never heard.
``make train CHAPTER=16_smollm``.
"""

import dataclasses
import os
import time
from pathlib import Path

import torch

from mmlib import results
from mmlib.data import scenes
from mmlib.painters import grid_scenes
from mmlib.system import smollm
from mmlib.system.marking import (
    ask,
    commonest,
    describe,
    draw,
    mark_answers,
    mark_captions,
    mark_pictures,
    questions_about,
)
from mmlib.system.profiles import SystemConfig, cost
from mmlib.system.stages import System, train_system
from mmlib.system.words import words
from mmlib.training.run_folder import RunFolder

MINUTES = 25
RUNS = Path(os.environ.get("RUNS", "runs"))
COUNT, SEED = 60, 16_001  # scenes to be marked on
CONFIG = SystemConfig(
    backbone="smollm2-135m",
    pretraining_steps=160,
    instruction_steps=380,
    lora_rank=8,
    documents=16,
    learning_rate=2e-3,
    instruction_rate=1e-3,
    code_weight=0.1,
    pool=4000,
    looks=0.05,
    chinese=0.0,
    pretraining_chinese=0.0,
    precision="auto",
    checkpoint_every=80,
)
#: The own model from nothing, at the rate of profile ``smoke``.
OWN = dataclasses.replace(CONFIG, backbone="own", lora_rank=0, instruction_rate=2e-3)


def note(name: str, value: float, metric: str, tolerance: float = 0.1, **options) -> None:
    """Record a number of chapter 16."""
    results.record(
        f"16.smollm_{name}", value, metric=metric, tolerance=tolerance, seed=0, **options
    )


def marks(system: System) -> dict[str, float]:
    """What :func:`mmlib.system.marking.marks_of` marks in English, and nothing in Chinese."""
    items = scenes.sample(COUNT, SEED, split="test", objects=(1, system.config.most_objects))
    said = describe(system, scenes.render(items, 32))
    found = {f"caption_{name}": value for name, value in mark_captions(said, items).items()}
    pairs = questions_about(items, SEED, system.config.kinds)
    asked = [question for _, question in pairs]
    pictures = scenes.render([items[number] for number, _ in pairs], 32)
    for name, shown in (("ask", pictures), ("ask_blind", None)):
        answered = mark_answers(ask(system, asked, shown), asked)
        found |= {f"{name}_{kind}": value for kind, value in answered.items()}
    found["ask_commonest"] = commonest(asked)
    wanted = grid_scenes(COUNT, SEED + 1, "test")
    painted = draw(system, [scenes.caption(scene) for scene in wanted], "en")
    return found | {f"draw_{k}": value for k, value in mark_pictures(painted, wanted).items()}


def train_and_mark(name: str, config: SystemConfig, start: str = "") -> System:
    """Train a system, and record how long it took and its marks."""
    folder, began = RUNS / f"16_{name}", time.time()
    system = train_system(config, folder, progress=False)
    print(f"{name}: trained in {(time.time() - began) / 60:.1f} minutes", flush=True)
    for stage in ("3_pretraining", "4_instructions"):
        history = RunFolder(folder / stage, 1).newest()["history"]
        label = f"{name}: minutes of stage {stage[0]} on one core"
        note(f"{start}minutes_{stage[0]}", history["seconds"] / 60, label, 60, unit="min")
    found = marks(system)
    for mark, value in found.items():
        baseline = found["ask_commonest"] if mark == "ask_all" else None
        note(start + mark, value, f"{name}: {mark.replace('_', ' ')}", baseline=baseline)
    count = sum(parameter.numel() for parameter in system.language.parameters())
    note(f"{start}parameters", count, f"{name}: numbers of the language model", 0)
    print(f"{name}: {(time.time() - began) / 60:.1f} minutes", flush=True)
    return system


def main() -> None:
    """Train both."""
    torch.set_num_threads(1)
    model = train_and_mark("smollm", CONFIG).language
    every, own = cost(CONFIG), cost(OWN)
    new = sum(p.numel() for name, p in model.named_parameters() if model.is_new(name))
    added = every.parameters - cost(dataclasses.replace(CONFIG, lora_rank=0)).parameters
    note("new", new, "numbers that learn in stage 3", 0)
    note("learned", new + added, "numbers that learn in stage 4", 0)
    note("work", every.flops / own.flops, "operations of a step, times the own model's", 50)
    drawn = scenes.sample(200, SEED, split="train", objects=(1, 2))
    for language in ("en", "zh"):
        texts = [scenes.caption(scene, language) for scene in drawn]
        for whose, known in (("", smollm.smollm_words()), ("own_", words())):
            pieces = sum(len(known.encode(text)) for text in texts) / len(texts)
            label = f"pieces of a caption, {language}, {'own words' if whose else 'SmolLM2'}"
            note(f"{whose}pieces_{language}", pieces, label, 0.5)
    train_and_mark("smollm_own", OWN, "own_")


if __name__ == "__main__":
    main()
