r"""Early, late and hybrid fusion on the same encoders and the same budget: chapter 04.

All three take what encoders return, one :class:`~mmlib.encoders.encoded.Encoded` for each modality,
and give logits. They differ in **where** modalities meet:

=========  ==========================================================================
early      in the first layer: one stack over the tokens of all modalities
late       after the decision: a stack and a classifier for each, logits averaged
hybrid     in every layer from ``exchange_from`` on (bottleneck tokens or cross-modal
           attention), and once more before the one classifier (an operator of
           :data:`mmlib.fusion.OPERATORS`)
=========  ==========================================================================

A modality that is missing (``keep`` all False, or no entry at all) has no influence; a row without
any gives finite logits.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mmlib.block import TransformerBlock, TransformerConfig
from mmlib.encoders.encoded import Encoded
from mmlib.encoders.pooling import mean_tokens
from mmlib.fusion import OPERATORS
from mmlib.fusion_tokens import BottleneckLayer, CrossModalAttention

__all__ = [
    "FusionConfig",
    "FusionModel",
    "count_parameters",
    "drop_modalities",
    "matched",
    "without",
]


@dataclass(frozen=True)
class FusionConfig:
    """Sizes and choices of a :class:`FusionModel`.

    Attributes:
        modalities: Name and width of what each encoder gives.
        kind: Where modalities meet.
        outputs: Number of logits.
        dim: Width inside.
        heads: Attention heads; must divide ``dim``.
        layers: Blocks of each stack.
        mlp_dim: Hidden width of the blocks; :func:`matched` chooses it.
        exchange: How hybrid fusion exchanges inside: through bottleneck tokens, by cross-modal
            attention to all the others, or not at all.
        exchange_from: First layer that exchanges, from 0.
        bottlenecks: Number of bottleneck tokens.
        operator: How hybrid fusion joins at the end; a key of :data:`mmlib.fusion.OPERATORS`.
        head: Every classifier: linear, or with one hidden layer of ``2 * dim``.
        dropout: Of the blocks, and of what the encoders give.

    Raises:
        ValueError: a number or a choice out of its range.
    """

    modalities: tuple[tuple[str, int], ...]
    kind: Literal["early", "late", "hybrid"] = "hybrid"
    outputs: int = 1
    dim: int = 32
    heads: int = 4
    layers: int = 2
    mlp_dim: int = 64
    exchange: Literal["bottleneck", "attention", "none"] = "bottleneck"
    exchange_from: int = 0
    bottlenecks: int = 2
    operator: Literal["concat", "product", "weighted", "gate", "bilinear"] = "concat"
    head: Literal["linear", "mlp"] = "mlp"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        names = [name for name, _ in self.modalities]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"modalities must be at least one, with different names: got {names}")
        for name in ("outputs", "layers", "mlp_dim", "bottlenecks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1: got {getattr(self, name)}")
        if min(width for _, width in self.modalities) < 1:
            raise ValueError(f"modalities must have widths of at least 1: got {self.modalities}")
        # What a layer writes into bottleneck tokens is read by the next: the last one is too late.
        last = self.layers - (2 if self.kind == "hybrid" and self.exchange == "bottleneck" else 1)
        if not 0 <= self.exchange_from <= last:
            raise ValueError(
                f"exchange_from must lie from 0 to {last} with layers={self.layers} and "
                f"exchange={self.exchange!r}: got {self.exchange_from}"
            )
        for name, choices in (
            ("kind", ("early", "late", "hybrid")),
            ("exchange", ("bottleneck", "attention", "none")),
            ("operator", tuple(OPERATORS)),
            ("head", ("linear", "mlp")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {choices}: got {getattr(self, name)!r}")
        self.block()  # checks the rest

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities' names, in order."""
        return tuple(name for name, _ in self.modalities)

    def block(self) -> TransformerConfig:
        """What the blocks are made of."""
        return TransformerConfig(
            dim=self.dim, heads=self.heads, mlp_dim=self.mlp_dim, dropout=self.dropout
        )

    def classifier(self) -> nn.Module:
        """A new classifier on a vector of width ``dim``."""
        if self.head == "linear":
            return nn.Linear(self.dim, self.outputs)
        hidden = 2 * self.dim
        return nn.Sequential(
            nn.Linear(self.dim, hidden), nn.GELU(), nn.Linear(hidden, self.outputs)
        )


