"""Train DALL·E on scenes and on emoji, and the prior and the decoder of DALL·E 2 on scenes.

DALL·E's Transformer learns captions and chapter 09's codes of one or two objects; its pictures are
marked by the judge on captions with combinations of colour and shape that no training scene has.
Guidance, temperature and re-ranking by chapter 10's CLIP are varied one at a time. The prior and
the decoder are flows, marked by the same judge on the same captions. The emoji's Transformer is
asked for names of concepts that it has not seen.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mmlib import results
from mmlib.dalle import Dalle, without_caption
from mmlib.data import emoji, scenes
from mmlib.data.scenes import Scene
from mmlib.judge import load_judge
from mmlib.marks import Marks, mark
from mmlib.metrics.kid import frechet_distance, kernel_distance, kernel_interval
from mmlib.painters import (
    caption_ids,
    emoji_dalle,
    grid_scenes,
    name_ids,
    paint,
    rerank,
    scene_dalle,
    scene_flows,
    tokenizer,
)
from mmlib.small_clips import picture_features, scene_clip, scene_ids
from mmlib.training import TrainConfig, fit, save_weights
from mmlib.unclip import draw_flow

MINUTES = 25
CHECKPOINTS, RUNS = Path("mmlib/checkpoints"), Path("runs/11_dalle")
SCENES, STEPS, BATCH = 16_000, 1300, 32  # of DALL·E on scenes
EMOJI_STEPS, PRIOR_STEPS, DECODER_STEPS = 300, 1000, 2200
DROP = 0.1  # share of captions, or vectors, left out in training
CAPTIONS, CANDIDATES, FLOW_CAPTIONS = 150, 16, 100
# Set before the run, after short ones.
GUIDANCE, TEMPERATURE = 1.5, 0.7
FLOW_GUIDANCE, FLOW_STEPS = 2.0, 8


def note(name: str, value: float, metric: str, tolerance: float = 0.08, **options) -> None:
    """Record a number of this chapter."""
    options = {"tolerance": tolerance, "seed": 0} | options
    results.record(f"11.{name}", value, metric=metric, **options)


def drawn(count: int, seed: int, split: str) -> list[Scene]:
    """Scenes of one or two objects."""
    return scenes.sample(count, seed, split=split, objects=(1, 2))


@torch.no_grad()
def codes_of(pictures: Tensor) -> Tensor:
    """Codes of pictures, row by row."""
    model = tokenizer()
    return torch.cat([model.encode(part).flatten(1) for part in pictures.split(64)])


@torch.no_grad()
def round_weights(model: nn.Module) -> None:
    """Round weights to bf16, as they are shipped, so that what is measured is what is shipped."""
    for parameter in model.parameters():
        parameter.copy_(parameter.bfloat16())


def train(
    model: nn.Module,
    loss: Callable[..., Tensor],
    batch: Callable[[int], tuple],
    steps: int,
    rate: float,
    name: str,
    what: str,
) -> None:
    """Train, round and save a model; its mode is then evaluation."""
    config = TrainConfig(
        steps,
        learning_rate=rate,
        warmup=steps // 20,
        weight_decay=0.05,
        precision="auto",
        checkpoint_every=200,
        progress=False,
    )
    # The plain products are faster here, in bf16, than the fused attention's gradient.
    with sdpa_kernel([SDPBackend.MATH]):
        history = fit(model, loss, batch, config, checkpoint=RUNS / name, resume=True)
    round_weights(model.eval())
    save_weights(
        model,
        CHECKPOINTS / f"11_{name}.safetensors",
        card={
            "what": what,
            "command": "make train CHAPTER=11",
            "seed": 0,
            "steps": steps,
            "minutes": round(history.seconds / 60, 1),
            "loss": round(sum(history.losses[-50:]) / len(history.losses[-50:]), 4),
        },
        dtype=torch.bfloat16,
    )
    print(f"{name}: {history.seconds:.0f} s, loss {history.losses[-1]:.3f}", flush=True)


def rows_and_drops(size: int, batch: int, number: int) -> tuple[Tensor, Tensor]:
    """Which items a batch has, and which of them lose their condition."""
    dice = torch.Generator().manual_seed(number)
    rows = torch.randint(size, (batch,), generator=dice)
    return rows, torch.rand(batch, generator=dice) < DROP


# --- what pictures are worth -------------------------------------------------------------------


def marks_of(pictures: Tensor, wanted: list[Scene]) -> Marks:
    """The judge's marks."""
    return mark(load_judge().read(pictures), wanted)


