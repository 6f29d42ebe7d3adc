r"""BERT, and sentence encoders made of it: chapter 03 pretrains one, 07 and 13 fine-tune one.

With the same weights it computes what transformers' ``BertModel`` computes.

References:
    Devlin et al., *BERT: Pre-training of Deep Bidirectional Transformers for Language
    Understanding*, NAACL 2019. Reimers and Gurevych, *Sentence-BERT*, EMNLP 2019. Wang et al.,
    *MiniLM*, NeurIPS 2020.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmlib.block import TransformerConfig
from mmlib.encoders.encoded import Encoded
from mmlib.encoders.loading import load_renamed, read_checkpoint
from mmlib.encoders.pooling import check_text, mean_tokens
from mmlib.positions import LearnedPositions
from mmlib.transformer import Encoder

__all__ = ["Bert", "BertConfig", "BertEmbeddings"]

#: How each pretrained model makes one vector, and what of its checkpoint is not the encoder.
PRETRAINED = {"minilm": ("mean", ()), "bert-base-uncased": ("cls", ("cls.",))}


@dataclass(frozen=True)
class BertConfig:
    """Sizes and choices of a :class:`Bert`; the defaults are those of BERT base.

    Attributes:
        vocab_size: Number of token ids.
        dim: Width of the tokens and of the pooled vector.
        heads: Attention heads; must divide ``dim``.
        layers: Blocks.
        mlp_dim: Hidden width of the feed-forward layers, ``4 * dim`` by default.
        max_length: Longest sequence that has positions.
        token_types: Kinds of segment: first text, second text.
        pool: ``"cls"`` is BERT's pooler, a linear layer and tanh on the first token;
            ``"mean"`` the mean of the tokens, which sentence encoders are trained for.
        activation: Of the feed-forward layers.
        norm_eps: What every layer norm adds to the variance.
        dropout: Probability, during training. Differs from transformers' in acting on the
            hidden units of the feed-forward layers as well.

    Raises:
        ValueError: a number or a choice out of its range.
    """

    vocab_size: int = 30522
    dim: int = 768
    heads: int = 12
    layers: int = 12
    mlp_dim: int | None = None
    max_length: int = 512
    token_types: int = 2
    pool: Literal["cls", "mean"] = "cls"
    activation: Literal["gelu", "quick_gelu", "relu"] = "gelu"
    norm_eps: float = 1e-12
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for name in ("vocab_size", "token_types"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1: got {getattr(self, name)}")
        if self.pool not in ("cls", "mean"):
            raise ValueError(f"pool must be 'cls' or 'mean': got {self.pool!r}")
        self.transformer  # noqa: B018 - checks the rest

    @property
    def transformer(self) -> TransformerConfig:
        """What the blocks are made of: post-norm, as in 2017."""
        return TransformerConfig(
            dim=self.dim,
            heads=self.heads,
            layers=self.layers,
            mlp_dim=self.mlp_dim,
            activation=self.activation,
            norm_first=False,
            norm_eps=self.norm_eps,
            dropout=self.dropout,
            max_length=self.max_length,
            positions="learned",
        )

    @classmethod
    def from_transformers(cls, config: Any, pool: Literal["cls", "mean"] = "cls") -> "BertConfig":
        """The same sizes as transformers' ``BertConfig``, or its dictionary.

        Raises:
            ValueError: it asks for something that :class:`Bert` is not: a decoder, another
                activation, relative positions, or another model.
        """
        given = config if isinstance(config, Mapping) else config.to_dict()
        for name, wanted in (
            ("model_type", "bert"),
            ("hidden_act", "gelu"),
            ("position_embedding_type", "absolute"),
            ("is_decoder", False),
        ):
            if given.get(name, wanted) != wanted:
                raise ValueError(f"{name} must be {wanted!r}: got {given[name]!r}")
        return cls(
            vocab_size=given["vocab_size"],
            dim=given["hidden_size"],
            heads=given["num_attention_heads"],
            layers=given["num_hidden_layers"],
            mlp_dim=given["intermediate_size"],
            max_length=given["max_position_embeddings"],
            token_types=given["type_vocab_size"],
            pool=pool,
            norm_eps=given["layer_norm_eps"],
            dropout=given["hidden_dropout_prob"],
        )


class BertEmbeddings(nn.Module):
    r"""Token, position and segment vectors, added and normalised.

    .. math:: x_t = \operatorname{norm}(E_{i_t} + P_t + S_{s_t})

    Attributes:
        token: The table :math:`E`; a language-model head ties its output to ``token.weight``.
        position: :math:`P`.
        token_type: :math:`S`.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.token = nn.Embedding(config.vocab_size, config.dim)
        self.position = LearnedPositions(config.dim, config.max_length)
        self.token_type = nn.Embedding(config.token_types, config.dim)
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        ids: Int[Tensor, "batch length"],
        token_types: Int[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch length dim"]:
        """Look up and add; without ``token_types`` everything belongs to the first text."""
        # One row for all is cheaper than looking up zeros.
        kinds = self.token_type.weight[0] if token_types is None else self.token_type(token_types)
        return self.dropout(self.norm(self.position(self.token(ids) + kinds)))


class Bert(nn.Module):
    """The encoder of BERT: every token sees every other, in both directions.

    ``pooled`` is what ``config.pool`` says. The heads of pretraining are not here but in
    chapter 03.

    Attributes:
        dim: Width of tokens and of the pooled vector.
        embeddings: See :class:`BertEmbeddings`.
        encoder: The blocks.
        pooler: Linear layer of the ``"cls"`` pooling, else None.

    >>> _ = torch.manual_seed(0)
    >>> bert = Bert(BertConfig(vocab_size=100, dim=16, heads=2, layers=1))
    >>> bert(torch.tensor([[2, 7, 3]])).pooled.shape
    torch.Size([1, 16])
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config, self.dim = config, config.dim
        self.embeddings = BertEmbeddings(config)
        self.encoder = Encoder(config.transformer)
        self.pooler = nn.Linear(config.dim, config.dim) if config.pool == "cls" else None
        for name, parameter in self.named_parameters():  # as the paper does; norms stay
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(
        self,
        ids: Int[Tensor, "batch length"],
        keep: Bool[Tensor, "batch length"] | None = None,
        token_types: Int[Tensor, "batch length"] | None = None,
        *,
        return_weights: bool = False,
    ) -> Encoded:
        """Encode texts.

        Args:
            ids: Token ids.
            keep: Which of them exist; all by default. The others give zeros, and change nothing.
            token_types: 0 for the first text of a pair, 1 for the second; all 0 by default.
            return_weights: Return the attention weights of each layer too.

        Raises:
            TypeError: ``ids`` or ``token_types`` does not hold integers, or ``keep`` is not
                boolean.
            ValueError: a wrong shape, too long a sequence, or an id outside the vocabulary.
        """
        check_text(ids, keep, self.config.vocab_size, self.config.max_length)
        if token_types is not None:
            if token_types.shape != ids.shape:
                raise ValueError(
                    f"token_types must have the shape of ids, {tuple(ids.shape)}: "
                    f"got {tuple(token_types.shape)}"
                )
            check_text(token_types, None, self.config.token_types, None, name="token_types")
        tokens, weights = self.encoder(
            self.embeddings(ids, token_types), keep, return_weights=return_weights
        )
        exists = torch.ones_like(ids, dtype=torch.bool) if keep is None else keep
        if keep is not None:
            tokens = tokens.masked_fill(~keep[..., None], 0.0)
        if self.pooler is None:
            pooled = mean_tokens(tokens, exists)
        else:
            pooled = self.pooler(tokens[:, 0]).tanh()
            # A missing text has no first token, and gives zeros.
            pooled = pooled.masked_fill(~exists.any(dim=1, keepdim=True), 0.0)
        return Encoded(tokens, exists, pooled, weights)

    @classmethod
    def from_transformers(
        cls,
        source: nn.Module | Mapping[str, Tensor] | str | Path,
        config: BertConfig | None = None,
        *,
        pool: Literal["cls", "mean"] = "cls",
        ignore: Sequence[str] = (),
    ) -> "Bert":
        """A copy of a BERT from transformers, in evaluation mode.

        Args:
            source: A ``BertModel``; or a folder that ``save_pretrained`` wrote; or a state dict
                with transformers' names, with or without ``bert.`` in front.
            config: Needed with a state dict, which does not know its number of heads.
            pool: See :class:`BertConfig`; not used with a ``config``. Under ``"mean"`` the
                pooler of the source is left out.
            ignore: Beginnings of the names of other weights to leave out, such as ``"cls."``,
                the heads of pretraining.

        Raises:
            FileNotFoundError: the folder holds no weights.
            ValueError: weights are missing, left over or of another shape (they are named), or
                the configuration is not BERT's.
        """
        if isinstance(source, nn.Module):
            found, state = source.config, source.state_dict()
        elif isinstance(source, Mapping):
            found, state = None, source
            if config is None:
                raise ValueError("config is needed: a state dict does not say how many heads")
        else:
            found, state = read_checkpoint(source)
        if config is None:
            config = BertConfig.from_transformers(found, pool)
        with torch.device("meta"):
            model = cls(config)
        ignore = (
            *ignore,
            "embeddings.position_ids",
            *(("pooler.",) if model.pooler is None else ()),
        )
        load_renamed(model, _plain_names(state), _their_names(config), ignore)
        return model.eval()

    @classmethod
    def pretrained(
        cls, name: str = "minilm", *, offline: bool | None = None, progress: bool = True
    ) -> "Bert":
        """A pretrained encoder, in evaluation mode.

        ``"minilm"`` is all-MiniLM-L6-v2, a sentence encoder (6 layers, width 384, mean
        pooling), trained on texts of up to 256 tokens. ``"bert-base-uncased"`` is BERT base,
        which needs a network.

        Args:
            name: One of the two.
            offline: Use no network; see :func:`mmlib.encoders.pretrained.files`.
            progress: Say what is downloaded.

        Raises:
            ValueError: there is no such model.
        """
        from mmlib.encoders import pretrained

        if name not in PRETRAINED:
            raise ValueError(f"name must be one of {', '.join(PRETRAINED)}: got {name!r}")
        pool, ignore = PRETRAINED[name]
        files = pretrained.files(name, offline=offline, progress=progress)
        config = json.loads(files["config"].read_text(encoding="utf-8"))
        return cls.from_transformers(
            pretrained.weights(name, offline=offline, progress=progress),
            BertConfig.from_transformers(config, pool),
            ignore=ignore,
        )


def _plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefix of models with a head, and with today's names of the norms' weights."""
    plain = {}
    for name, tensor in state.items():
        name = name.removeprefix("bert.")
        for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
            if name.endswith(old):
                name = name.removesuffix(old) + new
        plain[name] = tensor
    return plain


def _their_names(config: BertConfig) -> dict[str, list[str]]:
    names = {
        "embeddings.token.weight": ["embeddings.word_embeddings.weight"],
        "embeddings.position.table": ["embeddings.position_embeddings.weight"],
        "embeddings.token_type.weight": ["embeddings.token_type_embeddings.weight"],
    }
    for kind in ("weight", "bias"):
        names[f"embeddings.norm.{kind}"] = [f"embeddings.LayerNorm.{kind}"]
        if config.pool == "cls":
            names[f"pooler.{kind}"] = [f"pooler.dense.{kind}"]
        for index in range(config.layers):
            ours, theirs = f"encoder.blocks.{index}", f"encoder.layer.{index}"
            for mine, others in {
                "self_attention.qkv_proj": [
                    f"attention.self.{p}" for p in ("query", "key", "value")
                ],
                "self_attention.out_proj": ["attention.output.dense"],
                "self_norm": ["attention.output.LayerNorm"],
                "mlp.0": ["intermediate.dense"],
                "mlp.3": ["output.dense"],
                "mlp_norm": ["output.LayerNorm"],
            }.items():
                names[f"{ours}.{mine}.{kind}"] = [f"{theirs}.{other}.{kind}" for other in others]
    return names
