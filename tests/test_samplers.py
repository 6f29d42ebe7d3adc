"""Samplers and the loader: every item once, resumable anywhere, and the same with any workers."""

import io
import itertools
import random

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import Dataset

from mmlib.data.batch import Batch
from mmlib.data.loader import Loader
from mmlib.data.samplers import (
    BatchSampler,
    BucketSampler,
    item_generator,
    item_seed,
    padding_share,
)
from mmlib.training import TrainConfig, fit

# Samplers


def epoch_of(sampler, epoch=0) -> list[list[int]]:
    return [sampler(number) for number in range(epoch * len(sampler), (epoch + 1) * len(sampler))]


def flat(batches) -> list[int]:
    return list(itertools.chain.from_iterable(batches))


@given(
    size=st.integers(1, 60),
    batch_size=st.integers(1, 9),
    world_size=st.integers(1, 5),
    seed=st.integers(0, 2**63 - 1),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    epoch=st.integers(0, 3),
)
@settings(max_examples=150)
def test_ranks_share_an_epoch(size, batch_size, world_size, seed, shuffle, drop_last, epoch):
    whole, rest = divmod(size, batch_size * world_size)
    assume(whole or not drop_last)
    ranks = [
        epoch_of(
            BatchSampler(
                size,
                batch_size,
                seed=seed,
                shuffle=shuffle,
                drop_last=drop_last,
                rank=rank,
                world_size=world_size,
            ),
            epoch,
        )
        for rank in range(world_size)
    ]
    assert {len(batches) for batches in ranks} == {whole + (rest > 0 and not drop_last)}
    sizes = [len(batch) for batch in flat(ranks)]
    assert min(sizes) >= 1 and max(sizes) <= batch_size
    if drop_last:
        assert set(sizes) == {batch_size}
        assert len(flat(flat(ranks))) == len(set(flat(flat(ranks)))) == size - rest
        return
    if rest:
        last = [len(batches[-1]) for batches in ranks]
        assert max(last) - min(last) <= 1
    items = flat(flat(ranks))
    assert set(items) == set(range(size))
    # Only where fewer items are left than there are ranks do some come twice.
    assert len(items) - size == (world_size - rest if 0 < rest < world_size else 0)
    if not shuffle:
        whole_batches = [flat(ranks[rank][at] for rank in range(world_size)) for at in range(whole)]
        assert flat(whole_batches) == list(range(whole * batch_size * world_size))


