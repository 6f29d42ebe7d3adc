"""The metrics of chapter 14 beside the libraries whose numbers they give."""

import random

import torch
from rouge_score import rouge_scorer
from sklearn.metrics import f1_score, roc_auc_score

from mmlib.metrics.ranking import macro_f1
from mmlib.metrics.rouge import rouge_l, rouge_n, words
from mmlib.metrics.selective import auroc

AREA = "Metrics of applications (chapter 14)"


def test_rouge(side_by_side):
    draw = random.Random(0)
    vocabulary = [f"w{i}" for i in range(80)]
    texts = [" ".join(draw.choices(vocabulary, k=40)) for _ in range(200)]
    pairs = list(zip(texts, texts[1:] + texts[:1], strict=True))
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)

    def ours():
        found = []
        for text, reference in pairs:
            a, b = words(text), words(reference)
            found.append((rouge_n(a, b, 1).f, rouge_n(a, b, 2).f, rouge_l(a, b).f))
        return found

    def theirs():
        scores = [scorer.score(reference, text) for text, reference in pairs]
        return [tuple(s[k].fmeasure for k in ("rouge1", "rouge2", "rougeL")) for s in scores]

    torch.testing.assert_close(torch.tensor(ours()), torch.tensor(theirs()))
    table = side_by_side(
        "ROUGE-1, -2 and -L of 200 summaries of 40 words", {"mmlib": ours, "rouge-score": theirs}
    )
    table.as_fast("mmlib", "rouge-score")


def test_auroc(side_by_side):
    scores = torch.rand(100_000)
    positive = torch.rand(100_000) < 0.3
    table = side_by_side(
        "AUROC of 100,000 scores",
        {
            "mmlib": lambda: auroc(scores, positive),
            "scikit-learn": lambda: roc_auc_score(positive.numpy(), scores.numpy()),
        },
    )
    table.as_fast("mmlib", "scikit-learn")


def test_macro_f1(side_by_side):
    labels, predicted = torch.randint(12, (2, 100_000))
    table = side_by_side(
        "macro-F1 of 100,000 items, 12 classes",
        {
            "mmlib": lambda: macro_f1(predicted, labels, 12),
            "scikit-learn": lambda: f1_score(labels.numpy(), predicted.numpy(), average="macro"),
        },
    )
    table.as_fast("mmlib", "scikit-learn")
