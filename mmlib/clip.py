r"""CLIP: a picture tower and a text tower that meet in one space: chapter 10.

.. math::

    I = \frac{W_I\, f(\text{picture})}{\|W_I\, f(\text{picture})\|}, \qquad
    T = \frac{W_T\, g(\text{text})}{\|W_T\, g(\text{text})\|}, \qquad
    \text{logits}_{ij} = s\; I_i \cdot T_j

where :math:`f` is a Vision Transformer's class token or the mean of a residual network's regions,
:math:`g` a causal Transformer's vector at the end of the text, and :math:`s` the learned
:class:`~mmlib.contrastive.LogitScale`. Both matrices are without a bias. The loss is
:func:`mmlib.contrastive.clip_loss`; :mod:`mmlib.zero_shot` uses the vectors.

Weights of OpenAI's checkpoints, and of any other of transformers' ``CLIPModel``, load with
:meth:`CLIP.from_transformers`; pictures for them are prepared with the recipe ``"clip"`` of
:mod:`mmlib.encoders.preprocessing`, texts with
:func:`~mmlib.encoders.tokenizers.clip_tokenizer`.

References:
    Radford et al., *Learning Transferable Visual Models From Natural Language Supervision*,
    ICML 2021. Zhai et al., *LiT: Zero-Shot Transfer with Locked-image text Tuning*, CVPR 2022.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmlib.contrastive import LogitScale, clip_loss
from mmlib.encoders.image import ResNet, ResNetConfig, ViT, ViTConfig
from mmlib.encoders.pooled_only import pool_text, pool_vit
from mmlib.encoders.text import TextTransformer, TextTransformerConfig
from mmlib.large_batches import cosines

__all__ = ["CLIP", "CLIPConfig"]


@dataclass(frozen=True)
class CLIPConfig:
    """Sizes and choices of a :class:`CLIP`.

    Attributes:
        image: Of the picture tower: a ViT's or a ResNet's; None where a tower is given.
        text: Of the text tower; None where a tower is given.
        dim: Width of the space in which the two meet.
        initial_scale: Factor on the cosines at the start, one over the temperature.
        maximum_scale: The largest factor.

    Raises:
        ValueError: a number out of its range.
    """

    image: ViTConfig | ResNetConfig | None
    text: TextTransformerConfig | None
    dim: int = 512
    initial_scale: float = 1 / 0.07
    maximum_scale: float = 100.0

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ValueError(f"dim must be at least 1: got {self.dim}")
        if not 0 < self.initial_scale <= self.maximum_scale < math.inf:
            raise ValueError(
                "initial_scale must be above 0 and at most maximum_scale: "
                f"got {self.initial_scale} and {self.maximum_scale}"
            )

    @classmethod
    def vit_b_32(cls) -> "CLIPConfig":
        """OpenAI's ViT-B/32: 151 million parameters, pictures of 224 pixels, 77 positions."""
        image = ViTConfig(
            image_size=224,
            patch_size=32,
            dim=768,
            heads=12,
            layers=12,
            mlp_dim=3072,
            norm_eps=1e-5,
            activation="quick_gelu",
            norm_before=True,
            patch_bias=False,
        )
        text = TextTransformerConfig(
            vocab_size=49_408,
            dim=512,
            heads=8,
            layers=12,
            mlp_dim=2048,
            causal=True,
            pool="end",
            end_id=49_407,
            activation="quick_gelu",
        )
        return cls(image, text, dim=512)


