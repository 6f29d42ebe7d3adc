"""Answers to chapter 13's exercises: right ones, and typical mistakes with words of the message."""

from collections import Counter

import torch
import torch.nn.functional as F

from mmlib.adversarial import project
from mmlib.lora import LoRALinear
from mmlib.metrics.vqa_accuracy import vqa_accuracy
from mmlib.trainable import bitfit


def prior(questions, answers, asked):
    overall = Counter(answers)
    counts = Counter(zip(questions, answers, strict=True))
    rising = sorted(counts, key=lambda pair: (counts[pair], overall[pair[1]]))
    best = dict(rising)
    return [best.get(question, max(overall, key=overall.get)) for question in asked]


def lora(x, weight, bias, down, up, alpha):
    base = torch.nn.Linear(weight.shape[1], weight.shape[0])
    layer = LoRALinear(base)
    layer.add("a", len(down), float(alpha))
    base.weight.data, base.bias.data = weight, bias
    layer.down["a"].data, layer.up["a"].data = down, up
    return layer(x).detach()


def trainable(model):
    bitfit(model)
    return [name for name, p in model.named_parameters() if p.requires_grad]


SOLUTIONS = {
    "check_accuracy": vqa_accuracy,
    "check_lora": lora,
    "check_prior": prior,
    "check_project": project,
    "check_trainable": trainable,
}


def first_answer(questions, answers, asked):
    most = Counter(answers).most_common(1)[0][0]
    return [answers[questions.index(q)] if q in questions else most for q in asked]


def to_the_edge(delta, epsilon):
    return epsilon * F.normalize(delta.flatten(1), dim=1).reshape(delta.shape)


WRONG = [
    ("check_accuracy", lambda s, p: min(p.count(s) / 3, 1), "leaves each of them out"),
    ("check_accuracy", lambda s, p: p.count(s) / len(p), "three are enough"),
    ("check_accuracy", lambda s, p: float(s in p), "one match is not enough"),
    ("check_prior", lambda q, a, x: [Counter(a).most_common(1)[0][0]] * len(x), "overall"),
    ("check_prior", first_answer, "first answer"),
    ("check_lora", lambda x, w, b, d, u, a: F.linear(x, w + u @ d, b), "leaves the factor out"),
    ("check_lora", lambda x, w, b, d, u, a: F.linear(x, w + a * u @ d, b), "divided by the rank"),
    ("check_lora", lambda x, w, b, d, u, a: a / len(d) * F.linear(x, u @ d), "addition alone"),
    ("check_project", to_the_edge, "pushes it to the edge"),
    ("check_project", lambda d, e: d.clamp(-e, e), "a cube"),
    (
        "check_project",
        lambda d, e: d / (d.norm(dim=-1, keepdim=True) / e).clamp(min=1),
        "a ball for every word",
    ),
    (
        "check_trainable",
        lambda m: [n for n, _ in m.named_parameters() if n.endswith(".bias")],
        "head's matrix",
    ),
    ("check_trainable", lambda m: [n for n, _ in m.named_parameters()], "all parameters"),
    (
        "check_trainable",
        lambda m: [n for n, _ in m.named_parameters() if "head" in n],
        "linear probe",
    ),
]
