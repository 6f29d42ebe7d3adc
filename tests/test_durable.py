"""Runs that are killed, told to stop, out of room or fed nonsense end as they should."""

import json
import multiprocessing
import os
import random
import resource
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from mmlib.training import TrainConfig, fit
from mmlib.training.durable import fit_durably, replace_unreadable
from mmlib.training.run_folder import RunFolder

# A checkpoint that cannot be read is passed over with a warning, and a run begins anew: that must
# not hide behind weights that are right all the same.
pytestmark = pytest.mark.filterwarnings("error:.*no whole checkpoint")

STEPS, PAUSE = 24, 0.01
CONFIG = TrainConfig(
    STEPS,
    learning_rate=0.05,
    warmup=3,
    evaluate_every=4,
    checkpoint_every=3,
    keep_best=True,
    progress=False,
    device="cpu",
)


def make_model(seed=0, dropout=0.2):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 8), nn.Dropout(dropout), nn.Tanh(), nn.Linear(8, 3))


def batch(number, size=4):
    generator = torch.Generator().manual_seed(number)
    x = torch.randn(size, 4, generator=generator)
    return x, (x[:, :3] > 0).float()


def loss_fn(model, given):
    x, target = given
    loss = nn.functional.binary_cross_entropy_with_logits(model(x), target, reduction="sum")
    return loss, target.numel()


def evaluate(model):
    return -loss_fn(model, batch(10_000, 64))[0].item() + torch.rand(1).item()


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def run(folder, config=CONFIG, pause=0.0, source=batch, seed=0, dropout=0.2, **options):
    """The run of every test; it may be slowed down, so that a signal hits it on its way."""

    def slow(number):
        time.sleep(pause)
        return source(number)

    model = make_model(seed, dropout)
    history = fit_durably(model, loss_fn, slow, config, folder, evaluate=evaluate, **options)
    return model, history


def rank_of(rank, processes, folder, store, result, dropout):
    """One of several processes."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "ACCELERATE_USE_CPU": "true",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    store = dist.FileStore(str(store), processes)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=processes)
    model, _ = run(folder, pause=PAUSE, dropout=dropout)
    if rank == 0:
        torch.save(weights(model), result)
    dist.barrier()
    dist.destroy_process_group()


def alone(folder, result, dropout):
    model, _ = run(folder, pause=PAUSE, dropout=dropout)
    torch.save(weights(model), result)


def start(processes, folder, result, dropout=0.2):
    """Start a run in processes of its own, forked: torch need not be loaded again."""
    context = multiprocessing.get_context("fork")
    if processes == 1:
        children = [context.Process(target=alone, args=(folder, result, dropout))]
    else:
        store = result.with_name(f"store-{random.getrandbits(60)}")
        children = [
            context.Process(target=rank_of, args=(rank, processes, folder, store, result, dropout))
            for rank in range(processes)
        ]
    for child in children:
        child.start()
    return children


def end(children, number=None):
    for child in children:
        if number is not None and child.is_alive():
            os.kill(child.pid, number)
    for child in children:
        child.join(60)
        assert not child.is_alive()


def wait_for_a_checkpoint(folder):
    deadline = time.time() + 60
    while not list((folder / "checkpoints").glob("*.json")) and time.time() < deadline:
        time.sleep(0.005)


def killed_and_continued(processes, times, tmp_path, seed):
    """Kill a run this many times at random moments, let it end; the weights it ends with."""
    dice, folder, result = random.Random(seed), tmp_path / f"run{seed}", tmp_path / f"end{seed}.pt"
    for n in range(times):
        children = start(processes, folder, result)
        if n:  # the first kill may come before there is any checkpoint
            wait_for_a_checkpoint(folder)
        time.sleep(dice.uniform(0, STEPS * PAUSE / 2))
        end(children, signal.SIGKILL)
    state = RunFolder(folder).newest()
    end(start(processes, folder, result))
    return folder, torch.load(result), state["step"] if state else 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Runs that nothing stops, in one process and in two."""
    found = {}
    for processes in (1, 2):
        place = tmp_path_factory.mktemp("whole")
        end(start(processes, place / "run", place / "end.pt"))
        found[processes] = (place / "run", torch.load(place / "end.pt"))
    return found


