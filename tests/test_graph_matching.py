"""Graphs of scenes and captions, message passing against loops, and what edges decide."""

import pytest
import torch

from mmlib.data import scenes
from mmlib.graph_matching import (
    Described,
    GraphBatch,
    GraphEncoder,
    GraphMatcher,
    assignments,
    caption_graph,
    graph_batch,
    scene_graph,
    turned,
    twins,
)

SAMPLE = scenes.sample(40, seed=3, objects=(1, 4))
PAIRS = scenes.sample(12, seed=4, objects=(2, 4))


def test_scene_graph_is_the_worlds():
    for scene in SAMPLE:
        graph, theirs = scene_graph(scene), scenes.graph(scene)
        assert graph.nodes == tuple((n.size, n.colour, n.shape) for n in theirs.nodes)
        single = {(i, word, j) for i, words, j in graph.edges for word in words.split()}
        assert single == set(theirs.edges)


def test_turning_reverses_every_relation_and_nothing_else():
    opposite = {"left": "right", "above": "below", "right": "left", "below": "above"}
    for scene in PAIRS:
        back = turned(scene)
        things = [(o.size, o.colour, o.shape) for o in scene.objects]
        assert sorted(things) == sorted((o.size, o.colour, o.shape) for o in back.objects)
        numbers = {(o.x, o.y): k for k, o in enumerate(back.objects)}
        moved = [numbers[1 - o.x, 1 - o.y] for o in scene.objects]
        expected = {
            (moved[i], " ".join(opposite[part] for part in word.split()), moved[j])
            for i, word, j in scene_graph(scene).edges
        }
        assert set(scene_graph(back).edges) == expected
        assert turned(back) == scene


