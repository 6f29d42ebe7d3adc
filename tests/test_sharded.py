"""A model divided among two processes learns what it learns whole.

- Losses, norms and weights are those of DistributedDataParallel, and of one process with as many
  batches; also with recomputed and with compiled blocks, frozen weights, and in bf16 nearly.
- Each process holds half the bytes, and the model none.
- Killed with SIGKILL it ends with the same weights, bit for bit; SIGTERM saves.
- What was begun divided goes on whole in one process, and the other way round.
- Evaluations, samples, the best weights, a batch that is no number, bad input.
"""

import functools
import multiprocessing
import os
import random
import signal
import time
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmlib.training import TrainConfig, durable
from mmlib.training.durable import fit_durably
from mmlib.training.run_folder import RunFolder

pytestmark = pytest.mark.filterwarnings("error:.*no whole checkpoint")

STEPS, PAUSE = 16, 0.02
CONFIG = TrainConfig(
    STEPS,
    learning_rate=0.02,
    warmup=3,
    evaluate_every=4,
    checkpoint_every=2,
    keep_best=True,
    progress=False,
    device="cpu",
)


class Model(nn.Module):
    """Blocks in a list, and layers before and after them; 3 and 1 rows do not divide by 2."""

    def __init__(self, dropout):
        super().__init__()
        self.first = nn.Linear(4, 16)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16), nn.Tanh(), nn.Dropout(dropout))
            for _ in range(3)
        )
        self.last = nn.Linear(16, 3)
        self.gain = nn.Parameter(torch.ones(1))
        self.register_buffer("shift", torch.full((3,), 0.1))

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.gain * self.last(x) + self.shift


def make_model(seed=0, dropout=0.2):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Model(dropout)


def batch(number, size=4):
    generator = torch.Generator().manual_seed(number)
    x = torch.randn(size + number % 2, 4, generator=generator)
    return x, (x[:, :3] > 0).float()


def loss_fn(model, given):
    x, target = given
    loss = nn.functional.binary_cross_entropy_with_logits(model(x), target, reduction="sum")
    return loss, target.numel()


def evaluate(model):
    assert sum(p.numel() for p in model.parameters()) == sum(
        p.numel() for p in make_model().parameters()
    )
    return -loss_fn(model, batch(10_000, 64))[0].item() + 40 * torch.rand(1).item()


def sample(model, path):
    assert not model.training
    (path / "out.txt").write_text(str(model(batch(5)[0]).sum().item()))


def run(folder, config=CONFIG, *, pause=0.0, source=batch, seed=0, dropout=0.2, what="", **options):
    def slow(number):
        time.sleep(pause)
        return source(number)

    model = make_model(seed, dropout)
    if what == "recomputed":
        for block in model.blocks:
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    if what == "compiled":
        for block in model.blocks:
            block.compile(dynamic=True)
    if what == "frozen":
        model.blocks[0].requires_grad_(False)
        model.first.bias.requires_grad_(False)
    history = fit_durably(
        model, loss_fn, slow, config, folder, evaluate=evaluate, sample=sample, **options
    )
    assert all(type(p) is nn.Parameter for p in model.parameters())
    return {k: v.clone() for k, v in model.state_dict().items()}, history.losses


def poisoned(number):
    x, target = batch(number)
    return (x * torch.nan if number == 7 else x), target


def bytes_held(folder, **options):
    """Bytes of weights, of running means and of the model itself, as a run goes."""
    from mmlib.training.sharded import held_bytes

    found, read = {}, durable._DurableRun.read

    def look(self):
        learner = self.shards.copy if hasattr(self, "shards") else self.model
        found["weights"] = held_bytes(list(learner.parameters()))
        found["optimizer"] = held_bytes(self.optimizer.state_dict()["state"])
        found["model"] = held_bytes(list(self.model.parameters()))
        read(self)

    durable._DurableRun.read = look
    run(folder, **options)
    return found


def one_of(rank, processes, store, result, function, given, options):
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "ACCELERATE_USE_CPU": "true",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    torch.set_num_threads(1)
    store = dist.FileStore(str(store), processes)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=processes)
    torch.save(function(*given, **options), f"{result}.{rank}")
    dist.barrier()
    dist.destroy_process_group()


