"""Train what chapter 06 measures over seeds: pointing words, graph matching, dual learning.

**Pointing.** Three ways to learn from the same pairs, three seeds each: captions of the batch
against each other, each word for itself; captions against themselves with one word swapped, each
word for itself; the same, with whole descriptions, whose words look together, on top. Scored on
400 scenes with combinations of colour and shape that no training scene has.

**Graphs.** Matching with and without edges, three seeds each.

**Dual learning.** A describer and a painter with few pairs, four seeds each. In one world words
and pictures of a thing determine each other; in the other the thing may be anywhere, which the
words do not say. Each run has the same steps and the same pairs; only the unpaired pictures and
words come on top.
"""

import functools
import statistics

import torch

from mmlib import results
from mmlib.data import scenes
from mmlib.dual_learning import Describer, Painter, dual_loss, exact, one_thing, paired_loss
from mmlib.graph_matching import (
    GraphMatcher,
    caption_graph,
    graph_batch,
    scene_graph,
    turned,
    twins,
)
from mmlib.pointing import VOCABULARY, caption_words, descriptions, questions, word_kinds
from mmlib.region_words import RegionWordModel, matching_loss, points_inside
from mmlib.swapped_words import swapped_word_loss
from mmlib.training import TrainConfig, fit

MINUTES = 12
SEEDS = (0, 1, 2, 3)


def spread(name: str, values: list[float], metric: str, tolerance: float = 0.1, **more) -> None:
    """Record the mean and the standard deviation over the seeds."""
    for part, value, what in (
        ("", statistics.mean(values), "mean"),
        ("_sd", statistics.stdev(values), "standard deviation"),
    ):
        results.record(
            f"06.{name}{part}",
            value,
            metric=f"{metric}, {what} of {len(values)} seeds",
            tolerance=tolerance,
            **({} if part else more),
        )


# Pointing ---------------------------------------------------------------------------------------

POINT_STEPS, POINT_BATCH = 600, 40
VARIANTS = {
    "batch": "captions of a batch, each word for itself",
    "swapped": "swapped words, each word for itself",
    "together": "swapped words, each word for itself and descriptions together",
}
# Which of its words a description says: each alone, and in the last variant all together too.
ALONE = torch.eye(3, dtype=torch.bool)
SAID = {"swapped": ALONE, "together": torch.cat([ALONE, torch.ones(1, 3, dtype=torch.bool)])}


@functools.cache
def pairs() -> tuple[torch.Tensor, ...]:
    """5,000 pictures, their captions' words and which exist, and the captions' descriptions."""
    some = scenes.sample(5000, seed=1, split="train", objects=(1, 2))
    return scenes.render(some, size=48), *caption_words(some), descriptions(some)


def point(variant: str, seed: int, steps: int = POINT_STEPS) -> RegionWordModel:
    """Train one model to match pictures with their captions."""
    (pictures, words, keep, things), kinds = pairs(), word_kinds()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = RegionWordModel(len(VOCABULARY))

    def batches(step):
        generator = torch.Generator().manual_seed(1000 * seed + step)
        chosen = torch.randperm(len(things), generator=generator)[:POINT_BATCH]
        return pictures[chosen], words[chosen], keep[chosen], things[chosen]

    def loss_fn(model, batch):
        pictures, words, keep, things = batch
        if variant == "batch":
            return matching_loss(model(pictures, words, keep), model.logit_scale())
        ways = SAID[variant]
        said = ways.repeat(len(things), things.shape[1], 1)
        things = things.repeat_interleave(len(ways), dim=1)
        return swapped_word_loss(
            model.fits(pictures), things, kinds, said, model.sharpness, model.logit_scale()
        )

    config = TrainConfig(steps, learning_rate=8e-3, warmup=20, seed=seed, progress=False)
    fit(model, loss_fn, batches, config)
    return model.eval()


def pointing() -> None:
    """Every variant, every seed, on held-out scenes."""
    held_out = scenes.sample(400, seed=2, split="test", objects=(1, 3))
    pictures, asked = scenes.render(held_out, size=48), questions(held_out)
    for variant, what in VARIANTS.items():
        hits: dict[tuple[str, str], list[float]] = {}
        for seed in SEEDS[:3]:
            model = point(variant, seed)
            for kind, q in asked.items():
                where = {"traced": model.trace}
                if variant == "together":
                    where["cell"] = model.heat
                for way, look in where.items():
                    with torch.no_grad():
                        maps = look(pictures[q.picture], q.words, q.said)
                    share = points_inside(maps, q.boxes).double().mean().item()
                    hits.setdefault((kind, way), []).append(share)
            print(variant, seed, {k: round(v[-1], 3) for k, v in hits.items()}, flush=True)
        for (kind, way), values in hits.items():
            spread(
                f"pointing_{variant}_{kind}{'' if way == 'traced' else '_cell'}",
                values,
                f"pointing accuracy on held-out scenes, {kind}: {what}; "
                + ("traced to the pixels" if way == "traced" else "the best region's own place")
                + "; baseline: a random thing",
                baseline=asked[kind].any_thing,
            )


# Graphs -----------------------------------------------------------------------------------------


def graphs(some):
    """Graphs of scenes and of their captions."""
    said = [caption_graph(scenes.caption(scene)) for scene in some]
    return graph_batch([scene_graph(scene) for scene in some]), graph_batch(said)


