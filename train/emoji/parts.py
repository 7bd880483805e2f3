"""Parts: the rendered images of one style, stored so that a restarted run does not repeat them.

`write_part` renders a style's drawings into a folder in OUT.parts; `read_part` reads it for the
corpus that `build.py` writes. A part's name is a hash of everything that it is made from.
"""

import hashlib
import json
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tokenizer.data.tars import Say
from tokenizer.errors import UserError
from tokenizer.manifest import MANIFEST, new_folder, verify
from train.emoji.draw import THUMB, About, Drawing, DrawnImage, paint
from train.emoji.fetch import PACKAGES

RECIPE = 1  # version; increment it if images or metadata are made differently
PICTURES, WEBP, THUMBS = "pictures.jsonl", "pictures.webp", "thumbs.npy"

Painter = Callable[[Sequence[Drawing]], Iterator[DrawnImage | str]]


@dataclass(frozen=True)
class Painted:
    """An image of the corpus with its metadata."""

    about: About
    webp: bytes
    thumb: NDArray[np.uint8]


@contextmanager
def painter(jobs: int | None) -> Generator[Painter]:
    """Provide a parallel `paint` with `jobs` processes, one per core by default.

    With 1 it runs in this process. Raises UserError if a process is killed.
    """
    jobs = jobs or os.cpu_count() or 1
    if jobs == 1:
        yield lambda drawings: map(paint, drawings)
        return
    # Spawned, since a forked process would copy the locks of this one's threads too. Interrupts are
    # handled by this process alone, which then ends the others.
    fresh = multiprocessing.get_context("spawn")
    deaf = (signal.SIGINT, signal.SIG_IGN)
    try:
        with ProcessPoolExecutor(jobs, fresh, signal.signal, deaf) as pool:
            yield lambda drawings: pool.map(paint, drawings, chunksize=16)
    except BrokenProcessPool as error:
        raise UserError(
            "a process that generates was killed, perhaps for want of memory; run again with fewer "
            "--jobs: what is finished is kept"
        ) from error


def part_name(style: str, packages: Sequence[str], rasteriser: str) -> str:
    """Return the name of a style's part, a hash of everything that its content depends on."""
    told = [RECIPE, style, rasteriser, [PACKAGES[name].sha256 for name in packages]]
    return f"part-{hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]}"


def write_part(
    folder: Path, drawings: Iterable[Drawing], paint_all: Painter, say: Say, *, once: bool
) -> None:
    """Render the drawings of a style into a part; report counts of those that cannot be rendered.

    An existing part is kept. once: of images with the same pixels only the first is kept.
    """
    if (folder / MANIFEST).is_file():
        return
    todo = list(drawings)
    missing: Counter[str] = Counter()
    seen: set[str] = set()
    thumbs = bytearray()
    with new_folder(folder) as aside:
        with (aside / PICTURES).open("wb") as lines, (aside / WEBP).open("wb") as webp:
            for drawing, picture in zip(todo, paint_all(todo), strict=True):
                if isinstance(picture, str):
                    missing[picture] += 1
                elif once and picture.digest in seen:
                    missing["as an earlier one"] += 1
                else:
                    seen.add(picture.digest)
                    told = {"about": drawing.about, "bytes": webp.write(picture.webp)}
                    lines.write(json.dumps(told).encode() + b"\n")
                    thumbs += picture.thumb
        pixels = np.frombuffer(thumbs, np.uint8).reshape(-1, THUMB, THUMB, 3)
        np.save(aside / THUMBS, pixels, allow_pickle=False)
    for why, count in missing.most_common():
        say(f"{count:,} left out: {why}")


def read_part(folder: Path) -> Iterator[Painted]:
    """Yield the images of a part, in order."""
    verify(folder)
    thumbs = np.load(folder / THUMBS, allow_pickle=False)
    with (folder / PICTURES).open("rb") as lines, (folder / WEBP).open("rb") as webp:
        for line, thumb in zip(lines, thumbs, strict=True):
            told = json.loads(line)
            yield Painted(told["about"], webp.read(told["bytes"]), thumb)
