"""The multimodal Transformer: any modalities, padding, words, speech, bad input."""

import inspect

import pytest
import torch

from mmlib.data.batch import MODALITIES, Batch
from mmlib.decoding import beam_search, greedy
from mmlib.durations import regulate
from mmlib.encoders.mel import LogMelConfig
from mmlib.modality_dropout import drop_modalities
from mmlib.multimodal import Memory, MultimodalConfig, MultimodalTransformer
from mmlib.multimodal_decoding import MultimodalDecoding
from mmlib.multimodal_embeddings import SoundEmbedding, VisualEmbedding
from mmlib.training import load_weights, save_weights

CONFIG = MultimodalConfig(
    20,
    dim=16,
    heads=2,
    layers=2,
    cnn_width=8,
    motion_width=8,
    voices=3,
    log_mel=LogMelConfig(mels=20),
)


def make(config=CONFIG):
    torch.manual_seed(1)
    model = MultimodalTransformer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # biases and norms that do something
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def batch(count=2, **fields):
    generator = torch.Generator().manual_seed(3)
    found = {
        "images": torch.rand(count, 3, 32, 32, generator=generator),
        "text": torch.randint(1, 20, (count, 5), generator=generator),
        "audio": 0.1 * torch.randn(count, 3200, generator=generator),
        "video": torch.rand(count, 6, 3, 32, 32, generator=generator),
    }
    return Batch(**(found | fields))


def only(*names):
    full = batch()
    return Batch(**{name: getattr(full, name) for name in names})


def close(found, expected, tolerance=2e-5):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# ---- reading


def test_tokens_stand_in_the_order_of_the_modalities():
    memory = make().encode(batch())
    sizes = {"images": 17, "text": 5, "audio": 3, "video": 6}  # 20 frames of sound; 6 of a clip
    assert memory.modality.tolist() == [
        number for number, name in enumerate(MODALITIES) for _ in range(sizes[name])
    ]
    assert memory.tokens.shape == (2, 31, 16)
    assert memory.keep.all()
    for name, size in sizes.items():
        assert memory.of(name).tokens.shape == (2, size, 16)


@pytest.mark.parametrize("name", MODALITIES)
def test_a_modality_alone_is_enough(name):
    memory = make().encode(only(name))
    assert set(memory.modality.tolist()) == {MODALITIES.index(name)}
    assert memory.tokens.isfinite().all()


@pytest.mark.parametrize("name", MODALITIES)
def test_a_modality_that_one_item_lacks_is_as_if_nobody_had_it(name):
    """Whatever stands where nothing is, the other items and this one do not see it."""
    model, full = make(), batch()
    missing = full.without(name, [0])
    found = model.encode(missing)
    others = [other for other in MODALITIES if other != name]
    alone = model.encode(only(*others))
    here = torch.isin(found.modality, alone.modality.unique())
    close(found.tokens[0, here], alone.tokens[0])
    close(found.tokens[1], model.encode(full).tokens[1])
    assert not found.of(name).keep[0].any()
    ids = torch.tensor([[4, 2], [4, 2]])
    close(model(missing, ids)[0], model(only(*others), ids)[0])


@pytest.mark.parametrize("name", ["text", "audio", "video"])
def test_padding_changes_nothing(name):
    model, short = make(), only(name)
    value = getattr(short, name)
    extra = torch.full_like(value[:, :4] if name != "audio" else value, 1)
    keep = torch.arange(value.shape[1] + extra.shape[1]) < value.shape[1]
    longer = Batch(
        **{
            name: torch.cat([value, extra], dim=1),
            f"{name}_keep": keep.expand(len(value), -1),
        }
    )
    ids = torch.tensor([[4, 2, 7], [5, 3, 1]])
    close(model(longer, ids), model(short, ids))


