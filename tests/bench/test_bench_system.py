"""The full system's language model: writing beside transformers, and what of the machine it uses.

Writing is greedy, with a cache, with equal weights and equal words. Training is set against the
fastest product of large matrices that this machine does, and two processes of one thread against
one of one thread, each with batches of its own.
"""

import json
import multiprocessing
import os
from statistics import median

import pytest
import torch
import torch.distributed as dist
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel

from mmlib.system.model import LanguageConfig, MultimodalLM
from mmlib.system.sequence import Document, pack
from mmlib.system.words import Marker, words
from mmlib.system.writing import write
from mmlib.training import TrainConfig, fit
from mmlib.training.optimizer import adamw
from mmlib.training.step_cost import _ATTENTION

AREA = "The full system (chapter 16)"
# Width, heads and blocks: of the profile `cpu`, and of a wider one.
SIZES = {"profile cpu": (128, 4, 4), "512 wide": (512, 8, 8)}
PROMPTS, SAID, WRITTEN = 16, 8, 100


def language_model(size, known):
    dim, heads, layers = SIZES[size]
    config = LanguageConfig(known.size, dim=dim, heads=heads, layers=layers)
    torch.manual_seed(0)
    return MultimodalLM(config, torch.randn(512, 32))


def as_gpt2(model):
    """A GPT-2 that computes what the model computes of words; its head gets a bias."""
    config = model.config
    peer = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.words,
            n_positions=config.length,
            n_embd=config.dim,
            n_layer=config.layers,
            n_head=config.heads,
            activation_function="gelu",
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=0,
        )
    )
    peer.lm_head = torch.nn.Linear(config.dim, config.words)
    state = {
        "transformer.wte.weight": model.word.weight,
        "transformer.wpe.weight": model.word_place.weight,
        "lm_head.weight": model.word_head.weight,
        "lm_head.bias": model.word_head.bias,
        "transformer.ln_f.weight": model.decoder.norm.weight,
        "transformer.ln_f.bias": model.decoder.norm.bias,
    }
    for i, block in enumerate(model.decoder.blocks):
        attend, name = block.self_attention, f"transformer.h.{i}."
        for key, norm in {"ln_1": block.self_norm, "ln_2": block.mlp_norm}.items():
            state |= {f"{name}{key}.weight": norm.weight, f"{name}{key}.bias": norm.bias}
        for key, linear in {
            "attn.c_attn": attend.qkv_proj,
            "attn.c_proj": attend.out_proj,
            "mlp.c_fc": block.mlp[0],
            "mlp.c_proj": block.mlp[3],
        }.items():  # GPT-2 keeps its matrices transposed
            state |= {f"{name}{key}.weight": linear.weight.T, f"{name}{key}.bias": linear.bias}
    peer.load_state_dict({key: value.detach().clone() for key, value in state.items()})
    return peer.eval()


@pytest.mark.parametrize("size", SIZES)
def test_writing_with_a_cache(side_by_side, size):
    known = words()
    model = language_model(size, known).eval()
    with torch.no_grad():  # nothing ends before the last word
        model.word_head.bias[[known.end, known.marker(Marker.DRAW)]] = -1e4
    peer = as_gpt2(model)
    ids = torch.randint(0, 1000, (PROMPTS, SAID))
    prompts = [Document().words(row) for row in ids.tolist()]

    def ours(use_cache=True):
        return write(model, known, prompts, most=WRITTEN, use_cache=use_cache)

    def theirs():
        return peer.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=WRITTEN,
            do_sample=False,
        )[:, SAID:].tolist()

    assert ours() == theirs()
    contestants = {"mmlib": ours, "transformers": theirs}
    if size == "profile cpu":  # it takes a minute for the wider one
        contestants["mmlib, no cache"] = lambda: ours(False)
    title = f"{PROMPTS} texts of {WRITTEN} words, {size}"
    table = side_by_side(title, contestants, rounds=6)
    table.per_second(PROMPTS * WRITTEN, "tokens")
    table.as_fast("mmlib", "transformers")
    if "mmlib, no cache" in contestants:
        table.at_most("mmlib", "mmlib, no cache", 0.5)


