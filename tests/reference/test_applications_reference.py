"""Metrics of chapter 14 equal scikit-learn's and rouge-score's; data equal what they came from."""

import random
import zipfile

import numpy as np
import pytest
import torch
import yaml
from rouge_score import rouge_scorer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge
from sklearn.metrics import f1_score, ndcg_score, roc_auc_score

from mmlib.applications.monitor import Cusum, first_alarm, mean_run_length
from mmlib.applications.replies import TfIdf, ridge_map, terms
from mmlib.data import chatterbot
from mmlib.download import fetch
from mmlib.metrics.ranking import macro_f1, ndcg
from mmlib.metrics.rouge import rouge_l, rouge_n, words
from mmlib.metrics.selective import auroc


def test_rouge_equals_rouge_score():
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
    draw = random.Random(0)
    vocabulary = ["a", "b", "c", "d2", "it's", "Red.", "x,y"]
    for _ in range(60):
        a, b = (" ".join(draw.choices(vocabulary, k=draw.randint(1, 14))) for _ in range(2))
        theirs = scorer.score(b, a)  # target first
        mine = {
            "rouge1": rouge_n(words(a), words(b), 1),
            "rouge2": rouge_n(words(a), words(b), 2),
            "rougeL": rouge_l(words(a), words(b)),
        }
        for name, score in mine.items():
            assert score == pytest.approx(tuple(theirs[name])), (name, a, b)


@pytest.mark.parametrize("ties", [False, True])
def test_auroc_equals_sklearn(ties):
    draw = torch.Generator().manual_seed(0)
    scores = torch.rand(200, generator=draw)
    scores = (scores * 10).round() if ties else scores
    positive = torch.rand(200, generator=draw) < 0.3
    assert auroc(scores, positive) == pytest.approx(roc_auc_score(positive, scores))


def test_macro_f1_equals_sklearn():
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (150,), generator=draw)
    predicted = torch.where(torch.rand(150, generator=draw) < 0.5, labels, labels.flip(0))
    predicted[predicted == 3] = 0  # a class that is never said
    for classes in (4, 6):  # and two that are not there
        theirs = f1_score(
            labels, predicted, average="macro", labels=range(classes), zero_division=0
        )
        assert macro_f1(predicted, labels, classes) == pytest.approx(theirs)


@pytest.mark.parametrize("k", [1, 5, 10])
def test_ndcg_equals_sklearn(k):
    draw = torch.Generator().manual_seed(0)
    scores = torch.rand(30, 40, generator=draw, dtype=torch.float64)
    target = torch.randint(40, (30,), generator=draw)
    relevant = torch.zeros(30, 40).scatter(1, target[:, None], 1.0)
    ranks = 1 + (scores > scores.gather(1, target[:, None])).sum(1)
    assert ndcg(ranks, k) == pytest.approx(ndcg_score(relevant.numpy(), scores.numpy(), k=k))


def test_tf_idf_equals_sklearn():
    texts = ["the cat eats", "the dog sees the cat", "a bird", "eats a bird"]
    theirs = TfidfVectorizer(analyzer=terms).fit(texts)
    mine = TfIdf(texts)
    for text in [*texts, "the the bird flies"]:
        np.testing.assert_allclose(
            mine([text])[0].numpy(), theirs.transform([text]).toarray()[0], atol=1e-6
        )


def test_the_ridge_map_equals_sklearn():
    draw = torch.Generator().manual_seed(0)
    q, r = torch.randn(2, 50, 8, generator=draw, dtype=torch.float64)
    theirs = Ridge(alpha=2.5, fit_intercept=False).fit(q.numpy(), (r - q).numpy())
    np.testing.assert_allclose(
        (ridge_map(q, r, 2.5) - torch.eye(8)).numpy(), theirs.coef_.T, atol=1e-9
    )


@pytest.mark.parametrize("share", [0.2, 0.45])
def test_the_delay_of_cusum_is_the_one_of_its_markov_chain(share):
    """The closed form against our own statistic on 3,000 long streams of zeros and ones."""
    cusum, limit = Cusum(0.2, 0.45), 5
    draw = torch.Generator().manual_seed(1)
    x = (torch.rand(3000, 1200, generator=draw) < share).long()
    alarm = first_alarm(cusum(x), limit)
    assert (alarm > 0).double().mean() > 0.999
    expected = mean_run_length(cusum.gain, limit, share)
    assert alarm[alarm > 0].double().mean() == pytest.approx(expected, rel=0.05)


def test_pairs_are_what_a_yaml_library_reads():
    """All files but one, which is broken where it was made: a question lies inside a reply."""
    path = fetch(chatterbot.SOURCE, progress=False)["wheel"]
    compared = 0
    with zipfile.ZipFile(path) as wheel:
        for name in wheel.namelist():
            language, _, file = name.removeprefix("chatterbot_corpus/data/").partition("/")
            skipped = ("coding.yml", "tech_support.yml")
            if language not in chatterbot.LANGUAGES.values() or file in skipped:
                continue
            if (language, file) == ("english", "trivia.yml"):
                continue
            text = wheel.read(name).decode("utf-8")
            theirs = [
                [" ".join(str(turn or "").split()) for turn in turns]
                for turns in yaml.safe_load(text)["conversations"]
            ]
            theirs = [turns[:2] for turns in theirs if len(turns) > 1 and turns[0] and turns[1]]
            mine = [
                [" ".join(turn.split()) for turn in turns[:2]]
                for turns in chatterbot.read_conversations(text)
            ]
            assert mine == theirs, name
            compared += len(mine)
    assert compared > 700