class FusionModel(nn.Module):
    """A classifier of several modalities; see the table at the top of this page.

    Every modality is first mapped to ``config.dim`` and gets a learned vector that says which one
    it is.

    Args:
        config: Sizes and choices.

    >>> _ = torch.manual_seed(0)
    >>> model = FusionModel(FusionConfig((("text", 8), ("image", 5)), kind="early"))
    >>> words = Encoded(torch.randn(2, 3, 8), torch.ones(2, 3, dtype=torch.bool), torch.zeros(2, 8))
    >>> model({"text": words}).shape  # no picture: the model copes
    torch.Size([2, 1])
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.config = config
        dim, names, block = config.dim, config.names, config.block()
        self.input = nn.ModuleDict(
            {name: nn.Linear(width, dim) for name, width in config.modalities}
        )
        self.kind = nn.ParameterDict({name: torch.randn(dim) * 0.02 for name in names})
        self.dropout = nn.Dropout(config.dropout)
        if config.kind == "early":
            self.stack = nn.ModuleList(TransformerBlock(block) for _ in range(config.layers))
            self.norm = nn.LayerNorm(dim)
            self.head = config.classifier()
            return
        # A layer holds a block for each modality, with or without an exchange between them.
        self.stack = nn.ModuleList(BottleneckLayer(block, len(names)) for _ in range(config.layers))
        self.norm = nn.ModuleDict({name: nn.LayerNorm(dim) for name in names})
        if config.kind == "late":
            self.head = nn.ModuleDict({name: config.classifier() for name in names})
            return
        if config.exchange == "bottleneck":
            self.bottleneck = nn.Parameter(torch.randn(config.bottlenecks, dim) * 0.02)
        elif config.exchange == "attention":
            self.cross = nn.ModuleList(
                nn.ModuleList(
                    CrossModalAttention(dim, config.heads, dropout=config.dropout) for _ in names
                )
                for _ in range(config.layers - config.exchange_from)
            )
        self.operator = OPERATORS[config.operator]([dim] * len(names), dim)
        self.head = config.classifier()

    def forward(self, encoded: Mapping[str, Encoded]) -> Float[Tensor, "batch outputs"]:
        """Classify.

        Args:
            encoded: What the encoders gave, by modality; one that the whole batch lacks may be
                left out.

        Raises:
            ValueError: there is no modality or an unknown one, or widths or batches differ.
        """
        tokens, keeps = self._tokens(encoded)
        if self.config.kind == "early":
            x, keep = torch.cat(tokens, dim=1), torch.cat(keeps, dim=1)
            for block in self.stack:
                x, _ = block(x, keep=keep)
            tokens = self.norm(x).split([part.shape[1] for part in tokens], dim=1)
        else:
            tokens = self._stacks(tokens, keeps)
            tokens = [norm(x) for norm, x in zip(self.norm.values(), tokens, strict=True)]
        pooled = [mean_tokens(x, keep) for x, keep in zip(tokens, keeps, strict=True)]
        present = torch.stack([keep.any(dim=1) for keep in keeps], dim=1)
        if self.config.kind == "early":
            # Each modality counts alike: one picture's token is not lost among twenty words.
            return self.head(mean_tokens(torch.stack(pooled, dim=1), present))
        if self.config.kind == "late":
            said = torch.stack(
                [head(x) for head, x in zip(self.head.values(), pooled, strict=True)], dim=1
            )
            return mean_tokens(said, present)
        return self.head(self.operator(pooled, present))

    def _tokens(self, encoded: Mapping[str, Encoded]) -> tuple[list[Tensor], list[Tensor]]:
        """Every modality's tokens in one width; one missing token where it was left out."""
        unknown = set(encoded) - set(self.config.names)
        if unknown or not encoded:
            raise ValueError(
                f"encoded must hold some of {self.config.names}: got {tuple(encoded) or 'nothing'}"
            )
        some = next(iter(encoded.values())).tokens
        tokens, keeps = [], []
        for name, width in self.config.modalities:
            if name not in encoded:
                tokens.append(some.new_zeros(len(some), 1, self.config.dim))
                keeps.append(torch.zeros(len(some), 1, dtype=torch.bool, device=some.device))
                continue
            x, keep = encoded[name].tokens, encoded[name].keep
            if x.shape[2] != width or len(x) != len(some):
                raise ValueError(
                    f"{name} must have shape ({len(some)}, length, {width}): got {tuple(x.shape)}"
                )
            x = self.input[name](self.dropout(x.masked_fill(~keep[..., None], 0.0)))
            tokens.append(x + self.kind[name])
            keeps.append(keep)
        return tokens, keeps

    def _stacks(self, tokens: list[Tensor], keeps: list[Tensor]) -> list[Tensor]:
        """Each modality's own blocks, with the exchange that the configuration asks for."""
        config = self.config
        exchange = config.exchange if config.kind == "hybrid" else "none"
        batch = len(tokens[0])
        shared = tokens[0].new_zeros(batch, 0, config.dim)
        for index, layer in enumerate(self.stack):
            if index == config.exchange_from and exchange == "bottleneck":
                shared = self.bottleneck.expand(batch, -1, -1)
            if index >= config.exchange_from and exchange == "attention":
                tokens = self._read(self.cross[index - config.exchange_from], tokens, keeps)
            tokens, shared = layer(tokens, keeps, shared)
        return tokens

    def _read(self, cross: nn.ModuleList, tokens: list[Tensor], keeps: list[Tensor]) -> list:
        """Let the tokens of each modality read those of all the others, as they were before."""
        out = []
        for index, (layer, x, keep) in enumerate(zip(cross, tokens, keeps, strict=True)):
            others = [i for i in range(len(tokens)) if i != index]
            if not others:
                return tokens
            context = torch.cat([tokens[i] for i in others], dim=1)
            context_keep = torch.cat([keeps[i] for i in others], dim=1)
            pooled = x[:, 0]  # an Encoded has one; it is not read
            changed, _ = layer(
                Encoded(x, keep, pooled), Encoded(context, context_keep, context[:, 0])
            )
            out.append(changed)
        return out