def batch(config, seed=0, documents=40):
    """Rows as stages 3 and 4 have them: pictures with words, and now and then one that is drawn."""
    dice = torch.Generator().manual_seed(seed)

    def some(count, below):
        return torch.randint(below, (count,), generator=dice).tolist()

    found = []
    for number in range(documents):
        document = Document().words(some(2, 1000))
        if number % 7:
            document.regions(torch.randn(config.regions, config.feature_dim, generator=dice))
            document.words(some(12, 1000)).words(some(10, 1000), wanted=True)
        else:
            document.words(some(10, 1000)).codes(some(config.places, 512))
        found.append(document)
    return pack(found, 0, 160)


@pytest.mark.parametrize("size", SIZES)
def test_training_beside_the_fastest_product(side_by_side, matrix_peak, size):
    model = language_model(size, words())
    rows, optimizer = batch(model.config), adamw(model, 1e-4)
    tokens = int((rows.document >= 0).sum())

    def step(precision):
        def run():
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                total, count = model.loss(rows)
            (total / count).backward()
            optimizer.step()

        return run

    contestants = {precision: step(precision) for precision in ("fp32", "bf16")}
    with FlopCounterMode(display=False, custom_mapping=_ATTENTION) as counter:
        contestants["fp32"]()
    table = side_by_side(f"a training step on {tokens} tokens, {size}", contestants, rounds=10)
    table.per_second(tokens, "tokens")
    for precision in contestants:
        share = counter.get_total_flops() / table.seconds(precision) / matrix_peak(precision)
        table.goal(
            f"share of the speed of the fastest large product in {precision}",
            100 * share,
            at_least=40,
            unit="%",
            known="norms, softmax, AdamW and casts take the rest, and in bf16 they are no faster"
            if size == "512 wide"
            else "matrices 128 wide are too small for the processor's full speed",
        )


def learn(rank, world, folder):
    """A process of one thread that trains, alone or with another, and says how long it took."""
    torch.set_num_threads(1)
    if world > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world),
            "LOCAL_WORLD_SIZE": str(world),
            "ACCELERATE_USE_CPU": "true",
            "GLOO_SOCKET_IFNAME": "lo",
        }
        store = dist.FileStore(str(folder / "store"), world)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    model = language_model("profile cpu", words())
    batches = [batch(model.config, seed=10 * rank + number) for number in range(4)]
    seconds = []
    for steps in (3, 10, 10, 10):  # the first is to warm up
        config = TrainConfig(steps, progress=False, device="cpu")
        history = fit(model, lambda m, rows: m.loss(rows), batches, config)
        seconds.append(history.seconds / steps)
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()
    (folder / f"{world}_{rank}.json").write_text(json.dumps(seconds[1:]))


def test_two_processes_beside_one(goal, tmp_path):
    """Twice the documents in a step: it would take as long if exchanging gradients cost nothing."""
    context = multiprocessing.get_context("spawn")
    taken = {}
    for world in (1, 2):
        children = [
            context.Process(target=learn, args=(rank, world, tmp_path)) for rank in range(world)
        ]
        for child in children:
            child.start()
        for child in children:
            child.join(200)
            assert child.exitcode == 0
        runs = [
            json.loads((tmp_path / f"{world}_{rank}.json").read_text()) for rank in range(world)
        ]
        taken[world] = median(max(together) for together in zip(*runs, strict=True))
    goal(
        "work done by two processes of one thread, beside twice that of one",
        100 * taken[1] / taken[2],
        at_least=80,
        unit="%",
        known=f"a step takes {1e3 * taken[1]:.0f} ms alone and {1e3 * taken[2]:.0f} ms together: "
        "gradients go through the same two cores and the same memory",
    )
