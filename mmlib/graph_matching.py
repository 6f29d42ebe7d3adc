r"""Matching a scene's graph with a caption's graph by message passing: chapter 06.

A graph has things as nodes and directions as edges. Who is meant by *the red star left of the
ring*, when there are two red stars, only the edges say. A node learns of its surroundings by
**message passing**: each neighbour sends its vector through the matrix of the edge's kind,

.. math::

    h_i \leftarrow h_i + \operatorname{ReLU}\Big(
        W_0 h_i + \sum_r \sum_{j:\, (i, r, j)} W_r h_j \Big)

and two graphs are compared node by node with :func:`mmlib.region_words.word_region_scores`, by
cosines.

References:
    Gilmer et al., *Neural Message Passing for Quantum Chemistry*, ICML 2017. Schlichtkrull et
    al., *Modeling Relational Data with Graph Convolutional Networks*, ESWC 2018 (one matrix for
    each kind of edge; there the messages are averaged, here they are summed).
"""

import dataclasses
from collections.abc import Sequence
from itertools import permutations
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmlib.data import scenes as world
from mmlib.data.scenes import COLOURS, DIRECTIONS, SHAPES, SIZES, Scene, direction
from mmlib.data.scenes.grammar import Tree, parse
from mmlib.region_words import word_region_scores

__all__ = [
    "Described",
    "GraphBatch",
    "GraphEncoder",
    "GraphMatcher",
    "assignments",
    "caption_graph",
    "graph_batch",
    "scene_graph",
    "turned",
    "twins",
]

_OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
_WORDS = {"SIZE": SIZES, "COLOUR": COLOURS, "SHAPE": SHAPES}


class Described(NamedTuple):
    """Things and how they lie to each other.

    Attributes:
        nodes: Size, colour and shape of each thing; None where nothing is said.
        edges: ``(i, direction, j)``: thing ``i`` lies in this direction from thing ``j``. Each
            edge stands beside its opposite.
    """

    nodes: tuple[tuple[str | None, str | None, str | None], ...]
    edges: tuple[tuple[int, str, int], ...]


def scene_graph(scene: Scene) -> Described:
    """The graph of a scene: every ordered pair of objects has an edge. Places are left out.

    >>> from mmlib.data.scenes import Object, Scene
    >>> scene = Scene((Object("star", "red", "small", 0.25, 0.5),
    ...                Object("ring", "blue", "large", 0.75, 0.5)))
    >>> scene_graph(scene).edges
    ((0, 'left', 1), (1, 'right', 0))
    """
    things = list(enumerate(scene.objects))
    edges = [(i, direction(a, b), j) for i, a in things for j, b in things if i != j]
    return Described(tuple((o.size, o.colour, o.shape) for o in scene.objects), tuple(edges))


def caption_graph(caption: str, language: str = "en") -> Described:
    """The graph of what a caption says: things in the order of the English caption.

    A canonical caption names the objects in reading order, so its node ``i`` is the object ``i``,
    and its directions are complete. A free one may say *left* of what lies above and to the left.

    Raises:
        ValueError: the language is unknown or the caption outside the grammar.

    >>> caption_graph("a small red star above a ring")
    Described(nodes=(('small', 'red', 'star'), (None, None, 'ring')), edges=((0, 'above', 1), (1, 'below', 0)))
    """  # noqa: E501
    nodes: list[tuple] = []
    edges: list[tuple[int, str, int]] = []
    _read(parse(caption, language), nodes, edges)
    return Described(tuple(nodes), tuple(sorted(edges)))


def _read(tree: Tree, nodes: list, edges: list) -> None:
    """Collect things and relations of a tree, from the left to the right."""
    said: dict[str, str] = {}
    places: dict[str, int] = {}
    for slot, child in tree.children:
        if slot.startswith("THING"):
            leaves = {name: leaf.rule for name, leaf in child.children}
            places[slot] = len(nodes)
            nodes.append(tuple(leaves.get(name) for name in _WORDS))
        elif slot in ("RELATION", "SIDE"):
            said[slot] = child.rule
        else:
            _read(child, nodes, edges)
    for word in said.values():
        i, j = places["THING1"], places["THING2"]
        back = " ".join(_OPPOSITE[part] for part in word.split())
        edges += [(i, word, j), (j, back, i)]


class GraphBatch(NamedTuple):
    """Graphs as tensors.

    Attributes:
        nodes: Numbers of size, colour and shape; 0 stands for what is not said.
        edges: ``[b, r, i, j]``: whether node ``i`` lies in direction ``r`` from node ``j``.
        keep: Which nodes exist.
    """

    nodes: Int[Tensor, "batch nodes 3"]
    edges: Float[Tensor, "batch relations nodes nodes"]
    keep: Bool[Tensor, "batch nodes"]


def graph_batch(graphs: Sequence[Described]) -> GraphBatch:
    """Put graphs of different size into one batch.

    Raises:
        ValueError: there is no graph, or one without a node.
    """
    if not graphs or not all(graph.nodes for graph in graphs):
        raise ValueError("graphs must be at least one, each with at least one node")
    most = max(len(graph.nodes) for graph in graphs)
    nodes = torch.zeros(len(graphs), most, 3, dtype=torch.long)
    edges = torch.zeros(len(graphs), len(DIRECTIONS), most, most)
    keep = torch.zeros(len(graphs), most, dtype=torch.bool)
    for b, graph in enumerate(graphs):
        keep[b, : len(graph.nodes)] = True
        for i, node in enumerate(graph.nodes):
            for k, (word, words) in enumerate(zip(node, _WORDS.values(), strict=True)):
                nodes[b, i, k] = 0 if word is None else 1 + words.index(word)
        for i, word, j in graph.edges:
            edges[b, DIRECTIONS.index(word), i, j] = 1.0
    return GraphBatch(nodes, edges, keep)


