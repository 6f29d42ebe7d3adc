"""The folder of a long run: checkpoints that survive anything, metrics, and what the run was.

::

    RUN/README.md                what is what
    RUN/run.json                 configuration, versions, command
    RUN/metrics.jsonl            a line for each step that was read, and for each evaluation
    RUN/checkpoints/00000200.pt  weights, optimiser, random states: all that continuing needs
    RUN/checkpoints/00000200.json    its step and its SHA-256, written last
    RUN/best/                    likewise, of the best evaluation
    RUN/samples/                 what the model made as it went
"""

import json
import platform
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

import mmlib
from mmlib.training.checkpoint import _sha256, _written, load_state, save_state

README = """# A training run

Started by `{command}`.

- `run.json`: the configuration, the versions, and when the run began.
- `metrics.jsonl`: one line a step (loss, learning rate, norm of the gradient) or evaluation.
- `checkpoints/`: the last states, each with its step and SHA-256. Start the same command again
  and the run goes on from the newest one that is whole.
- `best/`: the state of the best evaluation so far.
- `samples/`: what the model made as it went.
"""


class RunFolder:
    """Files of one run.

    Args:
        path: The folder; it is made if it is not there.
        keep: How many of the last checkpoints stay.

    Raises:
        ValueError: ``keep`` is below 1.
        NotADirectoryError: ``path`` is a file.
    """

    def __init__(self, path: Path | str, keep: int = 3) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1: got {keep}")
        self.path, self.keep = Path(path), keep
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(f"path must be a folder: got the file {self.path}")
        for name in ("checkpoints", "best", "samples"):
            (self.path / name).mkdir(parents=True, exist_ok=True)

    def describe(self, config: Mapping[str, Any]) -> None:
        """Write what the run is, once; a run that goes on leaves it as it was."""
        if (self.path / "run.json").exists():
            return
        command = " ".join([Path(sys.executable).name, *sys.argv])
        about = {
            "command": command,
            "config": dict(config),
            "versions": versions(),
            "began": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        }
        _write(self.path / "README.md", README.format(command=command))
        _write(self.path / "run.json", json.dumps(about, indent=2, default=str) + "\n")

    def save(self, state: Mapping[str, Any], step: int) -> None:
        """Write a checkpoint, then remove the oldest ones beyond ``keep``.

        Raises:
            OSError: It could not be written, for a full disk say; every older one is still there.
        """
        self._put("checkpoints", state, step, self.keep)

    def save_best(self, state: Mapping[str, Any], step: int) -> None:
        """Write the state of the best evaluation, then remove the one before.

        Raises:
            OSError: It could not be written; the one before is still there.
        """
        self._put("best", state, step, keep=1)

    def newest(self) -> dict[str, Any] | None:
        """The state of the newest checkpoint that is whole, or ``None`` where there is none.

        Those that are damaged, or are something else, are named in a warning and passed over.
        """
        return self._get("checkpoints")

    def best(self) -> dict[str, Any] | None:
        """The state of the best evaluation, or ``None``."""
        return self._get("best")

    def log(self, lines: list[dict[str, Any]]) -> None:
        """Append to ``metrics.jsonl``."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``; half a line at the end, of a run that died, is none."""
        return list(self._lines())

    def forget_after(self, step: int) -> None:
        """Drop the metrics of later steps: those that a run made after its last checkpoint."""
        kept = [line for line in self._lines() if line["step"] <= step]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        _write(self.path / "metrics.jsonl", text)

    def _lines(self) -> Iterator[dict[str, Any]]:
        path = self.path / "metrics.jsonl"
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                return

    def _put(self, folder: str, state: Mapping[str, Any], step: int, keep: int) -> None:
        path = self.path / folder / f"{step:08}.pt"
        try:
            save_state(state, path)
            # The card comes last, and makes a file a checkpoint.
            _write(path.with_suffix(".json"), json.dumps({"step": step, "sha256": _sha256(path)}))
        except (OSError, RuntimeError) as error:  # torch's writer raises the second
            raise OSError(
                f"could not save step {step} in {path.parent} ({error}); the checkpoints before it "
                "are whole, and the run can be continued from them once there is room"
            ) from error
        for old in sorted(path.parent.glob("*.json"))[:-keep]:
            old.unlink()
            old.with_suffix(".pt").unlink(missing_ok=True)

    def _get(self, folder: str) -> dict[str, Any] | None:
        for card in sorted((self.path / folder).glob("*.json"), reverse=True):
            path = card.with_suffix(".pt")
            try:
                return _read(path, card)
            except Exception as error:  # whatever a damaged file makes of its reader
                warnings.warn(
                    f"{path} is no whole checkpoint ({error}); the one before it is used",
                    stacklevel=3,
                )
        return None


def _read(path: Path, card: Path) -> dict[str, Any]:
    if _sha256(path) != json.loads(card.read_text(encoding="utf-8"))["sha256"]:
        raise ValueError("its SHA-256 is not the one on its card")
    state = load_state(path)
    missing = {"step", "model", "optimizer", "rng", "history", "config"} - state.keys()
    if missing:
        raise ValueError(f"it has no {', '.join(sorted(missing))}")
    return state


def versions() -> dict[str, str]:
    """Of Python, torch and mmlib."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # a class of its own, which a safe file may not hold
        "mmlib": mmlib.__version__,
    }


def _write(path: Path, text: str) -> None:
    with _written(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
