"""Train DALL·E on scenes and on emoji, and the prior and two decoders of DALL·E 2 on scenes.

DALL·E's Transformer learns captions and chapter 09's codes of one or two objects; its pictures are
marked by the judge on captions with combinations of colour and shape that no training scene has.
Guidance, temperature and re-ranking by chapter 10's CLIP are varied one at a time. The prior and
the first decoder are flows, marked by the same judge on the same captions; the second decoder
uncovers codes and begins with DALL·E's weights. The emoji's Transformer is asked for names of
concepts that it has not seen.

The run is made of jobs. On a GPU they run side by side, each in a process of its own as soon as
those that it needs are done, and the models that are marked on held-out combinations meet more
pictures; else one runs after the other. ``python book/training/ch11.py NAME ...`` runs some alone.
"""

import contextlib
import functools
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from filelock import FileLock
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mmlib import results
from mmlib.attention import MultiHeadAttention
from mmlib.dalle import Dalle
from mmlib.dalle_training import codes_to_hide, without_caption
from mmlib.data import emoji, scenes
from mmlib.data.scenes import BACKGROUNDS, COLOURS, SHAPES, Scene
from mmlib.judge import load_judge
from mmlib.marks import Marks, mark
from mmlib.metrics.kid import frechet_distance, kernel_distance, kernel_interval
from mmlib.painters import (
    caption_ids,
    emoji_dalle,
    grid_scenes,
    name_ids,
    paint,
    paint_flow,
    rerank,
    scene_dalle,
    scene_flows,
    tokenizer,
)
from mmlib.scene_unmasking import paint_uncovered, scene_unmasker
from mmlib.small_clips import picture_features, scene_clip, scene_ids
from mmlib.training import TrainConfig, fit, save_weights
from mmlib.training.checkpoint import load_state, save_state
from mmlib.unclip import draw_flow

MINUTES = 85
CHECKPOINTS, RUNS = Path("mmlib/checkpoints"), Path("runs/11_dalle")
GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
# What is learnt from: so many parts of 4,000 scenes, and batches of them.
PARTS, PART, BATCH = (50 if GPU else 12), 4000, (128 if GPU else 32)
STEPS, DECODER_STEPS, UNMASKER_STEPS = (8000, 7000, 6000) if GPU else (7000, 7000, 5000)
PRIOR_STEPS, PRIOR_BATCH = (4000 if GPU else 1500), 256
# The others are alike everywhere.
SMALL_BATCH, EMOJI_STEPS, SHORT_STEPS, PROBE_STEPS, START_STEPS = 32, 1000, 1200, 1500, 400
DROP = 0.1  # share of captions, or of all conditions, left out in training
HIDE = 0.4  # the largest share of a picture's codes that is hidden from those after them
# Against learning combinations by heart, which longer runs have the time for: more hidden codes,
# the largest share of a caption's words that is hidden, dropout, and weight decay.
LONG_HIDE, HIDE_WORDS, DROPOUT, DECAY = (0.4, 0.0, 0.0, 0.05) if GPU else (HIDE, 0.0, 0.0, 0.05)
RATE, UNMASKER_RATE = 3e-3, 1.5e-3
ALONE = 0.3  # share of pictures whose decoder sees the text alone; of as many the picture alone
WORDS_ALONE, VECTOR_ALONE = 0.4, 0.1  # the same of the decoder that uncovers codes
NOISE = 0.5  # most noise on the decoder's vectors of pictures: a prior's are not exact either
CAPTIONS, CANDIDATES = (600 if GPU else 150), 16
# Set before the run, after short ones.
GUIDANCE, TEMPERATURE = 1.5, 0.5
FLOW_GUIDANCE, FLOW_STEPS = 2.0, 12
UNCOVER = {"guidance": 1.5, "temperature": 0.5, "noise": 0.5, "steps": 64}


def note(name: str, value: float, metric: str, tolerance: float = 0.08, **options) -> None:
    """Record a number of this chapter."""
    options = {"tolerance": tolerance, "seed": 0} | options
    with FileLock(RUNS / "ledger.lock"):  # other jobs write to the same file
        results.record(f"11.{name}", value, metric=metric, **options)


def seeded(seed: int) -> torch.Generator:
    """A generator on the device."""
    return torch.Generator(DEVICE).manual_seed(seed)


