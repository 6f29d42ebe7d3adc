"""Checkers for the exercises of chapter 12, the multimodal Transformer."""

import itertools

import torch

from mmlib.exercises.report import check_function, checker

__all__ = [
    "check_collapse",
    "check_document_mask",
    "check_error_rate",
    "check_overlap",
    "check_spread",
]


@checker("Repetitions first, blanks after: a blank between two equal labels keeps both.")
def check_collapse(answer):
    """Exercise 1: ``answer(path, blank)`` is the list of labels that a path reads."""

    def merge(path):
        return [label for label, _ in itertools.groupby(path)]

    def reference(path, blank):
        return [label for label in merge(path) if label != blank]

    paths = [[0, 7, 7, 0, 3, 3, 3, 0], [1, 1, 0, 1, 2, 0, 1], [4, 0, 4, 4, 9, 9, 4], []]
    check_function(
        answer,
        reference,
        [(paths[0], 0), (paths[1], 0), (paths[2], 9), (paths[3], 0)],
        mistakes={
            "blanks go after repetitions: a label, a blank and the same label are two labels": (
                lambda p, b: merge([label for label in p if label != b])
            ),
            "repetitions are still there": lambda p, b: [label for label in p if label != b],
            "the blanks are still there": lambda p, b: merge(p),
            "the blank is an argument; it need not be 0": (
                lambda p, b: [label for label in merge(p) if label != 0]
            ),
            "a label may come again later: only neighbours are merged": (
                lambda p, b: [label for label in dict.fromkeys(p) if label != b]
            ),
        },
        name="the list of labels",
    )


def _distance(said, heard, costs=(1, 1, 1)):
    """The least cost of substitutions, deletions and insertions."""
    substitution, deletion, insertion = costs
    above = [j * insertion for j in range(len(heard) + 1)]
    for i, word in enumerate(said, start=1):
        row = [i * deletion]
        for j, other in enumerate(heard, start=1):
            ways = (
                above[j - 1] + substitution * (word != other),
                above[j] + deletion,
                row[j - 1] + insertion,
            )
            row.append(min(ways))
        above = row
    return above[-1]


@checker("All errors over all words that were said: long sentences weigh more.")
def check_error_rate(answer):
    """Exercise 2: ``answer(said, heard)`` is the word error rate of lists of lists of words."""

    def rate(said, heard, distance):
        errors = sum(distance(*pair) for pair in zip(said, heard, strict=True))
        return errors / sum(map(len, said))

    def reference(said, heard):
        return rate(said, heard, _distance)

    def place_by_place(said, heard):
        return sum(a != b for a, b in itertools.zip_longest(said, heard))

    def split(*texts):
        return [text.split() for text in texts]

    easy = split("a red star", "a ring"), split("a red car", "a ring")
    short = split("is there a red star", "yes"), split("is there red star", "yes")
    uneven = (
        split("one two three four five six", "no"),
        split("one two three four five", "yes it is"),
    )
    check_function(
        answer,
        reference,
        [easy, short, uneven],
        mistakes={
            "a word that is missing shifts the others; the fewest edits are wanted": (
                lambda s, h: rate(s, h, place_by_place)
            ),
            "this is the mean of the sentences' rates, in which short ones count as much": (
                lambda s, h: sum(_distance(*p) / len(p[0]) for p in zip(s, h, strict=True)) / len(s)
            ),
            "it is divided by the words that were heard; those that were said are wanted": (
                lambda s, h: reference(s, h) * sum(map(len, s)) / sum(map(len, h))
            ),
            "words that are said too much are errors, too": (
                lambda s, h: rate(s, h, lambda a, b: _distance(a, b, (1, 1, 0)))
            ),
            "a substitution is one error, not a deletion and an insertion": (
                lambda s, h: rate(s, h, lambda a, b: _distance(a, b, (2, 1, 1)))
            ),
            "this is the number of errors": lambda s, h: float(sum(map(_distance, s, h))),
        },
        name="the word error rate",
    )


