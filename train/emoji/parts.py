"""The pictures of one style, painted and kept, so that a killed run need not paint them again.

On the path: a style's drawings -> `write_part` -> a folder in OUT.parts -> `read_part` -> the
corpus that `emoji.py` writes. A part's name stands for all that it was made of.
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
from train.emoji.draw import THUMB, About, Drawing, Picture, paint
from train.emoji.fetch import PACKAGES

RECIPE = 1  # another number where pictures or metadata are made otherwise
PICTURES, WEBP, THUMBS = "pictures.jsonl", "pictures.webp", "thumbs.npy"

Painter = Callable[[Sequence[Drawing]], Iterator[Picture | str]]


@dataclass(frozen=True)
class Painted:
    """A picture with its metadata, as the corpus has it."""

    about: About
    webp: bytes
    thumb: NDArray[np.uint8]


@contextmanager
def painter(jobs: int | None) -> Generator[Painter]:
    """`paint` for many drawings at once, in so many processes; in this one alone with 1."""
    jobs = jobs or os.cpu_count() or 1
    if jobs == 1:
        yield lambda drawings: map(paint, drawings)
        return
    # Fresh processes: a copy of this one would be a copy of its threads' locks too. An interrupt
    # is for this one to hear, which then ends the others.
    fresh = multiprocessing.get_context("spawn")
    deaf = (signal.SIGINT, signal.SIG_IGN)
    try:
        with ProcessPoolExecutor(jobs, fresh, signal.signal, deaf) as pool:
            yield lambda drawings: pool.map(paint, drawings, chunksize=16)
    except BrokenProcessPool as error:
        raise UserError(
            "a process that paints was killed, perhaps for want of memory; run again with fewer "
            "--jobs: what is finished is kept"
        ) from error


def part_name(style: str, packages: Sequence[str], rasteriser: str) -> str:
    """The name of a style's part: another one where anything that it depends on changed."""
    told = [RECIPE, style, rasteriser, [PACKAGES[name].sha256 for name in packages]]
    return f"part-{hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]}"


def write_part(
    folder: Path, drawings: Iterable[Drawing], paint_all: Painter, say: Say, *, once: bool
) -> None:
    """Paint the drawings of a style into a part; what cannot be painted is counted aloud.

    once: of pictures with the same pixels only the first is kept.
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
    """The pictures of a part, in their order."""
    verify(folder)
    thumbs = np.load(folder / THUMBS, allow_pickle=False)
    with (folder / PICTURES).open("rb") as lines, (folder / WEBP).open("rb") as webp:
        for line, thumb in zip(lines, thumbs, strict=True):
            told = json.loads(line)
            yield Painted(told["about"], webp.read(told["bytes"]), thumb)