@pytest.mark.parametrize("world_size", [2, 4])
def test_a_global_batch_is_the_same_for_any_number_of_ranks(world_size):
    alone = BatchSampler(101, 8, seed=3)
    ranks = [
        BatchSampler(101, 8 // world_size, seed=3, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert all(rank.state() == alone.state() for rank in ranks)
    for number in range(2 * len(alone) - 1):
        assert flat(rank(number) for rank in ranks)[: len(alone(number))] == alone(number)


def test_a_batch_depends_on_its_number_alone():
    one, two = BatchSampler(50, 8, seed=1), BatchSampler(50, 8, seed=1)
    numbers = [30, 3, 3, 0, 29, 7, 6]
    forward = {number: two(number) for number in sorted(set(numbers))}
    assert [one(number) for number in numbers] == [forward[number] for number in numbers]


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [tuple(flat(epoch_of(BatchSampler(40, 7, seed=s), e))) for s in (0, 1) for e in (0, 1)]
    assert len(set(orders)) == 4
    # Were seed and epoch added up, seed 1 would begin with seed 0's second epoch.
    assert orders[1] != orders[2]


def test_no_order_is_likelier_than_another():
    orders = [tuple(BatchSampler(4, 4, seed=seed)(0)) for seed in range(4_800)]
    counts = np.array([orders.count(order) for order in itertools.permutations(range(4))])
    # χ² with 23 degrees of freedom: above 49.7 in one of 1,000 cases.
    assert ((counts - 200) ** 2 / 200).sum() < 49.7


def test_the_order_is_for_ever():
    # Written down once: a change would break runs that are resumed with a newer version.
    assert epoch_of(BatchSampler(10, 4, seed=7), 2) == [[0, 2, 7, 4], [6, 1, 5, 8], [3, 9]]
    buckets = BucketSampler([5, 1, 4, 2, 3, 6], batch_size=2, buckets=2, seed=7)
    assert epoch_of(buckets) == [[1, 4], [2], [0, 5], [3]]


def test_without_shuffling_every_epoch_is_in_order():
    sampler = BatchSampler(5, 2, seed=0, shuffle=False)
    assert epoch_of(sampler) == epoch_of(sampler, 3) == [[0, 1], [2, 3], [4]]
    assert sampler.epoch(2) == 0 and sampler.epoch(3) == 1


# Buckets

lengths_lists = st.lists(st.integers(0, 40), min_size=1, max_size=60)


@given(
    lengths=lengths_lists,
    batch_size=st.none() | st.integers(1, 9),
    max_tokens=st.none() | st.integers(40, 200),
    buckets=st.integers(1, 6),
    world_size=st.integers(1, 3),
    seed=st.integers(0, 1000),
    shuffle=st.booleans(),
)
@settings(max_examples=150)
def test_buckets_lose_nothing_and_respect_the_limits(
    lengths, batch_size, max_tokens, buckets, world_size, seed, shuffle
):
    assume(batch_size is not None or max_tokens is not None)
    ranks = [
        BucketSampler(
            lengths,
            batch_size=batch_size,
            max_tokens=max_tokens,
            buckets=buckets,
            seed=seed,
            shuffle=shuffle,
            rank=rank,
            world_size=world_size,
        )
        for rank in range(world_size)
    ]
    for epoch in (0, 2):
        batches = flat(epoch_of(rank, epoch) for rank in ranks)
        items = flat(batches)
        assert set(items) == set(range(len(lengths)))
        if world_size == 1:
            assert len(items) == len(lengths)
        else:
            assert len(items) < len(lengths) + buckets * world_size
        assert all(len(batch) <= (batch_size or len(lengths)) for batch in batches)
        if max_tokens is not None:
            assert all(len(b) * max(lengths[i] for i in b) <= max_tokens for b in batches)


@given(lengths=lengths_lists, buckets=st.integers(1, 4))
@settings(max_examples=60)
def test_no_other_cuts_have_less_padding(lengths, buckets):
    sampler = BucketSampler(lengths, batch_size=10**6, buckets=buckets, seed=0)
    parts = epoch_of(sampler)  # one batch a bucket
    assert len(parts) == min(buckets, len(set(lengths)))
    padding = sum(max(lengths[i] for i in b) * len(b) for b in parts) - sum(lengths)
    levels = sorted(set(lengths))
    best = min(
        sum(min(top for top in (*cuts, levels[-1]) if top >= length) - length for length in lengths)
        for cuts in itertools.combinations(levels[:-1], len(parts) - 1)
    )
    assert padding == best


def test_many_lengths_are_cut_nearly_as_well():
    lengths = np.random.default_rng(0).integers(8_000, 80_000, 3_000)
    assert len(set(lengths.tolist())) > 2_000
    sampler = BucketSampler(lengths, batch_size=10, buckets=8, seed=0)
    # Even cuts leave 1/8 of the range, and half of that is padded on average.
    even = 72_000 / 8 / 2 / 48_500
    assert padding_share(lengths, epoch_of(sampler)) < even


def test_buckets_take_padding_away_and_still_mix():
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(2.5, 0.5, 4_000).astype(int), 3, 77)
    plain = padding_share(lengths, epoch_of(BatchSampler(4_000, 32, seed=0)))
    sampler = BucketSampler(lengths, batch_size=32, seed=0)
    assert padding_share(lengths, epoch_of(sampler)) < plain / 4
    # The batches come in random order, not from short to long …
    longest = [lengths[batch].max() for batch in epoch_of(sampler)]
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.3
    # … and two epochs have hardly a pair of items in common but those of one bucket.
    first, second = ({frozenset(b) for b in epoch_of(sampler, epoch)} for epoch in (0, 1))
    assert not first & second


def test_padding_share_by_hand():
    assert padding_share([1, 2, 4, 4], [[0, 1], [2, 3]]) == pytest.approx(1 / 12)
    assert padding_share([1, 2, 4, 4], [[0, 3], [1, 2]]) == pytest.approx(5 / 16)


# Seeds of items


def test_item_seeds_are_apart():
    seeds = [item_seed(s, e, i) for s in range(10) for e in range(10) for i in range(100)]
    assert len(set(seeds)) == len(seeds) and 0 <= min(seeds) <= max(seeds) < 2**63
    bits = np.array([[seed >> bit & 1 for bit in range(63)] for seed in seeds])
    assert np.abs(bits.mean(0) - 0.5).max() < 0.025  # 5 standard deviations
    drawn = torch.rand(3, generator=item_generator(5, 6, 7))
    assert torch.equal(drawn, torch.rand(3, generator=item_generator(5, 6, 7)))


# The loader


class Sounds(Dataset):
    """A data set of a module, which processes that are spawned can import."""

    def __len__(self) -> int:
        return 23

    def __getitem__(self, index: int) -> dict:
        if index == 100:
            raise OSError("cannot read")
        return {"audio": torch.arange(1 + index % 4) / 8, "text": [index], "id": index}


def noisy(item: dict, generator: torch.Generator) -> dict:
    return {**item, "audio": item["audio"] + torch.rand(len(item["audio"]), generator=generator)}


def make_loader(workers=0, start_method=None, **options) -> Loader:
    sampler = BatchSampler(23, 4, seed=1, **options)
    return Loader(Sounds(), sampler, transform=noisy, workers=workers, start_method=start_method)


def contents(batches) -> list[tuple]:
    return [(batch.ids, batch.audio.numpy().tobytes()) for batch in batches]


@pytest.fixture(scope="module")
def wanted() -> list[tuple]:
    """Three epochs of 6 batches, read one by one."""
    loader = make_loader()
    return contents(loader(number) for number in range(18))


@pytest.mark.parametrize(
    "workers, start_method", [(1, "fork"), (2, "fork"), (3, "fork"), (1, "spawn")]
)
# More workers than cores are no fault here.
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_change_nothing(workers, start_method, wanted):
    loader = make_loader(workers, start_method)
    found = contents(loader(number) for number in range(8, 16))
    loader.close()
    assert found == wanted[8:16]


def test_an_item_is_changed_differently_in_each_epoch():
    loader, found = make_loader(), {}
    for number in range(18):
        for name, audio in rows_of(loader(number)):
            found.setdefault(name, set()).add(tuple(audio))
    assert len(found) == 23 and {len(sounds) for sounds in found.values()} == {3}


def test_ranks_see_what_one_process_sees():
    alone = [collate_one for number in range(6) for collate_one in rows_of(make_loader()(number))]
    ranks = [
        Loader(Sounds(), BatchSampler(23, 2, seed=1, rank=rank, world_size=2), transform=noisy)
        for rank in (0, 1)
    ]
    shared = [row for number in range(6) for rank in ranks for row in rows_of(rank(number))]
    assert sorted(shared) == sorted(alone)


def rows_of(batch: Batch) -> list[tuple]:
    keep = batch.audio_keep
    return [(batch.ids[i], batch.audio[i][keep[i]].tolist()) for i in range(len(batch))]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [0, 1, 5, 6, 7, 12])
