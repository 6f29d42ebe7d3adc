r"""Pretraining an encoder on text without labels: chapter 03.

Masked language modelling hides some tokens and asks which they were; next-sentence prediction
asks whether one text follows another. Both are heads on :class:`~mmlib.encoders.bert.Bert`; with
the same weights they compute what transformers' ``BertForPreTraining`` computes, losses included.
Language models that read from left to right are in :mod:`mmlib.language_model`; what a pretrained
encoder is used for is in :mod:`mmlib.fine_tuning`.

References:
    Devlin et al., *BERT: Pre-training of Deep Bidirectional Transformers*, NAACL 2019.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmlib.block import ACTIVATIONS
from mmlib.encoders.bert import Bert, BertConfig
from mmlib.encoders.loading import load_renamed, read_checkpoint
from mmlib.positions import LearnedPositions, sinusoids

__all__ = [
    "IGNORE",
    "BertForPretraining",
    "MaskedTokens",
    "PretrainingOutput",
    "mask_tokens",
    "mlm_loss",
    "narrow_start",
    "nsp_loss",
    "word_numbers",
]

IGNORE = -100
"""Target of a token that is not to be predicted."""


class MaskedTokens(NamedTuple):
    """What the model reads, and what it should have read.

    Attributes:
        ids: The tokens, the chosen ones disguised.
        targets: The true id of each chosen token, :data:`IGNORE` elsewhere.
    """

    ids: Int[Tensor, "batch length"]
    targets: Int[Tensor, "batch length"]


def mask_tokens(
    ids: Int[Tensor, "batch length"],
    maskable: Bool[Tensor, "batch length"],
    *,
    mask_id: int,
    random_ids: Int[Tensor, " candidates"],
    generator: torch.Generator,
    rate: float = 0.15,
    words: Int[Tensor, "batch length"] | None = None,
) -> MaskedTokens:
    r"""Choose tokens and disguise them, 80 % as the mask, 10 % as a random token, 10 % not at all.

    A row of :math:`m` maskable tokens has :math:`\max(1, \operatorname{round}(0.15\,m))` chosen,
    as in the original code, and nothing outside the choice is changed. A chosen token that stays
    as it is is predicted all the same: the model cannot tell it from the others, so it must keep
    a good vector for each.

    Args:
        ids: Token ids; they are not changed.
        maskable: Which may be chosen: neither padding nor the special tokens around a text.
        mask_id: Id of the mask token.
        random_ids: Where random tokens are drawn from, evenly: the vocabulary without its
            special tokens.
        generator: Of the choice and the disguise; it lives on the device of ``ids``.
        rate: Share of the maskable tokens that is chosen.
        words: The number of the word that each token belongs to, for whole-word masking
            (全词掩码): all pieces of a word are chosen or none. Words are taken in random order
            as long as the row's number of tokens is not exceeded, but at least one.

    Raises:
        TypeError: ``ids`` or ``random_ids`` does not hold integers, or ``maskable`` is not boolean.
        ValueError: shapes differ, ``rate`` is not between 0 and 1, or there are no ``random_ids``.

    >>> ids = torch.arange(10, 30)[None]
    >>> masked = mask_tokens(ids, ids > 10, mask_id=1, random_ids=torch.arange(10, 30),
    ...                      generator=torch.Generator().manual_seed(0))
    >>> (masked.targets != IGNORE).sum().item()
    3
    """
    _check_masking(ids, maskable, rate, words, random_ids)
    device = ids.device

    def draw() -> Tensor:
        return torch.rand(ids.shape, generator=generator, device=device)

    budget = (rate * maskable.sum(1)).round().clamp(min=1)
    # Ranks and not the draws themselves, of which two may be equal.
    order = draw().argsort(1).argsort(1)
    if words is not None:
        # All pieces of a word take the number that its first piece drew.
        order = order.gather(1, (words[:, :, None] == words[:, None, :]).int().argmax(-1))
    order = order.masked_fill(~maskable, ids.shape[1])
    # How many tokens stand in the order before or at the end of this one's word.
    taken = (order[:, None, :] <= order[:, :, None]).sum(-1)
    first = order == order.min(dim=1, keepdim=True).values
    chosen = ((taken <= budget[:, None]) | first) & maskable

    kind = draw()
    anything = torch.randint(len(random_ids), ids.shape, generator=generator, device=device)
    disguised = torch.where(chosen & (kind < 0.8), mask_id, ids)
    disguised = torch.where(chosen & (kind >= 0.9), random_ids.to(ids)[anything], disguised)
    return MaskedTokens(disguised, ids.masked_fill(~chosen, IGNORE))


def word_numbers(
    ids: Int[Tensor, "batch length"], continues: Bool[Tensor, " vocab"]
) -> Int[Tensor, "batch length"]:
    """Number the words of each row: what :func:`mask_tokens` takes for whole-word masking.

    Args:
        ids: Token ids.
        continues: For each id, whether it continues the word before it, as the word pieces that
            begin with ``##`` do.

    Raises:
        ValueError: ``ids`` is no table of texts.

    >>> pieces = ["the", "em", "##bed", "##ding", "is"]
    >>> continues = torch.tensor([piece.startswith("##") for piece in pieces])
    >>> word_numbers(torch.tensor([[0, 1, 2, 3, 4]]), continues)
    tensor([[0, 1, 1, 1, 2]])
    """
    if ids.ndim != 2 or 0 in ids.shape:
        raise ValueError(f"ids must have shape (batch, length): got {tuple(ids.shape)}")
    # The first token has no word before it to continue.
    return F.pad(~continues[ids[:, 1:]], (1, 0)).cumsum(1)


class PretrainingOutput(NamedTuple):
    """Logits of both heads.

    Attributes:
        mlm: Of every token of the vocabulary: ``(batch, length, vocab)``, or ``(chosen, vocab)``
            at the places asked for, row by row.
        nsp: Of *follows* (0) and *does not* (1), in transformers' order.
    """

    mlm: Float[Tensor, "... vocab"]
    nsp: Float[Tensor, "batch 2"]


class BertForPretraining(nn.Module):
    r"""BERT with the heads of its pretraining.

    .. math::

        \text{MLM: } E\,\operatorname{norm}\big(\operatorname{gelu}(W h_t + b)\big) + c,
        \qquad \text{NSP: } W' \tanh(W_p h_0 + b_p) + b'

    The decoder of the first is **tied**: :math:`E` is the table of token embeddings itself.

    Attributes:
        bert: The encoder.
        transform: :math:`W`, :math:`b`.
        norm: The layer norm.
        bias: :math:`c`, one number a token.
        next_sentence: :math:`W'`, :math:`b'`.

    Raises:
        ValueError: ``config.pool`` is not ``"cls"``, which next-sentence prediction needs.

    >>> model = BertForPretraining(BertConfig(vocab_size=100, dim=16, heads=2, layers=1))
    >>> out = model(torch.tensor([[2, 7, 3]]))
    >>> out.mlm.shape, out.nsp.shape
    (torch.Size([1, 3, 100]), torch.Size([1, 2]))
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        if config.pool != "cls":
            raise ValueError(f"config.pool must be 'cls': got {config.pool!r}")
        self.config, self.bert = config, Bert(config)
        self.transform = nn.Linear(config.dim, config.dim)
        self.activation = ACTIVATIONS[config.activation]()
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.next_sentence = nn.Linear(config.dim, 2)
        for linear in (self.transform, self.next_sentence):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(
        self,
        ids: Int[Tensor, "batch length"],
        keep: Bool[Tensor, "batch length"] | None = None,
        token_types: Int[Tensor, "batch length"] | None = None,
        *,
        where: Bool[Tensor, "batch length"] | None = None,
    ) -> PretrainingOutput:
        """Logits of both heads.

        Args:
            ids: Token ids.
            keep: Which of them exist.
            token_types: 0 for the first text of a pair, 1 for the second.
            where: Compute the first head only here: with a real vocabulary its logits are the
                largest tensor of all, and 85 % of them are not needed.

        Raises:
            ValueError: ``where`` has another shape; and what the encoder raises.
        """
        encoded = self.bert(ids, keep, token_types)
        tokens = encoded.tokens
        if where is not None:
            if where.shape != ids.shape:
                raise ValueError(
                    f"where must have the shape of ids, {tuple(ids.shape)}: "
                    f"got {tuple(where.shape)}"
                )
            tokens = tokens[where]
        hidden = self.norm(self.activation(self.transform(tokens)))
        mlm = F.linear(hidden, self.bert.embeddings.token.weight, self.bias)
        return PretrainingOutput(mlm, self.next_sentence(encoded.pooled))

    @classmethod
    def from_transformers(
        cls,
        source: nn.Module | Mapping[str, Tensor] | str | Path,
        config: BertConfig | None = None,
    ) -> "BertForPretraining":
        """A copy of transformers' ``BertForPreTraining``, in evaluation mode.

        Args:
            source: The model; or a folder that ``save_pretrained`` wrote; or a state dict.
            config: Needed with a state dict, which does not know its number of heads.

        Raises:
            FileNotFoundError: the folder holds no weights.
            ValueError: weights are missing or of another shape, or the configuration is missing
                or not BERT's.
        """
        if isinstance(source, nn.Module):
            found, state = source.config, source.state_dict()
        elif isinstance(source, Mapping):
            found, state = None, source
            if config is None:
                raise ValueError("config is needed: a state dict does not say how many heads")
        else:
            found, state = read_checkpoint(source)
        config = config or BertConfig.from_transformers(found)
        model = cls(config)
        model.bert = Bert.from_transformers(state, config, ignore=("cls.",))
        heads = {name: value for name, value in state.items() if name.startswith("cls.")}
        names = {"bias": ["cls.predictions.bias"]}
        for kind in ("weight", "bias"):
            names[f"transform.{kind}"] = [f"cls.predictions.transform.dense.{kind}"]
            names[f"norm.{kind}"] = [f"cls.predictions.transform.LayerNorm.{kind}"]
            names[f"next_sentence.{kind}"] = [f"cls.seq_relationship.{kind}"]
        bert, model.bert = model.bert, None
        # The tied decoder is in a state dict once more under its own name.
        load_renamed(model, heads, names, ignore=("cls.predictions.decoder.",))
        model.bert = bert
        return model.eval()


