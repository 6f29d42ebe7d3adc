"""The system with a pretrained language model: the same model as transformers', frozen, adapted.

- With words alone, states and logits are those of transformers' ``LlamaForCausalLM``: one document,
  padded in front or behind, packed, and token by token with a cache.
- Who sees whom and at which place, by hand; no neighbour and nothing later, by gradients.
- Writing and painting with a cache are those without; markers are among the words.
- Stage 3 leaves the pretrained weights as they are, bit for bit, and all that is new learns; in
  stage 4 the additions learn, too, or everything; folded in they are the adapted model.
- A run that is continued ends alike and loads, with the same answers; the commands work with it.
- Costs, configurations that cannot be, words that cannot be forged.
- SmolLM2 itself, where it is at hand: sizes, logits, words, and how many pieces Chinese takes.

Most tests have a model of two small blocks that has learned nothing.
"""

import copy
import dataclasses
import importlib.util
import itertools
import json

import pytest
import tokenizers
import torch
import transformers

from mmlib.data import scenes
from mmlib.encoders import pretrained
from mmlib.painters import tokenizer
from mmlib.small_clips import scene_clip
from mmlib.system import smollm
from mmlib.system.answers import answers
from mmlib.system.commands import Chat
from mmlib.system.faster import recomputed
from mmlib.system.marking import marks_of
from mmlib.system.model import LanguageConfig
from mmlib.system.profiles import PROFILES, SystemConfig, cost
from mmlib.system.sequence import Document, pack, pad
from mmlib.system.smollm import SIZES, PretrainedLM, PretrainedWords, visible
from mmlib.system.stages import System, fold, load_system, new_system, train_system
from mmlib.system.tasks import Turn
from mmlib.system.words import Marker, Words, words
from mmlib.system.writing import paint, reply, write

PLAIN, CODES, FEATURES, REGIONS, PLACES = 11, 13, 6, 4, 9
WORDS = PLAIN + len(Marker)
SHAPE = (REGIONS, FEATURES)
TINY = dict(SIZES) | {
    "vocab_size": PLAIN,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}


def here():
    found = {line.name: line.where for line in pretrained.available()}
    return found["smollm2-135m"] and importlib.util.find_spec("gguf")


needs_weights = [
    pytest.mark.slow,
    pytest.mark.skipif(not here(), reason="SmolLM2 or gguf is not on this machine"),
]


class Known(Words):
    """Stands in for the words: the last six numbers are markers."""

    pad, begin, end = 0, 1, 2

    def __init__(self):
        pass

    def marker(self, marker):
        return PLAIN + int(marker)

    def decode(self, ids):
        return " ".join(str(i) for i in ids if i < PLAIN)


DRAW = Known().marker(Marker.DRAW)


