"""TensorBoard's files of a run, written as it goes: ``tensorboard --logdir RUN``.

What a run measures stands in ``metrics.jsonl`` of each stage, which survives whatever ends the run
(:mod:`mmlib.training.run_folder`). TensorBoard's files are made of it, one folder a stage, and made
anew when the run goes on: so no step is there twice. Pictures and captions that the system makes as
training goes are there, too. Nothing is written where TensorBoard is not installed.
"""

import importlib.util
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmlib.training.run_folder import RunFolder

__all__ = ["Board", "board"]


class Board:
    """Writes what a run has measured since the last time.

    Args:
        run: The folder of the run. What is in its folder ``tensorboard`` is removed.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self.writers: dict[str, Any] = {}
        self.lines: dict[str, int] = {}  # of each stage, how many were written
        self.samples: set[Path] = set()
        shutil.rmtree(run / "tensorboard", ignore_errors=True)

    def update(self) -> None:
        """Write what is new."""
        for path in sorted(self.run.glob("*/metrics.jsonl")):
            stage = path.parent.name
            lines = RunFolder(path.parent).metrics()
            if len(lines) < self.lines.get(stage, 0):  # steps that are done again
                self._forget(stage)
            writer = self._writer(stage)
            for line in lines[self.lines.get(stage, 0) :]:
                for name, value in line.items():
                    if name != "step":
                        writer.add_scalar(name, value, line["step"])
            self.lines[stage] = len(lines)
            for folder in sorted((path.parent / "samples").iterdir()):
                self._add_samples(writer, folder)
            writer.flush()

    def close(self) -> None:
        """Write what is new, and close the files."""
        self.update()
        for writer in self.writers.values():
            writer.close()

    def _writer(self, stage: str) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        if stage not in self.writers:
            self.writers[stage] = SummaryWriter(str(self.run / "tensorboard" / stage))
        return self.writers[stage]

    def _forget(self, stage: str) -> None:
        self.writers.pop(stage).close()
        shutil.rmtree(self.run / "tensorboard" / stage)
        self.lines[stage] = 0
        self.samples = {path for path in self.samples if path.parents[2].name != stage}

    def _add_samples(self, writer: Any, folder: Path) -> None:
        for path in sorted(folder.iterdir()):
            if path in self.samples:
                continue
            try:
                if path.suffix == ".png":
                    pixels = np.asarray(Image.open(path).convert("RGB"))
                    writer.add_image(path.stem, pixels, int(folder.name), dataformats="HWC")
                else:
                    text = path.read_text(encoding="utf-8")
                    writer.add_text(path.stem, text, int(folder.name))
            except OSError:  # it is being written: next time
                continue
            self.samples.add(path)


@contextmanager
def board(run: Path, seconds: float | int = 10.0) -> Iterator[None]:
    """Write TensorBoard's files as long as the context lasts, in a thread of the main process.

    Args:
        run: The folder of the run.
        seconds: Between two looks at what is new.
    """
    if os.environ.get("RANK", "0") != "0" or importlib.util.find_spec("tensorboard") is None:
        yield
        return
    writes, over = Board(run), threading.Event()

    def follow() -> None:
        while not over.wait(seconds):
            writes.update()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        writes.close()
