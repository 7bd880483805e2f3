"""Image files and PIL images <-> tensors; the only file that reads untrusted images.

Data path: file -> `open_image` -> `fit` -> `to_pixels` -> image tokenizer -> codes, and back
through `to_image` -> `encode_png`. Every defect of an untrusted file is reported here as a one-line
`UserError`; the images returned are plain RGB.
"""

# Shapes: 3 = red, green, blue; H = height; W = width

import io
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageDraw, ImageFont, ImageOps, PngImagePlugin
from torch import Tensor

from tokenizer.errors import UserError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # PIL reads dozens more, with more known defects
MAX_BYTES = 64_000_000
MAX_PIXELS = 64_000_000

# Transposition that makes an image upright, by EXIF orientation (1 and unknown numbers: none).
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_GAP = 4  # white pixels between the images of a contact sheet


def open_image(source: Path | str | bytes, say: Callable[[str], None] | None = None) -> Image.Image:
    """Read an image from a file (or from a file's bytes) as upright RGB.

    EXIF rotation is applied, transparency is composited on white, palettes, greyscale, CMYK and
    16-bit values become 8-bit RGB. Of an animation the first frame is used, which is reported with
    `say`.

    Raises:
        UserError: no such file, not an image of a known format, damaged, or too large.
    """
    name, data = _read(source)
    with _mistrust(name):
        image = _decode(name, data)
        several = getattr(image, "is_animated", False)
        plain = _plain(_upright(image))
    if several and say is not None:
        say(f"{name} holds several frames; only the first is used")
    return plain


def fit(image: Image.Image, size: int) -> Image.Image:
    """Crop the central square and resize it to `size` x `size`; exact if it has that size."""
    if image.size == (size, size):
        return image
    return ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)


def to_pixels(image: Image.Image) -> Tensor:
    """Convert an RGB image to float32 [3, H, W] in [-1, 1]."""
    assert image.mode == "RGB"
    pixels_HW3 = torch.from_numpy(np.array(image))
    return pixels_HW3.permute(2, 0, 1).float() / 127.5 - 1


def to_image(pixels_3HW: Tensor) -> Image.Image:
    """Convert [3, H, W] in [-1, 1] to an RGB image; values are clamped and rounded."""
    return Image.fromarray(to_bytes(pixels_3HW).byte().permute(1, 2, 0).cpu().numpy())


def to_bytes(pixels: Tensor) -> Tensor:
    """Convert pixels in -1..1 to floats in 0..255, rounded and clamped as in an image file."""
    return ((pixels.detach().float() + 1) * 127.5).round().clamp(0, 255)


def encode_png(image: Image.Image, info: Mapping[str, str] | None = None) -> bytes:
    """Return the bytes of a PNG file; `info` (how the image was made) is stored in its iTXt chunks.

    Keys are PNG keywords: 1 to 79 Latin-1 characters. Values are any Unicode text.
    """
    chunks = PngImagePlugin.PngInfo()
    for key, value in (info or {}).items():
        assert 0 < len(key) < 80
        chunks.add_itxt(key, value)
    file = io.BytesIO()
    image.save(file, format="PNG", pnginfo=chunks)
    return file.getvalue()


def read_info(path: Path | str) -> dict[str, str]:
    """Read the texts that `encode_png` wrote into a file; empty for an image without any.

    Raises:
        UserError: as `open_image`.
    """
    name, data = _read(path)
    with _mistrust(name):
        image = _decode(name, data)
        if not isinstance(image, PngImagePlugin.PngImageFile):
            return {}
        return {key: str(value) for key, value in image.text.items()}


def sheet(
    images: Sequence[Image.Image], columns: int, labels: Sequence[str] | None = None
) -> Image.Image:
    """Return a contact sheet: images row by row on white, each with its label below it."""
    assert images
    assert columns > 0
    width = max(image.width for image in images)
    height = max(image.height for image in images)
    font = ImageFont.load_default()
    texts = [_wrapped(label, font, width) for label in labels or [""] * len(images)]
    line = int(font.getbbox("Ag")[3]) + 3
    cell_W = width + _GAP
    cell_H = height + _GAP + line * max(text.count("\n") + 1 if text else 0 for text in texts)
    rows = -(-len(images) // columns)
    result = Image.new("RGB", (min(columns, len(images)) * cell_W, rows * cell_H), "white")
    draw = ImageDraw.Draw(result)
    for place, (image, text) in enumerate(zip(images, texts, strict=True)):
        left, top = place % columns * cell_W, place // columns * cell_H
        result.paste(image, (left + _GAP // 2, top + _GAP // 2))
        draw.text((left + _GAP // 2, top + _GAP // 2 + height), text, "black", font, spacing=2)
    return result


def _read(source: Path | str | bytes) -> tuple[str, bytes]:
    """Return a name for error messages, and the bytes, which are checked but not yet decoded."""
    if isinstance(source, bytes):
        name, data = "the image", source
        size = len(data)
    else:
        name, path = str(source), Path(source)
        try:
            if not path.exists():
                raise UserError(f"{name}: no such file")
            if not path.is_file():  # a pipe or a device could block, or never end
                raise UserError(f"{name}: is a folder or a device, not an image file")
            size = path.stat().st_size
            data = path.read_bytes() if size <= MAX_BYTES else b""
        except OSError as error:
            raise UserError(f"{name}: cannot be read ({error.strerror or error})") from error
    if size > MAX_BYTES:
        raise UserError(f"{name}: {size:,} bytes; at most {MAX_BYTES:,}. Save it smaller")
    if not data:
        raise UserError(f"{name}: is empty (0 bytes)")
    return name, data


@contextmanager
def _mistrust(name: str) -> Generator[None]:
    """Suppress PIL's warnings and raise its errors as UserError while it reads untrusted bytes."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f"{name}: says it has far too many pixels; {_room()}") from error
    except Image.UnidentifiedImageError as error:
        wanted = ", ".join(FORMATS)
        raise UserError(f"{name}: is not an image in a format read here ({wanted})") from error
    # Damaged bytes make PIL's decoders raise almost any exception: OSError, SyntaxError,
    # ValueError, EOFError, struct.error, zlib.error ... All mean the same to the user.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{name}: is damaged or cut short ({reason})") from error


def _room() -> str:
    return f"at most {MAX_PIXELS:,} are read. Make it smaller"


def _decode(name: str, data: bytes) -> Image.Image:
    """Decode bytes to a PIL image, after a check of the size in its header."""
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UserError(f"{name}: says it has {width:,} x {height:,} pixels; {_room()}")
    image.load()
    return image


def _upright(image: Image.Image) -> Image.Image:
    """Undo the camera's rotation. Unreadable EXIF data is ignored."""
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a broken directory can raise almost any exception, as in `_mistrust`
        return image
    return image if turn is None else image.transpose(turn)


def _plain(image: Image.Image) -> Image.Image:
    """Convert a decoded image of any mode to RGB."""
    if image.mode.startswith("I"):  # 16-bit grey: convert("L") would clip all above 255 to white
        grey_HW = np.asarray(image, dtype=np.float32) / 257
        image = Image.fromarray(grey_HW.round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    plain = image.convert("RGB")
    plain.info.clear()  # metadata on colours, rotation and size is no longer valid
    return plain


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Break a label into lines no wider than `width` pixels, inside words if necessary."""
    lines: list[str] = []
    for word in text.split():
        while len(word) > 1 and font.getlength(word) > width:
            most = next(
                n for n in range(len(word), 0, -1) if font.getlength(word[:n]) <= width or n == 1
            )
            lines.append(word[:most])
            word = word[most:]
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return "\n".join(lines)
