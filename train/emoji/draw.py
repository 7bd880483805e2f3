"""Rendering of drawings: SVG or an image file -> 128 x 128 RGB on white -> WebP.

`styles.py` and `clipart.py` make `Drawing`s, `paint` renders them in many processes, and `parts.py`
stores the images. The drawings are from packages with known hashes, but no drawing may read other
files: references that point outside of a drawing are removed.
"""

import hashlib
import io
import re
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from PIL import Image, ImageChops, UnidentifiedImageError

from tokenizer.errors import UserError

SIZE, THUMB = 128, 32  # side in pixels of an image, and of the thumbnail that edits compare
MARGIN, LARGE = 4, 384  # of cropped images: white margin, and side at which they are rasterised
FLAT = 8  # an image whose range of values is smaller in every channel is blank
QUALITY, EFFORT = 90, 6  # of WebP
WHITE = (255, 255, 255)
OUTSIDE = re.compile(r"""(\bhref\s*=\s*)(?:"(?!#|data:)[^"]*"|'(?!#|data:)[^']*')""")

About = dict[str, Any]  # an image's metadata, as in its JSON file, and its split


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """An image before rendering."""

    about: About
    data: str | bytes
    """SVG, or an image file."""
    spare: bytes = b""
    """Fallback image file, used if the SVG cannot be rendered or is empty."""
    wide: bool = True
    """True if the width fills the square, not the height."""
    cropped: bool = False
    """True if the image is cropped to its content, with a small margin."""


@dataclass(frozen=True)
class DrawnImage:
    """A rendered image."""

    webp: bytes
    thumb: bytes
    """Thumbnail of 32 x 32 RGB pixels."""
    digest: str
    """SHA-256 of the pixels before WebP compression."""


def paint(drawing: Drawing) -> DrawnImage | str:
    """Render a drawing; return the image, or the reason why there is none."""
    try:
        image = _square(drawing)
    except UnidentifiedImageError:  # its message differs each time
        return "cannot be drawn: no image"
    # PIL and resvg may raise any exception for a damaged drawing; all are treated alike.
    except Exception as error:
        return " ".join(f"cannot be drawn: {error}".split())[:100]
    if image is None or all(high - low < FLAT for low, high in _extremes(image)):
        return "blank"
    file = io.BytesIO()
    image.save(file, "WEBP", quality=QUALITY, method=EFFORT, use_sharp_yuv=True)
    thumb = image.resize((THUMB, THUMB), Image.Resampling.BOX).tobytes()
    return DrawnImage(file.getvalue(), thumb, hashlib.sha256(image.tobytes()).hexdigest())


def check_rasteriser() -> str:
    """Return the version of the SVG renderer. Raises UserError if it is not installed."""
    try:
        return str(import_module("resvg_py").__version__)
    except ImportError as error:
        raise UserError(
            "drawing SVG needs the package resvg-py, which is not installed; "
            "pip install 'cm3leon[emoji]'"
        ) from error


def rasterise(svg: str, side: int, wide: bool) -> bytes:
    """Render an SVG as PNG, with `side` pixels as its width (`wide`) or height, without fonts."""
    sides = {"width" if wide else "height": side}
    return _resvg().svg_to_bytes(svg_string=svg, skip_system_fonts=True, **sides)


def inside(svg: str) -> str:
    """Return an SVG without references to anything outside of it."""
    return OUTSIDE.sub(r'\1""', svg)


@cache
def _resvg() -> Any:
    return import_module("resvg_py")


def _square(drawing: Drawing) -> Image.Image | None:
    try:
        image = _shaped(drawing, drawing.data)
    except Exception:
        if not drawing.spare:
            raise
        image = None
    return _shaped(drawing, drawing.spare) if image is None and drawing.spare else image


def _shaped(drawing: Drawing, data: str | bytes) -> Image.Image | None:
    if isinstance(data, str):
        data = rasterise(inside(data), LARGE if drawing.cropped else SIZE, drawing.wide)
    with Image.open(io.BytesIO(data), formats=("PNG", "WEBP")) as opened:
        image = opened.convert("RGBA")
    return crop(image) if drawing.cropped else fit(image)


def fit(image: Image.Image) -> Image.Image:
    """Scale a whole RGBA image to fit a white square, centred."""
    if image.size != (SIZE, SIZE):
        image = _scaled(image, SIZE)
    square = Image.new("RGBA", (SIZE, SIZE), (*WHITE, 255))
    square.alpha_composite(image, ((SIZE - image.width) // 2, (SIZE - image.height) // 2))
    return square.convert("RGB")


def crop(image: Image.Image) -> Image.Image | None:
    """Crop an RGBA image to its content and centre it in a white square; None if all is white."""
    ground = Image.new("RGBA", image.size, (*WHITE, 255))
    ground.alpha_composite(image)
    plain = ground.convert("RGB")
    box = ImageChops.difference(plain, Image.new("RGB", plain.size, WHITE)).getbbox()
    if box is None:
        return None
    plain = _scaled(plain.crop(box), SIZE - 2 * MARGIN)
    square = Image.new("RGB", (SIZE, SIZE), WHITE)
    square.paste(plain, ((SIZE - plain.width) // 2, (SIZE - plain.height) // 2))
    return square


def _scaled(image: Image.Image, side: int) -> Image.Image:
    """Resize an image so that its longer side has `side` pixels."""
    scale = side / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    if (width, height) == image.size:
        return image  # premultiplying by alpha and back would only round the colours
    # The order of the two axes changes the rounding and differs between Pillow versions, so it is
    # explicit. For shrinking an image much higher than wide, height first is the least work.
    height_first = scale < 1 and image.height > 2 * image.width
    halfway = (image.width, height) if height_first else (width, image.height)
    mode = image.mode
    if mode == "RGBA":  # premultiplied by alpha, once for both axes
        image = image.convert("RGBa")
    for size in (halfway, (width, height)):
        image = image.resize(size, Image.Resampling.LANCZOS)
    return image.convert(mode)


def _extremes(image: Image.Image) -> list[tuple[int, int]]:
    bands = (band.getextrema() for band in image.split())
    return [(int(low), int(high)) for low, high in bands]  # type: ignore[arg-type, misc]