def drawn(count: int, seed: int, split: str) -> list[Scene]:
    """Scenes of one or two objects."""
    return scenes.sample(count, seed, split=split, objects=(1, 2))


@torch.no_grad()
def codes_of(pictures: Tensor) -> Tensor:
    """Codes of pictures, row by row."""
    model = tokenizer().to(DEVICE)
    return torch.cat([model.encode(part.to(DEVICE)).flatten(1) for part in pictures.split(64)])


@functools.cache
def clip() -> nn.Module:
    """Chapter 10's CLIP of scenes."""
    return scene_clip(trained=True).to(DEVICE)


@torch.no_grad()
def vectors_of(pictures: Tensor, ids: Tensor) -> Tensor:
    """Chapter 10's vectors of pictures, and of their captions: (pictures, 2, 128)."""
    model = clip()
    image = torch.cat([model.encode_image(part.to(DEVICE)) for part in pictures.split(250)])
    text = torch.cat([model.encode_text(part.to(DEVICE)) for part in ids.split(250)])
    return torch.stack([image, text], dim=1)


def clip_vectors(items: list[Scene]) -> Tensor:
    """The same of scenes."""
    return vectors_of(scenes.render(items, 32), scene_ids(items))


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
    what: str = "",
) -> None:
    """Train a model and round it, and save it if it is said what it is; it ends in eval mode."""
    config = TrainConfig(
        steps,
        learning_rate=rate,
        warmup=steps // 20,
        weight_decay=DECAY,
        precision="bf16" if GPU else "auto",
        checkpoint_every=2000 if GPU else 200,
        progress=False,
    )
    # On a CPU the plain products are faster, in bf16, than the fused attention's gradient.
    with contextlib.nullcontext() if GPU else sdpa_kernel([SDPBackend.MATH]):
        history = fit(model, loss, batch, config, checkpoint=RUNS / name, resume=True)
    round_weights(model.eval())
    print(f"{name}: {history.seconds:.0f} s, loss {history.losses[-1]:.3f}", flush=True)
    if not what:
        return
    save_weights(
        model,
        CHECKPOINTS / f"11_{name}.safetensors",
        card={
            "what": what,
            "command": "make train CHAPTER=11",
            "seed": 0,
            "steps": steps,
            "minutes": round(history.seconds / 60, 1),
            "device": torch.cuda.get_device_name() if GPU else "two CPU cores",
            "loss": round(sum(history.losses[-50:]) / len(history.losses[-50:]), 4),
        },
        dtype=torch.bfloat16,
    )


def rows_and_drops(size: int, batch: int, number: int) -> tuple[Tensor, Tensor]:
    """Which items a batch has, and which of them lose their condition."""
    dice, where = seeded(number), {"device": DEVICE}
    rows = torch.randint(size, (batch,), generator=dice, **where)
    return rows, torch.rand(batch, generator=dice, **where) < DROP


def hide(number: int, batch: int, most: float = HIDE) -> Tensor:
    """Which codes of a batch are hidden from those after them."""
    dice = torch.Generator().manual_seed(1_000_000 + number)
    return codes_to_hide(batch, 64, most, dice).to(DEVICE)


def hide_words(text: Tensor, number: int) -> Tensor:
    """Captions of a batch, some of their words replaced by padding."""
    dice, where = seeded(4_000_000 + number), {"device": DEVICE}
    share = HIDE_WORDS * torch.rand(len(text), 1, generator=dice, **where)
    return text.masked_fill(torch.rand(text.shape, generator=dice, **where) < share, 0)


def with_dropout(model: nn.Module) -> nn.Module:
    """A model that is made without dropout, with it while it is trained."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = DROPOUT
        elif isinstance(module, MultiHeadAttention):
            module.dropout = DROPOUT
    return model


def code_loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """DALL·E's loss with hidden codes."""
    text, codes, hidden = batch
    return model.loss(text, codes, hidden=hidden)


# --- what pictures are worth -------------------------------------------------------------------


def marks_of(pictures: Tensor, wanted: list[Scene]) -> Marks:
    """The judge's marks."""
    return mark(judge().read(pictures.to(DEVICE)), wanted)


@functools.cache
def judge() -> nn.Module:
    """The judge, on the device."""
    return load_judge().to(DEVICE)


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


class Pool(NamedTuple):
    """What the models of scenes learn from.

    Attributes:
        text: Captions' ids.
        codes: Pictures' codes.
        vectors: CLIP's of picture and caption.
        things: Which shapes and colours are there.
    """

    text: Tensor
    codes: Tensor
    vectors: Tensor
    things: Tensor


