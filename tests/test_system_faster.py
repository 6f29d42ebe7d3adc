"""What makes large runs faster changes no result.

- Batches worked out ahead are those of the function, from any number on, in turns of processes.
- An error in a batch comes through; bad input.
- Blocks that compute again give the same loss and gradients, also with dropout, hold less, and are
  plain blocks afterwards.
- Compiled blocks give the same loss and gradients, and are plain afterwards.
"""

import dataclasses

import pytest
import torch

from mmlib.system.faster import Ahead, compiled, recomputed, workers
from mmlib.system.model import LanguageConfig, MultimodalLM
from mmlib.system.profiles import PROFILES, cost
from mmlib.system.sequence import Document, pack


def batch(number):
    if number == 13:
        raise OSError("batch 13 is broken")
    return {"number": torch.tensor(number), "noise": torch.rand(3) if number < 0 else None}


def model_and_rows(dropout=0.0):
    torch.manual_seed(0)
    config = LanguageConfig(40, dim=32, heads=2, layers=3, dropout=dropout, feature_dim=8)
    model = MultimodalLM(config, torch.randn(30, 6))
    picture = torch.randn(16, 8)
    documents = [
        Document().words([1]).regions(picture).words(list(range(3, 3 + size)), wanted=True)
        for size in (4, 9, 2, 7)
    ]
    documents.append(Document().words([1, 2]).codes([k % 30 for k in range(64)]))
    return model, pack(documents, 0, 80)


def loss_and_gradients(model, rows):
    model.zero_grad()
    torch.manual_seed(1)  # of dropout
    total, count = model.loss(rows)
    (total / count).backward()
    return total.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_batches_ahead_are_those_of_the_function():
    ahead = Ahead(batch, workers=2)
    for number in (3, 4, 5, 9, 10, 2):  # a run that goes on elsewhere asks for another number
        assert int(ahead(number)["number"]) == number


def test_processes_take_turns(monkeypatch):
    monkeypatch.setattr("mmlib.system.faster.world_size", lambda: 3)
    ahead = Ahead(batch, workers=2)
    assert [int(ahead(number)["number"]) for number in (1, 4, 7)] == [1, 4, 7]
    coming = ahead.coming
    ahead(10)
    assert ahead.coming is coming  # what came ahead was used


def test_an_error_in_a_batch_comes_through():
    ahead = Ahead(batch, workers=1)
    ahead(12)
    with pytest.raises(OSError, match="batch 13 is broken"):
        ahead(13)


def test_there_are_workers_only_where_a_gpu_waits(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert workers() == 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("mmlib.system.faster.os.sched_getaffinity", lambda _: set(range(30)))
    assert workers() == 12
    monkeypatch.setattr("mmlib.system.faster.sys.platform", "win32")
    assert workers() == 0


def test_bad_input():
    with pytest.raises(ValueError, match="workers must be at least 1: got 0"):
        Ahead(batch, 0)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_computing_again_gives_the_same(dropout):
    model, rows = model_and_rows(dropout)
    model.train()
    plain = loss_and_gradients(model, rows)
    with recomputed(model.decoder.blocks):
        again = loss_and_gradients(model, rows)
        assert all("forward" in vars(block) for block in model.decoder.blocks)
    torch.testing.assert_close(again, plain, rtol=1e-6, atol=1e-7)
    assert not any("forward" in vars(block) for block in model.decoder.blocks)
    with recomputed(model.decoder.blocks, False):
        assert not any("forward" in vars(block) for block in model.decoder.blocks)


def test_computing_again_takes_less_memory_and_more_operations():
    sizes = {"dim": 256, "heads": 4, "layers": 8, "documents": 40}
    config = dataclasses.replace(PROFILES["t4"], **sizes)
    plain = cost(dataclasses.replace(config, recompute=False))
    again = cost(dataclasses.replace(config, recompute=True))
    assert again.working < 0.6 * plain.working
    assert 1.1 < again.flops / plain.flops < 4 / 3
    assert again.parameters == plain.parameters


@pytest.mark.slow
def test_compiled_blocks_give_the_same():
    model, rows = model_and_rows()
    plain = loss_and_gradients(model, rows)
    with compiled(model):
        found = loss_and_gradients(model, rows)
        fewer = pack([Document().words([1]).words([2, 3], wanted=True)], 0, 80, shape=(16, 8))
        assert model.loss(fewer)[0].isfinite()  # another number of rows
        assert all(block._compiled_call_impl is not None for block in model.decoder.blocks)
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)
    assert all(block._compiled_call_impl is None for block in model.decoder.blocks)
