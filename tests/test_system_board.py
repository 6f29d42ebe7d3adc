"""TensorBoard's files of a run.

- They hold what ``metrics.jsonl`` holds, each step once, also where steps were done again.
- Samples are there, each once; a file that is no picture yet comes later.
- The command writes them while it trains; other processes than the first, and machines without
  TensorBoard, write nothing.
"""

import json
import time

import pytest
import torch

pytest.importorskip("tensorboard")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmlib.system import board as module
from mmlib.system.board import Board, board
from mmlib.system.commands import main
from mmlib.system.samples import save_picture
from mmlib.training.run_folder import RunFolder


def events(run, stage):
    found = EventAccumulator(str(run / "tensorboard" / stage), size_guidance={"images": 0})
    found.Reload()
    return found


def scalars(run, stage, name):
    return [(event.step, event.value) for event in events(run, stage).Scalars(name)]


def line(step, **more):
    return {"step": step, "loss": 1.0 / step, **more}


def test_the_files_hold_what_was_measured(tmp_path):
    stage = RunFolder(tmp_path / "3_pretraining")
    writes = Board(tmp_path)
    writes.update()  # nothing yet
    stage.log([line(step) for step in (1, 2, 3)])
    writes.update()
    stage.log([line(4), {"step": 4, "score": -2.5}])
    with (stage.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # a line that is being written
    writes.update()
    assert scalars(tmp_path, stage.path.name, "score") == [(4, -2.5)]
    stage.forget_after(2)  # the run was killed, and goes on
    stage.log([line(3, skipped=1)])
    writes.close()
    expected = [(step, pytest.approx(1 / step)) for step in (1, 2, 3)]
    assert scalars(tmp_path, stage.path.name, "loss") == expected
    assert "score" not in events(tmp_path, stage.path.name).Tags()["scalars"]
    again = Board(tmp_path)  # the command again
    again.close()
    assert scalars(tmp_path, stage.path.name, "loss") == expected


def test_samples_are_there_once(tmp_path):
    stage = RunFolder(tmp_path / "4_instructions")
    stage.log([line(1)])
    folder = stage.path / "samples" / "00000001"
    folder.mkdir()
    save_picture(torch.rand(3, 8, 8), folder / "0.png")
    (folder / "1.png").write_bytes(b"half a picture")
    (folder / "captions.txt").write_text("a red star", encoding="utf-8")
    writes = Board(tmp_path)
    writes.update()
    writes.update()
    assert events(tmp_path, stage.path.name).Tags()["images"] == ["0"]
    save_picture(torch.rand(3, 8, 8), folder / "1.png")
    writes.close()
    found = events(tmp_path, stage.path.name)
    assert [len(found.Images(name)) for name in ("0", "1")] == [1, 1]
    assert (found.Images("0")[0].step, found.Images("0")[0].width) == (1, 32)
    (text,) = found.Tensors("captions/text_summary")
    assert text.tensor_proto.string_val == [b"a red star"]


def test_the_command_writes_them(tmp_path):
    sizes = {"dim": 16, "heads": 2, "layers": 1, "documents": 3, "pool": 8, "checkpoint-every": 2}
    sizes |= {"pretraining-steps": 2, "instruction-steps": 3}
    fields = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    main(["train", "--out", str(tmp_path), "--no-from-painter", *fields])
    for stage, count in (("3_pretraining", 2), ("4_instructions", 3)):
        lines = (tmp_path / stage / "metrics.jsonl").read_text().splitlines()
        losses = [(one["step"], one["loss"]) for one in map(json.loads, lines) if "loss" in one]
        found = scalars(tmp_path, stage, "loss")
        assert len(found) == count
        assert [step for step, _ in found] == [step for step, _ in losses]
        torch.testing.assert_close(
            torch.tensor([loss for _, loss in found]), torch.tensor([loss for _, loss in losses])
        )
        assert len(events(tmp_path, stage).Scalars("score")) == 1


def test_it_follows_while_the_context_lasts(tmp_path):
    stage = RunFolder(tmp_path / "3_pretraining")
    stage.log([line(1)])
    with board(tmp_path, seconds=0.01):
        deadline = time.time() + 60
        while time.time() < deadline and not list(tmp_path.glob("tensorboard/*/events*")):
            time.sleep(0.01)
        stage.log([line(2)])
    assert [step for step, _ in scalars(tmp_path, stage.path.name, "loss")] == [1, 2]


def test_who_writes_nothing(tmp_path, monkeypatch):
    RunFolder(tmp_path / "3_pretraining").log([line(1)])
    monkeypatch.setenv("RANK", "1")
    with board(tmp_path):
        pass
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with board(tmp_path):
        pass
    assert not (tmp_path / "tensorboard").exists()