def share(marks: Marks) -> float:
    """Share of pictures in which everything is right."""
    return marks.right.double().mean().item()


def note_attributes(name: str, marks: Marks, label: str, wanted: list[Scene]) -> None:
    """Record each attribute, and the whole for one object and for two."""
    for attribute, good in marks._asdict().items():
        note(f"{name}_{attribute}", good.double().mean().item(), f"{label}: {attribute} right")
    for objects in (1, 2):
        rows = torch.tensor([len(scene.objects) == objects for scene in wanted])
        value = marks.right[rows].double().mean().item()
        note(f"{name}_right_{objects}", value, f"{label}: all right, objects: {objects}", 0.12)
    note(f"{name}_right", share(marks), f"{label}: all right")


# --- DALL·E on scenes --------------------------------------------------------------------------


def train_scenes() -> Dalle:
    """The Transformer over captions and codes of scenes."""
    items = grid_scenes(SCENES, 11_000)
    text = caption_ids(items)
    codes = torch.cat(
        [codes_of(scenes.render(items[i : i + 500], 32)) for i in range(0, SCENES, 500)]
    )
    model = scene_dalle()

    def batch(number: int) -> tuple[Tensor, Tensor]:
        rows, drop = rows_and_drops(SCENES, BATCH, number)
        return without_caption(text[rows], drop, 0), codes[rows]

    what = "DALL·E on scenes of one or two objects, over chapter 09's codes"
    train(model, lambda m, b: m.loss(*b), batch, STEPS, 3e-3, "scenes", what)
    return model


def mark_scenes(model: Dalle) -> None:
    """Measure DALL·E on held-out combinations, and what each knob does."""
    wanted = drawn(CAPTIONS, 11_001, "test")
    real = scenes.render(wanted, 32)
    note("real_right", share(marks_of(real, wanted)), "true pictures: all right", 0.01)
    rebuilt = tokenizer().decode(codes_of(real).unflatten(1, (8, 8)))
    note_attributes("rebuilt", marks_of(rebuilt, wanted), "pictures after the tokenizer", wanted)

    nats("nats", model, "test")
    nats("nats_seen", model, "train")
    text = caption_ids(wanted)

    def one(label: str, name: str, **options) -> None:
        pictures = paint(model, text, torch.Generator().manual_seed(0), **options)
        note(f"{name}_right", share(marks_of(pictures, wanted)), f"{label}: all right")

    for guidance in (0.0, 1.0, 1.5, 3.0):
        key = f"guidance_{guidance:g}".replace(".", "_")
        one(f"guidance {guidance:g}, temperature 1", key, guidance=guidance)
    for temperature in (0.0, 0.4, 0.7):
        key = f"temperature_{temperature:g}".replace(".", "_")
        one(f"temperature {temperature:g}, no guidance", key, temperature=temperature)
    one("top 20 codes", "top_k_20", top_k=20)
    one("nucleus of 0.9", "top_p_0_9", top_p=0.9)

    many = text.repeat_interleave(CANDIDATES, dim=0)
    pictures = paint(
        model,
        many,
        torch.Generator().manual_seed(1),
        guidance=GUIDANCE,
        temperature=TEMPERATURE,
    ).unflatten(0, (CAPTIONS, CANDIDATES))
    first = marks_of(pictures[:, 0], wanted)
    note_attributes("first", first, f"guidance {GUIDANCE:g}, temperature {TEMPERATURE:g}", wanted)
    judged = marks_of(pictures.flatten(0, 1), [s for s in wanted for _ in range(CANDIDATES)])
    every = judged.right.unflatten(0, (CAPTIONS, CANDIDATES))
    note("mean_right", every.double().mean().item(), "all candidates: all right")
    note("any_right", every.any(1).double().mean().item(), f"one of {CANDIDATES} is all right")
    clip, captions = scene_clip(trained=True), scene_ids(wanted)
    for count in (2, 4, 8, CANDIDATES):
        best = rerank(clip, pictures[:, :count], captions)
        marks = marks_of(best, wanted)
        note(f"best_of_{count}", share(marks), f"CLIP's best of {count}: all right")
    note_attributes("best", marks, f"CLIP's best of {CANDIDATES}", wanted)

    known = drawn(CAPTIONS, 11_002, "train")
    many = caption_ids(known).repeat_interleave(8, dim=0)
    dice, options = torch.Generator().manual_seed(2), {"temperature": TEMPERATURE}
    pictures = paint(model, many, dice, guidance=GUIDANCE, **options)
    pictures = pictures.unflatten(0, (CAPTIONS, 8))
    note("seen_right", share(marks_of(pictures[:, 0], known)), "seen combinations: all right")
    marks = marks_of(rerank(clip, pictures, scene_ids(known)), known)
    note_attributes("seen_best", marks, "seen combinations, CLIP's best of 8", known)


