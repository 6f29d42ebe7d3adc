"""Runs of the full system that are killed, and runs in two processes.

- Killed with SIGKILL at random moments of either stage and started again, a run ends with the
  weights, bit for bit, of one that nothing stopped.
- In stages 3 and 4 two processes have, step by step, the loss and the gradients of one that takes
  the same documents. Killed, they may be followed by one, which agrees to rounding.
"""

import json
import multiprocessing
import os
import random
import signal
import time
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from mmlib.system.profiles import SystemConfig
from mmlib.system.stages import train_system

CONFIG = SystemConfig(
    pretraining_steps=8, instruction_steps=20, dim=16, heads=2, layers=1, documents=3,
    checkpoint_every=2, dropout=0.1, pool=20,
)  # fmt: skip
STAGES = ("3_pretraining", "4_instructions")


def train(folder):
    torch.set_num_threads(1)
    train_system(CONFIG, folder, progress=False)


def start(target, *given):
    # Forked from a process that has loaded everything and never learned: a process that has
    # learned cannot be forked into one that does (autograd's threads).
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mmlib.system.stages"])
    child = context.Process(target=target, args=given)
    child.start()
    return child


def ended(child, number=None):
    if number is not None and child.is_alive():
        os.kill(child.pid, number)
    child.join(300)
    assert not child.is_alive()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    child = start(train, folder)
    ended(child)
    assert child.exitcode == 0
    return folder


@pytest.mark.parametrize("stage", [0, 1])
def test_killed_in_either_stage_it_ends_with_the_same_weights(stage, whole, tmp_path):
    dice, folder = random.Random(stage), tmp_path / "run"
    child = start(train, folder)
    deadline = time.time() + 300
    while time.time() < deadline:
        if list((folder / STAGES[stage] / "checkpoints").glob("*.json")):
            break
        time.sleep(0.002)
    time.sleep(dice.uniform(0, 0.03))
    ended(child, signal.SIGKILL)
    assert child.exitcode == -signal.SIGKILL
    assert not (folder / "language.safetensors").exists()  # it was on its way
    child = start(train, folder)
    ended(child)
    assert child.exitcode == 0
    name = "language.safetensors"
    assert (folder / name).read_bytes() == (whole / name).read_bytes()
    for stage in STAGES:  # each step once, none twice
        lines = [(f / stage / "metrics.jsonl").read_text().splitlines() for f in (folder, whole)]
        assert len(lines[0]) == len(lines[1])


def one_of_two(rank, store, folder):
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "ACCELERATE_USE_CPU": "true",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    torch.set_num_threads(1)
    store = dist.FileStore(str(store), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    train_system(replace(CONFIG, dropout=0.0), folder, progress=False)
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_have_the_losses_and_gradients_of_one(tmp_path):
    """Batches are numbered over all processes: one that accumulates two has the same documents."""
    children = [start(one_of_two, rank, tmp_path / "store", tmp_path / "two") for rank in (0, 1)]
    for child in children:
        ended(child)
        assert child.exitcode == 0
    train_system(replace(CONFIG, dropout=0.0, accumulate=2), tmp_path / "one", progress=False)
    train_system(replace(CONFIG, dropout=0.0), tmp_path / "half", progress=False)
    # Two are killed in the middle of stage 4, and one goes on alone.
    folder = tmp_path / "fewer"
    children = [start(one_of_two, rank, tmp_path / "other", folder) for rank in (0, 1)]
    deadline = time.time() + 300
    while time.time() < deadline and len(list(folder.glob("4*/checkpoints/*.json"))) < 2:
        time.sleep(0.002)
    for child in children:
        ended(child, signal.SIGKILL)
    assert not (folder / "language.safetensors").exists()
    train_system(replace(CONFIG, dropout=0.0, accumulate=2), folder, progress=False)
    for stage in STAGES:
        fewer, one = (steps_of(tmp_path / name / stage) for name in ("fewer", "one"))
        torch.testing.assert_close(fewer, one, rtol=1e-3, atol=1e-4)
    for stage in STAGES:
        two, one, half = (steps_of(tmp_path / name / stage) for name in ("two", "one", "half"))
        assert len(two) in (8, 20)
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(two, half, rtol=1e-2)  # the test can fail


def steps_of(folder):
    """Loss and norm of the gradients, step by step."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    rows = [[line["loss"], line["gradient_norm"]] for line in lines if "gradient_norm" in line]
    return torch.tensor(rows)
