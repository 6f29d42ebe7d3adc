"""One batch of any modalities: its checks, its methods, and how examples become one."""

import copy
import functools
import inspect
import pickle

import pytest
import torch
from accelerate.utils import send_to_device
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from mmlib.attention import attention
from mmlib.data.batch import MODALITIES, Batch
from mmlib.data.collation import Example, collate


def make(size=3, **changes) -> Batch:
    generator = torch.Generator().manual_seed(0)
    values = dict(
        images=torch.rand(size, 3, 8, 6, generator=generator),
        text=torch.randint(1, 9, (size, 5), generator=generator),
        audio=torch.rand(size, 40, generator=generator),
        video=torch.rand(size, 4, 3, 10, 12, generator=generator),
        targets=torch.arange(size),
        ids=tuple(f"item {i}" for i in range(size)),
        groups=torch.arange(size) // 2,
    )
    return Batch(**{**values, **changes})


def unchecked_batch(**values) -> Batch:
    """A batch made without the tests' shape checks, to see the library's own errors."""
    batch = object.__new__(Batch)
    inspect.unwrap(Batch.__init__)(batch, **values)
    return batch


def tensors(batch: Batch) -> dict[str, torch.Tensor]:
    return {n: v for n, v in vars(batch).items() if isinstance(v, torch.Tensor)}


def same(first: Batch, second: Batch) -> bool:
    one, two = tensors(first), tensors(second)
    return (
        one.keys() == two.keys()
        and first.ids == second.ids
        and all(one[n].dtype == two[n].dtype and torch.equal(one[n], two[n]) for n in one)
    )


# The batch


def test_a_keep_mask_that_is_not_given_is_all_true():
    batch = make()
    assert batch.images_keep.tolist() == [True] * 3
    for name in ("text", "audio", "video"):
        keep = getattr(batch, f"{name}_keep")
        assert keep.all() and keep.shape == getattr(batch, name).shape[:2]
    assert batch.targets_keep.shape == (3,)
    assert Batch(targets=torch.rand(2, 7, 4)).targets_keep.shape == (2, 7)


def test_what_is_there():
    assert len(make()) == 3
    assert make().modalities == MODALITIES
    assert Batch(text=torch.ones(2, 1, dtype=torch.int64)).modalities == ("text",)
    assert Batch(ids=(1, 2)).modalities == () and len(Batch(ids=(1, 2))) == 2
    assert repr(Batch(audio=torch.rand(2, 9))) == "Batch(2, audio (2, 9), audio_keep (2, 9))"


def test_a_batch_is_not_written_to():
    with pytest.raises(AttributeError):
        make().text = None


ints = functools.partial(torch.zeros, dtype=torch.int64)
flags = functools.partial(torch.ones, dtype=torch.bool)


@pytest.mark.parametrize(
    "values, error, message",
    [
        ({}, ValueError, "at least one field"),
        ({"images": [1, 2]}, TypeError, "images must be a tensor: got list"),
        ({"images": ints(2, 3, 4, 4)}, TypeError, "images must be a floating point or uint8"),
        (
            {"images": torch.rand(2, 4, 4)},
            ValueError,
            r"images must have 4 axes: got .*\(2, 4, 4\)",
        ),
        ({"images": torch.rand(2, 3, 4, 4), "images_keep": flags(2, 1)}, ValueError, "images_keep"),
        ({"images_keep": flags(2)}, ValueError, "images_keep must be None when images is None"),
        ({"text": torch.rand(2, 3)}, TypeError, "text must be an integer"),
        ({"text": ints(2)}, ValueError, "text must have 2 axes"),
        ({"text": ints(2, 3), "text_keep": flags(2, 4)}, ValueError, r"text_keep .*got \(2, 4\)"),
        ({"text": ints(2, 3), "text_keep": ints(2, 3)}, TypeError, "text_keep must be a bool"),
        ({"audio": ints(2, 3)}, TypeError, "audio must be a floating point tensor"),
        ({"audio": torch.rand(2, 1, 3)}, ValueError, "audio must have 2 axes"),
        ({"video": torch.rand(2, 3, 4, 4)}, ValueError, "video must have 5 axes"),
        (
            {"video": torch.rand(2, 4, 3, 5, 5), "video_keep": flags(2, 3)},
            ValueError,
            r"video_keep must be of shape \(2, 4\)",
        ),
        ({"targets": torch.tensor(1)}, ValueError, "targets must have a batch axis"),
        ({"targets": flags(2)}, TypeError, "targets must be a floating point or integer"),
        ({"targets": ints(2, 3), "targets_keep": flags(2)}, ValueError, "targets_keep"),
        ({"ids": "ab"}, TypeError, "ids must be a tuple"),
        ({"ids": 3}, TypeError, "ids must be a tuple"),
        ({"groups": torch.rand(2)}, TypeError, "groups must be"),
        ({"groups": ints(2, 1)}, ValueError, "groups must have 1 axis"),
        ({"text": ints(2, 3), "audio": torch.rand(3, 3)}, ValueError, "audio .*got 3, text has 2"),
        ({"text": ints(2, 3), "ids": (1,)}, ValueError, "ids must have as many items as text"),
        ({"text": ints(2, 3), "groups": ints(3)}, ValueError, "groups must have as many items"),
    ],
)
def test_a_bad_batch_names_its_field(values, error, message):
    with pytest.raises(error, match=message):
        unchecked_batch(**values)


