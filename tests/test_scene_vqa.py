"""Questions about scenes as tensors, and the small models of chapter 13."""

import inspect

import pytest
import torch
from safetensors.torch import load_file

from mmlib.data import easy_vqa, scenes
from mmlib.data.scenes import DEFAULT_HOLDOUT
from mmlib.easy_model import (
    KnownQuestions,
    LargestCNN,
    easy_accuracy,
    easy_answers,
    easy_batches,
    easy_loss,
)
from mmlib.easy_model import easy_vqa as easy_model
from mmlib.scene_vqa import (
    CHECKPOINTS,
    PLACE_ANSWERS,
    SCENE_ANSWERS,
    VOCABULARY,
    MergedRegions,
    accuracies,
    ask_places,
    ask_scenes,
    batches,
    blind,
    looked_at,
    question_loss,
    scene_reader,
)

DRAWN = scenes.sample(60, 1, split="train")


@pytest.fixture(scope="module")
def asked():
    return ask_scenes(DRAWN, 1)


def test_every_word_is_known(asked):
    more = ask_places(DRAWN, 1), ask_places(DRAWN, 1, "test")
    for questions in (asked, *more):
        assert not (questions.ids == 1).any()
        for row, keep, text in zip(questions.ids, questions.keep, questions.texts, strict=True):
            assert [VOCABULARY[i] for i in row[keep]] == easy_vqa.tokenize(text)


def test_questions_keep_their_pictures_and_answers(asked):
    assert torch.equal(asked.images, scenes.render(DRAWN, 32))
    assert (asked.of.diff() >= 0).all() and set(asked.kinds) == set(scenes.KINDS)
    at = 0
    for i, scene in enumerate(DRAWN):
        for question in scenes.questions(scene, 7919 + i, holdout=DEFAULT_HOLDOUT):
            assert asked.texts[at] == question.text and asked.of[at] == i
            assert SCENE_ANSWERS[asked.answers[at]] == question.answer
            at += 1
    assert at == len(asked)
    few = asked.first(7)
    assert len(few) == 7 and few.texts == asked.texts[:7]
    assert len(few.images) == int(asked.of[6]) + 1


def test_a_batch_is_whole_pictures_with_their_questions(asked):
    draw = batches(asked, 5, seed=2)
    ids, keep, images, of, answers = draw(3)
    assert len(images) == 5 and len(ids) == len(of) == len(answers)
    known = {tuple(row[k].tolist()) for row, k in zip(asked.ids, asked.keep, strict=True)}
    for k, picture in enumerate(images):
        number = next(i for i, other in enumerate(asked.images) if torch.equal(other, picture))
        mine = (asked.of == number).sum()
        assert (of == k).sum() == mine
        for row in (of == k).nonzero().flatten():
            assert tuple(ids[row][keep[row]].tolist()) in known
    assert torch.equal(draw(3)[4], answers)
    assert not torch.equal(batches(asked, 5, seed=3)(3)[2], images)
    # And no seed's run is another's, begun later.
    assert not torch.equal(batches(asked, 5, seed=3)(2)[2], images)


def test_what_is_hidden_is_hidden(asked):
    dark, mute = blind(asked, "pictures"), blind(asked, "words")
    assert not dark.images.any() and torch.equal(dark.ids, asked.ids)
    assert mute.ids.unique().tolist() == [1] and torch.equal(mute.images, asked.images)
    assert mute.ids.shape == (len(asked), 1) and mute.keep.all()  # nor how many words there were
    assert asked.images.any() and asked.keep.any()


