r"""A decoder that uncovers a picture's codes: diffusion of masked codes: chapter 11.

All codes of a picture are hidden at first. A Transformer that sees the sentence, CLIP's vector of
a picture and the codes that are uncovered already says how probable each code is in each hidden
place; some places are uncovered, and so on, until none is left. In training the time
:math:`t \sim U(0, 1)` is drawn, each code is shown with probability :math:`t`, and those that are
not are to be told:

.. math::

    \mathbb E_{t, S}\; \frac{-1}{|\bar S|} \sum_{j \notin S} \log p(k_j \mid k_S, w, I)

What flows here jumps: a hidden code becomes a code, and stays. So it is a diffusion in which being
hidden takes the place of noise, and a flow on codes rather than on numbers. A half-hidden picture
is also what :class:`mmlib.dalle.Dalle` is trained on, but for what comes after: the decoder can
begin with its weights (:meth:`Unmasker.start_from`).

References:
    Austin et al., *Structured Denoising Diffusion Models in Discrete State-Spaces*, NeurIPS 2021
    (hiding as noise). Gat et al., *Discrete Flow Matching*, NeurIPS 2024 (the same as a flow).
    Chang et al., *MaskGIT: Masked Generative Image Transformer*, CVPR 2022 (uncovers first what it
    is sure of). Gong et al., *Scaling Diffusion Language Models via Adaptation from Autoregressive
    Models*, ICLR 2025 (begins with a model that writes from left to right; there the attention to
    what comes after is let in slowly, here at once). The conditions: Ramesh et al.,
    *Hierarchical Text-Conditional Image Generation with CLIP Latents*, 2022.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmlib.dalle import LOUD, CodeVectors, Dalle, DalleConfig, check_ids, check_text
from mmlib.sampling import draw, guide
from mmlib.transformer import Encoder

__all__ = ["VECTOR_TOKENS", "Unmasker", "uncover"]

#: Tokens that a picture's vector becomes, as in the paper.
VECTOR_TOKENS = 4


class Unmasker(nn.Module):
    """A Transformer that says which codes are hidden, from the sentence and CLIP's vector.

    It reads four tokens of the vector, the words, and one token for each place. As in
    :class:`~mmlib.dalle.Dalle` a code is told by the token before it, so that it can begin with
    that model's weights.

    Args:
        config: Sizes, as DALL·E has them.
        codebook: The codes' vectors in the tokenizer; saved with the model, not trained.
        vector: Width of CLIP's vectors.

    Raises:
        ValueError: the codebook has another number of codes, or a width below 1.

    >>> config = DalleConfig(words=20, text_length=5, codes=16, side=2, dim=24)
    >>> model = Unmasker(config, torch.randn(16, 3), vector=8)
    >>> text = torch.tensor([[1, 7, 2, 0, 0]])
    >>> uncover(model, torch.randn(1, 8), text, steps=2).shape
    torch.Size([1, 2, 2])
    """

    def __init__(
        self, config: DalleConfig, codebook: Float[Tensor, "codes code_dim"], vector: int
    ) -> None:
        super().__init__()
        if len(codebook) != config.codes:
            raise ValueError(f"codebook must hold {config.codes} codes: got {len(codebook)}")
        if vector < 1:
            raise ValueError(f"vector must be at least 1: got {vector}")
        dim, wide = config.dim, VECTOR_TOKENS * config.dim
        self.config, self.vector = config, vector
        self.word = nn.Embedding(config.words, dim)
        self.code = CodeVectors(codebook, dim)
        self.code_head = CodeVectors(codebook, dim)
        self.nothing = nn.Parameter(torch.zeros(vector))
        self.given = nn.Sequential(nn.Linear(vector, wide), nn.GELU(), nn.Linear(wide, wide))
        self.vector_position = nn.Embedding(VECTOR_TOKENS, dim)
        self.word_position = nn.Embedding(config.text_length, dim)
        self.row = nn.Embedding(config.side, dim)
        self.column = nn.Embedding(config.side, dim)
        self.encoder = Encoder(config.transformer())
        tables = (self.word, self.vector_position, self.word_position, self.row, self.column)
        for table in tables:
            nn.init.normal_(table.weight, std=LOUD)

    def start_from(self, model: Dalle) -> "Unmasker":
        """Begin with DALL·E's weights: all but what reads CLIP's vector. Returns itself.

        Raises:
            ValueError: the other model has other sizes, or free tables of codes.
        """
        if model.config != self.config or not isinstance(model.code, CodeVectors):
            raise ValueError(
                f"model must be of the sizes {self.config}, with vectors made of a codebook: "
                f"got {model.config}"
            )
        for name in ("word", "code", "code_head", "word_position", "row", "column"):
            getattr(self, name).load_state_dict(getattr(model, name).state_dict())
        self.encoder.load_state_dict(model.decoder.state_dict())
        return self

    def logits(
        self,
        codes: Int[Tensor, "batch places"],
        shown: Bool[Tensor, "batch places"],
        vectors: Float[Tensor, "batch vector"],
        text: Int[Tensor, "batch length"],
        drop: Bool[Tensor, "batch 2"] | None = None,
    ) -> Float[Tensor, "batch places codes"]:
        """Logits of the code in each place.

        Args:
            codes: Row by row; what stands in a hidden place does not matter.
            shown: True where a code is uncovered.
            vectors: CLIP's of a picture, of any length.
            text: Ids, filled up to the configured length.
            drop: True where the vector, or the text, is left out.

        Raises:
            TypeError: ids that are no whole numbers.
            ValueError: a wrong shape, or an id outside its vocabulary.
        """
        config = self.config
        check_text(text, config)
        check_ids("codes", codes, config.codes)
        for name, x, shape in (
            ("codes", codes, (len(text), config.places)),
            ("shown", shown, codes.shape),
            ("vectors", vectors, (len(text), self.vector)),
            ("drop", drop, (len(text), 2)),
        ):
            if x is not None and x.shape != shape:
                raise ValueError(f"{name} must have shape {tuple(shape)}: got {tuple(x.shape)}")
        given = F.normalize(vectors, dim=1) * math.sqrt(self.vector)
        if drop is not None:
            given = torch.where(drop[:, :1], self.nothing, given)
            text = text.masked_fill(drop[:, 1:], config.pad_id)
        tokens = self.given(given).unflatten(1, (VECTOR_TOKENS, -1)) + self.vector_position.weight
        place = torch.arange(config.places, device=codes.device)
        seen = F.embedding(codes, self.code()).masked_fill(~shown[..., None], 0)
        seen = seen + self.row(place // config.side) + self.column(place % config.side)
        words = self.word(text) + self.word_position.weight
        x, _ = self.encoder(torch.cat([tokens, words, seen], dim=1))
        return x[:, -config.places - 1 : -1] @ self.code_head().T

    def loss(
        self,
        codes: Int[Tensor, "batch places"],
        vectors: Float[Tensor, "batch vector"],
        text: Int[Tensor, "batch length"],
        drop: Bool[Tensor, "batch 2"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, ""]:
        r"""Mean cross-entropy of the hidden codes of a batch, at random times, in nats.

        Were each picture's sum weighed by :math:`1 / (1 - t)`, it would be a bound on the picture's
        negative log-likelihood (Austin et al.); the unweighed mean has the same best model.

        Args:
            codes: All codes of each picture.
            vectors: See :meth:`logits`.
            text: See :meth:`logits`.
            drop: See :meth:`logits`.
            generator: What times and hidden places are drawn from.

        Raises:
            TypeError: ids that are no whole numbers.
            ValueError: wrong shapes, or an id outside its vocabulary.
        """
        device = codes.device if generator is None else generator.device
        time = torch.rand(len(codes), 1, generator=generator, device=device)
        shown = torch.rand(codes.shape, generator=generator, device=device) < time
        shown = shown.to(codes.device)
        logits = self.logits(codes, shown, vectors, text, drop).float()
        wanted = codes.masked_fill(shown, -100).flatten()
        total = F.cross_entropy(logits.flatten(0, 1), wanted, ignore_index=-100, reduction="sum")
        # Were nothing hidden, 0 / 0 would spoil the step.
        return total / (~shown).sum().clamp(min=1)


@torch.no_grad()
def uncover(
    model: Unmasker,
    vectors: Float[Tensor, "batch vector"],
    text: Int[Tensor, "batch length"],
    generator: torch.Generator | None = None,
    *,
    drop: Bool[Tensor, "batch 2"] | None = None,
    guidance: float | int = 1.0,
    temperature: float | int = 1.0,
    noise: float | int = math.inf,
    steps: int = 16,
) -> Int[Tensor, "batch rows columns"]:
    r"""Draw a picture's codes, a few more in each step.

    In each step a code is drawn for every hidden place, and those places are uncovered of which
    the score is highest, so many that after the share :math:`r` of the steps
    :math:`\lceil m (1 - \cos \tfrac\pi2 r) \rceil` of :math:`m` codes are shown: few at first, as
    those that are uncovered together do not know of each other.

    .. math:: \text{score}_j = \log p(k_j) + (1 - r)\, \nu\, g_j, \qquad g_j \sim \text{Gumbel}

    With :math:`\nu = 0` the surest come first, which MaskGIT does; with :math:`\nu = \infty` the
    order is random, as in training. With as many steps as places no more than two codes are
    uncovered together.

    Args:
        model: In evaluation mode.
        vectors: CLIP's of a picture, of any length.
        text: Ids, filled up to the configured length.
        generator: What is drawn from.
        drop: True where the vector, or the text, is not to be used.
        guidance: Scale of :func:`~mmlib.sampling.guide`; any but 1 costs twice the time.
        temperature: See :func:`~mmlib.sampling.draw`.
        noise: :math:`\nu`, at least 0.
        steps: From 1 to the number of places.

    Returns:
        Grids that :meth:`mmlib.discrete_vae.DiscreteVAE.decode` paints.

    Raises:
        TypeError: ids that are no whole numbers.
        ValueError: wrong shapes, an id outside its vocabulary, or a number out of its range.
    """
    config, places = model.config, model.config.places
    if not 1 <= steps <= places:
        raise ValueError(f"steps must be from 1 to {places}: got {steps}")
    if not noise >= 0:
        raise ValueError(f"noise must be at least 0: got {noise}")
    if not math.isfinite(guidance):
        raise ValueError(f"guidance must be finite: got {guidance}")
    count, nothing = len(text), torch.ones(len(text), 2, dtype=torch.bool, device=text.device)
    drop = torch.zeros_like(nothing) if drop is None else drop
    device = text.device if generator is None else generator.device
    codes = torch.zeros(count, places, dtype=torch.long, device=text.device)
    shown = torch.zeros_like(codes, dtype=torch.bool)
    for step in range(1, steps + 1):
        if guidance == 1:
            logits = model.logits(codes, shown, vectors, text, drop).float()
        else:
            twice = [x.repeat(2, 1) for x in (codes, shown, vectors, text)]
            both = model.logits(*twice, torch.cat([drop, nothing])).float()
            logits = guide(*both.chunk(2), guidance)
        new = draw(logits.flatten(0, 1), generator, temperature=temperature).view_as(codes)
        uniform = torch.rand(codes.shape, generator=generator, device=device).to(text.device)
        gumbel = -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))
        share = step / steps
        score = gumbel
        if noise < math.inf:
            score = logits.log_softmax(dim=2).gather(2, new[..., None])[..., 0]
            score = score + (1 - share) * noise * gumbel
        enough = math.ceil(round(places * (1 - math.cos(math.pi / 2 * share)), 6))
        best = score.masked_fill(shown, math.inf).topk(enough, dim=1).indices
        now = torch.zeros_like(shown).scatter(1, best, True)
        codes = torch.where(now & ~shown, new, codes)
        shown = shown | now
    return codes.unflatten(1, (config.side, config.side))
