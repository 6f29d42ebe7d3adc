r"""One encoder–decoder over pictures, text, sound and clips: chapter 12.

Whatever is there becomes tokens (:mod:`mmlib.multimodal_embeddings`), each marked with its place
and its modality; one encoder reads them all, and one decoder writes: words, or frames of sound.
The first token that the decoder is given says which task is meant, as in Whisper.

References:
    Kaiser et al., *One Model To Learn Them All*, 2017. Radford et al., *Robust Speech Recognition
    via Large-Scale Weak Supervision*, 2022 (tasks as tokens). Ren et al., *FastSpeech*, NeurIPS
    2019 (durations). Yang et al., *Vid2Seq*, CVPR 2023 (events and their times as words).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmlib.block import LayerCache, LayerWeights, TransformerConfig
from mmlib.data.batch import MODALITIES, Batch
from mmlib.durations import regulate
from mmlib.encoders.mel import LogMelConfig
from mmlib.encoders.pooling import mean_tokens
from mmlib.multimodal_embeddings import SoundEmbedding, VisualEmbedding
from mmlib.positions import SinusoidalPositions
from mmlib.transformer import Decoder, Encoder

__all__ = ["Memory", "MultimodalConfig", "MultimodalTransformer"]


@dataclass(frozen=True)
class MultimodalConfig:
    """Sizes of a :class:`MultimodalTransformer`.

    Attributes:
        vocab: Ids of words and tasks. Id 0 is padding, and the blank of CTC.
        dim: Width of the tokens, even.
        heads: Attention heads; must divide ``dim``.
        layers: Blocks of the encoder.
        decoder_layers: Blocks of the decoder.
        cnn_width: Channels of the convolutional network before pictures and frames.
        motion_width: Channels of the one that sees motion.
        image_size: Height and width of pictures and frames, a multiple of 8.
        voices: How many voices the model can speak with.
        step: Log-mel frames that one step of the decoder speaks.
        max_length: Most tokens of one modality, of a text or of a spoken sentence.
        dropout: Probability.
        log_mel: How sound becomes frames, heard and spoken.

    Raises:
        ValueError: a number out of its range.
    """

    vocab: int
    dim: int = 128
    heads: int = 4
    layers: int = 3
    decoder_layers: int = 2
    cnn_width: int = 64
    motion_width: int = 24
    image_size: int = 32
    voices: int = 1
    step: int = 4
    max_length: int = 512
    dropout: float = 0.0
    log_mel: LogMelConfig = LogMelConfig()

    def __post_init__(self) -> None:
        for name in ("vocab", "voices", "step"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1: got {getattr(self, name)}")
        if self.image_size < 8 or self.image_size % 8:
            raise ValueError(f"image_size must be a multiple of 8: got {self.image_size}")
        if self.dim < 2 or self.dim % 2:
            raise ValueError(f"dim must be even and at least 2: got {self.dim}")
        self.transformer(self.layers), self.transformer(self.decoder_layers)  # check the rest

    def transformer(self, layers: int) -> TransformerConfig:
        """The part of the configuration that a stack of this many blocks needs."""
        return TransformerConfig(
            dim=self.dim,
            heads=self.heads,
            layers=layers,
            dropout=self.dropout,
            max_length=self.max_length,
        )


class Memory(NamedTuple):
    """What the encoder has made of all modalities, and what the decoder reads.

    Attributes:
        tokens: One vector a token, those of one modality after those of another.
        keep: Which tokens exist.
        modality: Number of each token's modality in :data:`mmlib.data.batch.MODALITIES`.
        weights: Attention weights of each layer of the encoder, where they were asked for.
        stems: The tokens before the encoder.
    """

    tokens: Float[Tensor, "batch length dim"]
    keep: Bool[Tensor, "batch length"]
    modality: Int[Tensor, " length"]
    weights: list[LayerWeights] | None = None
    stems: Float[Tensor, "batch length dim"] | None = None

    def of(self, name: str) -> "Memory":
        """The tokens of one modality; there may be none.

        Raises:
            ValueError: there is no such modality.
        """
        if name not in MODALITIES:
            raise ValueError(f"name must be one of {', '.join(MODALITIES)}: got {name!r}")
        here = self.modality == MODALITIES.index(name)
        return Memory(self.tokens[:, here], self.keep[:, here], self.modality[here])

    def select(self, rows: Int[Tensor, " new_batch"]) -> "Memory":
        """These rows of the batch, in this order."""
        return self._replace(
            tokens=self.tokens[rows], keep=self.keep[rows], weights=None, stems=None
        )


class MultimodalTransformer(nn.Module):
    r"""Any subset of modalities in; words, or frames of sound, out.

    With :math:`e_m` the tokens of modality :math:`m`, :math:`P` their places and :math:`t_m` a
    vector that says which modality they are of,

    .. math::

        M = \operatorname{Encoder}\big([\,e_m + P_m + t_m\,]_{m \text{ is there}}\big), \qquad
        p(y_t \mid y_{<t}) = \operatorname{softmax}(E\, \operatorname{Decoder}(E y_{<t} + P, M) + b)

    A modality that is missing has no tokens, for one item (its tokens are not attended to) or for
    all; nothing stands in its stead. The vectors :math:`e_m` are those of an embedding table for
    words, and of :mod:`mmlib.multimodal_embeddings` for the rest. Places in a text and in time are
    sinusoids; a learned vector stands for each place in a picture.

    Attributes:
        config: Sizes.
    """

    def __init__(self, config: MultimodalConfig) -> None:
        super().__init__()
        self.config, dim = config, config.dim
        self.words = nn.Embedding(config.vocab, dim)
        nn.init.normal_(self.words.weight, std=dim**-0.5)
        self.visual = VisualEmbedding(dim, config.cnn_width, config.motion_width)
        self.sound = SoundEmbedding(dim, config.log_mel)
        self.modality = nn.Embedding(len(MODALITIES), dim)
        self.places = nn.Parameter(torch.empty((config.image_size // 8) ** 2, dim))
        for table in (self.modality.weight, self.places):
            nn.init.normal_(table, std=0.5)
        self.positions = SinusoidalPositions(dim, config.max_length)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = Encoder(config.transformer(config.layers))
        self.decoder = Decoder(config.transformer(config.decoder_layers))
        self.output_bias = nn.Parameter(torch.zeros(config.vocab))
        self.ctc_head = nn.Linear(dim, config.vocab)
        self.duration_head = nn.Linear(dim, 1)
        self.voices = nn.Embedding(config.voices, dim)
        self.since, self.until = (nn.Linear(dim, dim) for _ in range(2))
        self.frames_head = nn.Linear(dim, config.step * config.log_mel.mels)
        self.bag_head = nn.Linear(2 * dim, config.vocab)

    def embed(
        self, batch: Batch
    ) -> tuple[
        Float[Tensor, "batch length dim"], Bool[Tensor, "batch length"], Int[Tensor, " length"]
    ]:
        """Tokens of all modalities, one after the other, before the encoder; see :class:`Memory`.

        Raises:
            ValueError: the batch has no modality, pictures or frames are of another size, or a
                modality has more than ``max_length`` tokens.
        """
        if not batch.modalities:
            raise ValueError(f"batch must hold a modality: got {batch}")
        parts = []
        for name in batch.modalities:
            tokens, keep = getattr(self, f"_embed_{name}")(batch)
            number = MODALITIES.index(name)
            kind = torch.full(tokens.shape[1:2], number, device=tokens.device)
            parts.append((tokens + self.modality.weight[number], keep, kind))
        tokens, keep, kind = zip(*parts, strict=True)
        return self.dropout(torch.cat(tokens, dim=1)), torch.cat(keep, dim=1), torch.cat(kind)

    def encode(self, batch: Batch, *, return_weights: bool = False) -> Memory:
        """Read whatever the batch holds; raises what :meth:`embed` raises."""
        stems, keep, modality = self.embed(batch)
        x, weights = self.encoder(stems, keep, return_weights=return_weights)
        return Memory(x, keep, modality, weights, stems)

    def write(
        self,
        memory: Memory,
        ids: Int[Tensor, "batch length"],
        *,
        cache: list[LayerCache] | None = None,
        return_weights: bool = False,
    ) -> tuple[Float[Tensor, "batch length vocab"], list[LayerWeights] | None]:
        """Logits of the word after each of ``ids``, the first of which names the task.

        Args:
            memory: What was read.
            ids: What was written so far; with a cache of ``decoder.new_cache()`` only what is new.
            cache: Earlier words; it grows.
            return_weights: Return the decoder's attention weights too.
        """
        offset = len(cache[0].self_attention) if cache else 0
        x = self.positions(self.config.dim**0.5 * self.words(ids), offset)
        x, weights = self.decoder(
            self.dropout(x),
            memory.tokens,
            memory_keep=memory.keep,
            cache=cache,
            return_weights=return_weights,
        )
        return F.linear(x, self.words.weight, self.output_bias), weights

    def forward(
        self, batch: Batch, ids: Int[Tensor, "batch length"]
    ) -> Float[Tensor, "batch length vocab"]:
        """Read and write: logits of the word after each of ``ids``."""
        return self.write(self.encode(batch), ids)[0]

    def ctc_logits(
        self, memory: Memory
    ) -> tuple[Float[Tensor, "batch tokens vocab"], Bool[Tensor, "batch tokens"]]:
        """A word or the blank (id 0) for each token of sound, and which tokens exist."""
        heard = memory.of("audio")
        return self.ctc_head(heard.tokens), heard.keep

    def bag_logits(self, memory: Memory) -> Float[Tensor, "batch vocab"]:
        """Which words a text about pictures or clips will hold, by what their stems see.

        Neither encoder nor decoder has a part in it: in training it shows the stems, by the
        shortest way, what there is to be seen.

        Raises:
            ValueError: neither pictures nor clips were read, or the memory was selected from.
        """
        shown = memory.modality == MODALITIES.index("images")
        shown |= memory.modality == MODALITIES.index("video")
        if memory.stems is None or not bool(shown.any()):
            raise ValueError("memory must be that of pictures or clips, as encode gives it")
        tokens, keep = memory.stems[:, shown], memory.keep[:, shown]
        most = tokens.masked_fill(~keep[..., None], -torch.inf).amax(1)
        most = torch.where(keep.any(1, keepdim=True), most, 0.0)
        return self.bag_head(torch.cat([most, mean_tokens(tokens, keep)], dim=1))

    def log_durations(self, memory: Memory) -> Float[Tensor, "batch tokens"]:
        """Logarithm of 1 + the steps that each token of the text takes to say."""
        return self.duration_head(memory.of("text").tokens).squeeze(-1)

    def speak(
        self,
        memory: Memory,
        durations: Int[Tensor, "batch tokens"],
        voices: Int[Tensor, " batch"],
    ) -> tuple[Float[Tensor, "batch frames mels"], Bool[Tensor, "batch frames"]]:
        r"""Log-mel frames of a text that is said at a given speed.

        Token :math:`i` is repeated :math:`n_i` times, and each copy knows how many there were
        since the token began and how many come until it ends:

        .. math:: q_{i,k} = m_i + W_s P_k + W_u P_{n_i - 1 - k} + v

        The decoder that writes words reads these instead; ``config.step`` frames come of each.

        Args:
            memory: What was read; it holds a text.
            durations: Steps of each token of the text, at least 0; those that do not exist are
                left out.
            voices: Number of the voice for each item.

        Returns:
            Frames, zeros where there are none, and which exist.

        Raises:
            ValueError: ``durations`` do not fit the text, one is negative, a text has no step, or
                is longer than ``max_length`` steps.
        """
        text = memory.of("text")
        if durations.shape != text.keep.shape or bool((durations < 0).any()):
            raise ValueError(
                f"durations must be at least 0, one for each of {tuple(text.keep.shape)} tokens: "
                f"got shape {tuple(durations.shape)}"
            )
        owner, since, until, keep = regulate(durations * text.keep)
        if owner.shape[1] > self.config.max_length or not bool(keep.any(1).all()):
            raise ValueError(
                f"each text must take 1 to {self.config.max_length} steps: "
                f"got {keep.sum(1).tolist()}"
            )
        copied = text.tokens.gather(1, owner[..., None].expand(-1, -1, self.config.dim))
        table = self.positions.table.to(copied.dtype)
        x = copied + self.since(table[since]) + self.until(table[until])
        # The decoder looks back only, so that the steps behind a shorter text disturb nothing.
        x, _ = self.decoder(
            self.dropout(x + self.voices(voices)[:, None]),
            memory.tokens,
            memory_keep=memory.keep,
        )
        frames = rearrange(
            self.frames_head(x), "b steps (n mels) -> b (steps n) mels", n=self.config.step
        )
        keep = keep.repeat_interleave(self.config.step, dim=1)
        return frames.masked_fill(~keep[..., None], 0.0), keep

    def _embed_images(self, batch: Batch) -> tuple[Tensor, Tensor]:
        self._check_size(batch.images)
        tokens = self.visual.pictures(batch.images) + F.pad(self.places, (0, 0, 0, 1))
        return tokens, batch.images_keep[:, None].expand(tokens.shape[:2])

    def _embed_video(self, batch: Batch) -> tuple[Tensor, Tensor]:
        video, keep = batch.video, batch.video_keep
        self._check_size(video)
        # A frame that does not exist is the one before it: nothing moves.
        last = torch.where(keep, torch.arange(keep.shape[1], device=keep.device), 0).cummax(1)[0]
        video = video.gather(1, last[:, :, None, None, None].expand_as(video))
        tokens = self.visual.clips(video)
        times = tokens.shape[1]
        if times > self.config.max_length:
            raise ValueError(f"a clip has at most {self.config.max_length} times: got {times}")
        tokens = tokens + self.positions.table[:times, None].to(tokens.dtype)
        keep = keep[:, :: self.visual.stride].repeat_interleave(2, dim=1)
        return tokens.flatten(1, 2), keep

    def _check_size(self, pictures: Tensor) -> None:
        size = (3, self.config.image_size, self.config.image_size)
        if tuple(pictures.shape[-3:]) != size or not pictures.is_floating_point():
            raise ValueError(
                f"pictures and frames must be floating point, of shape {size}: "
                f"got {pictures.dtype}, {tuple(pictures.shape[-3:])}"
            )

    def _embed_text(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.positions(self.config.dim**0.5 * self.words(batch.text)), batch.text_keep

    def _embed_audio(self, batch: Batch) -> tuple[Tensor, Tensor]:
        tokens, keep = self.sound(batch.audio, batch.audio_keep)
        return self.positions(tokens), keep