def reference():
    """Transformers' model, with weights that make every token matter."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**TINY))
    return model.double().eval()


def small(dtype=torch.float64, **changes):
    """Ours with the same weights."""
    sizes = {"length": 40, "feature_dim": FEATURES, "region_side": 2, "code_side": 3}
    llama = reference().model
    torch.manual_seed(1)
    config = LanguageConfig(WORDS, dim=32, heads=4, layers=2, **sizes | changes)
    return PretrainedLM(config, torch.randn(CODES, 5), llama).to(dtype).eval()


def texts():
    return [Document().words([1, 5, 3, 8]), Document().words([4]), Document().words([9, 2, 7, 7])]


def picture(seed):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def documents():
    """A caption, a drawing with hidden codes, a dialogue that looks and then draws, a short one."""
    codes = torch.randint(CODES, (2, PLACES), generator=torch.Generator().manual_seed(1)).tolist()
    hidden = [False, True, False, True, False, False, True, False, True]
    return [
        Document().words([1, 11]).regions(picture(1)).words([3, 4, 2], wanted=True),
        Document().words([1]).words([5, 6, DRAW], wanted=True).codes(codes[0], hidden=hidden),
        Document()
        .words([1])
        .regions(picture(2))
        .words([7, 8])
        .words([9, 2], wanted=True)
        .words([4])
        .codes(codes[1])
        .words([2], wanted=True),
        Document().words([1]).words([3], wanted=True),
    ]


def packed(length=40):
    return pack(documents(), 0, length, shape=SHAPE)


# --- the same model as transformers' -----------------------------------------------------------


def compare(ours, theirs, rows):
    """States and logits of documents of words beside those of each document alone."""
    known = ours(rows)
    for number, document in enumerate(texts()):
        mine = known[rows.document == number]
        given = torch.tensor([document.ids])
        state = theirs.model(given).last_hidden_state[0]
        torch.testing.assert_close(mine, state, atol=1e-4, rtol=1e-4)
        logits = ours.tell(mine)
        plain = logits.shape[1] - len(Marker)
        torch.testing.assert_close(logits[:, :plain], theirs(given).logits[0], atol=1e-4, rtol=1e-4)


LAYOUTS = {
    "behind": lambda: pad(texts(), 0, shape=SHAPE),
    "in front": lambda: pad(texts(), 0, left=True, shape=SHAPE),
    "packed": lambda: pack(texts(), 0, 12, shape=SHAPE),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_words_alone_give_the_states_and_logits_of_transformers(layout):
    compare(small(), reference(), LAYOUTS[layout]())


def through_a_cache(ours, documents, parts):
    """What is known after each token, where the rows come a few columns at a time."""
    rows, start, known = pad(documents, 0, left=True, shape=SHAPE), 0, []
    cache = ours.decoder.new_cache()
    for end in itertools.accumulate(parts):
        new = [part[:, start:end] for part in rows[:4]]
        given = rows._replace(
            **dict(zip(rows._fields[:4], new, strict=True)), document=rows.document[:, :end]
        )
        start = end
        known.append(ours(given, cache))
    assert start == rows.ids.shape[1]
    return torch.cat(known, dim=1)


@pytest.mark.parametrize("parts", [(1, 1, 1, 1), (3, 1), (2, 2), (4,)])
@torch.no_grad()
def test_a_cache_gives_the_states_of_transformers(parts):
    ours, theirs = small(), reference()
    known = through_a_cache(ours, texts(), parts)
    for document, mine in zip(texts(), known, strict=True):
        state = theirs.model(torch.tensor([document.ids])).last_hidden_state[0]
        torch.testing.assert_close(mine[-len(document) :], state, atol=1e-4, rtol=1e-4)


def test_who_sees_whom_by_hand():
    document = torch.tensor([[-1, -1, 3, 3, 3], [0, 0, 5, -1, -1], [2, 2, 2, 2, 2]])
    for length in (1, 2, 5):
        keep, places = visible(document, length)
        assert keep.shape == (3, 1, length, 5)
        for row, owners in enumerate(document.tolist()):
            for at, owner in list(enumerate(owners))[5 - length :]:
                here = at - 5 + length
                sees = [
                    other == at or (other < at and owners[other] == owner >= 0)
                    for other in range(5)
                ]
                assert keep[row, 0, here].tolist() == sees
                if owner >= 0:
                    assert places[row, here] == owners[:at].count(owner)


@torch.no_grad()
def test_packed_and_padded_in_front_equal_separate():
    model = small()
    for rows in (packed(), packed(24), pad(documents(), 0, left=True, shape=SHAPE)):
        known = model(rows)
        for number, alone in enumerate(documents()):
            one = model(pad([alone], 0, shape=SHAPE))[0]
            torch.testing.assert_close(known[rows.document == number], one)


@pytest.mark.parametrize("left", [None, False, True])
def test_gradients_come_from_the_same_document_and_not_from_later_tokens(left):
    model = small()
    rows = packed() if left is None else pad(documents(), 0, left=left, shape=SHAPE)
    stream = model._embed(rows).detach().requires_grad_()
    model._embed = lambda rows: stream
    known, owner = model(rows), rows.document
    for row, at in ((r, t) for r in range(len(owner)) for t in range(0, owner.shape[1], 3)):
        (gradient,) = torch.autograd.grad(known[row, at].sum(), stream, retain_graph=True)
        allowed = (owner == owner[row, at]) & (owner >= 0)
        allowed[torch.arange(len(owner)) != row] = False
        allowed[row, at + 1 :] = False
        allowed[row, at] = True
        assert torch.equal(gradient.abs().sum(-1) > 0, allowed)


@torch.no_grad()
def test_one_table_reads_and_writes_words_and_markers():
    model = small()
    table = torch.cat([model.word.table.weight, model.word.markers.weight])
    assert torch.equal(model.word(torch.arange(WORDS)), table)
    state = torch.randn(3, 32, dtype=torch.float64)
    torch.testing.assert_close(model.tell(state), state @ table.T)


@torch.no_grad()
def test_the_order_of_regions_matters():
    model = small()
    rows = pad(documents()[:1], 0, shape=SHAPE)
    features = rows.features.flip(1)
    assert not torch.allclose(model(rows), model(rows._replace(features=features)))


# --- writing -----------------------------------------------------------------------------------


def prompts():
    return [
        Document().words([1, 11]).regions(picture(3)).words([4]),
        Document().words([1, 3]),
        Document().words([1, 5, 6, 3]),
    ]


def test_cached_writing_and_painting_are_those_of_the_whole_sequence():
    model = small()
    cached = write(model, Known(), prompts(), most=9)
    assert cached == write(model, Known(), prompts(), most=9, use_cache=False)
    assert cached == [write(model, Known(), [prompt], most=9)[0] for prompt in prompts()]
    assert len(set(map(tuple, cached))) > 1
    asked = [p.copy().words([DRAW]) for p in prompts()]
    options = {"guidance": 2.0, "temperature": 0}
    fast = paint(model, Known(), asked, **options)
    assert torch.equal(fast, paint(model, Known(), asked, use_cache=False, **options))
    assert len(fast.unique()) > 1


def test_markers_are_among_the_words_and_lead_to_a_picture():
    model = small()
    assert model.tell(torch.zeros(2, 32, dtype=torch.float64)).shape == (2, WORDS)
    with torch.no_grad():  # whatever is known points to the marker "draw"
        state = model(pad(prompts()[:1], 0, shape=SHAPE))[0, -1]
        model.word.markers.weight[Marker.DRAW] = 50 * state
    (found,) = reply(model, Known(), prompts()[:1], most=3)
    assert found.text == ""
    assert found.codes.shape == (3, 3)


def test_recomputed_blocks_have_the_same_gradients():
    gradients = []
    for on in (False, True):
        model = small().train()
        model.learn(3)
        with recomputed(model.decoder.blocks, on):
            model.loss(packed())[0].backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


# --- what learns -------------------------------------------------------------------------------


def steps(model, count=3):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    for _ in range(count):
        total, number = model.train().loss(packed())
        optimizer.zero_grad()
        (total / number).backward()
        optimizer.step()


def test_stage_3_leaves_what_is_pretrained_and_teaches_what_is_new():
    model = small()
    before = copy.deepcopy(model.state_dict())
    assert model.learn(3) is None
    steps(model)
    new = {name for name, _ in model.named_parameters() if model.is_new(name)}
    pretrained = {f"decoder.llama.{name}" for name in reference().model.state_dict()}
    table = "decoder.llama.embed_tokens.weight"
    assert set(before) - new == pretrained - {table} | {
        "word.table.weight", "code.codebook", "code_head.codebook"
    }  # fmt: skip
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name not in new), name
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) == (name in new), name


def test_stage_4_adds_to_what_is_pretrained_and_folds_in():
    model = small()
    before = copy.deepcopy(model.state_dict())
    adapters = model.learn(4, rank=2)
    assert len(adapters.layers) == 2 * 7
    rows = packed()
    torch.testing.assert_close(model(rows), small()(rows))  # nothing is added at first
    steps(model)
    learned = {name for name, p in model.named_parameters() if p.requires_grad}
    added = {name for name in learned if name.endswith((".up.instructions", ".down.instructions"))}
    assert len(added) == 2 * 14
    assert learned - added == {name for name in before if model.is_new(name)} - {
        "code.codebook", "code_head.codebook"
    }  # fmt: skip
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) == (name in learned)
    for name, layer in adapters.layers.items():
        assert torch.equal(layer.base.weight, before[f"{name}.weight"])
    adapted = model.eval()(rows)
    fold(adapters)
    torch.testing.assert_close(model(rows), adapted)
    assert set(model.state_dict()) == set(before)
    assert all(p.requires_grad for p in model.parameters())


def test_without_additions_stage_4_teaches_everything():
    model = small()
    model.learn(3)
    assert model.learn(4) is None
    before = copy.deepcopy(dict(model.named_parameters()))
    steps(model, 1)
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), name


def test_it_learns_captions_and_pictures_on_frozen_blocks():
    model = small(torch.float32)
    model.learn(3)
    rows = packed()
    rows = rows._replace(features=rows.features.float())

    def mean():
        total, count = model.loss(rows)
        return total / count

    before = mean().item()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        mean().backward()
        optimizer.step()
    assert mean().item() < 0.5 * before


# --- whole runs of a small one -----------------------------------------------------------------


RUN = SystemConfig(
    pretraining_steps=3, instruction_steps=2, documents=3, checkpoint_every=1, pool=20,
    backbone="smollm2-135m", lora_rank=2, chinese=0.0, pretraining_chinese=0.0, row=256,
)  # fmt: skip


def byte_pairs():
    """A tokenizer of the same making as SmolLM2's, with few pieces."""
    pairs = tokenizers.Tokenizer(tokenizers.models.BPE())
    pairs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    pairs.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    drawn = scenes.sample(50, 1, split="train", objects=(1, 2))
    pairs.train_from_iterator([" " + scenes.caption(scene) for scene in drawn], trainer)
    return pairs


