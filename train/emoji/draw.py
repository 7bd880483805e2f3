"""Drawings -> small pictures: SVG or a picture file -> 128 x 128 RGB on white -> WebP.

On the path: `emoji_styles.py` and `emoji_clipart.py` make `Drawing`s -> `paint`, in many processes
at once -> `emoji_parts.py` keeps what comes out. The drawings come out of packages whose hashes are
known, but no drawing may look at a file beside it: references that do not stay inside it are cut.
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

SIZE, THUMB = 128, 32  # sides in pixels, of a picture and of what edits are compared by
MARGIN, LARGE = 4, 384  # of cropped pictures: white around, and the side they are drawn with
FLAT = 8  # a picture with less between its darkest and its lightest in every colour is blank
QUALITY, EFFORT = 90, 6  # of WebP
WHITE = (255, 255, 255)
OUTSIDE = re.compile(r"""(\bhref\s*=\s*)(?:"(?!#|data:)[^"]*"|'(?!#|data:)[^']*')""")

About = dict[str, Any]  # a picture's metadata, as its JSON will tell it, and its split


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A picture that is not painted yet."""

    about: About
    data: str | bytes
    """SVG, or a picture file."""
    spare: bytes = b""
    """A picture file to take where the SVG cannot be drawn, or nothing is seen of it."""
    wide: bool = True
    """Its width fills the square, not its height."""
    cropped: bool = False
    """Cut to what is drawn, with a small margin."""


@dataclass(frozen=True)
class Picture:
    """A painted picture."""

    webp: bytes
    thumb: bytes
    """Its 32 x 32 RGB pixels."""
    digest: str
    """Stands for its pixels before they went into WebP."""


def paint(drawing: Drawing) -> Picture | str:
    """The picture of a drawing, or why there is none."""
    try:
        image = _square(drawing)
    except UnidentifiedImageError:  # whose words differ each time
        return "cannot be drawn: no picture"
    # PIL and resvg raise nearly anything at a damaged drawing; all of it means the same.
    except Exception as error:
        return " ".join(f"cannot be drawn: {error}".split())[:100]
    if image is None or all(high - low < FLAT for low, high in _extremes(image)):
        return "blank"
    file = io.BytesIO()
    image.save(file, "WEBP", quality=QUALITY, method=EFFORT, use_sharp_yuv=True)
    thumb = image.resize((THUMB, THUMB), Image.Resampling.BOX).tobytes()
    return Picture(file.getvalue(), thumb, hashlib.sha256(image.tobytes()).hexdigest())


def check_rasteriser() -> str:
    """The version of what draws SVG. Raises UserError where it is not installed."""
    try:
        return str(import_module("resvg_py").__version__)
    except ImportError as error:
        raise UserError(
            "drawing SVG needs the package resvg-py, which is not installed; "
            "pip install 'cm3leon[emoji]'"
        ) from error


def rasterise(svg: str, side: int, wide: bool) -> bytes:
    """A PNG of an SVG whose width (`wide`) or height has `side` pixels; fonts are not used."""
    sides = {"width" if wide else "height": side}
    return _resvg().svg_to_bytes(svg_string=svg, skip_system_fonts=True, **sides)


def inside(svg: str) -> str:
    """An SVG without references to anything outside of it."""
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
    """The whole of an RGBA picture in the middle of a white square."""
    if image.size != (SIZE, SIZE):
        image = _scaled(image, SIZE)
    square = Image.new("RGBA", (SIZE, SIZE), (*WHITE, 255))
    square.alpha_composite(image, ((SIZE - image.width) // 2, (SIZE - image.height) // 2))
    return square.convert("RGB")


def crop(image: Image.Image) -> Image.Image | None:
    """What is drawn in an RGBA picture, in the middle of a white square; None if all is white."""
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
    """Its longer side made `side` pixels."""
    scale = side / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    if (width, height) == image.size:
        return image  # weighing colours and back would round them for nothing
    # Which way goes first changes the rounding, and is not the same in every Pillow: say it. To
    # shrink what is much higher than wide, the height first leaves the least to do.
    height_first = scale < 1 and image.height > 2 * image.width
    halfway = (image.width, height) if height_first else (width, image.height)
    mode = image.mode
    if mode == "RGBA":  # colours weighed by how much is seen of them, once for both ways
        image = image.convert("RGBa")
    for size in (halfway, (width, height)):
        image = image.resize(size, Image.Resampling.LANCZOS)
    return image.convert(mode)


def _extremes(image: Image.Image) -> list[tuple[int, int]]:
    bands = (band.getextrema() for band in image.split())
    return [(int(low), int(high)) for low, high in bands]  # type: ignore[arg-type, misc]