@checker("Each token sees its own sequence and no other, and nothing is seen where nothing is.")
def check_document_mask(answer):
    """Exercise 3: ``answer(document)`` is True where row ``i`` may attend to column ``j``."""

    def same(document):
        return document[:, :, None] == document[:, None, :]

    def reference(document):
        return same(document) & (document >= 0)[:, None, :]

    documents = torch.tensor([[0, 0, 0], [1, 1, 2]]), torch.tensor([[0, 0, 1, -1, -1]])
    check_function(
        answer,
        reference,
        [(document,) for document in documents],
        mistakes={
            "two places where nothing is (-1) do not see each other": same,
            "this is True where attention is forbidden": lambda d: ~reference(d),
            "this is the mask of padding alone: neighbours in a row see each other": (
                lambda d: (d >= 0)[:, None, :] & (d >= 0)[:, :, None]
            ),
            "an encoder looks back and ahead; this looks back only": (
                lambda d: reference(d).tril()
            ),
            "the numbers are sequences, not places: compare them with each other": (
                lambda d: torch.eye(d.shape[1]).bool().expand(len(d), -1, -1)
            ),
        },
        name="the mask",
    )


@checker("The regulator stretches text to time; what is left of a row stays zero.")
def check_spread(answer):
    """Exercise 4: ``answer(tokens, durations)`` repeats each token as often as it lasts."""

    def rows(tokens, durations):
        return [x.repeat_interleave(n, dim=0) for x, n in zip(tokens, durations, strict=True)]

    def padded(found):
        return torch.nn.utils.rnn.pad_sequence(found, batch_first=True)

    def reference(tokens, durations):
        return padded(rows(tokens, durations))

    def turned(tokens, durations):
        return padded([row.flip(0) for row in rows(tokens, durations)])

    def tiled(tokens, durations):
        most = int(durations.max())
        found = []
        for x, n in zip(tokens, durations, strict=True):
            places = [i for k in range(most) for i in range(len(n)) if k < n[i]]
            found.append(x[places])
        return padded(found)

    draw = torch.Generator().manual_seed(0)
    cases = []
    for sizes in ([[2, 1, 3]], [[0, 2, 1], [4, 0, 0]], [[1, 3, 0], [2, 2, 2]]):
        durations = torch.tensor(sizes)
        cases.append((torch.randn(*durations.shape, 4, generator=draw), durations))
    check_function(
        answer,
        reference,
        cases,
        mistakes={
            "all copies of a token come before the next token": tiled,
            "the text is spoken backwards": turned,
            "a token of duration 0 is not said at all": (lambda t, d: reference(t, d.clamp(min=1))),
            "a token that lasts n steps comes n times": lambda t, d: reference(t, d + 1),
            "each row has durations of its own": (lambda t, d: reference(t, d[:1].expand_as(d))),
        },
        name="the steps",
    )


@checker("Shared time over covered time; events that only touch share nothing.")
def check_overlap(answer):
    """Exercise 5: ``answer(one, other)`` is the temporal IoU of two pairs (start, end)."""

    def shared(one, other):
        return max(0, min(one[1], other[1]) - max(one[0], other[0]))

    def sizes(one, other):
        return one[1] - one[0], other[1] - other[0]

    def reference(one, other):
        both = shared(one, other)
        return both / (sum(sizes(one, other)) - both)

    pairs = [
        ((0, 4), (0, 4)),
        ((0, 4), (2, 8)),
        ((2, 9), (4, 5)),
        ((0, 3), (3, 6)),
        ((0, 2), (5, 9)),
    ]
    check_function(
        answer,
        reference,
        pairs,
        mistakes={
            "events that do not meet share 0, not less": (
                lambda a, b: (
                    (min(a[1], b[1]) - max(a[0], b[0]))
                    / (sum(sizes(a, b)) - (min(a[1], b[1]) - max(a[0], b[0])))
                )
            ),
            "what both cover is counted twice below: subtract it once": (
                lambda a, b: shared(a, b) / sum(sizes(a, b))
            ),
            "the end is the first frame that is not covered: its length is end - start": (
                lambda a, b: (
                    max(0, min(a[1], b[1]) - max(a[0], b[0]) + 1)
                    / (max(a[1], b[1]) - min(a[0], b[0]) + 1)
                )
            ),
            "this is divided by the first event alone": lambda a, b: shared(a, b) / sizes(a, b)[0],
            "this is divided by the shorter event": lambda a, b: shared(a, b) / min(sizes(a, b)),
            "this is the shared time alone": lambda a, b: float(shared(a, b)),
        },
        name="the overlap",
    )
