"""Zero-shot classes, accuracy, few-shot draws and linear probes."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from mmlib.zero_shot import accuracy, class_vectors, few_shot, linear_probe, nearest


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def close(found, expected, tolerance=1e-10):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# ---- class vectors


def test_class_vectors_are_the_mean_of_unit_vectors():
    asked = []

    def encode(texts):
        asked.extend(texts)
        return draw(len(texts), 5) * torch.tensor([1.0, 9.0] * 3)[:, None]  # lengths must not count

    templates = ["a {}.", "two {}s"]
    found = class_vectors(encode, ["cat", "dog", "{x}"], templates)
    assert asked == ["a cat.", "two cats", "a dog.", "two dogs", "a {x}.", "two {x}s"]
    vectors = F.normalize(draw(6, 5), dim=1)
    mean = torch.stack([vectors[i : i + 2].mean(0) for i in (0, 2, 4)])
    close(found, mean / mean.norm(dim=1, keepdim=True))


def test_class_vectors_hold_no_graph():
    table = draw(2, 3).requires_grad_()
    assert not class_vectors(lambda texts: table, ["a", "b"], ["{}"]).requires_grad


def test_the_ensemble_can_be_right_where_each_prompt_errs():
    """Two prompts, each off to another side: their mean points at the picture."""
    table = {"a x": [1.0, 1.2, 0.0], "b x": [1.0, -1.2, 0.0], "a y": [1.0, 0.0, 0.9]}
    table["b y"] = table["a y"]

    def predict(templates):
        vectors = class_vectors(
            lambda texts: torch.tensor([table[t] for t in texts]), ["x", "y"], templates
        )
        return nearest(torch.tensor([[1.0, 0.0, 0.0]]), vectors).item()

    assert [predict(["a {}"]), predict(["b {}"]), predict(["a {}", "b {}"])] == [1, 1, 0]


# ---- nearest, accuracy


def test_nearest_is_by_angle():
    features, vectors = draw(9, 4), draw(3, 4, seed=1)
    cosines = F.cosine_similarity(features[:, None], vectors, dim=2)
    found = nearest(features, vectors)
    assert torch.equal(found, cosines.argmax(1))
    lengths = torch.tensor([[0.01], [1.0], [50.0]])
    assert torch.equal(nearest(features * 7, vectors * lengths), found)
    assert not torch.equal((features @ (vectors * lengths).T).argmax(1), found)


def test_accuracy_equals_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 5, (200,), generator=generator) * (torch.arange(200) % 3)
    predicted = labels.where(torch.rand(200, generator=generator) < 0.6, 1)
    assert accuracy(predicted, labels) == pytest.approx((predicted == labels).float().mean().item())
    expected = balanced_accuracy_score(labels, predicted)
    assert accuracy(predicted, labels, balanced=True) == pytest.approx(expected)
    assert abs(expected - accuracy(predicted, labels)) > 0.01


# ---- few-shot


def test_few_shot_takes_so_many_of_each_class():
    labels = torch.tensor([0] * 10 + [1] * 4 + [5] * 2)[
        torch.randperm(16, generator=torch.Generator().manual_seed(3))
    ]
    chosen = few_shot(labels, 3, 0)
    assert labels[chosen].bincount().tolist() == [3, 3, 0, 0, 0, 2]
    assert len(chosen.unique()) == len(chosen)
    assert torch.equal(chosen, few_shot(labels, 3, torch.Generator().manual_seed(0)))
    draws = {tuple(few_shot(labels, 1, seed).tolist()) for seed in range(40)}
    assert len(draws) > 25  # of 10 · 4 · 2


# ---- the linear probe


@pytest.mark.parametrize("penalty", [0.03, 1.0, 30.0])
def test_linear_probe_equals_scikit_learn(penalty):
    features, labels = draw(60, 6), torch.arange(60) % 3
    features[:, :3] += F.one_hot(labels, 3)
    probe = linear_probe(features, labels, penalty=penalty)
    theirs = LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=5000).fit(features, labels)
    expected = torch.from_numpy(theirs.predict_log_proba(features))
    close(probe(features).log_softmax(1), expected, 1e-5)


def test_linear_probe_is_at_its_minimum():
    features, labels = draw(40, 5), torch.arange(40) % 4
    probe = linear_probe(features, labels, penalty=0.5)
    loss = F.cross_entropy(probe(features), labels, reduction="sum")
    loss = loss + 0.25 * probe.weight.square().sum()
    for gradient in torch.autograd.grad(loss, probe.parameters()):
        assert gradient.abs().max() < 1e-5


def test_linear_probe_knows_classes_that_it_has_not_seen():
    probe = linear_probe(draw(6, 3).float(), torch.tensor([0, 2, 2, 0, 2, 0]), classes=5)
    assert probe.weight.shape == (5, 3) and probe.weight.dtype == torch.float32
    predicted = probe(draw(20, 3, seed=4).float()).argmax(1)
    assert set(predicted.tolist()) <= {0, 2}


def test_linear_probe_works_where_gradients_are_off_and_changes_nothing():
    features, labels = draw(8, 3).requires_grad_(), torch.arange(8) % 2
    before = features.detach().clone()
    with torch.no_grad():
        linear_probe(features, labels)
    assert torch.equal(features, before) and features.grad is None


# ---- bad input


@pytest.mark.parametrize(
    "function, arguments, error, message",
    [
        (class_vectors, (len, "cat", ["{}"]), TypeError, "classes must be a sequence of strings"),
        (class_vectors, (len, ["cat"], "{}"), TypeError, "templates must be a sequence"),
        (class_vectors, (len, [], ["{}"]), ValueError, "classes must not be empty"),
        (class_vectors, (len, ["cat"], []), ValueError, "templates must not be empty"),
        (class_vectors, (len, ["cat"], ["a cat"]), ValueError, "hold {} once each: got 'a cat'"),
        (class_vectors, (len, ["cat"], ["{} {}"]), ValueError, "hold {} once each"),
        (
            class_vectors,
            (lambda texts: torch.ones(3, 2), ["cat"], ["{}"]),
            ValueError,
            r"encode must give 1 rows, one for each text: got \(3, 2\)",
        ),
        (nearest, (torch.ones(2, 3), torch.ones(2, 4)), ValueError, r"got \(2, 3\) and \(2, 4\)"),
        (nearest, (torch.ones(3), torch.ones(2, 3)), ValueError, r"must have shapes \(batch, dim"),
        (accuracy, (torch.ones(2), torch.ones(3)), ValueError, "must hold as many numbers"),
        (accuracy, (torch.ones(0), torch.ones(0)), ValueError, "not none"),
        (few_shot, (torch.ones(3).long(), 0, 0), ValueError, "shots must be at least 1: got 0"),
        (few_shot, (torch.ones(0).long(), 1, 0), ValueError, "labels must have shape"),
        (
            linear_probe,
            (torch.ones(3, 2), torch.zeros(2).long()),
            ValueError,
            r"got \(3, 2\) and \(2,\)",
        ),
        (
            linear_probe,
            (torch.ones(2, 2), torch.tensor([0, 3]), 3),
            ValueError,
            "labels must lie from 0 to 2: got 0 to 3",
        ),
        (linear_probe, (torch.ones(2, 2), torch.tensor([0, -1])), ValueError, "got -1 to 0"),
    ],
)
def test_bad_inputs(unchecked, function, arguments, error, message):
    with pytest.raises(error, match=message):
        unchecked(function)(*arguments)


@pytest.mark.parametrize("penalty", [0.0, -1.0, float("nan")])
def test_penalty_must_be_positive(penalty):
    with pytest.raises(ValueError, match="penalty must be above 0"):
        linear_probe(torch.ones(2, 2), torch.tensor([0, 1]), penalty=penalty)