def test_shape_checks_let_every_modality_have_its_own_size():
    batch = make()  # pictures 8 × 6, frames 10 × 12
    assert batch.images.shape[2:] != batch.video.shape[3:]


def test_to_casts_floating_point_modalities_and_nothing_else():
    batch = make(targets=torch.rand(3), images=torch.zeros(3, 3, 2, 2, dtype=torch.uint8))
    moved = batch.to("cpu", torch.bfloat16)
    assert moved.audio.dtype == moved.video.dtype == torch.bfloat16
    assert moved.images.dtype == torch.uint8 and moved.targets.dtype == torch.float32
    assert moved.text.dtype == torch.int64 and moved.audio_keep.dtype == torch.bool
    assert moved.ids == batch.ids
    assert batch.audio.dtype == torch.float32
    assert same(batch.to("cpu"), batch)
    assert all(t.device.type == "meta" for t in tensors(make().to("meta")).values())


def test_accelerate_moves_a_batch():
    moved = send_to_device(make(), torch.device("meta"), non_blocking=True)
    assert isinstance(moved, Batch) and moved.images.device.type == "meta"


@pytest.mark.parametrize("dtype", [torch.int64, "float32"])
def test_to_refuses_a_dtype_that_is_not_floating_point(dtype, unchecked):
    with pytest.raises(TypeError, match="dtype must be a floating-point dtype"):
        unchecked(Batch.to)(make(), "cpu", dtype)


@pytest.mark.parametrize(
    "rows, wanted",
    [
        ([2, 0, 2], [2, 0, 2]),
        ([], []),
        (torch.tensor([1]), [1]),
        (torch.tensor([True, False, True]), [0, 2]),
        ([True, False, True], [0, 2]),
        (slice(1, None), [1, 2]),
        (slice(None, None, -1), [2, 1, 0]),
    ],
)
def test_select_takes_the_same_rows_of_every_field(rows, wanted):
    batch = make(text_keep=torch.tensor([[True] * n + [False] * (5 - n) for n in (1, 2, 3)]))
    chosen = batch.select(rows)
    assert chosen.ids == tuple(f"item {i}" for i in wanted)
    for name, value in tensors(batch).items():
        assert torch.equal(getattr(chosen, name), value[wanted])


@pytest.mark.parametrize(
    "rows, error, message",
    [
        ([3], IndexError, "rows must be between 0 and 2: got 3 to 3"),
        ([-1], IndexError, "rows"),
        ([0.5], TypeError, "rows"),
        ([[0]], TypeError, "rows"),
        (torch.tensor([True]), ValueError, "rows must have one True or False an item: got 1 of 3"),
    ],
)
def test_select_and_without_name_bad_rows(rows, error, message, unchecked):
    with pytest.raises(error, match=message):
        unchecked(Batch.select)(make(), rows)
    with pytest.raises(error, match=message):
        unchecked(Batch.without)(make(), "text", rows)


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("rows", [[0, 2], torch.tensor([True, False, True]), slice(None, None, 2)])
def test_without_for_some_items(modality, rows):
    batch = make()
    before = {n: v.clone() for n, v in tensors(batch).items()}
    less = batch.without(modality, rows)
    value, keep = getattr(less, modality), getattr(less, f"{modality}_keep")
    assert not keep[[0, 2]].any() and keep[1].all()
    assert not value[[0, 2]].any() and torch.equal(value[1], before[modality][1])
    for name, old in before.items():
        assert torch.equal(getattr(batch, name), old)  # unchanged
        if not name.startswith(modality):
            assert torch.equal(getattr(less, name), old)


def test_without_for_all_items():
    less = make().without("video")
    assert less.modalities == ("images", "text", "audio")
    assert less.video is less.video_keep is None
    with pytest.raises(
        ValueError, match=r"modality must be .*\(images, text, audio\): got 'video'"
    ):
        less.without("video")
    with pytest.raises(ValueError, match="got 'targets'"):
        less.without("targets")


