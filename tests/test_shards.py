"""Shards: every sample once whatever reads them, the same order again, nothing executed."""

import importlib
import io
import json
import pickle
import re
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from mmlib.data import coco_example, shards, vqa_v2
from mmlib.data.records import RecordError
from mmlib.data.shards import ShardStream, write_shards


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> vqa_v2.VQA:
    files = coco_example.write_example(tmp_path_factory.mktemp("coco"), images=40)
    return vqa_v2.VQA(files.train_questions, files.train_annotations, files.train_images)


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory) -> Path:
    """24 samples in 5 shards: four of 5 and one of 4."""
    folder = tmp_path_factory.mktemp("shards")
    write_shards(data.records(), folder, per_shard=5)
    return folder


@pytest.fixture(scope="module")
def keys(data) -> list[str]:
    return [record["key"] for record in data.records()]


def names(stream) -> list[str]:
    return [sample.key for sample in stream]


def through(stream: ShardStream, workers: int) -> list[str]:
    loader = DataLoader(stream, 3, num_workers=workers, collate_fn=list)
    return [sample.key for batch in loader for sample in batch]


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


# Writing


def test_shards_hold_the_files_as_they_are(data, folder):
    written = {}
    for path in sorted(folder.glob("*.tar")):
        written |= members(path)
    assert len(written) == 48
    for record in data.records():
        assert written[f"{record['key']}.jpg"] == Path(record["image"]).read_bytes()
        expected = json.loads(json.dumps(record["record"]))
        assert json.loads(written[f"{record['key']}.json"]) == expected


def test_the_same_records_give_the_same_bytes(data, folder, tmp_path):
    paths = write_shards(data.records(), tmp_path / "again", per_shard=5)
    assert [path.name for path in paths] == [f"{n:06d}.tar" for n in range(5)]
    for path in (*paths, tmp_path / "again" / shards.INDEX):
        assert path.read_bytes() == (folder / path.name).read_bytes()
    assert {path.name for path in (tmp_path / "again").iterdir()} == {
        *(path.name for path in paths),
        shards.INDEX,
    }


def test_the_index_counts_the_samples(folder):
    rows = json.loads((folder / shards.INDEX).read_text())["shards"]
    assert [row["samples"] for row in rows] == [5, 5, 5, 5, 4]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"key": "a.b"}, "key must be of letters, digits, '-' and '_': got 'a.b'"),
        ({"key": "../x"}, "key must be of letters, digits"),
        ({"key": 5}, "key must be of letters, digits, '-' and '_': got 5"),
        ({"image": Path("x.pyd")}, "must be one of jpg, jpeg, png, webp: got x.pyd"),
    ],
)
def test_bad_records_are_named(data, tmp_path, change, message):
    record = {**next(data.records()), **change}
    with pytest.raises(ValueError, match=re.escape(message)):
        write_shards([record], tmp_path)
    assert not list(tmp_path.iterdir())


def test_bad_calls_of_the_writer(data, folder, tmp_path):
    with pytest.raises(ValueError, match="per_shard must be at least 1: got 0"):
        write_shards(data.records(), tmp_path, per_shard=0)
    with pytest.raises(ValueError, match="records must not be empty"):
        write_shards([], tmp_path)
    with pytest.raises(ValueError, match="folder must not contain shards"):
        write_shards(data.records(), folder)
    record = next(data.records())
    with pytest.raises(ValueError, match=f"key must not come twice: got '{record['key']}'"):
        write_shards([record, record], tmp_path)
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        write_shards([{**record, "image": tmp_path / "gone.jpg"}], tmp_path)


# Reading