@pytest.fixture
def tiny(monkeypatch):
    """The system's backbone is small and has learned nothing."""
    known = PretrainedWords(byte_pairs())
    sizes = TINY | {"vocab_size": known.plain}

    def language_model(config, codebook, known):
        model = PretrainedLM(config, codebook)
        model.word.begin_with_names(known)
        return model

    monkeypatch.setattr(smollm, "SIZES", sizes)
    monkeypatch.setattr(smollm, "smollm_words", lambda: known)
    monkeypatch.setattr(smollm, "language_model", language_model)
    return known


@pytest.mark.parametrize("rank", [0, 2])
def test_a_run_that_is_continued_ends_alike_and_loads(tiny, tmp_path, rank):
    config = dataclasses.replace(RUN, lora_rank=rank)
    whole = train_system(config, tmp_path / "whole", progress=False)
    assert type(whole.language) is PretrainedLM

    def stop(system, path):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # at the end of stage 3
        train_system(config, tmp_path / "parts", sample=stop, progress=False)
    parts = train_system(config, tmp_path / "parts", progress=False)
    loaded = load_system(tmp_path / "parts")
    for name, tensor in whole.language.state_dict().items():
        assert torch.equal(tensor, parts.language.state_dict()[name]), name
        assert torch.equal(tensor, loaded.language.state_dict()[name]), name
    # What is not kept, such as the speeds of rotary positions, is the same, too.
    rows = pad([whole.writer.drawing("a red star", "en", [7] * 64)], tiny.pad)
    with torch.no_grad():
        assert torch.equal(whole.language(rows), loaded.language(rows))
    begun = new_system(config, whole.pictures.clip, whole.pictures.autoencoder).language
    same = {
        name: torch.equal(tensor.bfloat16().float(), whole.language.state_dict()[name])
        for name, tensor in begun.state_dict().items()
        if not begun.is_new(name)
    }
    adapted = {name for name in same if name.split(".")[-2] in smollm.ADAPTED}
    assert {name for name in same if not same[name]} == (adapted if rank else set(same))