def test_attention_gives_zeros_where_a_modality_is_missing():
    batch = make().without("text", [1])
    tokens = torch.nn.functional.one_hot(batch.text, 9).float()[:, None]
    out, _ = attention(tokens, tokens, tokens, batch.text_keep[:, None, None])
    assert out[1].abs().max() == 0 and out[0].abs().max() > 0


def test_a_batch_is_pickled_and_copied():
    assert same(pickle.loads(pickle.dumps(make())), make())
    assert same(copy.deepcopy(make()), make())


# Collation


def test_collate_pads_as_torch_does():
    rows = [torch.arange(1, n + 1) for n in (3, 1, 4)]
    batch = collate([{"text": row, "audio": row / 10} for row in rows], pad_id=7)
    assert torch.equal(batch.text, pad_sequence(rows, batch_first=True, padding_value=7))
    assert torch.equal(batch.audio, pad_sequence([r / 10 for r in rows], batch_first=True))
    assert batch.text_keep.sum(1).tolist() == batch.audio_keep.sum(1).tolist() == [3, 1, 4]


examples = st.builds(
    dict,
    text=st.none() | st.lists(st.integers(1, 99), max_size=6),
    audio=st.none() | st.integers(0, 5).map(lambda n: torch.arange(1, n + 1) / 8),
    video=st.none() | st.integers(0, 4).map(lambda n: torch.full((n, 1, 2, 3), float(n))),
    image=st.none() | st.integers(1, 9).map(lambda n: torch.full((3, 4, 5), n, dtype=torch.uint8)),
    target=st.none() | st.lists(st.integers(1, 99), max_size=4),
    id=st.integers(),
)


@given(st.lists(examples, min_size=1, max_size=5), st.sampled_from([1, 4]), st.booleans())
@settings(max_examples=60)
def test_nothing_is_lost_in_a_batch(rows, multiple, as_examples):
    multiples = dict.fromkeys(["text", "audio", "video", "targets"], multiple)
    given_rows = [Example(**row) for row in rows] if as_examples else rows
    batch = collate(given_rows, pad_id=0, multiples=multiples)
    assert batch.ids == tuple(row["id"] for row in rows)
    for name in ("text", "audio", "video", "target"):
        field = "targets" if name == "target" else name
        value, keep = getattr(batch, field), getattr(batch, f"{field}_keep")
        assert (value is None) == all(row[name] is None for row in rows)
        if value is None:
            continue
        longest = max(0 if row[name] is None else len(row[name]) for row in rows)
        assert multiple > value.shape[1] - longest >= 0 == value.shape[1] % multiple
        for at, row in enumerate(rows):
            own = row[name] if row[name] is not None else []
            assert keep[at].tolist() == [True] * len(own) + [False] * (value.shape[1] - len(own))
            assert value[at][keep[at]].tolist() == torch.as_tensor(own).tolist()
            assert not value[at][~keep[at]].any()
    if batch.images is not None:
        assert batch.images_keep.tolist() == [row["image"] is not None for row in rows]
        assert batch.images.amax((1, 2, 3)).tolist() == [
            0 if row["image"] is None else int(row["image"].max()) for row in rows
        ]


@pytest.mark.parametrize(
    "targets, dtype, keep",
    [
        ([1, 2], torch.int64, [True, True]),
        ([1, None], torch.int64, [True, False]),
        ([0.5, 2.0], torch.float32, [True, True]),
        ([True, False], torch.int64, [True, True]),
        ([torch.tensor(3, dtype=torch.int32), 4], torch.int64, [True, True]),
        ([[1, 2, 3], [4]], torch.int64, [[True] * 3, [True, False, False]]),
        ([[0.5, 0.5], None], torch.float32, [[True, True], [False, False]]),
        ([torch.rand(2, 3), torch.rand(1, 3)], torch.float32, [[True, True], [True, False]]),
    ],
)
def test_targets(targets, dtype, keep):
    batch = collate([{"id": at, "target": target} for at, target in enumerate(targets)])
    assert batch.targets.dtype == dtype and batch.targets_keep.tolist() == keep
    assert batch.targets.shape[: batch.targets_keep.ndim] == batch.targets_keep.shape


def test_the_pad_id_stands_in_ids_only():
    rows = [{"text": [1, 2], "target": [0.5]}, {"text": [1], "target": [0.5, 0.5]}]
    batch = collate(rows, pad_id=7)
    assert batch.text[1].tolist() == [1, 7] and batch.targets[0].tolist() == [0.5, 0]


