"""Checkers for the exercises of chapter 07, matching."""

import torch
import torch.nn.functional as F

from mmlib.exercises.report import check_function, checker

__all__ = ["check_bilinear", "check_class_words", "check_hit_rate", "check_rerank", "check_work"]


def _draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@checker("One matrix decides which of the picture's features speak to which of the sentence's.")
def check_bilinear(answer):
    """Exercise 1: ``answer(image, text, weight)`` scores every picture against every text."""

    def reference(image, text, weight):
        return image @ weight @ text.T

    def transposed(image, text, weight):
        return image @ weight.T @ text.T if weight.shape[0] == weight.shape[1] else None

    square = _draw(4, 4, seed=1), _draw(3, 4, seed=2), _draw(4, 4, seed=3)
    wide = _draw(2, 5, seed=4), _draw(3, 4, seed=5), _draw(5, 4, seed=6)
    check_function(
        answer,
        reference,
        [square, wide],
        mistakes={
            "the matrix is left out: this is a dot product": (
                lambda i, t, w: i @ t.T if i.shape[1] == t.shape[1] else None
            ),
            "the matrix is the wrong way round: its rows belong to the picture": transposed,
            "each picture is scored against its own text only; every pair is asked for": (
                lambda i, t, w: torch.einsum("ni,ij,nj->n", i[: len(t)], w, t[: len(i)])
            ),
            "rows must be pictures, columns texts": lambda i, t, w: (i @ w @ t.T).T,
            "features are divided by their length here; the bilinear form takes them as they are": (
                lambda i, t, w: F.normalize(i, dim=1) @ w @ F.normalize(t, dim=1).T
            ),
        },
        name="the scores",
    )


@checker("A hit is a hit, whichever of the five captions it was.")
def check_hit_rate(answer):
    """Exercise 2: ``answer(scores, owners, k)`` is the share of pictures with a hit."""

    def right(scores, owners):
        return owners[None] == torch.arange(len(scores))[:, None]

    def found(scores, owners, k):
        best = scores.topk(k, dim=1).indices
        return right(scores, owners).gather(1, best)

    def reference(scores, owners, k):
        return found(scores, owners, k).any(1).float().mean()

    def first_only(scores, owners, k):
        first = torch.tensor([(owners == i).nonzero()[0, 0] for i in range(len(scores))])
        best = scores.topk(k, dim=1).indices
        return (best == first[:, None]).any(1).float().mean()

    owners = torch.arange(6).repeat_interleave(3)
    scores = _draw(6, 18, seed=7)
    shuffled = torch.randperm(18, generator=torch.Generator().manual_seed(8))
    check_function(
        answer,
        reference,
        [(scores, owners, 5), (scores, owners[shuffled], 3), (scores, owners, 18)],
        mistakes={
            "this is recall, the share of a picture's captions that were found; one is enough for "
            "a hit": lambda s, o, k: (found(s, o, k).sum(1) / right(s, o).sum(1)).mean(),
            "this is precision, the share of the first k that are right": (
                lambda s, o, k: found(s, o, k).float().mean()
            ),
            "only the first caption of each picture counts here; any of them is a hit": first_only,
            "this is the other direction, texts that find their picture": lambda s, o, k: (
                (s.T.topk(min(k, len(s)), dim=1).indices == o[:, None]).any(1).float().mean()
            ),
            "one place too few is looked at: k = 1 is the first place": (
                lambda s, o, k: reference(s, o, k - 1)
            ),
        },
        name="R@K",
    )