def draw_part(number: int) -> tuple:
    """Captions, contents and pictures of some scenes, as arrays that processes may exchange."""
    items = grid_scenes(PART, 1_100_000 + number)
    found = caption_ids(items), scene_ids(items), things(items), scenes.render(items, 32)
    return tuple(part.numpy() for part in found)


def draw_parts() -> Iterator[tuple]:
    """All parts; where a GPU would wait for them, on all cores."""
    if not GPU or "fork" not in multiprocessing.get_all_start_methods():
        yield from map(draw_part, range(PARTS))
        return
    context, cores = multiprocessing.get_context("fork"), max(1, (os.cpu_count() or 1) - 1)
    with context.Pool(cores, torch.set_num_threads, (1,)) as workers:
        yield from workers.imap(draw_part, range(PARTS))


def draw_pool() -> Pool:
    """Draw the scenes, and read off their codes and vectors."""
    found = []
    for part in draw_parts():
        text, ids, present, pictures = map(torch.from_numpy, part)
        found.append((text, codes_of(pictures).cpu(), vectors_of(pictures, ids).cpu(), present))
    return Pool(*map(torch.cat, zip(*found, strict=True)))


@functools.cache
def pool() -> Pool:
    """The scenes of all models, drawn once."""
    path = RUNS / f"pool_{PARTS}.pt"
    if not path.exists():
        save_state(draw_pool()._asdict(), path)
    return Pool(**{name: part.to(DEVICE) for name, part in load_state(path).items()})


def train_scenes() -> None:
    """The Transformer over captions and codes of scenes."""
    text, codes = pool().text, pool().codes

    def batch(number: int) -> tuple[Tensor, ...]:
        rows, drop = rows_and_drops(len(text), BATCH, number)
        said = without_caption(hide_words(text[rows], number), drop, 0)
        return said, codes[rows], hide(number, BATCH, LONG_HIDE)

    what = "DALL·E on scenes of one or two objects, over chapter 09's codes"
    train(with_dropout(scene_dalle()), code_loss, batch, STEPS, RATE, "scenes", what)


def mark_scenes() -> None:
    """Measure DALL·E on held-out combinations, and what each knob does."""
    model = scene_dalle(trained=True).to(DEVICE)
    wanted = drawn(CAPTIONS, 11_001, "test")
    real = scenes.render(wanted, 32)
    note("real_right", share(marks_of(real, wanted)), "true pictures: all right", 0.01)
    rebuilt = tokenizer().decode(codes_of(real).unflatten(1, (8, 8)))
    note_attributes("rebuilt", marks_of(rebuilt, wanted), "pictures after the tokenizer", wanted)

    nats("nats", model, "test")
    nats("nats_seen", model, "train")
    text = caption_ids(wanted).to(DEVICE)

    def one(label: str, name: str, **options) -> None:
        pictures = paint(model, text, seeded(0), **options)
        note(f"{name}_right", share(marks_of(pictures, wanted)), f"{label}: all right")

    for guidance in (0.0, 1.0, 1.5, 3.0):
        key = f"guidance_{guidance:g}".replace(".", "_")
        one(f"guidance {guidance:g}, temperature 1", key, guidance=guidance)
    for temperature in (0.0, 0.5, 0.75):
        key = f"temperature_{temperature:g}".replace(".", "_")
        one(f"temperature {temperature:g}, no guidance", key, temperature=temperature)
    one("top 20 codes", "top_k_20", top_k=20)
    one("nucleus of 0.9", "top_p_0_9", top_p=0.9)

    many = text.repeat_interleave(CANDIDATES, dim=0)
    pictures = paint(
        model,
        many,
        seeded(1),
        chunk=1600,
        guidance=GUIDANCE,
        temperature=TEMPERATURE,
    ).unflatten(0, (CAPTIONS, CANDIDATES))
    first = marks_of(pictures[:, 0], wanted)
    note_attributes("first", first, f"guidance {GUIDANCE:g}, temperature {TEMPERATURE:g}", wanted)
    judged = marks_of(pictures.flatten(0, 1), [s for s in wanted for _ in range(CANDIDATES)])
    every = judged.right.unflatten(0, (CAPTIONS, CANDIDATES))
    note("mean_right", every.double().mean().item(), "all candidates: all right")
    note("any_right", every.any(1).double().mean().item(), f"one of {CANDIDATES} is all right")
    captions = scene_ids(wanted).to(DEVICE)
    for count in (2, 4, 8, CANDIDATES):
        best = rerank(clip(), pictures[:, :count], captions)
        marks = marks_of(best, wanted)
        note(f"best_of_{count}", share(marks), f"CLIP's best of {count}: all right")
    note_attributes("best", marks, f"CLIP's best of {CANDIDATES}", wanted)

    known = drawn(CAPTIONS, 11_002, "train")
    many = caption_ids(known).to(DEVICE).repeat_interleave(8, dim=0)
    options = {"guidance": GUIDANCE, "temperature": TEMPERATURE, "chunk": 1600}
    pictures = paint(model, many, seeded(2), **options)
    pictures = pictures.unflatten(0, (CAPTIONS, 8))
    note("seen_right", share(marks_of(pictures[:, 0], known)), "seen combinations: all right")
    marks = marks_of(rerank(clip(), pictures, scene_ids(known).to(DEVICE)), known)
    note_attributes("seen_best", marks, "seen combinations, CLIP's best of 8", known)


