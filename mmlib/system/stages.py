"""The four stages of training, each in a folder from which it can be continued.

::

    RUN/system.json      what the run is
    RUN/1_clip/          stage 1, where it is trained and not taken from chapter 10
    RUN/2_autoencoder/   stage 2, likewise, chapter 09
    RUN/3_pretraining/   stage 3: captions and drawings
    RUN/4_instructions/  stage 4: questions, requests and dialogues
    RUN/tensorboard/     losses and samples of the stages, for TensorBoard (the command writes it)
    RUN/*.safetensors    the weights of each part, written when all is done

The same command goes on where it was stopped: a stage that is complete is read and not trained.

Several processes (``torchrun``) train each stage on one global batch a step, and with its
gradients, but for rounding:

- in stages 1 and 2 on the batch that one process would take: 128 pairs or 64 pictures, of which
  each of P processes, which must divide them, takes 1/P (:mod:`mmlib.system.together`);
- in stages 3 and 4 on P times ``accumulate`` batches of ``documents``: what one process takes that
  accumulates P times as many.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mmlib.adapters import Adapters
from mmlib.clip import CLIP
from mmlib.data import scenes
from mmlib.discrete_vae import DiscreteVAE, DiscreteVAEConfig
from mmlib.painters import scene_dalle, tokenizer
from mmlib.small_clips import scene_clip, scene_ids, scene_tokenizer
from mmlib.system import smollm
from mmlib.system.faster import Ahead, attention_kernel, compiled, recomputed, workers
from mmlib.system.lessons import Lessons
from mmlib.system.material import Material
from mmlib.system.model import MultimodalLM
from mmlib.system.photos import Photos
from mmlib.system.pictures import Pictures
from mmlib.system.profiles import PROFILES, SystemConfig, read_config, write_config
from mmlib.system.tasks import Writer
from mmlib.system.together import autoencoder_loss, own_part, together
from mmlib.system.words import Words, words
from mmlib.tokenizer_training import TrainingBatch
from mmlib.training import TrainConfig, load_weights, save_weights
from mmlib.training.accelerator import accelerator
from mmlib.training.distributed import is_main
from mmlib.training.durable import fit_durably

__all__ = [
    "ADAPTED",
    "CHECKPOINT",
    "System",
    "begin_with_painter",
    "load_system",
    "new_system",
    "photos_of",
    "shipped_system",
    "train_system",
]

#: The language model that profile ``cpu`` has trained.
CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "16_system.safetensors"
#: Linear layers of a block to which LoRA adds in stage 4.
ADAPTED = ("qkv_proj", "out_proj", "mlp.0", "mlp.3")
#: What each object's errors count for in stage 2; see :func:`mmlib.tokenizer_training.object_loss`.
OBJECT_WEIGHT = 800


@dataclass(frozen=True, eq=False)
class System:
    """All parts together.

    Attributes:
        config: What the run was.
        pictures: Stages 1 and 2.
        language: Stages 3 and 4.
        known: The words.
    """

    config: SystemConfig
    pictures: Pictures
    language: MultimodalLM
    known: Words

    @property
    def writer(self) -> Writer:
        """Writes documents in the system's words."""
        return Writer(self.known)


def train_system(
    config: SystemConfig,
    folder: Path | str,
    *,
    sample: Callable[[System, Path], None] | None = None,
    progress: bool = True,
) -> System:
    """Train all stages, or go on with them.

    With ``config.shard`` the language model is divided among the processes in stages 3 and 4; the
    models of stages 1 and 2 are small, have weights without an axis, and stay whole.

    Args:
        config: What the run is.
        folder: Where it is kept.
        sample: Writes what the system makes into a folder; called after each evaluation.
        progress: Whether to show progress bars.

    Raises:
        ValueError: the folder is of another run.
        SystemExit: SIGTERM came; the state is saved.
    """
    folder = Path(folder)
    write_config(config, folder)
    with accelerator("fp32", cpu=not torch.accelerator.is_available()):
        pass  # processes know of each other from here on, and of their GPUs
    clip = _clip(config, folder / "1_clip", progress)
    autoencoder = _autoencoder(config, folder / "2_autoencoder", progress)
    system = placed(new_system(config, clip, autoencoder))
    if config.from_painter:
        begin_with_painter(system)
    objects = (1, config.most_objects)
    drawings = [name for name in ("emoji", "clipart") if getattr(config, name)]
    photos = photos_of(system, "train") if config.photos else None
    material = Material(
        system.pictures, config.pool, objects, config.seed + 3, drawings=drawings, photos=photos
    )
    for stage, name in ((3, "3_pretraining"), (4, "4_instructions")):
        if stage == 3 or config.instruction_steps:
            _learn(system, material, stage, folder / name, sample, progress)
    round_weights(system.language)
    if is_main():
        card = {"command": "python -m mmlib.system train", "seed": config.seed}
        parts = {"clip": clip, "autoencoder": autoencoder, "language": system.language}
        for part, model in parts.items():
            save_weights(model, folder / f"{part}.safetensors", card, dtype=torch.bfloat16)
    return system


