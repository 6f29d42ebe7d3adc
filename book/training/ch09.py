"""Train the autoencoder whose codes chapters 11 and 16 use, and one that counts bits of emoji.

First the discrete autoencoder, which is shipped, and what each part of it brings, in shorter runs.
Then the variational autoencoder of emoji, which is shipped too: bits per dimension of held-out
emoji beside a histogram of each pixel, and what becomes of the latent dimensions under other
weights of the KL term.
"""

import dataclasses
import functools
import hashlib
import itertools
from types import ModuleType

import torch
from torch import Tensor

from mmlib import results
from mmlib.data import clipart, emoji, scenes
from mmlib.discrete_vae import DiscreteVAE, DiscreteVAEConfig
from mmlib.importance import importance_bound, importance_log_weights
from mmlib.likelihoods import PixelHistogram
from mmlib.metrics.pictures import bits_per_dimension, psnr
from mmlib.quantise import code_usage, temperature_at
from mmlib.training import TrainConfig, fit, save_weights
from mmlib.vae import VAE, VAEConfig, active_units

MINUTES = 30
SIZE, DIMENSIONS = 32, 3 * 32 * 32
STEPS, SHORT, VAE_STEPS, VAE_SHORT = 1500, 200, 700, 200
SIZES = (28, 30, 32, 32, 32, 34, 36)
# Of the mean squared error of a number beside the mean KL of a code: what that sum comes to.
NAIVE = DIMENSIONS / (2 * 64)
CHANNELS = torch.tensor(list(itertools.permutations(range(3))))


def held_back(concepts: tuple[str, ...]) -> Tensor:
    """One training concept in eight, for choosing a design: True where it is not trained on."""

    def eighth(concept: str) -> bool:
        return hashlib.sha256(f"validation/{concept}".encode()).digest()[0] < 32

    return torch.tensor([eighth(concept) for concept in concepts])


@functools.cache
def training_pictures(source: ModuleType, size: int) -> tuple[Tensor, Tensor]:
    """Training pictures of a source, and which of them :func:`held_back` names."""
    items = source.load("train", size=size)
    return items.images, held_back(items.concepts)


class Pictures:
    """Batches of emoji, clip art and scenes, each picture drawn at random sizes and places.

    A picture is taken at one of several sizes and cut, or set on white; half are mirrored. Nothing
    is interpolated, so that edges stay as sharp as those of the test set and levels stay whole.

    Args:
        mix: How many emoji, drawings and scenes a batch has.
        recolour: The share of emoji and drawings whose colour channels change places.
        validation: Whether to leave out the emoji that :func:`validation_emoji` gives.
    """

    def __init__(
        self, mix: tuple[int, int, int], recolour: float = 0.0, validation: bool = False
    ) -> None:
        self.mix, self.recolour = mix, recolour
        self.sources = []
        for source, count in zip((emoji, clipart), mix, strict=False):
            sized = {}
            for size in set(SIZES) if count else ():
                images, held = training_pictures(source, size)
                sized[size] = images[~held] if validation else images
            self.sources.append(sized)

    def draw(self, sized: dict[int, Tensor], generator: torch.Generator) -> Tensor:
        """One picture of a source."""

        def below(limit: int) -> int:
            return int(torch.randint(limit, (), generator=generator))

        size = SIZES[below(len(SIZES))]
        picture = sized[size][below(len(sized[size]))]
        top, left = below(abs(size - SIZE) + 1), below(abs(size - SIZE) + 1)
        if size > SIZE:
            picture = picture[:, top : top + SIZE, left : left + SIZE]
        elif size < SIZE:
            canvas = picture.new_full((3, SIZE, SIZE), 255)
            canvas[:, top : top + size, left : left + size] = picture
            picture = canvas
        if below(2):
            picture = picture.flip(-1)
        if float(torch.rand((), generator=generator)) < self.recolour:
            picture = picture[CHANNELS[below(len(CHANNELS))]]
        return picture

    def batch(self, number: int) -> Tensor:
        """Batch ``number``: floats in [0, 1], whole multiples of 1/255."""
        generator = torch.Generator().manual_seed(number)
        parts = [
            torch.stack([self.draw(sized, generator) for _ in range(count)])
            for sized, count in zip(self.sources, self.mix, strict=False)
            if count
        ]
        if self.mix[2]:
            drawn = scenes.sample(self.mix[2], seed=number, split="train", background="any")
            parts.append((scenes.render(drawn, SIZE) * 255).round().byte())
        pictures = torch.cat(parts).float() / 255
        return pictures.contiguous(memory_format=torch.channels_last)


def validation_emoji() -> Tensor:
    """Training emoji that :class:`Pictures` leaves out where ``validation`` is set."""
    items = emoji.load("train", size=SIZE)
    return items.images[held_back(items.concepts)].float() / 255


def test_emoji() -> Tensor:
    """The held-out emoji, on white."""
    return emoji.load("test", size=SIZE).images.float() / 255


