"""Masking, the heads, the losses; equality with transformers is in tests/reference."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmlib.encoders.bert import BertConfig
from mmlib.pretraining import (
    IGNORE,
    BertForPretraining,
    MaskedTokens,
    mask_tokens,
    mlm_loss,
    narrow_start,
    nsp_loss,
    word_numbers,
)

MASK, FIRST, VOCAB = 1, 5, 1000
RANDOM = torch.arange(FIRST, VOCAB)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def masked(ids, maskable=None, seed=0, **arguments) -> MaskedTokens:
    maskable = ids >= FIRST if maskable is None else maskable
    return mask_tokens(
        ids, maskable, mask_id=MASK, random_ids=RANDOM, generator=generator(seed), **arguments
    )


def texts(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(FIRST, VOCAB, (rows, length), generator=generator(seed))


@given(length=st.integers(1, 60), rate=st.floats(0.01, 1.0), seed=st.integers(0, 999))
def test_each_row_has_the_exact_number_chosen(length, rate, seed):
    ids = texts(4, length)
    ids[0, length // 2 :] = 0  # padding: fewer to choose from
    out = masked(ids, seed=seed, rate=rate)
    chosen = (out.targets != IGNORE).sum(1)
    for count, row in zip(chosen.tolist(), ids, strict=True):
        there = int((row >= FIRST).sum())
        # Python's round and torch's both round halves to the even number; the product is torch's,
        # in fp32, since 0.15 * 30 is a half there and a little more in fp64.
        assert count == min(there, max(1, round((torch.tensor(rate) * there).item())))


def test_nothing_outside_the_choice_is_changed():
    ids = texts(300, 40)
    ids[:, 0], ids[:, 20], ids[:, 30:] = 2, 3, 0
    out = masked(ids)
    left = out.targets == IGNORE
    assert torch.equal(out.ids[left], ids[left])
    assert torch.equal(out.targets[~left], ids[~left])
    assert left[:, 0].all() and left[:, 20].all() and left[:, 30:].all()


def test_of_the_chosen_80_10_10():
    ids = texts(4000, 100)
    out = masked(ids)
    chosen = out.targets != IGNORE
    count = int(chosen.sum())
    assert count == 4000 * 15
    became = out.ids[chosen]
    is_mask, same = became == MASK, became == ids[chosen]
    other = ~is_mask & ~same
    # A random token is the true one in 1 of 995 cases. Four standard deviations of a share.
    for share, wanted in ((is_mask, 0.8), (same, 0.1 + 0.1 / 995), (other, 0.1 - 0.1 / 995)):
        assert abs(share.double().mean() - wanted) < 4 * (wanted * (1 - wanted) / count) ** 0.5


def test_random_tokens_are_even_and_never_special():
    out = masked(texts(4000, 100))
    chosen = out.targets != IGNORE
    drawn = out.ids[chosen & (out.ids != MASK) & (out.ids != out.targets)]
    assert drawn.min() >= FIRST and drawn.max() < VOCAB
    counts = torch.bincount(drawn // 100, minlength=10).double()
    expected = torch.tensor([95] + 9 * [100]).double()
    expected *= counts.sum() / expected.sum()
    assert ((counts - expected) ** 2 / expected).sum() < 27.9  # chi-squared, 9, p = 0.001


def test_every_place_is_chosen_equally_often():
    chosen = (masked(texts(20000, 20)).targets != IGNORE).double().mean(0)
    assert (chosen - 0.15).abs().max() < 4.5 * (0.15 * 0.85 / 20000) ** 0.5


def test_the_generator_decides():
    ids = texts(8, 30)
    assert torch.equal(masked(ids, seed=3).ids, masked(ids, seed=3).ids)
    assert not torch.equal(masked(ids, seed=3).ids, masked(ids, seed=4).ids)


def test_input_and_global_state_stay_as_they_are():
    ids = texts(8, 30)
    before, state = ids.clone(), torch.get_rng_state()
    masked(ids, rate=1.0)
    assert torch.equal(ids, before) and torch.equal(torch.get_rng_state(), state)


def test_a_row_with_nothing_to_mask_is_left_alone():
    ids = torch.tensor([[2, 3, 0], [2, 7, 3]])
    out = masked(ids)
    assert torch.equal(out.ids[0], ids[0]) and (out.targets[0] == IGNORE).all()
    assert out.targets[1].tolist() == [IGNORE, 7, IGNORE]


def test_whole_words_are_chosen_whole():
    ids = texts(500, 60)
    words = torch.randint(2, ids.shape, generator=generator(5)).cumsum(1)
    chosen = masked(ids, words=words).targets != IGNORE
    sizes = []
    for row, numbers in zip(chosen, words, strict=True):
        for number in numbers.unique():
            word = row[numbers == number]
            assert word.all() or not word.any()
        sizes.append(int(row.sum()))
    # Never above the 9 of 60, but where the first word alone is longer; seldom far below.
    assert sum(size > 9 for size in sizes) < 25
    assert 7 < sum(sizes) / len(sizes) <= 9


def test_one_word_each_is_the_same_as_no_words():
    ids = texts(50, 40)
    words = torch.arange(40).expand(50, -1)
    assert torch.equal(masked(ids, words=words).targets, masked(ids).targets)


def test_long_words_are_not_chosen_for_each_of_their_pieces():
    # One word of ten pieces among ten of one: each of the eleven is first equally often.
    ids, words = texts(4000, 20), torch.tensor(10 * [0] + list(range(1, 11))).expand(4000, -1)
    chosen = masked(ids, words=words).targets != IGNORE
    share = chosen[:, 0].double().mean()
    assert abs(share - 1 / 11) < 4 * (10 / 121 / 4000) ** 0.5


def test_word_numbers_follow_the_pieces_of_a_real_vocabulary():
    from mmlib.encoders.tokenizers import wordpiece_tokenizer

    tokenizer = wordpiece_tokenizer()
    continues = torch.zeros(tokenizer.vocab_size, dtype=torch.bool)
    for piece, index in tokenizer.backend.get_vocab().items():
        continues[index] = piece.startswith("##")
    numbers = word_numbers(tokenizer.encode(["Une étoile, embeddings!"]).ids, continues)
    #       [CLS] une et ##oi ##le , em ##bed ##ding ##s ! [SEP]
    assert numbers[0].tolist() == [0, 1, 2, 2, 2, 3, 4, 4, 4, 4, 5, 6]


def small(**arguments) -> BertForPretraining:
    return BertForPretraining(
        BertConfig(vocab_size=50, dim=16, heads=2, layers=2, dropout=0.0, **arguments)
    )


def test_the_decoder_is_the_embedding():
    model = small()
    assert not any("decoder" in name for name in model.state_dict())
    ids = torch.tensor([[2, 7, 8, 3]])
    before = model(ids).mlm[0, 0]
    with torch.no_grad():
        model.bert.embeddings.token.weight[40] += 1.0  # not among the ids
    after = model(ids).mlm[0, 0]
    changed = (before != after).nonzero().flatten().tolist()
    assert changed == [40]
    after.sum().backward()
    assert model.bert.embeddings.token.weight.grad[40].abs().sum() > 0


def test_where_gives_the_same_logits_row_by_row():
    model, ids = small(), texts(3, 8) % 50
    where = torch.rand(3, 8, generator=generator()) < 0.3
    whole, some = model(ids), model(ids, where=where)
    torch.testing.assert_close(some.mlm, whole.mlm[where])
    torch.testing.assert_close(some.nsp, whole.nsp)


def test_padding_changes_nothing():
    model, ids = small(), texts(2, 6) % 50
    longer = torch.cat([ids, torch.full((2, 3), 9)], dim=1)
    keep = torch.arange(9).expand(2, 9) < 6
    a, b = model(ids), model(longer, keep)
    torch.testing.assert_close(a.mlm, b.mlm[:, :6])
    torch.testing.assert_close(a.nsp, b.nsp)


def test_losses_by_hand():
    logits = torch.tensor([[[0.0, 1.0], [2.0, 0.0], [5.0, 5.0]]])
    total, count = mlm_loss(logits, torch.tensor([[1, 1, IGNORE]]))
    # -log sigmoid(1) - log sigmoid(-2)
    assert count == 2
    assert total.item() == pytest.approx(0.313262 + 2.126928, abs=1e-5)
    total, count = nsp_loss(torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([True, False]))
    assert count == 2
    assert total.item() == pytest.approx(0.313262 + 2.126928, abs=1e-5)


def test_nothing_to_predict_is_zero_and_not_nan():
    logits = torch.randn(2, 3, 7, requires_grad=True)
    total, count = mlm_loss(logits, torch.full((2, 3), IGNORE))
    total.backward()
    assert total == 0 and count == 0 and (logits.grad == 0).all()


def test_losses_are_summed_in_float32():
    logits = torch.randn(200, 40, generator=generator()).bfloat16()
    targets = torch.randint(40, (200,), generator=generator(1))
    total, _ = mlm_loss(logits, targets)
    exact, _ = mlm_loss(logits.double(), targets)
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(exact.item(), rel=1e-5)


def test_narrow_start_gives_each_layer_a_voice():
    from mmlib.positions import sinusoids

    model = BertForPretraining(BertConfig(vocab_size=400, dim=64, heads=4, layers=1))
    before = {name: value.clone() for name, value in model.named_parameters()}
    narrow_start(model, generator())
    for name, value in model.named_parameters():
        if name.endswith("position.table"):
            torch.testing.assert_close(value, sinusoids(*value.shape).float() / 8)
        elif value.ndim == 2:
            wanted = value.shape[1] ** -0.5
            assert abs(value.std() / wanted - 1) < 5 / (2 * value.numel()) ** 0.5, name
        else:
            assert torch.equal(value, before[name]), name
    again = BertForPretraining(model.config)
    narrow_start(again, generator())
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )


def test_both_tasks_can_be_learnt():
    """Follows: the second text repeats the first's word. Masked: so it can be read off there."""
    model, g = small(max_length=8), generator()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    types = torch.tensor([0, 0, 0, 1, 1]).expand(64, -1)
    for _ in range(250):
        word = torch.randint(5, 15, (64, 1), generator=g)
        follows = torch.rand(64, generator=g) < 0.5
        other = torch.where(follows[:, None], word, (word - 5 + 1) % 10 + 5)
        two, three = torch.full_like(word, 2), torch.full_like(word, 3)
        clean = torch.cat([two, word, three, other, three], dim=1)
        where = torch.zeros_like(clean, dtype=torch.bool)
        where[:32, 3] = follows[:32]  # half of the rows for each task
        out = model(clean.masked_fill(where, MASK), None, types, where=where)
        a, n = mlm_loss(out.mlm, clean[where])
        b, m = nsp_loss(out.nsp[32:], follows[32:])
        loss = a / n + b / m
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (out.mlm.argmax(-1) == clean[where]).double().mean() > 0.9
    assert ((out.nsp[32:].argmax(-1) == 0) == follows[32:]).double().mean() > 0.9