def test_a_loop_resumes_with_the_next_batch(stop, workers, wanted):
    loader, found = make_loader(workers), []
    for _ in range(3):
        if loader.number == stop:
            break
        for batch in loader:
            found.append(batch)
            if loader.number == stop:  # workers have read further than this
                break
    state = loader.state_dict()
    loader.close()
    other = make_loader(workers)
    other.load_state_dict(torch.load(save(state), weights_only=True))
    assert other.epoch == stop // 6
    while other.epoch < 3:
        found.extend(other)
    other.close()
    assert contents(found) == wanted


def save(state: dict) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


def test_fit_resumes_in_the_middle_of_an_epoch(tmp_path):
    """A run that is stopped after 8 batches and resumed sees what one run sees."""

    def run(steps_seen: list, checkpoint, stop=None, resume=False, workers=0):
        torch.manual_seed(0)
        model = nn.Linear(1, 1)

        def loss_fn(model, batch):
            steps_seen.append(batch.ids)
            if len(steps_seen) == stop:
                raise KeyboardInterrupt
            return model(batch.audio[..., None]).square()[batch.audio_keep].mean()

        loader = make_loader(workers)
        config = TrainConfig(14, checkpoint_every=4, progress=False, device="cpu", precision="fp32")
        try:
            fit(model, loss_fn, loader, config, checkpoint=checkpoint, resume=resume)
        except KeyboardInterrupt:
            pass
        finally:
            loader.close()
        return model.weight.item()

    whole, first, second = [], [], []
    weight = run(whole, tmp_path / "whole")
    run(first, tmp_path / "part", stop=11, workers=2)  # the last checkpoint is after 8
    resumed = run(second, tmp_path / "part", resume=True, workers=2)
    assert len(whole) == 14 and first == whole[:11] and second == whole[8:]
    assert resumed == weight