def count_parameters(config: FusionConfig) -> int:
    """How many parameters a model of this configuration has, without making one."""
    with torch.device("meta"):
        return sum(p.numel() for p in FusionModel(config).parameters())


def matched(config: FusionConfig, budget: int) -> FusionConfig:
    """The same configuration with the hidden width that comes nearest to a number of parameters.

    The number is linear in ``mlp_dim``, so two counts give it.

    Raises:
        ValueError: the model is larger than that with a hidden width of 1 already.

    >>> late = FusionConfig((("text", 8), ("image", 5)), kind="late")
    >>> early = matched(FusionConfig(late.modalities, kind="early"), count_parameters(late))
    >>> early.mlp_dim, count_parameters(early) / count_parameters(late)  # doctest: +ELLIPSIS
    (213, 1.00...)
    """
    least = count_parameters(replace(config, mlp_dim=1))
    each = count_parameters(replace(config, mlp_dim=2)) - least
    width = 1 + round((budget - least) / each)
    if width < 1:
        raise ValueError(f"budget must be at least {least} for this kind: got {budget}")
    return replace(config, mlp_dim=width)


def without(encoded: Encoded, missing: Bool[Tensor, " batch"]) -> Encoded:
    """Take a modality away from some rows: tokens and pooled vector become zeros, ``keep`` False.

    Raises:
        TypeError: ``missing`` is not boolean.
        ValueError: it is not one value for each row.
    """
    if missing.dtype != torch.bool:
        raise TypeError(f"missing must be boolean (True = take away): got {missing.dtype}")
    if missing.shape != encoded.keep.shape[:1]:
        raise ValueError(
            f"missing must have shape {tuple(encoded.keep.shape[:1])}: got {tuple(missing.shape)}"
        )
    return Encoded(
        encoded.tokens.masked_fill(missing[:, None, None], 0.0),
        encoded.keep & ~missing[:, None],
        encoded.pooled.masked_fill(missing[:, None], 0.0),
    )


def drop_modalities(
    encoded: Mapping[str, Encoded], probability: float, *, generator: torch.Generator
) -> dict[str, Encoded]:
    r"""Take modalities away at random, for training (模态丢弃), but never the last one of a row.

    Each modality of each row goes with the given probability, independently; a row that would lose
    all keeps one that is drawn evenly. Nothing is rescaled: unlike dropout's units, a modality
    that is there at test time is there as it was in training.

    After Neverova et al., *ModDrop: Adaptive Multi-modal Gesture Recognition*, TPAMI 2016, which
    may drop all.

    Args:
        encoded: Every modality of the batch.
        probability: From 0 to below 1.
        generator: Draws which.

    Raises:
        ValueError: ``probability`` is out of its range, or there is no modality.
    """
    if not 0.0 <= probability < 1.0:
        raise ValueError(f"probability must lie in [0, 1): got {probability}")
    if not encoded:
        raise ValueError("encoded must hold at least one modality: got none")
    first = next(iter(encoded.values())).keep
    shape = (len(first), len(encoded))
    drawn = torch.rand(shape, generator=generator, device=generator.device)
    spared = torch.randint(shape[1], shape[:1], generator=generator, device=generator.device)
    gone = drawn < probability
    columns = torch.arange(shape[1], device=gone.device)
    gone &= ~(gone.all(dim=1, keepdim=True) & (columns == spared[:, None]))
    gone = gone.to(first.device)
    return {
        name: without(given, gone[:, index]) for index, (name, given) in enumerate(encoded.items())
    }
