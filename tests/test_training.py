"""Training: right gradients, exact continuation, no traces, whole files."""

import contextlib
import inspect
import io
import json
import math
import os

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
import train
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mmlib import results
from mmlib.training import (
    History,
    TrainConfig,
    choose_precision,
    distributed,
    fit,
    load_weights,
    precision,
    save_weights,
)
from mmlib.training.batches import stream
from mmlib.training.checkpoint import load_state, save_state
from mmlib.training.optimizer import adamw, decay_groups, learning_rate_at


def make_model(dropout=0.0, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 8), nn.Dropout(dropout), nn.Tanh(), nn.Linear(8, 3))


def make_batch(index, size=6):
    generator = torch.Generator().manual_seed(index)
    x = torch.randn(size, 4, generator=generator)
    return x, torch.randint(0, 3, (size,), generator=generator)


def loss_fn(model, batch):
    x, target = batch
    loss = F.cross_entropy(model(x), target, ignore_index=-1, reduction="sum")
    return loss, (target != -1).sum()


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def quiet(steps, **kwargs):
    return TrainConfig(steps, progress=False, **kwargs)


# --- optimiser ----------------------------------------------------------------------------------


def test_learning_rate_equals_transformers():
    transformers = pytest.importorskip("transformers")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = transformers.get_cosine_schedule_with_warmup(optimizer, 0, 20)
    for step in range(20):
        assert learning_rate_at(step, 20, 0.3) == pytest.approx(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()


def test_learning_rate_warms_up_and_ends_where_it_should():
    rates = [learning_rate_at(step, 10, 2.0, warmup=4, final=0.1) for step in range(11)]
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[10] == pytest.approx(0.2)
    assert rates[7] == pytest.approx(2.0 * (0.1 + 0.9 / 2))  # half of the way down


class Everything(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.patch_embedding = nn.Conv2d(3, 4, 2)
        self.positions = nn.Parameter(torch.zeros(5, 4))
        self.class_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.norm = nn.LayerNorm(4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.head = nn.Linear(4, 7)
        self.tied = nn.Linear(4, 7, bias=False)
        self.tied.weight = self.embedding.weight
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def test_only_matrices_decay():
    model = Everything()
    decayed, kept = decay_groups(model, 0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(p)] for p in decayed["params"]} == {
        "patch_embedding.weight",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "head.weight",
    }
    assert {names[id(p)] for p in kept["params"]} == set(names.values()) - {
        names[id(p)] for p in (*decayed["params"], *model.frozen.parameters())
    }
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)


def test_adamw_equals_torch():
    model, other = make_model(), make_model()
    ours = adamw(model, 0.1, weight_decay=0.5, betas=(0.8, 0.9))
    matrices = [p for p in other.parameters() if p.ndim == 2]
    vectors = [p for p in other.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.5}, {"params": vectors, "weight_decay": 0.0}]
    theirs = torch.optim.AdamW(groups, lr=0.1, betas=(0.8, 0.9), foreach=False, fused=False)
    for index in range(3):
        for network, optimizer in ((model, ours), (other, theirs)):
            loss_fn(network, make_batch(index))[0].backward()
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(weights(model), weights(other))


# --- fit ----------------------------------------------------------------------------------------


def by_hand(model, batches, config):
    """The loop written out, in plain torch."""
    optimizer = adamw(model, config.learning_rate, config.weight_decay, config.betas)
    losses = []
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, config.steps, config.learning_rate, config.warmup)
        total, count = loss_fn(model, batch)
        (total / count).backward()
        if config.clip:
            nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append((total / count).item())
    return losses