def new_system(
    config: SystemConfig, clip: CLIP, autoencoder: DiscreteVAE, *, pretrained: bool = True
) -> System:
    """A system whose language model has not learned anything, or what its backbone has.

    Args:
        config: What the run is.
        clip: Stage 1.
        autoencoder: Stage 2.
        pretrained: Whether to read the weights of a pretrained backbone; False where others are
            loaded at once.
    """
    known = words() if config.backbone == "own" else smollm.smollm_words()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        sizes, codebook = config.language(known.size), autoencoder.codebook
        if config.backbone == "own":
            language = MultimodalLM(sizes, codebook)
        elif pretrained:
            language = smollm.language_model(sizes, codebook, known)
        else:
            language = smollm.PretrainedLM(sizes, codebook)
    pictures = Pictures(clip, autoencoder, imagenet=config.imagenet)
    return System(config, pictures, language, known)


def photos_of(system: System, split: str, most: int | None = None) -> Photos:
    """The photographs of a run, with the captions and questions that fit into a row.

    Args:
        system: Looks at them, and says where they are.
        split: ``"train"`` or ``"val"``.
        most: How many at most.

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: nothing fits.
    """
    config, known = system.config, system.known
    # Beside a picture, a request and markers: a description, then questions.
    room = (config.row - system.language.config.regions - 32) // (1 + config.questions)
    return Photos(
        config.photos,
        split,
        system.pictures,
        fits=lambda text: len(known.encode(text)) <= room,
        most=most,
    )


def load_system(folder: Path | str) -> System:
    """The system of a run that is complete, in evaluation mode.

    Raises:
        FileNotFoundError: there is no run, or it is not complete.
        ValueError: a file is damaged, or of another version.
    """
    folder = Path(folder)
    config = read_config(folder)
    clip, autoencoder = scene_clip(), DiscreteVAE(DiscreteVAEConfig())
    for name, model in (("clip", clip), ("autoencoder", autoencoder)):
        load_weights(model, folder / f"{name}.safetensors")
    system = new_system(config, clip.eval(), autoencoder.eval(), pretrained=False)
    load_weights(system.language, folder / "language.safetensors")
    system.language.eval()
    return placed(system)


def shipped_system() -> System:
    """The system of profile ``cpu`` as the library ships it, in evaluation mode.

    Stages 1 and 2 are chapter 10's and chapter 09's shipped weights.
    """
    system = new_system(PROFILES["cpu"], scene_clip(trained=True), tokenizer())
    load_weights(system.language, CHECKPOINT)
    system.language.eval()
    return placed(system)


