r"""A small model learns what a large one says (知识蒸馏): chapter 15.

**Of probabilities.** The teacher's logits :math:`t`, softened by a temperature :math:`T`, tell more
than the right class: how alike the wrong ones are.

.. math:: \mathcal L = T^2\, \operatorname{KL}\big(\operatorname{softmax}(t / T) \,\|\,
          \operatorname{softmax}(s / T)\big)

with :math:`T^2`, so that the gradient keeps its size. **Of vectors.** A student of a tower whose
vectors have unit length learns the vectors themselves, without any labels, and then works beside
the teacher's other tower:

.. math:: \mathcal L = 1 - \cos(s_i, t_i)

References:
    Hinton, Vinyals and Dean, *Distilling the Knowledge in a Neural Network*, 2015.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

__all__ = ["soft_label_loss", "vector_loss"]


def soft_label_loss(
    student: Float[Tensor, "batch classes"],
    teacher: Float[Tensor, "batch classes"],
    temperature: float = 2.0,
) -> Float[Tensor, ""]:
    """The divergence of the student's softened probabilities from the teacher's, mean in nats.

    No gradient goes to the teacher.

    Args:
        student: Logits.
        teacher: Logits.
        temperature: Above 0.

    Raises:
        ValueError: shapes that differ, or a temperature of 0 or less.

    >>> import torch
    >>> x = torch.tensor([[1.0, 2.0, 3.0]])
    >>> float(soft_label_loss(x, x))
    0.0
    """
    _check(student, teacher)
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0: got {temperature}")
    ours = (student.float() / temperature).log_softmax(-1)
    theirs = (teacher.detach().float() / temperature).log_softmax(-1)
    # "batchmean" divides by the rows; "mean" would divide by their entries.
    return temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def vector_loss(
    student: Float[Tensor, "batch dim"], teacher: Float[Tensor, "batch dim"]
) -> Float[Tensor, ""]:
    """One minus the cosine of each student's vector with its teacher's, mean.

    No gradient goes to the teacher.

    Raises:
        ValueError: shapes that differ.
    """
    _check(student, teacher)
    return 1 - F.cosine_similarity(student.float(), teacher.detach().float(), dim=-1).mean()


def _check(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape or student.ndim != 2 or 0 in student.shape:
        raise ValueError(
            "student and teacher must have one shape of two dimensions, not empty: "
            f"got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
