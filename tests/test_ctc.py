"""CTC: against all paths written out, F.ctc_loss and its gradients, and by hand."""

import inspect
import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from mmlib.ctc import ctc_best_path, ctc_collapse, ctc_loss


def draw(batch=3, frames=7, vocab=5, length=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, frames, vocab, generator=generator, dtype=torch.float64)
    labels = torch.randint(1, vocab, (batch, length), generator=generator)
    return logits, labels


def keep(sizes, length):
    return torch.arange(length) < torch.tensor(sizes)[:, None]


@pytest.mark.parametrize("labels", [[], [1], [2, 1], [1, 1], [2, 2, 1]])
def test_equals_the_sum_over_all_paths(labels):
    logits, _ = draw(1, 5, 3)
    probabilities = logits.softmax(2)[0]
    total = 0.0
    for path in itertools.product(range(3), repeat=5):
        merged = [label for label, _ in itertools.groupby(path)]
        if [label for label in merged if label] == labels:
            total += math.prod(float(probabilities[t, k]) for t, k in enumerate(path))
    ids = torch.tensor([labels or [1]])
    real = torch.full(ids.shape, bool(labels))
    found = ctc_loss(logits.log_softmax(2), keep([5], 5), ids, real)
    assert float(found) == pytest.approx(-math.log(total), abs=1e-12)


@pytest.mark.parametrize("blank", [0, 3])
def test_equals_torch_with_its_gradients(blank):
    logits, labels = draw(4, 9, 6, 4, seed=1)
    labels = torch.where(labels == blank, 1, labels)
    labels[1, 1] = labels[1, 0]  # a repetition needs a blank between
    frames, sizes = [9, 8, 6, 5], [4, 3, 1, 0]
    mine, theirs = (logits.clone().requires_grad_() for _ in range(2))
    found = ctc_loss(mine.log_softmax(2), keep(frames, 9), labels, keep(sizes, 4), blank)
    expected = F.ctc_loss(
        theirs.log_softmax(2).transpose(0, 1),
        labels,
        torch.tensor(frames),
        torch.tensor(sizes),
        blank=blank,
        reduction="none",
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    found.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-8, atol=1e-10)
    assert mine.grad[3, 5:].abs().max() == 0


def test_too_few_frames_are_impossible_and_harm_no_gradient():
    logits, _ = draw(2, 3, 4)
    labels = torch.tensor([[1, 1], [1, 2]])  # the first needs 3 frames, the second 2
    logits.requires_grad_()
    found = ctc_loss(logits.log_softmax(2), keep([2, 2], 3), labels, torch.ones(2, 2).bool())
    assert found[0] == math.inf
    assert 0 < found[1] < math.inf
    found[1].backward()
    assert logits.grad.isfinite().all()


def test_what_does_not_exist_changes_nothing():
    logits, labels = draw()
    frames, words = keep([7, 5, 4], 7), keep([3, 2, 1], 3)
    before = ctc_loss(logits.log_softmax(2), frames, labels, words)
    changed = logits.masked_fill(~frames[..., None], 50.0)
    after = ctc_loss(changed.log_softmax(2), frames, labels.masked_fill(~words, 4), words)
    torch.testing.assert_close(before, after, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ([], []),
        ([0, 0], []),
        ([1, 1, 1], [1]),
        ([1, 0, 1], [1, 1]),
        ([0, 2, 2, 0, 3, 3, 1], [2, 3, 1]),
    ],
)
def test_a_path_is_read(path, expected):
    assert ctc_collapse(path) == expected
    assert ctc_collapse([{0: 9}.get(k, k) for k in path], blank=9) == expected


def test_best_path_takes_the_best_label_of_frames_that_exist():
    path = torch.tensor([[1, 1, 0, 1, 2], [0, 3, 3, 2, 2]])
    logits = F.one_hot(path, 4).float()
    assert ctc_best_path(logits, keep([5, 3], 5)) == [[1, 1, 2], [3]]


def test_the_best_path_is_not_always_the_best_reading():
    """Two frames, blank 0.6: the best path is silence, with 0.36, but "a" has 0.64."""
    log_probs = torch.tensor([[[0.6, 0.4], [0.6, 0.4]]]).log()
    assert ctc_best_path(log_probs, keep([2], 2)) == [[]]
    said = ctc_loss(log_probs, keep([2], 2), torch.tensor([[1]]), torch.tensor([[True]]))
    assert float(said.neg().exp()) == pytest.approx(0.64)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": torch.tensor([[0]])}, ValueError, "none of them the blank"),
        ({"labels": torch.tensor([[4]])}, ValueError, "from 0 to 3"),
        ({"labels": torch.tensor([1])}, ValueError, "labels and labels_keep"),
        ({"labels_keep": torch.ones(1, 2).bool()}, ValueError, "labels and labels_keep"),
        ({"labels_keep": torch.ones(1, 1)}, TypeError, "labels_keep must be boolean"),
        ({"frames_keep": torch.ones(1, 3)}, TypeError, "frames_keep must be boolean"),
        ({"frames_keep": torch.zeros(1, 3).bool()}, ValueError, "each item a frame"),
        ({"frames_keep": torch.ones(1, 2).bool()}, ValueError, "log_probs must have shape"),
        ({"log_probs": torch.zeros(1, 0, 4)}, ValueError, "not empty"),
        ({"blank": 4}, ValueError, "the blank, 4"),
    ],
)
def test_bad_input(change, error, message):
    good = {
        "log_probs": torch.zeros(1, 3, 4).log_softmax(2),
        "frames_keep": torch.ones(1, 3).bool(),
        "labels": torch.tensor([[1]]),
        "labels_keep": torch.tensor([[True]]),
    }
    with pytest.raises(error, match=message):
        inspect.unwrap(ctc_loss)(**(good | change))


def test_best_path_wants_a_mask_of_frames():
    with pytest.raises(ValueError, match="keep must be"):
        inspect.unwrap(ctc_best_path)(torch.zeros(1, 3, 4), torch.ones(1, 2).bool())