@pytest.mark.parametrize("clip", [None, 0.05, 100.0])
def test_fit_equals_a_loop_by_hand(clip):
    config = quiet(8, learning_rate=0.05, warmup=3, clip=clip, weight_decay=0.3)
    model, other = make_model(), make_model()
    history = fit(model, loss_fn, make_batch, config)
    losses = by_hand(other, [make_batch(i) for i in range(8)], config)
    assert history.losses == pytest.approx(losses, abs=1e-6)
    assert history.steps == 8
    torch.testing.assert_close(weights(model), weights(other), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(weights(model), weights(make_model()))


def uneven(index):
    """Six items; in even batches five of them are padding."""
    x, target = make_batch(index)
    if index % 2 == 0:
        target[1:] = -1
    return x, target


def joined(index):
    parts = [uneven(2 * index), uneven(2 * index + 1)]
    return torch.cat([x for x, _ in parts]), torch.cat([target for _, target in parts])


def test_accumulated_gradients_are_those_of_the_full_batch():
    full, parts, means = make_model(), make_model(), make_model()
    expected = fit(full, loss_fn, joined, quiet(5, learning_rate=0.05))
    got = fit(parts, loss_fn, uneven, quiet(5, learning_rate=0.05, accumulate=2))
    assert got.losses == pytest.approx(expected.losses, abs=1e-6)
    assert got.gradient_norms == pytest.approx(expected.gradient_norms, abs=1e-6)
    torch.testing.assert_close(weights(parts), weights(full), rtol=1e-5, atol=1e-6)
    # The usual mistake, the mean of the batches' means, is another gradient.
    mean = lambda model, batch: loss_fn(model, batch)[0] / loss_fn(model, batch)[1]  # noqa: E731
    wrong = fit(means, mean, uneven, quiet(5, learning_rate=0.05, accumulate=2))
    assert wrong.gradient_norms[0] != pytest.approx(expected.gradient_norms[0], abs=1e-2)


def test_the_first_gradient_norm_is_autograds():
    model = make_model().double()
    x, target = make_batch(0)
    batch = (x.double(), target)
    total, count = loss_fn(model, batch)
    gradients = torch.autograd.grad(total / count, list(model.parameters()))
    norm = torch.cat([g.flatten() for g in gradients]).norm().item()
    assert fit(model, loss_fn, [batch], quiet(1)).gradient_norms[0] == pytest.approx(norm, rel=1e-6)


def test_a_batch_without_a_valid_item_gives_zero():
    model = make_model()
    x, target = make_batch(0)
    history = fit(model, loss_fn, [(x, target * 0 - 1)], quiet(2, weight_decay=0.0))
    assert history.losses == [0, 0]
    assert torch.equal(weights(model), weights(make_model()))


def test_a_mean_loss_weighs_batches_alike():
    mean = lambda model, batch: F.cross_entropy(model(batch[0]), batch[1])  # noqa: E731
    one, two = make_model(), make_model()
    fit(one, mean, make_batch, quiet(4, accumulate=2))
    fit(two, loss_fn, make_batch, quiet(4, accumulate=2))  # batches of one size: the same
    torch.testing.assert_close(weights(one), weights(two), rtol=1e-5, atol=1e-6)


def test_gradients_from_before_do_not_count():
    model = make_model()
    (1000 * loss_fn(model, make_batch(5))[0]).backward()
    fit(model, loss_fn, make_batch, quiet(3))
    other = make_model()
    fit(other, loss_fn, make_batch, quiet(3))
    assert torch.equal(weights(model), weights(other))


def test_nothing_global_changes():
    model = make_model(dropout=0.5)
    model[0].eval()  # a mixture of modes must survive
    modes = [module.training for module in model.modules()]
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    fit(model, loss_fn, make_batch, quiet(3, seed=7), evaluate=lambda model: torch.rand(1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert [module.training for module in model.modules()] == modes
    assert torch.get_num_threads() == threads
    assert not torch.is_autocast_enabled("cpu")
    assert "forward" not in vars(model)


def test_the_seed_decides():
    runs = []
    for seed in (1, 1, 2):
        model = make_model(dropout=0.5)
        fit(model, loss_fn, make_batch, quiet(3, seed=seed))
        runs.append(weights(model))
        torch.rand(3)  # whatever the global state is
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_two_precisions_in_one_process():
    seen = []

    def spy(model, batch):
        logits = model(batch[0])
        seen.append(logits.dtype)
        return F.cross_entropy(logits.float(), batch[1])

    for name in ("bf16", "fp32", "bf16"):
        history = fit(make_model(), spy, make_batch, quiet(1, precision=name))
        assert history.precision == name
    assert seen == [torch.bfloat16, torch.float32, torch.bfloat16]


def test_another_accelerator_stays_as_it_was():
    AcceleratorState._reset_state(True)
    mine = Accelerator(cpu=True, mixed_precision="no")
    fit(make_model(), loss_fn, make_batch, quiet(1, precision="bf16"))
    assert mine.mixed_precision == "no"
    assert Accelerator(cpu=True, mixed_precision="no").state.mixed_precision == "no"
    AcceleratorState._reset_state(True)


def test_bf16_learns_what_fp32_learns():
    batch = make_batch(0)
    losses = [
        fit(make_model(), loss_fn, [batch], quiet(40, learning_rate=0.05, precision=name)).losses
        for name in ("fp32", "bf16")
    ]
    assert losses[0][-1] < 0.5 * losses[0][0]
    assert losses[1][-1] == pytest.approx(losses[0][-1], abs=0.05)
    assert losses[1] != losses[0]


def test_methods_other_than_forward_are_trained_in_bf16_too():
    class TwoTowers(nn.Module):
        def __init__(self):
            super().__init__()
            self.tower = nn.Linear(4, 3)

        def encode(self, x):
            return self.tower(x)

    seen = []

    def encode_loss(model, batch):
        out = model.encode(batch[0])
        seen.append(out.dtype)
        return out.float().square().mean()

    fit(TwoTowers(), encode_loss, make_batch, quiet(1, precision="bf16"))
    assert seen == [torch.bfloat16]


def test_best_weights_and_early_stopping():
    scores = [0.1, 0.5, 0.3, 0.5, 0.2, 0.9]
    kept = []

    def evaluate(model):
        assert not model.training
        assert not torch.is_grad_enabled()
        kept.append(weights(model))
        return {"accuracy": scores[len(kept) - 1], "other": 1}

    model = make_model()
    config = quiet(60, evaluate_every=10, patience=3, keep_best=True)
    history = fit(model, loss_fn, make_batch, config, evaluate=evaluate)
    assert (history.best_step, history.best_score) == (20, 0.5)
    assert history.stopped_early
    assert history.steps == 50
    assert history.evaluations[2] == {"step": 30, "score": 0.3, "accuracy": 0.3, "other": 1}
    assert torch.equal(weights(model), kept[1])


def test_lower_can_be_better_and_the_end_is_always_evaluated():
    scores = iter([3.0, 1.0, 2.0])
    config = quiet(5, evaluate_every=2, maximize=False)
    history = fit(make_model(), loss_fn, make_batch, config, evaluate=lambda model: next(scores))
    assert [evaluation["step"] for evaluation in history.evaluations] == [2, 4, 5]
    assert (history.best_step, history.best_score) == (4, 1.0)
    assert not history.stopped_early


def test_evaluating_does_not_change_training():
    runs = []
    for every in (0, 1):
        model = make_model(dropout=0.5)
        config = quiet(4, evaluate_every=every)
        fit(model, loss_fn, make_batch, config, evaluate=lambda model: torch.rand(()))
        runs.append(weights(model))
    assert torch.equal(*runs)


def test_the_progress_bar_shows_the_loss():
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        fit(make_model(), loss_fn, make_batch, TrainConfig(3))
    assert "3/3" in text.getvalue()
    assert "loss" in text.getvalue()


def test_config_says_what_is_wrong():
    for name, value in [
        ("steps", 0),
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("warmup", 11),
        ("final", 2.0),
        ("weight_decay", -1.0),
        ("betas", (0.9, 1.0)),
        ("clip", 0.0),
        ("accumulate", 0),
        ("precision", "fp16"),
        ("device", "cuda"),
        ("evaluate_every", -1),
        ("patience", 0),
        ("checkpoint_every", -1),
    ]:
        with pytest.raises(ValueError, match=f"{name} must be .*: got"):
            TrainConfig(**({"steps": 10} | {name: value}))


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"loss_fn": lambda model, batch: 1.0}, TypeError, "loss_fn must return"),
        ({"loss_fn": lambda model, batch: torch.ones(1)}, TypeError, "depends on the model"),
        ({"loss_fn": lambda model, batch: model(batch[0])}, TypeError, "one number"),
        ({"loss_fn": lambda m, b: m(b[0]).sum() * math.nan}, FloatingPointError, "nan at step 1"),
        ({"batches": []}, ValueError, "batches ran out after 0 of 3"),
        ({"batches": iter([make_batch(0)])}, ValueError, "batches ran out after 1 of 3"),
        ({"config": quiet(3, patience=1)}, ValueError, "evaluate must be given"),
        ({"config": quiet(3, keep_best=True)}, ValueError, "evaluate must be given"),
        ({"config": quiet(3, checkpoint_every=1)}, ValueError, "checkpoint must be a path"),
        ({"resume": True}, ValueError, "checkpoint must be a path"),
        ({"evaluate": lambda model: "good"}, TypeError, "evaluate must return a number"),
        ({"evaluate": lambda model: {}}, TypeError, "evaluate must return a number"),
        ({"evaluate": lambda model: math.nan}, FloatingPointError, "score is nan after step 3"),
        ({"model": nn.ReLU()}, ValueError, "no parameter that requires a gradient"),
    ],
)
def test_fit_says_what_is_wrong(change, error, says):
    given = {"model": make_model(), "loss_fn": loss_fn, "batches": make_batch, "config": quiet(3)}
    before = torch.random.get_rng_state()
    with pytest.raises(error, match=says):
        inspect.unwrap(fit)(**(given | change))
    assert torch.equal(torch.random.get_rng_state(), before)


