"""The training loop of every chapter, on one CPU thread, one GPU or several processes."""

import contextlib
import dataclasses
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object, send_to_device
from torch import Tensor, nn
from tqdm import tqdm

from mmlib.training import rng
from mmlib.training.accelerator import accelerator
from mmlib.training.batches import stream
from mmlib.training.checkpoint import load_state, save_state
from mmlib.training.config import History, TrainConfig
from mmlib.training.optimizer import adamw, learning_rate_at


def fit(
    model: nn.Module,
    loss_fn: Callable[..., Any],
    batches: Callable[..., Any] | Iterable,
    config: TrainConfig,
    *,
    evaluate: Callable[..., Any] | None = None,
    checkpoint: Path | str | None = None,
    resume: bool = False,
) -> History:
    r"""Train a model in place.

    The gradient of a step is that of the mean over **all** its valid items, over micro-batches
    and processes:

    .. math:: \nabla \frac{\sum_i S_i}{\sum_i N_i}
       \qquad\text{and not}\qquad \frac1A \sum_i \nabla \frac{S_i}{N_i},

    which weighs a token more when its batch has few. So ``loss_fn`` returns the sum and the count.

    Random numbers (dropout, shuffling) come from ``config.seed``; torch's global state is set for
    the run and put back after it. The model keeps its mode (train or eval), and moves to the
    device. A run that was stopped and resumed is, on the same machine, bit for bit the run that
    was not. In several processes (``accelerate launch``) each process gives its own batches.

    Args:
        model: The model.
        loss_fn: ``loss_fn(model, batch)`` gives ``(sum of losses, count of items)``, or one
            tensor: a mean, where all batches weigh the same.
        batches: A function of the batch's number, which is best for a run that is to be resumed
            (nothing is drawn twice), or something to iterate over again and again: a list, a
            ``DataLoader``. Batches move to the device if they have ``.to`` or are made of tensors.
        config: How to train.
        evaluate: ``evaluate(model)`` gives a score, or a dict whose first value is the score. It
            is called in eval mode without gradients, and its random numbers change no training.
        checkpoint: Where to keep the state of the run.
        resume: Whether to continue from ``checkpoint`` if the file is there.

    Returns:
        The history.

    Raises:
        ValueError: The model has nothing to train, ``batches`` ran out, ``patience`` or
            ``keep_best`` has no ``evaluate``, or the checkpoint is from another configuration.
        TypeError: ``loss_fn`` or ``evaluate`` returns something else than it should.
        FloatingPointError: The loss is NaN or infinite.

    >>> model = nn.Linear(1, 1)
    >>> x = torch.linspace(-1, 1, 8)[:, None]
    >>> def loss_fn(model, batch):
    ...     return (model(batch) - 3 * batch).square().sum(), len(batch)
    >>> history = fit(model, loss_fn, [x], TrainConfig(200, learning_rate=0.1, progress=False))
    >>> history.losses[-1] < 1e-3
    True
    """
    if evaluate is None and (config.patience is not None or config.keep_best):
        raise ValueError("evaluate must be given when patience or keep_best is set: got None")
    if checkpoint is None and (resume or config.checkpoint_every):
        raise ValueError("checkpoint must be a path when resume or checkpoint_every is set")
    path = None if checkpoint is None else Path(checkpoint)
    saved = load_state(path) if resume and path is not None and path.exists() else None
    modes = [(module, module.training) for module in model.modules()]
    precision = saved["history"]["precision"] if saved else config.precision
    own = accelerator(precision, config.device == "cpu", verbose=config.progress)
    with rng.preserved(), own as prepared:
        run = _Run(model, loss_fn, config, prepared)
        if saved is not None:
            run.restore(saved)
        try:
            run.train(batches, evaluate, path)
        finally:
            for module, training in modes:
                module.training = training
    return run.history


class _Objective(nn.Module):
    """Model and loss as one module.

    So mixed precision and the exchange of gradients see whatever part of the model the loss calls.
    """

    def __init__(self, model: nn.Module, loss_fn: Callable[..., Any]) -> None:
        super().__init__()
        self.model = model
        self.loss_fn = loss_fn

    def forward(self, batch: Any) -> tuple[Tensor, Tensor]:
        result = self.loss_fn(self.model, batch)
        total, count = result if isinstance(result, tuple) else (result, 1)
        if not isinstance(total, Tensor) or total.numel() != 1 or not total.requires_grad:
            raise TypeError(
                "loss_fn must return a tensor of one number that depends on the model, "
                f"or (sum, count): got {result!r}"
            )
        count = torch.as_tensor(count, dtype=torch.float32, device=total.device)
        return total.reshape(()), count.detach().reshape(())


