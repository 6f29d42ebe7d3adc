"""The full system around its language model: words, tasks, lessons, profiles, stages, marks.

- Words come back; markers cannot be spelled; a held-out combination is made of known pieces.
- Documents of every task: what is in them, and that only the assistant's words are wanted.
- Lessons: the same number gives the same batch; no held-out combination; nothing too long.
- Profiles: each is valid, its sizes fit; what is written is read; another run is refused.
- LoRA folded in is the adapted model, in the plain model's names.
- Stages: a run of a few steps, stopped and continued, ends with the same weights, and loads.
- Marks: right answers, right pictures and right captions get 1; nothing drawn gets 0.
- Commands: a profile's fields are replaced; wrong ones are refused.
"""

import copy
import dataclasses

import pytest
import torch

from mmlib.adapters import Adapters
from mmlib.data import scenes
from mmlib.data.scenes import DEFAULT_HOLDOUT
from mmlib.painters import grid_scenes, tokenizer
from mmlib.small_clips import scene_clip
from mmlib.system.lessons import INSTRUCTIONS, PRETRAINING, Lessons, Menu
from mmlib.system.marking import (
    commonest,
    mark_answers,
    mark_captions,
    mark_pictures,
    questions_about,
)
from mmlib.system.pictures import Pictures
from mmlib.system.profiles import PROFILES, SystemConfig, cost, read_config, write_config
from mmlib.system.requests import REQUESTS, wordings
from mmlib.system.sequence import CODE, REGION, WORD, pad
from mmlib.system.stages import ADAPTED, fold, load_system, new_system, train_system
from mmlib.system.tasks import Turn, Writer
from mmlib.system.words import Marker, words


@pytest.fixture(scope="module")
def pictures():
    return Pictures(scene_clip(trained=True), tokenizer())


@pytest.fixture(scope="module")
def writer():
    return Writer(words())


def text_of(document, wanted=None):
    """The words of a document, or those that are wanted, with markers by name."""
    known, found = words(), []
    for kind, token, want in zip(document.kinds, document.ids, document.wanted, strict=True):
        if kind == WORD and (wanted is None or want == wanted):
            found.append(token)
    names = {known.marker(m): f"<{m.name}>" for m in Marker} | {known.end: "<END>"}
    parts, run = [], []
    for token in [*found, None]:
        if token is None or token in names:
            parts += [known.decode(run)] if run else []
            run = []
            parts += [] if token is None else [names[token]]
        elif token != known.begin:
            run.append(token)
    return parts


def test_words_come_back():
    known = words()
    for scene in scenes.sample(60, 1, split="test"):
        texts = [scenes.caption(scene), scenes.caption(scene, "zh")]
        texts += [t for q in scenes.questions(scene, 1) for t in (q.text, q.text_zh, q.answer_zh)]
        for text in texts:
            assert known.decode(known.encode(text)) == text
    for text in ("", "Hello, wörld! 你好", "<DRAW> <end>"):
        ids = known.encode(text)
        assert known.decode(ids) == text
        assert not set(ids) & {known.begin, known.end, known.pad}
        assert all(token < known.marker(Marker(0)) for token in ids)


def test_a_held_out_combination_is_made_of_known_pieces():
    known = words()
    for colour, shape in DEFAULT_HOLDOUT.pairs:
        assert len(known.encode(f"a small {colour} {shape}")) == 4
        assert known.encode(colour) + known.encode(shape) == known.encode(f"{colour} {shape}")
    assert len(known.encode("红色的星形")) == 5


def test_the_last_wording_is_held_out():
    for language in REQUESTS:
        for task in ("caption", "draw"):
            assert not set(wordings(task, language)) & set(wordings(task, language, "test"))
    with pytest.raises(ValueError, match="language must be one of"):
        wordings("draw", "fr")


def test_documents_of_stage_3(writer):
    look = torch.zeros(16, 256)
    caption = writer.caption(look, "a red star", "en")
    assert text_of(caption) == ["<PICTURE>", "<ENGLISH>", "a red star", "<END>"]
    assert text_of(caption, wanted=True) == ["a red star", "<END>"]
    assert caption.kinds.count(REGION) == 16
    prompt = writer.caption(look, None, "zh")
    assert text_of(prompt) == ["<PICTURE>", "<CHINESE>"]
    drawing = writer.drawing("一个圆环", "zh", [5] * 64)
    assert text_of(drawing) == ["<CHINESE>", "一个圆环", "<DRAW>", "<END>"]
    assert text_of(drawing, wanted=True) == ["一个圆环", "<DRAW>", "<END>"]
    assert sum(drawing.wanted) == 64 + 3 + len("一个圆环") - 1
    assert not any(writer.drawing("a ring", "en", None).wanted)
    nothing = writer.drawing(None, "en", [5] * 64)
    assert text_of(nothing) == ["<DRAW>", "<END>"]
    assert text_of(nothing, wanted=True) == ["<END>"]
    assert sum(nothing.wanted) == 65


def test_only_what_the_assistant_says_is_wanted(writer):
    turns = [
        Turn("what colour is it?", picture=torch.zeros(16, 256)),
        Turn("red"),
        Turn("draw a ring"),
        Turn(codes=[3] * 64, hidden=[True] * 64),
    ]
    document = writer.dialogue(turns)
    assert text_of(document, wanted=True) == ["red", "<END>", "<DRAW>", "<END>"]
    codes = [w for w, k in zip(document.wanted, document.kinds, strict=True) if k == CODE]
    assert codes == [True] * 64
    assert sum(document.hidden) == 64
    prompt = writer.dialogue(turns[:3])
    assert text_of(prompt)[-1] == "<ASSISTANT>"
    whole = text_of(document)
    assert whole[: len(text_of(prompt))] == text_of(prompt)  # what is answered is what was learned
    with pytest.raises(ValueError, match="turns must not be empty"):
        writer.dialogue([])


