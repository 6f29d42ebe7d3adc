"""Hard negatives by swapped words against loops over captions."""

import math

import pytest
import torch

from mmlib.swapped_words import swapped_word_loss


def draw(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# Kinds: words 1 and 2 are sizes, 3 to 5 colours, 6 to 8 shapes; 0 is none.
KINDS = torch.tensor([-1, 0, 0, 1, 1, 1, 2, 2, 2])
# In the first picture the two things differ in their shape alone.
THINGS = torch.tensor([[[1, 3, 6], [1, 3, 7]], [[2, 5, 8], [-1, -1, -1]], [[1, 4, 7], [2, 3, 7]]])
SAID = torch.tensor(
    [
        [[True, True, True], [False, True, False]],
        [[False, False, True], [True, True, True]],
        [[True, False, True], [False, False, False]],
    ]
)
FITS = draw(3, 9, 5, seed=7)


def swapped_by_loops(sharpness, scale):
    losses = []
    for fits, things, said in zip(FITS, THINGS.tolist(), SAID.tolist(), strict=True):
        real = [thing for thing in things if thing[0] >= 0]
        for number, thing in enumerate(real):
            used = [word for word, keep in zip(thing, said[number], strict=True) if keep]
            for word in used:
                rivals = [v for v in range(9) if KINDS[v] == KINDS[word]]
                logits, mine = [], None
                for rival in rivals:
                    text = [rival if w == word else w for w in used]
                    if rival != word and any(set(text) <= set(other) for other in real):
                        continue  # true of another thing
                    c = sum(fits[w] for w in text)
                    if rival == word:
                        mine = len(logits)
                    logits.append(scale * ((sharpness * c).softmax(0) * c).sum())
                losses.append(-torch.stack(logits).log_softmax(0)[mine])
    assert len(losses) == 3 + 1 + 1 + 2
    return torch.stack(losses).mean()


@pytest.mark.parametrize("sharpness", [0.0, 2.0])
def test_the_swapped_word_loss_is_the_formula(sharpness):
    loss = swapped_word_loss(FITS, THINGS, KINDS, SAID, sharpness, 3.0)
    torch.testing.assert_close(loss, swapped_by_loops(sharpness, 3.0))


def test_a_swap_that_is_true_of_another_thing_is_no_negative():
    said = torch.zeros_like(SAID)
    said[0, 0] = True  # a small red star beside a small red ring: "small red ring" is true
    fits = torch.zeros(3, 9, 5)
    loss = swapped_word_loss(fits, THINGS, KINDS, said, 1.0, 1.0)
    torch.testing.assert_close(loss.item(), (math.log(2) + math.log(3) + math.log(2)) / 3)


def test_words_of_a_description_look_together():
    fits = torch.full((1, 9, 4), -5.0)
    fits[0, 3, 0] = fits[0, 6, 1] = 5.0  # red here and a star there: no red star
    things, said = THINGS[:1, :1], torch.tensor([[[False, True, True]]])
    apart = swapped_word_loss(fits, things, KINDS, said, 10.0, 1.0)
    fits[0, 6] = fits[0, 3]  # the same region is red and a star
    assert swapped_word_loss(fits, things, KINDS, said, 10.0, 1.0) < 0.01 < apart


def test_gradients_of_the_swapped_word_loss():
    leaves = [
        FITS.clone().requires_grad_(),
        torch.tensor(3.0, dtype=torch.float64).requires_grad_(),
    ]
    assert torch.autograd.gradcheck(
        lambda fits, scale: swapped_word_loss(fits, THINGS, KINDS, SAID, 2.0, scale), leaves
    )


BAD = [
    ((FITS[0], THINGS, KINDS, SAID, 1.0, 1.0), ValueError, "fits and things"),
    ((FITS, THINGS[:2], KINDS, SAID, 1.0, 1.0), ValueError, "fits and things"),
    ((FITS, THINGS, KINDS[:8], SAID, 1.0, 1.0), ValueError, "kinds must have"),
    ((FITS, THINGS, KINDS, SAID.int(), 1.0, 1.0), TypeError, "said must be bo"),
    ((FITS, THINGS, KINDS, SAID[:2], 1.0, 1.0), ValueError, "said must have"),
    ((FITS, THINGS, KINDS, SAID, -1.0, 1.0), ValueError, "sharpness must be"),
    ((FITS, THINGS, KINDS, ~SAID & SAID, 1.0, 1.0), ValueError, "at least one"),
    ((FITS, THINGS.flip(2), KINDS, SAID, 1.0, 1.0), ValueError, "each kind"),
]


@pytest.mark.parametrize("arguments, error, message", BAD)
def test_bad_input(unchecked, arguments, error, message):
    with pytest.raises(error, match=message):
        unchecked(swapped_word_loss)(*arguments)