def narrow_start(model: nn.Module, generator: torch.Generator) -> None:
    r"""Draw the first weights of a narrow model anew, in place.

    .. math:: W \sim \mathcal N(0, 1 / d_\text{in}), \qquad E \sim \mathcal N(0, 1 / d),
              \qquad P = \text{sinusoids} / \sqrt d

    BERT's and GPT's standard deviation of 0.02 suits a width of 768, where it is about half of
    :math:`1 / \sqrt d`; at a width of 64 it is a sixth, and a layer writes next to nothing into
    the stream. Learned positions start as sinusoids, which a small corpus need not find out.

    Args:
        model: Any module; its linear layers, embeddings and learned positions are changed.
        generator: Of the draws, on the CPU.
    """
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                drawn = torch.randn(module.weight.shape, generator=generator)
                module.weight.copy_(drawn * module.weight.shape[1] ** -0.5)
            elif isinstance(module, LearnedPositions):
                length, dim = module.table.shape
                module.table.copy_(sinusoids(length, dim) * dim**-0.5)


def mlm_loss(
    logits: Float[Tensor, "... vocab"], targets: Int[Tensor, "..."]
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    r"""Sum of the cross-entropies of the chosen tokens, and their number.

    .. math:: S = -\sum_{t \in C} \log p(x_t \mid \tilde x), \qquad N = |C|

    The loss is :math:`S / N`, over all the batches of a step together. Sums in float32.

    Args:
        logits: ``(..., vocab)``.
        targets: True ids; :data:`IGNORE` where there is nothing to predict.

    Raises:
        ValueError: the shapes do not fit.
    """
    if logits.shape[:-1] != targets.shape:
        raise ValueError(
            f"targets must have the shape of logits without the last axis, "
            f"{tuple(logits.shape[:-1])}: got {tuple(targets.shape)}"
        )
    flat = logits.float().flatten(0, -2)
    total = F.cross_entropy(flat, targets.flatten(), ignore_index=IGNORE, reduction="sum")
    return total, (targets != IGNORE).sum()


def nsp_loss(
    logits: Float[Tensor, "batch 2"], is_next: Bool[Tensor, " batch"]
) -> tuple[Float[Tensor, ""], int]:
    """Sum of the cross-entropies of *follows* (index 0) or *does not* (1), and their number.

    Raises:
        ValueError: the shapes do not fit.
    """
    if logits.shape != (len(is_next), 2):
        raise ValueError(
            f"logits must have shape ({len(is_next)}, 2), one row for each of is_next: "
            f"got {tuple(logits.shape)}"
        )
    return F.cross_entropy(logits.float(), (~is_next).long(), reduction="sum"), len(is_next)


def _check_masking(ids, maskable, rate, words, random_ids) -> None:
    for name, value in (("ids", ids), ("random_ids", random_ids)):
        if value.is_floating_point() or value.dtype == torch.bool:
            raise TypeError(f"{name} must hold whole numbers: got {value.dtype}")
    if maskable.dtype != torch.bool:
        raise TypeError(f"maskable must be boolean: got {maskable.dtype}")
    for name, value in (("maskable", maskable), ("words", words)):
        if value is not None and value.shape != ids.shape:
            raise ValueError(
                f"{name} must have the shape of ids, {tuple(ids.shape)}: got {tuple(value.shape)}"
            )
    if not 0 < rate <= 1:
        raise ValueError(f"rate must be above 0 and at most 1: got {rate}")
    if random_ids.ndim != 1 or not len(random_ids):
        raise ValueError(f"random_ids must be a list of ids: got {tuple(random_ids.shape)}")