# --- resuming -----------------------------------------------------------------------------------


class PowerCut(Exception):
    pass


def loader():
    data = TensorDataset(*make_batch(0, size=20))
    return DataLoader(data, batch_size=3, shuffle=True)  # 7 batches an epoch


def seeded_loader():
    data = TensorDataset(*make_batch(0, size=20))
    generator = torch.Generator().manual_seed(5)
    return DataLoader(data, batch_size=3, shuffle=True, generator=generator)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("batches", ["function", "loader", "seeded loader", "random function"])
def test_a_resumed_run_is_bit_for_bit_the_whole_run(tmp_path, batches, accumulate, precision):
    def source():
        return {
            "function": lambda: make_batch,
            "loader": loader,
            "seeded loader": seeded_loader,
            "random function": lambda: lambda i: (torch.randn(4, 4), torch.randint(0, 3, (4,))),
        }[batches]()

    config = quiet(
        14,
        learning_rate=0.05,
        warmup=3,
        accumulate=accumulate,
        precision=precision,
        evaluate_every=2,
        keep_best=True,
        checkpoint_every=5,
    )

    def evaluate(model):
        return -loss_fn(model, make_batch(99))[0].item() + torch.rand(1).item()

    whole = make_model(dropout=0.3)
    expected = fit(whole, loss_fn, source(), config, evaluate=evaluate, checkpoint=tmp_path / "a")

    calls = 0

    def breaking(model, batch):
        nonlocal calls
        calls += 1
        if calls > 12 * accumulate:
            raise PowerCut
        return loss_fn(model, batch)

    path = tmp_path / "b"
    kwargs = {"evaluate": evaluate, "checkpoint": path, "resume": True}
    with pytest.raises(PowerCut):
        fit(make_model(dropout=0.3), breaking, source(), config, **kwargs)
    assert load_state(path)["step"] == 10
    resumed = make_model(dropout=0.3, seed=1)  # what it starts from does not matter
    got = fit(resumed, loss_fn, source(), config, **kwargs)

    assert torch.equal(weights(resumed), weights(whole))
    assert got.losses == expected.losses
    assert got.learning_rates == expected.learning_rates
    assert got.evaluations == expected.evaluations
    assert (got.best_step, got.best_score) == (expected.best_step, expected.best_score)

    def plain(value):
        return value.tolist() if isinstance(value, torch.Tensor) else value

    one, two = load_state(tmp_path / "a"), load_state(path)
    for part in ("model", "best"):
        assert {k: plain(v) for k, v in one[part].items()} == {
            k: plain(v) for k, v in two[part].items()
        }
    for key, state in one["optimizer"]["state"].items():
        for name, value in state.items():
            assert torch.equal(value, two["optimizer"]["state"][key][name])
    assert torch.equal(one["rng"][0]["cpu"], two["rng"][0]["cpu"])