def test_what_was_written_comes_back(data, folder):
    by_image = {}
    for item in data:
        by_image.setdefault(f"{item.image_id:012d}", []).append(item)
    samples = list(ShardStream(folder))
    assert [sample.key for sample in samples] == sorted(by_image)
    for sample in samples:
        items = by_image[sample.key]
        assert sample.image.mode == "RGB"
        assert sample.image.tobytes() == items[0].image.tobytes()
        assert sample.record["image_id"] == items[0].image_id
        assert [q["question"] for q in sample.record["questions"]] == [i.question for i in items]
        assert [tuple(q["answers"]) for q in sample.record["questions"]] == [
            item.answers for item in items
        ]
        assert sample.other == {}


def test_sources(folder, keys):
    files = sorted(folder.glob("*.tar"))
    assert names(ShardStream(str(folder))) == keys
    assert names(ShardStream(files)) == keys
    assert names(ShardStream(files[1])) == keys[5:10]


def test_transform(folder):
    sample = next(iter(ShardStream(folder, transform=v2.PILToTensor())))
    assert sample.image.shape == (3, 64, 64)


def test_shuffling_is_seeded_and_differs_between_epochs(folder, keys):
    stream = ShardStream(folder, seed=0, buffer=8)
    first = names(stream)
    assert names(stream) == names(ShardStream(folder, seed=0, buffer=8)) == first
    stream.set_epoch(1)
    second = names(stream)
    other = names(ShardStream(folder, seed=1, buffer=8))
    assert sorted(first) == sorted(second) == sorted(other) == keys
    assert len({tuple(order) for order in (first, second, other, keys)}) == 4
    stream.set_epoch(0)
    assert names(stream) == first


