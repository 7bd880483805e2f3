"""tokenizer/pixels.py: every bad file is one UserError, every good one is upright RGB."""

import contextlib
import io
import os
import struct
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps

from tokenizer.errors import UserError
from tokenizer.pixels import (
    MAX_BYTES,
    encode_png,
    fit,
    open_image,
    read_info,
    sheet,
    to_image,
    to_pixels,
)

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def noise(width: int = 24, height: int = 16, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def saved(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format=form, **options)
    return file.getvalue()


def raw_png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG written by hand, for what PIL itself would not write."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        parts.append(struct.pack(">I", len(body)) + kind + body)
        parts.append(struct.pack(">I", zlib.crc32(kind + body)))
    return b"".join(parts)


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("form", ["PNG", "BMP", "GIF", "JPEG", "WEBP"])
def test_each_format_opens_from_path_text_and_bytes(tmp_path: Path, form: str) -> None:
    colour = (16, 96, 200)
    data = saved(Image.new("RGB", (12, 8), colour), form)
    path = tmp_path / "picture"  # no ending: the bytes decide
    path.write_bytes(data)
    for source in (path, str(path), data):
        image = open_image(source)
        assert (image.mode, image.size) == ("RGB", (12, 8))
        assert np.abs(np.asarray(image, dtype=int) - colour).max() <= 3


def test_no_such_file_and_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        open_image(tmp_path / "none.png")
    assert one_line(error) == f"{tmp_path / 'none.png'}: no such file"
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(UserError) as error:
            open_image(path)
        assert one_line(error) == f"{path}: is a folder or a device, not an image file"
    with pytest.raises(UserError, match="cannot be read"):
        open_image(tmp_path / ("long" * 100))


def test_empty(tmp_path: Path) -> None:
    path = tmp_path / "empty.png"
    path.touch()
    with pytest.raises(UserError) as error:
        open_image(path)
    assert one_line(error) == f"{path}: is empty (0 bytes)"
    with pytest.raises(UserError, match="is empty"):
        open_image(b"")


def test_too_many_bytes_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(UserError) as error:
        open_image(path)
    assert "64,000,001 bytes; at most 64,000,000" in one_line(error)


def test_text_named_png(tmp_path: Path) -> None:
    path = tmp_path / "text.png"
    path.write_text("a red fox")
    with pytest.raises(UserError) as error:
        open_image(path)
    assert one_line(error).startswith(f"{path}: is not an image in a format read here (PNG,")


def test_other_formats_of_pil_stay_shut() -> None:
    with pytest.raises(UserError, match="not an image in a format"):
        open_image(saved(noise(), "TIFF"))


@pytest.mark.parametrize("form", ["PNG", "BMP", "GIF", "JPEG", "WEBP"])
def test_truncated(tmp_path: Path, form: str) -> None:
    data = saved(noise(), form)
    path = tmp_path / "cut"
    path.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(UserError) as error:
        open_image(path)
    assert one_line(error).startswith(f"{path}: is damaged or cut short (")


@pytest.mark.parametrize(("width", "height"), [(8001, 8000), (10_000, 10_000), (60_000, 60_000)])
def test_a_header_that_claims_too_much_is_refused_before_decoding(width: int, height: int) -> None:
    for data in (raw_png(width, height, 8, 2, b""), raw_png(width, height, 1, 0, b"")):
        with pytest.raises(UserError) as error:
            open_image(data)
        assert "pixels; at most 64,000,000 are read" in one_line(error)


def test_text_bomb_in_a_png() -> None:
    bomb = b"note\0\0" + zlib.compress(b"a" * 5_000_000)
    chunk = struct.pack(">I", len(bomb)) + b"zTXt" + bomb
    chunk += struct.pack(">I", zlib.crc32(b"zTXt" + bomb))
    data = saved(noise())
    with pytest.raises(UserError, match="damaged"):
        open_image(data[:33] + chunk + data[33:])


@given(
    form=st.sampled_from(["PNG", "BMP", "GIF", "JPEG", "WEBP"]),
    places=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_random_damage_is_a_user_error_or_a_picture(
    form: str, places: list[tuple[float, int]]
) -> None:
    data = bytearray(saved(noise(8, 8), form))
    for place, value in places:
        data[int(place**2 * len(data))] = value  # squared: headers are hit more often
    with contextlib.suppress(UserError):
        assert open_image(bytes(data)).mode == "RGB"


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_taken_aloud(form: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    options = {"lossless": True} if form == "WEBP" else {}
    data = saved(frames[0], form, save_all=True, append_images=frames[1:], **options)
    said: list[str] = []
    assert open_image(data, said.append).getpixel((3, 3)) == RED
    assert said == ["the image holds several frames; only the first is used"]
    assert open_image(data).getpixel((3, 3)) == RED
    said.clear()
    open_image(saved(frames[0], form), said.append)
    assert said == []


def test_16_bit_is_scaled_not_clipped() -> None:
    values_HW = np.array([[0, 257, 128 * 257, 40_000, 65_535]], dtype=np.uint16)
    image = open_image(saved(Image.fromarray(values_HW)))
    assert np.asarray(image)[0].tolist() == [[v] * 3 for v in (0, 1, 128, 156, 255)]
    colour = raw_png(1, 1, 16, 2, b"\0" + struct.pack(">HHH", 65_535, 128 * 257, 0))
    assert open_image(colour).getpixel((0, 0)) == (255, 128, 0)


def test_cmyk_jpeg() -> None:
    data = saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")
    pixel = np.asarray(open_image(data))[4, 4].astype(int)
    assert np.abs(pixel - RED).max() < 8


def test_palette_grey_and_two_colours() -> None:
    grey = Image.new("L", (4, 4), 77)
    assert open_image(saved(grey)).getpixel((0, 0)) == (77, 77, 77)
    assert open_image(saved(Image.new("1", (4, 4), 1))).getpixel((0, 0)) == WHITE
    image = Image.new("RGB", (4, 4), BLUE)
    image.putpixel((1, 2), RED)
    opened = open_image(saved(image.quantize(4)))
    assert (opened.getpixel((0, 0)), opened.getpixel((1, 2))) == (BLUE, RED)


def test_transparency_is_laid_onto_white() -> None:
    image = Image.new("RGBA", (4, 4), (*RED, 255))
    image.putpixel((0, 0), (*BLUE, 0))
    image.putpixel((1, 0), (*BLUE, 51))
    opened = open_image(saved(image))
    assert [opened.getpixel((x, 0)) for x in range(3)] == [WHITE, (204, 204, 255), RED]
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([*RED, *BLUE])
    palette.putpixel((1, 0), 1)
    for transparency in (1, bytes([255, 0])):  # one clear colour; or how solid each colour is
        opened = open_image(saved(palette, transparency=transparency))
        assert [opened.getpixel((x, 0)) for x in range(2)] == [RED, WHITE]
    grey = open_image(saved(Image.new("LA", (1, 1), (0, 0))))
    assert grey.getpixel((0, 0)) == WHITE


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_agrees_with_pil(orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = saved(noise(5, 3), exif=exif)
    opened = open_image(data)
    wanted = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert opened.tobytes() == wanted.tobytes()
    assert opened.size == ((5, 3) if orientation < 5 else (3, 5))
    assert opened.info == {}  # a second reader must not turn it again
    assert opened.getexif() == {}


def test_broken_exif_does_not_spoil_the_picture() -> None:
    image = Image.new("RGB", (8, 4), RED)
    data = saved(image, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x05garbage")
    assert open_image(data).size == (8, 4)


def test_fit_keeps_the_middle_and_is_exact_at_its_size() -> None:
    image = noise(16, 16)
    assert fit(image, 16).tobytes() == image.tobytes()
    wide = Image.new("RGB", (48, 16), BLUE)
    wide.paste(image, (16, 0))
    assert fit(wide, 16).tobytes() == image.tobytes()
    assert fit(wide.transpose(Image.Transpose.TRANSPOSE), 16).size == (16, 16)
    assert fit(Image.new("RGB", (1, 300), RED), 8).getcolors() == [(64, RED)]


@given(st.integers(0, 2**32 - 1))
def test_pixels_round_trip_exactly(seed: int) -> None:
    image = noise(seed=seed)
    pixels_3HW = to_pixels(image)
    assert pixels_3HW.shape == (3, 16, 24)
    assert pixels_3HW.dtype == torch.float32
    assert -1 <= pixels_3HW.min() < pixels_3HW.max() <= 1
    assert to_image(pixels_3HW).tobytes() == image.tobytes()
    assert open_image(encode_png(image)).tobytes() == image.tobytes()


def test_to_image_clamps_and_rounds() -> None:
    pixels_3HW = torch.tensor([-5.0, -1.0, 0.0, 1.0, 5.0]).expand(3, 1, 5)
    values = np.asarray(to_image(pixels_3HW.requires_grad_()))[0, :, 0]
    assert values.tolist() == [0, 0, 128, 255, 255]  # 0.0 is 127.5, and halves round to even


@given(
    st.dictionaries(
        st.from_regex(r"[A-Za-z][A-Za-z ]{0,76}[a-z]", fullmatch=True),
        st.text(st.characters(exclude_categories=["Cs"])),
        max_size=4,
    )
)
def test_png_info_round_trip(info: dict[str, str]) -> None:
    assert read_info_of(encode_png(noise(2, 2), info)) == info


def read_info_of(data: bytes) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.png"
        path.write_bytes(data)
        return read_info(path)


def test_read_info_of_other_pictures(tmp_path: Path) -> None:
    path = tmp_path / "picture"
    path.write_bytes(saved(noise(), "JPEG"))
    assert read_info(path) == {}
    path.write_bytes(b"no image")
    with pytest.raises(UserError, match="not an image"):
        read_info(path)


def test_sheet() -> None:
    images = [Image.new("RGB", (40, 20), colour) for colour in (RED, BLUE, RED)]
    plain = sheet(images, 2)
    assert plain.size == (2 * 44, 2 * 24)
    assert [plain.getpixel(at) for at in ((10, 10), (54, 10), (10, 34), (54, 34))] == [
        *(RED, BLUE, RED, WHITE)
    ]
    assert sheet(images, 8).size == (3 * 44, 24)
    labelled = sheet(images, 2, ["a", "reddish foxes running", ""])
    one, two = (sheet(images, 2, [label, "", ""]).height for label in ("reddish", "reddish foxes"))
    assert plain.height < one < two < labelled.height  # words that do not fit go to a new line
    below = labelled.crop((44, 22, 88, labelled.height // 2))
    assert np.asarray(below).min() < 100  # something dark stands there