def test_places_order_and_modality_are_told_apart():
    model = make()
    text = only("text")
    turned = Batch(text=text.text.flip(1))
    assert (model.encode(text).tokens.flip(1) - model.encode(turned).tokens).abs().max() > 0.01
    video = only("video").video
    back = model.encode(Batch(video=video[:, [4, 5, 4, 5, 0, 1]])).tokens
    assert (back - model.encode(Batch(video=video)).tokens).abs().max() > 0.01
    with torch.no_grad():
        before = model.encode(text).tokens
        model.modality.weight[MODALITIES.index("text")] += torch.randn(16)
        assert (model.encode(text).tokens - before).abs().max() > 0.01


def test_every_modality_reaches_the_words():
    model, full = make(), batch()
    inputs = {name: getattr(full, name) for name in ("images", "audio", "video")}
    for value in inputs.values():
        value.requires_grad_()
    logits = model(Batch(text=full.text, **inputs), torch.tensor([[4], [4]]))
    for gradient in torch.autograd.grad(logits[0, 0, 3], inputs.values()):
        assert gradient[0].abs().max() > 0
        assert gradient[1].abs().max() == 0  # the other item


def test_places_of_a_picture_are_merged_two_by_two():
    """What is drawn in the lower right corner is seen by the last token first of all."""
    visual, picture = make().visual, only("images").images.requires_grad_()
    for place, rows, columns in ((0, slice(0, 8), slice(0, 8)), (7, slice(8, 16), slice(24, 32))):
        [gradient] = torch.autograd.grad(visual.pictures(picture)[0, place].square().sum(), picture)
        inside = gradient[0, :, rows, columns].abs().mean()
        assert inside > 2 * gradient[0].abs().mean()
        assert gradient[1].abs().max() == 0


def test_the_whole_of_a_picture_is_what_a_frame_of_a_clip_looks_like():
    visual, picture = make().visual, only("images").images
    still = picture[:, None].expand(-1, 3, -1, -1, -1)
    close(visual.pictures(picture)[:, 16], visual.clips(still)[:, 0, 0])
    model, other = make(), make()
    with torch.no_grad():
        other.places += 1.0  # of places, and not of the whole
    found, changed = (m.embed(only("images"))[0] for m in (model, other))
    close(changed - found, torch.tensor([1.0] * 16 + [0.0])[:, None].expand(2, -1, 16))


def test_what_is_seen_in_a_picture_by_hand():
    visual, picture = make().visual, only("images").images
    maps = visual.looks(picture).flatten(2)
    expected = torch.cat([maps.sort(dim=2).values[..., -1], maps.sum(2) / 64], dim=1)
    close(visual.seen(picture), expected)


def test_looks_are_of_one_frame_and_motion_is_of_five():
    """Motion knows the brightest channel of a frame, and no colour."""
    visual = make().visual
    video = torch.rand(1, 12, 3, 32, 32).requires_grad_()
    tokens = visual.clips(video)
    assert tokens.shape == (1, 6, 2, 16)
    for stream, wanted in ((0, {6}), (1, {4, 5, 6, 7, 8})):
        value = tokens[0, 3, stream].square().sum()
        [gradient] = torch.autograd.grad(value, video, retain_graph=True)
        seen = gradient[0].abs().amax((1, 2, 3)) > 0
        assert set(seen.nonzero().flatten().tolist()) == wanted
    brightest = video.amax(2, keepdim=True)
    darker = torch.where(video < brightest, 0.5 * video, video).detach()
    other = visual.clips(darker)
    close(other[:, :, 1], tokens[:, :, 1].detach())
    assert (other[:, :, 0] - tokens[:, :, 0]).abs().max() > 0.01


def test_motion_is_told_from_its_reverse_rather_than_by_its_place():
    visual, clips = make().visual, torch.zeros(2, 8, 3, 32, 32)
    for frame in range(8):
        clips[0, frame, 1, 12:16, 8 + frame : 12 + frame] = 1.0
        clips[1, frame, 1, 16:20, 12 + frame : 16 + frame] = 1.0
    here, there = visual.clips(clips)[:, :, 1]
    back = visual.clips(clips.flip(1))[0, :, 1]
    # Not nothing: the network sees the picture's edge, too.
    assert (here - there).abs().mean() < 0.6 * (here - back).abs().mean()


