"""Train a describer and a painter with few pairs, with and without dual learning, four seeds.

In one world words and pictures of a thing determine each other; in the other the thing may be
anywhere, which the words do not say. Each run has the same steps and the same pairs; only the
unpaired pictures and words come on top.
"""

import statistics

import torch

from mmlib import results
from mmlib.dual_learning import Describer, Painter, dual_loss, exact, one_thing, paired_loss
from mmlib.training import TrainConfig, fit

MINUTES = 4
SEEDS = (0, 1, 2, 3)
PAIRS = (16, 64, 256)
STEPS, BATCH, UNPAIRED = 200, 32, 2000
WORLDS = {"middle": False, "anywhere": True}


def run(pairs: int, seed: int, anywhere: bool, dual: bool) -> float:
    """Train once and return the share of new pictures that are described without a mistake."""
    pictures, words = one_thing(UNPAIRED, seed=100 + seed, anywhere=anywhere)
    _, others = one_thing(UNPAIRED, seed=200 + seed, anywhere=anywhere)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        models = torch.nn.ModuleList([Describer(), Painter()])

    def batches(step):
        generator = torch.Generator().manual_seed(1000 * seed + step)
        limits = (pairs, UNPAIRED, UNPAIRED)
        return [torch.randint(limit, (BATCH,), generator=generator) for limit in limits]

    def loss_fn(models, batch):
        paired, alone, said = batch
        loss = paired_loss(*models, pictures[paired], words[paired])
        if dual:
            loss = loss + dual_loss(*models, pictures[alone], others[said])
        return loss

    fit(
        models,
        loss_fn,
        batches,
        TrainConfig(steps=STEPS, learning_rate=2e-3, warmup=30, seed=seed, progress=False),
    )
    new, truth = one_thing(500, seed=7, anywhere=anywhere)
    with torch.no_grad():
        return exact(models[0](new), truth)


def main() -> None:
    """Every world, number of pairs and seed, with and without the unpaired examples."""
    torch.set_num_threads(1)
    for world, anywhere in WORLDS.items():
        for pairs in PAIRS:
            scores = {}
            for name, dual in (("paired", False), ("dual", True)):
                scores[name] = [run(pairs, seed, anywhere, dual) for seed in SEEDS]
                print(world, pairs, name, [f"{score:.3f}" for score in scores[name]], flush=True)
                for part, value in (
                    ("", statistics.mean(scores[name])),
                    ("_sd", statistics.stdev(scores[name])),
                ):
                    what = "standard deviation" if part else "mean"
                    results.record(
                        f"06.{name}_{world}_{pairs}{part}",
                        value,
                        metric=f"exact descriptions of new pictures, {pairs} pairs, thing "
                        f"{'in the middle' if world == 'middle' else 'anywhere'}, "
                        f"{'with' if name == 'dual' else 'without'} dual learning, "
                        f"{what} of {len(SEEDS)} seeds",
                        tolerance=0.08,
                    )
            gains = [b - a for a, b in zip(scores["paired"], scores["dual"], strict=True)]
            results.record(
                f"06.gain_{world}_{pairs}",
                statistics.mean(gains),
                metric=f"gain by dual learning, {pairs} pairs, thing {world}, same seeds",
                baseline=0.0,
                tolerance=0.08,
            )


if __name__ == "__main__":
    main()
