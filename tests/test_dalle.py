"""DALL·E's Transformer: the sequence, the cache, the loss, generation, bad input."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from mmlib.dalle import CodeVectors, Dalle, DalleConfig
from mmlib.dalle_generate import generate
from mmlib.dalle_training import codes_to_hide, without_caption
from mmlib.sampling import guide

WORDS, LENGTH, CODES, SIDE = 11, 5, 13, 3
PLACES = SIDE**2


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def small(dtype=torch.float64, **changes):
    """A model whose positions and words are loud enough to be heard."""
    torch.manual_seed(0)
    sizes = {"words": WORDS, "text_length": LENGTH, "codes": CODES, "side": SIDE}
    model = Dalle(DalleConfig(**sizes | {"dim": 24, "heads": 3, "layers": 2} | changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model.to(dtype).eval()


def inputs(batch=3, seed=0):
    text = torch.randint(1, WORDS, (batch, LENGTH), generator=generator(seed))
    text[0, 3:] = 0  # a short one
    return text, torch.randint(CODES, (batch, PLACES), generator=generator(seed + 1))


def test_shapes_of_partial_pictures():
    model, (text, codes) = small(), inputs()
    whole = model(text, codes)
    assert whole.text.shape == (3, LENGTH - 1, WORDS)
    assert whole.codes.shape == (3, PLACES, CODES)
    for given in range(PLACES):
        part = model(text, codes[:, :given])
        torch.testing.assert_close(part.codes, whole.codes[:, : given + 1])
        torch.testing.assert_close(part.text, whole.text)


def test_no_token_sees_itself_or_a_later_one():
    model, (text, codes) = small(), inputs()
    before = model(text, codes)
    for place in range(PLACES):
        other = codes.clone()
        other[:, place] = (other[:, place] + 1) % CODES
        after = model(text, other)
        same = (after.codes == before.codes).all(-1).all(0)
        assert same[: place + 1].all()
        assert not same[place + 1 :].any()
        assert after.text.equal(before.text)
    for place in range(LENGTH):
        other = text.clone()
        other[:, place] = (other[:, place] + 1) % WORDS
        after = model(other, codes)
        assert (after.text[:, :place] == before.text[:, :place]).all()
        assert not (after.text[:, place:] == before.text[:, place:]).all(-1).any()
        assert not (after.codes == before.codes).all(-1).any()


def test_a_code_s_position_is_its_row_and_its_column():
    model, codes = small(), inputs()[1]
    with torch.no_grad():
        table = model.row.weight[:, None] + model.column.weight
        rows = model.row.weight.clone()
    expected = model.code(codes) + table.flatten(0, 1)
    torch.testing.assert_close(model._embed_codes(codes, 0), expected)
    torch.testing.assert_close(model._embed_codes(codes[:, 4:6], 4), expected[:, 4:6])
    with torch.no_grad():
        model.row.weight.copy_(rows.flip(0))
    assert not torch.allclose(model._embed_codes(codes, 0), expected)


def test_cached_logits_are_the_uncached():
    model, (text, codes) = small(), inputs()
    whole, cache = model(text, codes).codes, model.decoder.new_cache()
    found = [model.begin(text, cache)]
    found += [model.step(codes[:, place], cache) for place in range(PLACES - 1)]
    torch.testing.assert_close(torch.stack(found, dim=1), whole, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.5])
def test_cached_generation_is_the_uncached(guidance):
    model, (text, _) = small(), inputs(4)
    options = {"guidance": guidance, "temperature": 1.3, "top_k": 9, "top_p": 0.95}
    cached = generate(model, text, generator(7), **options)
    assert cached.shape == (4, SIDE, SIDE)
    assert cached.equal(generate(model, text, generator(7), use_cache=False, **options))


def test_loss_is_torch_s_cross_entropy():
    model, (text, codes) = small(), inputs()
    out = model(text, codes)
    words = F.cross_entropy(out.text.flatten(0, 1), text[:, 1:].flatten(), ignore_index=0)
    picture = F.cross_entropy(out.codes.flatten(0, 1), codes.flatten())
    for share in (0.0, 0.125, 1.0):
        expected = share * words + (1 - share) * picture
        # The loss is taken in fp32, whatever the weights are.
        torch.testing.assert_close(
            model.loss(text, codes, share), expected.float(), atol=1e-6, rtol=1e-6
        )
    torch.testing.assert_close(model.loss(text, codes), (words / 8 + picture * 7 / 8).float())


def test_hidden_codes_are_not_seen_by_those_after_them():
    model, (text, codes) = small(), inputs()
    hidden = torch.zeros(3, PLACES, dtype=torch.bool)
    hidden[:, 2] = hidden[1, 5] = True
    out = model(text, codes, hidden)
    other = codes.where(~hidden, (codes + 1) % CODES)
    torch.testing.assert_close(model(text, other, hidden).codes, out.codes)
    plain = model(text, codes)
    torch.testing.assert_close(out.codes[:, :3], plain.codes[:, :3])
    assert not (out.codes[:, 3:] == plain.codes[:, 3:]).all(-1).any()
    none = torch.zeros_like(hidden)
    assert model(text, codes, none).codes.equal(plain.codes)


def test_a_hidden_code_is_its_place_alone():
    model, codes = small(), inputs()[1]
    hidden = codes_to_hide(3, PLACES, 0.9, generator(4))
    place = (model.row.weight[:, None] + model.column.weight).flatten(0, 1).expand(3, -1, -1)
    found = model._embed_codes(codes, 0, hidden)
    expected = torch.where(hidden[..., None], place, model._embed_codes(codes, 0))
    torch.testing.assert_close(found, expected)


def test_hidden_codes_are_to_be_predicted_like_the_others():
    model, (text, codes) = small(), inputs()
    hidden = codes_to_hide(3, PLACES, 0.9, generator(5))
    out = model(text, codes, hidden)
    expected = F.cross_entropy(out.codes.flatten(0, 1), codes.flatten()).float()
    torch.testing.assert_close(model.loss(text, codes, 0.0, hidden), expected)


def test_each_picture_hides_a_share_of_its_own():
    hidden = codes_to_hide(2000, 400, 0.4, generator(6)).double().mean(1)
    assert hidden.mean().item() == pytest.approx(0.2, abs=0.01)
    # Uniform from 0 to 0.4: the standard deviation is 0.4 / sqrt(12), and a little of the dice.
    assert hidden.std().item() == pytest.approx(0.4 / math.sqrt(12), abs=0.01)
    assert hidden.max() < 0.5
    assert hidden[:1000].mean().item() == pytest.approx(0.2, abs=0.02)


def test_log_prob_sums_to_one_over_all_pictures():
    model = small(codes=3, side=2)
    text = inputs(1)[0]
    every = torch.cartesian_prod(*[torch.arange(3)] * 4)
    log_prob = model.log_prob(text.expand(len(every), -1), every).double().sum(1)
    assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_loss_is_minus_the_mean_log_prob():
    model, (text, codes) = small(), inputs()
    expected = -model.log_prob(text, codes).mean()
    torch.testing.assert_close(model.loss(text, codes, 0.0), expected)


def test_a_batch_without_captions_has_a_loss_and_gradients():
    model, (_, codes) = small(torch.float32).train(), inputs()
    loss = model.loss(torch.zeros(3, LENGTH, dtype=torch.long), codes)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert model.word_head.weight.grad.abs().sum() == 0
    assert model.code_head.weight.grad.abs().sum() > 0


def test_every_parameter_gets_a_gradient():
    model, (text, codes) = small(torch.float32).train(), inputs()
    model.loss(text, codes).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def test_frequencies_of_generation_are_the_model_s():
    model = small(torch.float32, codes=3, side=2)
    text = inputs(1)[0]
    every = torch.cartesian_prod(*[torch.arange(3)] * 4)
    expected = model.log_prob(text.expand(len(every), -1), every).sum(1).exp()
    count = 20_000
    drawn = generate(model, text.expand(count, -1), generator(3)).flatten(1)
    number = (drawn * torch.tensor([27, 9, 3, 1])).sum(1)
    share = torch.bincount(number, minlength=81) / count
    assert ((share - expected).abs() < 5 * (expected / count).sqrt() + 1e-4).all()


def test_greedy_generation_takes_the_best_guided_code_each_time():
    model, (text, _) = small(), inputs()
    found = generate(model, text, guidance=3.0, temperature=0).flatten(1)
    nothing = torch.zeros_like(text)
    for place in range(PLACES):
        given = found[:, :place]
        logits = guide(model(text, given).codes[:, -1], model(nothing, given).codes[:, -1], 3.0)
        assert found[:, place].equal(logits.argmax(1))


def test_without_a_caption_the_words_do_not_matter():
    model, (text, _) = small(), inputs()
    drawn = generate(model, text, generator(1), guidance=0.0)
    assert drawn.equal(generate(model, text.flip(0), generator(1), guidance=0.0))
    assert not drawn.equal(generate(model, text, generator(1), guidance=1.0))


def test_captions_are_dropped_in_a_copy():
    text = inputs()[0]
    before = text.clone()
    dropped = without_caption(text, torch.tensor([False, True, False]), 0)
    assert text.equal(before)
    assert dropped[1].tolist() == [0] * LENGTH
    assert dropped[[0, 2]].equal(text[[0, 2]])


def test_generation_leaves_inputs_mode_and_global_randomness_alone():
    model, (text, _) = small(dropout=0.5).train(), inputs()
    before, state = text.clone(), torch.get_rng_state()
    first = generate(model, text, generator(1), guidance=2.0)
    assert model.training
    assert text.equal(before)
    assert torch.get_rng_state().equal(state)
    assert first.equal(generate(model, text, generator(1), guidance=2.0))  # no dropout
    broken = copy.deepcopy(model)
    broken.code_head.weight.data.fill_(math.nan)
    with pytest.raises(ValueError, match="logits"):
        generate(broken, text)
    assert broken.training


def test_it_learns_two_captions_and_their_pictures():
    model = small(torch.float32).train()
    text, codes = inputs(2)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model.loss(text, codes).backward()
        optimizer.step()
    assert generate(model, text, temperature=0).flatten(1).equal(codes)
    # The picture says which caption it was: shuffled captions cost most of what there is to know.
    right = model.log_prob(text, codes).sum()
    assert right - model.log_prob(text.flip(0), codes).sum() > 10


TEXT, GRID = torch.ones(2, LENGTH, dtype=torch.long), torch.ones(2, PLACES, dtype=torch.long)


@pytest.mark.parametrize(
    ("call", "error", "word"),
    [
        (lambda m, u: u(type(m).forward)(m, TEXT[:, :4], GRID), ValueError, "text"),
        (lambda m, u: u(type(m).forward)(m, TEXT[:0], GRID[:0]), ValueError, "text"),
        (lambda m, u: u(type(m).forward)(m, TEXT + WORDS, GRID), ValueError, "text"),
        (lambda m, u: u(type(m).forward)(m, TEXT.float(), GRID), TypeError, "text"),
        (lambda m, u: u(type(m).forward)(m, TEXT, GRID[:1]), ValueError, "codes"),
        (lambda m, u: u(type(m).forward)(m, TEXT, torch.cat([GRID, GRID], 1)), ValueError, "codes"),
        (lambda m, u: u(type(m).forward)(m, TEXT, GRID - 2), ValueError, "codes"),
        (lambda m, u: u(type(m).loss)(m, TEXT, GRID[:, 1:]), ValueError, "codes"),
        (lambda m, u: u(type(m).loss)(m, TEXT, GRID, 1.5), ValueError, "text_share"),
        (lambda m, u: u(type(m).forward)(m, TEXT, GRID, GRID[:1] > 0), ValueError, "hidden"),
        (lambda m, u: u(codes_to_hide)(2, 3, 1.5), ValueError, "most"),
        (lambda m, u: u(type(m).log_prob)(m, TEXT, GRID[:, 1:]), ValueError, "codes"),
        (lambda m, u: m.step(GRID[:, 0], m.decoder.new_cache()), ValueError, "cache"),
        (lambda m, u: u(without_caption)(TEXT, torch.ones(3).bool(), 0), ValueError, "drop"),
        (lambda m, u: u(generate)(m, TEXT[:, :4]), ValueError, "text"),
        (lambda m, u: u(generate)(m, TEXT, guidance=math.inf), ValueError, "guidance"),
        (lambda m, u: u(generate)(m, TEXT, temperature=-1.0), ValueError, "temperature"),
    ],
)
def test_bad_input_is_named(unchecked, call, error, word):
    with pytest.raises(error, match=word):
        call(small(torch.float32), unchecked)


def test_a_used_cache_and_a_complete_picture_are_refused():
    model, (text, codes) = small(torch.float32), inputs()
    cache = model.decoder.new_cache()
    model.begin(text, cache)
    with pytest.raises(ValueError, match="empty"):
        model.begin(text, cache)
    for place in range(PLACES - 1):
        model.step(codes[:, place], cache)
    with pytest.raises(ValueError, match="cache"):
        model.step(codes[:, -1], cache)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"words": 0}, "words"),
        ({"text_length": 0}, "text_length"),
        ({"codes": 0}, "codes"),
        ({"side": 0}, "side"),
        ({"pad_id": WORDS}, "pad_id"),
        ({"heads": 5}, "heads"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_bad_sizes_are_named(change, word):
    with pytest.raises(ValueError, match=word):
        DalleConfig(**{"words": WORDS, "text_length": LENGTH, "dim": 24, "heads": 3} | change)


# ---- codes that are made of the tokenizer's


def codebook(seed=5):
    return torch.randn(CODES, 4, generator=generator(seed))


def test_code_vectors_by_hand():
    table = 3 * codebook() + 1
    vectors = CodeVectors(table, 24)
    centred = table - table.mean(0)
    torch.testing.assert_close(vectors.codebook.square().mean(), torch.tensor(1.0))
    first, _, last = vectors.layers
    hidden = F.gelu((centred / centred.square().mean().sqrt()) @ first.weight.T + first.bias)
    torch.testing.assert_close(vectors(), hidden @ last.weight.T)


def test_tables_made_of_a_codebook_are_tables():
    # The same model as one with free tables that hold these vectors.
    torch.manual_seed(0)
    config = DalleConfig(WORDS, LENGTH, CODES, SIDE, dim=24, heads=3, layers=2)
    made, free = Dalle(config, codebook()), Dalle(config)
    state = {name: x for name, x in made.state_dict().items() if not name.startswith("code")}
    state |= {"code.weight": made.code(), "code_head.weight": made.code_head()}
    free.load_state_dict(state | {"code_head.bias": torch.zeros(CODES)})
    text, codes = inputs()
    torch.testing.assert_close(made(text, codes).codes, free(text, codes).codes)
    first = generate(made, text, generator(1), guidance=2.0)
    assert first.equal(generate(free, text, generator(1), guidance=2.0))


def test_a_code_that_paints_like_another_is_not_ruled_out():
    # Code 1 lies beside code 0, code 2 far away; training shows code 0 alone.
    table = torch.tensor([[1.0, 0.0], [1.02, 0.0], [-1.0, 0.5], [-0.5, -1.0]])
    config = DalleConfig(WORDS, LENGTH, 4, 1, dim=24, heads=3, layers=1)
    found = {}
    for name, given in (("made", table), ("free", None)):
        torch.manual_seed(0)
        model, text = Dalle(config, given), inputs()[0]
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        for _ in range(60):
            optimizer.zero_grad()
            model.loss(text, torch.zeros(3, 1, dtype=torch.long)).backward()
            optimizer.step()
        with torch.no_grad():
            found[name] = model(text, torch.zeros(3, 0, dtype=torch.long)).codes.softmax(-1)[0, 0]
    assert found["made"][1] > 0.1
    assert found["free"][1] < 0.05


def test_a_codebook_of_another_size_is_named(unchecked):
    config = DalleConfig(WORDS, LENGTH, CODES, SIDE, dim=24, heads=3)
    with pytest.raises(ValueError, match="codebook"):
        Dalle(config, codebook()[1:])