@checker("The classifier's habit is taken off, and what is left says what this picture is like.")
def check_class_words(answer):
    """Exercise 3: ``answer(logits, prior, names, temperature)`` is the picture in words."""

    def mix(logits, names):
        return logits.softmax(1) @ names

    def reference(logits, prior, names, temperature):
        return F.normalize(mix((logits - prior) / temperature, names), dim=1)

    cases = [
        (_draw(4, 6, seed=9), _draw(6, seed=10), _draw(6, 3, seed=11), 3.0),
        (5 * _draw(3, 5, seed=12), _draw(5, seed=13), _draw(5, 4, seed=14), 0.5),
    ]
    check_function(
        answer,
        reference,
        cases,
        mistakes={
            "what the classifier says to every picture, `prior`, is still in it": (
                lambda z, p, n, t: F.normalize(mix(z / t, n), dim=1)
            ),
            "the temperature divides the logits": (
                lambda z, p, n, t: F.normalize(mix((z - p) * t, n), dim=1)
            ),
            "the logits are divided by the temperature before the prior is taken off": (
                lambda z, p, n, t: F.normalize(mix(z / t - p, n), dim=1)
            ),
            "the result must be divided by its length": lambda z, p, n, t: mix((z - p) / t, n),
            "this is the name of the likeliest class alone; all classes have a say": (
                lambda z, p, n, t: F.normalize(n[(z - p).argmax(1)], dim=1)
            ),
            "the softmax must run over the classes": (
                lambda z, p, n, t: F.normalize(((z - p) / t).softmax(0) @ n, dim=1)
            ),
        },
        name="the picture's vector",
    )


@checker("The towers choose who is looked at, the cross-encoder who comes first.")
def check_rerank(answer):
    """Exercise 4: ``answer(quick, careful, top)`` is one query's items, best first."""

    def reference(quick, careful, top):
        order = quick.argsort(descending=True)
        best = order[:top]
        return torch.cat([best[careful[best].argsort(descending=True)], order[top:]])

    def places(quick, careful, top):
        order = quick.argsort(descending=True)
        return torch.cat([careful[order[:top]].argsort(descending=True), order[top:]])

    def backwards(quick, careful, top):
        order = quick.argsort(descending=True)
        best = order[:top]
        return torch.cat([best[careful[best].argsort()], order[top:]])

    cases = [(_draw(8, seed=s), _draw(8, seed=s + 50), t) for s, t in ((1, 3), (2, 5), (3, 4))]
    check_function(
        answer,
        reference,
        cases,
        mistakes={
            "all items are put in a new order; those below the top stay": (
                lambda q, c, t: c.argsort(descending=True)
            ),
            "nothing has changed: the top must follow `careful`": (
                lambda q, c, t: q.argsort(descending=True)
            ),
            "these are places among the top, not numbers of items: look them up": places,
            "the top is in the wrong order, worst first": backwards,
            "what is below the top is missing": lambda q, c, t: reference(q, c, t)[:t],
        },
        name="the order",
    )


@checker("Towers add, a cross-encoder multiplies: that is why one searches and the other re-ranks.")
def check_work(answer):
    """Exercise 5: ``answer(pictures, queries, tower, cross, top)`` is the work of both ways."""

    def work(pictures, queries, tower, cross, top, *, encode=True, again=True):
        search = tower * (pictures + queries) if encode else 0
        return search + (queries * top * cross if again else 0), pictures * queries * cross

    check_function(
        answer,
        work,
        [(1000, 50, 3, 7, 20), (20, 10, 5, 2, 4)],
        mistakes={
            "the towers encode the queries, too": lambda p, q, t, c, k: (
                t * p + q * k * c,
                p * q * c,
            ),
            "the re-ranking of each query's top is missing": (
                lambda p, q, t, c, k: work(p, q, t, c, k, again=False)
            ),
            "the top is re-ranked for every query, not once": lambda p, q, t, c, k: (
                t * (p + q) + k * c,
                p * q * c,
            ),
            "each picture is encoded once, not once a query: that is what towers are for": (
                lambda p, q, t, c, k: (t * p * q + q * k * c, p * q * c)
            ),
            "the cross-encoder alone reads every pair, not only the top": (
                lambda p, q, t, c, k: (work(p, q, t, c, k)[0], q * k * c)
            ),
        },
        name="(work with towers, work of the cross-encoder alone)",
    )
