r"""What a classifier sees, said in words: a picture's vector in the space of a text encoder.

A classifier of a thousand classes has never heard of most things, but what it takes them for says
something: a drawing of a fox is a little red fox, a little dhole and a little kit fox. The mean of
the class names' vectors, weighted by the probabilities, is then a vector for the picture which can
be compared with sentences without a single pair to train on (Norouzi et al., *Zero-Shot Learning by
Convex Combination of Semantic Embeddings*, ICLR 2014):

.. math::
    w(I) = \sum_c p_c\, (t_c - \bar t), \qquad
    p = \operatorname{softmax}\bigl((z(I) - \bar z) / \tau\bigr) .

Beyond the paper two means are taken off. :math:`\bar z` are the classifier's mean logits on
pictures of the kind at hand: shown drawings, one trained on photographs says *whistle* and *pick*
to nearly everything, and that says nothing. :math:`\bar t` is the mean of the class names.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["ClassWords"]


class ClassWords(nn.Module):
    r"""From a classifier's features to the space of its class names.

    Nothing of it is trained. It is made of published weights and not saved with a model, but for
    :math:`\bar z`.

    Args:
        classifier: From features to logits.
        names: One vector for each class (:func:`mmlib.encoders.text.embed_texts`).
        temperature: :math:`\tau`; above 1, many classes have a say.

    Attributes:
        dim: Width of the names' vectors.
        prior: :math:`\bar z`; zeros until :meth:`adapt`.

    Raises:
        ValueError: There is not one name a class, or the temperature is not above 0.

    >>> import torch
    >>> words = ClassWords(nn.Linear(3, 2), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    >>> words(torch.zeros(5, 3)).shape
    torch.Size([5, 2])
    """

    def __init__(
        self,
        classifier: nn.Linear,
        names: Float[Tensor, "classes dim"],
        temperature: float = 3.0,
    ) -> None:
        super().__init__()
        if names.ndim != 2 or len(names) != classifier.out_features:
            raise ValueError(
                f"names must hold one vector for each of {classifier.out_features} classes: "
                f"got {tuple(names.shape)}"
            )
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0: got {temperature}")
        self.dim, self.temperature = names.shape[1], temperature
        for name, value in (
            ("weight", classifier.weight.detach().clone()),
            ("bias", classifier.bias.detach().clone()),
            ("names", names - names.mean(dim=0)),
        ):
            self.register_buffer(name, value, persistent=False)
        self.register_buffer("prior", self.bias.new_zeros(classifier.out_features))

    def logits(self, features: Float[Tensor, "batch width"]) -> Float[Tensor, "batch classes"]:
        r"""What the classifier says, less what it says to everything: :math:`z - \bar z`."""
        return F.linear(features, self.weight, self.bias) - self.prior

    def adapt(self, features: Float[Tensor, "batch width"]) -> "ClassWords":
        r"""Measure :math:`\bar z` on pictures of the kind at hand, without any text.

        Raises:
            ValueError: There is no picture.
        """
        if not len(features):
            raise ValueError("features must hold at least one picture: got none")
        self.prior.zero_()
        self.prior.copy_(self.logits(features).mean(dim=0))
        return self

    def forward(self, features: Float[Tensor, "batch width"]) -> Float[Tensor, "batch dim"]:
        """Vectors of unit length in the space of the names."""
        shares = (self.logits(features) / self.temperature).softmax(dim=1)
        return F.normalize(shares @ self.names, dim=1)
