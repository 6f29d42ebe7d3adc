"""The full system around its language model: words, tasks, lessons, profiles, stages, marks.

- Words come back; markers cannot be spelled; a held-out combination is made of known pieces.
- Documents of every task: what is in them, and that only the assistant's words are wanted.
- Material: what the towers make of scenes; no held-out combination.
- Lessons: the same number gives the same batch; no held-out combination; nothing too long.
- Profiles: each is valid, its sizes fit; what is written is read; another run is refused.
- LoRA folded in is the adapted model, in the plain model's names.
- Stages: a run of a few steps, stopped and continued, ends with the same weights, and loads.
- Marks: right answers, right pictures and right captions get 1; nothing drawn gets 0.
- A system that begins with the painter draws as it does.
- CLIP reads requests, and chooses what is shown.
"""

import copy
import dataclasses

import pytest
import torch

from mmlib.adapters import Adapters
from mmlib.data import scenes
from mmlib.data.scenes import DEFAULT_HOLDOUT
from mmlib.painters import caption_ids, grid_scenes, scene_dalle, tokenizer
from mmlib.small_clips import scene_clip, scene_tokenizer
from mmlib.system.answers import answers, readable
from mmlib.system.lessons import INSTRUCTIONS, PRETRAINING, Lessons, Menu
from mmlib.system.marking import (
    commonest,
    mark_answers,
    mark_captions,
    mark_pictures,
    questions_about,
)
from mmlib.system.material import Material
from mmlib.system.pictures import Pictures
from mmlib.system.profiles import PROFILES, SystemConfig, cost, read_config, write_config
from mmlib.system.requests import REQUESTS, wordings
from mmlib.system.sequence import CODE, REGION, WORD, pad
from mmlib.system.stages import (
    ADAPTED,
    begin_with_painter,
    fold,
    load_system,
    new_system,
    train_system,
)
from mmlib.system.tasks import Turn, Writer
from mmlib.system.words import Marker, words


@pytest.fixture(scope="module")
def pictures():
    return Pictures(scene_clip(trained=True), tokenizer())


@pytest.fixture(scope="module")
def material(pictures):
    return Material(pictures, 30, seed=5)


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
    assert text_of(drawing, wanted=True) == ["<DRAW>", "<END>"]
    assert sum(drawing.wanted) == 64 + 2
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


def test_material_is_what_the_towers_make_of_scenes_of_training(pictures, material):
    items = [*material.seen, *material.drawn]
    held = {(item.colour, item.shape) for scene in items for item in scene.objects}
    assert len(material.seen) == len(material.drawn) == 30
    assert not held & DEFAULT_HOLDOUT.pairs
    seen = pictures.look(scenes.render(material.seen[:2], 32))
    torch.testing.assert_close(material.features[:2].float(), seen, rtol=0.01, atol=0.01)
    drawn = pictures.codes(scenes.render(material.drawn[-2:], 32))
    assert torch.equal(material.codes[-2:].long(), drawn)
    assert (material.shape, material.places, material.drawings) == ((16, 256), 64, {})
    with pytest.raises(ValueError, match="count must be at least 1"):
        Material(pictures, 0)


@pytest.mark.parametrize("shares", [PRETRAINING, INSTRUCTIONS])
def test_lessons(material, writer, shares):
    menu = Menu(dict(shares), documents=40)
    lessons = Lessons(material, writer, menu)
    one, other, third = lessons(3), Lessons(material, writer, menu)(3), lessons(4)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert one.ids.shape != third.ids.shape or not torch.equal(one.ids, third.ids)
    assert one.features.shape[1:] == (16, 256)
    assert len(one.to_codes) % 64 == 0 < len(one.to_codes)
    text = " ".join(" ".join(text_of(d)) for n in range(3) for d in lessons.documents(n))
    assert not any(f" {c} {s}" in text for c, s in DEFAULT_HOLDOUT.pairs)
    assert "star" in text
    blind = Lessons(material, writer, dataclasses.replace(menu, blind=True))(3)
    assert not blind.features.any()
    assert torch.equal(blind.ids, one.ids)
    with pytest.raises(ValueError, match="material must hold emoji"):
        Lessons(material, writer, dataclasses.replace(menu, emoji=0.5))


def test_no_two_documents_share_the_seed_of_their_questions(material, writer, monkeypatch):
    """The seed decides about yes and no: a model that meets it again knows the answer blindly."""
    seeds, questions = [], scenes.questions

    def heard(scene, seed, *given):
        seeds.append(seed)
        return questions(scene, seed, *given)

    monkeypatch.setattr("mmlib.system.lessons.scenes.questions", heard)
    lessons = Lessons(material, writer, Menu({"ask": 1.0}, documents=8))
    for number in range(4):
        lessons(number)
    assert len(set(seeds)) == 32


