"""Where results go: pictures with notes on how they were made, lines on stdout, progress on stderr.

A picture's notes are PNG text: task, prompt, seed, samples, number, settings (JSON) and the hash of
the model; `info` shows them and `generate --like` does the same again.
"""

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import typer

from cm3leon import __version__
from cm3leon.cli.options import LAST_SEED, MOST
from tokenizer.errors import UserError
from tokenizer.manifest import check_writable, write_file

if TYPE_CHECKING:
    from PIL import Image

    from cm3leon.fast.quantize import Precision
    from cm3leon.sampling import Sampling

MADE_BY = "cm3leon"


def signature(task: str, model: str) -> dict[str, str]:
    """Notes that every picture carries: who made it, for which task, with which model."""
    return {"software": f"{MADE_BY} {__version__}", "task": task, "model": model}


@dataclass(frozen=True, kw_only=True)
class Notes:
    """How a picture was made. `number` counts from 1; None is the contact sheet of all samples."""

    task: str
    prompt: str
    seed: int
    samples: int
    number: int | None
    settings: "Sampling"
    model: str
    retrieved: str = ""  # JSON of the documents that stood in front of the prompt
    candidates: int = 1  # painted for each sample, which is the best of them
    mix: bool = False  # half of the candidates by CD-K
    encoder: str = ""  # id of what picked
    precision: "Precision" = "fp32"  # of the decoder's weights

    def table(self) -> dict[str, str]:
        """The notes as PNG text."""
        numbered = {} if self.number is None else {"number": str(self.number)}
        picked = {"candidates": str(self.candidates), "mix": json.dumps(self.mix)}
        picked |= {"encoder": self.encoder}
        return {
            **signature(self.task, self.model),
            "prompt": self.prompt,
            "seed": str(self.seed),
            "samples": str(self.samples),
            **numbered,
            "settings": json.dumps(asdict(self.settings)),
            **({"retrieved": self.retrieved} if self.retrieved else {}),
            **(picked if self.candidates > 1 else {}),
            **({"precision": self.precision} if self.precision != "fp32" else {}),
        }

    @classmethod
    def read(cls, path: Path, task: str) -> "Notes":
        """The notes of a picture that we made for this task. Raises UserError for any other."""
        from cm3leon.sampling import Sampling
        from tokenizer import config as settings
        from tokenizer.pixels import read_info

        table = read_info(path)
        if not table.get("software", "").startswith(MADE_BY):
            raise UserError(f"{path}: has no notes of cm3leon on how it was made")
        if table.get("task") != task:
            raise UserError(f"{path}: was made by {table.get('task')!r}, not by {task!r}")
        try:
            number = table.get("number")
            notes = cls(
                task=task,
                prompt=table["prompt"],
                seed=int(table["seed"]),
                samples=int(table["samples"]),
                number=None if number is None else int(number),
                settings=settings.build(Sampling, json.loads(table["settings"])),
                model=table["model"],
                retrieved=table.get("retrieved", ""),
                candidates=int(table.get("candidates", "1")),
                mix=table.get("mix") == "true",
                encoder=table.get("encoder", ""),
                precision=cast("Precision", table.get("precision", "fp32")),
            )
        except (KeyError, ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{path}: its notes are damaged ({error})") from error
        if notes.precision not in ("fp32", "bf16", "int8", "int4"):
            raise UserError(f"{path}: its notes speak of a precision {notes.precision!r}")
        fits = notes.candidates >= 1 and notes.samples * notes.candidates <= MOST
        if not (
            0 <= notes.seed <= LAST_SEED and 1 <= (notes.number or 1) <= notes.samples and fits
        ):
            raise UserError(f"{path}: its notes have a seed or a number out of range")
        return notes


def paths_for(out: Path, samples: int) -> list[Path]:
    """fox.png for one sample; fox-1.png, fox-2.png ... for several, beside the sheet fox.png."""
    if samples == 1:
        return [out]
    return [out.with_name(f"{out.stem}-{number}{out.suffix}") for number in range(1, samples + 1)]


def check_out(out: Path, samples: int) -> None:
    """Refuse a result that could not be written, before dear work begins."""
    if out.suffix.lower() != ".png":
        raise UserError(f"cannot write {str(out)!r}: results are PNG files; name it {out.stem}.png")
    for path in {out, *paths_for(out, samples)}:
        check_writable(path)


def write_pictures(
    out: Path, pictures: Sequence["Image.Image"], tables: Sequence[Mapping[str, str]]
) -> list[Path]:
    """Write all pictures with their notes, and of several the contact sheet last (its notes are
    the last of `tables`); return the paths in that order."""
    paths = paths_for(out, len(pictures))
    if len(pictures) > 1:
        pictures = [*pictures, sheet_of(pictures)]
        paths = [*paths, out]
    for path, picture, table in zip(paths, pictures, tables, strict=True):
        write_picture(path, picture, table)
    return paths


def write_picture(path: Path, picture: "Image.Image", table: Mapping[str, str]) -> None:
    """Write one picture with its notes."""
    from tokenizer.pixels import encode_png

    write_file(path, encode_png(picture, table))


def sheet_of(pictures: Sequence["Image.Image"]) -> "Image.Image":
    """The contact sheet, about as many pictures wide as high."""
    from tokenizer.pixels import sheet

    return sheet(pictures, math.ceil(math.sqrt(len(pictures))))


def tell(lines: Sequence[object], table: Mapping[str, Any], as_json: bool) -> None:
    """The result on stdout: plain lines, or one line of JSON."""
    if as_json:
        typer.echo(json.dumps(table, ensure_ascii=False))
        return
    for line in lines:
        typer.echo(str(line))


class Progress:
    """Tokens so far, their speed and the time left: a line that renews itself on a terminal, one
    line at the end elsewhere."""

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.stream = sys.stderr
        self.live = self.stream.isatty()
        self.begun = time.perf_counter()
        self.done = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self.live:
            self.stream.write("\r\x1b[K")
        if kind is None:
            total = self.done * self.samples
            line = f"{total} tokens in {self.seconds:.1f} s, {self.speed:.0f} tokens/s"
            print(line, file=self.stream)

    def __call__(self, done: int, most: int) -> None:
        self.done = done
        if self.live and done:
            left = self.seconds * (most - done) / done
            line = f"{done}/{most} tokens, {self.speed:.0f} tokens/s, {left:.0f} s left"
            self.stream.write(f"\r\x1b[K{line}")
            self.stream.flush()

    @property
    def seconds(self) -> float:
        """Time since the beginning."""
        return time.perf_counter() - self.begun

    @property
    def speed(self) -> float:
        """Tokens of all samples a second."""
        return self.done * self.samples / max(self.seconds, 1e-9)