def test_it_is_fit(whole):
    """Without a folder the same run ends with the same weights."""
    model = make_model()
    config = replace(CONFIG, checkpoint_every=0)
    history = fit(model, loss_fn, batch, config, evaluate=evaluate)
    assert torch.equal(weights(model), whole[1][1])
    logged = [line["loss"] for line in RunFolder(whole[1][0]).metrics() if "loss" in line]
    assert logged == history.losses


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_killed_at_a_random_moment_it_ends_with_the_same_weights(processes, seed, whole, tmp_path):
    folder, got, step = killed_and_continued(processes, 2, tmp_path, seed)
    assert torch.equal(got, whole[processes][1])
    assert step > 0  # there was something to continue from
    lines = RunFolder(folder).metrics()
    assert lines == RunFolder(whole[processes][0]).metrics()  # each step once, none twice


def test_two_processes_learn_what_one_does_on_the_same_batches(tmp_path):
    folder, result = tmp_path / "run", tmp_path / "end.pt"
    children = start(2, folder, result, dropout=0.0)
    wait_for_a_checkpoint(folder)
    end(children, signal.SIGKILL)
    config = replace(CONFIG, accumulate=2)
    alone, _ = run(tmp_path / "alone", config, dropout=0.0)
    # What two began, one ends.
    begun = RunFolder(folder).newest()
    assert len(begun["rng"]) == 2
    assert begun["step"] < STEPS
    model, history = run(folder, config, dropout=0.0)
    assert history.steps == STEPS
    torch.testing.assert_close(weights(model), weights(alone), rtol=1e-5, atol=1e-6)
    # And what two end.
    end(start(2, tmp_path / "two", result, dropout=0.0))
    torch.testing.assert_close(torch.load(result), weights(alone), rtol=1e-5, atol=1e-6)


def test_a_run_of_two_processes_fits_one_only_with_all_their_batches(whole):
    with pytest.raises(ValueError, match="accumulate was 2, is 1"):
        run(whole[2][0])


def test_sigterm_saves_and_ends_well(whole, tmp_path):
    folder, result = tmp_path / "run", tmp_path / "end.pt"
    [child] = start(1, folder, result)
    wait_for_a_checkpoint(folder)
    end([child], signal.SIGTERM)
    assert child.exitcode == 0
    assert not result.exists()
    step = RunFolder(folder).newest()["step"]
    assert 3 <= step < STEPS
    model, _ = run(folder)
    assert torch.equal(weights(model), whole[1][1])


def stopped(folder, after):
    """A run that dies of its own batch."""

    def source(number):
        if number == after:
            raise KeyboardInterrupt
        return batch(number)

    with pytest.raises(KeyboardInterrupt):
        run(folder, source=source)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(b"not a checkpoint"),
        lambda path: path.unlink(),
        lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
        lambda path: path.with_suffix(".json").write_text("{"),
    ],
    ids=["short", "foreign", "gone", "one bit", "card"],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(spoil, whole, tmp_path):
    folder = tmp_path / "run"
    stopped(folder, after=17)
    newest = max((folder / "checkpoints").glob("*.pt"))
    assert newest.stem == "00000015"
    spoil(newest)
    with pytest.warns(UserWarning, match="00000015.pt is no whole checkpoint"):
        state = RunFolder(folder).newest()
    assert state["step"] == 12
    with pytest.warns(UserWarning, match="the one before it is used"):
        model, _ = run(folder, seed=5)
    assert torch.equal(weights(model), whole[1][1])


def test_a_whole_file_that_is_no_state_is_passed_over(tmp_path):
    folder = RunFolder(tmp_path)
    folder.save({"step": 1}, 1)
    with pytest.warns(UserWarning, match="it has no config, history, model, optimizer, rng"):
        assert folder.newest() is None


def test_another_configuration_is_refused(tmp_path):
    run(tmp_path)
    with pytest.raises(ValueError, match="learning_rate was 0.05, is 0.1"):
        run(tmp_path, replace(CONFIG, learning_rate=0.1))


def test_the_last_and_the_best_are_kept(tmp_path):
    _, history = run(tmp_path, keep=2)
    assert [p.name for p in sorted((tmp_path / "checkpoints").glob("*.pt"))] == [
        "00000021.pt",
        "00000024.pt",
    ]
    best = RunFolder(tmp_path).best()
    assert best["step"] == history.best_step
    assert [p.stem for p in (tmp_path / "best").glob("*.pt")] == [f"{history.best_step:08}"]


