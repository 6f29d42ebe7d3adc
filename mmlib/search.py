r"""Nearest neighbours by cosine: exactly, or in a graph that is walked (最近邻搜索).

A tower turns a million pictures into vectors once; a query is one vector, and wants the ``k`` with
the largest inner product. **Exact** search compares it with all of them: one matrix product, whose
cost grows with the number of items. **HNSW** walks a graph in which each item is linked to some
near ones, with a few long links above that for the way there, and sees a few hundred items of a
million. It may miss some of the nearest, building it takes long, and the links need memory.

What is missed depends on the data. Random vectors are the worst case (all distances are nearly
alike) and say little about real ones, which lie in clusters.

References:
    Malkov and Yashunin, *Efficient and Robust Approximate Nearest Neighbor Search Using
    Hierarchical Navigable Small World Graphs*, TPAMI 2020. Douze et al., *The Faiss Library*, 2024,
    whose HNSW this is (``pip install "mmlib[search]"``); exact search needs torch alone.
"""

import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmlib.data.samplers import at_least

__all__ = ["KINDS", "Found", "SearchIndex"]

KINDS = ("exact", "hnsw")
"""The kinds of index."""

# Scores that exact search holds at a time: 64 MB. Larger blocks are no faster.
_HELD = 2**24
_BLOCK = 2**14


class Found(NamedTuple):
    """What a search found, for each query the best first.

    Attributes:
        scores: cosines.
        ids: rows of the vectors that the index was made of.
    """

    scores: Float[Tensor, "queries k"]
    ids: Int64[Tensor, "queries k"]


