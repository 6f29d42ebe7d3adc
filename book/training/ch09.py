"""Train the autoencoder whose codes chapters 11 and 16 use, a judge, and one that counts bits.

First the judge, which is shipped and marks pictures of scenes here and in chapter 11; then the
discrete autoencoder, which is shipped, and what each part of it brings, in shorter runs. At last
the variational autoencoder of emoji, which is shipped too: bits per dimension of held-out emoji
beside a histogram of each pixel, and what becomes of the latent dimensions under other weights of
the KL term.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlib import results
from mmlib.data import emoji, scenes
from mmlib.discrete_vae import DiscreteVAE, DiscreteVAEConfig
from mmlib.importance import importance_bound, importance_log_weights
from mmlib.judge import Judge, JudgeConfig, judge_pictures
from mmlib.likelihoods import PixelHistogram
from mmlib.marks import ObjectMarks, mark, mark_objects
from mmlib.metrics.pictures import bits_per_dimension, psnr
from mmlib.quantise import code_usage, temperature_at
from mmlib.tokenizer_training import Pictures, TrainingBatch, held_back, object_loss
from mmlib.training import TrainConfig, fit, load_weights, save_weights
from mmlib.vae import VAE, VAEConfig, active_units

MINUTES = 28
SIZE, DIMENSIONS = 32, 3 * 32 * 32
STEPS, OBJECT_STEPS, SHORT, VAE_STEPS, VAE_SHORT = 1500, 1200, 200, 700, 200
JUDGE_STEPS, READER_STEPS = 800, 600
RUNS = Path("runs/09_dvae")  # a run that was stopped goes on from here
# Batches of the judge and of the reader are numbered from here: no picture is in both.
JUDGE_SEED, READER_SEED = 777_000_000, 555_000_000
# What an object's errors count for, and what the reader's loss does: see object_loss().
OBJECT, STRENGTH = 800, 0.5
# Of the mean squared error of a number beside the mean KL of a code: what that sum comes to.
NAIVE = DIMENSIONS / (2 * 64)


def validation_emoji() -> Tensor:
    """Training emoji that :class:`Pictures` leaves out where ``validation`` is set."""
    items = emoji.load("train", size=SIZE)
    return items.images[held_back(items.concepts)].float() / 255


def test_emoji() -> Tensor:
    """The held-out emoji, on white."""
    return emoji.load("test", size=SIZE).images.float() / 255


def scene_pictures(split: str, count: int, seed: int) -> tuple[list[scenes.Scene], Tensor]:
    """Scenes on any background, and their pictures; those of ``"test"`` hold new combinations."""
    drawn = scenes.sample(count, seed=seed, split=split, background="any")
    return drawn, (scenes.render(drawn, SIZE) * 255).round() / 255


@torch.no_grad()
def round_weights(model: torch.nn.Module) -> None:
    """Round weights to bf16, as they are shipped, so that what is measured is what is shipped."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.copy_(tensor.bfloat16())


