"""Checkers for the exercises of chapter 10, CLIP."""

import torch
import torch.nn.functional as F
from torch import nn

from mmlib.exercises.report import check_function, checker

__all__ = ["check_class_vectors", "check_end", "check_logits", "check_twins", "check_unlocked"]


def _draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@checker("It is found by its id, wherever it stands and whatever comes after it.")
def check_end(answer):
    """Exercise 1: ``answer(tokens, ids, end_id)`` is the vector of each text."""

    def at(tokens, places):
        return tokens[torch.arange(len(tokens)), places]

    def reference(tokens, ids, end_id):
        return at(tokens, (ids == end_id).int().argmax(1))

    plain = torch.tensor([[1, 5, 3, 9, 0, 0], [1, 9, 0, 0, 0, 0], [1, 4, 4, 2, 6, 9]])
    grown = torch.tensor([[1, 12, 3, 9, 0, 0], [1, 9, 9, 9, 9, 9], [1, 10, 4, 2, 9, 9]])
    check_function(
        answer,
        reference,
        [(_draw(3, 6, 4, seed=1), plain, 9), (_draw(3, 6, 4, seed=2), grown, 9)],
        mistakes={
            "this takes the largest id of a text for its end; a vocabulary may grow beyond it": (
                lambda x, i, e: at(x, i.argmax(1))
            ),
            "this is the last position; a text that is shorter ends before": (
                lambda x, i, e: x[:, -1]
            ),
            "this is the last end token; where padding is the end token, too, the first counts": (
                lambda x, i, e: at(x, i.shape[1] - 1 - (i == e).int().flip(1).argmax(1))
            ),
            "this is the token before the end; the end has seen all of the text": (
                lambda x, i, e: at(x, (i == e).int().argmax(1) - 1)
            ),
            "this is the first token, which in a causal tower has seen nothing": (
                lambda x, i, e: x[:, 0]
            ),
            "this is the mean over all positions": lambda x, i, e: x.mean(1),
        },
        name="the texts' vectors",
    )


@checker("Cosines between -1 and 1, times a factor that is learned and held.")
def check_logits(answer):
    """Exercise 2: ``answer(image, text, w_image, w_text, log_scale)`` is the logits."""

    def cosines(image, text, w_image, w_text):
        return F.normalize(image @ w_image.T, dim=1) @ F.normalize(text @ w_text.T, dim=1).T

    def reference(image, text, w_image, w_text, log_scale):
        return log_scale.exp().clamp(max=100) * cosines(image, text, w_image, w_text)

    def early(image, text, w_image, w_text, log_scale):
        unit = F.normalize(image, dim=1) @ w_image.T, F.normalize(text, dim=1) @ w_text.T
        return log_scale.exp().clamp(max=100) * unit[0] @ unit[1].T

    def case(seed, log_scale):
        sizes = (3, 6), (4, 5), (2, 6), (2, 5)
        return *(_draw(*s, seed=seed + i) for i, s in enumerate(sizes)), torch.tensor(log_scale)

    check_function(
        answer,
        reference,
        [case(1, 1.0), case(11, 2.6), case(21, 7.0)],
        mistakes={
            "the vectors are not divided by their length": (
                lambda i, t, wi, wt, s: s.exp().clamp(max=100) * (i @ wi.T) @ (t @ wt.T).T
            ),
            "lengths are divided by before the projections; they must be 1 after them": (early),
            "`log_scale` is the logarithm of the factor": (
                lambda i, t, wi, wt, s: s * cosines(i, t, wi, wt)
            ),
            "the factor multiplies; its inverse, the temperature, divides": (
                lambda i, t, wi, wt, s: cosines(i, t, wi, wt) / s.exp().clamp(max=100)
            ),
            "the factor is held at 100": lambda i, t, wi, wt, s: s.exp() * cosines(i, t, wi, wt),
            "the factor itself is held at 100, not its logarithm": (
                lambda i, t, wi, wt, s: s.clamp(max=4.0).exp() * cosines(i, t, wi, wt)
            ),
            "rows must be pictures, columns texts": (
                lambda i, t, wi, wt, s: reference(i, t, wi, wt, s).T
            ),
            "this is a probability; the softmax belongs to the loss": (
                lambda i, t, wi, wt, s: reference(i, t, wi, wt, s).softmax(1)
            ),
        },
        name="the logits",
    )


