"""Long runs that survive: killed and continued, they end with the weights they would have had."""

import contextlib
import dataclasses
import math
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm import tqdm

from mmlib.training import rng
from mmlib.training.accelerator import accelerator
from mmlib.training.batches import stream
from mmlib.training.config import History, TrainConfig
from mmlib.training.loop import _Run
from mmlib.training.run_folder import RunFolder, versions

# From a batch to the one that stands in for it: a prime beyond the batches of most runs.
_FAR = 1_000_003


def fit_durably(
    model: nn.Module,
    loss_fn: Callable[..., Any],
    batches: Callable[[int], Any],
    config: TrainConfig,
    folder: Path | str,
    *,
    evaluate: Callable[..., Any] | None = None,
    sample: Callable[[nn.Module, Path], None] | None = None,
    keep: int = 3,
    skip: int = 0,
    divided: bool = False,
    shard: bool = False,
) -> History:
    """Train as :func:`~mmlib.training.fit` does, in a folder from which the run can be continued.

    Called again with the same folder, after whatever ended the run before, it goes on from the
    newest whole checkpoint. On the same machine, and in as many processes, the weights at the end
    are bit for bit those of a run that nothing stopped. SIGTERM, which clusters send before they
    take a machine away, lets the step end, saves, and ends the program with status 0.

    Batches are numbered over all processes: process r of P takes batches r, r + P, r + 2P, ... So
    a run begun in two processes may go on in one that accumulates twice as many batches a step;
    its sums come in another order, so that its weights agree to rounding, and dropout's random
    numbers differ.

    With ``divided`` all processes take the batch of one number, and each its part of it. A loss
    that is a mean over equal parts then has the gradient of the whole batch, and a run may go on
    in any number of processes.

    With ``shard`` each process holds 1/P of the weights, gradients and running means, as
    :class:`~mmlib.training.sharded.ShardedModel` says; one process alone trains as without. Each
    batch's gradients are added up over the processes at once, not after ``accumulate`` of them.
    Checkpoints hold everything whole, so that a run may go on without ``shard``, and the other way
    round. ``evaluate`` and ``sample`` are called in the main process alone, which holds the whole
    model that long. When an error or SIGTERM ends the run, the model is left without weights.

    Args:
        model: The model; at the end it has the last weights, or with ``keep_best`` the best.
        loss_fn: As for :func:`~mmlib.training.fit`.
        batches: A function of the batch's number.
        config: How to train; ``checkpoint_every`` must be positive.
        folder: See :mod:`mmlib.training.run_folder`.
        evaluate: As for :func:`~mmlib.training.fit`.
        sample: ``sample(model, path)`` writes what the model makes into the folder ``path``; it is
            called after each evaluation.
        keep: How many of the last checkpoints stay.
        skip: How many steps in a row may have a loss or gradient that is not a number. Such a step
            changes nothing but the count of ``"skipped"`` in the metrics.
        divided: Whether ``batches`` gives each process its part of a batch.
        shard: Whether to divide the model among the processes.

    Returns:
        The history.

    Raises:
        ValueError: As :func:`~mmlib.training.fit`; the folder's run had another configuration; or
            ``shard`` is set, in several processes, for a model with a weight that has no axis.
        FloatingPointError: More than ``skip`` steps in a row were not numbers.
        OSError: A checkpoint could not be written. Those before it are kept.
        SystemExit: SIGTERM came; the state is saved.
    """
    if config.checkpoint_every < 1:
        raise ValueError(f"checkpoint_every must be at least 1: got {config.checkpoint_every}")
    if not callable(batches):
        raise TypeError(f"batches must be a function of a number: got {type(batches).__name__}")
    if skip < 0:
        raise ValueError(f"skip must be at least 0: got {skip}")
    if evaluate is None and (config.patience is not None or config.keep_best):
        raise ValueError("evaluate must be given when patience or keep_best is set: got None")
    place = RunFolder(folder, keep)
    saved = place.newest()
    modes = [(module, module.training) for module in model.modules()]
    precision = saved["history"]["precision"] if saved else config.precision
    # accelerate takes processes on a machine without a GPU for one, unless told that it has none.
    cpu = config.device == "cpu" or not torch.accelerator.is_available()
    own = accelerator(precision, cpu, verbose=config.progress)
    with rng.preserved(), own as prepared, _terminated() as stop:
        kind = _DurableRun
        if shard and prepared.num_processes > 1:
            from mmlib.training.sharded_run import _ShardedRun as kind  # it takes seconds to load
        run = kind(model, loss_fn, config, prepared)
        run.guard(place, sample, skip, stop, divided)
        if saved is not None:
            run.restore(saved)
        if run.main:
            place.forget_after(run.step)
        try:
            run.train(batches, evaluate, place.path)
        finally:
            for module, training in modes:
                module.training = training
    return run.history


