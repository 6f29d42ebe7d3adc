"""The metrics beside torchmetrics, sacrebleu, nltk, pycocoevalcap and scipy."""

import math
import warnings

import numpy as np
import pytest
import scipy.stats
import torch
from nltk.translate import bleu_score
from pycocoevalcap.cider.cider import Cider as TheirCider
from sacrebleu.metrics import BLEU
from torchmetrics import retrieval as theirs

from mmlib.metrics.bleu import SMOOTHING, bleu, sentence_bleu
from mmlib.metrics.bootstrap import interval
from mmlib.metrics.cider import cider
from mmlib.metrics.retrieval import hit_rate, mean_reciprocal_rank, ranks, recall

# ---- retrieval: pictures of one to seven captions


def retrieval_case():
    generator = torch.Generator().manual_seed(5)
    owner = torch.arange(40).repeat_interleave(torch.randint(1, 8, (40,), generator=generator))
    own = owner == torch.arange(40)[:, None]
    scores = torch.randn(own.shape, generator=generator) + 1.2 * own
    assert scores.unique().numel() == scores.numel()  # where scores tie, torchmetrics is free
    return scores, own


def flat(metric, scores, relevant):
    queries = torch.arange(len(scores))[:, None].expand_as(scores)
    return metric(scores.flatten(), relevant.flatten(), queries.flatten()).item()


@pytest.mark.parametrize("direction", ["text", "image"])
@pytest.mark.parametrize("k", [1, 5, 10])
def test_hit_rate_and_recall_equal_torchmetrics(direction, k):
    scores, relevant = retrieval_case()
    if direction == "image":
        scores, relevant = scores.T, relevant.T
    found = hit_rate(ranks(scores, relevant), k)
    assert found == pytest.approx(flat(theirs.RetrievalHitRate(top_k=k), scores, relevant))
    textbook = recall(scores, relevant, k)
    assert textbook == pytest.approx(flat(theirs.RetrievalRecall(top_k=k), scores, relevant))
    # One picture a caption: the same. Several captions a picture: not.
    assert (found - textbook > 0.05) == (direction == "text")


@pytest.mark.parametrize("direction", ["text", "image"])
def test_reciprocal_rank_equals_torchmetrics(direction):
    scores, relevant = retrieval_case()
    if direction == "image":
        scores, relevant = scores.T, relevant.T
    # A score of 0 or less is no score for it: with the scores as they are it gives another number.
    expected = flat(theirs.RetrievalMRR(), scores - scores.min() + 1, relevant)
    assert mean_reciprocal_rank(ranks(scores, relevant)) == pytest.approx(expected)


# ---- captions

VOCABULARY = ["a", "the", "red", "blue", "star", "dot", "on", "left", "of", "big"]


