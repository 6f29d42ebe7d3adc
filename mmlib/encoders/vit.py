r"""The Vision Transformer: a picture cut into patches, read like a sentence.

References:
    Dosovitskiy et al., *An Image is Worth 16x16 Words: Transformers for Image Recognition at
    Scale*, ICLR 2021. Radford et al., *Learning Transferable Visual Models From Natural Language
    Supervision*, ICML 2021 (CLIP: one more norm before the blocks).
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mmlib.block import ACTIVATIONS, TransformerConfig
from mmlib.encoders.encoded import Encoded
from mmlib.encoders.loading import load_renamed
from mmlib.encoders.regions import check_images, encode_tokens
from mmlib.encoders.vit_names import our_names, their_state, vision_tower
from mmlib.transformer import Encoder

__all__ = ["PatchEmbedding", "ViT", "ViTConfig"]


@dataclass(frozen=True)
class ViTConfig:
    """Sizes and choices of a :class:`ViT`.

    Attributes:
        image_size: Height and width of a picture in pixels.
        patch_size: Height and width of a patch; must divide ``image_size``.
        channels: Of the picture.
        dim: Width of the tokens.
        heads: Attention heads; must divide ``dim``.
        layers: Blocks.
        mlp_dim: Hidden width of the feed-forward layer, ``4 * dim`` by default.
        pool: What stands for the whole picture: ``"cls"``, the class token, or ``"mean"``,
            the mean of the patches' tokens (without the class token).
        norm_eps: What every layer norm adds to the variance: 1e-12 in transformers' ViT, 1e-5
            in CLIP, 1e-6 in the paper's code.
        activation: Of the feed-forward layer; OpenAI's CLIP takes ``"quick_gelu"``.
        dropout: Probability, as in :class:`~mmlib.block.TransformerConfig`.
        class_token: Whether a learned token comes before the patches.
        norm_before: Whether a layer norm stands before the blocks (CLIP).
        patch_bias: Whether the patch embedding has a bias (not in CLIP).

    Raises:
        ValueError: a number or a choice out of its range.
    """

    image_size: int = 64
    patch_size: int = 8
    channels: int = 3
    dim: int = 128
    heads: int = 4
    layers: int = 4
    mlp_dim: int | None = None
    pool: Literal["cls", "mean"] = "cls"
    norm_eps: float = 1e-6
    activation: Literal["gelu", "quick_gelu", "relu"] = "gelu"
    dropout: float = 0.0
    class_token: bool = True
    norm_before: bool = False
    patch_bias: bool = True

    def __post_init__(self) -> None:
        for name in ("image_size", "patch_size", "channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1: got {getattr(self, name)}")
        if self.image_size % self.patch_size:
            raise ValueError(
                "patch_size must divide image_size: "
                f"got image_size={self.image_size}, patch_size={self.patch_size}"
            )
        if self.pool not in ("cls", "mean"):
            raise ValueError(f"pool must be 'cls' or 'mean': got {self.pool!r}")
        if self.pool == "cls" and not self.class_token:
            raise ValueError("pool 'cls' needs class_token=True; without it take 'mean'")
        self.transformer  # noqa: B018 - checks the rest

    @property
    def transformer(self) -> TransformerConfig:
        """The part of the configuration that the blocks need."""
        return TransformerConfig(
            dim=self.dim,
            heads=self.heads,
            layers=self.layers,
            mlp_dim=self.mlp_dim,
            activation=self.activation,
            norm_eps=self.norm_eps,
            dropout=self.dropout,
        )


class PatchEmbedding(nn.Module):
    r"""Cuts a picture into patches and maps each to a vector.

    .. math:: x_i = W \operatorname{vec}(\text{patch}_i) + b

    The same linear map for every patch is a convolution whose stride is its width; it is computed
    as one. Patches are numbered row by row.

    Args:
        patch_size: Height and width of a patch in pixels.
        channels: Of the picture.
        dim: Width of the vectors.
        bias: Whether there is a :math:`b`.

    >>> PatchEmbedding(8, 3, 16)(torch.zeros(2, 3, 32, 24)).shape
    torch.Size([2, 12, 16])
    """

    def __init__(self, patch_size: int, channels: int, dim: int, bias: bool = True) -> None:
        super().__init__()
        if min(patch_size, channels, dim) < 1:
            raise ValueError(
                "patch_size, channels and dim must be at least 1: "
                f"got {patch_size}, {channels} and {dim}"
            )
        self.patch_size, self.channels, self.dim = patch_size, channels, dim
        self.projection = nn.Conv2d(channels, dim, patch_size, stride=patch_size, bias=bias)
        # As a linear layer of channels · patch_size² inputs, which it is.
        nn.init.xavier_uniform_(self.projection.weight.view(dim, -1))
        if bias:
            nn.init.zeros_(self.projection.bias)

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch patches dim"]:
        """Embed the patches.

        Raises:
            TypeError: ``images`` is not floating point.
            ValueError: a wrong shape, or a size that ``patch_size`` does not divide (a
                convolution would leave the last pixels out without a word).
        """
        check_images(images, None, self.channels)
        height, width = images.shape[2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"patch_size must divide height and width: got patch_size={self.patch_size}, "
                f"{height} × {width} pixels"
            )
        x = self.projection(images)
        return rearrange(x, "batch dim rows columns -> batch (rows columns) dim")


class ViT(nn.Module):
    r"""A Transformer encoder over the patches of a picture.

    .. math::

        z_0 = [x_{\text{class}};\, x_1; \dots; x_N] + P, \qquad
        \text{tokens} = \operatorname{Encoder}(z_0)

    where :math:`P` are learned positions. **The class token is among the tokens**, the first,
    where the configuration has one; the patches follow row by row, so that the axes of the
    attention weights are those of the tokens. :meth:`on_grid` puts values of tokens back on the
    picture. The last layer norm is applied to every token; ``pooled`` is the class token or the
    mean of the patches after it.

    Attributes:
        config: Sizes and choices.
        dim: Width of tokens and pooled vector.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config, self.dim = config, config.dim
        self.patch_embedding = PatchEmbedding(
            config.patch_size, config.channels, config.dim, config.patch_bias
        )
        rows, columns = self.grid
        self.class_token = nn.Parameter(torch.empty(config.dim)) if config.class_token else None
        self.positions = nn.Parameter(torch.empty(rows * columns + config.class_token, config.dim))
        self.dropout = nn.Dropout(config.dropout)
        self.norm_before = (
            nn.LayerNorm(config.dim, eps=config.norm_eps) if config.norm_before else nn.Identity()
        )
        self.encoder = Encoder(config.transformer)
        for parameter in (self.class_token, self.positions):
            if parameter is not None:
                nn.init.normal_(parameter, std=0.02)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches in a picture of the configured size."""
        side = self.config.image_size // self.config.patch_size
        return side, side

    def forward(
        self,
        images: Float[Tensor, "batch channels height width"],
        keep: Bool[Tensor, " batch"] | None = None,
        *,
        return_weights: bool = False,
        interpolate_positions: bool = False,
    ) -> Encoded:
        """Encode pictures.

        Args:
            images: Preprocessed as the weights want it (:mod:`mmlib.encoders.preprocessing`).
            keep: Which pictures exist, all by default; the others give zeros.
            return_weights: Return the attention weights of every layer too.
            interpolate_positions: Take pictures of another size, with the positions stretched
                over them (bicubic); ``patch_size`` must divide it.

        Raises:
            TypeError: ``images`` is not floating point, or ``keep`` not boolean.
            ValueError: a wrong shape or size.
        """
        config = self.config
        check_images(images, keep, config.channels)
        height, width = images.shape[2:]
        if (height, width) != (config.image_size, config.image_size) and not interpolate_positions:
            raise ValueError(
                f"images must be {config.image_size} × {config.image_size} pixels: got "
                f"{height} × {width}; interpolate_positions=True takes other sizes"
            )
        x = self.patch_embedding(images)
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(len(x), 1, -1).to(x.dtype), x], dim=1)
        x = self.dropout(x + self._positions(height, width))
        tokens, weights = self.encoder(self.norm_before(x), return_weights=return_weights)
        if config.pool == "cls":
            pooled = tokens[:, 0]
        else:
            pooled = tokens[:, int(config.class_token) :].mean(dim=1)
        return encode_tokens(tokens, pooled, keep, weights)

    def on_grid(
        self, values: Float[Tensor, "... length"], size: tuple[int, int] | None = None
    ) -> Float[Tensor, "... rows columns"]:
        """Put one value for each token back on the picture; the class token is left out.

        Args:
            values: For example what the class token looks at in the last layer,
                ``weights[-1].self_attention[:, :, 0]``.
            size: Height and width of the picture in pixels, if it is not the configured size.

        Raises:
            ValueError: there is not one value for each token.
        """
        height, width = size or (self.config.image_size, self.config.image_size)
        rows, columns = height // self.config.patch_size, width // self.config.patch_size
        length = rows * columns + self.config.class_token
        if values.shape[-1] != length:
            raise ValueError(
                f"values must end in one for each of {length} tokens: got {tuple(values.shape)}"
            )
        patches = values[..., int(self.config.class_token) :]
        return rearrange(patches, "... (rows columns) -> ... rows columns", rows=rows)

    def _positions(self, height: int, width: int) -> Tensor:
        """Learned positions, stretched over another grid where the picture has another size."""
        grid = height // self.config.patch_size, width // self.config.patch_size
        if grid == self.grid:
            return self.positions
        first = int(self.config.class_token)
        square = rearrange(
            self.positions[first:], "(rows columns) dim -> 1 dim rows columns", rows=self.grid[0]
        )
        # Without antialiasing, also where the grid shrinks: as transformers, with whose
        # checkpoints it is used.
        square = F.interpolate(square, grid, mode="bicubic", align_corners=False)
        patches = rearrange(square, "1 dim rows columns -> (rows columns) dim")
        return torch.cat([self.positions[:first], patches])

    @classmethod
    def from_transformers(cls, model: nn.Module) -> "ViT":
        """Copy a ViT or the vision tower of a CLIP from transformers.

        Args:
            model: A ``ViTModel``, ``CLIPVisionModel``, or a model that holds one, such as
                ``ViTForImageClassification`` or ``CLIPModel``.

        Returns:
            The same network, in evaluation mode. Of a ``ViTModel``, ``tokens`` is
            ``last_hidden_state``; its pooler (one more layer with a tanh, which public
            checkpoints mostly lack) is left out, and ``pooled`` is the normed class token. Of a
            ``CLIPVisionModel``, ``pooled`` is ``pooler_output``; ``tokens`` is
            ``last_hidden_state`` after the last norm, which transformers applies to the class
            token alone.

        Raises:
            TypeError: the model is neither.
            ValueError: it has options that :class:`ViT` lacks.
        """
        tower = vision_tower(model)
        theirs, clip = tower.config, type(tower).__name__.startswith("CLIP")
        if not getattr(theirs, "qkv_bias", True):
            raise ValueError("model must have biases on its queries, keys and values: got none")
        if theirs.hidden_act not in ACTIVATIONS:
            raise ValueError(
                f"model must have one of the activations {tuple(ACTIVATIONS)}: "
                f"got {theirs.hidden_act!r}"
            )
        config = ViTConfig(
            image_size=theirs.image_size,
            patch_size=theirs.patch_size,
            channels=theirs.num_channels,
            dim=theirs.hidden_size,
            heads=theirs.num_attention_heads,
            layers=theirs.num_hidden_layers,
            mlp_dim=theirs.intermediate_size,
            norm_eps=theirs.layer_norm_eps,
            activation=theirs.hidden_act,
            dropout=getattr(theirs, "hidden_dropout_prob", 0.0),
            norm_before=clip,
            patch_bias=not clip,
        )
        with torch.device("meta"):  # no initial weights are drawn in vain
            ours = cls(config)
        names = our_names(config.layers, norm_before=clip, patch_bias=not clip)
        load_renamed(ours, their_state(tower), names, ignore=("pooler.", "embeddings.position_ids"))
        return ours.eval()
