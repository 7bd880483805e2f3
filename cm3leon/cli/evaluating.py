"""Commands that measure a model: eval reconstruction, bits, captions, sheet.

Each prints its command, the model's hash, what was measured on and a Markdown table, so that a line
of the ledger can be copied from it.
"""

import dataclasses
import json
import shlex
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cm3leon.cli import options
from cm3leon.cli.output import signature, tell

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from cm3leon.pipeline import CM3Leon
    from eval.figures import Figure
    from tokenizer.image import ImageTokenizer

Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="A checkpoint folder, 'default' or 'hf:owner/name'."),
]
Corpus = Annotated[Path, typer.Argument(metavar="CORPUS", help="A folder of WebDataset tars.")]
Tokens = Annotated[
    Path, typer.Argument(metavar="SHARDS", help="Token shards, as `data encode` writes them.")
]
Limit = Annotated[
    int | None, typer.Option(min=1, help="At most so many pictures of each kind, evenly spaced.")
]
Lines = Annotated[Path | None, typer.Option(help="A file to write: a line of JSON a picture.")]


def add_to(app: typer.Typer) -> None:
    """Name this file's commands, in a group of their own."""
    group = typer.Typer(help="Measure a model.", rich_markup_mode=None)
    for command in (reconstruction, bits, captions, sheet):
        group.command()(command)
    app.add_typer(group, name="eval")


def reconstruction(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A model, or an image tokenizer's folder.")
    ],
    corpus: Corpus,
    split: Annotated[str, typer.Option(help="The tars whose names begin so.")] = "test",
    limit: Limit = None,
    out: Annotated[
        Path | None, typer.Option(help="A PNG of pictures before and after to write.")
    ] = None,
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """How much of a picture survives the codebook (PSNR), and how much of the codebook is used."""
    from eval.reconstruction import measure
    from tokenizer.manifest import check_writable, write_file
    from tokenizer.pixels import encode_png
    from tokenizer.tars import Tally, find_tars

    tars, tally = find_tars(corpus, f"{split}-"), Tally()
    if out is not None:
        check_writable(out)
    tokenizer, model_hash = _open_tokenizer(model, threads)
    found = measure(tokenizer, tars, limit=limit, tally=tally, progress=_steps("reconstruction"))
    tally.tell(options.say)
    if out is not None:
        write_file(out, encode_png(found.sheet(), signature("eval reconstruction", model_hash)))
    table = {
        kind: {"pictures": str(row.psnr.count), "PSNR, dB": _figure(row.psnr, 2)}
        | {"codes in use": f"{row.used:.1%}"}
        for kind, row in found.rows.items()
    }
    _tell(
        context,
        model_hash,
        _place(f"{split} of {corpus.name}", limit),
        table,
        _plain(found.rows),
        as_json,
    )