class CLIP(nn.Module):
    """Two towers, two matrices and a scale.

    The projections are drawn as in the paper's code, with a spread of one over the root of the
    tower's width; the towers as everywhere in this library.

    Args:
        config: Sizes and choices.
        image: A picture tower to use instead of one that ``config`` describes, such as a
            pretrained one whose weights stand still (locked-image tuning).
        text: A text tower to use instead, likewise. Any encoder will do.

    Attributes:
        config: As given.
        image: The picture tower, :class:`~mmlib.encoders.encoded.Encoded` out.
        text: The text tower, likewise.
        image_projection: :math:`W_I`.
        text_projection: :math:`W_T`.
        logit_scale: :math:`s`, called without arguments.

    Raises:
        ValueError: a tower is described and given, or neither.

    >>> _ = torch.manual_seed(0)
    >>> text = TextTransformerConfig(20, dim=16, causal=True, pool="end", end_id=2)
    >>> model = CLIP(CLIPConfig(ViTConfig(image_size=16, dim=32), text, dim=8))
    >>> model(torch.rand(3, 3, 16, 16), torch.tensor([[1, 5, 2, 0], [1, 7, 8, 2]])).shape
    torch.Size([3, 2])
    """

    def __init__(
        self, config: CLIPConfig, *, image: nn.Module | None = None, text: nn.Module | None = None
    ) -> None:
        super().__init__()
        for name, tower in (("image", image), ("text", text)):
            if (tower is None) == (getattr(config, name) is None):
                raise ValueError(
                    f"{name} must be either described in config or given as a tower: "
                    f"got {'neither' if tower is None else 'both'}"
                )
        if image is None:
            image = (ViT if isinstance(config.image, ViTConfig) else ResNet)(config.image)
        self.config = config
        self.image = image
        self.text = TextTransformer(config.text) if text is None else text
        self.image_projection = nn.Linear(self.image.dim, config.dim, bias=False)
        self.text_projection = nn.Linear(self.text.dim, config.dim, bias=False)
        self.logit_scale = LogitScale(config.initial_scale, config.maximum_scale)
        for projection in (self.image_projection, self.text_projection):
            nn.init.normal_(projection.weight, std=projection.in_features**-0.5)

    def encode_image(
        self,
        images: Float[Tensor, "batch channels height width"],
        *,
        interpolate_positions: bool = False,
    ) -> Float[Tensor, "batch dim"]:
        """Vectors of unit length for pictures, in fp32 at least.

        Args:
            images: Preprocessed as the weights want it.
            interpolate_positions: Let a ViT take pictures of another size; see
                :meth:`mmlib.encoders.vit.ViT.forward`.

        Raises:
            TypeError: ``images`` is not floating point.
            ValueError: a wrong shape, or a size that the tower does not take.
        """
        tower = self.image
        if interpolate_positions:
            if not isinstance(tower, ViT):
                raise ValueError("interpolate_positions is for a ViT: other towers take any size")
            pooled = tower(images, interpolate_positions=True).pooled
        elif isinstance(tower, ViT) and tower.config.pool == "cls":
            pooled = pool_vit(tower, images)
        else:
            pooled = tower(images).pooled
        return _unit(self.image_projection(pooled))

    def encode_text(
        self,
        ids: Int[Tensor, "batch length"],
        keep: Bool[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch dim"]:
        """Vectors of unit length for texts, in fp32 at least.

        Args:
            ids: Token ids, begin and end among them. A text longer than the tower has positions
                is an error: cut it where it is encoded
                (:meth:`mmlib.encoders.tokenizer.Tokenizer.encode` with ``truncate=True`` keeps
                the end token).
            keep: Which of them exist. A causal tower that pools at the end of the text needs it
                only where padding comes first, and is faster without.

        Raises:
            TypeError: ``ids`` does not hold integers, or ``keep`` is not boolean.
            ValueError: a wrong shape, an id outside the vocabulary, too long a text, or one
                without an end.
        """
        tower = self.text
        causal = isinstance(tower, TextTransformer) and tower.config.causal
        if keep is None and causal and tower.config.pool == "end":
            pooled = pool_text(tower, ids)
        else:
            pooled = tower(ids, keep).pooled
        return _unit(self.text_projection(pooled))

    def forward(
        self,
        images: Float[Tensor, "images channels height width"],
        ids: Int[Tensor, "texts length"],
        keep: Bool[Tensor, "texts length"] | None = None,
    ) -> Float[Tensor, "images texts"]:
        """Logits of every picture with every text, in fp32 at least; the arguments as above."""
        return self.logit_scale() * cosines(self.encode_image(images), self.encode_text(ids, keep))

    def loss(
        self,
        images: Float[Tensor, "batch channels height width"],
        ids: Int[Tensor, "batch length"],
        keep: Bool[Tensor, "batch length"] | None = None,
        *,
        groups: Int[Tensor, " batch"] | None = None,
        gather: bool = False,
        chunk: int | None = None,
    ) -> Float[Tensor, ""]:
        """CLIP's loss of a batch of pairs, see :func:`mmlib.contrastive.clip_loss`.

        Args:
            images: Picture ``i`` belongs to text ``i``.
            ids: As many texts.
            keep: As in :meth:`encode_text`.
            groups: Equal numbers for pairs that are no negatives of each other.
            gather: Compare with the items of all processes.
            chunk: Rows of the logits held at a time.
        """
        return clip_loss(
            self.encode_image(images),
            self.encode_text(ids, keep),
            self.logit_scale(),
            groups=groups,
            gather=gather,
            chunk=chunk,
        )

    @classmethod
    def from_transformers(cls, source: nn.Module | str | Path) -> "CLIP":
        """A copy of a CLIP of transformers, in evaluation mode.

        Args:
            source: A ``CLIPModel``; a folder in transformers' layout; or a name on the model
                hub, such as ``"openai/clip-vit-base-patch32"``, which transformers loads or
                downloads.

        Returns:
            The same model, in the dtype of the weights. A scale above 100 in the checkpoint
            stays as it is, and becomes its maximum.

        Raises:
            ImportError: a folder or name is given and transformers is missing.
            OSError: there is no such folder or name, or it holds no weights.
            TypeError: the model is no CLIP.
            ValueError: it has options that the towers lack, or weights that do not fit; see
                :meth:`mmlib.encoders.vit.ViT.from_transformers`.
        """
        if not isinstance(source, nn.Module):
            source = _read(source)
        missing = [
            name
            for name in ("vision_model", "text_model", "visual_projection", "text_projection")
            if not hasattr(source, name)
        ]
        if missing:
            raise TypeError(
                f"source must be a CLIPModel: got {type(source).__name__} without "
                f"{', '.join(missing)}"
            )
        image = ViT.from_transformers(source.vision_model)
        text = TextTransformer.from_transformers(source.text_model)
        scale = source.logit_scale.detach().double().exp().item()
        config = CLIPConfig(
            image.config,
            text.config,
            dim=source.visual_projection.out_features,
            initial_scale=scale,
            maximum_scale=max(scale, 100.0),
        )
        with torch.device("meta"):  # no initial weights are drawn in vain
            ours = cls(config)
        ours.image, ours.text = image, text
        for name in ("image", "text"):
            theirs = getattr(source, "visual_projection" if name == "image" else "text_projection")
            weight = nn.Parameter(theirs.weight.detach().clone())
            getattr(ours, f"{name}_projection").weight = weight
        ours.logit_scale.log_scale = nn.Parameter(source.logit_scale.detach().clone())
        return ours.eval()


def _unit(x: Tensor) -> Tensor:
    """Rows of unit length; half precisions would round their cosines to three digits."""
    return F.normalize(x if x.dtype == torch.float64 else x.float(), dim=-1)


def _read(source: str | Path) -> nn.Module:
    try:
        from transformers import CLIPModel
    except ImportError as error:
        raise ImportError(
            'from_transformers needs transformers: pip install "mmlib[pretrained]"'
        ) from error
    return CLIPModel.from_pretrained(str(source))