def test_stage_3_of_a_run_leaves_the_backbone(tiny, tmp_path):
    config = dataclasses.replace(RUN, instruction_steps=0)
    ended = train_system(config, tmp_path, progress=False)
    begun = new_system(config, ended.pictures.clip, ended.pictures.autoencoder).language
    for name, tensor in begun.state_dict().items():
        # Rounding, which is done once at the end, is all that was done to it.
        same = torch.equal(tensor.bfloat16().float(), ended.language.state_dict()[name])
        assert same != (begun.is_new(name) and "codebook" not in name), name


def test_the_commands_work_with_it(tiny, tmp_path):
    system = new_system(RUN, scene_clip(trained=True), tokenizer())
    assert isinstance(system, System)
    system.language.eval()
    chat = Chat(system, tmp_path)
    assert chat.say("look 3").startswith("(you are shown: a ")
    assert isinstance(chat.say("what is in the picture?"), str)
    assert len(chat.turns) == 2
    marks = marks_of(system, 2)
    assert set(marks) >= {"ask_all", "ask_blind_all", "ask_commonest", "caption_en_attributes"}
    assert json.loads(json.dumps(marks)) == marks


def test_answers_may_be_longer_in_its_words(tiny, monkeypatch):
    system = new_system(RUN, scene_clip(trained=True), tokenizer())
    word = torch.tensor(tiny.encode("star")[0])

    def tell(known):  # a model that says the same for ever
        return torch.nn.functional.one_hot(word.expand(len(known)), tiny.size).float()

    monkeypatch.setattr(system.language, "tell", tell)
    assert system.known.most > words().most
    (said,) = answers(system, [[Turn("hello")]])
    (short,) = answers(system, [[Turn("hello")]], most=7)
    assert said.text == tiny.decode([int(word)] * tiny.most)
    assert short.text == tiny.decode([int(word)] * 7)