def compare_hiding() -> None:
    """A short run with hidden codes and one without, marked alike on held-out combinations."""
    text, codes, wanted = pool().text, pool().codes, drawn(CAPTIONS, 11_001, "test")
    for name, most in (("hidden", HIDE), ("shown", 0.0)):

        def batch(number: int, most: float = most) -> tuple[Tensor, ...]:
            rows, drop = rows_and_drops(len(text), SMALL_BATCH, number)
            hidden = hide(number, SMALL_BATCH, most)
            return without_caption(text[rows], drop, 0), codes[rows], hidden

        model = scene_dalle()
        train(model, code_loss, batch, SHORT_STEPS, 3e-3, f"short_{name}")
        options = {"guidance": GUIDANCE, "temperature": TEMPERATURE}
        pictures = paint(model, caption_ids(wanted).to(DEVICE), seeded(1), **options)
        marks = marks_of(pictures, wanted)
        note_attributes(f"short_{name}", marks, f"{SHORT_STEPS} steps, codes {name}", wanted)
        nats(f"short_{name}_nats", model, "test")
        nats(f"short_{name}_nats_seen", model, "train")


def nats(name: str, model: Dalle, split: str) -> None:
    """Record what the true codes cost under their own caption, under another's and under none."""
    items = grid_scenes(CAPTIONS, 11_003, split)
    text = caption_ids(items).to(DEVICE)
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


def vague(vectors: Tensor, dice: torch.Generator) -> Tensor:
    """Vectors of pictures with noise on them, as a prior's are not exact either."""
    where = {"generator": dice, "device": DEVICE}
    size = NOISE * torch.rand(len(vectors), 1, **where) * vectors.shape[1] ** -0.5
    return vectors + size * torch.randn(vectors.shape, **where)


def own_loss(model: nn.Module, batch: tuple) -> Tensor:
    """A loss that draws random numbers: the batch's number is their seed."""
    *given, number = batch
    return model.loss(*given, generator=seeded(number))


def train_prior() -> None:
    """The prior."""
    vectors = pool().vectors

    def batch(number: int) -> tuple:
        rows, drop = rows_and_drops(len(vectors), PRIOR_BATCH, number)
        return vectors[rows, 0], vectors[rows, 1:], drop[:, None], number

    what = "flow from CLIP's vector of a caption to one of a picture, scenes"
    train(scene_flows()[0], own_loss, batch, PRIOR_STEPS, 1e-3, "prior", what)


def train_decoder() -> None:
    """The decoder."""
    codes, vectors = pool().codes, pool().vectors

    def batch(number: int) -> tuple:
        rows, neither = rows_and_drops(len(codes), BATCH, number)
        dice = seeded(2_000_000 + number)
        alone = torch.rand(BATCH, generator=dice, device=DEVICE)
        given = vectors[rows]
        given[:, 0] = vague(given[:, 0], dice)
        drop = torch.stack([neither | (alone < ALONE), neither | (alone > 1 - ALONE)], dim=1)
        return codes[rows], given, drop, number

    what = "flow from CLIP's vectors of a picture and of its caption to chapter 09's codes, scenes"
    train(scene_flows()[1], own_loss, batch, DECODER_STEPS, 3e-3, "decoder", what)


