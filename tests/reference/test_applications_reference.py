"""Metrics of chapter 14 equal scikit-learn's and rouge-score's; data equal what they came from."""

import random
import zipfile

import networkx
import numpy as np
import pytest
import torch
import yaml
from rouge_score import rouge_scorer
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge
from sklearn.metrics import f1_score, ndcg_score, roc_auc_score

from mmlib.applications.monitor import Cusum, first_alarm, mean_run_length
from mmlib.applications.recommender import components
from mmlib.applications.replies import TfIdf, ridge_map, terms
from mmlib.applications.summary import page_rank
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


def test_components_equal_sklearns():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(40, 7, generator=draw, dtype=torch.float64)
    warm = torch.arange(40) < 30
    unit = torch.nn.functional.normalize(x, dim=1).numpy()
    theirs = PCA(3).fit(unit[:30]).transform(unit)
    np.testing.assert_allclose(components(x, warm, 3).abs().numpy(), abs(theirs), atol=1e-9)


def test_page_rank_equals_networkx():
    draw = torch.Generator().manual_seed(0)
    weights = torch.rand(9, 9, generator=draw, dtype=torch.float64) ** 3
    weights = weights * (1 - torch.eye(9, dtype=torch.float64))
    weights[4] = 0  # a node without an edge of its own
    graph = networkx.from_numpy_array(weights.numpy(), create_using=networkx.DiGraph)
    theirs = networkx.pagerank(graph, alpha=0.7, tol=1e-12, max_iter=500)
    np.testing.assert_allclose(page_rank(weights, 0.7).numpy(), [theirs[i] for i in range(9)], 1e-8)


@pytest.mark.parametrize("pairs", [50, 5])  # more pairs than terms, and fewer
def test_the_ridge_map_equals_sklearn(pairs):
    draw = torch.Generator().manual_seed(0)
    q, r = torch.randn(2, pairs, 8, generator=draw, dtype=torch.float64)
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


def test_the_delay_after_a_calm_is_what_simulation_gives():
    """The change comes after 150 calm posts, in those of 20,000 streams that had no alarm."""
    cusum, limit = Cusum(0.2, 0.45), 6
    draw = torch.Generator().manual_seed(2)
    x = torch.rand(20_000, 350, generator=draw) < torch.tensor([0.2] * 150 + [0.45] * 200)
    alarm = first_alarm(cusum(x), limit)
    late = alarm[(alarm > 150) | (alarm < 0)] - 150
    assert len(late) > 500 and (late > 0).all()
    expected = mean_run_length(cusum.gain, limit, 0.45, 0.2)
    assert late.double().mean() == pytest.approx(expected, rel=0.04)
    assert expected < 0.95 * mean_run_length(cusum.gain, limit, 0.45)


def test_the_licence_is_the_one_of_the_metadata():
    """The wheel names the family; which of them the text in the source distribution says."""
    path = fetch(chatterbot.SOURCE, progress=False)["wheel"]
    with zipfile.ZipFile(path) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        about = wheel.read(name).decode("utf-8")
    assert "Classifier: License :: OSI Approved :: BSD License\n" in about
    assert chatterbot.SOURCE.licence == "BSD-3-Clause"


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