def test_attention_weights_are_returned_and_change_nothing():
    model, full = make(), batch()
    memory = model.encode(full, return_weights=True)
    close(memory.tokens, model.encode(full).tokens)
    assert len(memory.weights) == 2
    assert memory.weights[0].self_attention.shape == (2, 2, 31, 31)
    _, weights = model.write(memory, torch.tensor([[4], [4]]), return_weights=True)
    assert weights[-1].cross_attention.shape == (2, 2, 1, 31)


# ---- writing


def test_a_word_sees_no_later_one():
    model, memory = make(), make().encode(batch())
    ids = torch.tensor([[4, 2, 7, 1]]).expand(2, -1)
    changed = ids.clone()
    changed[:, 2:] = 9
    first, second = (model.write(memory, x)[0] for x in (ids, changed))
    close(first[:, :2], second[:, :2])
    assert (first[:, 2:] - second[:, 2:]).abs().max() > 0.01


def test_the_cache_gives_what_the_whole_prefix_gives():
    model, memory = make(), make().encode(batch())
    ids = torch.tensor([[4, 2, 7, 1], [4, 9, 9, 3]])
    full, _ = model.write(memory, ids)
    cache = model.decoder.new_cache()
    steps = [model.write(memory, ids[:, n : n + 1], cache=cache)[0] for n in range(4)]
    close(torch.cat(steps, dim=1), full)


def test_decoding_is_greedy_by_hand_and_beams_are_no_worse():
    model = make()
    memory = model.encode(batch())
    found = greedy(MultimodalDecoding(model, memory), begin=4, end=2, max_length=6)
    ids = torch.tensor([[4], [4]])
    for _ in range(found.tokens.shape[2]):
        ids = torch.cat([ids, model.write(memory, ids)[0][:, -1:].argmax(-1)], dim=1)
    for row, length in enumerate(found.lengths[:, 0].tolist()):
        assert found.tokens[row, 0, :length].tolist() == ids[row, 1 : length + 1].tolist()
    wide = beam_search(MultimodalDecoding(model, memory), begin=4, end=2, beams=4, max_length=6)
    assert (wide.log_probs[:, 0] >= found.log_probs[:, 0] - 1e-4).all()


def test_ctc_logits_are_of_the_sound_alone():
    model = make()
    logits, keep = model.ctc_logits(model.encode(batch()))
    assert logits.shape == (2, 3, 20)
    assert keep.all()
    logits, _ = model.ctc_logits(model.encode(only("text")))
    assert logits.shape == (2, 0, 20)


def test_the_bag_is_read_off_the_stems_by_hand():
    model, full = make(), batch()
    memory = model.encode(full)
    tokens, _, kinds = model.embed(full)
    shown = tokens[:, (kinds == 0) | (kinds == 3)]
    expected = model.bag_head(torch.cat([shown.amax(1), shown.mean(1)], dim=1))
    close(model.bag_logits(memory), expected)
    lacking = model.encode(full.without("video", [0]))
    close(model.bag_logits(lacking)[1], expected[1])
    pictures = model.encode(Batch(images=full.images))
    close(model.bag_logits(lacking)[0], model.bag_logits(pictures)[0])
    assert (
        model.bag_logits(model.encode(full.without("video", [0]).without("images", [0])))
        .isfinite()
        .all()
    )


# ---- speaking


@pytest.mark.parametrize(
    "durations", [[[2, 0, 3]], [[0, 0, 1], [2, 2, 2]], [[1, 4, 0], [0, 3, 0], [0, 0, 2]]]
)
def test_regulate_by_hand(durations):
    owner, since, until, keep = regulate(torch.tensor(durations))
    for row, sizes in enumerate(durations):
        wanted = [(i, k, n - 1 - k) for i, n in enumerate(sizes) for k in range(n)]
        count = len(wanted)
        assert keep[row].tolist() == [True] * count + [False] * (keep.shape[1] - count)
        found = torch.stack([owner[row], since[row], until[row]], dim=1)[:count].tolist()
        assert [tuple(x) for x in found] == wanted


