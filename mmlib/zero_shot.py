r"""What the vectors of a CLIP are good for without training the towers again: chapter 10.

**Zero-shot**: a class is the mean of the vectors of some sentences that name it, and a picture
belongs to the nearest class. **Linear probe**: a logistic regression on the frozen vectors, the
usual measure of how much they know. **Few-shot**: the same with a few pictures a class.

References:
    Radford et al., *Learning Transferable Visual Models From Natural Language Supervision*,
    ICML 2021, sections 3.1.4 (ensembles of prompts), 3.2 (linear probes) and appendix A.3.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmlib.large_batches import cosines

__all__ = ["accuracy", "class_vectors", "few_shot", "linear_probe", "nearest"]


@torch.no_grad()
def class_vectors(
    encode: Callable[[list[str]], Tensor], classes: Sequence[str], templates: Sequence[str]
) -> Float[Tensor, "classes dim"]:
    r"""A vector of unit length for each class: the direction of its prompts' mean.

    .. math:: w_c = \frac{\sum_t T_{c,t}}{\left\|\sum_t T_{c,t}\right\|}

    where :math:`T_{c,t}` is the vector, of unit length, of template :math:`t` filled with the name
    of class :math:`c`. So an ensemble of prompts costs as much as one when pictures are classified.

    Args:
        encode: Gives a row for each text, of any length above 0.
        classes: The names.
        templates: Sentences with ``{}`` where the name goes, such as ``"a drawing of {}"``.

    Raises:
        TypeError: ``classes`` or ``templates`` is a string itself.
        ValueError: there are none, a template has no ``{}`` or several, or ``encode`` does not
            give a row for each text.

    >>> table = {"a cat": [3.0, 0.0], "one cat": [0.0, 1.0]}
    >>> class_vectors(lambda texts: torch.tensor([table[t] for t in texts]), ["cat"],
    ...               ["a {}", "one {}"])
    tensor([[0.7071, 0.7071]])
    """
    for name, texts in (("classes", classes), ("templates", templates)):
        if isinstance(texts, str):
            raise TypeError(f"{name} must be a sequence of strings: got one string, wrap it in []")
        if not len(texts):
            raise ValueError(f"{name} must not be empty")
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(f"templates must hold {{}} once each: got {template!r}")
    prompts = [template.replace("{}", name) for name in classes for template in templates]
    vectors = encode(prompts)
    if vectors.ndim != 2 or len(vectors) != len(prompts):
        raise ValueError(
            f"encode must give {len(prompts)} rows, one for each text: got {tuple(vectors.shape)}"
        )
    vectors = F.normalize(vectors, dim=1).reshape(len(classes), len(templates), -1)
    return F.normalize(vectors.sum(dim=1), dim=1)


def nearest(
    features: Float[Tensor, "batch dim"], vectors: Float[Tensor, "classes dim"]
) -> Int[Tensor, " batch"]:
    """The class whose vector has the largest cosine with each picture's.

    Args:
        features: Of pictures, of any length above 0.
        vectors: Of classes, likewise.

    Raises:
        ValueError: the widths differ.
    """
    if features.ndim != 2 or vectors.ndim != 2 or features.shape[1] != vectors.shape[1]:
        raise ValueError(
            "features and vectors must have shapes (batch, dim) and (classes, dim): "
            f"got {tuple(features.shape)} and {tuple(vectors.shape)}"
        )
    return cosines(F.normalize(features, dim=1), F.normalize(vectors, dim=1)).argmax(dim=1)


def accuracy(
    predicted: Int[Tensor, " batch"], labels: Int[Tensor, " batch"], *, balanced: bool = False
) -> float:
    """Share of predictions that are right.

    Args:
        predicted: Numbers of classes.
        labels: The right ones.
        balanced: Take the share in each class that occurs, then the mean of the classes: a large
            class counts no more than a small one. Always guessing one class then gives one over
            their number.

    Raises:
        ValueError: the two do not have as many numbers, or none.

    >>> labels, always = torch.tensor([0, 0, 0, 1]), torch.zeros(4, dtype=torch.long)
    >>> accuracy(always, labels), accuracy(always, labels, balanced=True)
    (0.75, 0.5)
    """
    if predicted.ndim != 1 or predicted.shape != labels.shape or not len(labels):
        raise ValueError(
            "predicted and labels must hold as many numbers, not none: "
            f"got {tuple(predicted.shape)} and {tuple(labels.shape)}"
        )
    right = (predicted == labels).double()
    if not balanced:
        return right.mean().item()
    return torch.stack([right[labels == c].mean() for c in labels.unique()]).mean().item()


def few_shot(
    labels: Int[Tensor, " items"], shots: int, generator: torch.Generator | int
) -> Int[Tensor, " chosen"]:
    """Places of ``shots`` items of each class, drawn without repetition; fewer where there are.

    Args:
        labels: The class of each item.
        shots: At least 1.
        generator: What is drawn from, or a seed.

    Raises:
        ValueError: ``shots`` is below 1, or there are no items.

    >>> few_shot(torch.tensor([0, 1, 0, 0, 1]), 1, generator=0).shape
    torch.Size([2])
    """
    if shots < 1:
        raise ValueError(f"shots must be at least 1: got {shots}")
    if labels.ndim != 1 or not len(labels):
        raise ValueError(f"labels must have shape (items,), not empty: got {tuple(labels.shape)}")
    if not isinstance(generator, torch.Generator):
        generator = torch.Generator().manual_seed(generator)
    order = torch.randperm(len(labels), generator=generator).to(labels.device)
    chosen = [order[labels[order] == c][:shots] for c in labels.unique()]
    return torch.cat(chosen).sort().values


def linear_probe(
    features: Float[Tensor, "batch dim"],
    labels: Int[Tensor, " batch"],
    classes: int | None = None,
    *,
    penalty: float = 1.0,
    steps: int = 1000,
) -> nn.Linear:
    r"""Logistic regression on frozen features, by L-BFGS, to convergence.

    .. math:: \min_{W, b}\; \sum_i -\log \operatorname{softmax}(W x_i + b)_{y_i}
              + \tfrac{\lambda}{2} \|W\|^2

    It is convex: there is one solution, and no seed. Equal to scikit-learn's
    ``LogisticRegression`` with ``C`` = 1/λ. The paper chooses λ on a validation set.

    Args:
        features: Rows :math:`x_i`; those of a CLIP have unit length, and want a small λ.
        labels: :math:`y_i`.
        classes: How many there are; one more than the largest label by default.
        penalty: :math:`\lambda`; above 0.
        steps: The most steps of L-BFGS.

    Returns:
        The layer, in the dtype and on the device of the features; ``probe(features).argmax(1)``.

    Raises:
        ValueError: shapes that do not fit, a label outside the classes, or a penalty of 0 or less.
    """
    if features.ndim != 2 or labels.shape != features.shape[:1] or 0 in features.shape:
        raise ValueError(
            "features and labels must have shapes (batch, dim) and (batch,), not empty: "
            f"got {tuple(features.shape)} and {tuple(labels.shape)}"
        )
    classes = int(labels.max()) + 1 if classes is None else classes
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(
            f"labels must lie from 0 to {classes - 1}: "
            f"got {int(labels.min())} to {int(labels.max())}"
        )
    if not penalty > 0:
        raise ValueError(f"penalty must be above 0: got {penalty}")
    x = features.detach().double()  # a flat valley needs the digits
    weight = torch.zeros(classes, x.shape[1] + 1, dtype=x.dtype, device=x.device)
    weight.requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight],
        max_iter=steps,
        tolerance_grad=1e-7,
        tolerance_change=1e-12,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = F.linear(x, weight[:, :-1], weight[:, -1])
        loss = F.cross_entropy(logits, labels, reduction="sum")
        loss = loss + 0.5 * penalty * weight[:, :-1].square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    probe = nn.Linear(x.shape[1], classes, dtype=features.dtype, device=features.device)
    probe.load_state_dict({"weight": weight.detach()[:, :-1], "bias": weight.detach()[:, -1]})
    return probe