def replace_unreadable(
    batches: Callable[[int], Any],
    errors: type[Exception] | tuple[type[Exception], ...] = OSError,
    tries: int = 5,
) -> Callable[[int], Any]:
    """Let a far later batch stand in for one that cannot be read; each time with a warning.

    Which one depends on the number alone, so that a run that goes on finds the same again.

    Args:
        batches: A function of the batch's number.
        errors: What it raises for one that cannot be read.
        tries: How many batches to try for a number. When none can be read, the last error stands:
            then it is not a bad sample, but a lost disk.

    >>> def read(number):
    ...     if number == 2:
    ...         raise OSError("broken.png is no picture")
    ...     return number
    >>> import warnings
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     [replace_unreadable(read)(number) for number in (1, 2, 3)]
    [1, 1000005, 3]
    >>> str(caught[0].message)
    'batch 2 cannot be read (broken.png is no picture): batch 1000005 stands in for it'
    """
    if tries < 1:
        raise ValueError(f"tries must be at least 1: got {tries}")

    def read(number: int) -> Any:
        for trial in range(tries):
            try:
                return batches(number + trial * _FAR)
            except errors as error:
                if trial + 1 == tries:
                    raise
                warnings.warn(
                    f"batch {number + trial * _FAR} cannot be read ({error}): "
                    f"batch {number + (trial + 1) * _FAR} stands in for it",
                    stacklevel=2,
                )
        raise AssertionError

    return read