def test_no_global_random_state_is_read_or_changed():
    # Python's own state is only read here: the shape checks of the tests draw from it.
    numpy_state = np.random.get_state()[1].tolist()  # noqa: NPY002
    torch_state = torch.get_rng_state()
    loader = make_loader(1)
    first = contents(loader(number) for number in range(2))
    loader.close()
    assert np.random.get_state()[1].tolist() == numpy_state  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_state)
    torch.manual_seed(123)
    np.random.seed(123)  # noqa: NPY002
    random.seed(123)
    assert contents(make_loader()(number) for number in range(2)) == first


def test_a_loader_jumps_and_goes_back(wanted):
    loader = make_loader(1)
    numbers = [3, 4, 0, 17, 3]
    assert contents(map(loader, numbers)) == [wanted[number] for number in numbers]
    loader.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_item_is_named_and_the_next_batch_comes(workers):
    class Bad(Sounds):
        def __len__(self):
            return 101

    loader = Loader(Bad(), BatchSampler(101, 50, seed=0, shuffle=False), workers=workers)
    assert len(loader) == 3 and len(loader(1)) == 50
    with pytest.raises(OSError) as caught:
        loader(2)
    text = str(caught.value) + "".join(getattr(caught.value, "__notes__", []))
    assert "cannot read" in text and "item 100 of the data set, in epoch 0" in text
    assert len(loader(0)) == 50
    loader.close()


def test_any_data_set_and_collate_function_will_do():
    loader = Loader("abcdef", BatchSampler(6, 2, seed=0, shuffle=False), collate_fn="".join)
    assert list(loader) == ["ab", "cd", "ef"] and loader.epoch == 1
    assert len(loader) == 3


# What is refused


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"size": 0}, ValueError, "size must be at least 1: got 0"),
        ({"size": 2.0}, TypeError, "size must be a whole number: got 2.0"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"batch_size": True}, TypeError, "batch_size must be a whole number"),
        ({"seed": -1}, ValueError, "seed must be between 0"),
        ({"seed": None}, TypeError, "seed must be an integer"),
        ({"rank": 2, "world_size": 2}, ValueError, "rank must be below world_size: got 2 of 2"),
        ({"rank": -1}, ValueError, "rank must be at least 0"),
        ({"world_size": 0}, ValueError, "world_size must be at least 1"),
        ({"batch_size": 11, "drop_last": True}, ValueError, "drop_last must leave at least one"),
    ],
)
def test_bad_arguments_of_a_sampler(options, error, message, unchecked):
    values = {"size": 10, "batch_size": 3, "seed": 0} | options
    with pytest.raises(error, match=message):
        unchecked(BatchSampler.__init__)(object.__new__(BatchSampler), **values)


