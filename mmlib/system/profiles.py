"""The sizes of the system, from a minute on a CPU to some on a large GPU.

One dataclass says everything that a run depends on; a profile is one value of it, and every field
can be set on the command line: ``--dim 256 --instruction-steps 4000``. What the GPU profiles take
is worked out (:func:`cost`); they have not been run whole.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from mmlib.data import scenes
from mmlib.system import smollm
from mmlib.system.faster import recomputed
from mmlib.system.lessons import INSTRUCTIONS, PRETRAINING, Menu
from mmlib.system.model import LanguageConfig, MultimodalLM
from mmlib.system.sequence import Rows
from mmlib.system.words import Marker
from mmlib.training import TrainConfig
from mmlib.training.step_cost import StepCost, step_cost

__all__ = ["PROFILES", "SystemConfig", "cost", "read_config", "write_config"]

#: Width, heads and blocks of chapter 11's DALL·E.
PAINTER = (128, 4, 4)
#: Width of a region's features in chapter 10's CLIP, four joined, and in EfficientNet-Lite0.
REGION_DIM, IMAGENET_DIM = 256, 1280
#: What the language model may be.
BACKBONES = ("own", "smollm2-135m")
#: How a run is done, and not what: it may go on otherwise. That the batches of a step stay as many
#: over all processes is seen to by :func:`mmlib.training.durable.fit_durably`.
_HOW = ("accumulate", "compile", "recompute", "shard")


@dataclass(frozen=True)
class SystemConfig:
    """Everything that a run depends on.

    Attributes:
        clip_steps: Steps of stage 1; 0 takes the weights of chapter 10.
        autoencoder_steps: Steps of stage 2; 0 takes those of chapter 09.
        pretraining_steps: Steps of stage 3: captions and drawings.
        instruction_steps: Steps of stage 4: questions, requests, dialogues; 0 leaves it out.
        lora_rank: Rank of the additions that stage 4 trains; 0 trains all weights.
        from_painter: Whether stage 3 begins with the blocks, codes and words of chapter 11's
            DALL·E (:func:`mmlib.system.stages.begin_with_painter`), whose sizes it must have.
        backbone: ``"own"``, or ``"smollm2-135m"`` for a language model that is pretrained, with its
            own words (:mod:`mmlib.system.smollm`); ``dim``, ``heads`` and ``layers`` are then not
            looked at, and ``dropout`` is that of what enters the blocks. Chinese takes more of its
            words, and needs a ``row`` of 256.
        dim: Width of the language model.
        heads: Its attention heads.
        layers: Its blocks.
        dropout: Its dropout.
        code_weight: What a code counts in the loss beside a word.
        documents: Documents of a batch.
        accumulate: Batches of a step.
        row: Tokens of a row into which documents are packed.
        learning_rate: The peak in stage 3.
        instruction_rate: The peak in stage 4.
        weight_decay: Of matrices.
        pool: How many scenes to look at, and to draw, lessons are about.
        most_objects: Of a scene that is looked at.
        kinds: Of questions.
        questions: Most questions about a picture in a lesson.
        looks: Share of the lessons with questions that begin with a description.
        emoji: Share of emoji among captions and drawings.
        clipart: Share of clip art, likewise.
        photos: A folder of COCO and VQAv2, or in their format (:mod:`mmlib.system.photos`); none
            by default.
        photo_share: Share of photographs among captions and questions, where there are some.
        imagenet: Whether a network that knows ImageNet looks at pictures, too
            (:class:`mmlib.system.pictures.Pictures`): for photographs, clip art and emoji.
        chinese: Share of documents in Chinese in stage 4.
        pretraining_chinese: The same in stage 3.
        hide: Largest share of hidden codes.
        drop: Share of drawings without a text.
        guidance: With which is drawn.
        temperature: With which is drawn.
        candidates: Pictures that are drawn for each that is shown; CLIP chooses.
        blind: Replace pictures that are looked at by zeros: the baseline with the question alone.
        mute: Leave the words of questions out: the baseline with the picture alone.
        untrained_clip: Look through a CLIP that has learned nothing: the system without stage 1.
        precision: ``"fp32"``, ``"bf16"`` or ``"auto"``.
        compile: Compile the blocks: :func:`mmlib.system.faster.compiled`.
        recompute: Keep no activations inside of blocks: :func:`mmlib.system.faster.recomputed`.
        shard: Divide weights, gradients and the optimiser's state among the processes (FSDP):
            :class:`mmlib.training.sharded.ShardedModel`, in stages 3 and 4.
        evaluate_every: Steps between evaluations.
        checkpoint_every: Steps between checkpoints.
        skip: Steps in a row that may have a loss that is not a number.
        seed: Of weights and batches.

    Raises:
        ValueError: a number out of its range.
    """

    clip_steps: int = 0
    autoencoder_steps: int = 0
    pretraining_steps: int = 150
    instruction_steps: int = 100
    lora_rank: int = 0
    from_painter: bool = False
    backbone: Literal["own", "smollm2-135m"] = "own"
    dim: int = 128
    heads: int = 4
    layers: int = 4
    dropout: float = 0.0
    code_weight: float = 0.2
    documents: int = 40
    accumulate: int = 1
    row: int = 160
    learning_rate: float = 2e-3
    instruction_rate: float = 2e-3
    weight_decay: float = 0.02
    pool: int = 400
    most_objects: int = 2
    kinds: tuple[str, ...] = scenes.KINDS
    questions: int = 1
    looks: float = 0.15
    emoji: float = 0.0
    clipart: float = 0.0
    photos: str = ""
    photo_share: float = 0.4
    imagenet: bool = False
    chinese: float = 0.15
    pretraining_chinese: float = 0.5
    hide: float = 0.4
    drop: float = 0.1
    guidance: float = 1.5
    temperature: float = 0.5
    candidates: int = 1
    blind: bool = False
    mute: bool = False
    untrained_clip: bool = False
    precision: str = "fp32"
    compile: bool = False
    recompute: bool = False
    shard: bool = False
    evaluate_every: int = 0
    checkpoint_every: int = 20
    skip: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("clip_steps", "autoencoder_steps", "instruction_steps", "lora_rank"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0: got {getattr(self, name)}")
        if self.pretraining_steps < 1:
            raise ValueError(f"pretraining_steps must be at least 1: got {self.pretraining_steps}")
        for name in ("pool", "candidates"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1: got {getattr(self, name)}")
        if self.backbone not in BACKBONES:
            raise ValueError(f"backbone must be one of {BACKBONES}: got {self.backbone!r}")
        if self.from_painter and self.backbone != "own":
            raise ValueError(
                "from_painter must be off with a pretrained backbone, which has blocks of its own: "
                f"got {self.backbone!r}"
            )
        chinese = max(self.chinese, self.pretraining_chinese) > 0
        if self.backbone != "own" and chinese and self.row < 256:
            raise ValueError(
                "row must be at least 256 for Chinese in the words of a pretrained backbone "
                f"(or chinese and pretraining_chinese 0): got {self.row}"
            )
        if self.from_painter and (self.dim, self.heads, self.layers) != PAINTER:
            raise ValueError(
                "from_painter needs the painter's dim, heads and layers, "
                f"{PAINTER}: got {(self.dim, self.heads, self.layers)}"
            )
        # The parts check the rest, before an hour has gone.
        self.language(1)
        for stage in (3, 4):
            self.menu(stage)
            if stage == 3 or self.instruction_steps:
                self.training(stage)

    def language(self, words: int) -> LanguageConfig:
        """Sizes of the language model for so many words."""
        sizes = {"dim": self.dim, "heads": self.heads, "layers": self.layers}
        if self.backbone != "own":
            sizes = {
                "dim": smollm.SIZES["hidden_size"],
                "heads": smollm.SIZES["num_attention_heads"],
                "layers": smollm.SIZES["num_hidden_layers"],
                "length": smollm.LENGTH,
            }
        return LanguageConfig(
            words,
            feature_dim=REGION_DIM + IMAGENET_DIM * self.imagenet,
            dropout=self.dropout,
            code_weight=self.code_weight,
            **sizes,
        )

    def menu(self, stage: int) -> Menu:
        """What the batches of stage 3 or 4 are made of."""
        return Menu(
            dict(PRETRAINING if stage == 3 else INSTRUCTIONS),
            documents=self.documents,
            length=self.row,
            objects=(1, self.most_objects),
            kinds=self.kinds,
            questions=self.questions,
            looks=self.looks,
            emoji=self.emoji,
            clipart=self.clipart,
            photos=self.photo_share if self.photos else 0.0,
            chinese=self.pretraining_chinese if stage == 3 else self.chinese,
            hide=self.hide,
            drop=self.drop,
            blind=self.blind,
            mute=self.mute,
        )

    def training(self, stage: int) -> TrainConfig:
        """How stage 3 or 4 is trained."""
        steps = self.pretraining_steps if stage == 3 else self.instruction_steps
        return TrainConfig(
            steps,
            learning_rate=self.learning_rate if stage == 3 else self.instruction_rate,
            warmup=steps // 20,
            weight_decay=self.weight_decay,
            accumulate=self.accumulate,
            precision=self.precision,
            seed=self.seed + stage,
            evaluate_every=self.evaluate_every,
            checkpoint_every=self.checkpoint_every,
        )


#: By name. Chosen for: a test; an hour on two cores; an hour on a T4; some minutes on an H100.
PROFILES: Mapping[str, SystemConfig] = MappingProxyType(
    {
        "smoke": SystemConfig(  # in one language: a minute is not enough for two
            pretraining_steps=100,
            instruction_steps=200,
            from_painter=True,
            chinese=0.0,
            pretraining_chinese=0.0,
        ),
        "cpu": SystemConfig(
            pretraining_steps=800,
            instruction_steps=16_000,
            instruction_rate=1e-3,
            code_weight=0.1,
            looks=0.05,
            chinese=0.25,
            from_painter=True,
            pool=30_000,
            emoji=0.03,
            candidates=4,
            precision="auto",
            evaluate_every=4000,
            checkpoint_every=500,
        ),
        "t4": SystemConfig(
            pretraining_steps=20_000,
            instruction_steps=20_000,
            dim=384,
            heads=6,
            layers=8,
            dropout=0.05,
            documents=64,
            learning_rate=1e-3,
            instruction_rate=1e-3,
            pool=100_000,
            most_objects=3,
            emoji=0.05,
            clipart=0.05,
            candidates=4,
            evaluate_every=2000,
            checkpoint_every=1000,
        ),
        "h100": SystemConfig(
            pretraining_steps=6000,
            instruction_steps=24_000,
            dim=512,
            heads=8,
            layers=8,
            dropout=0.05,
            code_weight=0.1,
            documents=256,
            row=384,
            learning_rate=1e-3,
            instruction_rate=6e-4,
            looks=0.05,
            chinese=0.3,
            pool=30_000,
            emoji=0.03,
            clipart=0.02,
            candidates=16,
            precision="bf16",
            compile=True,
            evaluate_every=2000,
            checkpoint_every=1000,
        ),
    }
)


def cost(config: SystemConfig, words: int | None = None, filled: float = 0.92) -> StepCost:
    """What one batch of stage 4 costs, worked out without doing the work.

    Args:
        config: The sizes.
        words: Size of the vocabulary, by default that of the words that go with the backbone.
        filled: Share of the rows that documents fill. A document of stage 4 has 44 tokens in the
            mean; 4 in 5 look at a picture, 1 in 5 draws one, and 3.5 words are told.

    >>> cost(PROFILES["smoke"]).parameters
    1440006
    """
    # The CPU's fused attention, in which the fake step runs, knows no dropout, and the plain one
    # keeps all weights of attention: a GPU's fused attention does not.
    own = config.backbone == "own"
    if words is None:
        words = 2054 if own else smollm.SIZES["vocab_size"] + len(Marker)
    sizes = dataclasses.replace(config, dropout=0.0).language(words)
    rows = max(1, round(44 * config.documents / filled / config.row))
    drawn, looked = round(0.2 * config.documents), round(0.82 * config.documents)
    told = round(3.5 * config.documents)

    def batch() -> Rows:
        table = torch.zeros(rows, config.row, dtype=torch.long)
        return Rows(
            *(table.clone() for _ in range(3)),
            table.bool(),
            table.clone(),
            torch.zeros(looked, sizes.regions, sizes.feature_dim),
            *(torch.zeros(told, dtype=torch.long) for _ in range(2)),
            *(torch.zeros(drawn * sizes.places, dtype=torch.long) for _ in range(2)),
        )

    def model() -> MultimodalLM:
        if own:
            return MultimodalLM(sizes, torch.zeros(512, 32))
        pretrained = smollm.PretrainedLM(sizes, torch.zeros(512, 32))
        pretrained.learn(4, config.lora_rank)
        return pretrained

    def loss(model: MultimodalLM, rows: Rows) -> tuple[Tensor, Tensor]:
        with recomputed(model.decoder.blocks, config.recompute):
            return model.loss(rows)

    return step_cost(model, batch, loss, bf16=config.precision == "bf16")


def write_config(config: SystemConfig, folder: Path) -> None:
    """Write what a run is, or make sure that the folder's run is this one.

    A run may go on in another number of processes, with another ``accumulate``, and compiled,
    recomputed or divided otherwise than before.

    Raises:
        ValueError: the folder holds a run with another configuration; with what differs.
    """
    path = folder / "system.json"
    mine = json.loads(json.dumps(dataclasses.asdict(config)))
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        differ = [
            f"{k} was {found.get(k)!r}, is {mine[k]!r}"
            for k in mine
            if mine[k] != found.get(k) and k not in _HOW
        ]
        if differ:
            raise ValueError(f"folder {folder} is of another run: {', '.join(differ)}")
        return
    folder.mkdir(parents=True, exist_ok=True)
    # All at once: other processes of the same run may read it meanwhile.
    part = folder / f".{path.name}.{os.getpid()}.tmp"
    part.write_text(json.dumps(mine, indent=2) + "\n", encoding="utf-8")
    os.replace(part, path)


def read_config(folder: Path) -> SystemConfig:
    """What a run is.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: it is of another version of the system.
    """
    path = folder / "system.json"
    if not path.exists():
        raise FileNotFoundError(f"there is no run in {folder}: it has no {path.name}")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    names = {field.name for field in dataclasses.fields(SystemConfig)}
    if set(found) != names:
        odd = sorted(set(found) ^ names)
        raise ValueError(f"{path} is of another version of the system: {', '.join(odd)}")
    return SystemConfig(**found | {"kinds": tuple(found["kinds"])})