@pytest.mark.parametrize("looks", [0.0, 1.0])
def test_questions_come_after_a_description_or_at_once(material, writer, looks):
    menu = Menu({"ask": 1.0}, documents=8, questions=2, looks=looks, chinese=0.0)
    for document in Lessons(material, writer, menu).documents(0):
        assert document.kinds.count(REGION) == 16  # the picture is shown once
        said = [part for part in text_of(document, wanted=True) if part != "<END>"]
        assert len(said) == 2 + looks
        assert (len(said[0].split()) > 3) == bool(looks)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shares": {"sing": 1.0}}, "shares must be of known tasks"),
        ({"shares": {"draw": 0.0}}, "not all of them 0"),
        ({"documents": 0}, "documents must be at least 1"),
        ({"questions": 0}, "questions must be at least 1"),
        ({"looks": 1.5}, "looks must be from 0 to 1"),
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
    with pytest.raises(ValueError, match="of another run: .*pool was 30000, is 400"):
        write_config(PROFILES["smoke"], tmp_path)
    write_config(dataclasses.replace(PROFILES["cpu"], accumulate=7), tmp_path)  # only how
    with pytest.raises(FileNotFoundError, match="there is no run"):
        read_config(tmp_path / "nothing")
    (tmp_path / "system.json").write_text('{"dim": 3}', encoding="utf-8")
    with pytest.raises(ValueError, match="of another version"):
        read_config(tmp_path)
    for changes in (
        {"dim": 65}, {"clip_steps": -1}, {"pretraining_steps": 0}, {"hide": 2.0}, {"pool": 0},
        {"candidates": 0}, {"from_painter": True, "layers": 2},
    ):  # fmt: skip
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
    checkpoint_every=1, dropout=0.1, pool=20,
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


def test_a_system_that_begins_with_the_painter_draws_as_it_does(pictures):
    system = new_system(SystemConfig(), pictures.clip, pictures.autoencoder)
    fresh = copy.deepcopy(system.language)
    begin_with_painter(system)
    model, painter = system.language, scene_dalle(trained=True)
    assert torch.equal(model.code(), painter.code())
    word, its = system.known.encode("star"), scene_tokenizer().encode(["star"]).ids[0, 1]
    assert torch.equal(model.word.weight[word[0]], painter.word.weight[its])
    unknown = system.known.encode("什")[0]
    assert torch.equal(model.word.weight[unknown], fresh.word.weight[unknown])
    assert torch.equal(model.region_row.weight, fresh.region_row.weight)
    # With its own text in front, the codes' logits are the painter's.
    text = caption_ids(scenes.sample(1, 1, split="train", objects=1))
    codes = torch.arange(63)[None]
    x = torch.cat([painter._embed_text(text), painter._embed_codes(codes, 0, None)], dim=1)
    theirs = painter(text, codes).codes
    mine = model.paint(model.decoder(x)[0][:, text.shape[1] - 1 :])
    torch.testing.assert_close(mine, theirs)


def test_what_clip_reads_of_a_request():
    for scene in scenes.sample(4, 2, split="test", objects=(1, 2)):
        caption = scenes.caption(scene)
        for language in ("en", "zh"):
            (request,) = wordings("draw", language, "test")
            assert readable(request.format(scenes.caption(scene, language))) == caption
    assert readable("please paint") is readable("请画") is None


def test_clip_chooses_among_candidates(pictures, monkeypatch):
    """A model that draws one of two pictures by chance shows the one that fits."""
    system = new_system(SystemConfig(candidates=8), pictures.clip, pictures.autoencoder)
    wanted, other = (grid_scenes(1, seed, "test") for seed in (1, 2))
    codes = torch.cat([pictures.codes(scenes.render(s, 32)) for s in (wanted, other)])

    def draws(model, known, prompts, **options):
        assert len(prompts) == 8
        return codes[torch.tensor([1, 1, 1, 0, 1, 1, 1, 1])].unflatten(1, (8, 8))

    monkeypatch.setattr("mmlib.system.writing.paint", draws)
    marker = words().marker(Marker.DRAW)
    monkeypatch.setattr("mmlib.system.writing.write", lambda *given, **options: [[marker]])
    (found,) = answers(system, [[Turn(f"please paint {scenes.caption(wanted[0])}")]])
    assert torch.equal(found.codes.flatten(), codes[0])
    (found,) = answers(system, [[Turn("please paint something")]])
    assert torch.equal(found.codes.flatten(), codes[1])  # nothing to choose by: the first
