"""The index against brute force, approximate against exact, files, and bad input."""

import sys

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from mmlib import search
from mmlib.search import SearchIndex


def clustered(items, dim, clusters=20, seed=0, queries=100):
    """Items around a few centres, and queries that are such items a little changed."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(clusters, dim, generator=generator)
    of = torch.randint(clusters, (items,), generator=generator)
    vectors = centres[of] + 0.4 * torch.randn(items, dim, generator=generator)
    near = vectors[torch.randint(items, (queries,), generator=generator)]
    return vectors, near + 0.2 * torch.randn(queries, dim, generator=generator)


def brute_force(vectors, queries, k):
    cosine = F.cosine_similarity(queries.double()[:, None], vectors.double()[None], dim=2)
    return cosine.topk(k, dim=1)


def recall(found, expected):
    return (found[:, :, None] == expected[:, None, :]).any(1).double().mean().item()


@pytest.mark.parametrize("block, held", [(2**14, 2**24), (7, 7 * 3), (150, 10)])
@pytest.mark.parametrize("k", [1, 10, 150])
def test_exact_is_brute_force_in_blocks_of_any_size(monkeypatch, block, held, k):
    monkeypatch.setattr(search, "_BLOCK", block)
    monkeypatch.setattr(search, "_HELD", held)
    vectors, queries = clustered(150, 12, queries=11)
    found = SearchIndex(vectors).search(queries, k)
    expected = brute_force(vectors, queries, k)
    assert torch.equal(found.ids, expected.indices)
    torch.testing.assert_close(found.scores, expected.values.float())


@pytest.mark.parametrize("kind", search.KINDS)
def test_length_does_not_matter_and_inputs_are_unchanged(kind):
    vectors, queries = clustered(200, 8)
    sizes = torch.rand(200, 1, generator=torch.Generator().manual_seed(1)) + 0.1
    kept = vectors.clone(), queries.clone()
    one = SearchIndex(vectors, kind).search(queries, 5)
    other = SearchIndex(vectors * sizes, kind).search(3 * queries.double(), 5)
    assert torch.equal(one.ids, other.ids)
    torch.testing.assert_close(one.scores, other.scores)
    assert one.scores.max() <= 1 + 1e-6
    assert torch.equal(vectors, kept[0])
    assert torch.equal(queries, kept[1])


def test_hnsw_finds_almost_all_and_its_scores_are_cosines():
    vectors, queries = clustered(3000, 32)
    found = SearchIndex(vectors, "hnsw").search(queries, 10)
    expected = SearchIndex(vectors).search(queries, 10)
    assert recall(found.ids, expected.ids) >= 0.95
    cosine = F.cosine_similarity(vectors[found.ids], queries[:, None], dim=2)
    torch.testing.assert_close(found.scores, cosine)
    assert (found.scores.diff(dim=1) <= 0).all()


def test_more_candidates_find_more():
    vectors, queries = clustered(3000, 32, clusters=1)
    index = SearchIndex(vectors, "hnsw", links=4, ef_construction=10, ef_search=1)
    expected = SearchIndex(vectors).search(queries, 10).ids
    few = recall(index.search(queries, 10).ids, expected)
    index.ef_search = 300
    assert recall(index.search(queries, 10).ids, expected) > few + 0.1


def test_ef_search_is_at_least_k():
    vectors, queries = clustered(300, 8)
    found = SearchIndex(vectors, "hnsw", ef_search=1).search(queries, 50)
    assert (found.ids >= 0).all()
    assert recall(found.ids, SearchIndex(vectors).search(queries, 50).ids) > 0.9


def test_what_a_walk_does_not_reach_is_marked():
    # Equal items link to each other; with two links each, some are never reached.
    vectors = torch.cat([torch.eye(4)[:1]] * 60 + [torch.eye(4)[1:]])
    index = SearchIndex(vectors, "hnsw", links=2, ef_construction=2)
    found = index.search(torch.eye(4)[:1], 63)
    assert (found.ids == -1).any()
    assert torch.equal(found.scores.isinf(), found.ids == -1)


@pytest.mark.parametrize("kind", search.KINDS)
def test_a_saved_index_finds_the_same(tmp_path, kind):
    vectors, queries = clustered(500, 16)
    index = SearchIndex(vectors, kind, ef_search=37)
    index.save(tmp_path / "index.safetensors")
    again = SearchIndex.load(tmp_path / "index.safetensors")
    assert repr(again) == repr(index) == f"SearchIndex(500 items, dim 16, {kind})"
    assert (again.kind, again.dim, len(again), again.ef_search) == (kind, 16, 500, 37)
    for one, other in zip(index.search(queries, 7), again.search(queries, 7), strict=True):
        assert torch.equal(one, other)
    assert [path.name for path in tmp_path.iterdir()] == ["index.safetensors"]


def test_files_that_are_no_index(tmp_path):
    with pytest.raises(FileNotFoundError):
        SearchIndex.load(tmp_path / "none")
    save_file({"vectors": torch.ones(2, 2)}, tmp_path / "weights")
    with pytest.raises(ValueError, match="path must be a file that save wrote: got .*weights"):
        SearchIndex.load(tmp_path / "weights")
    save_file({"vectors": torch.ones(2, 2)}, tmp_path / "mixed", {"kind": "hnsw"})
    with pytest.raises(ValueError, match="path must be a file that save wrote"):
        SearchIndex.load(tmp_path / "mixed")


def test_exact_needs_no_faiss_and_hnsw_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert SearchIndex(torch.eye(3)).search(torch.eye(3), 1).ids.flatten().tolist() == [0, 1, 2]
    with pytest.raises(ImportError, match=r'pip install "mmlib\[search\]"'):
        SearchIndex(torch.eye(3), "hnsw")


ROWS = torch.eye(3)
BAD = {
    "kind": ((ROWS, "ivf"), {}, ValueError, "kind must be one of exact, hnsw: got 'ivf'"),
    "integers": ((ROWS.int(),), {}, TypeError, "vectors must hold floating-point numbers"),
    "one axis": ((ROWS[0],), {}, ValueError, "vectors must have shape (items, dim), not empty"),
    "no items": ((ROWS[:0],), {}, ValueError, "not empty: got (0, 3)"),
    "NaN": ((ROWS / 0,), {}, ValueError, "vectors must be finite"),
    "links": ((ROWS,), {"links": 1}, ValueError, "links must be at least 2: got 1"),
    "build": ((ROWS,), {"ef_construction": 0}, ValueError, "ef_construction must be at least 1"),
    "effort": ((ROWS,), {"ef_search": 2.0}, TypeError, "ef_search must be a whole number: got 2.0"),
}
BAD_SEARCH = {
    "k 0": ((ROWS, 0), ValueError, "k must be at least 1: got 0"),
    "k 4": ((ROWS, 4), ValueError, "k must be at most the number of items, 3: got 4"),
    "k 1.0": ((ROWS, 1.0), TypeError, "k must be a whole number: got 1.0"),
    "width": ((torch.ones(1, 4), 1), ValueError, "queries must have width 3: got 4"),
    "axes": ((ROWS[0], 1), ValueError, "queries must have shape (queries, dim)"),
    "NaN": ((ROWS / 0, 1), ValueError, "queries must be finite"),
    "integers": ((ROWS.long(), 1), TypeError, "queries must hold floating-point numbers"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, unchecked):
    args, options, error, message = BAD[case]
    with pytest.raises(error) as caught:
        unchecked(SearchIndex.__init__)(SearchIndex.__new__(SearchIndex), *args, **options)
    assert message in str(caught.value)


@pytest.mark.parametrize("kind", search.KINDS)
@pytest.mark.parametrize("case", BAD_SEARCH)
def test_bad_queries(case, kind, unchecked):
    args, error, message = BAD_SEARCH[case]
    with pytest.raises(error) as caught:
        unchecked(SearchIndex.search)(SearchIndex(ROWS, kind), *args)
    assert message in str(caught.value)
