"""cli/terminal.py: what each protocol carries, decoded again; which terminals are sent any."""

import base64
import io
import os
import pty
import re
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cm3leon import live
from cm3leon.__main__ import main
from cm3leon.cli import terminal
from cm3leon.cli.terminal import Screen, open_screen, protocol_of
from tokenizer.errors import UserError
from tokenizer.pixels import open_image

Capture = pytest.CaptureFixture[str]

KITTY = re.compile(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\")
ITERM = re.compile(r"\x1b\]1337;File=([^:]*):([^\x07]*)\x07")
SIXEL = re.compile(r'\x1bPq"1;1;(\d+);(\d+)([^\x1b]*)\x1b\\')


class Terminal(io.StringIO):
    """A terminal that keeps all that is written to it; it does not tell its size."""

    def isatty(self) -> bool:
        return True


def noise(width: int, height: int, colours: int = 256) -> Image.Image:
    """A picture of so many colours, each made of shares that sixel can say exactly."""
    draw = np.random.default_rng(0)
    palette = draw.choice(range(0, 256, 51), (colours, 3)).astype(np.uint8)
    return Image.fromarray(palette[draw.integers(0, colours, (height, width))])


def from_kitty(text: str) -> list[tuple[dict[str, str], Image.Image]]:
    """Every picture in a stream of kitty's commands, with what is said of it."""
    found: list[tuple[dict[str, str], Image.Image]] = []
    about, data = dict[str, str](), ""
    for keys, chunk in KITTY.findall(text):
        assert len(chunk) <= 4096
        table = dict(key.split("=") for key in keys.split(","))
        about = about or table
        data += chunk
        if table["m"] == "0":
            found.append((about, Image.open(io.BytesIO(base64.b64decode(data, validate=True)))))
            about, data = {}, ""
        else:
            assert len(chunk) == 4096
    assert not about
    return found


def from_sixel(text: str) -> Image.Image:
    """The picture of one sixel sequence; every pixel must be painted, once."""
    match = SIXEL.fullmatch(text)
    assert match is not None
    width, height = int(match[1]), int(match[2])
    pixels = np.full((height, width, 3), -1)
    palette: dict[int, list[int]] = {}
    x = y = colour = 0
    token = r"#(\d+);2;(\d+);(\d+);(\d+)|#(\d+)|!(\d+)([?-~])|([?-~])|(\$)|(-)"
    pieces = [*re.finditer(token, match[3])]
    assert "".join(piece[0] for piece in pieces) == match[3]
    for piece in pieces:
        if piece[1]:
            percent = [int(piece[place]) for place in (2, 3, 4)]
            palette[int(piece[1])] = [round(value * 255 / 100) for value in percent]
        elif piece[5]:
            colour = int(piece[5])
        elif piece[9] or piece[10]:
            x, y = 0, y + 6 * bool(piece[10])
        else:
            bits = ord(piece[7] or piece[8]) - 63
            run = slice(x, x + int(piece[6] or 1))
            for row in range(6):
                if bits >> row & 1:
                    assert (pixels[y + row, run] == -1).all()
                    pixels[y + row, run] = palette[colour]
            x = run.stop
    assert (pixels >= 0).all()
    return Image.fromarray(pixels.astype(np.uint8))


def test_kitty_carries_the_pixels_in_chunks() -> None:
    picture = noise(150, 90)
    ((about, found),) = from_kitty(terminal.kitty(picture, 7))
    assert found.tobytes() == picture.tobytes()
    assert about == {
        "a": "T", "f": "100", "i": str(os.getpid()), "p": "1", "C": "1", "r": "7", "q": "2",
        "m": "1",
    }  # fmt: skip
    ((about, found),) = from_kitty(terminal.kitty(noise(3, 2), 1))  # in one chunk
    assert (about["m"], found.tobytes()) == ("0", noise(3, 2).tobytes())


def test_iterm_carries_the_pixels() -> None:
    picture = noise(70, 50)
    match = ITERM.fullmatch(terminal.iterm(picture, 7))
    assert match is not None
    data = base64.b64decode(match[2], validate=True)
    assert Image.open(io.BytesIO(data)).tobytes() == picture.tobytes()
    about = dict(pair.split("=") for pair in match[1].split(";"))
    assert (about["inline"], about["size"], about["height"]) == ("1", str(len(data)), "7")


@pytest.mark.parametrize(("width", "height"), [(1, 1), (70, 12), (31, 47), (300, 6)])
@pytest.mark.parametrize("colours", [1, 2, 40])
def test_sixel_carries_the_pixels(width: int, height: int, colours: int) -> None:
    picture = noise(width, height, colours)
    assert from_sixel(terminal.sixel(picture)).tobytes() == picture.tobytes()
    broad = picture.resize((width * 4, height * 4), Image.Resampling.NEAREST)
    assert from_sixel(terminal.sixel(broad)).tobytes() == broad.tobytes()


def test_sixel_of_many_colours_comes_close() -> None:
    ramp = np.linspace(0, 255, 96 * 96 * 3).reshape(3, 96, 96).transpose(1, 2, 0).astype(np.uint8)
    found = np.asarray(from_sixel(terminal.sixel(Image.fromarray(ramp)))).astype(int)
    assert abs(found - ramp).mean() < 3


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, None),
        ({"TERM": "xterm-256color"}, None),
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-ghostty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "ghostty"}, "kitty"),
        ({"TERM_PROGRAM": "iTerm.app"}, "iterm"),
        ({"TERM": "xterm-256color", "LC_TERMINAL": "iTerm2"}, "iterm"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "iterm"),
        ({"TERM": "xterm-sixel"}, "sixel"),
        ({"TERM": "mlterm"}, "sixel"),
        ({"TERM": "foot-extra"}, "sixel"),
        ({"TERM": "yaft-256color"}, "sixel"),
        ({"TERM": "foot", "KITTY_WINDOW_ID": "1"}, "sixel"),  # foot, started from kitty
        ({"TERM": "dumb", "KITTY_WINDOW_ID": "1"}, None),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/tmux"}, None),
        ({"TERM": "screen.xterm-256color", "TERM_PROGRAM": "iTerm.app"}, None),
        ({"TERM": "xterm-kitty", "STY": "1.pts"}, None),
        ({"TERM": "tmux-256color", "TMUX": "x", "CM3LEON_GRAPHICS": "sixel"}, "sixel"),
        ({"TERM": "dumb", "CM3LEON_GRAPHICS": "iterm"}, "iterm"),
        ({"TERM": "xterm-kitty", "CM3LEON_GRAPHICS": "none"}, None),
        ({"TERM": "xterm-kitty", "CM3LEON_GRAPHICS": ""}, "kitty"),
    ],
)
def test_what_a_terminal_speaks(environment: Mapping[str, str], wanted: str | None) -> None:
    assert protocol_of(environment) == wanted


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(UserError, match="is 'png'; make it one of kitty, iterm, sixel or none"):
        protocol_of({"CM3LEON_GRAPHICS": "png"})


