"""Uploads: what is a picture, and what is refused before it is decoded."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mmlib.serving.problems import Refused
from mmlib.serving.uploads import FORMATS, LARGEST_SIDE, decode_picture


def encoded(picture, format="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width, height, rows=b""):
    """A PNG that says it is large, and is small."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
PNG = encoded(NOISE)


def test_lossless_pictures_come_back_as_they_were():
    for data, kind in ((PNG, "image/png"), (encoded(NOISE, "WEBP", lossless=True), "image/webp")):
        assert np.array_equal(decode_picture(data, kind), NOISE)


def test_a_content_type_may_have_parameters_and_capitals():
    assert decode_picture(PNG, "Image/PNG; charset=x").size == (60, 40)


def test_transparent_becomes_white():
    picture = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    picture.putpixel((1, 0), (255, 0, 0, 255))
    found = decode_picture(encoded(picture), "image/png")
    assert [found.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (255, 0, 0)]
    palette = Image.new("P", (1, 1))
    palette.putpalette([0, 0, 255])
    found = decode_picture(encoded(palette, transparency=0), "image/png")
    assert found.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    "mode, value, grey", [("L", 7, 7), ("1", 1, 255), ("I;16", 200 * 256, 200)]
)
def test_grey_pictures_of_any_depth(mode, value, grey):
    found = decode_picture(encoded(Image.new(mode, (3, 3), value)), "image/png")
    assert found.mode == "RGB"
    assert found.getpixel((1, 1)) == (grey,) * 3


def test_a_photograph_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter to the right
    data = encoded(Image.new("RGB", (30, 10)), "JPEG", exif=exif)
    assert decode_picture(data, "image/jpeg").size == (10, 30)


def test_a_cmyk_jpeg_is_taken():
    data = encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG")
    assert decode_picture(data, "image/jpeg").getpixel((4, 4)) == (255, 255, 255)


def test_the_first_picture_of_an_animation():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:])
    assert decode_picture(data, "image/png").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("kind", FORMATS)
def test_large_pictures_become_small(kind):
    data = encoded(Image.new("RGB", (2000, 1000), "green"), FORMATS[kind])
    found = decode_picture(data, kind)
    assert found.size == (LARGEST_SIDE, LARGEST_SIDE // 2)


def test_pixels_are_counted_before_they_are_decoded(monkeypatch):
    def decoded(self):
        raise AssertionError("decoded")

    monkeypatch.setattr(Image.Image, "load", decoded)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    with pytest.raises(Refused, match="5000 × 5000 pixels") as refused:
        decode_picture(bomb(5000, 5000), "image/png")
    assert refused.value.status == 413


@pytest.mark.parametrize("side", [4001, 13_000, 50_000])  # Pillow warns at 9,459, raises at 13,377
def test_bombs_of_every_size(side):
    with pytest.raises(Refused) as refused:
        decode_picture(bomb(side, side), "image/png")
    assert refused.value.status == 413


def test_as_many_pixels_as_may_are_taken():
    data = encoded(Image.new("L", (100, 50)))
    assert decode_picture(data, "image/png", max_pixels=5000).size == (100, 50)
    with pytest.raises(Refused):
        decode_picture(data, "image/png", max_pixels=4999)


TEXT_BOMB = PNG[:33] + chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * 10_000_000)) + PNG[33:]
BAD = {
    "no type": (PNG, None, 415, "must be one of"),
    "another type": (PNG, "text/html", 415, "text/html"),
    "a type that lies": (PNG, "image/jpeg", 415, "file is PNG, not image/jpeg"),
    "gif": (encoded(NOISE, "GIF"), "image/gif", 415, "must be one of"),
    "gif that lies": (encoded(NOISE, "GIF"), "image/png", 415, "none of"),
    "tiff that lies": (encoded(NOISE, "TIFF"), "image/png", 415, "none of"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "image/png", 415, "none of"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/png", 415, "none of"),
    "text": (b"hello", "image/png", 415, "none of"),
    "empty": (b"", "image/png", 422, "empty"),
    "head only": (PNG[:8], "image/png", 415, "none of"),
    "truncated png": (PNG[:-400], "image/png", 422, "damaged"),
    "truncated jpeg": (encoded(NOISE, "JPEG")[:-400], "image/jpeg", 422, "damaged"),
    "truncated webp": (encoded(NOISE, "WEBP")[:-200], "image/webp", 4, "file"),
    "broken checksum": (PNG[:60] + b"\0\0" + PNG[62:], "image/png", 422, "damaged"),
    "no rows": (bomb(10, 10), "image/png", 422, "damaged"),
    "no pixels": (bomb(0, 10), "image/png", 4, "file"),
    "text bomb": (TEXT_BOMB, "image/png", 4, "file"),
}


@pytest.mark.parametrize("data, kind, status, words", BAD.values(), ids=BAD)
def test_refused(data, kind, status, words):
    with pytest.raises(Refused) as refused:
        decode_picture(data, kind)
    # 4: any refusal; which part of Pillow notices first is its own affair.
    assert str(refused.value.status).startswith(str(status))
    assert words in refused.value.detail


def status_of(data):
    """What an upload is answered with; 200 for a picture."""
    try:
        return 200 if decode_picture(data, "image/png").mode == "RGB" else 500
    except Refused as refused:
        return refused.status


def test_bytes_drawn_at_random_are_refused_or_a_picture():
    generator, statuses = np.random.default_rng(1), set()
    for _ in range(300):
        data = bytearray(PNG)
        for place in generator.integers(8, len(data), 3):
            data[place] = generator.integers(256)
        statuses.add(status_of(bytes(data)))
    assert 422 in statuses
    assert statuses <= {200, 413, 415, 422}