def test_a_finished_run_is_not_repeated(tmp_path):
    path = tmp_path / "state"
    model, other = make_model(), make_model(seed=1)
    config = quiet(4)
    history = fit(model, loss_fn, make_batch, config, checkpoint=path, resume=True)
    again = fit(other, loss_fn, make_batch, config, checkpoint=path, resume=True)
    assert isinstance(again, History)
    assert again.losses == history.losses
    assert torch.equal(weights(model), weights(other))


def test_without_resume_a_run_starts_anew(tmp_path):
    path = tmp_path / "state"
    fit(make_model(), loss_fn, make_batch, quiet(4), checkpoint=path)
    history = fit(make_model(), loss_fn, make_batch, quiet(6), checkpoint=path)
    assert history.steps == 6


def test_another_configuration_is_refused(tmp_path):
    path = tmp_path / "state"
    fit(make_model(), loss_fn, make_batch, quiet(4), checkpoint=path)
    config = quiet(5, learning_rate=0.1)
    with pytest.raises(ValueError, match=r"steps was 4, is 5, learning_rate was 0\.001, is 0\.1"):
        fit(make_model(), loss_fn, make_batch, config, checkpoint=path, resume=True)


def test_a_stream_goes_on():
    assert [next(s) for s in [stream(range(3), 9, 0, start=4)] for _ in range(4)] == [1, 2, 0, 1]
    assert [next(s) for s in [stream(lambda i: i * i, 9, 0, start=4)] for _ in range(2)] == [16, 25]


