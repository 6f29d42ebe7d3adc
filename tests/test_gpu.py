"""What only a GPU can show: ``pytest -m gpu``. Everything here is skipped where there is none.

- The language model gives the CPU's loss and gradients, packed rows with padding included; in bf16
  nearly so; compiled and with blocks that compute again, too.
- Nobody sees a neighbour in a packed row, by gradients; no gradient is NaN.
- Towers look and paint as on the CPU, and give back what documents can be written from.
- Cached writing and drawing are those without a cache.
- The memory that a step takes is what was worked out.
- Training: batches worked out ahead in other processes, all four stages, stopped and continued.
- CLIP's step, DALL·E's loss, the tokenizer and the decoder that uncovers codes as on the CPU.
"""

import copy
import dataclasses
import shutil

import pytest
import torch

from mmlib.data import scenes
from mmlib.painters import caption_ids, grid_scenes, scene_dalle, tokenizer
from mmlib.scene_unmasking import scene_unmasker
from mmlib.small_clips import scene_clip, scene_ids
from mmlib.system.faster import Ahead, compiled, recomputed
from mmlib.system.lessons import Lessons
from mmlib.system.marking import marks_of
from mmlib.system.material import Material
from mmlib.system.pictures import Pictures
from mmlib.system.profiles import PROFILES, cost
from mmlib.system.stages import load_system, new_system, shipped_system, train_system
from mmlib.system.tasks import Turn
from mmlib.system.writing import paint, write
from mmlib.training import TrainConfig, fit
from mmlib.training.optimizer import adamw

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]
SMALL = dataclasses.replace(PROFILES["smoke"], pool=64, documents=16)


@pytest.fixture(autouse=True)
def _as_exact_as_can_be():
    """The suite's deterministic mode needs a workspace that cuBLAS was not given; TF32 is off."""
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.use_deterministic_algorithms(True)


def system(config=SMALL):
    return new_system(config, scene_clip(trained=True), tokenizer())


def lessons(found, config=SMALL, stage=4):
    material = Material(found.pictures, config.pool, (1, config.most_objects), 3)
    return Lessons(material, found.writer, config.menu(stage), 4)


def loss_and_gradients(model, rows, bf16=False):
    model.zero_grad()
    with torch.autocast(rows.ids.device.type, torch.bfloat16, enabled=bf16):
        total, count = model.loss(rows)
    (total / count).backward()
    grads = {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
    return (total / count).detach().cpu(), grads


@pytest.fixture(scope="module")
def taught():
    """A model, a packed batch of all kinds of lessons, and the CPU's loss and gradients."""
    found = system()
    rows = lessons(found)(0)
    assert (rows.document < 0).any()  # padding, in which nobody may attend to anybody
    return found.language, rows, loss_and_gradients(found.language, rows)


def close(found, wanted, rtol):
    torch.testing.assert_close(found[0], wanted[0], rtol=rtol, atol=rtol)
    for name, gradient in wanted[1].items():
        error = (found[1][name] - gradient).norm() / (gradient.norm() + 1e-6)
        assert error < rtol, f"{name}: {error:.2e}"


@pytest.mark.parametrize("how", ["plain", "compiled", "recomputed", "both"])
def test_the_language_model_is_that_of_the_cpu(taught, how):
    model, rows, wanted = copy.deepcopy(taught[0]).cuda(), taught[1].to("cuda"), taught[2]
    blocks = model.decoder.blocks
    with (
        recomputed(blocks, how in ("recomputed", "both")),
        compiled(model, how in ("compiled", "both")),
    ):
        close(loss_and_gradients(model, rows), wanted, 1e-3)
        close(loss_and_gradients(model, rows, bf16=True), wanted, 0.1)


def test_nobody_sees_a_neighbour(taught):
    model, rows = copy.deepcopy(taught[0]).cuda(), taught[1].to("cuda")
    embed = model._embed
    held = {}

    def watch(rows):
        held["x"] = embed(rows).detach().requires_grad_()
        return held["x"]

    model._embed = watch
    known = model(rows)
    mine = rows.document == 3
    known[mine].square().sum().backward()
    gradient = held["x"].grad.abs().sum(-1)
    assert gradient.isfinite().all()
    assert (gradient[mine] > 0).any()
    assert (gradient[~mine] == 0).all()


def test_towers_see_and_paint_as_on_the_cpu():
    pictures = Pictures(scene_clip(trained=True), tokenizer())
    items = scenes.sample(20, 5, objects=(1, 2))
    images, ids = scenes.render(items, 32), scene_ids(items)
    wanted = (pictures.look(images), pictures.codes(images), pictures.find(images, ids))
    moved = copy.deepcopy(pictures).to("cuda")
    found = (moved.look(images), moved.codes(images), moved.find(images, ids))
    assert all(part.device.type == "cpu" for part in found)
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-3, atol=1e-3)
    assert (found[1] == wanted[1]).float().mean() > 0.99  # ties are broken otherwise
    torch.testing.assert_close(found[2], wanted[2], rtol=1e-3, atol=1e-3)
    grids = wanted[1].unflatten(1, (8, 8))
    torch.testing.assert_close(moved.paint(grids), pictures.paint(grids), rtol=1e-3, atol=1e-3)


