"""Costs worked out on fake tensors are those of the real step, and of the formulas."""

import pytest
import torch
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from mmlib.block import TransformerConfig
from mmlib.data.batch import Batch
from mmlib.training.optimizer import adamw
from mmlib.training.step_cost import step_cost
from mmlib.transformer import Encoder

CONFIG = TransformerConfig(dim=64, heads=4, layers=3, mlp_dim=256)


def make_model():
    return Encoder(CONFIG)


def make_batch():
    return torch.zeros(4, 32, 64)


def loss_fn(model, batch):
    return model(batch)[0].float().square().mean()


def measured(bf16):
    """What the profiler sees allocated and freed in a real step: bytes alive at the peak."""
    model, batch = make_model(), make_batch()
    optimizer = adamw(model, 1e-3, 0.0)

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = loss_fn(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    alive = peak = 0
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        assert event.device_type() == DeviceType.CPU
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


@pytest.mark.parametrize("bf16", [False, True])
def test_the_peak_is_the_profilers(bf16):
    cost = step_cost(make_model, make_batch, loss_fn, bf16=bf16)
    # The profiler also sees the kernels' own buffers (of attention, for a moment).
    assert cost.working == pytest.approx(measured(bf16), rel=0.05)


def test_bf16_keeps_less():
    wide, narrow = (step_cost(make_model, make_batch, loss_fn, bf16=b) for b in (False, True))
    assert narrow.working < wide.working
    assert narrow.flops == wide.flops


def test_weights_and_optimizer():
    cost = step_cost(make_model, make_batch, loss_fn)
    model = make_model()
    count = sum(p.numel() for p in model.parameters())
    assert cost.parameters == count
    assert cost.weights == 4 * count + sum(b.nbytes for b in model.buffers())
    # Two numbers a parameter, and a step counter for each tensor.
    assert cost.optimizer == 8 * count + 4 * len(list(model.parameters()))
    assert cost.batch == 4 * 32 * 64 * 4


def test_frozen_weights_have_no_state():
    def make():
        model = make_model()
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.ndim == 1)
        return model

    cost = step_cost(make, make_batch, loss_fn)
    trained = [p for p in make().parameters() if p.requires_grad]
    assert cost.parameters == sum(p.numel() for p in make_model().parameters())
    assert cost.optimizer == sum(8 * p.numel() + 4 for p in trained)


def test_operations_by_hand():
    cost = step_cost(make_model, make_batch, loss_fn)
    tokens, dim, length = 4 * 32, 64, 32
    matrices = 3 * (4 * dim * dim + 2 * dim * 256)
    attention = 3 * 2 * 2 * 4 * length * length * dim
    # torch's attention works its weights out again in the backward pass: 5 products for 2.
    assert cost.flops == 3 * 2 * tokens * matrices + attention * (1 + 5 / 2)


def test_a_model_larger_than_the_machine():
    large = TransformerConfig(dim=16384, heads=128, layers=2, mlp_dim=65536, max_length=32)
    cost = step_cost(lambda: Encoder(large), lambda: torch.zeros(1, 32, 16384), loss_fn, bf16=True)
    assert cost.parameters > 6e9
    assert cost.peak > 16 * cost.parameters  # weights, gradients, AdamW's two


def test_nothing_of_torch_changes():
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    step_cost(make_model, make_batch, loss_fn)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert type(torch.zeros(2)) is torch.Tensor


def test_sums_and_batches():
    """A loss may be a sum with its count, and a batch one of mmlib's."""
    cost = step_cost(
        lambda: nn.Linear(3, 2),
        lambda: Batch(targets=torch.zeros(5, 3)),
        lambda model, batch: (model(batch.targets).square().sum(), 5),
    )
    assert cost.batch >= 60  # and what tells which of them exist
    assert cost.working >= 4 * 5 * 2


def test_what_was_made_before_is_named():
    model, batch = make_model(), make_batch()
    with pytest.raises(ValueError, match="make_model must make its tensors itself"):
        step_cost(lambda: model, make_batch, loss_fn)
    with pytest.raises(ValueError, match="make_batch must make its tensors itself"):
        step_cost(make_model, lambda: batch, loss_fn)


def test_a_loss_that_looks_at_numbers_is_named():
    def looks(model, batch):
        loss = loss_fn(model, batch)
        return loss if loss.item() > 0 else 2 * loss

    with pytest.raises(ValueError, match="must not look at the numbers of a tensor"):
        step_cost(make_model, make_batch, looks)