def test_twins_are_told_apart_by_relations_alone():
    found = twins(60, seed=1)
    assert 10 < len(found) < 60
    for scene in found:
        graph, said = scene_graph(scene), caption_graph(scenes.caption(scene))
        assert graph.nodes[0] == graph.nodes[2]
        assert assignments(graph, said) == [(0, 1, 2, 3)]
        without = Described(said.nodes, ())
        assert {(0, 1, 2, 3), (2, 1, 0, 3)} <= set(assignments(graph, without))


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_canonical_caption_is_part_of_the_scene(language):
    for scene in SAMPLE:
        said = caption_graph(scenes.caption(scene, language), language)
        seen = scene_graph(scene)
        assert said.nodes == seen.nodes  # in reading order
        assert set(said.edges) <= set(seen.edges)
        assert len(said.edges) == 2 * (len(scene.objects) // 2)
        assert tuple(range(len(said.nodes))) in assignments(seen, said)


def test_what_a_free_caption_leaves_out_is_none():
    text = "a red ring with an object to its left; there is a star"
    text = text.replace("an object", "a small red object")
    said = caption_graph(text)
    assert said.nodes == ((None, "red", "ring"), ("small", "red", None), (None, None, "star"))
    assert said.edges == ((0, "right", 1), (1, "left", 0))


def test_both_languages_say_the_same_graph():
    for seed, scene in enumerate(SAMPLE):
        english = scenes.caption(scene, "en", "free", seed)
        one, two = caption_graph(english), caption_graph(scenes.translate(english), "zh")
        assert one == two


def test_turning_a_scene_changes_its_edges_and_not_its_nodes():
    for scene in PAIRS:
        one, two = scene_graph(scene), scene_graph(turned(scene))
        assert sorted(one.nodes) == sorted(two.nodes)
        assert one.edges != two.edges or one.nodes != two.nodes


def test_batches_hold_the_graphs():
    graphs = [scene_graph(scene) for scene in SAMPLE]
    batch = graph_batch(graphs)
    for b, graph in enumerate(graphs):
        assert batch.keep[b].sum() == len(graph.nodes)
        assert batch.edges[b].sum() == len(graph.edges)
        for i, word, j in graph.edges:
            assert batch.edges[b, scenes.DIRECTIONS.index(word), i, j] == 1
        for i, (size, colour, shape) in enumerate(graph.nodes):
            assert batch.nodes[b, i].tolist() == [
                1 + scenes.SIZES.index(size),
                1 + scenes.COLOURS.index(colour),
                1 + scenes.SHAPES.index(shape),
            ]
    assert graph_batch([Described(((None, "red", None),), ())]).nodes.tolist() == [[[0, 1, 0]]]


@pytest.mark.parametrize("rounds", [0, 1, 2])
def test_message_passing_is_the_formula(rounds):
    encoder = GraphEncoder(dim=6, rounds=rounds).double()
    graph = scene_graph(scenes.sample(1, seed=5, objects=3)[0])
    batch = graph_batch([graph])
    h = [sum(table(n) for table, n in zip(encoder.look, node, strict=True)) for node in batch[0][0]]
    for own, send in zip(encoder.own, encoder.send, strict=True):
        matrices = send.weight.view(len(scenes.DIRECTIONS), 6, 6)
        update = [own(x) for x in h]
        for i, word, j in graph.edges:
            update[i] = update[i] + matrices[scenes.DIRECTIONS.index(word)] @ h[j]
        h = [x + torch.relu(u) for x, u in zip(h, update, strict=True)]
    got = encoder(GraphBatch(batch.nodes, batch.edges.double(), batch.keep))[0]
    torch.testing.assert_close(got, torch.stack([encoder.out(x) for x in h]))


def test_the_order_of_nodes_does_not_matter():
    torch.manual_seed(1)
    matcher = GraphMatcher(dim=8, rounds=2)
    seen = graph_batch([scene_graph(scene) for scene in PAIRS])
    said = graph_batch([caption_graph(scenes.caption(scene)) for scene in PAIRS])
    order = torch.tensor([2, 0, 3, 1])
    mixed = GraphBatch(
        seen.nodes[:, order], seen.edges[:, :, order][:, :, :, order], seen.keep[:, order]
    )
    torch.testing.assert_close(matcher(seen, said), matcher(mixed, said))
    torch.testing.assert_close(matcher.nodes(seen, said)[..., order], matcher.nodes(mixed, said))


def test_without_edges_a_scene_and_its_turned_one_are_the_same():
    seen = graph_batch([scene_graph(scene) for scene in PAIRS])
    other = graph_batch([scene_graph(turned(scene)) for scene in PAIRS])
    said = graph_batch([caption_graph(scenes.caption(scene)) for scene in PAIRS])
    blind, sighted = GraphMatcher(dim=8, rounds=0), GraphMatcher(dim=8, rounds=1)
    torch.testing.assert_close(blind(seen, said), blind(other, said))
    assert (sighted(seen, said) - sighted(other, said)).diagonal().abs().max() > 1e-3


def test_padding_changes_nothing():
    graphs = [scene_graph(scene) for scene in PAIRS]
    said = graph_batch([caption_graph(scenes.caption(scene)) for scene in PAIRS])
    matcher = GraphMatcher(dim=8, rounds=1)
    together = matcher(graph_batch(graphs), said)
    alone = torch.cat([matcher(graph_batch([graph]), said) for graph in graphs])
    torch.testing.assert_close(together, alone)


def test_assignments_of_twins():
    star, ring = ("small", "red", "star"), ("large", "blue", "ring")
    seen = Described((star, ring, star), ((0, "left", 1), (1, "right", 0), (1, "left", 2)))
    assert assignments(seen, Described((star, ring), ())) == [(0, 1), (2, 1)]
    assert assignments(seen, Described((star, ring), ((0, "left", 1),))) == [(0, 1)]
    assert assignments(seen, Described((star, ring), ((0, "above", 1),))) == []
    assert assignments(seen, Described(((None, None, "ring"),), ())) == [(1,)]


def test_bad_input():
    with pytest.raises(ValueError, match="graphs must be at least one"):
        graph_batch([])
    with pytest.raises(ValueError, match="each with at least one node"):
        graph_batch([Described((), ())])
    with pytest.raises(ValueError, match="dim must be at least 1 and rounds at least 0"):
        GraphEncoder(0)
    with pytest.raises(ValueError, match="got 8 and -1"):
        GraphMatcher(8, -1)
    with pytest.raises(ValueError, match="language"):
        caption_graph("a star", "fr")
    with pytest.raises(ValueError, match="caption"):
        caption_graph("two stars")