def test_cached_writing_and_drawing_are_those_without():
    found = shipped_system()
    items = scenes.sample(6, 8, split="test", objects=(1, 2))
    seen = found.pictures.look(scenes.render(items, 32))
    asked = [found.writer.dialogue([Turn("what do you see?", picture=one)]) for one in seen]
    model, known = found.language, found.known
    assert write(model, known, asked) == write(model, known, asked, use_cache=False)
    prompts = [found.writer.drawing(scenes.caption(s), "en", None) for s in items]
    options = {"guidance": 1.5, "temperature": 0.5}
    drawn = [
        paint(model, known, prompts, generator=torch.Generator().manual_seed(1), **options, **more)
        for more in ({}, {"use_cache": False})
    ]
    assert (drawn[0] == drawn[1]).float().mean() > 0.95


@pytest.mark.parametrize("recompute", [False, True])
def test_memory_is_what_was_worked_out(recompute):
    config = dataclasses.replace(
        PROFILES["t4"], pool=256, precision="bf16", recompute=recompute, emoji=0.0, layers=12
    )
    found = system(config)
    model = found.language.cuda().train()
    optimizer = adamw(model, 1e-3, 0.0)
    batch = lessons(found, config)
    with recomputed(model.decoder.blocks, recompute):
        for number in range(3):
            torch.cuda.reset_peak_memory_stats()
            with torch.autocast("cuda", torch.bfloat16):
                total, count = model.loss(batch(number).to("cuda"))
            (total / count).backward()
            optimizer.step()
            optimizer.zero_grad()
    measured = torch.cuda.max_memory_allocated()
    worked_out = cost(config, found.known.size)
    print(f"recompute={recompute}: {measured / 1e6:.0f} MB, {worked_out.peak / 1e6:.0f} worked out")
    assert 0.75 < measured / worked_out.peak < 1.3


def test_batches_come_ahead_while_the_gpu_works(taught):
    torch.zeros(1).cuda()  # the processes are forked from one that uses the GPU
    found = system()
    batch = lessons(found)
    ahead = Ahead(batch, workers=3)
    for number in range(5):
        torch.testing.assert_close(tuple(ahead(number)), tuple(batch(number)))


def test_all_stages_are_trained_stopped_and_continued(tmp_path):
    sizes = {"pretraining_steps": 6, "instruction_steps": 6, "checkpoint_every": 4}
    config = dataclasses.replace(
        SMALL, clip_steps=3, autoencoder_steps=3, compile=True, evaluate_every=3, **sizes
    )
    whole = train_system(config, tmp_path / "whole", progress=False)
    assert whole.language.word_head.weight.device.type == "cuda"
    for name in ("3_pretraining", "4_instructions"):
        assert (tmp_path / "whole" / name / "metrics.jsonl").exists()
    # The last stage is taken away, and done again from the stages before it.
    shutil.rmtree(tmp_path / "whole" / "4_instructions")
    again = train_system(config, tmp_path / "whole", progress=False)
    for a, b in zip(whole.language.parameters(), again.language.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.02)
    marks = marks_of(load_system(tmp_path / "whole"), 4)
    assert all(0 <= value <= 1 for value in marks.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fit_learns_on_the_gpu(precision):
    found = system()
    batch = lessons(found)
    config = TrainConfig(
        60, learning_rate=2e-3, warmup=5, precision=precision, progress=False, weight_decay=0.0
    )
    history = fit(found.language, lambda m, rows: m.loss(rows), batch, config)
    assert history.device == "cuda"
    assert sum(history.losses[-10:]) < 0.7 * sum(history.losses[:10])


def test_clip_and_dalle_as_on_the_cpu():
    items = grid_scenes(16, 9)
    images = scenes.render(items, 32)
    clip, model = scene_clip(trained=True), scene_dalle(trained=True)
    codes = tokenizer().encode(images).flatten(1)
    moved = copy.deepcopy(tokenizer()).cuda().encode(images.cuda()).flatten(1).cpu()
    assert (moved == codes).float().mean() > 0.99
    text = caption_ids(items)
    for part, arguments in ((clip, (images, scene_ids(items))), (model, (text, codes))):
        wanted = part.loss(*arguments)
        found = copy.deepcopy(part).cuda().loss(*(x.cuda() for x in arguments))
        torch.testing.assert_close(found.cpu(), wanted, rtol=1e-3, atol=1e-3)


def test_the_decoder_that_uncovers_learns_on_the_gpu():
    items = grid_scenes(64, 9)
    codes = tokenizer().encode(scenes.render(items, 32)).flatten(1)
    vectors = scene_clip(trained=True).encode_image(scenes.render(items, 32)).detach()
    drop = torch.zeros(64, 2, dtype=torch.bool)

    def loss(model, batch):
        *given, number = batch
        return model.loss(*given, generator=torch.Generator().manual_seed(int(number)))

    def batch(number):
        return codes, vectors, caption_ids(items), drop, torch.tensor(number)

    config = TrainConfig(20, learning_rate=1e-3, warmup=2, precision="fp32", progress=False)
    history = fit(scene_unmasker(begun=True), loss, batch, config)
    assert sum(history.losses[-5:]) < sum(history.losses[:5])
