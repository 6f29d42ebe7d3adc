"""The decoder that uncovers codes: conditions, loss, order, exact draws, learning, bad input."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from mmlib import scene_unmasking
from mmlib.dalle import Dalle, DalleConfig
from mmlib.data import scenes
from mmlib.painters import caption_ids, scene_dalle, tokenizer
from mmlib.scene_unmasking import paint_uncovered, scene_unmasker
from mmlib.unmasking import Unmasker, uncover

CONFIG = DalleConfig(words=11, text_length=4, codes=9, side=2, dim=24, heads=3, layers=2)
TEXT = torch.tensor([[1, 5, 2, 0], [1, 6, 7, 2], [1, 8, 2, 0]])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def small(dtype=torch.float64, config=CONFIG):
    torch.manual_seed(0)
    made = Unmasker(config, torch.randn(config.codes, 5), vector=6)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return made.to(dtype).eval()


def vectors(count=3, seed=1, dtype=torch.float64):
    return torch.randn(count, 6, generator=generator(seed), dtype=dtype)


def some_codes(count=3, seed=2):
    return torch.randint(9, (count, 4), generator=generator(seed))


def drops(*rows):
    return torch.tensor(rows)


def test_hidden_codes_are_not_seen_and_shown_ones_are_seen_everywhere():
    model, codes = small(), some_codes()
    shown = torch.tensor([[True, False, True, False]]).expand(3, 4)
    before = model.logits(codes, shown, vectors(), TEXT)
    other = codes.clone()
    other[:, [1, 3]] = (other[:, [1, 3]] + 1) % 9
    assert model.logits(other, shown, vectors(), TEXT).equal(before)
    other[:, 2] = (codes[:, 2] + 1) % 9
    changed = model.logits(other, shown, vectors(), TEXT)
    # The code before it hears of it, too: nothing is read from left to right alone.
    assert bool(((changed - before).abs().amax(2) > 1e-6).all())


def test_the_vector_counts_by_its_direction_alone():
    model, codes, shown = small(), some_codes(), torch.ones(3, 4, dtype=torch.bool)
    first = model.logits(codes, shown, vectors(), TEXT)
    torch.testing.assert_close(model.logits(codes, shown, 7 * vectors(), TEXT), first)
    assert not torch.allclose(model.logits(codes, shown, -vectors(), TEXT), first)


@pytest.mark.parametrize("part", [0, 1])
def test_each_condition_is_heard_and_can_be_left_out(part):
    model, codes, shown = small(), some_codes(), torch.zeros(3, 4, dtype=torch.bool)
    given = {0: (-vectors(), TEXT), 1: (vectors(), TEXT.flip(0))}[part]
    drop = torch.zeros(3, 2, dtype=torch.bool)
    plain = model.logits(codes, shown, vectors(), TEXT, drop)
    assert plain.equal(model.logits(codes, shown, vectors(), TEXT))
    assert not torch.allclose(plain, model.logits(codes, shown, *given))
    drop[:, part] = True
    without = model.logits(codes, shown, vectors(), TEXT, drop)
    assert without.equal(model.logits(codes, shown, *given, drop))
    assert not torch.allclose(without, plain)


def test_the_loss_is_torch_s_cross_entropy_of_hidden_codes():
    model, codes = small(), some_codes()
    drop = drops([True, False], [False, True], [False, False])
    dice = generator(3)
    time = torch.rand(3, 1, generator=dice)
    shown = torch.rand(3, 4, generator=dice) < time
    assert 0 < shown.sum() < shown.numel()
    logits = model.logits(codes, shown, vectors(), TEXT, drop)
    targets = codes.masked_fill(shown, -100)
    expected = F.cross_entropy(logits.transpose(1, 2), targets).float()
    torch.testing.assert_close(model.loss(codes, vectors(), TEXT, drop, generator(3)), expected)


def test_every_parameter_gets_a_gradient():
    model = small()
    model.loss(some_codes(), vectors(), TEXT, drops([1, 0], [0, 0], [0, 1]) > 0).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_nothing_hidden_costs_nothing_and_spoils_nothing(monkeypatch):
    model = small()
    monkeypatch.setattr(torch, "rand", lambda *size, **_: torch.full(_size(size), 0.5))
    monkeypatch.setattr(torch.Tensor, "__lt__", lambda a, b: torch.ones_like(a, dtype=torch.bool))
    loss = model.loss(some_codes(1), vectors(1), TEXT[:1])
    monkeypatch.undo()
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())


def _size(size):
    return size[0] if isinstance(size[0], torch.Size) else size


def test_it_begins_with_dalle_s_weights_and_its_order_of_telling():
    # If no token listens to another, what comes after it makes no difference: both say the same.
    torch.manual_seed(1)
    codebook = torch.randn(9, 5)
    dalle = Dalle(CONFIG, codebook)
    model = Unmasker(CONFIG, torch.randn(9, 5), vector=6).start_from(dalle)
    for name in ("word", "word_position", "row", "column"):
        assert getattr(model, name).weight.equal(getattr(dalle, name).weight)
    assert model.code_head().equal(dalle.code_head())
    assert model.code().equal(dalle.code())
    for block in (*dalle.decoder.blocks, *model.encoder.blocks):  # nobody listens to others
        torch.nn.init.zeros_(block.self_attention.out_proj.weight)
        torch.nn.init.zeros_(block.self_attention.out_proj.bias)
    codes, shown = some_codes(), torch.ones(3, 4, dtype=torch.bool)
    with torch.no_grad():
        found = model.logits(codes, shown, vectors().float(), TEXT)
        torch.testing.assert_close(found, dalle(TEXT, codes).codes)


@pytest.mark.parametrize(
    "other",
    [
        lambda: Dalle(replace(CONFIG, layers=3), torch.randn(9, 5)),
        lambda: Dalle(CONFIG),
    ],
)
def test_it_begins_with_no_other_model(other):
    with pytest.raises(ValueError, match="sizes"):
        small().start_from(other())


class Known(Unmasker):
    """A model that knows the answer: two codes that are alike in 80 of 100 pictures."""

    side = 2

    def __init__(self):
        super().__init__(replace(CONFIG, codes=2, side=self.side), torch.randn(2, 5), vector=6)

    joint = torch.tensor([[0.5, 0.1], [0.1, 0.3]])

    def logits(self, codes, shown, vectors, text, drop=None):
        """Of places 0 and 1; 2 and 3 are always code 1."""
        out = torch.full((len(codes), 4, 2), -30.0)
        out[:, 2:, 1] = 0
        for place in (0, 1):
            joint = self.joint if place == 0 else self.joint.T
            told = joint[:, codes[:, 1 - place]].T  # given the other
            seen = shown[:, 1 - place, None]
            out[:, place] = torch.where(seen, told, joint.sum(1)).log()
        return out


def frequencies(**options):
    count = 20_000
    text, given = torch.ones(count, 4, dtype=torch.long), torch.zeros(count, 6)
    codes = uncover(Known(), given, text, generator(4), **options).flatten(1)
    assert bool((codes[:, 2:] == 1).all())
    return torch.bincount(2 * codes[:, 0] + codes[:, 1], minlength=4).reshape(2, 2) / count


def test_one_code_at_a_time_in_random_order_draws_from_the_joint_distribution():
    assert (frequencies(steps=4) - Known.joint).abs().max() < 0.012


def test_all_at_once_draws_each_code_alone():
    alone = Known.joint.sum(1)
    assert (frequencies(steps=1) - alone[:, None] * alone).abs().max() < 0.012


def test_temperature_zero_takes_the_most_probable():
    found = frequencies(steps=4, temperature=0, noise=0.0)
    assert found[0, 0] == 1


def test_guidance_is_that_of_log_probabilities():
    class Guided(Known):
        def logits(self, codes, shown, vectors, text, drop=None):
            out = torch.zeros(len(codes), 4, 2)
            out[..., 0] = torch.where(drop.all(1), 1.0, 2.0)[:, None]
            return out

    count = 5000
    text, given = torch.ones(count, 4, dtype=torch.long), torch.zeros(count, 6)
    for scale in (0.0, 3.0):
        codes = uncover(Guided(), given, text, generator(5), guidance=scale, steps=1)
        logits = (1 - scale) * torch.tensor([1.0, 0.0]).log_softmax(0)
        logits = logits + scale * torch.tensor([2.0, 0.0]).log_softmax(0)
        expected = logits.softmax(0)[1].item()
        assert codes.double().mean().item() == pytest.approx(expected, abs=0.012)


@pytest.mark.parametrize("noise", [0.0, math.inf])
def test_what_comes_first(noise):
    # In each of 64 places one code of two; the later the place, the surer.
    class Sure(Known):
        side = 8

        def logits(self, codes, shown, vectors, text, drop=None):
            self.seen.append(shown.clone())
            margin = torch.linspace(0, 3, 64).expand(len(codes), -1)
            return torch.stack([margin, -margin], dim=2)

    model = Sure()
    model.seen = []
    options = {"noise": noise, "steps": 8, "temperature": 0}
    uncover(model, torch.zeros(50, 6), TEXT[:1].expand(50, 4), generator(6), **options)
    shares = [shown.double().sum(1) for shown in model.seen]
    wanted = [math.ceil(64 * (1 - math.cos(math.pi / 2 * k / 8)) - 1e-6) for k in range(8)]
    assert [x.unique().tolist() for x in shares] == [[float(n)] for n in wanted]
    last = model.seen[4][:, 45:].double().mean()  # 19 of 64 are shown by then
    assert last == 1 if noise == 0 else 0.2 < last < 0.4
    for before, after in zip(model.seen, model.seen[1:], strict=False):
        assert bool((after | ~before).all())  # what is shown stays


def test_noise_draws_what_comes_first_by_its_probability():
    # Gumbel's trick: the largest of log p + g is place j in p_j of sum(p) cases.
    class Unequal(Known):
        def logits(self, codes, shown, vectors, text, drop=None):
            self.seen.append(shown.clone())
            surest = torch.tensor([0.6, 0.7, 0.8, 0.9]).expand(len(codes), -1)
            return torch.stack([surest, 1 - surest], dim=2).log()

    model, count = Unequal(), 20_000
    model.seen = []
    text, given = torch.ones(count, 4, dtype=torch.long), torch.zeros(count, 6)
    options = {"noise": 4 / 3, "steps": 4, "temperature": 0}  # after one of four steps: 1
    uncover(model, given, text, generator(8), **options)
    found = model.seen[1].double().mean(0)
    expected = torch.tensor([0.6, 0.7, 0.8, 0.9]).double() / 3
    assert (found - expected).abs().max() < 0.012


def test_a_code_that_is_shown_is_never_drawn_again():
    class Coin(Known):
        side = 8
        before = kept = None

        def logits(self, codes, shown, vectors, text, drop=None):
            if self.before is not None:
                assert codes[self.before].equal(self.kept)
            self.before, self.kept = shown.clone(), codes[shown].clone()
            return torch.zeros(len(codes), 64, 2)

    uncover(Coin(), torch.zeros(9, 6), TEXT[:1].expand(9, 4), generator(7), steps=16)


def test_drawing_depends_on_the_seed_alone():
    model, state = small(torch.float32), torch.get_rng_state()
    given = vectors().float()
    first = uncover(model, given, TEXT, generator(1), guidance=2.0, steps=3)
    assert first.equal(uncover(model, given, TEXT, generator(1), guidance=2.0, steps=3))
    assert not first.equal(uncover(model, given, TEXT, generator(2), guidance=2.0, steps=3))
    assert torch.get_rng_state().equal(state)


def test_it_learns_pictures_whose_codes_hang_together_and_what_the_words_say():
    # All four codes are the first or all the second, by the second word; without it a coin.
    torch.manual_seed(0)
    config = replace(CONFIG, dim=48, heads=2)
    model, dice = Unmasker(config, torch.randn(9, 5), vector=6), generator(9)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(150):
        sign = torch.randint(2, (128,), generator=dice)
        text = torch.tensor([[1, 5, 2, 0]]).repeat(128, 1)
        text[:, 1] += sign
        drop = torch.rand(128, 2, generator=dice) < 0.4
        optimizer.zero_grad()
        codes = sign[:, None].expand(-1, 4)
        model.loss(codes, torch.ones(128, 6), text, drop, dice).backward()
        optimizer.step()
    text = torch.tensor([[1, 5, 2, 0], [1, 6, 2, 0]]).repeat(100, 1)
    told = uncover(model.eval(), torch.ones(200, 6), text, dice, steps=4).flatten(1)
    assert (told == torch.tensor([[0], [1]]).repeat(100, 1)).double().mean() > 0.97
    untold = uncover(
        model, torch.ones(200, 6), text, dice, drop=torch.ones(200, 2) > 0, steps=4
    ).flatten(1)
    assert (untold == untold[:, :1]).all(1).double().mean() > 0.9  # by chance an eighth
    assert 0.3 < untold[:, 0].double().mean() < 0.7


def test_what_is_uncovered_is_painted_by_the_tokenizer():
    model = scene_unmasker()
    text = caption_ids(scenes.sample(3, 0, objects=1))
    given = torch.randn(3, 128, generator=generator(0))
    options = {"guidance": 2.0, "steps": 2}
    found = paint_uncovered(model, given, text, generator(1), **options)
    codes = uncover(model, given, text, generator(1), **options)
    with torch.no_grad():
        torch.testing.assert_close(found, tokenizer().decode(codes))


def test_the_scenes_decoder_comes_from_its_seed_from_dalle_or_from_the_long_run():
    state = torch.get_rng_state()
    plain, again, other = scene_unmasker(), scene_unmasker(), scene_unmasker(seed=1)
    assert torch.get_rng_state().equal(state)
    assert plain.given[0].weight.equal(again.given[0].weight)
    assert not plain.given[0].weight.equal(other.given[0].weight)
    begun, trained = scene_unmasker(begun=True), scene_unmasker(trained=True)
    assert begun.word.weight.equal(scene_dalle(trained=True).word.weight)
    assert begun.given[0].weight.equal(plain.given[0].weight)
    assert not trained.training
    assert not trained.word.weight.equal(begun.word.weight)
    assert trained.vector == scene_unmasking.CLIP_WIDTH


@pytest.mark.parametrize(
    ("call", "error", "word"),
    [
        (lambda u: Unmasker(CONFIG, torch.ones(8, 5), 6), ValueError, "codebook"),
        (lambda u: Unmasker(CONFIG, torch.ones(9, 5), 0), ValueError, "vector"),
        (lambda u: logits(u, codes=some_codes()[:, :3]), ValueError, "codes"),
        (lambda u: logits(u, codes=some_codes() + 9), ValueError, "codes"),
        (lambda u: logits(u, codes=some_codes().float()), TypeError, "codes"),
        (lambda u: logits(u, shown=torch.ones(3, 3) > 0), ValueError, "shown"),
        (lambda u: logits(u, given=torch.ones(3, 5).double()), ValueError, "vectors"),
        (lambda u: logits(u, text=TEXT[:, :3]), ValueError, "text"),
        (lambda u: logits(u, drop=torch.ones(3) > 0), ValueError, "drop"),
        (lambda u: drawn(u, steps=0), ValueError, "steps"),
        (lambda u: drawn(u, steps=5), ValueError, "steps"),
        (lambda u: drawn(u, noise=-1.0), ValueError, "noise"),
        (lambda u: drawn(u, noise=math.nan), ValueError, "noise"),
        (lambda u: drawn(u, guidance=math.inf), ValueError, "guidance"),
        (lambda u: drawn(u, temperature=-1.0), ValueError, "temperature"),
    ],
)
def test_bad_input_is_named(unchecked, call, error, word):
    with pytest.raises(error, match=word):
        call(unchecked)


def logits(u, codes=None, shown=None, given=None, text=TEXT, drop=None):
    codes = some_codes() if codes is None else codes
    shown = torch.ones(3, 4, dtype=torch.bool) if shown is None else shown
    given = vectors() if given is None else given
    return u(Unmasker.logits)(small(), codes, shown, given, text, drop)


def drawn(u, **options):
    return u(uncover)(small(), vectors(), TEXT, **{"steps": 4} | options)
