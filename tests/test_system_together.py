"""Two processes have the gradients of one that takes the same global batch, in every stage.

Compared is the gradient of every parameter, of each step, as the optimiser gets it, beside the loss
and the norm before clipping:

- stages 1 and 2: two halves of a batch and the whole batch, with batch norm, revived codes and the
  variance of errors over both; without one of these the gradients differ;
- stages 3 and 4: a batch each, and two batches in one process; with `shard` likewise, and with
  LoRA.

The autoencoder of stage 2 takes the nearest codes, so that there is no Gumbel noise to be agreed
upon; what is drawn, the vectors to which codes are moved, the main process draws for all.
"""

import json
import multiprocessing
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import nn

from mmlib.clip import CLIP
from mmlib.system import stages, together
from mmlib.system.profiles import SystemConfig
from mmlib.training import durable
from mmlib.training.run_folder import RunFolder

CONFIG = SystemConfig(
    pretraining_steps=4, instruction_steps=4, dim=16, heads=2,
    layers=2, documents=3, checkpoint_every=2, pool=20,
)  # fmt: skip
HALVES = {"1_clip": stages._clip, "2_autoencoder": stages._autoencoder}
LEARNED = ("3_pretraining", "4_instructions")


@pytest.fixture(autouse=True, scope="module")
def _put_back():
    step = durable._SkipsNonFinite.step
    yield
    durable._SkipsNonFinite.step = step


def recorded():
    """A list that each step's gradients are added to."""
    steps, step = [], original_step

    def record(self):
        grads = [p.grad.detach() for p in self._parameters]
        whole = [g.full_tensor() if hasattr(g, "full_tensor") else g for g in grads]
        steps.append([gradient.clone() for gradient in whole])
        step(self)

    durable._SkipsNonFinite.step = record
    return steps


original_step = durable._SkipsNonFinite.step


def one_stage(name, folder, count=3):
    """Some steps of stage 1 or 2; its gradients, and the model's state."""
    steps, render = recorded(), stages.scenes.render

    def double(*given):
        torch.set_default_dtype(torch.float32)
        pictures = render(*given)
        torch.set_default_dtype(torch.float64)
        return pictures.double()

    # In fp64 rounding is far below whatever else may differ.
    torch.set_default_dtype(torch.float64)
    stages.scenes.render = double
    try:
        config = replace(CONFIG, clip_steps=count, autoencoder_steps=count)
        model = HALVES[name](config, folder, False)
    finally:
        torch.set_default_dtype(torch.float32)
        stages.scenes.render = render
    assert not any("forward" in vars(module) for module in model.modules())
    return steps, {k: v.clone() for k, v in model.state_dict().items()}


def both_stages(config, folder):
    """Stages 3 and 4; their gradients, and the model's weights."""
    steps = recorded()
    system = stages.train_system(config, folder, progress=False)
    return steps, {k: v.clone() for k, v in system.language.state_dict().items()}


def without(what):
    """Leave out something that makes two processes one."""
    if what == "gather":
        loss = CLIP.loss
        CLIP.loss = lambda self, *batch, gather: loss(self, *batch)
    elif what == "norms":
        together._normalised = lambda norm, x: type(norm).forward(norm, x)
    elif what == "codes":
        together._revive = together.DiscreteVAE._revive
    elif what == "variance":
        together.dist = type("Alone", (), {"all_reduce": lambda t: t.mul_(2), "broadcast": Same})


def Same(tensor, source):
    dist.broadcast(tensor, source)


def one_of_two(rank, store, result, what, function, given):
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
    without(what)
    torch.save(function(*given), f"{result}.{rank}")
    dist.barrier()
    dist.destroy_process_group()


