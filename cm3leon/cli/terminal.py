"""Pictures in a terminal that can show them: kitty's graphics, iTerm2's inline images, sixel.

For `--watch`: `open_screen` says whether stderr is such a terminal, a Screen draws there. Pictures
stand above the line of progress, in rows of their own, and each takes the place of the one before.
"""

# Shapes: H, W = pixels, C = the colours of a band of six rows

import base64
import io
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TextIO, cast, get_args

from tokenizer.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

Protocol = Literal["kitty", "iterm", "sixel"]

OVERRIDE = "CM3LEON_GRAPHICS"
SIDE = 256  # pixels; what a small picture is enlarged to, about
CHUNK = 4096  # bytes of base64 that kitty takes at a time
CELL = (8, 16)  # pixels of a letter, where the terminal does not tell
SAVE, RESTORE, END = "\x1b7", "\x1b8", "\x1b\\"


def protocol_of(environment: Mapping[str, str]) -> Protocol | None:
    """How the terminal of this environment takes pictures, if it does.

    Raises UserError when the override is none of the protocols.
    """
    said = environment.get(OVERRIDE, "")
    if said == "none":
        return None
    if said:
        if said not in get_args(Protocol):
            wanted = ", ".join(get_args(Protocol))
            raise UserError(f"{OVERRIDE} is {said!r}; make it one of {wanted} or none")
        return cast("Protocol", said)
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    inside = "TMUX" in environment or "STY" in environment
    if inside or term == "dumb" or term.startswith(("screen", "tmux")):
        return None  # a multiplexer swallows pictures, or puts them in the wrong place
    if term in ("xterm-kitty", "xterm-ghostty") or program == "ghostty":
        return "kitty"
    if "sixel" in term or term.startswith(("mlterm", "foot", "yaft")):
        return "sixel"
    if program in ("iTerm.app", "WezTerm") or environment.get("LC_TERMINAL") == "iTerm2":
        return "iterm"
    return "kitty" if "KITTY_WINDOW_ID" in environment else None


def open_screen() -> "Screen | None":
    """A screen on stderr, or None where it is not a terminal that can show pictures."""
    protocol = protocol_of(os.environ)
    return Screen(protocol, sys.stderr) if protocol and sys.stderr.isatty() else None


class Screen:
    """Draws one picture after the other in the same place: rows of the terminal that are made free
    for the first, above the line where the cursor is."""

    def __init__(self, protocol: Protocol, stream: TextIO) -> None:
        self.stream = stream
        self.encode = ENCODERS[protocol]
        self.rows = 0  # of the terminal, made free
        self.size = (0, 0)  # of the picture in them

    def show(self, image: "Image.Image", _done: float) -> None:
        """A picture on its way (`cm3leon.live.Watcher`)."""
        self.draw(image)

    def finish(self, path: Path, below: int) -> None:
        """The result in the place of what was shown, which has `below` lines below it by now."""
        from tokenizer.pixels import open_image

        self.draw(open_image(path), below)

    def draw(self, image: "Image.Image", below: int = 0) -> None:
        """Draw in one go, and leave the cursor where it was."""
        image, rows = _fitted(image, self.stream)
        text = ""
        if image.size != self.size:
            text = "\r\x1b[K" + "\n" * rows
            self.rows, self.size, below = rows, image.size, 0
        text += f"{SAVE}\x1b[{self.rows + below}A\r{self.encode(image, self.rows)}{RESTORE}"
        try:
            self.stream.write(text)
            self.stream.flush()
        except BaseException:  # a picture that is cut short must not swallow what follows
            self.stream.write(END + _kitty(f"a=d,d=I,i={os.getpid()},q=2") + RESTORE)
            self.stream.flush()
            raise


