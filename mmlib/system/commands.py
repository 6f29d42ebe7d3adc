"""The commands of the full system.

::

    python -m mmlib.system train --profile smoke --out RUN --dim 96 --pretraining-steps 100
    python -m mmlib.system evaluate RUN
    python -m mmlib.system chat [RUN]
    python -m mmlib.system serve [RUN]
    torchrun --nproc-per-node 8 -m mmlib.system train --profile h100 --out RUN --shard

``train`` takes a profile and then any field of
:class:`~mmlib.system.profiles.SystemConfig`; started again it goes on. Several processes start with
``torchrun`` or ``accelerate launch``, one for each GPU; what they train on is told in
:mod:`mmlib.system.stages`. With ``--shard`` each holds a part of the language model (FSDP).
``tensorboard --logdir RUN`` shows how a run goes (:mod:`mmlib.system.board`).
``serve`` is :mod:`mmlib.system.serving`.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mmlib.data import scenes
from mmlib.data.records import RecordError, open_image
from mmlib.encoders.preprocessing import preprocess
from mmlib.system.answers import answers
from mmlib.system.board import board
from mmlib.system.marking import marks_of
from mmlib.system.profiles import PROFILES, SystemConfig
from mmlib.system.samples import save_picture, write_samples
from mmlib.system.stages import System, load_system, shipped_system, train_system
from mmlib.system.tasks import Turn

__all__ = ["Chat", "chat", "evaluate", "main", "read_training"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command.

    Args:
        arguments: By default those of the program.

    Raises:
        SystemExit: a wrong command; the service ended; or SIGTERM came while training, and the
            state is saved.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] not in ("train", "evaluate", "chat", "serve"):
        asked_for_help = given[:1] in (["-h"], ["--help"])
        print(__doc__.strip(), file=sys.stdout if asked_for_help else sys.stderr)
        raise SystemExit(0 if asked_for_help else 2)
    command, *rest = given
    if command == "train":
        config, folder = read_training(rest)
        with board(folder):
            train_system(config, folder, sample=write_samples)
    elif command == "serve":
        from mmlib.system.serving import main as serve  # it alone needs the web server

        raise SystemExit(serve(rest))
    else:
        function = evaluate if command == "evaluate" else chat
        _tyro().cli(function, args=rest, prog=f"python -m mmlib.system {command}")


def read_training(arguments: Sequence[str]) -> tuple[SystemConfig, Path]:
    """What ``train`` is told: a profile, a folder, and fields that replace the profile's.

    Raises:
        SystemExit: a wrong argument; help was asked for.
    """
    tyro = _tyro()
    rest, profile, out = list(arguments), "smoke", None
    for name in ("--profile", "--out"):
        at = next((i for i, word in enumerate(rest) if word.split("=", 1)[0] == name), None)
        if at is None:
            continue
        word, *value = rest.pop(at).split("=", 1)
        if not value:
            if at == len(rest):
                raise SystemExit(f"{word} wants a value")
            value = [rest.pop(at)]
        profile, out = (value[0], out) if name == "--profile" else (profile, value[0])
    if profile not in PROFILES:
        raise SystemExit(f"--profile must be one of {', '.join(PROFILES)}: got {profile!r}")
    config = tyro.cli(
        SystemConfig,
        args=rest,
        default=PROFILES[profile],
        prog=f"python -m mmlib.system train --profile {profile} --out RUN",
    )
    if out is None:
        raise SystemExit("--out wants a folder for the run")
    return config, Path(out)


def evaluate(run: Path, /, count: int = 200) -> None:
    """Mark a run on combinations of colour and shape that its training never showed.

    Args:
        run: The folder of the run; the marks are put there, too.
        count: How many scenes to describe, to ask about and to draw.
    """
    marks = marks_of(load_system(run), count)
    for name, value in marks.items():
        print(f"{name:28} {value:.3f}")
    (run / "marks.json").write_text(json.dumps(marks, indent=2) + "\n", encoding="utf-8")


def chat(run: Path | None = None, /, seed: int = 0) -> None:
    """Talk with a system.

    Args:
        run: The folder of its run, where what is drawn is put. By default the system that the
            library ships; what is drawn is put into the current folder then.
        seed: What pictures are drawn from.
    """
    system = shipped_system() if run is None else load_system(run)
    talk = Chat(system, run or Path(), seed)
    print("look SEED shows a scene, look FILE a picture, new begins anew, an empty line ends.")
    while text := _line():
        print(talk.say(text))


class Chat:
    """A dialogue: what was said stays, as far as there is room for it.

    Args:
        system: In evaluation mode.
        folder: Where drawn pictures are put.
        seed: What is drawn from.
    """

    def __init__(self, system: System, folder: Path, seed: int = 0) -> None:
        self.system, self.folder = system, folder
        self.dice = torch.Generator().manual_seed(seed)
        self.turns: list[Turn] = []
        self.shown: torch.Tensor | None = None
        self.drawn = 0

    def say(self, text: str) -> str:
        """Answer a person."""
        command, *rest = text.split()
        if command == "new" and not rest:
            self.turns, self.shown = [], None
            return "(a new dialogue)"
        system = self.system
        if command == "look" and len(rest) == 1 and rest[0].isdigit():
            scene = scenes.sample(1, int(rest[0]), split="test", objects=(1, 2))
            self._look(scenes.render(scene, system.pictures.recipe.resize))
            return f"(you are shown: {scenes.caption(scene[0])})"
        path = Path(" ".join(rest))
        if command == "look" and (path.suffix or path.is_file()):
            try:
                self._look(preprocess(open_image(path, str(path)), system.pictures.recipe))
            except RecordError as error:
                return f"(nothing to look at: {error})"
            return f"(you are shown: {path})"
        self.turns.append(Turn(text, picture=self.shown))
        self.shown = None
        prompt = system.writer.dialogue(self.turns)
        if prompt.kinds.count(0) + system.known.most > system.language.config.length:
            self.turns = []
            return "(the dialogue is too long: it begins anew)"
        (answer,) = answers(system, [self.turns], self.dice)
        codes = None if answer.codes is None else answer.codes.flatten().tolist()
        self.turns.append(Turn(answer.text, codes=codes))
        if answer.codes is None:
            return answer.text
        self.drawn += 1
        path = self.folder / f"drawn_{self.drawn:03}.png"
        save_picture(system.pictures.paint(answer.codes[None])[0], path)
        return f"{answer.text} (see {path})".strip()

    def _look(self, pictures: torch.Tensor) -> None:
        self.turns, self.shown = [], self.system.pictures.look(pictures.clamp(0, 1))[0]


def _line() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""


def _tyro() -> Any:
    try:
        import tyro
    except ImportError as error:
        raise ImportError('the commands need tyro: pip install "mmlib[system]"') from error
    return tyro