# --- checkpoints --------------------------------------------------------------------------------


def test_weights_come_back(tmp_path):
    path = tmp_path / "deep" / "model.safetensors"
    model = make_model()
    card = save_weights(model, path, card={"command": "make train", "seed": 3})
    assert card["parameters"] == 67
    assert json.loads(path.with_suffix(".json").read_text()) == card
    other = make_model(seed=1)
    assert load_weights(other, path) == card
    assert torch.equal(weights(other), weights(model))
    assert sorted(p.name for p in path.parent.iterdir()) == ["model.json", "model.safetensors"]


def test_bf16_halves_the_file_and_keeps_integers(tmp_path):
    model = nn.Sequential(nn.Linear(100, 100), nn.BatchNorm1d(100))
    model[1].num_batches_tracked += 3
    big = save_weights(model, tmp_path / "a.safetensors")
    small = save_weights(model, tmp_path / "b.safetensors", dtype=torch.bfloat16)
    assert small["megabytes"] < 0.55 * big["megabytes"]
    other = nn.Sequential(nn.Linear(100, 100), nn.BatchNorm1d(100))
    load_weights(other, tmp_path / "b.safetensors")
    assert other[0].weight.dtype == torch.float32
    assert torch.equal(other[0].weight, model[0].weight.bfloat16().float())
    assert other[1].num_batches_tracked == 3