def corpus(shortest, seed, items=30):
    """Captions of random words, half of each taken from a reference, and difficult ones."""
    draw = np.random.default_rng(seed)

    def caption():
        return list(draw.choice(VOCABULARY, draw.integers(shortest, 13)))

    references = [[caption() for _ in range(draw.integers(1, 6))] for _ in range(items)]
    candidates = []
    for captions in references:
        half = captions[0][: len(captions[0]) // 2 + 2]
        candidates.append(half + caption()[: int(draw.integers(shortest, 8))])
    candidates[3] = list(references[3][-1])  # right
    references[5] = [["zebra"] * 5]  # nothing in common
    candidates[6] = ["a"] * 9  # one word again and again
    references[7].append(list(references[7][0]))  # a reference twice
    candidates[8] = list(candidates[9])  # a caption twice
    references[10] = [["red"] * 4, ["red"] * 8]  # as near: 4 and 8 words
    candidates[10] = ["red"] * 6
    if shortest < 4:
        candidates[0], candidates[1], candidates[2] = [], ["red"], ["red", "star"]
    return candidates, references


SHORT = corpus(0, 0)
LONG = corpus(4, 1)
# No four words in a row match; no three either.
NO_FOUR = [["a", "red", "star", "is", "here"]], [[["a", "red", "star", "was", "here"]]]
NO_THREE = [["a", "red", "dot", "is", "here"]], [[["a", "red", "star", "is", "there"]]]
TINY = [["red", "star"], []], [[["red", "star"], ["star"]], [["dot"]]]
CORPORA = {"short": SHORT, "long": LONG, "no 4": NO_FOUR, "no 3": NO_THREE, "tiny": TINY}


def sacrebleu(candidates, references, **options):
    most = max(map(len, references))
    streams = [
        [" ".join(captions[n]) if n < len(captions) else None for captions in references]
        for n in range(most)
    ]
    metric = BLEU(tokenize="none", force=True, **options)
    return metric.corpus_score([" ".join(candidate) for candidate in candidates], streams)


@pytest.mark.parametrize("name", CORPORA)
@pytest.mark.parametrize(
    ("smoothing", "value"),
    [*((name, None) for name in SMOOTHING), ("floor", 0.3), ("add-k", 2.0)],
)
@pytest.mark.parametrize("order", [1, 2, 4, 5])
@pytest.mark.parametrize("effective", [False, True])
def test_bleu_equals_sacrebleu(name, smoothing, value, order, effective):
    candidates, references = CORPORA[name]
    expected = sacrebleu(
        candidates,
        references,
        smooth_method=smoothing,
        smooth_value=value,
        max_ngram_order=order,
        effective_order=effective,
    )
    found = bleu(
        candidates,
        references,
        order=order,
        smoothing=smoothing,
        smoothing_value=value,
        effective_order=effective,
    )
    assert 100 * found.score == pytest.approx(expected.score, abs=1e-9)
    assert [100 * p for p in found.precisions] == pytest.approx(expected.precisions)
    assert found.brevity_penalty == pytest.approx(expected.bp)
    assert found.candidate_length == expected.sys_len
    assert found.reference_length == expected.ref_len


def test_sentence_bleu_equals_sacrebleu():
    metric = BLEU(tokenize="none", force=True, effective_order=True)
    for candidate, captions in zip(*SHORT, strict=True):
        expected = metric.sentence_score(" ".join(candidate), [" ".join(c) for c in captions])
        found = sentence_bleu(candidate, captions, smoothing="exp", effective_order=True)
        assert 100 * found.score == pytest.approx(expected.score, abs=1e-9)


SMOOTHERS = {"none": "method0", "floor": "method1", "add-k": "method2", "exp": "method3"}


def nltk_bleu(candidates, references, smoothing):
    smoother = getattr(bleu_score.SmoothingFunction(), SMOOTHERS[smoothing])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a score is 0
        return bleu_score.corpus_bleu(references, candidates, smoothing_function=smoother)


@pytest.mark.parametrize("name", ["long", "no 4", "no 3"])
@pytest.mark.parametrize("smoothing", SMOOTHERS)
def test_bleu_equals_nltk(name, smoothing):
    candidates, references = CORPORA[name]
    expected = nltk_bleu(candidates, references, smoothing)
    # Where ours is 0 nltk takes the smallest number's fourth root, about 1e-77.
    assert bleu(candidates, references, smoothing=smoothing).score == pytest.approx(
        expected, rel=1e-9, abs=1e-70
    )


def test_nltk_counts_an_ngram_too_many_for_each_caption_that_is_too_short():
    candidates, references = SHORT
    found = bleu(candidates, references)
    totals = [sum(max(len(c) - n, 0) for c in candidates) for n in range(4)]
    missing = [sum(len(c) <= n for c in candidates) for n in range(4)]
    assert missing[0] == 1  # the empty one
    product = math.prod(
        p * total / (total + none)
        for p, total, none in zip(found.precisions, totals, missing, strict=True)
    )
    expected = nltk_bleu(candidates, references, "none")
    assert found.brevity_penalty * product**0.25 == pytest.approx(expected)
    assert found.score > expected


@pytest.mark.parametrize("name", CORPORA)
@pytest.mark.parametrize("sigma", [6.0, 2.0])
def test_cider_equals_pycocoevalcap(name, sigma):
    candidates, references = CORPORA[name]
    score, scores = TheirCider(sigma=sigma).compute_score(
        {i: [" ".join(caption) for caption in captions] for i, captions in enumerate(references)},
        {i: [" ".join(candidate)] for i, candidate in enumerate(candidates)},
    )
    found = cider(candidates, references, sigma=sigma)
    assert found.score == pytest.approx(score)
    assert found.scores == pytest.approx(scores)


# ---- bootstrap


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_interval_equals_scipys(statistic):
    values = torch.randn(80, generator=torch.Generator().manual_seed(1)).double().exp()
    expected = scipy.stats.bootstrap(
        (values.numpy(),),
        getattr(np, statistic),
        n_resamples=20_000,
        method="percentile",
        confidence_level=0.9,
        rng=np.random.default_rng(0),
    ).confidence_interval
    found = interval(values, statistic=statistic, level=0.9, samples=20_000)
    width = expected.high - expected.low
    assert found == pytest.approx((expected.low, expected.high), abs=0.03 * width)


def test_groups_of_one_size_equal_scipys_bootstrap_of_their_means():
    table = torch.randn(60, 5, generator=torch.Generator().manual_seed(2)).double()
    table = table + 2 * table[:, :1]
    expected = scipy.stats.bootstrap(
        (table.mean(1).numpy(),),
        np.mean,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    groups = torch.arange(60).repeat_interleave(5)
    found = interval(table.flatten(), groups, samples=20_000)
    width = expected.high - expected.low
    assert found == pytest.approx((expected.low, expected.high), abs=0.03 * width)