@pytest.mark.parametrize(
    "lengths, options, error, message",
    [
        ([], {}, ValueError, "lengths must be one number an item"),
        ([[1]], {}, ValueError, "lengths must be one number an item"),
        ([0.5], {}, TypeError, "lengths must be whole numbers: got dtype float64"),
        ([3, -1], {}, ValueError, "lengths must not be below 0: got -1"),
        ([1], {"batch_size": None}, ValueError, "batch_size or max_tokens must be given"),
        ([1, 9, 2], {"max_tokens": 8}, ValueError, r"max_tokens=8: got lengths\[1\]=9"),
        ([1], {"max_tokens": 0}, ValueError, "max_tokens must be at least 1"),
        ([1], {"buckets": 0}, ValueError, "buckets must be at least 1"),
        ([1], {"batch_size": 0}, ValueError, "batch_size must be at least 1"),
    ],
)
def test_bad_arguments_of_a_bucket_sampler(lengths, options, error, message, unchecked):
    values = {"batch_size": 2, "seed": 0} | options
    with pytest.raises(error, match=message):
        unchecked(BucketSampler.__init__)(object.__new__(BucketSampler), lengths, **values)


@pytest.mark.parametrize("number, error", [(-1, ValueError), (0.5, TypeError), (None, TypeError)])
def test_bad_numbers_of_batches(number, error, unchecked):
    sampler = BatchSampler(3, 1, seed=0)
    with pytest.raises(error, match="number must be"):
        unchecked(BatchSampler.__call__)(sampler, number)
    with pytest.raises(error, match="number must be"):
        unchecked(Loader.__call__)(Loader([1, 2, 3], sampler), number)


def test_bad_arguments_of_the_small_functions(unchecked):
    with pytest.raises(ValueError, match="batches must have at least one item"):
        padding_share([0, 1], [])
    with pytest.raises(ValueError, match="epoch must be at least 0: got -1"):
        item_seed(0, -1, 0)
    with pytest.raises(TypeError, match="index must be a whole number"):
        unchecked(item_generator)(0, 0, "a")


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"dataset": 5}, TypeError, r"dataset must have dataset\[index\]: got int"),
        ({"dataset": [1]}, ValueError, "as many items as dataset has: got 2, dataset has 1"),
        ({"sampler": [0]}, TypeError, "sampler must be a BatchSampler: got list"),
        ({"workers": -1}, ValueError, "workers must be at least 0"),
        ({"prefetch": 0}, ValueError, "prefetch must be at least 1"),
        ({"prefetch": 1.5}, TypeError, "prefetch must be a whole number"),
        ({"start_method": "thread"}, ValueError, "start_method must be one of .*got 'thread'"),
        ({"seed": -5}, ValueError, "seed must be between"),
    ],
)
def test_bad_arguments_of_a_loader(options, error, message, unchecked):
    values = {"dataset": [1, 2], "sampler": BatchSampler(2, 1, seed=0)} | options
    with pytest.raises(error, match=message):
        unchecked(Loader.__init__)(object.__new__(Loader), **values)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"seed": 2}, "seed was 2, is 1"),
        ({"size": 24}, "size was 24, is 23"),
        ({"global_batch_sizes": [8]}, r"global_batch_sizes was \[8\], is \[4\]"),
        ({"item_seed": 3}, "item_seed was 3, is 1"),
        ({"number": -1}, "number must be at least 0"),
    ],
)
def test_a_foreign_state_is_refused(change, message):
    loader = make_loader()
    with pytest.raises(ValueError, match=message):
        loader.load_state_dict(loader.state_dict() | change)
    with pytest.raises(ValueError, match="state must be of a loader with the same batches"):
        loader.load_state_dict({})