class SearchIndex:
    """The items nearest to a query by cosine.

    Args:
        vectors: One row an item, of any length: they are brought to unit length, in fp32.
        kind: ``"exact"`` (on whatever device the vectors are) or ``"hnsw"`` (on the CPU).
        links: HNSW's :math:`M`: links of an item in each layer above the lowest, which has twice
            as many. More find more, and take more memory: ``8 * links`` bytes an item.
        ef_construction: How many candidates are kept while an item is linked.
        ef_search: How many are kept during a search, or ``k`` if that is more: the one number to
            turn afterwards, for recall against speed.

    Attributes:
        kind: As given.
        dim: Width of the vectors.
        ef_search: As given; may be changed.

    Raises:
        TypeError: the vectors are no floating-point numbers, or another number is not whole.
        ValueError: vectors of another shape, none, or with NaN; another kind; a number too small.
        ImportError: ``"hnsw"`` without faiss.

    >>> index = SearchIndex(torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]]))
    >>> found = index.search(torch.tensor([[0.1, 5.0]]), k=2)
    >>> found.ids, found.scores.round(decimals=2)
    (tensor([[1, 2]]), tensor([[1.0000, 0.7200]]))
    """

    def __init__(
        self,
        vectors: Float[Tensor, "items dim"],
        kind: Literal["exact", "hnsw"] = "exact",
        *,
        links: int = 32,
        ef_construction: int = 80,
        ef_search: int = 64,
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}: got {kind!r}")
        self.ef_search = at_least(1, "ef_search", ef_search)
        at_least(2, "links", links)
        at_least(1, "ef_construction", ef_construction)
        vectors = _unit("vectors", vectors)
        self.kind, self.dim = kind, vectors.shape[1]
        self._vectors: Tensor | None = None
        self._graph: Any = None
        if kind == "exact":
            self._vectors = vectors
        else:
            faiss = _faiss()
            self._graph = faiss.IndexHNSWFlat(self.dim, links, faiss.METRIC_INNER_PRODUCT)
            self._graph.hnsw.efConstruction = ef_construction
            self._graph.add(vectors.cpu().numpy())

    def __len__(self) -> int:
        return len(self._vectors) if self._graph is None else self._graph.ntotal

    def __repr__(self) -> str:
        return f"SearchIndex({len(self)} items, dim {self.dim}, {self.kind})"

    def search(self, queries: Float[Tensor, "queries dim"], k: int) -> Found:
        """The ``k`` nearest items of each query.

        Args:
            queries: One row each, of any length.
            k: From 1 to the number of items.

        Returns:
            Cosines and ids, on the queries' device. Which of two equal scores comes first is not
            said. Where HNSW reached fewer than ``k`` items, which very small ``links`` can lead
            to, the rest has score -inf and id -1.

        Raises:
            TypeError: the queries are no floating-point numbers, or ``k`` is not whole.
            ValueError: queries of another width or with NaN, or ``k`` is out of range.
        """
        at_least(1, "k", k)
        if k > len(self):
            raise ValueError(f"k must be at most the number of items, {len(self)}: got {k}")
        rows = _unit("queries", queries)
        if rows.shape[1] != self.dim:
            raise ValueError(f"queries must have width {self.dim}: got {rows.shape[1]}")
        found = self._search_all(rows, k) if self._graph is None else self._walk(rows, k)
        return Found(*(x.to(queries.device) for x in found))

    def _search_all(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        parts = []
        for part in queries.to(self._vectors.device).split(max(1, _HELD // _BLOCK)):
            scores = part.new_empty(len(part), 0)
            ids = torch.empty(len(part), 0, dtype=torch.int64, device=part.device)
            for start in range(0, len(self), _BLOCK):
                block = part @ self._vectors[start : start + _BLOCK].T
                best = block.topk(min(k, block.shape[1]), dim=1)
                scores = torch.cat([scores, best.values], dim=1)
                ids = torch.cat([ids, best.indices + start], dim=1)
                scores, kept = scores.topk(min(k, scores.shape[1]), dim=1)
                ids = ids.gather(1, kept)
            parts.append((scores, ids))
        scores, ids = (torch.cat(column) for column in zip(*parts, strict=True))
        return scores, ids

    def _walk(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        options = _faiss().SearchParametersHNSW(efSearch=max(self.ef_search, k))
        scores, ids = self._graph.search(queries.cpu().numpy(), k, params=options)
        found = torch.from_numpy(ids)
        return torch.from_numpy(scores).masked_fill(found < 0, -torch.inf), found

    def save(self, path: str | os.PathLike) -> None:
        """Write the index to one file (safetensors), which :meth:`load` reads.

        It is written beside and renamed, so that no half of one is ever found.
        """
        path = Path(path)
        if self._graph is None:
            tensors = {"vectors": self._vectors.cpu().contiguous()}
        else:
            tensors = {"graph": torch.from_numpy(_faiss().serialize_index(self._graph))}
        beside = path.with_name(f"{path.name}.part")
        save_file(tensors, beside, {"kind": self.kind, "ef_search": str(self.ef_search)})
        beside.replace(path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "SearchIndex":
        """Read an index that :meth:`save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file holds something else.
            ImportError: it is of kind ``"hnsw"``, and there is no faiss.
        """
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            kind, name = about.get("kind"), {"exact": "vectors", "hnsw": "graph"}
            if kind not in KINDS or list(file.keys()) != [name[kind]]:
                raise ValueError(f"path must be a file that save wrote: got {path}")
            stored = file.get_tensor(name[kind])
        index = cls.__new__(cls)
        index.kind, index.ef_search = kind, int(about["ef_search"])
        index._vectors = index._graph = None
        if kind == "exact":
            index._vectors, index.dim = stored, stored.shape[1]
        else:
            index._graph = _faiss().deserialize_index(np.ascontiguousarray(stored.numpy()))
            index.dim = index._graph.d
        return index


def _unit(name: str, rows: Tensor) -> Tensor:
    if not rows.is_floating_point():
        raise TypeError(f"{name} must hold floating-point numbers: got {rows.dtype}")
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(
            f"{name} must have shape ({'items' if name == 'vectors' else name}, dim), not empty: "
            f"got {tuple(rows.shape)}"
        )
    if not rows.isfinite().all():
        raise ValueError(f"{name} must be finite: got NaN or infinity")
    return F.normalize(rows.detach().float(), dim=1)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ImportError('an index of kind "hnsw" needs faiss: pip install "mmlib[search]"') from (
            error
        )
    return faiss
