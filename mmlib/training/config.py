"""What a run is told, and what it tells afterwards."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

# What may change between a run and its continuation.
_FREE = ("progress", "checkpoint_every", "device")


@dataclass(frozen=True)
class TrainConfig:
    """How to train. Steps are optimiser steps.

    Attributes:
        steps: How many.
        learning_rate: The peak; see :func:`~mmlib.training.optimizer.learning_rate_at`.
        warmup: Steps until the peak.
        final: The share of the peak at the end of the cosine.
        weight_decay: Of matrices only; see :func:`~mmlib.training.optimizer.decay_groups`.
        betas: Of AdamW.
        clip: The largest norm of the gradient, or ``None``.
        accumulate: Batches a step; the gradient is that of one batch that holds them all.
        precision: ``"fp32"``, ``"bf16"`` (mixed) or ``"auto"``: the faster one here.
        device: ``"cpu"`` to leave a GPU unused; by default what accelerate finds.
        seed: Of dropout and of data loaders that draw from torch's global generator.
        evaluate_every: Steps between evaluations; 0: only at the end.
        patience: Stop after this many evaluations without a better score, or ``None``.
        maximize: Whether a higher score is better.
        keep_best: Whether the model ends with the weights of its best evaluation.
        checkpoint_every: Steps between checkpoints; 0: only at the end.
        progress: Whether to show a progress bar.
    """

    steps: int
    learning_rate: float = 1e-3
    warmup: int = 0
    final: float = 0.0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float | None = 1.0
    accumulate: int = 1
    precision: str = "fp32"
    device: str | None = None
    seed: int = 0
    evaluate_every: int = 0
    patience: int | None = None
    maximize: bool = True
    keep_best: bool = False
    checkpoint_every: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        def check(name: str, good: bool, wanted: str) -> None:
            if not good:
                raise ValueError(f"{name} must be {wanted}: got {getattr(self, name)!r}")

        check("steps", self.steps >= 1, "at least 1")
        check("learning_rate", 0 < self.learning_rate < math.inf, "positive")
        check("warmup", 0 <= self.warmup <= self.steps, f"from 0 to steps={self.steps}")
        check("final", 0 <= self.final <= 1, "from 0 to 1")
        check("weight_decay", self.weight_decay >= 0, "at least 0")
        check("betas", all(0 <= b < 1 for b in self.betas), "two numbers from 0 to below 1")
        check("clip", self.clip is None or self.clip > 0, "positive or None")
        check("accumulate", self.accumulate >= 1, "at least 1")
        check("precision", self.precision in ("fp32", "bf16", "auto"), "fp32, bf16 or auto")
        check("device", self.device in (None, "cpu"), "'cpu' or None")
        check("evaluate_every", self.evaluate_every >= 0, "at least 0")
        check("patience", self.patience is None or self.patience >= 1, "at least 1 or None")
        check("checkpoint_every", self.checkpoint_every >= 0, "at least 0")

    def comparable(self) -> dict[str, Any]:
        """What a checkpoint must agree on: all but what may change between two parts of a run."""
        values = dataclasses.asdict(self) | {"betas": list(self.betas)}
        return {key: value for key, value in values.items() if key not in _FREE}


@dataclass
class History:
    """What happened in a run.

    Attributes:
        losses: The loss of each step: the mean over all its items.
        learning_rates: The learning rate of each step.
        gradient_norms: The norm of each step's gradient, before clipping.
        evaluations: ``{"step": …, "score": …}`` and whatever else ``evaluate`` returned.
        best_step: The step after which the best score was measured, or ``None``.
        best_score: That score, or ``None``.
        stopped_early: Whether ``patience`` ended the run.
        seconds: The time it took, over all its continuations.
        precision: ``"fp32"`` or ``"bf16"``.
        device: The kind of device: ``"cpu"``, ``"cuda"``, ...
    """

    losses: list[float] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    best_step: int | None = None
    best_score: float | None = None
    stopped_early: bool = False
    seconds: float = 0.0
    precision: str = "fp32"
    device: str = "cpu"

    @property
    def steps(self) -> int:
        """How many steps were made."""
        return len(self.losses)
