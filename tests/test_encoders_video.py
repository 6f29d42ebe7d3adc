"""The video encoder: tokens of tubes and frames, padding, order of frames, learning, bad input."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mmlib.data import scenes
from mmlib.encoders.video import TubeletEmbedding, VideoEncoder, VideoEncoderConfig
from mmlib.encoders.vit import PatchEmbedding
from mmlib.masks import padding_keep

KINDS = {
    "tubes": dict(tubelet=2),
    "frames": dict(tubelet=1),
    "long tubes": dict(tubelet=3),
    "factorised": dict(tubelet=2, temporal_layers=1),
    "factorised frames": dict(tubelet=1, temporal_layers=2),
}
every_kind = pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)


def draw(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=torch.float64).to(dtype)


def make(**options):
    torch.manual_seed(0)
    sizes = dict(image_size=16, dim=16, heads=2, layers=2) | options
    model = VideoEncoder(VideoEncoderConfig(**sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # what starts at zero or one would hide its use
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape))
        for table in (model.space, model.time):
            if table is not None:
                table.mul_(50)
    return model


def times(frames, tubelet):
    return math.ceil(frames / tubelet)


# ---------------------------------------------------------------- tokens


@pytest.mark.parametrize("frames", [1, 2, 5, 8])
@every_kind
def test_a_token_for_every_tube(options, frames):
    encoded = make(**options)(draw(2, frames, 3, 16, 16))
    length = times(frames, options["tubelet"]) * (1 if options.get("temporal_layers") else 4)
    assert encoded.tokens.shape == (2, length, 16)
    assert encoded.keep.shape == (2, length) and encoded.keep.all()
    torch.testing.assert_close(encoded.pooled, encoded.tokens.mean(dim=1))
    assert encoded.weights is None


def test_tubes_are_a_convolution_in_three_dimensions():
    embedding = TubeletEmbedding(2, 4, 3, 10).double()
    nn.init.normal_(embedding.projection.bias)
    video = draw(2, 6, 3, 8, 12, dtype=torch.float64)
    expected = embedding.projection(video.transpose(1, 2)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embedding(video), expected, rtol=1e-12, atol=1e-12)


def test_tubes_are_numbered_in_time_first_then_row_by_row():
    embedding = TubeletEmbedding(2, 4, 1, 1)
    with torch.no_grad():
        embedding.projection.weight.fill_(1 / 32)
    video = torch.zeros(1, 6, 1, 8, 12)
    for number in range(18):
        time, row, column = number // 6, number // 3 % 2, number % 3
        tube = video[0, 2 * time : 2 * time + 2, 0, 4 * row : 4 * row + 4]
        tube[..., 4 * column : 4 * column + 4] = number
    torch.testing.assert_close(embedding(video)[0, :, 0], torch.arange(18.0))


def test_frames_are_cut_as_pictures_are():
    """A tube of one frame, and a clip of one frame, give the patches of the picture."""
    model, images = make(tubelet=1, layers=1), draw(3, 3, 16, 16)
    assert isinstance(model.embedding, PatchEmbedding)
    x, _ = model._embed(images[:, None], None)
    torch.testing.assert_close(x[:, 0], model.embedding(images) + model.space)
    tubes = TubeletEmbedding(1, 8, 3, 16)
    with torch.no_grad():
        tubes.projection.weight.copy_(model.embedding.projection.weight[:, :, None])
        tubes.projection.bias.copy_(model.embedding.projection.bias)
    torch.testing.assert_close(tubes(images[:, None]), model.embedding(images))


def test_factorised_by_hand():
    """Each step through the blocks in space alone, its mean, then the blocks over time."""
    model, video = make(tubelet=2, temporal_layers=2), draw(2, 8, 3, 16, 16)
    for row in range(2):
        steps = []
        for time in range(4):
            tubes = model.embedding(video[row : row + 1, 2 * time : 2 * time + 2]) + model.space
            steps.append(model.encoder(tubes)[0].mean(dim=1) + model.time[time])
        expected, _ = model.temporal_encoder(torch.stack(steps, dim=1))
        torch.testing.assert_close(model(video).tokens[row], expected[0])


def test_weights_of_every_layer():
    video = draw(2, 8, 3, 16, 16)
    joint = make()(video, return_weights=True)
    assert [w.self_attention.shape for w in joint.weights] == [(2, 2, 16, 16)] * 2
    torch.testing.assert_close(joint.tokens, make()(video).tokens)
    split = make(temporal_layers=1)(video, return_weights=True)
    shapes = [w.self_attention.shape for w in split.weights]
    assert shapes == [(8, 2, 4, 4)] * 2 + [(2, 2, 4, 4)]
    torch.testing.assert_close(split.tokens, make(temporal_layers=1)(video).tokens)


# ---------------------------------------------------------------- padding


@settings(max_examples=20)
@given(
    st.sampled_from(sorted(KINDS)),
    st.lists(st.integers(1, 8), min_size=2, max_size=3),
    st.integers(0, 2),
)
def test_padding_changes_nothing(kind, lengths, more):
    model = make(**KINDS[kind]).double()
    total = min(8, max(lengths) + more)
    keep = padding_keep(torch.tensor(lengths), total)
    video = draw(*keep.shape, 3, 16, 16, dtype=torch.float64)
    video[~keep] = math.nan  # whatever stands there
    together = model(video, keep)
    for row, length in enumerate(lengths):
        alone = model(video[row : row + 1, :length])
        count = alone.tokens.shape[1]
        assert alone.keep.all() and together.keep[row].sum() == count
        torch.testing.assert_close(together.tokens[row, :count], alone.tokens[0])
        torch.testing.assert_close(together.pooled[row], alone.pooled[0])
        assert (together.tokens[row, count:] == 0).all()


@every_kind
def test_the_mask_is_needed(options):
    """Without it, the same batch gives other tokens: the test above can fail."""
    model, video = make(**options), draw(1, 3, 3, 16, 16)
    padded = torch.cat([video, torch.zeros(1, 5, 3, 16, 16)], dim=1)
    alone = model(video).tokens
    assert not torch.allclose(model(padded).tokens[:, : alone.shape[1]], alone, atol=1e-3)


def test_a_tube_exists_if_any_of_its_frames_does():
    keep = torch.tensor([[1, 0, 0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 0, 0, 0, 0]]).bool()
    video = draw(2, 8, 3, 16, 16)
    encoded = make(temporal_layers=1)(video, keep)
    assert encoded.keep.int().tolist() == [[1, 0, 1, 1], [0, 1, 0, 0]]
    joint = make()(video, keep)
    assert torch.equal(joint.keep, encoded.keep.repeat_interleave(4, dim=1))
    # A missing frame of a tube is zeros, whatever stands there.
    changed = video.clone()
    changed[~keep] = 9.0
    torch.testing.assert_close(make()(changed, keep).tokens, joint.tokens)


@every_kind
def test_a_row_without_frames_gives_zeros(options):
    model, video = make(**options), draw(2, 4, 3, 16, 16)
    encoded = model(video, padding_keep(torch.tensor([4, 0])))
    assert not encoded.keep[1].any()
    assert (encoded.tokens[1] == 0).all() and (encoded.pooled[1] == 0).all()
    encoded.pooled.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    torch.testing.assert_close(encoded.pooled[:1], model(video[:1]).pooled)


def test_inputs_are_not_changed():
    video, keep = draw(2, 3, 3, 16, 16), padding_keep(torch.tensor([3, 1]))
    before, kept = video.clone(), keep.clone()
    make()(video, keep)
    assert torch.equal(video, before) and torch.equal(keep, kept)


# ---------------------------------------------------------------- the order of frames


@pytest.mark.parametrize("temporal_layers", [0, 1])
def test_the_order_of_frames_is_heard(temporal_layers):
    video = draw(1, 8, 3, 16, 16)
    turned = video.flip(1)
    how = dict(tubelet=1, temporal_layers=temporal_layers)
    model, blind = make(**how), make(temporal_positions=False, **how)
    assert not torch.allclose(model(video).pooled, model(turned).pooled, atol=1e-3)
    torch.testing.assert_close(blind(video).pooled, blind(turned).pooled, rtol=0, atol=1e-6)


def test_tubes_see_motion_without_positions():
    """Inside a tube the order counts; that of whole tubes does not."""
    video, model = draw(1, 8, 3, 16, 16), make(temporal_positions=False)
    pairs_turned = video.unflatten(1, (4, 2)).flip(1).flatten(1, 2)
    torch.testing.assert_close(model(video).pooled, model(pairs_turned).pooled, rtol=0, atol=1e-6)
    assert not torch.allclose(model(video).pooled, model(video.flip(1)).pooled, atol=1e-3)


def movers(count, seed):
    """Clips of one thing that goes left or right, and which it does.

    At half-time it is anywhere, wherever it goes, and the clip that goes back has the same frames
    in the other order: only the order tells.
    """
    generator = torch.Generator().manual_seed(seed)

    def below(limit):
        return int(torch.randint(limit, (), generator=generator))

    clips, labels = [], []
    for _ in range(count):
        labels.append(below(2))
        motion = scenes.Motion(("left", "right")[labels[-1]], ("slow", "fast")[below(2)])
        radius = int(256 * scenes.RADIUS["small"]) + 1
        edge = radius + 56  # half the way of a fast one
        x = edge + below(256 - 2 * edge) - 128 * motion.velocity()[0]
        shape, colour = scenes.SHAPES[below(8)], scenes.COLOURS[below(len(scenes.COLOURS))]
        y = radius + below(256 - 2 * radius)
        item = scenes.Object(shape, colour, "small", x / 256, y / 256)
        clips.append(scenes.Clip(scenes.Scene((item,)), (motion,)))
    return scenes.render_clip(clips, frames=5, size=16), torch.tensor(labels)


def learn(frames, **options):
    """Share of right answers on clips that were not trained on."""
    torch.manual_seed(0)
    config = VideoEncoderConfig(
        frames=5, image_size=16, patch_size=4, dim=32, heads=2, layers=1, **options
    )
    model = nn.Sequential(VideoEncoder(config), nn.Linear(32, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    video, labels = movers(512, seed=1)
    for step in range(80):
        rows = torch.arange(64 * step, 64 * step + 64) % len(video)
        logits = model[1](model[0](video[rows][:, frames]).pooled)
        nn.functional.cross_entropy(logits, labels[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
    video, labels = movers(400, seed=2)
    with torch.no_grad():
        right = model[1](model.eval()[0](video[:, frames]).pooled).argmax(dim=1) == labels
    return right.float().mean().item()


@pytest.mark.parametrize("temporal_layers", [0, 1], ids=["joint", "factorised"])
def test_it_learns_which_way_things_go(temporal_layers):
    assert learn(slice(None), temporal_layers=temporal_layers) >= 0.95


def test_one_frame_does_not_tell():
    assert learn(slice(2, 3), tubelet=1) < 0.6


# ---------------------------------------------------------------- precision


@every_kind
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near(options, kind):
    video = draw(2, 4, 3, 16, 16)
    exact, narrow = make(**options)(video), make(**options).to(kind)(video.to(kind))
    assert narrow.tokens.dtype == narrow.pooled.dtype == kind
    assert (narrow.tokens.float() - exact.tokens).abs().max() < 40 * torch.finfo(kind).eps


def test_autocast_stays_near():
    video = draw(2, 4, 3, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = make()(video)
    eps = torch.finfo(torch.bfloat16).eps
    assert (mixed.tokens.float() - make()(video).tokens).abs().max() < 40 * eps


def test_dropout_only_in_training():
    model, video = make(dropout=0.5), draw(1, 4, 3, 16, 16)
    torch.testing.assert_close(model(video).tokens, model(video).tokens)
    assert not torch.allclose(model.train()(video).tokens, model(video).tokens)


# ---------------------------------------------------------------- bad input

BAD_CONFIGS = {
    "frames": (dict(frames=0), "frames must be at least 1: got 0"),
    "tubelet": (dict(tubelet=0), "tubelet must be at least 1: got 0"),
    "patch": (dict(patch_size=5), "must divide image_size: got image_size=32, patch_size=5"),
    "temporal": (dict(temporal_layers=-1), "temporal_layers must be at least 0: got -1"),
    "heads": (dict(dim=16, heads=3), "heads must divide dim: got dim=16, heads=3"),
    "layers": (dict(layers=0), "layers must be at least 1: got 0"),
}


@pytest.mark.parametrize("options, message", BAD_CONFIGS.values(), ids=BAD_CONFIGS)
def test_bad_configuration_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        VideoEncoderConfig(**options)


CLIP, YES = torch.zeros(1, 4, 3, 16, 16), torch.ones(1, 4, dtype=torch.bool)
BAD_VIDEOS = {
    "bytes": (CLIP.byte(), None, TypeError, "divide by 255.: got torch.uint8"),
    "rank": (CLIP[0], None, ValueError, r"\(batch, frames, 3, 16, 16\).*got \(4, 3, 16, 16\)"),
    "channels last": (CLIP.movedim(2, -1), None, ValueError, r"got \(1, 4, 16, 16, 3\)"),
    "size": (torch.zeros(1, 4, 3, 16, 24), None, ValueError, r"got \(1, 4, 3, 16, 24\)"),
    "no frames": (CLIP[:, :0], None, ValueError, "not empty"),
    "too long": (torch.zeros(1, 9, 3, 16, 16), None, ValueError, "at most 8 frames: got 9"),
    "nan": (CLIP * math.nan, None, ValueError, "finite: got NaN"),
    "kept nan": (CLIP / 0, YES, ValueError, "finite: got NaN"),
    "keep's type": (CLIP, YES.float(), TypeError, "keep must be boolean"),
    "keep's shape": (CLIP, YES[:, :3], ValueError, r"\(1, 4\): got \(1, 3\)"),
}


@pytest.mark.parametrize("video, keep, error, message", BAD_VIDEOS.values(), ids=BAD_VIDEOS)
def test_bad_video_is_named(video, keep, error, message, unchecked):
    with pytest.raises(error, match=message):
        unchecked(VideoEncoder.forward)(make(), video, keep)


def test_bad_tubes_are_named(unchecked):
    forward, embedding = unchecked(TubeletEmbedding.forward), TubeletEmbedding(2, 8, 3, 4)
    with pytest.raises(ValueError, match=r"\(batch, frames, 3, height, width\).*got \(4, 3, 16"):
        forward(embedding, CLIP[0])
    with pytest.raises(ValueError, match="got 3 frames of 16 × 16"):
        forward(embedding, CLIP[:, :3])
    with pytest.raises(ValueError, match="got 4 frames of 12 × 16"):
        forward(embedding, CLIP[..., :12, :])
    with pytest.raises(ValueError, match="at least 1: got 0, 8, 3 and 4"):
        TubeletEmbedding(0, 8, 3, 4)
