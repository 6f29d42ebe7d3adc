"""Answers to chapter 12's exercises: right ones, and typical mistakes with words of the message."""

import itertools

import torch

from mmlib.ctc import ctc_collapse
from mmlib.data.long_clips import Event, match_events
from mmlib.durations import regulate
from mmlib.metrics.word_errors import word_error_rate
from mmlib.packing import document_keep


def spread(tokens, durations):
    owner, _, _, keep = regulate(durations)
    rows = torch.arange(len(tokens))[:, None]
    return tokens[rows, owner].masked_fill(~keep[..., None], 0.0)


def overlap(one, other):
    """The largest threshold at which the events still match, found by trying all fractions."""
    events = Event("up", *one), Event("up", *other)
    fractions = sorted({n / d for d in range(1, 20) for n in range(1, d + 1)}, reverse=True)
    for fraction in fractions:
        if match_events(events[:1], events[1:], fraction)[0]:
            return fraction
    return 0.0


SOLUTIONS = {
    "check_collapse": ctc_collapse,
    "check_document_mask": lambda document: document_keep(document)[:, 0],
    "check_error_rate": word_error_rate,
    "check_overlap": overlap,
    "check_spread": spread,
}


def merged(path):
    return [label for label, _ in itertools.groupby(path)]


def by_place(said, heard):
    wrong = sum(a != b for p in zip(said, heard, strict=True) for a, b in itertools.zip_longest(*p))
    return wrong / sum(map(len, said))


def mean_rate(said, heard):
    rates = [word_error_rate([a], [b]) for a, b in zip(said, heard, strict=True)]
    return sum(rates) / len(rates)


WRONG = [
    ("check_collapse", lambda p, b: merged([x for x in p if x != b]), "are two labels"),
    ("check_collapse", lambda p, b: [x for x in p if x != b], "repetitions are still there"),
    ("check_collapse", lambda p, b: merged(p), "blanks are still there"),
    ("check_collapse", lambda p, b: [x for x in merged(p) if x], "need not be 0"),
    ("check_collapse", lambda p, b: [x for x in dict.fromkeys(p) if x != b], "come again later"),
    ("check_error_rate", by_place, "a word that is missing shifts the others"),
    ("check_error_rate", mean_rate, "mean of the sentences' rates"),
    ("check_document_mask", lambda d: d[:, :, None] == d[:, None], "do not see each other"),
    ("check_document_mask", lambda d: ~document_keep(d)[:, 0], "attention is forbidden"),
    (
        "check_document_mask",
        lambda d: (d >= 0)[:, :, None] & (d >= 0)[:, None],
        "neighbours in a row",
    ),
    ("check_document_mask", lambda d: document_keep(d)[:, 0].tril(), "looks back only"),
    ("check_spread", lambda t, d: spread(t, d.clamp(min=1)), "not said at all"),
    ("check_spread", lambda t, d: spread(t, d + 1), "comes n times"),
    ("check_spread", lambda t, d: spread(t, d[:1].expand_as(d)), "durations of its own"),
    ("check_overlap", lambda a, b: overlap(a, b) / (1 + overlap(a, b)), "counted twice"),
    (
        "check_overlap",
        lambda a, b: max(0, min(a[1], b[1]) - max(a[0], b[0])) / (a[1] - a[0]),
        "first event alone",
    ),
    (
        "check_overlap",
        lambda a, b: float(max(0, min(a[1], b[1]) - max(a[0], b[0]))),
        "shared time alone",
    ),
    (
        "check_overlap",
        lambda a, b: (min(a[1], b[1]) - max(a[0], b[0])) / (max(a[1], b[1]) - min(a[0], b[0])),
        "share 0, not less",
    ),
]