@torch.no_grad()
def rebuild(model: DiscreteVAE, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures after encoding and decoding, and their codes."""
    model.eval()
    ids = torch.cat([model.encode(part) for part in pictures.split(64)])
    return torch.cat([model.decode(part) for part in ids.split(64)]), ids


def shares(marks: ObjectMarks) -> dict[str, float]:
    """Shares of objects: found, of the right colour, of the right shape, and all that and size."""
    found = {name: good.float().mean().item() for name, good in marks._asdict().items()}
    return found | {"whole": torch.stack(list(marks)).all(0).float().mean().item()}


def train_judge(
    name: str, config: JudgeConfig, batch: Callable[[int], tuple], steps: int, seed: int
) -> tuple[Judge, float]:
    """Train a network that reads scenes; the network and the seconds it took."""
    torch.default_generator.manual_seed(seed)
    model = Judge(config).to(memory_format=torch.channels_last)
    history = fit(
        model,
        lambda model, batch: model.loss(*batch),
        batch,
        TrainConfig(
            steps,
            learning_rate=4e-3,
            warmup=50,
            precision="auto",
            seed=seed,
            checkpoint_every=100,
            progress=False,
        ),
        checkpoint=RUNS / name,
        resume=True,
    )
    return model.eval(), history.seconds


def judge() -> Judge:
    """The judge, which is shipped."""

    def batch(number: int) -> tuple[Tensor, list[scenes.Scene]]:
        drawn = scenes.sample(64, seed=JUDGE_SEED + number, background="any")
        return judge_pictures(drawn, torch.Generator().manual_seed(JUDGE_SEED + number)), drawn

    model, seconds = train_judge("judge", JudgeConfig(), batch, JUDGE_STEPS, seed=7)
    round_weights(model)
    drawn, pictures = scene_pictures("test", 2000, seed=11)
    found = model.read(pictures)
    metrics = {"scenes": mark(found, drawn).right.float().mean().item()}
    metrics["objects"] = shares(mark_objects(found, drawn))["whole"]
    for name, what in {
        "scenes": "new scenes that the judge marks fully right by their own captions",
        "objects": "objects of new scenes in which the judge is wholly right",
    }.items():
        results.record(f"09.judge_{name}", metrics[name], metric=what, tolerance=0.01, seed=7)
    save_weights(
        model,
        "mmlib/checkpoints/09_judge.safetensors",
        card={
            "what": "independent judge of scenes of 32×32 pixels",
            "command": "make train CHAPTER=09",
            "data": "scenes of all combinations, drawn at 96 pixels and averaged, soft and noisy",
            "seed": 7,
            "steps": JUDGE_STEPS,
            "minutes": round(seconds / 60, 1),
            "metrics": {name: round(value, 4) for name, value in metrics.items()},
        },
        dtype=torch.bfloat16,
    )
    return model


def reader() -> Judge:
    """Who looks at the paintings in training: nobody the judge knows, and not shipped.

    Other weights, widths and pictures, of the training combinations only.
    """

    def batch(number: int) -> tuple[Tensor, list[scenes.Scene]]:
        seed = READER_SEED + number
        drawn, generator = (
            scenes.sample(64, seed=seed, split="train", background="any"),
            torch.Generator().manual_seed(seed),
        )
        pictures = scenes.render(drawn, SIZE)
        soft = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)
        degree, noise = torch.rand(2, 64, 1, 1, 1, generator=generator)
        pictures = pictures.lerp(soft, 0.7 * degree)
        return pictures + 0.08 * noise * torch.randn(pictures.shape, generator=generator), drawn

    model, _ = train_judge("reader", JudgeConfig((48, 96)), batch, READER_STEPS, seed=5)
    return model.requires_grad_(False)


def train_discrete(
    config: DiscreteVAEConfig,
    data: Pictures,
    steps: int,
    validation: Tensor,
    *,
    rate: float = 2e-3,
    variance: float | None = None,
    beta: float = 1.0,
    cold: bool = True,
    start: DiscreteVAE | None = None,
    objects: dict | None = None,
    checkpoint: Path | None = None,
) -> tuple[DiscreteVAE, float]:
    """Train a discrete autoencoder; the model and the seconds it took.

    Args:
        config: Of the model.
        data: Its batches.
        steps: How many.
        validation: Pictures whose PSNR is printed along the way.
        rate: Learning rate at its peak.
        variance: Of the reconstruction, by default the best one.
        beta: Weight of the KL term.
        cold: Whether the temperature falls.
        start: Whose weights it starts from.
        objects: What :func:`object_loss` is given, if its loss is added.
        checkpoint: Where the state of the run is kept, if it is.
    """
    torch.default_generator.manual_seed(0)
    model = DiscreteVAE(config).to(memory_format=torch.channels_last)
    if start is not None:
        model.load_state_dict(start.state_dict())
    # A checkpoint holds the state of torch's own generator, and of no other.
    noise = None if checkpoint else torch.Generator().manual_seed(0)
    step = iter(range(steps))

    def loss_fn(model: DiscreteVAE, batch: TrainingBatch) -> Tensor:
        temperature = temperature_at(next(step), steps) if cold else 1.0  # of no use for "vq"
        terms = model(
            batch.pictures, temperature=temperature, beta=beta, variance=variance, generator=noise
        )
        extra = object_loss(batch, terms.pictures, **objects) if objects else 0.0
        return terms.loss / DIMENSIONS + extra

    def evaluate(model: DiscreteVAE) -> dict[str, float]:
        rebuilt, ids = rebuild(model, validation)
        usage = code_usage(ids, config.codes)
        found = {"psnr": psnr(rebuilt, validation), "perplexity": usage.perplexity}
        print({name: round(value, 2) for name, value in found.items()}, flush=True)
        return found

    history = fit(
        model,
        loss_fn,
        data.batch,
        TrainConfig(
            steps,
            learning_rate=rate,
            warmup=min(100, steps // 10),
            precision="auto",
            evaluate_every=100 if checkpoint else 0,
            checkpoint_every=50 if checkpoint else 0,
            progress=False,
        ),
        evaluate=evaluate,
        checkpoint=checkpoint,
        resume=checkpoint is not None,
    )
    model.eval()
    return model, history.seconds


def plain_tokenizer() -> DiscreteVAE:
    """A discrete autoencoder trained by the bound alone, rounded as if it were shipped."""
    model, path = DiscreteVAE(DiscreteVAEConfig()), RUNS / "plain.safetensors"
    if not path.exists():
        data = Pictures((28, 20, 16), recolour=0.5)
        model, _ = train_discrete(model.config, data, STEPS, validation_emoji())
        save_weights(model, path, dtype=torch.bfloat16)
    load_weights(model, path)
    return model.eval()


def measure(model: DiscreteVAE, judge: Judge) -> dict[str, float]:
    """What a tokenizer does to held-out emoji and to scenes with held-out combinations."""
    test, (drawn, pictures) = test_emoji(), scene_pictures("test", 500, seed=1)
    (rebuilt, ids), (scenes_rebuilt, scene_ids) = rebuild(model, test), rebuild(model, pictures)
    kept = shares(mark_objects(judge.read(scenes_rebuilt), drawn))
    codes = model.config.codes
    return {
        "psnr_emoji": psnr(rebuilt, test),
        "perplexity_emoji": code_usage(ids, codes).perplexity,
        "psnr_scenes": psnr(scenes_rebuilt, pictures),
        "perplexity_scenes": code_usage(scene_ids, codes).perplexity,
    } | {f"scene_{name}": kept[name] for name in ("colour", "shape", "size", "whole")}


def tokenizer(judge: Judge, reader: Judge) -> None:
    """The discrete autoencoder that is shipped: first the bound alone, then objects count."""
    plain = plain_tokenizer()
    # The reader draws codes to the scenes: more are revived, to keep emoji sharp.
    model, seconds = train_discrete(
        DiscreteVAEConfig(revive=0.3),
        Pictures((22, 10, 32), recolour=0.5, objects=(3, 4)),
        OBJECT_STEPS,
        validation_emoji(),
        start=plain,
        objects={"total": OBJECT, "reader": reader, "strength": STRENGTH},
        checkpoint=RUNS / "objects",
    )
    round_weights(model)
    metrics, before = measure(model, judge), measure(plain, judge)
    by_components = principal_components(test_emoji())
    what = {
        "psnr_emoji": "PSNR of held-out emoji, 576 bits a picture; baseline: PCA of as many bits",
        "perplexity_emoji": "perplexity of the codes of held-out emoji, of 512",
        "psnr_scenes": "PSNR of scenes with held-out combinations",
        "perplexity_scenes": "perplexity of the codes of these scenes, of 512",
        "scene_colour": "objects of these scenes whose colour survives, by the judge",
        "scene_shape": "objects of these scenes whose shape survives, by the judge",
        "scene_size": "objects of these scenes whose size survives, by the judge",
        "scene_whole": "objects of these scenes that survive in all of it, by the judge",
    }
    for name, text in what.items():
        options = {
            "tolerance": {"psnr": 0.4, "perp": 40, "scen": 0.02}[name[:4]],
            "unit": "dB" if name.startswith("psnr") else "",
            "seed": 0,
        }
        results.record(f"09.plain_{name}", before[name], metric=f"bound alone: {text}", **options)
        linear = name == "psnr_emoji"
        note = "" if linear else "; baseline: by the bound alone"
        baseline = by_components if linear else before[name]
        results.record(
            f"09.dvae_{name}", metrics[name], baseline=baseline, metric=text + note, **options
        )
    save_weights(
        model,
        "mmlib/checkpoints/09_dvae.safetensors",
        card={
            "what": "discrete autoencoder, 32×32 pictures as 8×8 codes of 512",
            "command": "make train CHAPTER=09",
            "data": "training emoji and clip art on white, training scenes on any background",
            "seed": 0,
            "steps": STEPS + OBJECT_STEPS,
            "minutes": round(seconds / 60, 1),
            "metrics": {name: round(value, 4) for name, value in metrics.items()},
        },
        dtype=torch.bfloat16,
    )


def principal_components(test: Tensor, bits: int = 576, each: int = 4) -> float:
    """PSNR of PCA of training emoji, each of the first components rounded to ``each`` bits.

    The levels of a component are spread evenly over four deviations to either side of its mean.
    """
    train = emoji.load("train", size=SIZE).images.float().flatten(1) / 255
    mean, count = train.mean(0), bits // each
    _, values, vectors = torch.linalg.svd(train - mean, full_matrices=False)
    deviation = values[:count] / len(train) ** 0.5
    place = (test.flatten(1) - mean) @ vectors[:count].T / deviation
    step = 8 / 2**each
    level = (place.clamp(-4 + step / 2, 4 - step / 2) / step - 0.5).round()
    rebuilt = mean + (level + 0.5) * step * deviation @ vectors[:count]
    return psnr(rebuilt.clamp(0, 1).view_as(test), test)


def ablate() -> None:
    """What each part of the discrete autoencoder brings, in short runs of half the batch."""
    config, validation = DiscreteVAEConfig(), validation_emoji()
    data = Pictures((14, 10, 8), recolour=0.5, validation=True)
    gumbel = dataclasses.replace(config, quantiser="gumbel")
    fixed, gumbel_fixed = (dataclasses.replace(sizes, revive=0) for sizes in (config, gumbel))
    runs = {
        "vq": ("nearest code", config, {}),
        "vq_fixed": ("nearest code, none revived", fixed, {}),
        "gumbel": ("Gumbel-softmax", gumbel, {}),
        "gumbel_warm": ("Gumbel-softmax, temperature 1 throughout", gumbel, {"cold": False}),
        "gumbel_fixed": ("Gumbel-softmax, no code revived", gumbel_fixed, {}),
        "gumbel_naive": (
            "Gumbel-softmax, mean squared error beside mean KL, no code revived",
            gumbel_fixed,
            {"variance": NAIVE},
        ),
    }
    for name, (what, sizes, options) in runs.items():
        model, _ = train_discrete(sizes, data, SHORT, validation, **options)
        rebuilt, ids = rebuild(model, validation)
        results.record(
            f"09.short_{name}_psnr",
            psnr(rebuilt, validation),
            metric=f"{what}, {SHORT} steps: PSNR of unseen training concepts",
            tolerance=0.6,
            unit="dB",
            seed=0,
        )
        results.record(
            f"09.short_{name}_perplexity",
            code_usage(ids, config.codes).perplexity,
            metric=f"{what}, {SHORT} steps: perplexity, of {config.codes}",
            tolerance=60,
            seed=0,
        )


def ablate_objects(judge: Judge, reader: Judge) -> None:
    """What the weights and the reader bring, in short runs of half the batch that go on from one.

    All start where objects begin to count, on as many scenes; they are measured on training scenes.
    """
    plain, validation = plain_tokenizer(), validation_emoji()
    drawn, pictures = scene_pictures("train", 300, seed=4242)
    weights, looks = {"total": OBJECT}, {"reader": reader, "strength": STRENGTH}
    for name, what, objects in (
        ("neither", "the bound alone", None),
        ("weights", "objects weighed", weights),
        ("reader", "a reader looks", looks),
        ("both", "objects weighed and a reader looks", weights | looks),
    ):
        model, _ = train_discrete(
            DiscreteVAEConfig(revive=0.3),
            Pictures((11, 5, 16), recolour=0.5, objects=(3, 4)),
            SHORT,
            validation,
            rate=1e-3,
            start=plain,
            objects=objects,
        )
        kept = shares(mark_objects(judge.read(rebuild(model, pictures)[0]), drawn))
        for kind in ("colour", "shape"):
            results.record(
                f"09.objects_{name}_{kind}",
                kept[kind],
                metric=f"{what}, {SHORT} more steps: objects whose {kind} survives",
                tolerance=0.04,
                seed=0,
            )


def train_vae(
    steps: int, *, beta: float = 1.0, warm_up: float = 0.0, free_bits: float = 0.0
) -> tuple[VAE, float]:
    """Train a variational autoencoder of emoji; the model and the seconds it took.

    Args:
        steps: How many, of 64 pictures.
        beta: Weight of the KL term.
        warm_up: The share of the steps over which the weight grows to that.
        free_bits: See :func:`mmlib.vae.elbo`.
    """
    torch.default_generator.manual_seed(0)
    model = VAE(VAEConfig()).to(memory_format=torch.channels_last)
    noise, step = torch.Generator().manual_seed(0), iter(range(steps))

    def loss_fn(model: VAE, batch: TrainingBatch) -> Tensor:
        weight = beta * min(1.0, (next(step) + 1) / (warm_up * steps + 1))
        terms = model(batch.pictures, beta=weight, free_bits=free_bits, generator=noise)
        return terms.loss / DIMENSIONS

    history = fit(
        model,
        loss_fn,
        Pictures((64, 0, 0)).batch,
        TrainConfig(
            steps,
            learning_rate=1e-3,
            warmup=min(100, steps // 2),  # sooner, the variances of the posteriors run away
            precision="auto",
            progress=False,
        ),
    )
    model.eval()
    return model, history.seconds


@torch.no_grad()
def describe(model: VAE, pictures: Tensor) -> dict[str, float]:
    """The terms of the bound, in nats per picture, bits per dimension, and active dimensions."""
    noise = torch.Generator().manual_seed(0)
    terms = model(pictures, generator=noise)
    return {
        "reconstruction": terms.reconstruction.mean().item(),
        "kl": terms.kl.mean().item(),
        "bits": bits_per_dimension(terms.elbo, DIMENSIONS).mean().item(),
        "active": active_units(model.encode(pictures).mean),
    }


def likelihoods() -> None:
    """Bits per dimension of held-out emoji, and the latent dimensions under other weights."""
    train = emoji.load("train", size=SIZE).images.float() / 255
    test = test_emoji()
    counted = bits_per_dimension(PixelHistogram(train).log_likelihood(test), DIMENSIONS)
    model, seconds = train_vae(VAE_STEPS, warm_up=0.3)
    round_weights(model)
    found = describe(model, test)
    weights = torch.cat(
        [
            importance_log_weights(
                model, part, 64, generator=torch.Generator().manual_seed(0), chunk=4
            )
            for part in test.split(64)
        ],
        dim=1,
    )
    results.record(
        "09.vae_bits",
        bits_per_dimension(importance_bound(weights), DIMENSIONS).mean(),
        baseline=counted.mean(),
        metric="bits per dimension of held-out emoji, 64 draws; baseline: histogram of each pixel",
        tolerance=0.1,
        seed=0,
    )
    for name, value in found.items():
        results.record(
            f"09.vae_{name}" if name != "bits" else "09.vae_bits_elbo",
            value,
            metric=f"{name} of held-out emoji, one draw",
            tolerance={"reconstruction": 300, "kl": 60, "bits": 0.1, "active": 10}[name],
            seed=0,
        )
    save_weights(
        model,
        "mmlib/checkpoints/09_vae.safetensors",
        card={
            "what": "variational autoencoder of emoji, 64 latent dimensions",
            "command": "make train CHAPTER=09",
            "data": "training emoji on white, 32×32",
            "seed": 0,
            "steps": VAE_STEPS,
            "minutes": round(seconds / 60, 1),
            "metrics": {name: round(value, 4) for name, value in found.items()},
        },
        dtype=torch.bfloat16,
    )
    runs = {
        "plain": ("beta 1", {}),
        "warm": ("beta 1 after a warm-up", {"warm_up": 0.3}),
        "free": ("beta 1 with a quarter of a bit free", {"free_bits": 0.25}),
        "beta10": ("beta 10", {"beta": 10.0}),
        "mean": ("the mean of pixels beside the sum of KL", {"beta": float(DIMENSIONS)}),
    }
    for run, (what, options) in runs.items():
        model, _ = train_vae(VAE_SHORT, **options)
        for name, value in describe(model, test).items():
            results.record(
                f"09.short_{run}_{name}",
                value,
                metric=f"{what}, {VAE_SHORT} steps: {name} of held-out emoji",
                tolerance={"reconstruction": 600, "kl": 60, "bits": 0.3, "active": 10}[name],
                seed=0,
            )


def main() -> None:
    """Train, and record every number."""
    judge_, reader_ = judge(), reader()
    tokenizer(judge_, reader_)
    ablate_objects(judge_, reader_)
    likelihoods()
    ablate()


if __name__ == "__main__":
    main()
