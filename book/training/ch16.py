"""Train the full system of profile ``cpu``, and one that never sees a picture.

The system is trained by :func:`mmlib.system.stages.train_system`, as the command does it: stages 1
and 2 are the shipped weights of chapters 10 and 09, stage 3 begins with chapter 11's painter. Its
language model is shipped. It is marked on combinations of colour and shape that no training scene
has, in wordings that it never heard. The same training at a quarter of the steps, with zeros for
every picture that is looked at, says what the questions alone tell.

Every part goes on where it was stopped.
"""

import dataclasses
import time
from pathlib import Path

import torch

from mmlib import results
from mmlib.data import scenes
from mmlib.system.commands import write_samples
from mmlib.system.marking import ask, mark_answers, marks_of, questions_about
from mmlib.system.profiles import PROFILES, SystemConfig, cost
from mmlib.system.stages import CHECKPOINT, System, train_system
from mmlib.training import save_weights

MINUTES = 55
RUNS = Path("runs")
COUNT, SEED = 200, 16_001  # scenes to be marked on


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


def quarter(config: SystemConfig, **changes) -> SystemConfig:
    """The same with a quarter of the steps."""
    return dataclasses.replace(
        config,
        pretraining_steps=config.pretraining_steps // 4,
        instruction_steps=config.instruction_steps // 4,
        **changes,
    )


def mark_questions(name: str, system: System) -> None:
    """Record how a baseline answers the questions that the system is asked."""
    items = scenes.sample(COUNT, SEED, split="test", objects=(1, system.config.most_objects))
    pairs = questions_about(items, SEED, system.config.kinds)
    pictures = None if system.config.blind else scenes.render([items[i] for i, _ in pairs], 32)
    asked = [question for _, question in pairs]
    for kind, share in mark_answers(ask(system, asked, pictures), asked).items():
        note(f"{name}_{kind}", share, f"{name}, questions right: {kind}", 0.1)


def main() -> None:
    """Train, mark, and ship."""
    config = PROFILES["cpu"]
    began = time.time()
    system = trained("cpu", config, sample=write_samples)
    note("train_minutes", (time.time() - began) / 60, "stages 3 and 4, this part", 60, unit="min")
    card = {
        "what": "the language model of the full system, profile cpu",
        "command": "make train CHAPTER=16",
        "seed": config.seed,
        "data": "scenes of one or two objects, split train, and training emoji",
        "steps": config.pretraining_steps + config.instruction_steps,
        "stages_1_and_2": "10_scenes and 09_dvae; stage 3 begins with 11_scenes",
    }
    save_weights(system.language, CHECKPOINT, card, dtype=torch.bfloat16)
    for name, value in marks_of(system, COUNT, SEED).items():
        note(name, value, f"profile cpu: {name.replace('_', ' ')}")
    found = cost(config, system.known.size)
    note("parameters", found.parameters, "numbers of the language model", 0)
    alone = trained("question_only", quarter(config, blind=True))
    mark_questions("question_only", alone)


if __name__ == "__main__":
    main()