def test_tied_weights_are_written_once(tmp_path):
    def tied():
        model = nn.ModuleList([nn.Embedding(50, 40), nn.Linear(40, 50, bias=False)])
        model[1].weight = model[0].weight
        return model

    model, other = tied(), tied()
    card = save_weights(model, tmp_path / "a.safetensors", dtype=torch.bfloat16)
    assert card["parameters"] == 2000
    assert card["megabytes"] < 0.0045
    load_weights(other, tmp_path / "a.safetensors")
    assert torch.equal(other[1].weight, model[0].weight.bfloat16().float())


def test_a_changed_file_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    model = make_model()
    save_weights(model, path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    other = make_model(seed=1)
    with pytest.raises(ValueError, match="not the file its card describes"):
        load_weights(other, path)
    assert torch.equal(weights(other), weights(make_model(seed=1)))


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (nn.Sequential(nn.Linear(4, 8)), "unknown: 3.bias, 3.weight"),
        (nn.Sequential(*make_model(), nn.Linear(3, 3)), "missing: 4.bias, 4.weight"),
        (
            nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.ReLU(), nn.Linear(8, 3)),
            r"other shape: 0.weight is \(8, 4\), the model's is \(8, 5\)",
        ),
    ],
)
def test_weights_that_do_not_fit(tmp_path, other, says):
    path = tmp_path / "a.safetensors"
    save_weights(make_model(), path)
    before = weights(other)
    with pytest.raises(ValueError, match=says):
        load_weights(other, path)
    assert torch.equal(weights(other), before)


def test_bad_paths_and_cards(tmp_path):
    with pytest.raises(ValueError, match=r"end in \.safetensors: got 'a\.pt'"):
        save_weights(make_model(), tmp_path / "a.pt")
    with pytest.raises(ValueError, match="card must hold what JSON can"):
        save_weights(make_model(), tmp_path / "a.safetensors", card={"model": object()})
    with pytest.raises(FileNotFoundError, match=r"there is no a\.safetensors"):
        load_weights(make_model(), tmp_path / "a.safetensors")
    save_weights(make_model(), tmp_path / "a.safetensors")
    (tmp_path / "a.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no a\.json"):
        load_weights(make_model(), tmp_path / "a.safetensors")


def test_a_write_that_dies_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "state"
    save_state({"step": 1}, path)

    def dies(state, file):
        file.write_bytes(b"half")
        raise PowerCut

    monkeypatch.setattr(torch, "save", dies)
    with pytest.raises(PowerCut):
        save_state({"step": 2}, path)
    assert load_state(path) == {"step": 1}
    assert os.listdir(tmp_path) == ["state"]
    monkeypatch.undo()

    def cannot_rename(old, new):
        raise PowerCut

    monkeypatch.setattr(os, "replace", cannot_rename)
    with pytest.raises(PowerCut):
        save_state({"step": 3}, path)
    assert load_state(path) == {"step": 1}
    assert os.listdir(tmp_path) == ["state"]


def test_a_state_holds_no_code(tmp_path):
    with pytest.raises(TypeError, match=r"state\['model'\]\[0\] must be .*: got Linear"):
        save_state({"model": [nn.Linear(1, 1)]}, tmp_path / "state")
    torch.save({"model": nn.Linear(1, 1)}, tmp_path / "pickle")
    with pytest.raises(Exception, match="[Ww]eights"):
        load_state(tmp_path / "pickle")


# --- precision ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("times", "choice", "trials"),
    [
        ([(1e-5, 1e-5), (8e-3, 1e-3)], "bf16", 2),
        ([(1e-5, 1e-5), (1e-3, 1e-3)], "fp32", 2),
        ([(1e-5, 1e-5), (1.4e-3, 1e-3)], "fp32", 2),  # a gain, but less than the casts cost
        ([(1e-5, 3e-3)], "fp32", 1),  # no support: the large product is never tried
    ],
)
def test_choice(monkeypatch, capsys, times, choice, trials):
    left = iter(times)
    shapes = []
    monkeypatch.setattr(precision, "_times", lambda d, shape: (shapes.append(shape), next(left))[1])
    assert choose_precision("cpu") == choice
    assert len(shapes) == trials
    assert max(shapes[0]) <= 128
    assert capsys.readouterr().out.startswith(f"precision {choice} (")


