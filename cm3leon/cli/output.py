"""Results of commands: images with metadata, lines and tables on stdout, progress on stderr.

An image's metadata is PNG text: task, prompt, seed, samples, number, settings (JSON) and the hash
of the model; `info` shows it and `generate --like` repeats the image.
"""

import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import typer

from cm3leon import __version__
from cm3leon.cli.options import LAST_SEED, MOST, say
from tokenizer.errors import UserError
from tokenizer.manifest import check_writable, write_file

if TYPE_CHECKING:
    from PIL import Image

    from cm3leon.fast.quantize import Precision
    from cm3leon.sampling import Sampling

MADE_BY = "cm3leon"


def signature(task: str, model: str) -> dict[str, str]:
    """Return the metadata of every image: who made it, for which task, with which model."""
    return {"software": f"{MADE_BY} {__version__}", "task": task, "model": model}


@dataclass(frozen=True, kw_only=True)
class ImageMetadata:
    """Metadata of an image. `number` counts from 1; None is the contact sheet of all samples."""

    task: str
    prompt: str
    seed: int
    samples: int
    number: int | None
    settings: "Sampling"
    model: str
    retrieved: str = ""  # JSON of the documents that stood in front of the prompt
    candidates: int = 1  # generated for each sample, which is the best of them
    mix: bool = False  # half of the candidates by CD-K
    encoder: str = ""  # id of the encoder that ranked them
    precision: "Precision" = "fp32"  # of the decoder's weights

    def table(self) -> dict[str, str]:
        """Return the metadata as PNG text."""
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
    def read(cls, path: Path, task: str) -> "ImageMetadata":
        """Read the metadata of an image of this task. Raises UserError for any other image."""
        from cm3leon.sampling import Sampling
        from tokenizer import config as settings
        from tokenizer.pixels import read_info

        table = read_info(path)
        if not table.get("software", "").startswith(MADE_BY):
            raise UserError(f"{path}: has no metadata of cm3leon on how it was made")
        if table.get("task") != task:
            raise UserError(f"{path}: was made by {table.get('task')!r}, not by {task!r}")
        try:
            number = table.get("number")
            found = cls(
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
            raise UserError(f"{path}: its metadata is damaged ({error})") from error
        if found.precision not in ("fp32", "bf16", "int8", "int4"):
            raise UserError(f"{path}: its metadata has a precision {found.precision!r}")
        fits = found.candidates >= 1 and found.samples * found.candidates <= MOST
        if not (
            0 <= found.seed <= LAST_SEED and 1 <= (found.number or 1) <= found.samples and fits
        ):
            raise UserError(f"{path}: its metadata has a seed or a number out of range")
        return found


def paths_for(out: Path, samples: int) -> list[Path]:
    """Return fox.png for one sample; fox-1.png, fox-2.png ... for several, beside their sheet."""
    if samples == 1:
        return [out]
    return [out.with_name(f"{out.stem}-{number}{out.suffix}") for number in range(1, samples + 1)]


def check_out(out: Path, samples: int) -> None:
    """Refuse a result that could not be written, before dear work begins."""
    if out.suffix.lower() != ".png":
        raise UserError(f"cannot write {str(out)!r}: results are PNG files; name it {out.stem}.png")
    for path in {out, *paths_for(out, samples)}:
        check_writable(path)


def write_images(
    out: Path, images: Sequence["Image.Image"], tables: Sequence[Mapping[str, str]]
) -> list[Path]:
    """Write all images with their metadata, and of several the contact sheet last (its metadata is
    the last of `tables`); return the paths in that order."""
    paths = paths_for(out, len(images))
    if len(images) > 1:
        images = [*images, sheet_of(images)]
        paths = [*paths, out]
    for path, image, table in zip(paths, images, tables, strict=True):
        write_image(path, image, table)
    return paths


def write_image(path: Path, image: "Image.Image", table: Mapping[str, str]) -> None:
    """Write one image with its metadata."""
    from tokenizer.pixels import encode_png

    write_file(path, encode_png(image, table))


def sheet_of(images: Sequence["Image.Image"]) -> "Image.Image":
    """Return the contact sheet, about as many images wide as high."""
    from tokenizer.pixels import sheet

    return sheet(images, math.ceil(math.sqrt(len(images))))


def print_result(lines: Sequence[object], table: Mapping[str, Any], as_json: bool) -> None:
    """Print the result on stdout: plain lines, or one line of JSON."""
    if as_json:
        typer.echo(json.dumps(table, ensure_ascii=False))
        return
    for line in lines:
        typer.echo(str(line))


class Progress:
    """Progress of generation: tokens so far, speed and time left in a line that is rewritten on a
    terminal; one line at the end elsewhere."""

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
        """Seconds since the beginning."""
        return time.perf_counter() - self.begun

    @property
    def speed(self) -> float:
        """Tokens of all samples a second."""
        return self.done * self.samples / max(self.seconds, 1e-9)


def print_table(
    context: typer.Context,
    about: Mapping[str, str],
    table: Mapping[str, Mapping[str, str]],
    result: Mapping[str, Any],
    as_json: bool,
) -> None:
    """Print the command, what was measured with what (`about`), and a Markdown table of rows."""
    about = {"command": command_line(context), **about}
    columns = ["", *next(iter(table.values()))]
    rows = [
        columns,
        ["---"] * len(columns),
        *([name, *row.values()] for name, row in table.items()),
    ]
    lines = [f"{name}: {value}" for name, value in about.items()]
    lines += ["", *(_line(row) for row in rows)]
    print_result(lines, {**about, **result}, as_json)


def progress_lines(what: str) -> Callable[[int, int], None]:
    """Return a function that prints progress on stderr: a line a tenth, with the time left."""
    begun, told = time.perf_counter(), 0

    def progress(done: int, total: int) -> None:
        nonlocal told
        if 10 * done // total > told:
            told = 10 * done // total
            left = (time.perf_counter() - begun) * (total - done) / done
            say(f"{what}: {done:,} of {total:,}, {left:.0f} s left")

    return progress


def _line(row: Sequence[str]) -> str:
    return f"| {' | '.join(row)} |"


def command_line(context: typer.Context) -> str:
    """Return the command as it was given, without options that have their default."""
    words = context.command_path.split()
    for parameter in context.command.params:
        value = context.params.get(str(parameter.name))
        if value is None or value is False or value in ((), [], parameter.default):
            continue  # but 0 is something to say
        option = parameter.opts[0] if parameter.param_type_name == "option" else None
        for one in value if isinstance(value, list | tuple) else (value,):
            words += [text for text in (option, None if one is True else str(one)) if text]
    return shlex.join(words)