def match(pairs, rounds: int, seed: int) -> GraphMatcher:
    """Train one matcher."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = GraphMatcher(rounds=rounds)

    def batches(step):
        generator = torch.Generator().manual_seed(1000 * seed + step)
        chosen = torch.randperm(len(pairs[0].nodes), generator=generator)[:96]
        return [type(part)(*(x[chosen] for x in part)) for part in pairs]

    def loss_fn(model, batch):
        return matching_loss(model(*batch), 20.0)

    config = TrainConfig(250, learning_rate=4e-3, warmup=20, seed=seed, progress=False)
    fit(model, loss_fn, batches, config)
    return model.eval()


def above(a: torch.Tensor, b: torch.Tensor) -> float:
    """Share in which a is above b; half for each that is equal up to rounding."""
    return ((a > b + 1e-6).double() + 0.5 * ((a - b).abs() <= 1e-6)).mean().item()


def graph_matching() -> None:
    """With and without edges, every seed."""
    seen = [s for n in (2, 4) for s in scenes.sample(1500, seed=n, split="train", objects=n)]
    new = [s for n in (2, 4) for s in scenes.sample(200, seed=50 + n, split="test", objects=n)]
    pairs, test_pairs, twin_pairs = graphs(seen), graphs(new), graphs(twins(400, seed=9))
    turned_captions = graphs([turned(scene) for scene in new])[1]
    found: dict[int, dict[str, list[float]]] = {}
    for rounds in (0, 1):
        found[rounds] = {"turned": [], "twins": [], "r1": []}
        for seed in SEEDS[:3]:
            model = match(pairs, rounds, seed)
            with torch.no_grad():
                own = model(*test_pairs)
                turned_score = model(test_pairs[0], turned_captions).diagonal()
                nodes = model.nodes(*twin_pairs)
            right = (own.argmax(0) == torch.arange(len(own))).double().mean().item()
            first, third = (above(nodes[:, a, a], nodes[:, a, 2 - a]) for a in (0, 2))
            found[rounds]["turned"].append(above(own.diagonal(), turned_score))
            found[rounds]["twins"].append((first + third) / 2)
            found[rounds]["r1"].append(right)
        print("rounds", rounds, found[rounds], flush=True)
    what = {
        "turned": "own caption above the turned scene's",
        "twins": "the right one of two twins",
        "r1": f"caption finds its scene among {len(new)}",
    }
    for name, values in found[1].items():
        spread(
            f"graph_{name}",
            values,
            f"{what[name]}; baseline: without edges, the same seeds",
            baseline=statistics.mean(found[0][name]),
        )


# Dual learning ----------------------------------------------------------------------------------

PAIRS = (16, 64, 256)
STEPS, BATCH, UNPAIRED = 200, 32, 2000
WORLDS = {"middle": False, "anywhere": True}


world_of = functools.cache(one_thing)  # the same for every number of pairs


def run(paired: int, seed: int, anywhere: bool, dual: bool) -> float:
    """Train once and return the share of new pictures that are described without a mistake."""
    pictures, words = world_of(UNPAIRED, seed=100 + seed, anywhere=anywhere)
    _, others = world_of(UNPAIRED, seed=200 + seed, anywhere=anywhere)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        models = torch.nn.ModuleList([Describer(), Painter()])

    def batches(step):
        generator = torch.Generator().manual_seed(1000 * seed + step)
        limits = (paired, UNPAIRED, UNPAIRED)
        return [torch.randint(limit, (BATCH,), generator=generator) for limit in limits]

    def loss_fn(models, batch):
        known, alone, said = batch
        loss = paired_loss(*models, pictures[known], words[known])
        if dual:
            loss = loss + dual_loss(*models, pictures[alone], others[said])
        return loss

    config = TrainConfig(STEPS, learning_rate=2e-3, warmup=30, seed=seed, progress=False)
    fit(models, loss_fn, batches, config)
    new, truth = world_of(500, seed=7, anywhere=anywhere)
    with torch.no_grad():
        return exact(models[0](new), truth)


def dual_learning() -> None:
    """Every world, number of pairs and seed, with and without the unpaired examples."""
    for world, anywhere in WORLDS.items():
        for paired in PAIRS:
            scores = {}
            for name, dual in (("paired", False), ("dual", True)):
                scores[name] = [run(paired, seed, anywhere, dual) for seed in SEEDS]
                print(world, paired, name, [f"{score:.3f}" for score in scores[name]], flush=True)
                where = "in the middle" if world == "middle" else "anywhere"
                spread(
                    f"{name}_{world}_{paired}",
                    scores[name],
                    f"exact descriptions of new pictures, {paired} pairs, thing {where}, "
                    f"{'with' if dual else 'without'} dual learning",
                    tolerance=0.08,
                )
            gains = [b - a for a, b in zip(scores["paired"], scores["dual"], strict=True)]
            results.record(
                f"06.gain_{world}_{paired}",
                statistics.mean(gains),
                metric=f"gain by dual learning, {paired} pairs, thing {world}, same seeds",
                baseline=0.0,
                tolerance=0.08,
            )


def main() -> None:
    """All three."""
    torch.set_num_threads(1)
    pointing()
    graph_matching()
    dual_learning()


if __name__ == "__main__":
    main()
