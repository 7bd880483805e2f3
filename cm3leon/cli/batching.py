"""`generate --prompts FILE`: a picture for every line, through one engine."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3leon.cli import options
from cm3leon.cli.output import (
    Notes,
    Progress,
    check_out,
    paths_for,
    sheet_of,
    signature,
    tell,
    write_picture,
)
from cm3leon.cli.picking import Picker
from cm3leon.cli.retrieving import Wanted, finder
from tokenizer.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from cm3leon.sampling import Sampling


@dataclass(frozen=True)
class Lines:
    """A file of prompts, how to paint them, and where things are."""

    prompts: Path
    out: Path
    seed: int
    folder: Path
    sampling: "Sampling"
    wanted: Wanted
    picker: Picker
    precision: options.Precision
    device: str
    threads: int | None
    as_json: bool


def read_prompts(path: Path) -> tuple[str, ...]:
    """The lines of a text file that are not empty. Raises UserError where there are none."""
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is no text in UTF-8; write one prompt a line") from error
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not prompts:
        raise UserError(f"{path}: has no prompts; write one a line")
    return prompts


def paint_lines(lines: Lines) -> None:
    """Paint each line's picture as `generate` would paint it alone, and write it at once: what is
    done stays if the command is stopped. Of up to a sheet's worth there is a sheet in the end."""
    from cm3leon.batch import Wish, paint_all

    prompts = read_prompts(lines.prompts)
    count = len(prompts)
    check_out(lines.out, count)
    picker, sampling = lines.picker, lines.sampling
    picker.open(1, sampling, lines.device)
    find = finder(lines.wanted, lines.folder, lines.device)
    retrieved = [find(prompt, None) for prompt in prompts]
    leon = options.open_model(lines.folder, lines.device, lines.threads, lines.precision)
    wishes = [
        Wish(prompt=prompt, seed=lines.seed, retrieved=found.documents)
        for prompt, found in zip(prompts, retrieved, strict=True)
    ]
    paths = paths_for(lines.out, count)
    pictures: dict[int, Image.Image] = {}
    with Progress(1) as progress:
        for number, picture in paint_all(leon, wishes, sampling, progress=progress, **picker.asked):
            wish, found = wishes[number], retrieved[number]
            notes = Notes(
                task="generate",
                prompt=wish.prompt,
                seed=wish.seed,
                samples=1,
                number=1,
                settings=sampling,
                model=leon.hash,
                retrieved=found.told,
                candidates=picker.candidates,
                mix=picker.mix,
                encoder=picker.id,
                precision=leon.precision,
            )
            write_picture(paths[number], picture, notes.table())
            if count <= options.MOST:
                pictures[number] = picture
    told = [str(path) for path in paths]
    if len(pictures) > 1:
        whole = sheet_of([pictures[number] for number in range(count)])
        write_picture(lines.out, whole, signature("generate --prompts", leon.hash))
        told.append(str(lines.out))
    table: dict[str, Any] = {
        "task": "generate",
        "files": told[:count],
        "sheet": told[count] if len(told) > count else None,
        "prompts": prompts,
        "seed": lines.seed,
        "model": leon.hash,
        "retrieved": [found.used for found in retrieved],
    }
    tell(told, table, lines.as_json)
