"""Files and PIL pictures <-> tensors: the only door for pictures that we did not make ourselves.

On the path: file -> `open_image` -> `fit` -> `to_pixels` -> image tokenizer -> codes, and back
through `to_image` -> `encode_png`. Everything a stranger's file can get wrong ends here as a
one-line `UserError`; behind this door every picture is plain RGB.
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

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # PIL reads dozens more, with a worse record
MAX_BYTES = 64_000_000
MAX_PIXELS = 64_000_000

# How to turn a picture upright, by its EXIF orientation (1 and unknown numbers: as it is).
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_GAP = 4  # white pixels between the pictures of a contact sheet


def open_image(source: Path | str | bytes, say: Callable[[str], None] | None = None) -> Image.Image:
    """Read a picture from a file (or from a file's bytes) as upright RGB.

    EXIF rotation is applied, transparency is laid onto white, palettes, greys, CMYK and 16-bit
    values become 8-bit RGB. Of an animation the first frame is taken, and `say` is told so.

    Raises:
        UserError: no such file, not a picture of a known format, damaged, or too large.
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
    """Crop the middle square and resize it to `size` x `size`; exact if it has that size."""
    if image.size == (size, size):
        return image
    return ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)


def to_pixels(image: Image.Image) -> Tensor:
    """RGB picture -> float32 [3, H, W] in [-1, 1]."""
    assert image.mode == "RGB"
    pixels_HW3 = torch.from_numpy(np.array(image))
    return pixels_HW3.permute(2, 0, 1).float() / 127.5 - 1


def to_image(pixels_3HW: Tensor) -> Image.Image:
    """[3, H, W] in [-1, 1] -> RGB picture; values outside are clamped, the rest rounded."""
    return Image.fromarray(to_bytes(pixels_3HW).byte().permute(1, 2, 0).cpu().numpy())


def to_bytes(pixels: Tensor) -> Tensor:
    """Pixels in -1..1 -> 0..255 as floats, rounded and clamped, as a file would hold them."""
    return ((pixels.detach().float() + 1) * 127.5).round().clamp(0, 255)


def encode_png(image: Image.Image, info: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a PNG file; `info` (how the picture was made) goes into its iTXt chunks.

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
    """The texts that `encode_png` wrote into a file; empty for a picture that has none.

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
    """A contact sheet: pictures row by row on white, each with its label below it."""
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
    """A name to complain about, and the bytes, checked for everything but their meaning."""
    if isinstance(source, bytes):
        name, data = "the picture", source
        size = len(data)
    else:
        name, path = str(source), Path(source)
        try:
            if not path.exists():
                raise UserError(f"{name}: no such file")
            if not path.is_file():  # a pipe or a device could block, or never end
                raise UserError(f"{name}: is a folder or a device, not a picture file")
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
    """While PIL is busy with a stranger's bytes: its warnings are dropped, its errors are ours."""
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
        raise UserError(f"{name}: is not a picture in a format read here ({wanted})") from error
    # Damaged bytes make PIL's decoders raise nearly anything: OSError, SyntaxError, ValueError,
    # EOFError, struct.error, zlib.error ... All mean the same to the user.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{name}: is damaged or cut short ({reason})") from error


def _room() -> str:
    return f"at most {MAX_PIXELS:,} are read. Make it smaller"


def _decode(name: str, data: bytes) -> Image.Image:
    """Bytes -> PIL picture, decoded only after the size in its header has been looked at."""
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UserError(f"{name}: says it has {width:,} x {height:,} pixels; {_room()}")
    image.load()
    return image


def _upright(image: Image.Image) -> Image.Image:
    """Undo the camera's rotation. Unreadable EXIF does not make the picture unreadable."""
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a broken directory can raise nearly anything, as in `_mistrust`
        return image
    return image if turn is None else image.transpose(turn)


def _plain(image: Image.Image) -> Image.Image:
    """A decoded picture of any mode -> RGB."""
    if image.mode.startswith("I"):  # 16-bit grey: convert("L") would clip all above 255 to white
        grey_HW = np.asarray(image, dtype=np.float32) / 257
        image = Image.fromarray(grey_HW.round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    plain = image.convert("RGB")
    plain.info.clear()  # notes on colours, rotation and size that are no longer true
    return plain


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Break a label into lines no wider than `width` pixels, words too if they must be."""
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