# --- costs, configurations, words --------------------------------------------------------------


@pytest.mark.slow
def test_costs():
    config = SystemConfig(backbone="smollm2-135m", row=256, lora_rank=8)
    found, all_weights = cost(config), cost(dataclasses.replace(config, lora_rank=0))
    new = 1_199_744
    assert all_weights.parameters == 134_515_008 + new
    # Of each of 30 blocks: width in and out of seven matrices.
    added = 30 * 8 * ((576 + 576) * 2 + (576 + 192) * 2 + (576 + 1536) * 3)
    assert found.parameters == all_weights.parameters + added
    assert found.optimizer == pytest.approx(8 * (new + added), rel=0.001)
    assert all_weights.optimizer == pytest.approx(8 * all_weights.parameters, rel=0.001)
    assert found.flops < 0.8 * all_weights.flops


def test_configurations_that_cannot_be():
    config = SystemConfig()
    object.__setattr__(config, "backbone", "gpt")  # past the tests' own check of types
    with pytest.raises(ValueError, match="backbone must be one of .*: got 'gpt'"):
        config.__post_init__()
    with pytest.raises(ValueError, match="from_painter must be off with a pretrained backbone"):
        dataclasses.replace(PROFILES["smoke"], backbone="smollm2-135m")
    for changes in ({}, {"chinese": 0.0}, {"pretraining_chinese": 0.0}):
        with pytest.raises(ValueError, match="row must be at least 256 for Chinese"):
            SystemConfig(backbone="smollm2-135m", **changes)
    SystemConfig(backbone="smollm2-135m", chinese=0.0, pretraining_chinese=0.0)
    config = SystemConfig(backbone="smollm2-135m", row=256, dim=3, heads=2)  # not looked at
    assert config.language(9).dim == 576
    for changes in ({"dim": 24}, {"words": 9}):
        sizes = {"words": WORDS, "dim": 32, "heads": 4} | changes
        with pytest.raises(ValueError, match=f"{next(iter(changes))} must be the Transformer's"):
            PretrainedLM(LanguageConfig(**sizes), torch.zeros(CODES, 5), reference().model)