def test_the_real_choice_is_one_of_two(capsys):
    before = torch.random.get_rng_state()
    assert choose_precision("cpu", shape=(64, 64, 64), verbose=False) in ("bf16", "fp32")
    assert capsys.readouterr().out == ""
    assert torch.equal(torch.random.get_rng_state(), before)
    with pytest.raises(ValueError, match="shape must be"):
        choose_precision("cpu", shape=(64, 0, 64))


def test_auto(monkeypatch):
    monkeypatch.setattr("mmlib.training.accelerator.choose_precision", lambda *a, **k: "bf16")
    history = fit(make_model(), loss_fn, make_batch, quiet(1, precision="auto"))
    assert history.precision == "bf16"


# --- several processes --------------------------------------------------------------------------


def contrastive(features):
    """InfoNCE of this rank's rows against all ranks' columns; with one rank, of the whole batch."""
    image, text = features.chunk(2, dim=-1)
    image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
    everyone = distributed.all_gather(text)
    target = torch.arange(len(image)) + distributed.rank() * len(image)
    return F.cross_entropy(image @ everyone.T / 0.1, target)


def make_tower():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Linear(5, 6)


def mine(rows):
    size = len(rows) // distributed.world_size()
    return rows[distributed.rank() * size :][:size]


def averaged(gradient):
    """What DistributedDataParallel makes of the ranks' gradients."""
    gradient = gradient / distributed.world_size()
    if distributed.world_size() > 1:
        dist.all_reduce(gradient)
    return gradient


def rank_work():
    """What a process does; all of it in one start of two processes, which takes seconds."""
    rows = torch.randn(8, 5, generator=torch.Generator().manual_seed(1))
    out = {"rank": distributed.rank(), "world": distributed.world_size()}
    out["main"] = distributed.is_main()

    tower = make_tower()
    loss = contrastive(tower(mine(rows)))
    loss.backward()
    out["losses"] = loss.item()
    out["gradient"] = averaged(tower.weight.grad)

    if out["world"] > 1:  # gathering without gradients: the loss is right, the gradient is not
        tower = make_tower()
        image, text = (F.normalize(f, dim=-1) for f in tower(mine(rows)).chunk(2, dim=-1))
        parts = [torch.empty_like(text) for _ in range(out["world"])]
        dist.all_gather(parts, text.detach())
        parts[out["rank"]] = text
        target = torch.arange(4) + 4 * out["rank"]
        loss = F.cross_entropy(image @ torch.cat(parts).T / 0.1, target)
        loss.backward()
        out["wrong_loss"] = loss.item()
        out["wrong_gradient"] = averaged(tower.weight.grad)
        try:
            distributed.all_gather(torch.ones(1 + out["rank"], 2))
        except ValueError as error:
            out["error"] = str(error)

    def share(index):
        x, target = joined(index)
        return (x, target) if out["world"] == 1 else uneven(2 * index + out["rank"])

    model = make_model()
    history = fit(model, loss_fn, share, quiet(4, learning_rate=0.05))
    return out | {"weights": weights(model), "history": history.losses}


def fail_on_one():
    if distributed.rank() == 1:
        raise ValueError("rank 1 has had enough")
    dist.barrier()


@pytest.fixture(scope="module")
def ranks():
    return distributed.spawn(rank_work, 2), rank_work()


def test_each_rank_knows_itself(ranks):
    two, one = ranks
    assert [(r["rank"], r["world"], r["main"]) for r in two] == [(0, 2, True), (1, 2, False)]
    assert (one["rank"], one["world"], one["main"]) == (0, 1, True)