@pytest.mark.parametrize(
    ("size", "shown", "rows"),
    [
        ((16, 16), (256, 256), 16),
        ((64, 64), (256, 256), 16),
        ((136, 136), (272, 272), 17),
        ((256, 256), (256, 256), 16),
        ((1000, 500), (640, 320), 20),  # 80 letters wide
        ((500, 1000), (176, 352), 22),  # 24 lines, less two
    ],
)
def test_pictures_are_made_to_fit(size: tuple[int, int], shown: tuple[int, int], rows: int) -> None:
    stream = Terminal()
    Screen("kitty", stream).draw(Image.new("RGB", size))
    ((about, found),) = from_kitty(stream.getvalue())
    assert (found.size, about["r"]) == (shown, str(rows))


def test_a_picture_takes_the_place_of_the_one_before() -> None:
    stream = Terminal()
    screen = Screen("kitty", stream)
    room = "\r\x1b[K" + "\n" * 16
    for image, below, before in (
        (noise(64, 64, 9), 0, room + "\x1b7\x1b[16A\r\x1b_G"),  # makes room for itself
        (noise(64, 64, 5), 0, "\x1b7\x1b[16A\r\x1b_G"),
        (noise(64, 64, 7), 1, "\x1b7\x1b[17A\r\x1b_G"),  # a line has come below it
        (noise(64, 32, 7), 1, "\r\x1b[K" + "\n" * 8 + "\x1b7\x1b[8A\r\x1b_G"),  # does not fit
    ):
        start = stream.tell()
        screen.draw(image, below)
        said = stream.getvalue()[start:]
        assert said.startswith(before)
        assert said.endswith("\x1b\\\x1b8")