def nats(name: str, model: Dalle, split: str) -> None:
    """Record what the true codes cost under their own caption, under another's and under none."""
    items = grid_scenes(CAPTIONS, 11_003, split)
    text = caption_ids(items)
    codes = codes_of(scenes.render(items, 32))
    # A caption of another scene with as many objects: what it says differs, not how long it is.
    other = torch.arange(len(items))
    for objects in (1, 2):
        same = torch.tensor([len(s.objects) == objects for s in items]).nonzero()[:, 0]
        other[same] = same.roll(1)
    with torch.no_grad():
        own, shuffled, none = (
            -model.log_prob(x, codes).mean().item()
            for x in (text, text[other], torch.zeros_like(text))
        )
    note(name, own, f"nats a code, scenes on corners, split {split}", 0.05, baseline=none)
    note(f"{name}_shuffled", shuffled, f"the same under another scene's caption, {split}", 0.1)
    note(f"{name}_none", none, f"the same without a caption, {split}", 0.05)


# --- the flows of DALL·E 2 ---------------------------------------------------------------------


@torch.no_grad()
def clip_vectors(items: list[Scene], pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Chapter 10's vectors of pictures and of captions."""
    clip = scene_clip(trained=True)
    image = torch.cat([clip.encode_image(part) for part in pictures.split(250)])
    parts = range(0, len(items), 250)
    return image, torch.cat([clip.encode_text(scene_ids(items[i : i + 250])) for i in parts])


def train_flows() -> tuple[nn.Module, nn.Module]:
    """The prior and the decoder."""
    items = grid_scenes(SCENES, 12_000)
    pictures = torch.cat([scenes.render(items[i : i + 500], 32) for i in range(0, SCENES, 500)])
    image, text = clip_vectors(items, pictures)
    prior, decoder = scene_flows()

    def prior_batch(number: int) -> tuple[Tensor, ...]:
        rows, drop = rows_and_drops(SCENES, 256, number)
        return image[rows], text[rows], drop, torch.tensor(number)

    def decoder_batch(number: int) -> tuple[Tensor, ...]:
        rows, drop = rows_and_drops(SCENES, BATCH, number)
        return pictures[rows], image[rows], drop, torch.tensor(number)

    def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        *given, number = batch
        return model.loss(*given, generator=torch.Generator().manual_seed(int(number)))

    what = "flow from CLIP's vector of a caption to one of a picture, scenes"
    train(prior, loss, prior_batch, PRIOR_STEPS, 1e-3, "prior", what)
    what = "flow from CLIP's vector of a picture to the picture, scenes"
    train(decoder, loss, decoder_batch, DECODER_STEPS, 2e-3, "decoder", what)
    return prior, decoder


def mark_flows(prior: nn.Module, decoder: nn.Module) -> None:
    """Measure both flows on held-out combinations, together and apart."""
    wanted = drawn(FLOW_CAPTIONS, 11_001, "test")
    image, text = clip_vectors(wanted, scenes.render(wanted, 32))

    def pictures(vectors: Tensor, guidance: float = 1.0, steps: int = FLOW_STEPS) -> Tensor:
        dice = torch.Generator().manual_seed(3)
        out = draw_flow(decoder, vectors, (3, 32, 32), dice, guidance=guidance, steps=steps)
        return (out / 2 + 0.5).clamp(0, 1)

    def vectors(guidance: float = 1.0) -> Tensor:
        dice = torch.Generator().manual_seed(4)
        return draw_flow(prior, text, text.shape[1:], dice, guidance=guidance, steps=16)

    drawn_vectors = vectors()
    for name, found in (("text", text), ("prior", drawn_vectors)):
        cosine = torch.cosine_similarity(found, image).mean().item()
        note(f"cosine_{name}", cosine, f"cosine of {name}'s vector and the true picture's", 0.05)
    variants = {
        "decoder": ("true vectors", image, FLOW_GUIDANCE, FLOW_STEPS),
        "unclip": ("prior and decoder", drawn_vectors, FLOW_GUIDANCE, FLOW_STEPS),
        "no_prior": ("the text's vector, no prior", text, FLOW_GUIDANCE, FLOW_STEPS),
        "prior_2": ("prior's guidance 2", vectors(2.0), FLOW_GUIDANCE, FLOW_STEPS),
        "decoder_free": ("decoder without guidance", drawn_vectors, 1.0, FLOW_STEPS),
        "steps_3": ("decoder's steps: 3", drawn_vectors, FLOW_GUIDANCE, 3),
    }
    for name, (label, given, guidance, steps) in variants.items():
        marks = marks_of(pictures(given, guidance, steps), wanted)
        note_attributes(name, marks, label, wanted)


# --- emoji -------------------------------------------------------------------------------------


def train_emoji() -> Dalle:
    """The Transformer over names and codes of emoji."""
    data = emoji.load("train", 32)
    pictures = data.images.float() / 255
    text, codes = name_ids(data.names), codes_of(pictures)
    mirrored = codes_of(pictures.flip(3))
    model = emoji_dalle()

    def batch(number: int) -> tuple[Tensor, Tensor]:
        rows, drop = rows_and_drops(len(data), BATCH, number)
        flip = torch.rand(BATCH, generator=torch.Generator().manual_seed(-1 - number)) < 0.5
        chosen = torch.where(flip[:, None], mirrored[rows], codes[rows])
        return without_caption(text[rows], drop, 0), chosen

    what = "DALL·E on names and pictures of training emoji, over chapter 09's codes"
    train(model, lambda m, b: m.loss(*b), batch, EMOJI_STEPS, 3e-3, "emoji", what)
    return model


def mark_emoji(model: Dalle) -> None:
    """Measure how far generated emoji are from held-out ones, and how near to training ones."""
    test, data = emoji.load("test", 32), emoji.load("train", 32)
    pictures = paint(
        model, name_ids(test.names), torch.Generator().manual_seed(5), guidance=2.0, temperature=0.8
    )
    sets = {
        "test": test.images.float() / 255,
        "train": data.images.float() / 255,
        "generated": pictures,
    }
    sets["rebuilt"] = tokenizer().decode(codes_of(sets["test"]).unflatten(1, (8, 8)))
    seen = {name: picture_features(images) for name, images in sets.items()}
    concepts = list(test.concepts)
    train_concepts = list(data.concepts)
    for name, other, blocks in (
        ("generated", "test", (concepts, concepts)),
        ("generated", "train", (concepts, train_concepts)),
        ("rebuilt", "test", (concepts, concepts)),
        ("train", "test", (train_concepts, concepts)),
    ):
        key, label = f"kid_{name}_{other}", f"kernel distance of {name} and {other} emoji"
        note(key, kernel_distance(seen[name], seen[other]), label, 0.05)
        low, high = kernel_interval(seen[name], seen[other], blocks)
        note(f"{key}_low", low, f"{label}, lower end of 95 %", 0.05)
        note(f"{key}_high", high, f"{label}, upper end of 95 %", 0.05)
    dice = torch.Generator().manual_seed(6)
    for count in (50, 150, 600):
        order = torch.randperm(len(data), generator=dice)
        pair = seen["train"][order[:count]], seen["train"][order[count : 2 * count]]
        label = f"two halves of {2 * count} training emoji"
        note(f"fid_{count}", frechet_distance(*pair), f"Fréchet distance of {label}", 1.0)
        note(f"kid_{count}", kernel_distance(*pair), f"kernel distance of {label}", 0.05)
    unit = {name: nn.functional.normalize(x, dim=1) for name, x in seen.items()}
    for name in ("generated", "test"):
        nearest = (unit[name] @ unit["train"].T).amax(1)
        note(f"copy_{name}", nearest.mean().item(), f"cosine to the nearest training emoji: {name}")
    with torch.no_grad():
        for name, items in (("test", test), ("train", data)):
            text, codes = name_ids(items.names)[:280], codes_of(sets[name][:280])
            own = -model.log_prob(text, codes).mean().item()
            other = -model.log_prob(text.roll(40, 0), codes).mean().item()
            note(f"emoji_nats_{name}", own, f"nats a code, {name} emoji", 0.3, baseline=other)


def main() -> None:
    """Train, and record every number."""
    mark_flows(*train_flows())
    mark_scenes(train_scenes())
    mark_emoji(train_emoji())


if __name__ == "__main__":
    main()
