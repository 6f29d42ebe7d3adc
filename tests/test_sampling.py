"""Drawing tokens: the filters, the frequencies, guidance, bad input."""

import math

import pytest
import torch

from mmlib import sampling
from mmlib.sampling import draw, filter_logits, guide


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_guidance_by_hand():
    conditional, free = torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 1.0]])
    assert guide(conditional, free, 0.0).tolist() == [[1.0, 1.0]]
    assert guide(conditional, free, 1.0).tolist() == [[2.0, -1.0]]
    assert guide(conditional, free, 3.0).tolist() == [[4.0, -5.0]]


def test_guidance_is_the_product_of_powers():
    a, b = torch.randn(3, 7, dtype=torch.float64), torch.randn(3, 7, dtype=torch.float64)
    product = a.softmax(1) ** 2.5 * b.softmax(1) ** -1.5
    expected = product / product.sum(1, keepdim=True)
    torch.testing.assert_close(guide(a, b, 2.5).softmax(1), expected)


def test_top_k_keeps_the_most_probable_and_all_that_tie_with_the_last():
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0], [1.0, 1.0, 1.0, 0.0]])
    kept = filter_logits(logits, top_k=2)
    assert kept.isfinite().tolist() == [[False, True, False, True], [True, True, True, False]]
    assert kept[kept.isfinite()].equal(logits[kept.isfinite()])
    assert filter_logits(logits, top_k=9).equal(logits)


@pytest.mark.parametrize(("p", "count"), [(0.4, 1), (0.5, 1), (0.51, 2), (0.85, 3), (1.0, 4)])
def test_the_nucleus_is_the_smallest_set_that_reaches_p(p, count):
    logits = torch.tensor([[0.05, 0.5, 0.15, 0.3]], dtype=torch.float64).log()
    assert int(filter_logits(logits, top_p=p).isfinite().sum()) == count


def test_the_nucleus_is_taken_of_what_top_k_leaves():
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    # Of the first two 0.4 is 57 %, so that one is enough for 0.5; of all four it is not.
    assert int(filter_logits(logits, top_k=2, top_p=0.5).isfinite().sum()) == 1
    assert int(filter_logits(logits, top_p=0.5).isfinite().sum()) == 2


def test_what_is_forbidden_stays_forbidden_and_inputs_stay():
    logits = torch.tensor([[1.0, -math.inf, 0.0]])
    before = logits.clone()
    assert filter_logits(logits, top_k=3, top_p=0.999)[0, 1] == -math.inf
    assert logits.equal(before)
    assert draw(logits.expand(500, 3), generator()).unique().tolist() == [0, 2]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_those_of_the_tempered_softmax(temperature):
    logits, count = torch.tensor([1.0, 0.0, -1.0, 0.5]), 40_000
    drawn = draw(logits.expand(count, 4), generator(1), temperature=temperature)
    share = torch.bincount(drawn, minlength=4) / count
    expected = (logits / temperature).softmax(0)
    # Four deviations of a share of so many draws.
    assert ((share - expected).abs() < 4 * (expected * (1 - expected) / count).sqrt()).all()


def test_temperature_comes_before_the_nucleus():
    logits = torch.tensor([[2.0, 1.0, 0.0, 0.0]]).expand(2000, 4)
    assert draw(logits, generator(), top_p=0.6).unique().tolist() == [0]
    assert len(draw(logits, generator(), temperature=5.0, top_p=0.6).unique()) > 1


def test_temperature_zero_is_the_most_probable_and_needs_no_dice():
    logits = torch.randn(50, 9, generator=generator(2))
    assert draw(logits, temperature=0).equal(logits.argmax(1))


def test_the_same_seed_draws_the_same_and_the_global_state_stays():
    logits, state = torch.randn(20, 9), torch.get_rng_state()
    assert draw(logits, generator(3)).equal(draw(logits, generator(3)))
    assert not draw(logits, generator(3)).equal(draw(logits, generator(4)))
    assert torch.get_rng_state().equal(state)


def test_bf16_logits_are_summed_in_fp32():
    # In bf16 the running sum of 1,000 equal probabilities stalls long before 0.9.
    logits = torch.zeros(4000, 1000, dtype=torch.bfloat16)
    drawn = draw(logits, generator(5), top_p=0.9)
    assert 850 < len(drawn.unique()) <= 901


LOGITS = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("function", "arguments", "options", "word"),
    [
        (guide, (LOGITS, LOGITS[:1], 1.0), {}, "one shape"),
        (guide, (LOGITS, LOGITS, math.inf), {}, "scale"),
        (filter_logits, (LOGITS[0],), {}, "logits"),
        (filter_logits, (LOGITS[:0],), {}, "logits"),
        (filter_logits, (LOGITS / 0 * 0,), {}, "logits"),
        (filter_logits, (LOGITS - math.inf,), {}, "logits"),
        (filter_logits, (LOGITS,), {"top_k": 0}, "top_k"),
        (filter_logits, (LOGITS,), {"top_p": 0.0}, "top_p"),
        (filter_logits, (LOGITS,), {"top_p": 1.5}, "top_p"),
        (draw, (LOGITS,), {"temperature": -1.0}, "temperature"),
        (draw, (LOGITS,), {"temperature": math.nan}, "temperature"),
        (draw, (LOGITS,), {"top_k": 0}, "top_k"),
    ],
)
def test_bad_input_is_named(unchecked, function, arguments, options, word):
    with pytest.raises(ValueError, match=word):
        unchecked(function)(*arguments, **options)


def test_everything_public_is_in_the_table():
    assert set(sampling.__all__) == {"draw", "filter_logits", "guide"}