@checker("Every prompt has one vote, and the class is as long as any other.")
def check_class_vectors(answer):
    """Exercise 3: ``answer(vectors)``, of shape (classes, prompts, dim), is one row a class."""

    def reference(vectors):
        return F.normalize(F.normalize(vectors, dim=-1).mean(1), dim=-1)

    lengths = torch.tensor([1.0, 20.0, 0.1])[:, None]
    check_function(
        answer,
        reference,
        [(_draw(4, 3, 5, seed=1) * lengths,), (_draw(3, 3, 2, seed=2) * lengths,)],
        mistakes={
            "a prompt with a longer vector has more votes: divide each by its length first": (
                lambda v: F.normalize(v.mean(1), dim=-1)
            ),
            "the mean of unit vectors is shorter than 1: divide by its length, too": (
                lambda v: F.normalize(v, dim=-1).mean(1)
            ),
            "this is the mean over the classes; a class is the mean of its prompts": (
                lambda v: F.normalize(F.normalize(v, dim=-1).mean(0), dim=-1)
            ),
            "nothing is divided by its length": lambda v: v.mean(1),
            "this is the first prompt alone": lambda v: F.normalize(v[:, 0], dim=-1),
        },
        name="the classes' vectors",
    )


@checker("A tie is no answer: a bag of words, which gives nothing but ties, gets 0.")
def check_twins(answer):
    """Exercise 4: ``answer(score)`` is the shares (caption, picture, all) of pairs of twins."""

    def rights(score, tie=False):
        above = torch.ge if tie else torch.gt
        own, other = score.diagonal(dim1=1, dim2=2), score.flip(2).diagonal(dim1=1, dim2=2)
        return above(own, other), above(own, other.flip(1))

    def means(caption, picture):
        caption, picture = caption.double(), picture.double()
        return caption.mean(), picture.mean(), (caption.prod(1) * picture.prod(1)).mean()

    def reference(score):
        return tuple(float(x) for x in means(*rights(score)))

    def with_ties(score):
        return tuple(float(x) for x in means(*rights(score, tie=True)))

    def strict(score):
        caption, picture = rights(score)
        both = caption.all(1), picture.all(1)
        return tuple(float(x.double().mean()) for x in (*both, both[0] & both[1]))

    def product(score):
        caption, picture, _ = reference(score)
        return caption, picture, caption * picture

    ties = torch.tensor([[[1.0, 1.0], [0.0, 0.0]], [[2.0, 1.0], [1.0, 2.0]]])
    check_function(
        answer,
        reference,
        [(_draw(40, 2, 2, seed=3),), (ties,)],
        mistakes={
            "a tie counts as right": with_ties,
            "captions and pictures are confused: `score[n, i, j]` is of picture i and caption j": (
                lambda s: reference(s.transpose(1, 2))
            ),
            "the first two are shares of all pictures (captions), two for each pair": strict,
            "all four must be right for the same pair: count the pairs": product,
        },
        name="(caption, picture, all)",
    )


@checker("The locked tower stands still; its projection, the other tower and the scale learn.")
def check_unlocked(answer):
    """Exercise 5: ``answer(model)`` is the names of the parameters that are trained."""

    class Small(nn.Module):
        def __init__(self, layers: int) -> None:
            super().__init__()
            tower = [nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)) for _ in range(layers)]
            self.image = nn.Sequential(*tower)
            self.text = nn.Embedding(5, 4)
            self.image_projection = nn.Linear(3, 2, bias=False)
            self.text_projection = nn.Linear(4, 2, bias=False)
            self.log_scale = nn.Parameter(torch.zeros(()))

    def names(model, wanted):
        return sorted(name for name, _ in model.named_parameters() if wanted(name))

    def reference(model):
        return names(model, lambda name: not name.startswith("image."))

    def in_order(model):
        found = answer(model)
        return sorted(found) if isinstance(found, list | tuple | set) else found

    check_function(
        in_order,
        reference,
        [(Small(1),), (Small(2),)],
        mistakes={
            "the picture tower's projection is trained: its name begins with `image`, too": (
                lambda m: names(m, lambda name: not name.startswith("image"))
            ),
            "the scale is trained as well": (
                lambda m: names(m, lambda n: not n.startswith("image.") and n != "log_scale")
            ),
            "the picture tower stands still; it is the text tower that is trained": (
                lambda m: names(m, lambda name: not name.startswith("text."))
            ),
            "these are all parameters": lambda m: names(m, lambda name: True),
            "the text tower is trained, too, not the projections alone": (
                lambda m: names(m, lambda n: not n.startswith(("image.", "text.")))
            ),
            "the projections are trained as well as the text tower": (
                lambda m: names(m, lambda name: name.startswith("text."))
            ),
        },
        name="the list of names",
    )
