"""Checkers of chapter 05, contrastive learning."""

import torch
import torch.nn.functional as F

from mmlib.exercises.report import check_function, checker


def _draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@checker("A contrastive loss is a classifier whose classes are the other items of the batch.")
def check_info_nce(answer):
    """Exercise 1: ``answer(queries, keys, temperature)`` is InfoNCE, one way."""

    def cosines(queries, keys):
        return F.normalize(queries, dim=1) @ F.normalize(keys, dim=1).T

    def diagonal(logits):
        return F.cross_entropy(logits, torch.arange(len(logits)))

    def reference(queries, keys, temperature):
        return diagonal(cosines(queries, keys) / temperature)

    check_function(
        answer,
        reference,
        [(_draw(3, 4, seed=1), _draw(3, 4, seed=2), 1.0)]
        + [(3 * _draw(5, 2, seed=3), _draw(5, 2, seed=4), 0.07)],
        mistakes={
            "the features are not divided by their lengths, so this is no cosine": (
                lambda queries, keys, temperature: diagonal(queries @ keys.T / temperature)
            ),
            "the cosines are multiplied by the temperature; divide": (
                lambda queries, keys, temperature: diagonal(cosines(queries, keys) * temperature)
            ),
            "this is the other direction: keys look for queries. The softmax of query i runs "
            "over all keys": lambda queries, keys, temperature: diagonal(
                cosines(keys, queries) / temperature
            ),
            "this is the mean of both directions; only one is asked for": (
                lambda queries, keys, temperature: (
                    (
                        diagonal(cosines(queries, keys) / temperature)
                        + diagonal(cosines(keys, queries) / temperature)
                    )
                    / 2
                )
            ),
            "this is the sum over the queries; the mean is asked for": (
                lambda queries, keys, temperature: (
                    len(queries) * reference(queries, keys, temperature)
                )
            ),
            "the sign is wrong: a loss is minus a logarithm of a probability": (
                lambda queries, keys, temperature: -reference(queries, keys, temperature)
            ),
        },
        name="the loss",
    )


@checker("Each row is a distribution over everything that is right for this item.")
def check_targets(answer):
    """Exercise 2: ``answer(groups)`` is the matrix of targets with equal shares."""

    def same(groups):
        return (groups[:, None] == groups).float()

    def reference(groups):
        return same(groups) / same(groups).sum(1, keepdim=True)

    def without_self(groups):
        others = same(groups) - torch.eye(len(groups))
        return others / others.sum(1, keepdim=True).clamp(min=1)

    check_function(
        answer,
        reference,
        [(torch.tensor([0, 1, 0, 2]),), (torch.tensor([7, 7, 7, -1, 4, 4]),)],
        mistakes={
            "a row with several positives must sum to 1: divide by their number": same,
            "this is one positive each; items of one group are positives of each other": (
                lambda groups: torch.eye(len(groups))
            ),
            "an item's own partner is a positive, too": without_self,
            "all positives together must share 1 in each row, not in the whole matrix": (
                lambda groups: same(groups) / same(groups).sum()
            ),
        },
        name="the matrix of targets",
    )


@checker("A running log-sum-exp needs one number a column, however many rows there are.")
def check_column_sums(answer):
    """Exercise 3: ``answer(chunks)`` is the log-sum-exp of each column, chunk by chunk."""

    def reference(chunks):
        return torch.cat(list(chunks)).logsumexp(0)

    chunks = list(_draw(7, 4, seed=5).split(3))
    check_function(
        answer,
        reference,
        [(chunks,), ([100 * chunk + 300 for chunk in chunks],)],
        mistakes={
            "log-sum-exps are added, which multiplies what they stand for. Add the exponentials, "
            "with `torch.logaddexp`": lambda chunks: sum(chunk.logsumexp(0) for chunk in chunks),
            "exponentials of large logits overflow to infinity. Stay with logarithms: "
            "`torch.logaddexp`": lambda chunks: sum(chunk.exp().sum(0) for chunk in chunks).log(),
            "this is the maximum of the chunks' sums, not the log of their sum": (
                lambda chunks: torch.stack([chunk.logsumexp(0) for chunk in chunks]).max(0).values
            ),
            "this is the last chunk alone": lambda chunks: chunks[-1].logsumexp(0),
        },
        name="the log-sum-exp of each column",
    )


@checker("The nearest thing that is wrong, and a twin is not wrong.")
def check_hardest(answer):
    """Exercise 4: ``answer(similar, groups)`` is each anchor's hardest negative."""

    def pick(similar, allowed, largest=True):
        away = -torch.inf if largest else torch.inf
        kept = similar.masked_fill(~allowed, away)
        return kept.argmax(1) if largest else kept.argmin(1)

    def others(similar):
        return ~torch.eye(len(similar), dtype=torch.bool)

    def reference(similar, groups):
        return pick(similar, groups[:, None] != groups)

    similar = _draw(6, 6, seed=6) + 3 * torch.eye(6)
    groups = torch.tensor([0, 1, 0, 2, 1, 3])
    twins = (groups[:, None] == groups) & others(similar)
    check_function(
        answer,
        reference,
        [(similar, torch.arange(6)), (similar + 2 * twins, groups), (similar - 9, groups)],
        mistakes={
            "the most similar of all is the item's own partner: leave it out": (
                lambda similar, groups: similar.argmax(1)
            ),
            "a twin (an item of the same group) was chosen: it is no negative": (
                lambda similar, groups: pick(similar, others(similar))
            ),
            "this is the easiest negative, the least similar one": (
                lambda similar, groups: pick(similar, groups[:, None] != groups, largest=False)
            ),
            "what is left out was set to 0, which is more than a negative similarity. Use "
            "`-torch.inf`": lambda similar, groups: similar.masked_fill(
                groups[:, None] == groups, 0.0
            ).argmax(1),
        },
        name="the hardest negatives",
    )


@checker("At 32 pairs a rank it is nothing; the logits grow with the square of the whole batch.")
def check_cost(answer):
    """Exercise 5: ``answer(batch, ranks, dim)`` gives bytes of logits and bytes received."""

    def cost(batch, ranks, dim, sides=2, gathered=None, width=4, rows=None):
        received = ranks - 1 if gathered is None else gathered
        rows = batch if rows is None else rows
        return rows * batch * ranks * width, sides * received * batch * dim * 2

    check_function(
        answer,
        cost,
        [(2, 3, 5), (32, 1000, 512), (8, 1, 64)],
        mistakes={
            "a rank sends and receives both pictures and texts: twice as many bytes": (
                lambda batch, ranks, dim: cost(batch, ranks, dim, sides=1)
            ),
            "a rank does not receive its own features: `ranks - 1` others send theirs": (
                lambda batch, ranks, dim: cost(batch, ranks, dim, gathered=ranks)
            ),
            "a rank holds only the rows of its own items, not the whole matrix": (
                lambda batch, ranks, dim: cost(batch, ranks, dim, rows=batch * ranks)
            ),
            "logits are fp32, 4 bytes each (only what is sent is bf16)": (
                lambda batch, ranks, dim: cost(batch, ranks, dim, width=2)
            ),
            "the columns are the items of all ranks, not of one": (
                lambda batch, ranks, dim: (4 * batch * batch, cost(batch, ranks, dim)[1])
            ),
        },
        name="(bytes of logits, bytes received)",
    )