def learn_to_uncover(
    steps: int, size: int, name: str, what: str = "", begun: bool = True
) -> nn.Module:
    """The decoder that uncovers codes, begun with DALL·E's weights or from nothing."""
    text, codes, vectors = pool().text, pool().codes, pool().vectors[:, 0]

    def batch(number: int) -> tuple:
        rows, neither = rows_and_drops(len(codes), size, number)
        dice = seeded(3_000_000 + number)
        alone = torch.rand(size, generator=dice, device=DEVICE)
        given = vague(vectors[rows], dice)
        missing = (alone < WORDS_ALONE, alone > 1 - VECTOR_ALONE)
        drop = torch.stack([neither | x for x in missing], dim=1)
        return codes[rows], given, hide_words(text[rows], number), drop, number

    model = with_dropout(scene_unmasker(begun=begun))
    train(model, own_loss, batch, steps, UNMASKER_RATE, name, what)
    return model


def train_unmasker() -> None:
    """The long run of that decoder."""
    what = "decoder of CLIP's vector and a caption that uncovers chapter 09's codes, scenes"
    learn_to_uncover(UNMASKER_STEPS, BATCH, "unmasker", what)


def probe() -> None:
    """What can be read from CLIP's vectors: which shapes and which colours are there.

    A small network learns it from training combinations, and is asked about others of them and
    about held-out ones. What it cannot read there, no decoder can paint.
    """
    vectors, present = pool().vectors[:12_000], pool().things[:12_000]
    for part, name in enumerate(("image", "text")):
        mean, spread = vectors[:, part].mean(0), vectors[:, part].std(0)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(128, 512), nn.GELU(), nn.Linear(512, 16))

        def batch(number: int, part: int = part, mean=mean, spread=spread) -> tuple[Tensor, ...]:
            rows = torch.randint(len(present), (256,), generator=seeded(number), device=DEVICE)
            return (vectors[rows, part] - mean) / spread, present[rows]

        def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
            return nn.functional.binary_cross_entropy_with_logits(model(batch[0]), batch[1])

        config = TrainConfig(PROBE_STEPS, learning_rate=2e-3, warmup=50, progress=False)
        fit(model, loss, batch, config)
        for split, seed in (("test", 11_001), ("train", 11_002)):
            asked = drawn(600, seed, split)
            with torch.no_grad():
                found = model((clip_vectors(asked)[:, part] - mean) / spread) > 0
            right = found == things(asked).bool().to(DEVICE)
            for what, columns in (("shapes", slice(0, 8)), ("colours", slice(8, 16))):
                label = f"{what} read from the {name}'s vector, combinations of split {split}"
                value = right[:, columns].all(1).double().mean().item()
                note(f"probe_{name}_{what}_{split}", value, label, 0.05)


def things(items: list[Scene]) -> Tensor:
    """Which of the eight shapes and which of the eight colours are in each scene."""
    return torch.tensor(
        [
            [float(any(o.shape == name for o in scene.objects)) for name in SHAPES]
            + [float(any(o.colour == name for o in scene.objects)) for name in COLOURS]
            for scene in items
        ]
    )