def bits(
    context: typer.Context,
    model: Model,
    shards: Tokens,
    limit: Limit = None,
    out: Lines = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Bits of pictures given their first caption, and of captions given their picture."""
    from eval.bits import figures, measure
    from tokenizer.shards import Shards

    Shards.open(shards)  # cheap, before the weights
    _check_lines(out)
    leon = _open_model(model, device, threads)
    tokens = Shards.open(shards, leon.image_tokenizer.hash, leon.codec.text.hash)
    pairs = measure(leon.model, leon.codec, tokens, limit=limit, progress=_steps("bits"))
    _write_lines(out, map(dataclasses.asdict, pairs))
    rows = figures(pairs, tokens.grid**2)
    table = {
        kind: {
            "pictures": str(row.picture.count),
            "bits per image token": _figure(row.image_token, 3),
            "bits per picture": _figure(row.picture, 1),
            "bits per caption byte": _figure(row.caption_byte, 3),
        }
        for kind, row in rows.items()
    }
    _tell(context, leon.hash, _place(shards.name, limit), table, _plain(rows), as_json)


def captions(
    context: typer.Context,
    model: Model,
    shards: Tokens,
    limit: Limit = None,
    out: Lines = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """How often a caption names the picture's label and its style."""
    from eval.captions import figures, measure
    from tokenizer.shards import Shards

    Shards.open(shards)  # cheap, before the weights
    _check_lines(out)
    leon = _open_model(model, device, threads)
    tokens = Shards.open(shards, leon.image_tokenizer.hash, leon.codec.text.hash)
    said = measure(leon.model, leon.codec, tokens, limit=limit, progress=_steps("captions"))
    _write_lines(out, map(dataclasses.asdict, said))
    rows = figures(said)
    columns = ("label named", "style named", "both", "exact first caption")
    shares = [_share(figure) for figure in rows.values()]
    table = {"all": {"pictures": str(len(said)), **dict(zip(columns, shares, strict=True))}}
    _tell(context, leon.hash, _place(shards.name, limit), table, _plain(rows), as_json)


def sheet(
    context: typer.Context,
    model: Model,
    prompts: Annotated[
        Path, typer.Argument(metavar="PROMPTS", help="The sheet: a JSON of pictures and edits.")
    ],
    corpus: Corpus,
    out: Annotated[Path, typer.Option(help="The folder to write the sheets to.")],
    split: Annotated[str, typer.Option(help="The tars whose names begin so.")] = "train",
    device: options.Device = "auto",
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Paint the fixed sheet: one sample of each of its prompts and edits, no choosing."""
    from eval.sets import find_images
    from eval.sheet import Chosen, check_out, draw, write
    from tokenizer.manifest import file_hash
    from tokenizer.tars import find_tars

    chosen = Chosen.read(prompts)
    tars = find_tars(corpus, f"{split}-")
    check_out(out)
    leon = _open_model(model, device, threads)
    ids = frozenset(edit.source for edit in chosen.edits)
    sources = find_images(tars, leon.image_tokenizer.size, ids)
    drawn = draw(leon, chosen, sources, _steps("sheet"))
    notes = {
        **signature("eval sheet", leon.hash),
        "prompt": f"the sheet with SHA-256 {file_hash(prompts)}",
        "seed": "the number of the picture",
        "settings": json.dumps(dataclasses.asdict(leon.sampling)),
    }
    paths = [str(path) for path in write(out, chosen, drawn, sources, notes)]
    counts = {"pictures": str(len(chosen.pictures)), "edits": str(len(chosen.edits))}
    _tell(context, leon.hash, prompts.name, {"all": counts}, {"files": paths}, as_json)
    if not as_json:
        tell(["", *paths], {}, as_json)


def _open_tokenizer(model: str, threads: int | None) -> tuple["ImageTokenizer", str]:
    """The image tokenizer of a model, or a folder that is one itself; and the folder's hash."""
    import torch

    from cm3leon.checkpoint import IMAGE, find, hash_of
    from tokenizer.image import ImageTokenizer
    from tokenizer.manifest import verify

    if threads is not None:
        torch.set_num_threads(threads)
    folder = find(model, options.say)
    if not (folder / IMAGE).is_dir():
        tokenizer = ImageTokenizer.load(folder)
        return tokenizer, tokenizer.hash[:12]
    verify(folder)
    return ImageTokenizer.load(folder / IMAGE), hash_of(folder)


def _open_model(model: str, device: str, threads: int | None) -> "CM3Leon":
    from cm3leon.checkpoint import find

    return options.open_model(find(model, options.say), device, threads)


def _check_lines(out: Path | None) -> None:
    from tokenizer.manifest import check_writable

    if out is not None:
        check_writable(out)


def _write_lines(out: Path | None, rows: Iterable[dict[str, Any]]) -> None:
    from tokenizer.manifest import write_file

    if out is not None:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        write_file(out, "".join(lines).encode())


def _figure(figure: "Figure", digits: int) -> str:
    error = "" if figure.error is None else f" ± {figure.error:.{digits}f}"
    return f"{figure.value:.{digits}f}{error}"


def _share(figure: "Figure") -> str:
    error = "" if figure.error is None else f" ± {100 * figure.error:.1f}"
    return f"{100 * figure.value:.1f}%{error}"


def _tell(
    context: typer.Context,
    model_hash: str,
    measured_on: str,
    table: Mapping[str, Mapping[str, str]],
    result: Mapping[str, Any],
    as_json: bool,
) -> None:
    """Print what was measured, with what, and the table: its rows by name."""
    about = {"command": _command(context), "model": model_hash, "measured on": measured_on}
    columns = ["", *next(iter(table.values()))]
    rows = [
        columns,
        ["---"] * len(columns),
        *([name, *row.values()] for name, row in table.items()),
    ]
    lines = [f"{name}: {value}" for name, value in about.items()]
    lines += ["", *(_line(row) for row in rows)]
    tell(lines, {**about, **result}, as_json)


def _place(split: str, limit: int | None) -> str:
    return split if limit is None else f"{split}, at most {limit:,} pictures of each kind"


def _plain(rows: Mapping[str, "DataclassInstance"]) -> dict[str, Any]:
    return {name: dataclasses.asdict(row) for name, row in rows.items()}


def _line(row: Sequence[str]) -> str:
    return f"| {' | '.join(row)} |"


def _command(context: typer.Context) -> str:
    """The command as it was given, less the options that say what they would have said anyway."""
    words = context.command_path.split()
    for parameter in context.command.params:
        value = context.params.get(str(parameter.name))
        if value in (None, False, parameter.default):
            continue
        option = parameter.opts[0] if parameter.param_type_name == "option" else None
        words += [text for text in (option, None if value is True else str(value)) if text]
    return shlex.join(words)


def _steps(what: str) -> Callable[[int, int], None]:
    """Progress on stderr: a line at each tenth of the way, with the time left."""
    begun, told = time.perf_counter(), 0

    def progress(done: int, total: int) -> None:
        nonlocal told
        if 10 * done // total > told:
            told = 10 * done // total
            left = (time.perf_counter() - begun) * (total - done) / done
            options.say(f"{what}: {done:,} of {total:,}, {left:.0f} s left")

    return progress