@pytest.mark.parametrize("shares", [PRETRAINING, INSTRUCTIONS])
def test_lessons(pictures, writer, shares):
    menu = Menu(dict(shares), documents=12, emoji=0.0)
    lessons = Lessons(pictures, writer, menu)
    one, other, third = lessons(3), Lessons(pictures, writer, menu)(3), lessons(4)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert one.ids.shape != third.ids.shape or not torch.equal(one.ids, third.ids)
    assert one.features.shape[1:] == (16, 256)
    assert len(one.to_codes) % 64 == 0 < len(one.to_codes)
    text = " ".join(" ".join(text_of(d)) for n in range(3) for d in lessons.documents(n))
    assert not any(f" {c} {s}" in text for c, s in DEFAULT_HOLDOUT.pairs)
    assert "star" in text
    blind = Lessons(pictures, writer, dataclasses.replace(menu, blind=True))(3)
    assert not blind.features.any()
    assert torch.equal(blind.ids, one.ids)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shares": {"sing": 1.0}}, "shares must be of known tasks"),
        ({"shares": {"draw": 0.0}}, "not all of them 0"),
        ({"documents": 0}, "documents must be at least 1"),
        ({"hide": 1.5}, "hide must be from 0 to 1"),
    ],
)
def test_menus_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        Menu(**changes)


def test_profiles(tmp_path):
    for config in PROFILES.values():
        assert config.training(3).steps == config.pretraining_steps
        assert config.menu(4).shares == dict(INSTRUCTIONS)
    write_config(PROFILES["cpu"], tmp_path)
    write_config(PROFILES["cpu"], tmp_path)
    assert read_config(tmp_path) == PROFILES["cpu"]
    with pytest.raises(ValueError, match="of another run: .*dim was 128, is 64"):
        write_config(PROFILES["smoke"], tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no run"):
        read_config(tmp_path / "nothing")
    (tmp_path / "system.json").write_text('{"dim": 3}', encoding="utf-8")
    with pytest.raises(ValueError, match="of another version"):
        read_config(tmp_path)
    for changes in ({"dim": 65}, {"clip_steps": -1}, {"pretraining_steps": 0}, {"hide": 2.0}):
        with pytest.raises(ValueError, match=next(iter(changes)).split("_")[0]):
            SystemConfig(**changes)


def test_the_cost_of_the_cpu_profile_fits_the_file():
    found = cost(PROFILES["cpu"])
    assert found.parameters * 2 < 10e6  # bf16, beside the towers' 4.6 MB
    assert found.flops > 6 * 700_000 * 2000


def test_folded_additions_are_the_adapted_model(pictures):
    system = new_system(SystemConfig(dim=32), pictures.clip, pictures.autoencoder)
    model, known = system.language.eval(), system.known
    rows = pad([system.writer.drawing("a red star", "en", [7] * 64)], known.pad)
    names, before = set(model.state_dict()), copy.deepcopy(model)
    adapters = Adapters(model, ADAPTED, heads=("word_head",))
    adapters.add("instructions", 2)
    with torch.no_grad():
        for layer in adapters.layers.values():
            layer.up["instructions"].normal_(std=0.1)
    adapted = model(rows)
    fold(adapters)
    torch.testing.assert_close(model(rows), adapted)
    assert not torch.allclose(before(rows), adapted)
    assert set(model.state_dict()) == names
    assert all(p.requires_grad for p in model.parameters())


TINY = SystemConfig(
    pretraining_steps=3, instruction_steps=2, dim=16, heads=2, layers=1, documents=3,
    checkpoint_every=1, dropout=0.1,
)  # fmt: skip


@pytest.mark.parametrize("rank", [0, 2])
def test_a_run_that_is_continued_ends_alike_and_loads(tmp_path, rank):
    config = dataclasses.replace(TINY, lora_rank=rank)
    whole = train_system(config, tmp_path / "whole", progress=False)

    def stop(system, path):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # at the end of stage 3
        train_system(config, tmp_path / "parts", sample=stop, progress=False)
    assert not (tmp_path / "parts" / "language.safetensors").exists()
    with pytest.raises(FileNotFoundError):
        load_system(tmp_path / "parts")
    parts = train_system(config, tmp_path / "parts", progress=False)
    loaded = load_system(tmp_path / "parts")
    for name, tensor in whole.language.state_dict().items():
        assert torch.equal(tensor, parts.language.state_dict()[name]), name
        assert torch.equal(tensor, loaded.language.state_dict()[name]), name
    image = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(
        loaded.pictures.look(image), whole.pictures.look(image), atol=0.05, rtol=0.05
    )


def test_right_answers_captions_and_pictures_get_full_marks():
    items = grid_scenes(6, 3, "test")
    asked = [question for _, question in questions_about(items, 1)]
    assert mark_answers([q.answer for q in asked], asked)["all"] == 1
    assert mark_answers([q.answer_zh for q in asked], asked)["all"] == 1
    assert mark_answers(["nothing"] * len(asked), asked)["all"] == 0
    assert 0 < commonest(asked) < 1
    for language in ("en", "zh"):
        said = [scenes.caption(scene, language) for scene in items]
        assert mark_captions(said, items, language)["attributes"] == 1
    assert mark_captions(["乱"] * 6, items, "zh")["attributes"] == 0
    right = mark_pictures(list(scenes.render(items, 32)), items)
    assert right["attributes"] == right["right"] == 1
    none = mark_pictures([None] * 6, items)
    assert set(none.values()) <= {0.0, none["place"]}
    assert none["right"] == none["attributes"] == 0
    with pytest.raises(ValueError, match="said must be one for each question"):
        mark_answers([], asked)