def test_the_folder_explains_itself(tmp_path):
    def sample(model, path):
        assert not model.training
        (path / "weights.txt").write_text(str(weights(model).sum().item()))

    run(tmp_path, sample=sample)
    about = json.loads((tmp_path / "run.json").read_text())
    assert about["config"]["steps"] == STEPS
    assert about["versions"]["torch"] == torch.__version__
    assert "goes on from the newest" in (tmp_path / "README.md").read_text()
    assert [p.name for p in sorted((tmp_path / "samples").iterdir())] == [
        f"{step:08}" for step in range(4, STEPS + 1, 4)
    ]


def limited(folder, queue):
    """No file may become longer than 6,000 bytes, as if the disk were full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        run(folder)
    except OSError as error:
        queue.put(str(error))


def test_a_full_disk_is_named_and_loses_nothing(whole, tmp_path):
    stopped(tmp_path / "run", after=10)
    before = RunFolder(tmp_path / "run").newest()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=limited, args=(tmp_path / "run", queue))
    child.start()
    child.join(60)
    assert "could not save step 12" in queue.get(timeout=5)
    after = RunFolder(tmp_path / "run").newest()
    assert before["step"] == after["step"] == 9
    model, _ = run(tmp_path / "run")
    assert torch.equal(weights(model), whole[1][1])


def poisoned(bad):
    def source(number):
        x, target = batch(number)
        return (x * torch.nan if number in bad else x), target

    return source


def test_a_batch_that_is_no_number_is_counted_and_changes_nothing(tmp_path):
    seen = []

    def source(number):
        seen.append(number)
        return poisoned({5})(number)

    _, history = run(tmp_path, source=source, skip=1)
    lines = RunFolder(tmp_path).metrics()
    assert [line["step"] for line in lines if "skipped" in line] == [6]
    assert all(torch.tensor(h).isfinite() for i, h in enumerate(history.losses) if i != 5)
    # AdamW has made one step less than the run.
    state = RunFolder(tmp_path).newest()["optimizer"]["state"]
    assert {int(s["step"]) for s in state.values()} == {STEPS - 1}


def test_too_many_of_them_are_an_error(tmp_path):
    with pytest.raises(FloatingPointError, match=r"the loss is nan .* at step 7, 2 in a row"):
        run(tmp_path, source=poisoned({5, 6}), skip=1)
    assert RunFolder(tmp_path).newest()["step"] == 6


def test_an_unreadable_batch_is_replaced_and_a_lost_disk_is_not(tmp_path):
    def broken(number):
        if number in (3, 1_000_006):
            raise OSError("no such file")
        return number

    read = replace_unreadable(broken)
    with pytest.warns(UserWarning, match="batch 1000006 cannot be read"):
        assert read(3) == 2_000_009
    assert read(4) == 4

    def lost(number):
        raise OSError("the disk is gone")

    with (
        pytest.warns(UserWarning, match="stands in for it"),
        pytest.raises(OSError, match="the disk is gone"),
    ):
        replace_unreadable(lost)(0)


@pytest.mark.parametrize(
    "change, error, says",
    [
        ({"config": TrainConfig(2)}, ValueError, "checkpoint_every must be at least 1: got 0"),
        ({"batches": [1]}, TypeError, "batches must be a function of a number: got list"),
        ({"skip": -1}, ValueError, "skip must be at least 0: got -1"),
        ({"keep": 0}, ValueError, "keep must be at least 1: got 0"),
        ({"evaluate": None}, ValueError, "evaluate must be given"),
    ],
)
def test_bad_input(change, error, says, tmp_path, unchecked):
    given = {"batches": batch, "config": CONFIG, "evaluate": evaluate} | change
    source, config = given.pop("batches"), given.pop("config")
    with pytest.raises(error, match=says):
        unchecked(fit_durably)(make_model(), loss_fn, source, config, tmp_path, **given)


def test_a_file_is_no_folder(tmp_path):
    path = Path(tmp_path) / "file"
    path.write_text("")
    with pytest.raises(NotADirectoryError, match="path must be a folder"):
        RunFolder(path)