class GraphEncoder(nn.Module):
    """Rounds of message passing over the nodes of a graph.

    Args:
        dim: Width of a node's vector.
        rounds: How many; after two a node knows of its neighbours' neighbours. 0 ignores edges.

    Raises:
        ValueError: ``dim`` below 1 or ``rounds`` below 0.
    """

    def __init__(self, dim: int = 64, rounds: int = 1) -> None:
        super().__init__()
        if dim < 1 or rounds < 0:
            raise ValueError(
                f"dim must be at least 1 and rounds at least 0: got {dim} and {rounds}"
            )
        self.look = nn.ModuleList(nn.Embedding(1 + len(words), dim) for words in _WORDS.values())
        self.own = nn.ModuleList(nn.Linear(dim, dim) for _ in range(rounds))
        self.send = nn.ModuleList(
            nn.Linear(dim, len(DIRECTIONS) * dim, bias=False) for _ in range(rounds)
        )
        self.out = nn.Linear(dim, dim)

    def forward(self, graphs: GraphBatch) -> Float[Tensor, "batch nodes dim"]:
        """One vector for each node; what those are that do not exist means nothing."""
        h = sum(table(graphs.nodes[..., k]) for k, table in enumerate(self.look))
        for own, send in zip(self.own, self.send, strict=True):
            # A message for each kind of edge; then each node sums those that are meant for it.
            messages = send(h).unflatten(-1, (len(DIRECTIONS), -1))
            h = h + torch.relu(own(h) + torch.einsum("brij,bjrd->bid", graphs.edges, messages))
        return self.out(h)


class GraphMatcher(nn.Module):
    """Scores scene graphs against caption graphs, each with its own :class:`GraphEncoder`.

    The two need not share weights: a scene's node hears from every object, a caption's node only
    from those that the caption relates it to.

    Args:
        dim: Width of a node's vector.
        rounds: Rounds of message passing; 0 is the baseline that ignores the edges.
        sharpness: See :func:`~mmlib.region_words.word_region_scores`.
    """

    def __init__(self, dim: int = 64, rounds: int = 1, sharpness: float = 10.0) -> None:
        super().__init__()
        self.scene, self.caption = GraphEncoder(dim, rounds), GraphEncoder(dim, rounds)
        self.sharpness = sharpness

    def forward(self, scenes: GraphBatch, captions: GraphBatch) -> Float[Tensor, "scenes captions"]:
        """The score of every scene with every caption."""
        return word_region_scores(
            self.scene(scenes),
            self.caption(captions),
            captions.keep,
            self.sharpness,
            scenes.keep,
            cosine=True,
        )

    def nodes(
        self, scenes: GraphBatch, captions: GraphBatch
    ) -> Float[Tensor, "batch caption_nodes scene_nodes"]:
        """The cosine of each node of a caption with each node of its own scene."""
        said = nn.functional.normalize(self.caption(captions), dim=-1)
        seen = nn.functional.normalize(self.scene(scenes), dim=-1)
        return (said @ seen.transpose(1, 2)).masked_fill(~scenes.keep[:, None], -1.0)


def assignments(scene: Described, caption: Described) -> list[tuple[int, ...]]:
    """Every way in which a caption's graph fits into a scene's, by trying them all.

    This is what the network has to learn, done by brute force: ``n!`` tries. Each answer has, for
    each thing of the caption, the object that it can be.

    >>> star, ring = ("small", "red", "star"), ("large", "blue", "ring")
    >>> scene = Described((star, star, ring), ((0, "left", 1), (1, "right", 0)))
    >>> assignments(scene, Described((star, ring), ()))
    [(0, 2), (1, 2)]
    """
    edges = set(scene.edges)
    return [
        chosen
        for chosen in permutations(range(len(scene.nodes)), len(caption.nodes))
        if all(
            word is None or word == scene.nodes[at][k]
            for node, at in zip(caption.nodes, chosen, strict=True)
            for k, word in enumerate(node)
        )
        and all((chosen[i], word, chosen[j]) in edges for i, word, j in caption.edges)
    ]


def turned(scene: Scene) -> Scene:
    """The scene turned by half a circle: *left* becomes *right* and *above* *below*.

    The things themselves stay as they are.

    >>> from mmlib.data.scenes import Object, Scene, caption
    >>> scene = Scene((Object("star", "red", "small", 0.25, 0.5),
    ...                Object("ring", "blue", "large", 0.75, 0.5)))
    >>> caption(turned(scene))
    'a large blue ring to the left of a small red star'
    """
    things = (dataclasses.replace(o, x=1 - o.x, y=1 - o.y) for o in scene.objects)
    return dataclasses.replace(scene, objects=tuple(things))


def twins(count: int, seed: int) -> list[Scene]:
    """Scenes of four things of which the first and the third look the same.

    Only scenes whose canonical caption tells all four apart by its relations are kept: trying all
    :func:`assignments` leaves one. Relations are the only way to find the right twin.

    Args:
        count: How many scenes are drawn and painted; under half of them can be kept.
        seed: Which.

    >>> first, _, third, _ = twins(20, seed=0)[0].objects
    >>> (first.size, first.colour, first.shape) == (third.size, third.colour, third.shape)
    True
    """
    found = []
    for scene in world.sample(count, seed=seed, objects=4):
        first, second, third, fourth = scene.objects
        if first.size != third.size:  # another size would need another place
            continue
        third = dataclasses.replace(third, colour=first.colour, shape=first.shape)
        scene = dataclasses.replace(scene, objects=(first, second, third, fourth))
        if len(assignments(scene_graph(scene), caption_graph(world.caption(scene)))) == 1:
            found.append(scene)
    return found