def test_four_regions_become_one():
    tower = MergedRegions(8).eval()
    images = torch.rand(2, 3, 16, 32)
    fine = tower.inner(images).tokens.reshape(2, 4, 8, 8)
    tokens = tower(images).tokens.reshape(2, 2, 4, 8, 2, 2)
    for row in range(4):
        for column in range(8):
            torch.testing.assert_close(
                tokens[:, row // 2, column // 2, :, row % 2, column % 2], fine[:, row, column]
            )
    with pytest.raises(ValueError, match="multiples of 8"):
        tower(torch.rand(1, 3, 20, 16))


def test_a_tower_in_training_looks_in_eval_mode_and_goes_on(asked):
    few, tower = asked.first(20), scene_reader().image
    want = looked_at(few, tower).images
    stood = {name: value.clone() for name, value in tower.state_dict().items()}
    assert torch.equal(looked_at(few, tower.train()).images, want)
    assert all(module.training for module in tower.modules())
    assert all(torch.equal(value, stood[name]) for name, value in tower.state_dict().items())


def test_the_tower_is_that_of_chapter_08():
    state = load_file(CHECKPOINTS / "08_scenes_lstm.safetensors")
    tower = scene_reader(seed=3).image.inner.state_dict()
    for name, value in tower.items():
        torch.testing.assert_close(value, state[f"encoder.{name}"].to(value.dtype), rtol=0, atol=0)


def test_a_locked_tower_looks_once(asked):
    model = scene_reader()
    assert not any(p.requires_grad for p in model.image.parameters())
    seen = looked_at(asked, model.image)
    assert seen.images.shape == (60, 16, 256)
    few, same = asked.first(20), seen.first(20)
    for one, two in ((few, same),):
        a = model(one.ids, one.keep, one.images, one.of).logits
        b = model(two.ids, two.keep, two.images, two.of).logits
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_accuracies_are_counted_by_hand(asked):
    model = scene_reader()
    found = accuracies(model, asked)
    with torch.no_grad():
        said = model(asked.ids, asked.keep, asked.images, asked.of).logits.argmax(1)
    right = (said == asked.answers).double()
    assert found["all"] == pytest.approx(right.mean().item())
    for kind in scenes.KINDS:
        mine = torch.tensor([k == kind for k in asked.kinds])
        assert found[kind] == pytest.approx(right[mine].mean().item())
    other = torch.nn.Linear(128, len(SCENE_ANSWERS))
    torch.nn.init.zeros_(other.weight)
    other.bias.data = torch.nn.functional.one_hot(torch.tensor(3), len(SCENE_ANSWERS)).float()
    head = model.head
    given = accuracies(model, asked, other)["all"]
    assert given == pytest.approx((asked.answers == 3).double().mean().item())
    assert model.head is head and not model.training


def test_the_seed_makes_the_reader_and_leaves_torch_alone():
    state = torch.random.get_rng_state()
    one, same, other = (scene_reader(seed=seed).head.weight for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_loss_is_a_sum(asked):
    model = scene_reader()
    batch = batches(asked, 4)(0)
    total, count = question_loss(model, batch)
    logits = model(*batch[:4]).logits
    want = torch.nn.functional.cross_entropy(logits, batch[4]) * len(batch[4])
    torch.testing.assert_close(total, want)
    assert count == len(batch[4])


def small_easy():
    train = easy_vqa.load("train", progress=False).of_images(range(30))
    texts = sorted(set(train.questions))
    vectors = torch.randn(len(texts), 12, generator=torch.Generator().manual_seed(0))
    return train, KnownQuestions(texts, vectors)


def test_known_questions_are_looked_up():
    _, questions = small_easy()
    ids = questions.ids(questions.texts[3:5])
    assert torch.equal(questions(ids).pooled, questions.vectors[3:5])
    assert "vectors" not in questions.state_dict()


def test_the_largest_region_stands_for_the_picture():
    tower = LargestCNN(8).eval()
    images = torch.rand(2, 3, 64, 64)
    small = torch.nn.functional.interpolate(images, size=32, mode="area")
    want = tower.inner.layers(small).amax(dim=(2, 3))
    torch.testing.assert_close(tower(images).pooled, want)


def test_easy_batches_pass_over_all_pictures():
    train, questions = small_easy()
    draw = easy_batches(train, questions, pictures=10, seed=1)
    epoch = [draw(n) for n in range(3)]
    assert sum(len(batch[0]) for batch in epoch) == len(train)
    assert sorted(torch.cat([b[4] for b in epoch]).tolist()) == sorted(train.answers.tolist())
    ids, _, images, of, answers = epoch[0]
    # A moved or mirrored picture keeps its colours, by which it is found again.
    for k in range(10):
        colours = images[k].flatten(1).sum(1)
        near = [(train.images[i].float() / 255).flatten(1).sum(1) for i in range(30)]
        number = min(range(30), key=lambda i: (near[i] - colours).abs().sum().item())
        mine = [i for i, picture in enumerate(train.image_index.tolist()) if picture == number]
        texts = [train.questions[i] for i in mine]
        assert ids[of == k].flatten().tolist() == questions.ids(texts).flatten().tolist()
        assert answers[of == k].tolist() == train.answers[mine].tolist()


def test_easy_batches_are_moved_a_little_mirrored_half_of_the_time_and_in_a_new_order():
    train, questions = small_easy()
    draw = easy_batches(train, questions, pictures=30, seed=1)
    pictures = train.images.float() / 255
    moves, mirrored, orders = set(), 0, set()
    for n in range(24):  # each is an epoch
        images, order = draw(n)[2], []
        first = None
        for image in images[:3]:
            for number, picture in enumerate(pictures):
                both = (picture, picture.flip(2))
                if not torch.equal(picture.flatten(1).sort(1)[0], image.flatten(1).sort(1)[0]):
                    continue
                order.append(number)
                if first is None:  # one move for all pictures of a batch
                    fits = [
                        (side, down, along)
                        for side, seen in enumerate(both)
                        for down in range(-5, 6)
                        for along in range(-5, 6)
                        if torch.equal(seen.roll((down, along), (1, 2)), image)
                    ]
                    assert fits
                    first = fits[0]
        orders.add(tuple(order))
        mirrored += first[0]
        moves.add(first[1:])
    assert len(orders) > 12 and 3 < mirrored < 21
    assert len(moves) > 12
    assert max(abs(move) for pair in moves for move in pair) == 4


def test_the_fusion_and_the_norms_are_those_asked_for():
    _, questions = small_easy()
    state = torch.random.get_rng_state()
    plain, product = (
        easy_model(questions, "concat", normalise=False),
        easy_model(questions, "product"),
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (plain.config.fusion, plain.config.normalise) == ("concat", False)
    assert (product.config.fusion, product.config.normalise) == ("product", True)
    weights = [easy_model(questions, seed=seed).head[2].weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_answers_and_accuracy_of_easy_vqa():
    train, questions = small_easy()
    model = easy_model(questions)
    said = easy_answers(model, train)
    images = train.images[train.image_index].float() / 255
    with torch.no_grad():
        want = model(questions.ids(train.questions), None, images).argmax(1)
    assert torch.equal(said, want)
    assert easy_accuracy(model, train) == pytest.approx((want == train.answers).double().mean())
    total, count = easy_loss(model, easy_batches(train, questions, 4)(0))
    assert count > 4 and total.requires_grad


BAD = [
    (lambda a: blind(a, "sound"), "what"),
    (lambda a: a.first(0), "questions"),
    (lambda a: ask_places([], 0), "something can be asked"),
    (lambda a: scene_reader(len(PLACE_ANSWERS), trained=True), "answers"),
    (lambda a: KnownQuestions([]), "texts"),
    (lambda a: KnownQuestions(["a", "a"]), "texts"),
    (lambda a: KnownQuestions(["a"], torch.zeros(2, 3)), "vectors"),
    (lambda a: KnownQuestions(["a"], torch.zeros(1, 3)).ids(["b"]), "known"),
    (lambda a: KnownQuestions(["a"], torch.zeros(1, 3))(torch.tensor([[1]])), "ids"),
]


@pytest.mark.parametrize("call, words", BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_input(asked, call, words):
    with pytest.raises(ValueError, match=words):
        inspect.unwrap(call)(asked)