def check_words(known):
    for text in ("a small red star", "在左边有一个红色的小星形", "déjà vu 🙂"):
        assert known.decode(known.encode(text)) == text
    for forged in ("<|im_end|>", "<|im_start|>user", "<|endoftext|>"):
        ids = known.encode(forged)
        assert not set(ids) & {known.begin, known.end, known.pad}
        assert known.decode(ids) == forged
    numbers = [known.marker(marker) for marker in Marker]
    assert numbers == list(range(known.size - 6, known.size))
    mixed = [known.begin, *known.encode("a star"), numbers[1], known.end, known.pad]
    assert known.decode(torch.tensor(mixed)) == "a star"
    with pytest.raises(ValueError):
        known.encode("\ud800")


def test_words(tiny):
    check_words(tiny)


# --- SmolLM2 itself ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2():
    path = pretrained.files("smollm2-135m")["weights"]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    return theirs, smollm.smollm_words()


class TestSmolLM2:
    pytestmark = needs_weights

    def test_sizes(self, smollm2):
        found = smollm2[0].config
        for name, value in SIZES.items():
            if name == "rms_norm_eps":
                assert found.rms_norm_eps == pytest.approx(value)
            elif name != "pad_token_id":
                assert getattr(found, name) == value, name
        assert sum(p.numel() for p in smollm2[0].parameters()) == 134_515_008

    @torch.no_grad()
    def test_it_is_transformers_model(self, smollm2):
        theirs, known = smollm2
        config = SystemConfig(backbone="smollm2-135m", row=256).language(known.size)
        ours = smollm.language_model(config, torch.randn(512, 32), known).eval()
        names = ours.word.markers.weight
        assert torch.equal(
            names[Marker.DRAW], ours.word.table.weight[known.encode("draw")].mean(dim=0)
        )
        shape = (16, 256)
        compare(ours, theirs, pad(texts(), 0, shape=shape))
        compare(ours, theirs, pad(texts(), 0, left=True, shape=shape))
        # Numbers of its stream are up to 25,600, where fp32 rounds by 0.002: sums over a longer row
        # come in another order and differ by 7e-4. In fp64 nothing is left of it.
        exact = copy.deepcopy(ours).double(), copy.deepcopy(theirs).double()
        compare(*exact, pack(texts(), 0, 12, shape=shape))
        del exact
        # It goes on as transformers does.
        prompt = [known.begin, *known.encode("The capital of France is")]
        given = torch.tensor([prompt])
        wanted = theirs.generate(given, max_new_tokens=8, do_sample=False, eos_token_id=2)
        (said,) = write(ours, known, [Document().words(prompt)], most=8)
        assert said == wanted[0, len(prompt) :].tolist()
        assert "Paris" in known.decode(said)

    def test_words(self, smollm2):
        known = smollm2[1]
        assert (known.begin, known.end, known.pad, known.size) == (1, 2, 0, 49_158)
        check_words(known)
        drawn = scenes.sample(200, 3, split="train", objects=(1, 2))

        def pieces(of, language):
            texts = [scenes.caption(scene, language) for scene in drawn]
            return sum(len(of.encode(text)) for text in texts) / len(texts)

        assert pieces(known, "en") < 1.2 * pieces(words(), "en")
        assert 1.5 < pieces(known, "zh") / pieces(words(), "zh") < 2.5
