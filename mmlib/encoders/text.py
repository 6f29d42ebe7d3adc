"""Text encoders: a Transformer, CLIP's text tower among its settings, a recurrent network, BERT.

All take ``(ids, keep)`` from :mod:`mmlib.encoders.tokenizers` and give
:class:`~mmlib.encoders.encoded.Encoded`. :class:`~mmlib.encoders.bert.Bert` and
:class:`~mmlib.encoders.rnn.TextRNN` have their own files and can be imported from here too.

References:
    Radford et al., *Learning Transferable Visual Models From Natural Language Supervision*,
    ICML 2021.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmlib.block import ACTIVATIONS, TransformerConfig
from mmlib.encoders.bert import Bert, BertConfig
from mmlib.encoders.encoded import Encoded
from mmlib.encoders.loading import load_renamed
from mmlib.encoders.pooling import check_text, end_positions, mean_tokens, take_tokens
from mmlib.encoders.rnn import TextRNN, TextRNNConfig
from mmlib.positions import LearnedPositions
from mmlib.transformer import Decoder, Encoder

__all__ = [
    "Bert",
    "BertConfig",
    "TextRNN",
    "TextRNNConfig",
    "TextTransformer",
    "TextTransformerConfig",
    "embed_texts",
]


@dataclass(frozen=True)
class TextTransformerConfig:
    """Sizes and choices of a :class:`TextTransformer`.

    CLIP's text tower is ``causal=True, pool="end", activation="quick_gelu"`` with the tokenizer's
    ``end_id``; at ViT-B/32 it has 49,408 ids, width 512, 8 heads, 12 layers and 77 positions.

    Attributes:
        vocab_size: Number of token ids.
        dim: Width of the tokens and of the pooled vector.
        heads: Attention heads; must divide ``dim``.
        layers: Blocks.
        mlp_dim: Hidden width of the feed-forward layers, ``4 * dim`` by default.
        max_length: Longest sequence that has positions.
        causal: Whether a token sees only those before it.
        pool: Which vector stands for the text: the ``"mean"`` of all tokens, the ``"first"``
            token, or the one at the ``"end"``-of-text id.
        end_id: Id of the end-of-text token; ``pool="end"`` needs it.
        activation: Of the feed-forward layers.
        norm_eps: What every layer norm adds to the variance.
        dropout: Probability, during training.

    Raises:
        ValueError: a number or a choice out of its range; ``pool="end"`` without ``end_id``;
            ``pool="first"`` in a causal encoder, whose first token has seen nothing.
    """

    vocab_size: int
    dim: int = 128
    heads: int = 4
    layers: int = 2
    mlp_dim: int | None = None
    max_length: int = 77
    causal: bool = False
    pool: Literal["mean", "first", "end"] = "mean"
    end_id: int | None = None
    activation: Literal["gelu", "quick_gelu", "relu"] = "gelu"
    norm_eps: float = 1e-5
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.vocab_size < 1:
            raise ValueError(f"vocab_size must be at least 1: got {self.vocab_size}")
        if self.pool not in ("mean", "first", "end"):
            raise ValueError(f"pool must be 'mean', 'first' or 'end': got {self.pool!r}")
        if self.pool == "first" and self.causal:
            raise ValueError("pool must not be 'first' when causal: the first token sees no other")
        if self.pool == "end" and self.end_id is None:
            raise ValueError("end_id is needed: pool is 'end'")
        if self.end_id is not None and not 0 <= self.end_id < self.vocab_size:
            raise ValueError(f"end_id must lie from 0 to {self.vocab_size - 1}: got {self.end_id}")
        self.transformer  # noqa: B018 - checks the rest

    @property
    def transformer(self) -> TransformerConfig:
        """What the blocks are made of: pre-norm, and a norm at the end."""
        return TransformerConfig(
            dim=self.dim,
            heads=self.heads,
            layers=self.layers,
            mlp_dim=self.mlp_dim,
            activation=self.activation,
            norm_eps=self.norm_eps,
            dropout=self.dropout,
            cross_attention=False,
            max_length=self.max_length,
            positions="learned",
        )


class TextTransformer(nn.Module):
    """A pre-norm Transformer over learned token and position vectors.

    Attributes:
        dim: Width of tokens and of the pooled vector.
        token: The embedding table.
        position: Learned positions.
        stack: The blocks and the final norm.

    >>> _ = torch.manual_seed(0)
    >>> encoder = TextTransformer(TextTransformerConfig(vocab_size=100, dim=16, heads=2))
    >>> encoder(torch.tensor([[2, 7, 3]])).tokens.shape
    torch.Size([1, 3, 16])
    """

    def __init__(self, config: TextTransformerConfig) -> None:
        super().__init__()
        self.config, self.dim = config, config.dim
        self.token = nn.Embedding(config.vocab_size, config.dim)
        self.position = LearnedPositions(config.dim, config.max_length, std=0.01)
        self.dropout = nn.Dropout(config.dropout)
        # A decoder without a memory to attend to is a stack of causal blocks.
        self.stack = (Decoder if config.causal else Encoder)(config.transformer)
        nn.init.normal_(self.token.weight, std=0.02)  # both spreads are CLIP's

    def forward(
        self,
        ids: Int[Tensor, "batch length"],
        keep: Bool[Tensor, "batch length"] | None = None,
        *,
        return_weights: bool = False,
    ) -> Encoded:
        """Encode texts.

        Args:
            ids: Token ids.
            keep: Which of them exist; all by default. The others give zeros, and change nothing.
            return_weights: Return the attention weights of each layer too.

        Raises:
            TypeError: ``ids`` does not hold integers, or ``keep`` is not boolean.
            ValueError: a wrong shape, too long a sequence, an id outside the vocabulary, or no
                end-of-text token where ``pool`` needs it.
        """
        config = self.config
        check_text(ids, keep, config.vocab_size, config.max_length)
        x = self.dropout(self.position(self.token(ids)))
        tokens, weights = self.stack(x, keep=keep, return_weights=return_weights)
        exists = torch.ones_like(ids, dtype=torch.bool) if keep is None else keep
        if keep is not None:
            tokens = tokens.masked_fill(~keep[..., None], 0.0)
        if config.pool == "mean":
            pooled = mean_tokens(tokens, exists)
        elif config.pool == "first":
            pooled = tokens[:, 0]
        else:
            pooled = take_tokens(tokens, end_positions(ids, config.end_id, keep))
        return Encoded(tokens, exists, pooled, weights)

    @classmethod
    def from_transformers(cls, source: nn.Module) -> "TextTransformer":
        """A copy of transformers' ``CLIPTextModel``, in evaluation mode.

        Its projection into the space shared with pictures belongs to chapter 10.

        Raises:
            ValueError: weights are missing, left over or of another shape (they are named), or
                the activation is unknown here.
        """
        given = source.config
        if given.hidden_act not in ACTIVATIONS:
            raise ValueError(
                f"hidden_act must be one of {tuple(ACTIVATIONS)}: got {given.hidden_act!r}"
            )
        # Configurations written before transformers 4.31 say 2, and mean the largest id.
        end_id = given.eos_token_id if given.eos_token_id != 2 else given.vocab_size - 1
        config = TextTransformerConfig(
            vocab_size=given.vocab_size,
            dim=given.hidden_size,
            heads=given.num_attention_heads,
            layers=given.num_hidden_layers,
            mlp_dim=given.intermediate_size,
            max_length=given.max_position_embeddings,
            causal=True,
            pool="end",
            end_id=end_id,
            activation=given.hidden_act,
            norm_eps=given.layer_norm_eps,
            dropout=given.attention_dropout,
        )
        state = {
            name.removeprefix("text_model."): tensor for name, tensor in source.state_dict().items()
        }
        with torch.device("meta"):
            model = cls(config)
        load_renamed(model, state, _clip_names(config), ignore=("embeddings.position_ids",))
        return model.eval()


@torch.no_grad()
def embed_texts(
    encoder: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    batch_size: int = 64,
    normalise: bool = True,
    max_length: int | None = None,
    truncate: bool = False,
) -> Float[Tensor, "batch dim"]:
    """One vector for each text: with MiniLM, a sentence embedding.

    Texts of similar length are encoded together, without gradients and dropout, on the
    encoder's device; the encoder's mode is left as it was.

    Args:
        encoder: Any of the text encoders.
        tokenizer: The tokenizer that it was trained with.
        texts: The texts.
        batch_size: Texts encoded at once.
        normalise: Divide each vector by its length, so that a dot product is a cosine.
        max_length: Longest sequence of ids; see :meth:`mmlib.encoders.tokenizer.Tokenizer.encode`.
        truncate: Cut longer texts; else they are an error.

    Returns:
        The vectors in the order of the texts, on the encoder's device.

    Raises:
        ValueError: ``batch_size`` is below 1, or the tokenizer refuses a text.

    >>> from mmlib.encoders.tokenizers import wordpiece_tokenizer
    >>> texts = ["a picture of a dog", "a photograph of a puppy", "the price of oil"]
    >>> vectors = embed_texts(Bert.pretrained("minilm"), wordpiece_tokenizer(), texts)
    >>> (vectors[0] @ vectors[1]).item() > 0.7, (vectors[0] @ vectors[2]).item() < 0.2
    (True, True)
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1: got {batch_size}")
    ids, keep = tokenizer.encode(texts, max_length, truncate=truncate)
    lengths = keep.sum(dim=1)
    device = next(encoder.parameters()).device
    was_training = encoder.training
    encoder.eval()
    try:
        parts, order = [], lengths.argsort(descending=True, stable=True)
        for rows in order.split(batch_size):
            longest = int(lengths[rows[0]])
            parts.append(
                encoder(ids[rows, :longest].to(device), keep[rows, :longest].to(device)).pooled
            )
    finally:
        encoder.train(was_training)
    pooled = torch.cat(parts)[order.argsort().to(device)]
    return F.normalize(pooled, dim=-1) if normalise else pooled


def _clip_names(config: TextTransformerConfig) -> dict[str, list[str]]:
    names = {
        "token.weight": ["embeddings.token_embedding.weight"],
        "position.table": ["embeddings.position_embedding.weight"],
    }
    for kind in ("weight", "bias"):
        names[f"stack.norm.{kind}"] = [f"final_layer_norm.{kind}"]
        for index in range(config.layers):
            ours, theirs = f"stack.blocks.{index}", f"encoder.layers.{index}"
            for mine, others in {
                "self_attention.qkv_proj": [f"self_attn.{p}_proj" for p in "qkv"],
                "self_attention.out_proj": ["self_attn.out_proj"],
                "self_norm": ["layer_norm1"],
                "mlp.0": ["mlp.fc1"],
                "mlp.3": ["mlp.fc2"],
                "mlp_norm": ["layer_norm2"],
            }.items():
                names[f"{ours}.{mine}.{kind}"] = [f"{theirs}.{other}.{kind}" for other in others]
    return names