def kitty(image: "Image.Image", rows: int) -> str:
    """kitty's graphics protocol: a PNG in chunks, in the place of the last with this process's
    number, in so many rows. The terminal is asked not to answer (q) nor to move the cursor (C)."""
    data = base64.b64encode(_png(image)).decode()
    chunks = [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]
    about = f"a=T,f=100,i={os.getpid()},p=1,C=1,r={rows},"
    parts: list[str] = []
    for number, chunk in enumerate(chunks, start=1):
        parts.append(_kitty(f"{about}q=2,m={int(number < len(chunks))}", chunk))
        about = ""
    return "".join(parts)


def iterm(image: "Image.Image", rows: int) -> str:
    """iTerm2's inline images: a PNG in so many rows."""
    data = _png(image)
    about = f"inline=1;size={len(data)};height={rows};preserveAspectRatio=1;doNotMoveCursor=1"
    return f"\x1b]1337;File={about}:{base64.b64encode(data).decode()}\x07"


def sixel(image: "Image.Image", _rows: int = 0) -> str:
    """Sixel: at most 256 colours; bands of six rows, in each band a run of columns for each
    colour, in each column a bit for each of the six."""
    import numpy as np
    from PIL import Image

    flat = image.quantize(256, dither=Image.Dither.NONE)
    palette = flat.getpalette() or []
    index_HW = np.asarray(flat).astype(np.int16)
    high = len(index_HW)
    index_HW = np.pad(index_HW, ((0, -high % 6), (0, 0)), constant_values=-1)
    percent = [round(value * 100 / 255) for value in palette]
    parts = [f'\x1bPq"1;1;{image.width};{high}']
    for colour in range(len(percent) // 3):
        red, green, blue = percent[3 * colour : 3 * colour + 3]
        parts.append(f"#{colour};2;{red};{green};{blue}")
    weights_61 = 2 ** np.arange(6)[:, None]
    for band_6W in np.split(index_HW, len(index_HW) // 6):
        colours_C = np.unique(band_6W[band_6W >= 0])
        bits_CW = ((band_6W == colours_C[:, None, None]) * weights_61).sum(axis=1)
        for colour, bits_W in zip(colours_C, (bits_CW + 63).astype(np.uint8), strict=True):
            columns = bits_W.tobytes().decode().rstrip("?")
            parts.append(f"#{colour}{_RUN.sub(_shortened, columns)}$")
        parts.append("-")
    return "".join(parts) + END


ENCODERS: Mapping[Protocol, Callable[["Image.Image", int], str]] = {
    "kitty": kitty,
    "iterm": iterm,
    "sixel": sixel,
}
_RUN = re.compile(r"(.)\1{3,254}")


def _shortened(run: re.Match[str]) -> str:
    return f"!{len(run[0])}{run[1]}"


def _kitty(about: str, data: str = "") -> str:
    return f"\x1b_G{about};{data}{END}"


def _png(image: "Image.Image") -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _fitted(image: "Image.Image", stream: TextIO) -> "tuple[Image.Image, int]":
    """A small picture enlarged by a whole factor, a large one made to fit; and the rows of the
    terminal that it takes."""
    from PIL.Image import Resampling

    lines, columns, wide, high = _window(stream)
    factor = max(1, round(SIDE / max(image.size)))
    image = image.resize((image.width * factor, image.height * factor), Resampling.NEAREST)
    most = max(1, lines - 2)  # the line of progress stays in sight
    image.thumbnail((columns * wide, most * high))
    return image, min(most, math.ceil(image.height / high))


def _window(stream: TextIO) -> tuple[int, int, int, int]:
    """The terminal's lines and columns, and the width and height of a letter in pixels."""
    lines, columns, wide, high = 24, 80, 0, 0
    try:
        import fcntl
        import struct
        import termios

        told = fcntl.ioctl(stream.fileno(), termios.TIOCGWINSZ, bytes(8))
        lines, columns, wide, high = struct.unpack("HHHH", told)
    except (ImportError, OSError):  # no such call here; io.UnsupportedOperation is an OSError
        pass
    lines, columns = lines or 24, columns or 80
    return lines, columns, wide // columns or CELL[0], high // lines or CELL[1]
