"""A long run of a model that is divided among the processes: ``fit_durably(..., shard=True)``."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn

from mmlib.training.config import History, TrainConfig
from mmlib.training.durable import _DurableRun, _total_norm
from mmlib.training.loop import _Objective, _seed
from mmlib.training.optimizer import adamw, learning_rate_at
from mmlib.training.sharded import ShardedModel, divided_state, whole_state


class _OwnObjective(_Objective):
    def forward(self, batch: Any) -> tuple[Tensor, Tensor]:
        total, count = super().forward(batch)
        return total.clone(), count  # FSDP warns of a view, which could be written to


class _ShardedRun(_DurableRun):
    """A copy of the model, divided, learns; the model itself is whole in the main process at times.

    So evaluations and samples need no other process, however often they call the model.
    """

    def __init__(
        self, model: nn.Module, loss_fn: Callable, config: TrainConfig, accelerator: Accelerator
    ) -> None:
        _seed(config.seed + accelerator.process_index)
        bf16 = accelerator.mixed_precision == "bf16"
        self.model, self.config, self.accelerator = model, config, accelerator
        self.shards = ShardedModel(model, accelerator.device, bf16)
        self.shards.copy.train()
        self.objective = self.shards.root(_OwnObjective(self.shards.copy, loss_fn))
        optimizer = adamw(self.shards.copy, config.learning_rate, config.weight_decay, config.betas)
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.optimizer = accelerator.prepare(optimizer)
        self.history = History(precision="bf16" if bf16 else "fp32", device=accelerator.device.type)
        self.best: dict[str, Tensor] | None = None
        self.step = 0
        self.pending: list[Tensor] = []
        self.read_every = 1 if accelerator.device.type == "cpu" else 20

    def update(self, source: Iterator) -> None:
        """One step, as the loop's; each gradient here is the process's part of it."""
        config, accelerator = self.config, self.accelerator
        rate = learning_rate_at(
            self.step, config.steps, config.learning_rate, config.warmup, config.final
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        sums = torch.zeros(2, device=accelerator.device)
        for _ in range(config.accumulate):
            batch = send_to_device(next(source), accelerator.device)
            with accelerator.autocast():
                total, count = self.objective(batch)
            total.backward()
            sums += torch.stack([total.detach(), count])
        sums = accelerator.reduce(sums, "sum")
        count = torch.where(sums[1] > 0, sums[1], 1.0)
        factor = accelerator.num_processes / count
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = _total_norm(gradients) * factor
        if config.clip is not None:
            factor = factor * (config.clip / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_([gradient.to_local() for gradient in gradients], factor)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.pending.append(torch.stack([sums[0] / count, norm]))
        self.history.learning_rates.append(rate)
        self.step += 1

    def evaluate(self, function: Callable) -> None:
        with self.shards.whole():
            super().evaluate(lambda model: function(model) if self.main else {})

    def after_evaluation(self) -> None:
        with contextlib.nullcontext() if self.sample is None else self.shards.whole():
            super().after_evaluation()

    def finish(self) -> None:
        self.shards.finish(self.best if self.config.keep_best else None)

    def learned(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.shards.state(), whole_state(self.optimizer.state_dict())

    def learn_on(self, model: dict[str, Any], optimizer: dict[str, Any]) -> None:
        self.shards.load(model)
        self.optimizer.load_state_dict(divided_state(optimizer, self.parameters))
