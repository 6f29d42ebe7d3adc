"""Checkers for the exercises of chapter 13, visual question answering."""

from collections import Counter

import torch
from torch import nn

from mmlib.exercises.report import check_function, checker

__all__ = ["check_accuracy", "check_lora", "check_prior", "check_project", "check_trainable"]


def _draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@checker("Three of the other nine are enough, and one who agrees alone is worth 0.3.")
def check_accuracy(answer):
    """Exercise 1: ``answer(said, people)`` is the official accuracy, already normalised."""

    def reference(said, people):
        n, total = sum(given == said for given in people), len(people)
        return (n * min((n - 1) / 3, 1.0) + (total - n) * min(n / 3, 1.0)) / total

    def case(n):
        return "red", ["red"] * n + ["blue"] * (10 - n)

    check_function(
        answer,
        reference,
        [case(0), case(1), case(2), case(3), case(5), case(10)],
        mistakes={
            "this is min(n / 3, 1) over all people; the official evaluation leaves each of them "
            "out in turn and takes the mean": lambda s, p: min(p.count(s) / 3, 1.0),
            "this is the share of people who agree; three are enough": (
                lambda s, p: p.count(s) / len(p)
            ),
            "one match is not enough for everything": lambda s, p: float(s in p),
            "the most frequent answer is not the only right one": (
                lambda s, p: float(Counter(p).most_common(1)[0][0] == s)
            ),
            "it may not exceed 1": lambda s, p: p.count(s) * 0.3,
        },
        name="the accuracy",
    )


@checker("What can be had without a picture.")
def check_prior(answer):
    """Exercise 2: ``answer(questions, answers, asked)`` is the prior's answer to each question."""

    def most(values, overall):
        counts = Counter(values)
        return max(counts, key=lambda value: (counts[value], overall[value]))

    def reference(questions, answers, asked):
        overall = Counter(answers)
        seen: dict[str, list[str]] = {}
        for question, said in zip(questions, answers, strict=True):
            seen.setdefault(question, []).append(said)
        return [most(seen.get(question, answers), overall) for question in asked]

    questions = ["what colour?"] * 4 + ["is it red?"] * 3 + ["how many?"] * 5
    answers = ["red", "blue", "red", "red", "yes", "no", "no", "2", "2", "3", "3", "3"]
    cases = [
        (questions, answers, ["is it red?", "what colour?", "how many?", "what colour?"]),
        (questions + ["is it red?"] * 4, answers + ["no"] * 4, ["who?", "how many?"]),
    ]
    check_function(
        answer,
        reference,
        cases,
        mistakes={
            "this gives every question the answer that is most frequent overall": (
                lambda q, a, asked: [Counter(a).most_common(1)[0][0] for _ in asked]
            ),
            "this takes the first answer that was given to a question, not the most frequent": (
                lambda q, a, asked: [
                    dict(reversed(list(zip(q, a, strict=True)))).get(x, most(a, Counter(a)))
                    for x in asked
                ]
            ),
            "this takes the last answer that was given to a question, not the most frequent": (
                lambda q, a, asked: [
                    dict(zip(q, a, strict=True)).get(x, most(a, Counter(a))) for x in asked
                ]
            ),
        },
        name="the answers",
    )


@checker("And since `up` starts at zero, the first step starts from the model as it was.")
def check_lora(answer):
    """Exercise 3: ``answer(x, weight, bias, down, up, alpha)`` is the layer with its addition."""

    def reference(x, weight, bias, down, up, alpha):
        return x @ (weight + alpha / len(down) * up @ down).T + bias

    def case(seed, rank, alpha):
        sizes = (5, 6), (4, 6), (4,), (rank, 6), (4, rank)
        return *(_draw(*s, seed=seed + i) for i, s in enumerate(sizes)), alpha

    check_function(
        answer,
        reference,
        [case(1, 2, 4.0), case(11, 3, 1.0), case(21, 1, 3.0)],
        mistakes={
            "the addition is multiplied by alpha / r; this leaves the factor out": (
                lambda x, w, b, d, u, a: x @ (w + u @ d).T + b
            ),
            "alpha is divided by the rank, so that another rank needs no other learning rate": (
                lambda x, w, b, d, u, a: x @ (w + a * u @ d).T + b
            ),
            "this is the addition alone; the frozen layer's output belongs to it": (
                lambda x, w, b, d, u, a: a / len(d) * x @ (u @ d).T
            ),
            "the factor is on the addition only": (
                lambda x, w, b, d, u, a: a / len(d) * (x @ (w + u @ d).T) + b
            ),
            "the bias is missing": lambda x, w, b, d, u, a: x @ (w + a / len(d) * u @ d).T,
        },
        name="the output",
    )


@checker("Each example has its own ball; inside of it nothing moves.")
def check_project(answer):
    """Exercise 4: ``answer(delta, epsilon)`` is the nearest point of each example's ball."""

    def reference(delta, epsilon):
        length = delta.flatten(1).norm(dim=1).clamp(min=1e-12)
        return delta * (epsilon / length).clamp(max=1.0)[:, None, None]

    scale = torch.tensor([0.01, 1.0, 30.0])[:, None, None]
    cases = [(_draw(3, 4, 2, seed=1) * scale, 1.0), (_draw(3, 2, 5, seed=2) * scale, 0.3)]
    cases.append((torch.zeros(2, 3, 2), 0.5))

    def scaled(delta, epsilon):
        return epsilon * delta / delta.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None]

    check_function(
        answer,
        reference,
        cases,
        mistakes={
            "what is inside the ball must stay where it is; this pushes it to the edge": scaled,
            "this has one ball for the whole batch": (
                lambda d, e: d * (e / d.norm().clamp(min=1e-12)).clamp(max=1.0)
            ),
            "this has a ball for every word; the bound is on all words of an example together": (
                lambda d, e: d * (e / d.norm(dim=2, keepdim=True).clamp(min=1e-12)).clamp(max=1.0)
            ),
            "this is a cube: each number is held by itself": lambda d, e: d.clamp(-e, e),
        },
        name="the perturbation",
    )


@checker("Biases, those of the norms too, and the whole head; nothing else.")
def check_trainable(answer):
    """Exercise 5: ``answer(model)`` names what BitFit trains of a model with a new ``head``."""

    class Small(nn.Module):
        def __init__(self, wide: int) -> None:
            super().__init__()
            self.token = nn.Embedding(7, wide)
            self.layer, self.norm = nn.Linear(wide, wide), nn.LayerNorm(wide)
            self.mix = nn.Linear(wide, wide, bias=False)
            self.head = nn.Linear(wide, 3)

    def names(model, wanted):
        return sorted(name for name, _ in model.named_parameters() if wanted(name))

    def bias(name):
        return name.endswith("bias")

    def in_order(model):
        found = answer(model)
        return sorted(found) if isinstance(found, list | tuple | set) else found

    check_function(
        in_order,
        lambda m: names(m, lambda n: bias(n) or n.startswith("head.")),
        [(Small(4),), (Small(6),)],
        mistakes={
            "the head's matrix must learn, too: its classes are new": lambda m: names(m, bias),
            "the biases of norms are biases, too": (
                lambda m: names(m, lambda n: n.startswith("head.") or n == "layer.bias")
            ),
            "these are all parameters": lambda m: names(m, lambda n: True),
            "this is a linear probe: the biases of the body learn, too": (
                lambda m: names(m, lambda n: n.startswith("head."))
            ),
            "a norm's weight is no bias": (
                lambda m: names(m, lambda n: bias(n) or n.startswith(("head.", "norm.")))
            ),
        },
        name="the list of names",
    )
