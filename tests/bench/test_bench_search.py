"""Exact search beside HNSW on clustered vectors, from a thousand items to a million.

Nearly all of the time goes into the graph of the million, whose vectors are a third as wide.
"""

import time

import pytest
import torch

from mmlib.search import SearchIndex

AREA = "Search"

QUERIES, K = 100, 10


def clustered(items, dim, generator):
    """Items around one centre for every hundred, as captions lie around what they are about."""
    centres = torch.randn(max(1, items // 100), dim, generator=generator)
    vectors = torch.randn(items, dim, generator=generator)
    return vectors.mul_(0.7).add_(centres[torch.arange(items) % len(centres)])


@pytest.mark.parametrize("items, dim", [(10**3, 384), (10**4, 384), (10**5, 384), (10**6, 128)])
def test_exact_beside_hnsw(side_by_side, items, dim):
    generator = torch.Generator().manual_seed(0)
    vectors = clustered(items, dim, generator)
    chosen = vectors[torch.randint(items, (QUERIES,), generator=generator)]
    queries = chosen + 0.7 * torch.randn(QUERIES, dim, generator=generator)
    exact = SearchIndex(vectors)
    start = time.perf_counter()
    hnsw = SearchIndex(vectors, "hnsw", links=16, ef_construction=40)
    built = time.perf_counter() - start
    del vectors
    expected = exact.search(queries, K).ids
    found = hnsw.search(queries, K).ids
    recall = (found[:, :, None] == expected[:, None]).any(1).double().mean().item()
    table = side_by_side(
        f"the nearest {K} of {items:,} items, {dim} dimensions, {QUERIES} queries at once",
        {"exact": lambda: exact.search(queries, K), "hnsw": lambda: hnsw.search(queries, K)},
        rounds=3,
    )
    table.title += f"; hnsw built in {built:.1f} s"
    table.per_second(QUERIES, "queries")
    table.goal(f"recall@{K} of hnsw", recall, at_least=0.8)
    if items >= 10**5:
        table.at_most("hnsw", "exact", 0.5)