def test_speech_is_as_long_as_its_durations():
    model = make()
    memory = model.encode(only("text"))
    durations = torch.tensor([[1, 0, 3, 2, 0], [0, 1, 1, 0, 0]])
    frames, keep = model.speak(memory, durations, torch.tensor([0, 2]))
    assert frames.shape == (2, 24, 20)
    assert keep.sum(1).tolist() == [24, 8]
    assert frames[1, 8:].abs().max() == 0
    alone, _ = model.speak(memory.select(torch.tensor([1])), durations[1:], torch.tensor([2]))
    close(alone[0], frames[1, :8])


def test_speech_depends_on_word_place_and_voice():
    model = make()
    memory = model.encode(only("text"))
    durations = torch.full((2, 5), 2)
    frames, _ = model.speak(memory, durations, torch.tensor([0, 0]))
    other, _ = model.speak(memory, durations, torch.tensor([1, 0]))
    assert (frames[0] - other[0]).abs().max() > 0.01
    close(frames[1], other[1])
    steps = frames.unflatten(1, (10, 4))
    assert (steps[:, 0] - steps[:, 1]).abs().max() > 0.01  # first and second step of a word


def test_durations_are_of_the_text():
    model = make()
    assert model.log_durations(model.encode(batch())).shape == (2, 5)


# ---- modality dropout


def test_modality_dropout_leaves_each_item_something():
    full = batch(200)
    generator = torch.Generator().manual_seed(0)
    found = drop_modalities(full, 0.5, generator, ("images", "audio"))
    has = torch.stack([found.images_keep, found.audio_keep.any(1)], dim=1)
    assert has.any(1).all()
    # Both, picture alone, sound alone: 1/4 + 1/4 (what would lose both), 1/4, 1/4.
    shares = [has.all(1), ~has[:, 1], ~has[:, 0]]
    for share, expected in zip(shares, (0.5, 0.25, 0.25), strict=True):
        assert abs(share.float().mean() - expected) < 0.1
    assert found.text_keep.all()
    assert full.images_keep.all()  # the batch itself is unchanged


@pytest.mark.parametrize(("probability", "lost"), [(0.0, 0), (1.0, 0)])
def test_modality_dropout_at_its_ends(probability, lost):
    generator = torch.Generator().manual_seed(0)
    found = drop_modalities(batch(20), probability, generator, ("text", "audio"))
    assert int((~found.text_keep.any(1)).sum()) == lost


# ---- training and keeping


def test_it_learns_to_tell_pictures_apart():
    torch.manual_seed(0)
    model = MultimodalTransformer(CONFIG)
    both = only("images")
    ids, wanted = torch.tensor([[4, 7], [4, 9]]), torch.tensor([[7, 2], [9, 3]])
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(model(both, ids).flatten(0, 1), wanted.flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.1
    model.eval()
    assert torch.equal(model(both, ids).argmax(2), wanted)


def test_weights_are_kept(tmp_path):
    model, other = make(), MultimodalTransformer(CONFIG).eval()
    save_weights(model, tmp_path / "model.safetensors", {"command": "test"})
    load_weights(other, tmp_path / "model.safetensors")
    ids = torch.tensor([[4], [4]])
    assert torch.equal(model(batch(), ids), other(batch(), ids))


# ---- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab": 0}, "vocab must be at least 1"),
        ({"voices": 0}, "voices must be at least 1"),
        ({"step": 0}, "step must be at least 1"),
        ({"image_size": 20}, "image_size must be a multiple of 8"),
        ({"dim": 15}, "dim must be even"),
        ({"heads": 3}, "heads must divide dim"),
        ({"layers": 0}, "layers must be at least 1"),
        ({"decoder_layers": 0}, "layers must be at least 1"),
        ({"dropout": 1.0}, "dropout must lie in"),
    ],
)
def test_bad_configuration(change, message):
    with pytest.raises(ValueError, match=message):
        MultimodalConfig(**({"vocab": 20} | change))


