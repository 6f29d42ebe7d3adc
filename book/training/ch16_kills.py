"""Kill a short run of the full system twenty times, and compare its weights with a run left alone.

The run is the command's, with stages 1, 3 and 4. It is started, killed with SIGKILL after a random
time, and started again, until it has been killed twenty times and has come to its end (a run that
ends before is followed by another). This is done in one process and in two.
``make train CHAPTER=16_kills``.
"""

import contextlib
import hashlib
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil

from mmlib import results

MINUTES = 8
RUNS = Path("runs/16_kills")
KILLS = 20
FIELDS = {
    "dim": 32,
    "heads": 2,
    "layers": 1,
    "documents": 4,
    "pool": 20,
    "dropout": 0.1,
    "clip-steps": 4,
    "pretraining-steps": 40,
    "instruction-steps": 40,
    "checkpoint-every": 3,
}


def start(folder: Path, processes: int) -> subprocess.Popen:
    """The command."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    fields = [word for name, value in FIELDS.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, *(launch if processes > 1 else []), "-m", "mmlib.system", "train"]
    return subprocess.Popen(
        [*command, "--profile", "smoke", "--out", str(folder), "--no-from-painter", *fields],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def kill(child: subprocess.Popen) -> None:
    """SIGKILL for a process and all that it has started, wherever they are."""
    every = [*psutil.Process(child.pid).children(recursive=True), psutil.Process(child.pid)]
    for process in every:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(every)
    child.wait()


def weights(folder: Path) -> tuple[str, ...]:
    """Hashes of the weights of all parts of a run that is complete."""
    parts = ("clip", "autoencoder", "language")
    return tuple(
        hashlib.sha256((folder / f"{part}.safetensors").read_bytes()).hexdigest() for part in parts
    )


def steps_done(folder: Path) -> int:
    """How many lines all stages have written."""
    return sum(len(path.read_text().splitlines()) for path in folder.glob("*/metrics.jsonl"))


def kill_again_and_again(processes: int, dice: random.Random) -> tuple[int, int, int]:
    """Kills, runs that were completed, and how many of these have the weights of the one alone."""
    alone = RUNS / f"alone_{processes}"
    began = time.time()
    if start(alone, processes).wait():
        raise RuntimeError("the run that nobody stops has failed")
    whole = time.time() - began
    kills = runs = equal = 0
    while kills < KILLS or runs == 0:
        folder = RUNS / f"killed_{processes}_{runs}"
        child = start(folder, processes)
        try:
            # From the moment at which Python starts to one shortly before the end.
            child.wait(dice.uniform(0.3, 0.9) * whole if kills < KILLS else None)
        except subprocess.TimeoutExpired:
            kill(child)
            kills += 1
            print(f"{processes}: killed {kills}, lines written {steps_done(folder)}", flush=True)
            continue
        if child.returncode:
            raise RuntimeError(f"the run in {folder} ended with {child.returncode}")
        runs += 1
        equal += weights(folder) == weights(alone)
    return kills, runs, equal


def main() -> None:
    """Kill in one process and in two."""
    shutil.rmtree(RUNS, ignore_errors=True)
    RUNS.mkdir(parents=True)
    for processes, name in ((1, "one"), (2, "two")):
        kills, runs, equal = kill_again_and_again(processes, random.Random(processes))
        label = f"a short run in {processes} process(es)"
        results.record(f"16.kills_{name}", kills, metric=f"SIGKILLs of {label}", tolerance=0)
        results.record(
            f"16.kills_{name}_equal",
            equal / runs,
            metric=f"{label}: ends with the weights of one left alone, bit for bit",
            tolerance=0,
            baseline=None,
        )


if __name__ == "__main__":
    main()
