"""The command line: profiles, fields, wrong arguments; a dialogue."""

import dataclasses

import pytest
import torch

pytest.importorskip("tyro")

from mmlib.painters import tokenizer
from mmlib.small_clips import scene_clip
from mmlib.system.commands import Chat, main, read_training
from mmlib.system.profiles import PROFILES, SystemConfig
from mmlib.system.stages import new_system
from mmlib.system.words import Marker


def test_every_field_replaces_the_profiles(tmp_path):
    given = ["--out", str(tmp_path), "--dim", "96", "--profile=t4", "--blind"]
    config, folder = read_training([*given, "--kinds", "count", "colour"])
    changes = {"dim": 96, "blind": True, "kinds": ("count", "colour")}
    assert config == dataclasses.replace(PROFILES["t4"], **changes)
    assert folder == tmp_path
    for field in dataclasses.fields(SystemConfig):
        if field.type is int or field.type is float:
            flag = "--" + field.name.replace("_", "-")
            value = {"dim": 8, "heads": 2}.get(field.name, 1 if field.type is int else 0.5)
            config, _ = read_training(
                ["--out", str(tmp_path), "--no-from-painter", flag, str(value)]
            )
            assert getattr(config, field.name) == value


@pytest.mark.parametrize(
    "given",
    [
        ["--profile", "huge", "--out", "x"],
        ["--profile", "cpu"],
        ["--out"],
        ["--out", "x", "--dim", "wide"],
        ["--out", "x", "--width", "3"],
    ],
)
def test_wrong_arguments_are_refused(given):
    with pytest.raises(SystemExit):
        read_training(given)


def test_unknown_commands_show_what_there_is(capsys):
    with pytest.raises(SystemExit) as found:
        main(["fly"])
    assert found.value.code == 2
    assert "evaluate RUN" in capsys.readouterr().err
    with pytest.raises(SystemExit) as found:
        main(["--help"])
    assert found.value.code == 0


def test_a_dialogue_goes_on_until_there_is_no_room(tmp_path):
    config = SystemConfig(dim=16, heads=2, layers=1)
    system = new_system(config, scene_clip(trained=True), tokenizer())
    chat = Chat(system, tmp_path)
    assert chat.say("look 3").startswith("(you are shown: a ")
    assert chat.shown.shape == (16, 256)
    with torch.no_grad():  # a model that always draws
        system.language.word_head.weight.zero_()
        system.language.word_head.bias.fill_(-9.0)
        system.language.word_head.bias[system.known.marker(Marker.DRAW)] = 9.0
    assert "drawn_001.png" in chat.say("draw a ring")
    assert (tmp_path / "drawn_001.png").exists()
    assert len(chat.turns) == 2
    chat.say("and now a red star, as large as it can be, please, in the middle of the picture")
    while "begins anew" not in chat.say("again " * 20):
        assert len(chat.turns) < 20
    assert chat.turns == []
    assert chat.say("new") == "(a new dialogue)"