def mark_flows() -> None:
    """Measure both flows on held-out combinations, together and apart."""
    prior, decoder = (flow.to(DEVICE) for flow in scene_flows(trained=True))
    wanted = drawn(CAPTIONS, 11_001, "test")
    true = clip_vectors(wanted)
    image, text = true.unbind(1)

    def invented(guidance: float = 1.0) -> Tensor:
        options = {"guidance": guidance, "steps": 16}
        return draw_flow(prior, text[:, None], text.shape[1:], seeded(4), **options)

    # Another picture of the same caption, for comparison: the same scene on another background.
    after = dict(zip(BACKGROUNDS, BACKGROUNDS[1:] + BACKGROUNDS[:1], strict=True))
    other = clip_vectors([replace(s, background=after[s.background]) for s in wanted])[:, 0]
    from_prior = invented()
    for name, found in (("text", text), ("prior", from_prior), ("other", other)):
        cosine = torch.cosine_similarity(found, image).mean().item()
        note(f"cosine_{name}", cosine, f"cosine of {name}'s vector and the true picture's", 0.05)

    def pictures(
        vectors: Tensor, sees: str, guidance: float = FLOW_GUIDANCE, steps: int = FLOW_STEPS
    ) -> Tensor:
        drop = torch.tensor([sees == "text", sees == "vector"], device=DEVICE)
        both = torch.stack([vectors, text], dim=1)
        options = {"drop": drop.expand(len(both), 2), "guidance": guidance, "steps": steps}
        return paint_flow(decoder, both, seeded(3), **options)

    variants = {
        "decoder": ("true vectors", image, "vector"),
        "decoder_both": ("true vectors and the text", image, "both"),
        "unclip": ("prior and decoder", from_prior, "vector"),
        "unclip_both": ("prior and decoder, which sees the text", from_prior, "both"),
        "no_prior": ("the text's vector in place of the prior's", text, "vector"),
        "text_only": ("the decoder sees the text alone", text, "text"),
        "prior_2": ("prior's guidance 2", invented(2.0), "both"),
        "flow_guidance_1": ("decoder's guidance 1", from_prior, "both", 1.0),
        "flow_guidance_4": ("decoder's guidance 4", from_prior, "both", 4.0),
        "flow_steps_3": ("decoder's steps: 3", from_prior, "both", FLOW_GUIDANCE, 3),
        "flow_steps_40": ("decoder's steps: 40", from_prior, "both", FLOW_GUIDANCE, 40),
    }
    for name, (label, *given) in variants.items():
        note_attributes(name, marks_of(pictures(*given), wanted), label, wanted)

    known = drawn(CAPTIONS, 11_002, "train")
    both = clip_vectors(known)
    dice = seeded(5)
    given = draw_flow(prior, both[:, 1:], text.shape[1:], dice, steps=16)
    both = torch.stack([given, both[:, 1]], dim=1)
    options = {"guidance": FLOW_GUIDANCE, "steps": FLOW_STEPS}
    seen = paint_flow(decoder, both, dice, **options)
    note_attributes("unclip_seen", marks_of(seen, known), "seen combinations", known)


def mark_unmasker() -> None:
    """Measure the decoder that uncovers codes, with the prior and without."""
    prior = scene_flows(trained=True)[0].to(DEVICE)
    model = scene_unmasker(trained=True).to(DEVICE)
    wanted = drawn(CAPTIONS, 11_001, "test")
    true, text = clip_vectors(wanted), caption_ids(wanted).to(DEVICE)
    image, said = true.unbind(1)
    shape = said.shape[1:]
    invented = draw_flow(prior, said[:, None], shape, seeded(4), steps=16)

    def pictures(vectors: Tensor, sees: str = "both", **changed) -> Tensor:
        drop = torch.tensor([sees == "words", sees == "vector"], device=DEVICE)
        options = {"drop": drop.expand(len(vectors), 2)} | UNCOVER | changed
        return paint_uncovered(model, vectors, text, seeded(3), **options)

    variants = {
        "uncover": ("prior's vector and words", invented, "both", {}),
        "uncover_vector": ("prior's vector alone", invented, "vector", {}),
        "uncover_words": ("words alone", invented, "words", {}),
        "uncover_true": ("true vector and words", image, "both", {}),
        "uncover_guidance_1": ("guidance 1", invented, "both", {"guidance": 1.0}),
        "uncover_guidance_4": ("guidance 4", invented, "both", {"guidance": 4.0}),
        "uncover_surest": ("surest first", invented, "both", {"noise": 0.0}),
        "uncover_random": ("random order", invented, "both", {"noise": float("inf")}),
        "uncover_temperature_1": ("temperature 1", invented, "both", {"temperature": 1.0}),
        "uncover_steps_4": ("4 steps", invented, "both", {"steps": 4}),
        "uncover_steps_16": ("16 steps", invented, "both", {"steps": 16}),
    }
    for name, (label, vectors, sees, changed) in variants.items():
        found = marks_of(pictures(vectors, sees, **changed), wanted)
        note_attributes(name, found, f"codes uncovered, {label}", wanted)

    known = drawn(CAPTIONS, 11_002, "train")
    said, dice = clip_vectors(known)[:, 1:], seeded(5)
    given = draw_flow(prior, said, shape, dice, steps=16)
    seen = paint_uncovered(model, given, caption_ids(known).to(DEVICE), dice, **UNCOVER)
    note_attributes("uncover_seen", marks_of(seen, known), "uncovered, seen combinations", known)


