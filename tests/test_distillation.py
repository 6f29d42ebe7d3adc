"""Distillation: the losses are their formulas, and no gradient reaches the teacher."""

import pytest
import torch
import torch.nn.functional as F

from mmlib.distillation import soft_label_loss, vector_loss


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_divergence_by_hand(temperature):
    student, teacher = torch.randn(5, 7).double(), torch.randn(5, 7).double()
    p, q = (teacher / temperature).softmax(1), (student / temperature).softmax(1)
    wanted = temperature**2 * (p * (p.log() - q.log())).sum(1).mean()
    assert float(soft_label_loss(student, teacher, temperature)) == pytest.approx(float(wanted))


def test_the_gradient_keeps_its_size_at_high_temperature():
    student, teacher = torch.randn(4, 6, requires_grad=True), torch.randn(4, 6)
    (gradient,) = torch.autograd.grad(soft_label_loss(student, teacher, 1000.0), student)
    # Hinton's limit: the difference of the centred logits, over the classes.
    centred = [x - x.mean(1, keepdim=True) for x in (student.detach(), teacher)]
    assert torch.allclose(gradient, (centred[0] - centred[1]) / 6 / 4, rtol=0.02, atol=1e-4)


def test_vectors_of_any_length():
    student, teacher = torch.randn(6, 3), torch.randn(6, 3)
    wanted = 1 - (F.normalize(student) * F.normalize(teacher)).sum(1).mean()
    assert float(vector_loss(student, 5 * teacher)) == pytest.approx(float(wanted), abs=1e-6)


@pytest.mark.parametrize("loss", [soft_label_loss, vector_loss])
def test_the_teacher_does_not_learn(loss):
    student = torch.randn(3, 4, requires_grad=True)
    teacher = torch.randn(3, 4, requires_grad=True)
    loss(student, teacher).backward()
    assert teacher.grad is None
    assert float(student.grad.abs().max()) > 0


@pytest.mark.parametrize("loss", [soft_label_loss, vector_loss])
@pytest.mark.parametrize("shapes", [((3, 4), (3, 5)), ((3,), (3,)), ((0, 4), (0, 4))])
def test_bad_shapes(unchecked, loss, shapes):
    with pytest.raises(ValueError, match="one shape"):
        unchecked(loss)(*(torch.zeros(shape) for shape in shapes))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_bad_temperature(temperature):
    with pytest.raises(ValueError, match="temperature"):
        soft_label_loss(torch.zeros(1, 2), torch.zeros(1, 2), temperature)