def test_groups_that_are_strings_are_the_same_numbers_everywhere():
    batch = collate([{"group": "heart"}, {"group": "dog"}, {"group": "heart"}])
    assert batch.groups.dtype == torch.int64
    heart, dog = 0xDAEF0EAE5183FBE2, 0x3984C7C1D25E9C9F  # printf heart | b2sum -l 64
    assert batch.groups.tolist() == [heart >> 1, dog >> 1, heart >> 1]
    assert collate([{"group": 3}, {"group": 0}]).groups.tolist() == [3, 0]


def test_collate_copies():
    audio, image = torch.rand(4), torch.rand(3, 2, 2)
    row = {"audio": audio, "image": image, "text": [1, 2]}
    before = copy.deepcopy(row)
    batch = collate([row])
    batch.audio.zero_(), batch.images.zero_()
    assert torch.equal(row["audio"], before["audio"]) and torch.equal(row["image"], before["image"])
    assert row["text"] == [1, 2] and row.keys() == before.keys()


good = {"text": [1, 2]}


@pytest.mark.parametrize(
    "rows, error, message",
    [
        ([], ValueError, "examples must be a sequence with at least one"),
        (good, ValueError, "examples must be a sequence"),
        (Example(text=[1]), ValueError, "examples must be a sequence"),
        ([good, 5], TypeError, r"examples\[1\] must be an Example or a mapping: got 5"),
        ([good, {}], ValueError, r"examples\[1\] must have at least one field"),
        ([good, {"txt": [1]}], ValueError, r"examples\[1\] must have the names .*got 'txt'"),
        ([good, {"text": [0.5]}], TypeError, r"examples\[1\].text must be an integer"),
        ([good, {"text": ["a"]}], TypeError, r"examples\[1\].text must be numbers"),
        ([good, {"text": [[1], [2]]}], ValueError, r"examples\[1\].text must have 1 axes"),
        ([{"audio": [0.1]}], TypeError, r"examples\[0\].audio must be a tensor: got list"),
        ([{"audio": ints(4)}], TypeError, r"examples\[0\].audio must be a floating point"),
        ([{"audio": torch.rand(1, 4)}], ValueError, r"examples\[0\].audio must have 1 axes"),
        ([{"image": torch.rand(4, 4)}], ValueError, r"examples\[0\].image must have 3 axes"),
        (
            [{"image": torch.rand(3, 4, 4)}, good, {"image": torch.rand(3, 4, 5)}],
            ValueError,
            r"examples\[2\].image must be of the size of the others: got \(3, 4, 5\), "
            r"examples\[0\] has \(3, 4, 4\)",
        ),
        (
            [{"image": torch.rand(3, 4, 4)}, {"image": ints(3, 4, 4).byte()}],
            TypeError,
            r"examples\[1\].image must be of the dtype of the others",
        ),
        (
            [{"video": torch.rand(2, 3, 4, 4)}, {"video": torch.rand(2, 3, 5, 4)}],
            ValueError,
            r"examples\[1\].video must be of the size of the others but in length",
        ),
        ([{"target": 1}, {"target": 0.5}], TypeError, r"examples\[1\].target must be of the dtype"),
        ([{"target": 1}, {"target": [1]}], ValueError, r"examples\[1\].target must be of the size"),
        ([{"target": "cat"}], TypeError, r"examples\[0\].target must be numbers: got 'cat'"),
        ([{"target": 1j}], TypeError, r"examples\[0\].target must be a floating point or integer"),
        ([{**good, "id": 1}, good], ValueError, r"examples\[1\].id must be given"),
        ([good, {**good, "group": 1}], ValueError, r"examples\[0\].group must be given"),
        ([{"group": 0.5}], TypeError, r"examples\[0\].group must be an int or a string"),
    ],
)
def test_a_bad_example_is_named(rows, error, message, unchecked):
    with pytest.raises(error, match=message):
        unchecked(collate)(rows)


@pytest.mark.parametrize(
    "multiples, message",
    [({"images": 2}, "got 'images'"), ({"text": 0}, "got text=0"), ({"text": 1.5}, "text=1.5")],
)
def test_bad_multiples_are_named(multiples, message, unchecked):
    with pytest.raises(ValueError, match=message):
        unchecked(collate)([good], multiples=multiples)


@pytest.mark.parametrize("workers", [0, 1])
def test_collate_serves_a_data_loader(workers):
    rows = [{"text": [1] * n, "image": torch.full((1, 2, 2), float(n)), "id": n} for n in (1, 2, 3)]
    loader = DataLoader(
        rows, 2, collate_fn=functools.partial(collate, pad_id=9), num_workers=workers
    )
    first, second = loader
    assert first.text.tolist() == [[1, 9], [1, 1]] and second.ids == (3,)
    assert same(first, collate(rows[:2], pad_id=9))
