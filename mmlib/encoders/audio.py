r"""A sound encoder: log-mel frames, two strided convolutions, a Transformer.

References:
    Radford et al., *Robust Speech Recognition via Large-Scale Weak Supervision*, 2022 (Whisper).
    Park et al., *SpecAugment: A Simple Data Augmentation Method for Automatic Speech Recognition*,
    Interspeech 2019.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mmlib.block import TransformerConfig
from mmlib.encoders.encoded import Encoded
from mmlib.encoders.loading import load_renamed
from mmlib.encoders.mel import LogMelConfig
from mmlib.encoders.pooling import mean_tokens
from mmlib.encoders.spectrogram import LogMel
from mmlib.transformer import Encoder

__all__ = ["AudioEncoder", "AudioEncoderConfig", "spec_augment"]


@dataclass(frozen=True)
class AudioEncoderConfig:
    """Sizes and choices of an :class:`AudioEncoder`.

    Attributes:
        log_mel: How frames are made, one every 10 ms by default.
        strides: Of the two convolutions. A token stands for ``strides[0] * strides[1]`` frames: 4
            by default, which is 40 ms; Whisper's ``(1, 2)`` gives 20 ms.
        dim: Width of the tokens, even and at least 4.
        heads: Attention heads; must divide ``dim``.
        layers: Blocks.
        mlp_dim: Hidden width of the feed-forward layer, ``4 * dim`` by default.
        norm_eps: What every layer norm adds to the variance.
        dropout: Probability, as in :class:`~mmlib.block.TransformerConfig`.
        max_length: Most tokens of a sound; 512 are 20 seconds at 40 ms.

    Raises:
        ValueError: a number out of its range.
    """

    log_mel: LogMelConfig = LogMelConfig()
    strides: tuple[int, int] = (2, 2)
    dim: int = 128
    heads: int = 4
    layers: int = 4
    mlp_dim: int | None = None
    norm_eps: float = 1e-5
    dropout: float = 0.0
    max_length: int = 512

    def __post_init__(self) -> None:
        # A convolution of width 3 with a longer stride would not see every frame.
        if len(self.strides) != 2 or not all(stride in (1, 2, 3) for stride in self.strides):
            raise ValueError(f"strides must be two numbers from 1 to 3: got {self.strides}")
        if self.dim < 4 or self.dim % 2:
            raise ValueError(f"dim must be even and at least 4: got {self.dim}")
        self.transformer  # noqa: B018 - checks the rest

    @property
    def transformer(self) -> TransformerConfig:
        """The part of the configuration that the blocks need."""
        return TransformerConfig(
            dim=self.dim,
            heads=self.heads,
            layers=self.layers,
            mlp_dim=self.mlp_dim,
            norm_eps=self.norm_eps,
            dropout=self.dropout,
            max_length=self.max_length,
        )


class AudioEncoder(nn.Module):
    r"""Waveforms in, a token for every few frames out.

    .. math::

        S = \operatorname{logmel}(x), \qquad
        h = \phi(\operatorname{conv}_2(\phi(\operatorname{conv}_1(S)))), \qquad
        \text{tokens} = \operatorname{Encoder}(h + P)

    with convolutions of width 3, :math:`\phi` the GELU and :math:`P` fixed sinusoids. With
    ``strides=(1, 2)`` and copied weights it computes what Whisper's encoder computes.

    Differs from Whisper in that padding changes nothing: Whisper fills every sound up to 30
    seconds and hears the silence. Here what does not exist is zero before each convolution, as if
    the sound ended there, and is not attended to. A token exists where the frame at its centre
    does. ``pooled`` is the mean of the tokens that exist.

    Attributes:
        config: Sizes and choices.
        dim: Width of tokens and pooled vector.
        log_mel: From waveforms to frames; :meth:`encode` goes on from there.
    """

    def __init__(self, config: AudioEncoderConfig | None = None) -> None:
        super().__init__()
        self.config = config = AudioEncoderConfig() if config is None else config
        self.dim = config.dim
        self.log_mel = LogMel(config.log_mel)
        first, second = config.strides
        self.conv1 = nn.Conv1d(config.log_mel.mels, config.dim, 3, stride=first, padding=1)
        self.conv2 = nn.Conv1d(config.dim, config.dim, 3, stride=second, padding=1)
        positions = _sinusoids(config.max_length, config.dim)
        self.register_buffer("positions", positions, persistent=False)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = Encoder(config.transformer)

    def forward(
        self,
        audio: Float[Tensor, "batch samples"],
        keep: Bool[Tensor, "batch samples"] | None = None,
        *,
        return_weights: bool = False,
    ) -> Encoded:
        """Encode waveforms.

        Args:
            audio: Mono, in [-1, 1], at ``config.log_mel.sample_rate``. The rate cannot be checked:
                sound of another rate is heard as faster or slower.
            keep: Which samples exist; the real ones come first. A sound that has none gives zeros.
            return_weights: Return the attention weights of every layer too.

        Raises:
            TypeError: ``audio`` holds integers, or ``keep`` is not boolean.
            ValueError: what :class:`~mmlib.encoders.spectrogram.LogMel` refuses, or a sound of more
                than ``max_length`` tokens.
        """
        features, frames = self.log_mel(audio, keep)
        return self.encode(
            features, None if keep is None else frames, return_weights=return_weights
        )

    def encode(
        self,
        features: Float[Tensor, "batch frames mels"],
        keep: Bool[Tensor, "batch frames"] | None = None,
        *,
        return_weights: bool = False,
    ) -> Encoded:
        """Encode log-mel frames, which may be stored, or changed by :func:`spec_augment`.

        Args:
            features: What ``log_mel`` returned.
            keep: Which frames exist, all by default.
            return_weights: Return the attention weights of every layer too.

        Raises:
            TypeError: ``keep`` is not boolean.
            ValueError: a wrong shape, or more than ``max_length`` tokens.
        """
        _check_features(features, keep, self.config.log_mel.mels)
        first, second = self.config.strides
        tokens = -(-features.shape[1] // (first * second))
        if tokens > self.config.max_length:
            raise ValueError(
                f"features must make at most {self.config.max_length} tokens: "
                f"{features.shape[1]} frames make {tokens}; raise max_length"
            )
        x = features.to(self.conv1.weight.dtype).transpose(1, 2)
        x = F.gelu(self.conv1(_silence(x, keep)))
        halfway = None if keep is None else keep[:, ::first]
        x = F.gelu(self.conv2(_silence(x, halfway))).transpose(1, 2)
        keep = None if keep is None else halfway[:, ::second]
        x = self.dropout(x + self.positions[: x.shape[1]].to(x.dtype))
        x, weights = self.encoder(x, keep, return_weights=return_weights)
        if keep is None:
            keep = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        else:
            x = x.masked_fill(~keep[:, :, None], 0.0)
        return Encoded(x, keep, mean_tokens(x, keep), weights)

    @classmethod
    def from_transformers(cls, model: nn.Module) -> "AudioEncoder":
        """Copy the encoder of a Whisper from transformers.

        ``encode`` of the result is their encoder, on features of ``log_mel``, which are those of
        ``WhisperFeatureExtractor``. Their weights have only ever seen 30 seconds at a time: shorter
        sounds work without padding, but are not what they were trained on.

        Args:
            model: A ``WhisperModel``, or a model that holds one.

        Raises:
            TypeError: the model holds no Whisper encoder.
            ValueError: its activation is not the GELU, or its positions were trained.
        """
        module = getattr(getattr(model, "model", model), "encoder", model)
        if type(module).__name__ != "WhisperEncoder":
            raise TypeError(f"model must hold a WhisperEncoder: got {type(model).__name__}")
        theirs, state = module.config, dict(module.state_dict())
        if theirs.activation_function != "gelu":
            raise ValueError(f"activation must be 'gelu': got {theirs.activation_function!r}")
        ours = cls(
            AudioEncoderConfig(
                log_mel=LogMelConfig(mels=theirs.num_mel_bins, padding="reflect"),
                strides=(1, 2),
                dim=theirs.d_model,
                heads=theirs.encoder_attention_heads,
                layers=theirs.encoder_layers,
                mlp_dim=theirs.encoder_ffn_dim,
                dropout=theirs.dropout,
                max_length=theirs.max_source_positions,
            )
        )
        positions = state.pop("embed_positions.weight").float().cpu()
        if not torch.allclose(positions, ours.positions, rtol=0.0, atol=1e-3):
            raise ValueError("model's positions must be Whisper's sinusoids: got others")
        names = {}
        for layer in range(theirs.encoder_layers):
            prefix = f"layers.{layer}.self_attn"
            # The keys have no bias: it would add the same to all scores of a query.
            bias = state[f"{prefix}.q_proj.bias"]
            state[f"{prefix}.k_proj.bias"] = torch.zeros_like(bias)
            for kind in ("weight", "bias"):
                block = f"encoder.blocks.{layer}"
                names[f"{block}.self_attention.qkv_proj.{kind}"] = [
                    f"{prefix}.{part}_proj.{kind}" for part in "qkv"
                ]
                for mine, their in _BLOCK.items():
                    names[f"{block}.{mine}.{kind}"] = [f"layers.{layer}.{their}.{kind}"]
        for mine, their in (("conv1",) * 2, ("conv2",) * 2, ("encoder.norm", "layer_norm")):
            for kind in ("weight", "bias"):
                names[f"{mine}.{kind}"] = [f"{their}.{kind}"]
        load_renamed(ours, state, names)
        return ours.eval()


_BLOCK = {
    "self_norm": "self_attn_layer_norm",
    "self_attention.out_proj": "self_attn.out_proj",
    "mlp_norm": "final_layer_norm",
    "mlp.0": "fc1",
    "mlp.3": "fc2",
}


def spec_augment(
    features: Float[Tensor, "batch frames mels"],
    keep: Bool[Tensor, "batch frames"] | None = None,
    *,
    generator: torch.Generator,
    time_masks: int = 2,
    time_width: int = 40,
    time_share: float = 0.2,
    band_masks: int = 2,
    band_width: int = 15,
) -> Float[Tensor, "batch frames mels"]:
    """Hide random stretches of time and bands of pitch, for training.

    Each mask starts anywhere and is up to ``time_width`` frames or ``band_width`` bands wide, drawn
    anew for every sound. What is hidden becomes the sound's mean, so that its level tells nothing.
    Warping of time, which the paper found to matter least, is left out.

    Args:
        features: Log-mel frames.
        keep: Which frames exist; the masks in time stay inside.
        generator: Draws the masks.
        time_masks: Masks in time.
        time_width: Most frames of one.
        time_share: Most frames of one, as a share of the sound's.
        band_masks: Masks in pitch.
        band_width: Most bands of one.

    Returns:
        The frames with parts hidden; frames that do not exist are as they were.

    Raises:
        TypeError: ``keep`` is not boolean.
        ValueError: a wrong shape, or a number out of its range.
    """
    _check_features(features, keep, None)
    batch, frames, mels = features.shape
    if min(time_masks, time_width, band_masks, band_width) < 0 or not 0.0 <= time_share <= 1.0:
        raise ValueError(
            "numbers and widths of masks must be at least 0 and time_share in [0, 1]: got "
            f"{time_masks}, {time_width}, {band_masks}, {band_width} and {time_share}"
        )
    if keep is None:
        keep = torch.ones(batch, frames, dtype=torch.bool, device=features.device)
    lengths = keep.sum(dim=1)
    widest = (time_share * lengths).long().clamp(max=time_width)
    in_time = _draw_masks(frames, time_masks, widest, lengths, generator)
    every = torch.full_like(lengths, mels)
    in_pitch = _draw_masks(mels, band_masks, every.clamp(max=band_width), every, generator)
    hidden = (in_time[:, :, None] | in_pitch[:, None, :]) & keep[:, :, None]
    mean = mean_tokens(features, keep).mean(dim=1)
    return torch.where(hidden, mean[:, None, None], features)


def _draw_masks(
    size: int, count: int, widest: Tensor, ends: Tensor, generator: torch.Generator
) -> Tensor:
    """Union of ``count`` stretches of each row, up to ``widest`` long, before ``ends``."""
    drawn = torch.rand(2, len(ends), count, generator=generator, device=generator.device)
    drawn = drawn.to(ends.device)
    width = (drawn[0] * (widest[:, None] + 1)).long()
    start = (drawn[1] * (ends[:, None] - width + 1)).long()
    at = torch.arange(size, device=ends.device)
    inside = (at >= start[..., None]) & (at < (start + width)[..., None])
    return inside.any(dim=1)


def _silence(x: Tensor, keep: Tensor | None) -> Tensor:
    """Zeros where nothing is: what a convolution sees beyond the end of a sound."""
    return x if keep is None else x.masked_fill(~keep[:, None, :], 0.0)


def _sinusoids(length: int, dim: int) -> Tensor:
    r"""Whisper's positions: :math:`\sin t\omega_i`, then :math:`\cos t\omega_i`.

    :math:`\omega_i = 10000^{-i / (d/2 - 1)}`, while :func:`mmlib.positions.sinusoids` has
    :math:`10000^{-2i/d}` and the two by turns. In float32 as Whisper's own, with which it was
    trained: at position 1500 that is 1e-4 beside the exact values.
    """
    step = math.log(10000.0) / (dim // 2 - 1)
    frequency = torch.exp(-step * torch.arange(dim // 2, dtype=torch.float32))
    angle = torch.arange(length, dtype=torch.float32)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def _check_features(features: Tensor, keep: Tensor | None, mels: int | None) -> None:
    wrong_width = mels is not None and features.shape[-1] != mels
    if features.ndim != 3 or wrong_width or 0 in features.shape:
        raise ValueError(
            f"features must have shape (batch, frames, {mels or 'mels'}), not empty: "
            f"got {tuple(features.shape)}"
        )
    if keep is not None:
        if keep.dtype != torch.bool:
            raise TypeError(f"keep must be boolean (True = exists): got {keep.dtype}")
        if keep.shape != features.shape[:2]:
            raise ValueError(
                f"keep must be (batch, frames) as features, {tuple(features.shape[:2])}: "
                f"got {tuple(keep.shape)}"
            )