def test_a_picture_that_is_interrupted_leaves_the_terminal_whole() -> None:
    class Interrupted(Terminal):
        def write(self, text: str, /) -> int:
            if len(text) > 1000:
                super().write(text[:1000])
                raise KeyboardInterrupt
            return super().write(text)

    stream = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        Screen("kitty", stream).draw(noise(64, 64))
    end = f"\x1b\\\x1b_Ga=d,d=I,i={os.getpid()},q=2;\x1b\\\x1b8"
    assert stream.getvalue()[1000:] == end


@pytest.mark.parametrize("where", ["a file", "no pictures"])
def test_silence_where_no_picture_can_be_shown(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO() if where == "a file" else Terminal())
    monkeypatch.setenv("CM3LEON_GRAPHICS", "kitty" if where == "a file" else "none")
    assert open_screen() is None


def seen_by_a_terminal(monkeypatch: pytest.MonkeyPatch, *argv: str) -> str:
    """Run a command whose stderr is a pseudo-terminal; what was written to that."""
    ours, theirs = pty.openpty()
    said = b""

    def read() -> None:
        nonlocal said
        while True:
            try:
                said += (more := os.read(ours, 65536))
            except OSError:  # Linux's way of saying that nobody writes any more
                return
            if not more:
                return

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(theirs, "w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        assert main([*argv]) == 0
    reader.join()
    os.close(ours)
    return said.decode()


def test_generate_shows_a_picture_arriving(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CM3LEON_GRAPHICS", "kitty")
    monkeypatch.setattr(live, "SHARE", 1e9)  # a tiny picture is too quick for any view
    command = ("generate", "a red fox", "--seed", "3", "--model", str(tiny_folder), "--out")
    said = seen_by_a_terminal(monkeypatch, *command, "seen.png", "--watch")
    views = [np.asarray(image) for _, image in from_kitty(said)]
    assert [view.shape for view in views] == [(256, 256, 3)] * 4
    grey = [(view == live.GREY).all(axis=(1, 2)).sum() for view in views]
    assert grey == [192, 128, 64, 0]  # rows of pixels still to come
    final = open_image("seen.png").resize((256, 256), Image.Resampling.NEAREST)
    assert views[-1].tobytes() == final.tobytes()
    # The line of progress goes on below the picture, and the final one knows what stands there.
    assert re.search(r"\x1b8\r\x1b\[K9/16 tokens, ", said)
    assert re.search(r"\r\x1b\[K16 tokens in .* tokens/s\r\n\x1b7\x1b\[17A\r\x1b_G", said)
    assert capsys.readouterr().out == "seen.png\n"
    quiet = seen_by_a_terminal(monkeypatch, *command, "unseen.png")
    assert "\x1b_G" not in quiet
    assert Path("seen.png").read_bytes() == Path("unseen.png").read_bytes()


def test_edit_and_infill_can_be_watched_and_files_get_no_pictures(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CM3LEON_GRAPHICS", "iterm")
    noise(16, 16).save("before.png")
    for command in (
        ("edit", "before.png", "make it blue", "-n", "2"),
        ("infill", "before.png", "--box", "4,0,12,16", "--prompt", "a fox"),
    ):
        argv = (*command, "--model", str(tiny_folder), "--watch", "--out", "after.png")
        (*_, (_, last)) = ITERM.findall(seen_by_a_terminal(monkeypatch, *argv))
        shown = Image.open(io.BytesIO(base64.b64decode(last)))
        after = open_image("after.png")
        assert shown.tobytes() == after.resize(shown.size, Image.Resampling.NEAREST).tobytes()
        capsys.readouterr()
        assert main([*argv]) == 0
        assert "\x1b" not in capsys.readouterr().err