IDS = texts(2, 6)
BAD_MASKING = {
    "ids": ({"ids": IDS.float()}, TypeError, "ids must hold whole numbers: got torch.float32"),
    "boolean ids": ({"ids": IDS > 9}, TypeError, "ids must hold whole numbers: got torch.bool"),
    "maskable": ({"maskable": IDS}, TypeError, "maskable must be boolean: got torch.int64"),
    "shape": ({"maskable": IDS[:, 1:] > 0}, ValueError, "maskable must have the shape of ids"),
    "words": ({"words": IDS[:1]}, ValueError, "words must have the shape of ids, (2, 6)"),
    "rate 0": ({"rate": 0.0}, ValueError, "rate must be above 0 and at most 1: got 0.0"),
    "rate": ({"rate": 1.5}, ValueError, "rate must be above 0 and at most 1: got 1.5"),
    "nan": ({"rate": float("nan")}, ValueError, "rate must be above 0"),
    "none": ({"random_ids": RANDOM[:0]}, ValueError, "random_ids must be a list of ids: got (0,)"),
    "kind": ({"random_ids": RANDOM / 2}, TypeError, "random_ids must hold whole numbers"),
}


@pytest.mark.parametrize("changes, error, words", BAD_MASKING.values(), ids=BAD_MASKING)
def test_bad_masking_is_named(changes, error, words, unchecked):
    arguments = {
        "ids": IDS,
        "maskable": IDS > 0,
        "mask_id": MASK,
        "random_ids": RANDOM,
        "generator": generator(),
        **changes,
    }
    with pytest.raises(error, match=re.escape(words)):
        unchecked(mask_tokens)(**arguments)


def test_other_bad_input_is_named(unchecked):
    for call, words in (
        (lambda: small(pool="mean"), "config.pool must be 'cls': got 'mean'"),
        (
            lambda: unchecked(BertForPretraining.forward)(
                small(), IDS % 50, where=torch.ones(2, 5, dtype=torch.bool)
            ),
            "where must have the shape of ids, (2, 6): got (2, 5)",
        ),
        (
            lambda: unchecked(mlm_loss)(torch.zeros(2, 3, 9), IDS),
            "targets must have the shape of logits without the last axis, (2, 3): got (2, 6)",
        ),
        (
            lambda: unchecked(nsp_loss)(torch.zeros(2, 3), torch.ones(2, dtype=torch.bool)),
            "logits must have shape (2, 2)",
        ),
        (
            lambda: BertForPretraining.from_transformers(dict(small().state_dict())),
            "config is needed",
        ),
        (
            lambda: unchecked(word_numbers)(IDS[0], torch.zeros(9) > 0),
            "ids must have shape (batch, length)",
        ),
    ):
        with pytest.raises(Exception, match=re.escape(words)):
            call()