def test_samples_are_mixed_beyond_their_shard(folder, keys):
    shard = {key: n // 5 for n, key in enumerate(keys)}
    alone = [shard[key] for key in names(ShardStream(folder, seed=0, buffer=1))]
    assert sum(a != b for a, b in zip(alone, alone[1:], strict=False)) == 4  # shards in a row
    mixed = [shard[key] for key in names(ShardStream(folder, seed=0, buffer=24))]
    assert sum(a != b for a, b in zip(mixed, mixed[1:], strict=False)) > 10


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker")
@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_every_sample_comes_once_with_any_number_of_workers(folder, keys, workers, seed):
    stream = ShardStream(folder, seed=seed, buffer=4)
    found = through(stream, workers)
    assert sorted(found) == keys
    if workers < 3:
        assert through(stream, workers) == found  # and in the same order again


@pytest.mark.parametrize("workers", [0, 2])
def test_two_processes_share_the_samples(folder, keys, workers):
    for epoch in (0, 1):
        streams = [
            ShardStream(folder, seed=0, buffer=4, rank=rank, world_size=2) for rank in (0, 1)
        ]
        parts = []
        for stream in streams:
            stream.set_epoch(epoch)
            parts.append(through(stream, workers))
            assert len(parts[-1]) == stream.samples()
        assert sorted(parts[0] + parts[1]) == keys
        assert min(map(len, parts)) >= 9


def test_rank_comes_from_the_environment(folder, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    stream = ShardStream(folder)
    assert (stream.rank, stream.world_size) == (1, 2)
    assert names(stream) == names(ShardStream(folder, rank=1, world_size=2))


def test_workers_that_live_on_see_the_next_epoch(folder, keys):
    stream = ShardStream(folder, seed=0, buffer=4)
    loader = DataLoader(stream, 3, num_workers=1, persistent_workers=True, collate_fn=list)
    orders = []
    for epoch in (0, 1, 0):
        stream.set_epoch(epoch)
        orders.append([sample.key for batch in loader for sample in batch])
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[1]) == keys


# Going on where a run stopped


@pytest.mark.parametrize("done", [0, 1, 7, 24])
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_going_on_after_some_samples(folder, done, on_error):
    stream = ShardStream(folder, seed=3, buffer=6, on_error=on_error)
    stream.set_epoch(2)
    whole = names(stream)
    stream.set_epoch(2, skip=done)
    assert names(stream) == whole[done:]


def test_going_on_at_a_shard(folder, keys):
    stream = ShardStream(folder, seed=3, buffer=1)
    whole, sizes = names(stream), dict.fromkeys(stream.order(), 5)
    sizes[str(folder / "000004.tar")] = 4
    read = sum(sizes[shard] for shard in stream.order()[:2])
    stream.set_epoch(0, skip_shards=2)
    assert names(stream) == whole[read:]
    assert stream.samples() == len(keys) - read
    # Shards are counted over all processes: the one that is left is process 0's.
    last = names(ShardStream(stream.order()[-1:]))
    parts = [ShardStream(folder, seed=3, rank=rank, world_size=2) for rank in (0, 1)]
    for part in parts:
        part.set_epoch(0, skip_shards=4)
    assert [sorted(names(part)) for part in parts] == [last, []]


def test_broken_samples_do_not_count_as_done(folder, tmp_path):
    spoil(folder, tmp_path, lambda name, data: data[:300] if name.endswith("9.jpg") else data)
    stream = ShardStream(tmp_path, seed=0, buffer=6, on_error="skip")
    whole = names(stream)
    assert len(whole) < 24
    for done in (1, 9, len(whole) - 1):
        stream.set_epoch(0, skip=done)
        assert names(stream) == whole[done:]


def test_skip_needs_one_worker(folder, monkeypatch):
    stream = ShardStream(folder)
    stream.set_epoch(0, skip=2)
    assert len(through(stream, 1)) == 22
    monkeypatch.setattr(shards, "get_worker_info", lambda: SimpleNamespace(id=1, num_workers=2))
    with pytest.raises(ValueError, match="skip must be 0 with several workers: got 2 with 2"):
        next(iter(stream))


# Broken shards


def spoil(source: Path, target: Path, change) -> None:
    """Copy shards; ``change`` gives new content, or None to leave a member out."""
    for path in sorted(source.glob("*.tar")):
        with tarfile.open(target / path.name, "w") as tar:
            for name, content in members(path).items():
                content = change(name, content)
                if content is not None:
                    add(tar, name, content)
    (target / shards.INDEX).write_bytes((source / shards.INDEX).read_bytes())


FAULTS = {
    "truncated picture": (lambda n, d: d[:300] if n[-3:] == "jpg" else d, "broken image"),
    "no picture": (lambda n, d: None if n[-3:] == "jpg" else d, "missing image"),
    "no JSON": (lambda n, d: None if n[-4:] == "json" else d, "bad record"),
    "bad JSON": (lambda n, d: d[:-1] if n[-4:] == "json" else d, "bad record"),
    "JSON is a list": (lambda n, d: b"[]" if n[-4:] == "json" else d, "bad record"),
}


@pytest.mark.parametrize(
    "name, workers", [*((name, 0) for name in FAULTS), ("truncated picture", 2)]
)
def test_a_broken_sample_is_named_or_skipped_and_counted(folder, keys, tmp_path, name, workers):
    change, reason = FAULTS[name]
    bad = keys[7]
    spoil(folder, tmp_path, lambda n, d: change(n, d) if n.startswith(bad) else d)
    message = rf"{re.escape(str(tmp_path))}.000001\.tar: sample {bad}: "
    with pytest.raises(RecordError, match=message):
        names(ShardStream(tmp_path))
    stream = ShardStream(tmp_path, on_error="skip")
    assert sorted(through(stream, workers)) == [key for key in keys if key != bad]
    assert stream.skipped == {reason: 1}


@pytest.mark.parametrize("kind", ["inside a member", "between members", "not a tar file"])
def test_a_broken_shard_is_named_or_skipped_and_counted(folder, keys, tmp_path, kind):
    spoil(folder, tmp_path, lambda name, data: data)
    shard = tmp_path / "000001.tar"
    whole = shard.read_bytes()
    with tarfile.open(shard) as tar:
        third = list(tar)[4]  # the picture of the third sample
    cut = third.offset_data + 100 if kind == "inside a member" else third.offset
    shard.write_bytes(b"<html>404</html>" * 40 if kind == "not a tar file" else whole[:cut])
    message = rf"{re.escape(str(shard))}: (cannot be read after sample \d: |2 samples instead of 5)"
    with pytest.raises(RecordError, match=message) as caught:
        names(ShardStream(tmp_path))
    assert caught.value.reason == "broken shard"
    stream = ShardStream(tmp_path, on_error="skip")
    lost = keys[5:10] if kind == "not a tar file" else keys[7:10]
    assert names(stream) == [key for key in keys if key not in lost]
    assert stream.skipped == {"broken shard": 1}


# Nothing is executed


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_pickles_stay_bytes(folder, tmp_path):
    bomb = pickle.dumps(Bomb(tmp_path / "executed"))
    path = tmp_path / "000000.tar"
    kinds = ("pyd", "pickle", "pkl", "pth", "npy", "cls", "txt")
    with tarfile.open(path, "w") as tar:
        for name, content in list(members(folder / "000000.tar").items())[:2]:
            add(tar, name, content)
        for kind in kinds:
            add(tar, f"{name.split('.')[0]}.{kind}", bomb)
    (sample,) = ShardStream(path)
    assert sample.other == dict.fromkeys(kinds, bomb)
    assert not (tmp_path / "executed").exists()
    pickle.loads(bomb)
    assert (tmp_path / "executed").exists()  # the bomb works


@pytest.mark.parametrize("kind", ["pipe:touch {}", "PIPE:touch {}", "gs://{}", "ais:{}", "hf://{}"])
def test_addresses_that_run_commands_are_refused(tmp_path, kind):
    address = kind.format(tmp_path / "executed")
    with pytest.raises(ValueError, match="source must be files or http.s. addresses: got"):
        ShardStream(address)
    with pytest.raises(ValueError, match="source must be files or http.s. addresses: got"):
        ShardStream([address])
    assert not (tmp_path / "executed").exists()


# Bad arguments


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"buffer": 0}, "buffer must be at least 1: got 0"),
        ({"on_error": "warn"}, "on_error must be one of raise, skip: got 'warn'"),
        ({"seed": -1}, "seed must be between 0"),
        ({"rank": 2, "world_size": 2}, "rank must be below world_size: got 2, 2"),
        ({"rank": 0, "world_size": 6}, "a shard for every process: got 5 for 6"),
    ],
)
def test_bad_arguments(folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        ShardStream(folder, **arguments)


def test_more_bad_arguments(folder, tmp_path):
    with pytest.raises(ValueError, match="source must contain shards: got none in"):
        ShardStream(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no shard at .*none\.tar"):
        ShardStream(tmp_path / "none.tar")
    with pytest.raises(ValueError, match="skip must be at least 0: got -1"):
        ShardStream(folder).set_epoch(0, skip=-1)
    with pytest.raises(ValueError, match=r"shards must come with index\.json"):
        ShardStream(sorted(folder.glob("*.tar"))).samples()
    (tmp_path / shards.INDEX).write_text('{"shards": [{"name": "x.tar"}]}')
    with pytest.raises(RecordError, match="shards need name and samples"):
        ShardStream(tmp_path)
    (tmp_path / shards.INDEX).write_text('{"shards": [{"name": "x.tar", "samples": 1}]}')
    with pytest.raises(FileNotFoundError, match=r"there is no shard at .*x\.tar"):
        ShardStream(tmp_path)


def test_without_webdataset_the_extra_is_named(monkeypatch, data, tmp_path):
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(ImportError, match=re.escape('pip install "mmlib[coco]"')):
        write_shards(data.records(), tmp_path)
    monkeypatch.delitem(sys.modules, "mmlib.data.shards")
    with pytest.raises(ImportError, match=re.escape('pip install "mmlib[coco]"')):
        importlib.import_module("mmlib.data.shards")