class _Run:
    def __init__(
        self, model: nn.Module, loss_fn: Callable, config: TrainConfig, accelerator: Accelerator
    ) -> None:
        _seed(config.seed + accelerator.process_index)
        self.model, self.config, self.accelerator = model, config, accelerator
        self.objective = accelerator.prepare(_Objective(model, loss_fn))
        optimizer = adamw(model, config.learning_rate, config.weight_decay, config.betas)
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.optimizer = accelerator.prepare(optimizer)
        self.optimizer.zero_grad()  # nothing of what was done with the model before
        self.history = History(
            precision="bf16" if accelerator.mixed_precision == "bf16" else "fp32",
            device=accelerator.device.type,
        )
        self.best: dict[str, Tensor] | None = None
        self.step = 0
        self.pending: list[Tensor] = []
        # Reading a number from a GPU waits for it, so there it is done every few steps.
        self.read_every = 1 if accelerator.device.type == "cpu" else 20

    def train(self, batches: Any, evaluate: Callable | None, path: Path | None) -> None:
        config, history = self.config, self.history
        source = stream(
            batches,
            total=config.steps * config.accumulate,
            seed=config.seed,
            start=self.step * config.accumulate,
        )
        began, before = time.perf_counter(), history.seconds
        bar = tqdm(
            total=config.steps,
            initial=self.step,
            file=sys.stdout,
            mininterval=0.5,
            disable=not (config.progress and self.accelerator.is_main_process),
        )
        self.model.train()
        with bar:
            while self.step < config.steps and not history.stopped_early:
                self.update(source)
                bar.update()
                end = self.step == config.steps
                if end or self.step % self.read_every == 0:
                    self.read()
                    bar.set_postfix_str(f"loss {history.losses[-1]:.4f}", refresh=False)
                due = config.evaluate_every and self.step % config.evaluate_every == 0
                if evaluate is not None and (due or end):
                    self.evaluate(evaluate)
                history.seconds = before + time.perf_counter() - began
                due = config.checkpoint_every and self.step % config.checkpoint_every == 0
                if path is not None and (due or end or history.stopped_early):
                    self.read()
                    self.save(path)
        self.read()
        if config.keep_best and self.best is not None:
            self.model.load_state_dict(self.best)

    def update(self, source: Iterator) -> None:
        """One step of the optimiser."""
        config, accelerator = self.config, self.accelerator
        rate = learning_rate_at(
            self.step, config.steps, config.learning_rate, config.warmup, config.final
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        sums = torch.zeros(2, device=accelerator.device)
        for micro in range(config.accumulate):
            batch = send_to_device(next(source), accelerator.device)
            last = micro == config.accumulate - 1
            # Processes exchange gradients once a step, after its last batch.
            with contextlib.nullcontext() if last else accelerator.no_sync(self.objective):
                total, count = self.objective(batch)
                accelerator.backward(total)
            sums += torch.stack([total.detach(), count])
        sums = accelerator.reduce(sums, "sum")
        # The gradients are of sums, and averaged over processes. One factor makes them those of
        # the mean over all items, and clips them. No valid item at all gives zero, not NaN.
        count = torch.where(sums[1] > 0, sums[1], 1.0)
        factor = accelerator.num_processes / count
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients) * factor
        if config.clip is not None:
            factor = factor * (config.clip / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, factor)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.pending.append(torch.stack([sums[0] / count, norm]))
        self.history.learning_rates.append(rate)
        self.step += 1

    def read(self) -> None:
        """Take the losses over from the device, and stop if one is not a number."""
        for loss, norm in torch.stack(self.pending).tolist() if self.pending else []:
            self.history.losses.append(loss)
            self.history.gradient_norms.append(norm)
            if not math.isfinite(loss):
                step = len(self.history.losses)
                raise FloatingPointError(
                    f"the loss is {loss} at step {step}: lower learning_rate, clip the gradient, "
                    "or look for a division by zero or a logarithm of zero in loss_fn"
                )
        self.pending.clear()

    def evaluate(self, function: Callable) -> None:
        self.model.eval()
        with rng.preserved(), torch.no_grad(), self.accelerator.autocast():
            result = function(self.model)
        self.model.train()
        result = dict(result) if isinstance(result, Mapping) else {"score": result}
        if self.accelerator.num_processes > 1:  # all must come to the same decision
            result = broadcast_object_list([result])[0]
        try:
            result = {key: float(value) for key, value in result.items()}
            score = next(iter(result.values()))
        except (TypeError, ValueError, StopIteration):
            raise TypeError(f"evaluate must return a number or a dict: got {result!r}") from None
        if not math.isfinite(score):
            raise FloatingPointError(f"evaluate's score is {score} after step {self.step}")
        history = self.history
        history.evaluations.append({"step": self.step, "score": score} | result)
        sign = 1 if self.config.maximize else -1
        if history.best_score is None or sign * score > sign * history.best_score:
            history.best_step, history.best_score = self.step, score
            if self.config.keep_best:
                state = self.model.state_dict()
                self.best = {k: v.detach().cpu().clone() for k, v in state.items()}
        scores = [sign * evaluation["score"] for evaluation in history.evaluations]
        since = len(scores) - 1 - scores.index(max(scores))
        history.stopped_early = (
            self.config.patience is not None
            and since >= self.config.patience
            and self.step < self.config.steps
        )

    def save(self, path: Path) -> None:
        states = [rng.get_state()]
        if self.accelerator.num_processes > 1:
            states = gather_object(states)
        if self.accelerator.is_main_process:
            state = {
                "step": self.step,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "rng": states,
                "best": self.best,
                "history": dataclasses.asdict(self.history),
                "config": self.config.comparable(),
            }
            save_state(state, path)
        self.accelerator.wait_for_everyone()

    def restore(self, saved: dict[str, Any]) -> None:
        now = self.config.comparable()
        changed = [key for key in now if now[key] != saved["config"].get(key)]
        if changed:
            what = ", ".join(f"{k} was {saved['config'].get(k)!r}, is {now[k]!r}" for k in changed)
            raise ValueError(f"checkpoint is from another configuration: {what}")
        if len(saved["rng"]) != self.accelerator.num_processes:
            raise ValueError(
                f"checkpoint is of {len(saved['rng'])} processes: "
                f"got {self.accelerator.num_processes}"
            )
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.history = History(**saved["history"])
        self.best, self.step = saved["best"], saved["step"]
        rng.set_state(saved["rng"][self.accelerator.process_index])


def _seed(seed: int) -> None:
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)