def start(folder, function, *given, processes=2, **options):
    folder.mkdir(exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mmlib.system.stages", "mmlib.training.sharded"])
    store = folder / f"store-{random.getrandbits(60)}"
    children = []
    for rank in range(processes):
        args = rank, processes, store, folder / "result", function, given, options
        children.append(context.Process(target=one_of, args=args))
        children[-1].start()
    return children


def end(children, number=None):
    for child in children:
        if number is not None and child.is_alive():
            os.kill(child.pid, number)
    for child in children:
        child.join(240)
        assert not child.is_alive()


def in_two(folder, function, *given, processes=2, **options):
    """What a function returns in each process."""
    children = start(folder, function, *given, processes=processes, **options)
    end(children)
    assert [child.exitcode for child in children] == [0] * processes
    return [torch.load(folder / f"result.{rank}") for rank in range(processes)]


def wait_for_a_checkpoint(folder):
    deadline = time.time() + 120
    while not list((folder / "checkpoints").glob("*.json")) and time.time() < deadline:
        time.sleep(0.005)


def steps_of(folder):
    lines = [line for line in RunFolder(folder).metrics() if "gradient_norm" in line]
    return torch.tensor([[line["loss"], line["gradient_norm"]] for line in lines])


@pytest.fixture(scope="module")
def divided(tmp_path_factory):
    """A run that nothing stops, in two processes, with dropout."""
    place = tmp_path_factory.mktemp("divided")
    first, second = in_two(place / "of", run, place / "run", shard=True)
    torch.testing.assert_close(first, second, rtol=0, atol=0)  # the model is whole in both
    return place / "run", first[0]


def test_it_is_what_two_whole_ones_learn(divided, tmp_path):
    """With dropout: random numbers are those of DistributedDataParallel, too."""
    (weights, _), _ = in_two(tmp_path / "of", run, tmp_path / "run")
    assert len(steps_of(tmp_path / "run")) == STEPS
    torch.testing.assert_close(steps_of(divided[0]), steps_of(tmp_path / "run"))
    torch.testing.assert_close(divided[1], weights, rtol=1e-4, atol=1e-5)
    ours, theirs = (RunFolder(folder).metrics() for folder in (divided[0], tmp_path / "run"))
    assert [line.keys() for line in ours] == [line.keys() for line in theirs]
    samples = sorted((divided[0] / "samples").glob("*/out.txt"))
    assert [path.parent.name for path in samples] == [
        "00000004",
        "00000008",
        "00000012",
        "00000016",
    ]
    for path in samples:
        same = tmp_path / "run" / path.relative_to(divided[0])
        assert float(path.read_text()) == pytest.approx(float(same.read_text()), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("what", ["", "recomputed", "frozen"])
def test_it_is_what_one_learns_with_as_many_batches(what, tmp_path):
    given = {"dropout": 0.0, "what": what}
    config = replace(CONFIG, accumulate=2)
    (weights, _), _ = in_two(tmp_path / "of", run, tmp_path / "two", config, shard=True, **given)
    alone, _ = run(tmp_path / "one", replace(CONFIG, accumulate=4), **given)
    torch.testing.assert_close(steps_of(tmp_path / "two"), steps_of(tmp_path / "one"))
    torch.testing.assert_close(weights, alone, rtol=1e-4, atol=1e-5)
    half, _ = run(tmp_path / "half", config, **given)
    assert not torch.allclose(half["last.weight"], alone["last.weight"], rtol=1e-2)
    if what == "frozen":
        assert torch.equal(weights["blocks.0.1.weight"], make_model().blocks[0][1].weight)


@pytest.mark.slow
def test_blocks_may_be_compiled(tmp_path):
    given = {"dropout": 0.0, "shard": True}
    (plain, _), _ = in_two(tmp_path / "of", run, tmp_path / "plain", **given)
    (found, _), _ = in_two(tmp_path / "of", run, tmp_path / "compiled", what="compiled", **given)
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)


def test_bf16_is_near(tmp_path):
    config = replace(CONFIG, precision="bf16")
    (weights, losses), _ = in_two(
        tmp_path / "of", run, tmp_path / "two", config, shard=True, dropout=0.0
    )
    _, alone = run(tmp_path / "one", replace(CONFIG, accumulate=2), dropout=0.0)
    assert weights["last.weight"].dtype == torch.float32
    torch.testing.assert_close(losses, alone, rtol=0.02, atol=0.02)
    assert losses != alone


def test_three_processes_of_which_one_has_nothing_of_some_weights(tmp_path):
    (weights, _), *_ = in_two(
        tmp_path / "of", run, tmp_path / "three", shard=True, dropout=0.0, processes=3
    )
    alone, _ = run(tmp_path / "one", replace(CONFIG, accumulate=3), dropout=0.0)
    torch.testing.assert_close(weights, alone, rtol=1e-4, atol=1e-5)


def test_each_process_holds_about_half(tmp_path):
    held = in_two(tmp_path / "of", bytes_held, tmp_path / "run", shard=True)
    (whole, _) = in_two(tmp_path / "of", bytes_held, tmp_path / "whole")
    assert whole["weights"] == whole["model"] == 4 * sum(p.numel() for p in Model(0).parameters())
    for its in held:
        assert its["model"] == 0
        for name in ("weights", "optimizer"):
            # A little more or less: one row of 3, and the counts of steps.
            assert 0.45 < its[name] / whole[name] < 0.55
    assert held[0]["weights"] + held[1]["weights"] == whole["weights"]


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_a_random_moment_it_ends_with_the_same_weights(seed, divided, tmp_path):
    dice, folder = random.Random(seed), tmp_path / "run"
    for _ in range(2):
        children = start(tmp_path / "of", run, folder, pause=PAUSE, shard=True)
        wait_for_a_checkpoint(folder)
        time.sleep(dice.uniform(0, STEPS * PAUSE / 3))
        end(children, signal.SIGKILL)
    state = RunFolder(folder).newest()
    assert 0 < state["step"] < STEPS
    (weights, _), _ = in_two(tmp_path / "of", run, folder, seed=5, shard=True)
    torch.testing.assert_close(weights, divided[1], rtol=0, atol=0)
    assert RunFolder(folder).metrics() == RunFolder(divided[0]).metrics()


def test_sigterm_saves_and_ends_well(divided, tmp_path):
    folder = tmp_path / "run"
    children = start(tmp_path / "of", run, folder, pause=PAUSE, shard=True)
    wait_for_a_checkpoint(folder)
    os.kill(children[1].pid, signal.SIGTERM)  # one is told, all stop
    end(children)
    assert [child.exitcode for child in children] == [0, 0]
    assert 2 <= RunFolder(folder).newest()["step"] < STEPS
    (weights, _), _ = in_two(tmp_path / "of", run, folder, shard=True)
    torch.testing.assert_close(weights, divided[1], rtol=0, atol=0)


def broken_off(folder, **options):
    """A run that saves and stops after six steps."""

    def source(number):
        if number >= 12:
            raise KeyboardInterrupt
        return batch(number)

    with pytest.raises(KeyboardInterrupt):
        run(folder, source=source, dropout=0.0, **options)


def test_what_was_begun_divided_goes_on_whole_and_the_other_way_round(tmp_path):
    config = replace(CONFIG, accumulate=2)
    alone, _ = run(tmp_path / "one", config, dropout=0.0)
    in_two(tmp_path / "of", broken_off, tmp_path / "divided", shard=True)
    begun = RunFolder(tmp_path / "divided").newest()
    assert begun["step"] == 6
    assert {k: v.shape for k, v in begun["model"].items()} == {k: v.shape for k, v in alone.items()}
    weights, _ = run(tmp_path / "divided", config, dropout=0.0, seed=3)
    torch.testing.assert_close(weights, alone, rtol=1e-4, atol=1e-5)
    broken_off(tmp_path / "whole", config=config)
    (weights, _), _ = in_two(
        tmp_path / "of", run, tmp_path / "whole", dropout=0.0, seed=3, shard=True
    )
    torch.testing.assert_close(weights, alone, rtol=1e-4, atol=1e-5)


def test_the_best_weights_are_kept(divided):
    """Evaluations add a random number, so that the last one need not be the best."""
    folder, weights = divided
    best = RunFolder(folder).best()
    torch.testing.assert_close(weights, best["model"], rtol=0, atol=0)
    lines = [line for line in RunFolder(folder).metrics() if "score" in line]
    assert best["step"] == max(lines, key=lambda line: line["score"])["step"] < STEPS


def test_a_batch_that_is_no_number_changes_nothing(tmp_path):
    in_two(tmp_path / "of", run, tmp_path / "run", source=poisoned, skip=1, shard=True)
    lines = RunFolder(tmp_path / "run").metrics()
    assert [line["step"] for line in lines if "skipped" in line] == [4]  # batches 6 and 7
    state = RunFolder(tmp_path / "run").newest()["optimizer"]["state"]
    assert {int(s["step"]) for s in state.values()} == {STEPS - 1}


def test_one_process_trains_as_without(tmp_path):
    ours, _ = run(tmp_path / "one", shard=True)
    theirs, _ = run(tmp_path / "other")
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def refused(folder):
    """What is said of another learning rate, and of a model that cannot be divided."""
    with pytest.raises(ValueError, match="learning_rate was 0.02, is 0.1"):
        run(folder, replace(CONFIG, learning_rate=0.1), shard=True)
    model = make_model()
    model.gain = nn.Parameter(torch.ones(()))
    with pytest.raises(ValueError, match="no axis: got gain"):
        fit_durably(model, loss_fn, batch, CONFIG, folder / "new", evaluate=evaluate, shard=True)
    return 0


def test_bad_input(divided, tmp_path):
    in_two(tmp_path / "of", refused, divided[0])