class _DurableRun(_Run):
    def guard(
        self,
        folder: RunFolder,
        sample: Callable | None,
        skip: int,
        stop: threading.Event,
        divided: bool,
    ) -> None:
        self.folder, self.sample, self.skip, self.stop = folder, sample, skip, stop
        self.divided = divided
        self.optimizer = _SkipsNonFinite(self.optimizer, self.parameters)
        self.skipped = 0  # in a row
        self.lines: list[dict[str, Any]] = []
        self.main = self.accelerator.is_main_process
        if self.main:
            folder.describe(dataclasses.asdict(self.config))

    def train(self, batches: Any, evaluate: Callable | None, path: Path | None) -> None:
        config, history = self.config, self.history
        ranks, rank = self.accelerator.num_processes, self.accelerator.process_index
        own = batches if self.divided else lambda number: batches(number * ranks + rank)
        source = stream(
            own,
            total=config.steps * config.accumulate,
            seed=config.seed,
            start=self.step * config.accumulate,
        )
        began, before = time.perf_counter(), history.seconds
        show = config.progress and self.main
        bar = tqdm(total=config.steps, initial=self.step, file=sys.stdout, disable=not show)
        self.model.train()
        with bar:
            while self.step < config.steps and not history.stopped_early:
                self.update(source)
                bar.update()
                end, stop = self.step == config.steps, self.told_to_stop()
                due = config.evaluate_every and self.step % config.evaluate_every == 0
                if evaluate is not None and (due or end):
                    self.read()
                    self.evaluate(evaluate)
                    self.after_evaluation()
                history.seconds = before + time.perf_counter() - began
                due = self.step % config.checkpoint_every == 0
                if due or end or stop or history.stopped_early:
                    self.read()
                    self.put(self.folder.save)
                elif self.step % self.read_every == 0:
                    self.read()
                if stop and not end:
                    raise SystemExit(0)
        self.finish()

    def finish(self) -> None:
        """Leave the model with the weights that are wanted."""
        if self.config.keep_best and self.best is not None:
            self.model.load_state_dict(self.best)

    def read(self) -> None:
        """Take the losses over from the device, and stop if too many are not numbers."""
        history, lines = self.history, []
        for loss, norm in torch.stack(self.pending).tolist() if self.pending else []:
            history.losses.append(loss)
            history.gradient_norms.append(norm)
            step = len(history.losses)
            line = {"step": step, "learning_rate": history.learning_rates[step - 1]}
            if math.isfinite(loss) and math.isfinite(norm):
                self.skipped = 0
                lines.append(line | {"loss": loss, "gradient_norm": norm})
                continue
            self.skipped += 1
            lines.append(line | {"skipped": self.skipped})
            if self.skipped > self.skip:
                raise FloatingPointError(
                    f"the loss is {loss} and the norm of its gradient {norm} at step {step}, "
                    f"{self.skipped} in a row (skip={self.skip}): look at the batch, lower "
                    "learning_rate, or look for a division by zero in loss_fn"
                )
        self.pending.clear()
        if self.main and lines:
            self.folder.log(lines)

    def after_evaluation(self) -> None:
        if self.main:
            self.folder.log([self.history.evaluations[-1]])
        if self.history.best_step == self.step:
            self.put(self.folder.save_best)
        if self.sample is not None and self.main:
            self.model.eval()
            path = self.folder.path / "samples" / f"{self.step:08}"
            path.mkdir(exist_ok=True)
            with rng.preserved(), torch.no_grad():
                self.sample(self.model, path)
            self.model.train()
        self.accelerator.wait_for_everyone()

    def told_to_stop(self) -> bool:
        """Whether any process was told to; they must all stop after the same step."""
        if self.accelerator.num_processes == 1:
            return self.stop.is_set()
        flag = torch.tensor(float(self.stop.is_set()), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum") > 0)

    def put(self, write: Callable[[dict[str, Any], int], None]) -> None:
        states = [rng.get_state()]
        if self.accelerator.num_processes > 1:
            states = gather_object(states)
        model, optimizer = self.learned()
        if self.main:
            state = {
                "step": self.step,
                "model": model,
                "optimizer": optimizer,
                "rng": states,
                "best": self.best,
                "history": dataclasses.asdict(self.history),
                "skipped": self.skipped,
                "config": self.config.comparable(),
                "versions": versions(),
            }
            write(state, self.step)
        self.accelerator.wait_for_everyone()

    def learned(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Whole states of model and optimiser; all processes call, the main one gets them."""
        return self.model.state_dict(), self.optimizer.state_dict()

    def learn_on(self, model: dict[str, Any], optimizer: dict[str, Any]) -> None:
        """Take over the whole states that a run has saved."""
        self.model.load_state_dict(model)
        self.optimizer.load_state_dict(optimizer)

    def restore(self, saved: dict[str, Any]) -> None:
        processes, were = self.accelerator.num_processes, len(saved["rng"])
        now, then = self.config.comparable(), dict(saved["config"])
        if not self.divided:
            now["accumulate"] *= processes
            then["accumulate"] *= were
        changed = [f"{k} was {then.get(k)!r}, is {now[k]!r}" for k in now if now[k] != then.get(k)]
        if changed:
            raise ValueError(
                f"folder {self.folder.path} is of another run: {', '.join(changed)} "
                "(accumulate counts all processes)"
            )
        self.learn_on(saved["model"], saved["optimizer"])
        self.history = History(**saved["history"])
        self.best, self.step, self.skipped = saved["best"], saved["step"], saved["skipped"]
        if self.accelerator.process_index < were:
            rng.set_state(saved["rng"][self.accelerator.process_index])


class _SkipsNonFinite:
    """An optimiser that leaves everything as it is when a gradient is not a number."""

    def __init__(self, optimizer: Any, parameters: list[Tensor]) -> None:
        self._optimizer, self._parameters = optimizer, parameters

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)

    def step(self) -> None:
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        # The gradients are those of all processes by now, so that all decide alike.
        if _total_norm(gradients).isfinite():
            self._optimizer.step()


def _total_norm(gradients: list[Tensor]) -> Tensor:
    """The norm of all gradients together, of divided ones over all processes."""
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


@contextlib.contextmanager
def _terminated() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, instead of ending the program."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # only the main thread may take signals
        return
    before = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)