def compare_starts() -> None:
    """Short runs of that decoder: begun with DALL·E's weights, and from nothing."""
    wanted = drawn(CAPTIONS, 11_001, "test")
    image, text = clip_vectors(wanted)[:, 0], caption_ids(wanted).to(DEVICE)
    for name, begun in (("begun", True), ("from_nothing", False)):
        model = learn_to_uncover(START_STEPS, SMALL_BATCH, f"start_{name}", begun=begun)
        found = paint_uncovered(model, image, text, seeded(3), **UNCOVER)
        label = f"codes uncovered after {START_STEPS} steps, {name.replace('_', ' ')}, true vector"
        note_attributes(f"start_{name}", marks_of(found, wanted), label, wanted)


# --- emoji -------------------------------------------------------------------------------------


def train_emoji() -> None:
    """The Transformer over names and codes of emoji."""
    data = emoji.load("train", 32)
    pictures = data.images.float() / 255
    text, codes = name_ids(data.names).to(DEVICE), codes_of(pictures)
    mirrored = codes_of(pictures.flip(3))

    def batch(number: int) -> tuple[Tensor, ...]:
        rows, drop = rows_and_drops(len(data), SMALL_BATCH, number)
        flip = torch.rand(SMALL_BATCH, generator=seeded(5_000_000 + number), device=DEVICE) < 0.5
        chosen = torch.where(flip[:, None], mirrored[rows], codes[rows])
        return without_caption(text[rows], drop, 0), chosen, hide(number, SMALL_BATCH)

    what = "DALL·E on names and pictures of training emoji, over chapter 09's codes"
    train(emoji_dalle(), code_loss, batch, EMOJI_STEPS, 3e-3, "emoji", what)


def mark_emoji() -> None:
    """Measure how far generated emoji are from held-out ones, and how near to training ones."""
    model = emoji_dalle(trained=True).to(DEVICE)
    test, data = emoji.load("test", 32), emoji.load("train", 32)
    pictures = paint(
        model, name_ids(test.names).to(DEVICE), seeded(5), guidance=2.0, temperature=0.8
    )
    sets = {
        "test": test.images.float() / 255,
        "train": data.images.float() / 255,
        "generated": pictures.cpu(),
    }
    sets["rebuilt"] = tokenizer().decode(codes_of(sets["test"]).unflatten(1, (8, 8))).cpu()
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
            text, codes = name_ids(items.names)[:280].to(DEVICE), codes_of(sets[name][:280])
            own = -model.log_prob(text, codes).mean().item()
            other = -model.log_prob(text.roll(40, 0), codes).mean().item()
            note(f"emoji_nats_{name}", own, f"nats a code, {name} emoji", 0.3, baseline=other)


# --- the run ------------------------------------------------------------------------------------

#: Each job, and those that must be done before it.
JOBS: dict[str, tuple[Callable[[], object], tuple[str, ...]]] = {
    "pool": (pool, ()),
    "scenes": (train_scenes, ("pool",)),
    "prior": (train_prior, ("pool",)),
    "decoder": (train_decoder, ("pool",)),
    "emoji": (train_emoji, ()),
    "unmasker": (train_unmasker, ("scenes",)),
    "scene_marks": (mark_scenes, ("scenes",)),
    "flow_marks": (mark_flows, ("prior", "decoder")),
    "unmasker_marks": (mark_unmasker, ("prior", "unmasker")),
    "emoji_marks": (mark_emoji, ("emoji",)),
    "hiding": (compare_hiding, ("pool",)),
    "starts": (compare_starts, ("scenes",)),
    "probe": (probe, ("pool",)),
}


def start(name: str, needed: list[Future]) -> None:
    """Run a job in a process of its own, after those it needs."""
    for job in needed:
        job.result()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, __file__, name], env=environment, check=True)


def main(*names: str) -> None:
    """Train, and record every number; or run only the named jobs."""
    RUNS.mkdir(parents=True, exist_ok=True)
    if names or not GPU:
        for name in names or JOBS:
            if name != "pool":  # it forks workers, best before the GPU is used
                tokenizer().to(DEVICE)
            JOBS[name][0]()
            print(f"{name}: done", flush=True)
        return
    jobs: dict[str, Future] = {}
    with ThreadPoolExecutor(len(JOBS)) as threads:
        for name, (_, needs) in JOBS.items():
            jobs[name] = threads.submit(start, name, [jobs[job] for job in needs])
    failed = [name for name, job in jobs.items() if job.exception()]
    if failed:
        raise RuntimeError(f"these jobs failed, or what they need: {', '.join(failed)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
