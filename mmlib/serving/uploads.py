"""From the bytes of an upload to a picture: everything is checked before anything is decoded.

A picture of 50,000 × 50,000 white pixels is a PNG of 7 MB and 7.5 GB of memory, so the header is
read first. What a client says a file is must be what it is: the decoders are chosen by the first
bytes, and only three of Pillow's are let near them. Neither the file's name nor anything else
from the request becomes a path.
"""

import io
import warnings

from PIL import Image, ImageOps

from mmlib.serving.problems import Refused

__all__ = ["FORMATS", "LARGEST_SIDE", "decode_picture"]

#: Types that are taken, and Pillow's name of each.
FORMATS = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP"}
#: Pixels of the longer side of what a function is given: no model here looks at more.
LARGEST_SIDE = 512


def decode_picture(
    data: bytes, content_type: str | None, *, max_pixels: int = 16_000_000
) -> Image.Image:
    """A picture, upright, RGB, on white where it is transparent, at most 512 pixels wide and high.

    The first picture of an animation.

    Args:
        data: The file.
        content_type: What the client says it is.
        max_pixels: Most pixels, width times height.

    Raises:
        Refused: 415 for another type than is said or taken, 413 for too many pixels, 422 for what
            cannot be decoded.

    >>> buffer = io.BytesIO()
    >>> Image.new("RGBA", (1000, 10)).save(buffer, "PNG")
    >>> picture = decode_picture(buffer.getvalue(), "image/png")
    >>> picture.size, picture.getpixel((0, 0))
    ((512, 5), (255, 255, 255))
    """
    said = (content_type or "").partition(";")[0].strip().lower()
    if said not in FORMATS:
        raise Refused(415, f"file must be one of {', '.join(FORMATS)}: got {said[:80]!r}")
    if not data:
        raise Refused(422, "file is empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Pillow warns of is refused below
        try:
            picture = Image.open(io.BytesIO(data), formats=tuple(FORMATS.values()))
        except Image.DecompressionBombError:
            raise Refused(413, f"file has more than {max_pixels} pixels") from None
        except Exception:  # a decoder that is fed arbitrary bytes may raise anything
            raise Refused(415, f"file is none of {', '.join(FORMATS)}") from None
        if picture.format != FORMATS[said]:
            raise Refused(415, f"file is {picture.format}, not {said} as its content type says")
        width, height = picture.size
        if width * height > max_pixels:
            raise Refused(
                413, f"file has {width} × {height} pixels: at most {max_pixels} are taken"
            )
        try:
            if picture.format == "JPEG":
                picture.draft("RGB", (LARGEST_SIDE, LARGEST_SIDE))  # decodes fewer pixels
            picture.load()
            picture = ImageOps.exif_transpose(picture)
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                white = Image.new("RGBA", picture.size, "white")
                picture = Image.alpha_composite(white, picture)
            elif picture.mode.startswith("I"):  # 16 bits; converting alone would clip them
                picture = picture.convert("I").point(lambda value: value / 256).convert("L")
            picture = picture.convert("RGB")
        except Exception:
            raise Refused(422, "file cannot be decoded: it is damaged or cut off") from None
    picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
    return picture