def in_two(function, *given, folder, what=None):
    """What a function returns in two processes; the same in both."""
    folder.mkdir(exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mmlib.system.stages", "mmlib.training.sharded"])
    paths = folder / "store", folder / "result"
    children = [
        context.Process(target=one_of_two, args=(rank, *paths, what, function, given))
        for rank in (0, 1)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(300)
        assert child.exitcode == 0
    first, second = (torch.load(folder / f"result.{rank}") for rank in (0, 1))
    if what is None:
        torch.testing.assert_close(first, second, rtol=0, atol=0)
    return first


def furthest(ours, theirs):
    """The largest difference in a step's gradients, as a share of the largest of each tensor."""
    assert len(ours) == len(theirs) > 0
    return max(
        ((a - b).abs().max() / b.abs().max().clamp(min=1e-3)).item()
        for a, b in zip(ours, theirs, strict=True)
    )


def steps_of(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    rows = [[line["loss"], line["gradient_norm"]] for line in lines if "gradient_norm" in line]
    return torch.tensor(rows)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Stages 1 and 2 in one process."""
    place = tmp_path_factory.mktemp("whole")
    return {name: (place / name, *one_stage(name, place / name)) for name in HALVES}


@pytest.mark.parametrize("name", HALVES)
def test_halves_of_a_batch_have_the_gradients_of_the_whole(name, whole, tmp_path):
    folder, one, state = whole[name]
    two, learned = in_two(one_stage, name, tmp_path / name, folder=tmp_path / "of")
    assert len(two) == len(one) == 3
    assert furthest(two[0], one[0]) < 1e-8
    torch.testing.assert_close(steps_of(tmp_path / name), steps_of(folder), rtol=1e-3, atol=1e-4)
    # Running means and, in stage 2, which codes are used are the whole batch's.
    for key, value in state.items():
        if "running" in key or "usage" in key:
            torch.testing.assert_close(learned[key], value, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    "name, what",
    [
        ("1_clip", "gather"),
        ("1_clip", "norms"),
        ("2_autoencoder", "norms"),
        ("2_autoencoder", "variance"),
        ("2_autoencoder", "codes"),
    ],
)
def test_without_one_of_these_the_gradients_differ(name, what, whole, tmp_path):
    two, _ = in_two(one_stage, name, tmp_path / name, 1, folder=tmp_path / "of", what=what)
    assert furthest(two[0], whole[name][1][0]) > 1e-3


@pytest.mark.parametrize(
    "changes",
    [{}, {"shard": True}, {"shard": True, "recompute": True}, {"shard": True, "lora_rank": 2}],
    ids=lambda changes: "-".join(changes) or "plain",
)
def test_a_batch_each_has_the_gradients_of_two_batches(changes, tmp_path):
    config = replace(CONFIG, **changes)
    two, learned = in_two(both_stages, config, tmp_path / "two", folder=tmp_path / "of")
    plain = replace(config, shard=False, recompute=False, accumulate=2)
    one, alone = both_stages(plain, tmp_path / "one")
    half, _ = both_stages(replace(plain, accumulate=1), tmp_path / "half")
    assert len(two) == len(one) == 8
    for ours, theirs, other in zip(two, one, half, strict=True):
        assert furthest(ours, theirs) < 2e-3
        assert furthest(other, theirs) > 2e-2  # the test can fail
    for stage in LEARNED:
        found, wanted = steps_of(tmp_path / "two" / stage), steps_of(tmp_path / "one" / stage)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert all(type(value) is torch.Tensor for value in learned.values())
    torch.testing.assert_close(learned, alone, rtol=1e-2, atol=1e-2)  # rounded to bf16


def test_a_batch_that_cannot_be_divided_is_refused(monkeypatch):
    monkeypatch.setattr(together, "world_size", lambda: 3)
    with pytest.raises(ValueError, match="must divide a batch of 64: got 3"):
        together.own_part(list(range(64)))


def test_in_one_process_nothing_is_changed():
    model = nn.Sequential(nn.BatchNorm1d(2))
    with together.together(model):
        assert "forward" not in vars(model[0])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there may be one GPU for two")
def test_torchrun_starts_processes_that_know_of_each_other(tmp_path):
    """accelerate takes them for one, each, on a machine without a GPU if it is not told."""
    left_out = ("ACCELERATE_USE_CPU", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    environment = {key: value for key, value in os.environ.items() if key not in left_out}
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("-m", "mmlib.system", "train", "--out", str(tmp_path), "--no-from-painter", "--shard"),
        *("--dim", "16", "--heads", "2", "--layers", "1", "--documents", "3", "--pool", "20"),
        *("--pretraining-steps", "3", "--instruction-steps", "0"),
    ]
    subprocess.run(command, env=environment, check=True, timeout=300, capture_output=True)
    assert len(RunFolder(tmp_path / "3_pretraining").newest()["rng"]) == 2
    assert [row.shape for row in steps_of(tmp_path / "3_pretraining")] == [(2,)] * 3
    assert (tmp_path / "language.safetensors").exists()
