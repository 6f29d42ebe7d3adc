"""The training loop beside the same loop written by hand: what convenience costs."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmlib.training import TrainConfig, fit
from mmlib.training.optimizer import adamw, learning_rate_at

AREA = "The training loop"

STEPS = 40


def make_model():
    layer = nn.TransformerEncoderLayer(128, 4, 256, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def loss_fn(model, batch):
    return F.mse_loss(model(batch), batch, reduction="sum"), batch.numel()


@pytest.mark.parametrize("batch", [4, 16])
def test_overhead_of_fit(side_by_side, batch):
    x = torch.randn(batch, 32, 128)
    ours, theirs = make_model(), make_model()
    config = TrainConfig(STEPS, warmup=5, progress=False)

    def by_hand():
        optimizer = adamw(theirs, config.learning_rate, config.weight_decay, config.betas)
        theirs.train()
        losses = []
        for step in range(STEPS):
            rate = learning_rate_at(step, STEPS, config.learning_rate, config.warmup)
            for group in optimizer.param_groups:
                group["lr"] = rate
            total, count = loss_fn(theirs, x)
            loss = total / count
            loss.backward()
            nn.utils.clip_grad_norm_(theirs.parameters(), config.clip)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())

    contestants = {
        "mmlib.training.fit": lambda: fit(ours, loss_fn, [x], config),
        "by hand": by_hand,
    }
    table = side_by_side(
        f"{STEPS} steps of a 2-layer Transformer, batch {batch}×32×128", contestants, 20
    )
    step = table.seconds("by hand") / STEPS
    if step > 0.009:  # the bar is for steps of 10 ms and more
        table.at_most("mmlib.training.fit", "by hand", 1.05)
    # The overhead itself, whatever the model.
    extra = table.seconds("mmlib.training.fit") - table.seconds("by hand")
    table.goal(
        f"{STEPS} steps take at most 0.5 ms more a step, and 50 ms",
        1e3 * extra,
        at_most=STEPS / 2 + 50,
        unit="ms",
    )