def words():
    return make().encode(only("text"))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.encode(Batch(targets=torch.zeros(2))), ValueError, "must hold a modality"),
        (
            lambda m: m.encode(Batch(images=torch.zeros(1, 3, 16, 16))),
            ValueError,
            r"of shape \(3, 32, 32\)",
        ),
        (
            lambda m: m.encode(Batch(images=torch.zeros(1, 3, 32, 32, dtype=torch.uint8))),
            ValueError,
            "floating point",
        ),
        (lambda m: words().of("smell"), ValueError, "name must be one of"),
        (lambda m: m.bag_logits(words()), ValueError, "must be that of pictures or clips"),
        (
            lambda m: m.bag_logits(m.encode(only("video")).of("video")),
            ValueError,
            "as encode gives it",
        ),
        (
            lambda m: m.speak(words(), torch.ones(2, 4).long(), torch.zeros(2).long()),
            ValueError,
            "durations must be at least 0, one for each",
        ),
        (
            lambda m: m.speak(words(), -torch.ones(2, 5).long(), torch.zeros(2).long()),
            ValueError,
            "durations must be at least 0",
        ),
        (
            lambda m: m.speak(words(), torch.zeros(2, 5).long(), torch.zeros(2).long()),
            ValueError,
            "each text must take 1 to 512 steps",
        ),
        (
            lambda m: m.speak(words(), torch.full((2, 5), 200), torch.zeros(2).long()),
            ValueError,
            "each text must take 1 to 512 steps",
        ),
        (
            lambda m: m.encode(Batch(text=torch.ones(1, 600).long())),
            ValueError,
            "raise max_length",
        ),
        (
            lambda m: m.encode(Batch(video=torch.zeros(1, 2052, 3, 32, 32))),
            ValueError,
            "at most 512 times",
        ),
        (
            lambda m: drop_modalities(batch(), 1.5, torch.Generator(), ("text",)),
            ValueError,
            "probability must lie",
        ),
        (
            lambda m: drop_modalities(only("text"), 0.5, torch.Generator(), ("audio",)),
            ValueError,
            "names must be modalities",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(make())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: VisualEmbedding(0), "dim and channels must be at least 1"),
        (lambda: VisualEmbedding(4, 12), "width must be a multiple of 8"),
        (lambda: VisualEmbedding(4, 8, 0), "motion_width must be a multiple of 8"),
        (lambda: see("clips", torch.zeros(1, 2, 3, 20, 32)), "multiples of 8"),
        (lambda: see("clips", torch.zeros(1, 2, 4, 32, 32)), "video must have"),
        (lambda: see("pictures", torch.zeros(1, 3, 32, 30)), "multiples of 8"),
        (lambda: see("seen", torch.zeros(1, 4, 32, 32)), "images must have"),
        (lambda: see("pictures", torch.zeros(1, 2, 3, 32, 32)), "images must have"),
        (
            lambda: inspect.unwrap(SoundEmbedding.embed_frames)(
                SoundEmbedding(4), torch.zeros(1, 8, 7), torch.ones(1, 8).bool()
            ),
            "features must have shape",
        ),
    ],
)
def test_bad_embeddings(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def see(name, value):
    return inspect.unwrap(getattr(VisualEmbedding, name))(VisualEmbedding(4, 8, 8), value)


def test_memory_selects_rows():
    memory = Memory(torch.rand(3, 2, 4), torch.ones(3, 2).bool(), torch.zeros(2).long())
    assert torch.equal(memory.select(torch.tensor([2, 0])).tokens, memory.tokens[[2, 0]])