def placed(system: System) -> System:
    """The system itself, on the GPU where there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    system.pictures.to(device)
    system.language.to(device)
    return system


@torch.no_grad()
def begin_with_painter(system: System) -> None:
    """Begin with what chapter 11's DALL·E has learned: its blocks, codes, and words of captions.

    A word of its captions that is one piece of ours keeps its vector; places move on by one, since
    a caption here has a marker in front. What it never had (regions, Chinese, questions, the head
    of words) stays as it was drawn.
    """
    painter, model, known = scene_dalle(trained=True), system.language, system.known
    for name in ("decoder", "code", "code_head"):
        getattr(model, name).load_state_dict(getattr(painter, name).state_dict())
    model.code_row.weight.copy_(painter.row.weight)
    model.code_column.weight.copy_(painter.column.weight)
    places = painter.word_position.weight
    model.word_place.weight[1 : 1 + len(places)] = places
    its = scene_tokenizer()
    for token, vector in enumerate(painter.word.weight):
        word = its.decode(torch.tensor([[token]]), torch.ones(1, 1, dtype=torch.bool))[0]
        ids = known.encode(word) if word else []
        if len(ids) == 1:
            model.word.weight[ids[0]] = vector


@torch.no_grad()
def round_weights(model: nn.Module) -> None:
    """Round weights to bf16, as they are kept, so that what is measured is what is kept."""
    for tensor in model.state_dict().values():  # no more than what is kept
        if tensor.is_floating_point():
            tensor.copy_(tensor.bfloat16())


def _learn(
    system: System,
    material: Material,
    stage: int,
    folder: Path,
    sample: Callable[[System, Path], None] | None,
    progress: bool,
) -> None:
    """Stage 3 or 4."""
    config, model = system.config, system.language
    lessons = Lessons(material, system.writer, config.menu(stage), config.seed + stage)
    batches = Ahead(lessons, workers()) if workers() else lessons
    rank = config.lora_rank if stage == 4 else 0
    if isinstance(model, smollm.PretrainedLM):
        adapters = model.learn(stage, rank, config.seed)
    else:
        adapters = Adapters(model, ADAPTED, heads=("word_head",)) if rank else None
        if adapters is not None:
            adapters.add("instructions", rank, seed=config.seed)
    held_back = [lessons(-1 - number) for number in range(2)]

    def evaluate(model: MultimodalLM) -> float:
        device = next(model.parameters()).device
        parts = [model.loss(rows.to(device)) for rows in held_back]
        return -float(sum(total for total, _ in parts) / sum(count for _, count in parts))

    blocks = model.decoder.blocks
    with recomputed(blocks, config.recompute), compiled(model, config.compile), attention_kernel():
        _fit(
            model,
            lambda model, rows: model.loss(rows),
            batches,
            config.training(stage),
            folder,
            progress,
            evaluate=evaluate,
            sample=None if sample is None else lambda _, path: sample(system, path),
            skip=config.skip,
            shard=config.shard,
        )
    if adapters is not None:
        fold(adapters)
    model.requires_grad_(True)


def fold(adapters: Adapters) -> None:
    """Put the additions into the matrices for good, and the plain layers back into the model."""
    adapters.merge()
    for name, layer in adapters.layers.items():
        _put(adapters.model, name, layer.base)
    for name, heads in adapters.heads.items():
        _put(adapters.model, name, heads.own[adapters.active])
    adapters.model.requires_grad_(True)


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def _fit(model, loss, batches, training: TrainConfig, folder: Path, progress: bool, **more) -> None:
    shown = TrainConfig(**{**vars(training), "progress": progress})
    fit_durably(model, loss, batches, shown, folder, **more)
    model.eval()


def _small(steps: int, rate: float, config: SystemConfig) -> TrainConfig:
    return TrainConfig(
        steps,
        learning_rate=rate,
        warmup=steps // 20,
        weight_decay=config.weight_decay,
        precision=config.precision,
        seed=config.seed,
        checkpoint_every=config.checkpoint_every,
    )


def _clip(config: SystemConfig, folder: Path, progress: bool) -> CLIP:
    """Stage 1: chapter 10's CLIP on scenes, its weights or its training."""
    if not config.clip_steps and not config.untrained_clip:
        return scene_clip(trained=True)
    model = scene_clip(seed=config.seed)
    if not config.clip_steps:
        return model

    def batch(number: int) -> tuple[Tensor, Tensor]:
        seed = 10_000_019 * (config.seed + 1) + number
        drawn = scenes.sample(128, seed, split="train", objects=(1, 2))
        return scenes.render(own_part(drawn), 32), own_part(scene_ids(drawn))

    def loss(model: CLIP, batch: tuple[Tensor, Tensor]) -> Tensor:
        return model.loss(*batch, gather=True)

    training = _small(config.clip_steps, 2e-3, config)
    with together(model):
        _fit(model, loss, batch, training, folder, progress, divided=True)
    return model


def _autoencoder(config: SystemConfig, folder: Path, progress: bool) -> DiscreteVAE:
    """Stage 2: chapter 09's discrete autoencoder, its weights or a training on scenes alone."""
    if not config.autoencoder_steps:
        return tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = DiscreteVAE(DiscreteVAEConfig())

    def batch(number: int) -> TrainingBatch:
        seed = 20_000_003 * (config.seed + 1) + number
        drawn = own_part(scenes.sample(64, seed, split="train", objects=(1, 2)))
        return TrainingBatch(scenes.render(drawn, 32), drawn)

    training = _small(config.autoencoder_steps, 1e-3, config)

    def loss(model: DiscreteVAE, batch: TrainingBatch) -> Tensor:
        return autoencoder_loss(model, batch, OBJECT_WEIGHT)

    with together(model):
        _fit(model, loss, batch, training, folder, progress, divided=True)
    return model
