"""The long run of chapter 13: what chooses its rates, whose questions a seed has, what learns."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from mmlib.data import scenes
from mmlib.data.scene_places import FORMS
from mmlib.scene_vqa import ask_places, ask_scenes, batches
from mmlib.training.optimizer import learning_rate_at

SCRIPT = Path(__file__).parents[2] / "book" / "training" / "ch13.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("ch13", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["ch13"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["ch13"]


@pytest.fixture(scope="module")
def few():
    return ask_scenes(scenes.sample(12, 5, split="train", objects=(1, 3)), 5)


@pytest.fixture(scope="module")
def pool():
    return ask_places(scenes.sample(60, 11, split="train", objects=(1, 3)), 11)


def questions(asked):
    """What was asked about which picture, with its answer."""
    return [
        (asked.images[of].sum().item(), text, kind, answer, tuple(ids[keep].tolist()))
        for of, text, kind, answer, ids, keep in zip(
            asked.of.tolist(),
            asked.texts,
            asked.kinds,
            asked.answers.tolist(),
            asked.ids,
            asked.keep,
            strict=True,
        )
    ]


def test_a_seeds_questions_keep_their_pictures_and_are_its_own(script, pool):
    parts = [questions(script.part_of(pool, 20, seed)) for seed in range(3)]
    every = questions(pool)
    for seed, part in enumerate(parts):
        assert len(part) == 20 and abs(every.index(part[0]) - 20 * seed) <= 1
        assert part == every[every.index(part[0]) :][:20]
    some = script.taken(pool, [3, 4, 9])
    assert questions(some) == [every[row] for row in (3, 4, 9)]


def test_rates_are_chosen_with_wordings_and_scenes_of_their_own(script, pool):
    train, held = script.choosing_sets(pictures=60, tests=60)
    for kind, forms in FORMS.items():
        apart = [form for form in forms["train"] if form.startswith(script.HELD)]
        assert len(apart) == 2, kind
        assert not set(apart) & set(forms["test"])
    assert all(text.startswith(script.HELD) for text in held.texts)
    assert not any(text.startswith(script.HELD) for text in train.texts)
    starts = [form.split("{}")[0] for forms in FORMS.values() for form in forms["train"]]
    for asked in (train, held):
        assert set(asked.kinds) == set(FORMS) and len(asked) > 20
        assert all(any(text.startswith(start) for start in starts) for text in asked.texts)
    assert not set(map(repr, held.images.sum((1, 2)))) & set(map(repr, train.images.sum((1, 2))))
    tests = ask_places(scenes.sample(60, 12, split="test", objects=(1, 3)), 12, "test")
    assert not set(tests.texts) & {*train.texts, *held.texts, *pool.texts}


def test_the_rate_that_answers_best_is_taken(script, pool, monkeypatch):
    right = {rate: 0.1 for rates in script.RATES.values() for rate in rates}
    right |= {1e-2: 0.9, 2e-3: 0.5, 1.7e-3: 0.6}
    given = []

    def tuned(method, asked, seed, steps, rate):
        given.append((asked, seed, steps))
        return rate, 0.0

    monkeypatch.setattr(script, "choosing_sets", lambda: (pool, "held"))
    monkeypatch.setattr(script, "tuned", tuned)
    monkeypatch.setattr(script, "accuracies", lambda rate, asked: {"all": right[rate]})
    monkeypatch.setitem(script.STEPS, 30, 7)
    found = script.chosen_rates(30)
    assert found == {
        "frozen": 0.0, "head": 1e-2, "bitfit": 1e-2, "lora_2": 2e-3, "lora_8": 2e-3, "full": 1.7e-3,
    }  # fmt: skip
    assert all(len(asked) == 30 and steps == 7 for asked, _, steps in given)
    assert {seed for _, seed, _ in given}.isdisjoint(script.SEEDS)


@pytest.mark.parametrize("method", ["frozen", "head", "bitfit", "lora_2", "full"])
def test_each_way_trains_what_it_says_and_keeps_the_old_head(script, pool, method):
    model = script.prepared(method, 0)
    old = model.old_head[0]
    learns = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learns and not any(name.startswith("image.") for name in learns)
    assert (learns <= {"head.weight", "head.bias"}) == (method in ("frozen", "head"))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    kept = old.weight.detach().clone()
    asked = script.looked_at(pool.first(20), model.image)
    if method == "frozen":
        script.class_means(model, asked)
    else:
        config = script.TrainConfig(2, learning_rate=1e-2, progress=False)
        script.fit(model, script.question_loss, batches(asked, 4, 0), config)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved and moved <= learns
    assert torch.equal(old.weight, kept) and len(model.old_head) == 1


def test_class_means_answer_with_the_nearest(script, pool):
    model, asked = script.prepared("frozen", 0), pool.first(20)
    found = []
    handle = model.norm.register_forward_hook(lambda module, given, out: found.append(out))
    with torch.no_grad():
        model(asked.ids, asked.keep, asked.images, asked.of)
    handle.remove()
    script.class_means(model, asked)
    there = sorted(set(asked.answers.tolist()))
    means = torch.stack([found[0][asked.answers == answer].mean(0) for answer in there])
    nearest = [there[i] for i in torch.cdist(found[0], means).argmin(1).tolist()]
    with torch.no_grad():
        logits = model(asked.ids, asked.keep, asked.images, asked.of).logits[:, there]
    assert [there[i] for i in logits.argmax(1).tolist()] == nearest


@pytest.mark.parametrize("kind", ["clean", "fgm", "pgd"])
def test_the_words_are_locked_against_an_adversary(script, few, kind):
    start = script.scene_reader(trained=True)
    model, _ = script.armed(few, kind, 1.0, 2)
    assert torch.equal(model.token.weight, start.token.weight)
    assert not torch.equal(model.head.weight, start.head.weight)
    assert not torch.equal(model.region_pos, start.region_pos)
    assert not any(p.requires_grad for p in model.parameters())


def test_an_adversary_adds_half_of_its_loss(script, few):
    model = script.scene_reader(trained=True)
    batch = batches(few, 6)(0)
    clean, count = script.adversarial_loss("clean", 1.0)(model, batch)
    torch.testing.assert_close(clean, script.question_loss(model, batch)[0])
    assert count == len(batch[0])
    for kind in ("fgm", "pgd"):
        same, _ = script.adversarial_loss(kind, 0.0)(model, batch)
        torch.testing.assert_close(same, clean)
        assert script.adversarial_loss(kind, 1.0)(model, batch)[0] > 1.1 * clean


def test_attacks_take_more_answers_than_noise(script, few):
    model = script.scene_reader(trained=True).requires_grad_(False)
    noise, fgm, pgd = (script.robustness(model, few, 1.0, how) for how in ("noise", "fgm", "pgd"))
    assert script.robustness(model, few, 0.0, "pgd") == script.accuracies(model, few)["all"]
    assert noise > fgm >= pgd


def test_a_watched_run_is_measured_on_the_way_and_may_start_quiet(script, few, monkeypatch):
    noted = []
    monkeypatch.setattr(script, "note", lambda name, value, *rest, **more: noted.append(name))
    asked = script.looked_at(few, script.scene_reader().image)
    script.reader_run(asked, 4, watched=(asked, 2))
    assert [name for name in noted if name.endswith("all")] == ["curve_2_all", "curve_4_all"]
    assert {name.rpartition("_")[2] for name in noted} == {"all", *asked.kinds}
    quiet = script.reader_run(asked, 1, places=0.02)
    assert quiet.region_pos.std().item() == pytest.approx(0.02, abs=0.01)


def test_the_first_steps_of_a_run_are_made_at_its_rates(script, few, monkeypatch):
    configs = []
    monkeypatch.setattr(script, "fit", lambda *given, **more: configs.append(given[3]))
    for steps, whole in ((2000, 8000), (8000, None)):
        script.reader_run(few, steps, whole=whole)

    def rates(c):
        return [
            learning_rate_at(n, c.steps, c.learning_rate, c.warmup, c.final)
            for n in range(0, 2000, 50)
        ]

    part, whole = map(rates, configs)
    assert part == pytest.approx(whole, rel=0.04)
    assert configs[1].final == 0 and part[-1] > 0.8 * max(part)