def test_gradients_of_two_ranks_are_those_of_one(ranks):
    two, one = ranks
    assert sum(r["losses"] for r in two) / 2 == pytest.approx(one["losses"], abs=1e-6)
    torch.testing.assert_close(two[0]["gradient"], one["gradient"], rtol=1e-5, atol=1e-6)
    # Without the gradient of the gathered features the loss is as right, the gradient is not.
    assert sum(r["wrong_loss"] for r in two) / 2 == pytest.approx(one["losses"], abs=1e-6)
    assert not torch.allclose(two[0]["wrong_gradient"], one["gradient"], atol=1e-2)


def test_fit_on_two_ranks_is_fit_on_their_joint_batches(ranks):
    two, one = ranks
    torch.testing.assert_close(two[0]["weights"], one["weights"], rtol=1e-5, atol=1e-6)
    assert torch.equal(two[0]["weights"], two[1]["weights"])
    assert two[0]["history"] == pytest.approx(one["history"], abs=1e-6)


def test_unequal_shapes_are_named(ranks):
    assert "got [(1, 2), (2, 2)]" in ranks[0][0]["error"]


def test_a_failing_rank_is_shown():
    with pytest.raises(RuntimeError, match="rank 1 has had enough"):
        distributed.spawn(fail_on_one, 2)


def test_bad_input_of_distributed():
    with pytest.raises(ValueError, match="processes must be at least 1: got 0"):
        distributed.spawn(rank_work, 0)
    with pytest.raises(ValueError, match="batch axis"):
        distributed.all_gather(torch.ones(()))
    x = torch.ones(2, 3)
    assert distributed.all_gather(x) is x


# --- make train ---------------------------------------------------------------------------------

SCRIPT = """\"\"\"Train nothing, quickly.\"\"\"

from mmlib import results

MINUTES = 0.1


def main():
    results.record("07.long", 0.5, tolerance=0.1)
"""


@pytest.fixture
def long_runs(tmp_path, monkeypatch):
    for name in ("MMLIB_LEDGER", "MMLIB_LEDGER_DIR", "MMLIB_TRAINING", "MMLIB_NOTEBOOK"):
        monkeypatch.setenv(name, "x")  # so that what the script sets is taken back
        monkeypatch.delenv(name)
    (tmp_path / "ch07.py").write_text(SCRIPT)
    return tmp_path


@pytest.mark.parametrize("name", ["7", "07"])
def test_make_train_runs_and_records(long_runs, name, capsys):
    train.run(name, folder=long_runs, ledger=long_runs / "ledger")
    out = capsys.readouterr().out
    assert out.startswith("Chapter 07: Train nothing, quickly.\nTakes about 0.1 minutes")
    row = results.read(long_runs / "ledger")["07.long"]
    assert row["origin"] == "train"
    assert "ch07.py" in row["sources"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("8", "Chapter 08 has no long run: .* Chapters that have one: 07"),
        ("nothing", "CHAPTER must name a chapter: got 'nothing'"),
    ],
)
def test_make_train_without_a_long_run(long_runs, name, says):
    with pytest.raises(train.CannotTrain, match=says):
        train.run(name, folder=long_runs)


@pytest.mark.parametrize("missing", ["MINUTES = 0.1", "def main", '"""Train nothing, quickly."""'])
def test_a_long_run_says_what_it_is(long_runs, missing):
    (long_runs / "ch07.py").write_text(
        SCRIPT.replace(missing, {"def main": "def other"}.get(missing, ""))
    )
    with pytest.raises(train.CannotTrain, match=r"ch07\.py must have a docstring"):
        train.run("7", folder=long_runs)


def test_make_train_on_the_command_line(capsys):
    assert train.main([]) == 2
    assert train.main(["no such chapter"]) == 2
    assert "CHAPTER must name a chapter" in capsys.readouterr().err