def test_scenes() -> list[scenes.Scene]:
    """Scenes with held-out combinations of colour and shape."""
    return scenes.sample(500, seed=1, split="test", background="any")


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


def survivors(pictures: Tensor, drawn: list[scenes.Scene]) -> tuple[float, float]:
    """Share of objects whose colour, and whose shape, can be read off a picture of the scene.

    Read by drawing: each object in turn is drawn in all 64 colours and shapes, the rest of the
    scene as it is, and the drawing that is nearest to the picture says what the object is.
    """
    pairs = list(itertools.product(scenes.COLOURS, scenes.SHAPES))
    colours = shapes = total = 0
    for picture, scene in zip(pictures, drawn, strict=True):
        for place, item in enumerate(scene.objects):
            variants = []
            for colour, shape in pairs:
                objects = list(scene.objects)
                objects[place] = dataclasses.replace(item, colour=colour, shape=shape)
                variants.append(dataclasses.replace(scene, objects=tuple(objects)))
            errors = (scenes.render(variants, SIZE) - picture).square().sum((1, 2, 3))
            colour, shape = pairs[int(errors.argmin())]
            colours, shapes, total = (
                colours + (colour == item.colour),
                shapes + (shape == item.shape),
                total + 1,
            )
    return colours / total, shapes / total


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
    precision: str = "auto",
    every: int = 0,
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
        precision: See ``TrainConfig``.
        every: Steps between evaluations.
    """
    torch.default_generator.manual_seed(0)
    model = DiscreteVAE(config).to(memory_format=torch.channels_last)
    noise, step = torch.Generator().manual_seed(0), iter(range(steps))

    def loss_fn(model: DiscreteVAE, pictures: Tensor) -> Tensor:
        temperature = temperature_at(next(step), steps) if cold else 1.0
        terms = model(
            pictures, temperature=temperature, beta=beta, variance=variance, generator=noise
        )
        return terms.loss / DIMENSIONS

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
            precision=precision,
            evaluate_every=every,
            progress=False,
        ),
        evaluate=evaluate,
    )
    model.eval()
    return model, history.seconds


def tokenizer() -> DiscreteVAE:
    """The discrete autoencoder that is shipped."""
    config = DiscreteVAEConfig()
    test, drawn = test_emoji(), test_scenes()
    model, seconds = train_discrete(
        config, Pictures((28, 20, 16), recolour=0.5), STEPS, validation_emoji(), every=250
    )
    round_weights(model)
    rebuilt, ids = rebuild(model, test)
    usage = code_usage(ids, config.codes)
    pictures = (scenes.render(drawn, SIZE) * 255).round() / 255
    scene_rebuilt, scene_ids = rebuild(model, pictures)
    colour, shape = survivors(scene_rebuilt, drawn)
    best_colour, best_shape = survivors(pictures, drawn)
    metrics = {
        "psnr_emoji": psnr(rebuilt, test),
        "perplexity_emoji": usage.perplexity,
        "psnr_scenes": psnr(scene_rebuilt, pictures),
        "perplexity_scenes": code_usage(scene_ids, config.codes).perplexity,
        "scene_colours": colour,
        "scene_shapes": shape,
    }
    baselines = {
        "psnr_emoji": principal_components(test),
        "scene_colours": best_colour,
        "scene_shapes": best_shape,
    }
    names = {
        "psnr_emoji": "PSNR of held-out emoji, 576 bits a picture; baseline: PCA of as many bits",
        "perplexity_emoji": "perplexity of the codes of held-out emoji, of 512",
        "psnr_scenes": "PSNR of scenes with held-out combinations",
        "perplexity_scenes": "perplexity of the codes of these scenes, of 512",
        "scene_colours": "objects of these scenes whose colour survives; baseline: originals",
        "scene_shapes": "objects of these scenes whose shape survives; baseline: originals",
    }
    for name, value in metrics.items():
        results.record(
            f"09.dvae_{name}",
            value,
            baseline=baselines.get(name),
            metric=names[name],
            tolerance={"psnr": 0.4, "perp": 40, "scen": 0.02}[name[:4]],
            unit="dB" if name.startswith("psnr") else "",
            seed=0,
        )
    save_weights(
        model,
        "mmlib/checkpoints/09_dvae.safetensors",
        card={
            "what": "discrete autoencoder, 32×32 pictures as 8×8 codes of 512",
            "command": "make train CHAPTER=09",
            "data": "training emoji and clip art on white, training scenes on any background",
            "seed": 0,
            "steps": STEPS,
            "minutes": round(seconds / 60, 1),
            "metrics": {name: round(value, 4) for name, value in metrics.items()},
        },
        dtype=torch.bfloat16,
    )
    return model


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

    def loss_fn(model: VAE, pictures: Tensor) -> Tensor:
        weight = beta * min(1.0, (next(step) + 1) / (warm_up * steps + 1))
        terms = model(pictures, beta=weight, free_bits=free_bits, generator=noise)
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
    tokenizer()
    likelihoods()
    ablate()


if __name__ == "__main__":
    main()
