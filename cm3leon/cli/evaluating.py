"""Commands that measure a model: eval codebook, bits, captions, sheet."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cm3leon.cli import (
    evaluating_candidates,
    evaluating_folders,
    evaluating_ledger,
    evaluating_people,
    evaluating_reports,
    evaluating_retrieval,
    evaluating_samples,
    options,
    tables,
)
from cm3leon.cli.output import signature, tell

if TYPE_CHECKING:
    from cm3leon.pipeline import CM3Leon
    from tokenizer.image import ImageTokenizer


def add_to(app: typer.Typer) -> None:
    """Name this file's commands, in a group of their own."""
    group = typer.Typer(help="Measure a model.", rich_markup_mode=None)
    for command in (codebook, bits, captions, sheet):
        group.command()(command)
    evaluating_retrieval.add_to(group)
    evaluating_candidates.add_to(group)
    evaluating_reports.add_to(group)
    evaluating_folders.add_to(group)
    evaluating_people.add_to(group)
    evaluating_samples.add_to(group)
    evaluating_ledger.add_to(group)
    app.add_typer(group, name="eval")


def codebook(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A model, or an image tokenizer's folder.")
    ],
    corpus: tables.Corpus,
    split: Annotated[str, typer.Option(help="The tars whose names begin so.")] = "test",
    limit: tables.Limit = None,
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
    found = measure(tokenizer, tars, limit=limit, tally=tally, progress=tables.steps("codebook"))
    tally.tell(options.say)
    if out is not None:
        write_file(out, encode_png(found.sheet(), signature("eval codebook", model_hash)))
    table = {
        kind: {"pictures": str(row.psnr.count), "PSNR, dB": tables.figure_text(row.psnr, 2)}
        | {"codes in use": f"{row.used:.1%}"}
        for kind, row in found.rows.items()
    }
    tables.tell_table(
        context,
        {"model": model_hash, "measured on": tables.place(f"{split} of {corpus.name}", limit)},
        table,
        tables.plain(found.rows),
        as_json,
    )


def bits(
    context: typer.Context,
    model: tables.Model,
    shards: tables.Tokens,
    limit: tables.Limit = None,
    out: tables.Lines = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Bits of pictures given their first caption, and of captions given their picture."""
    from eval.bits import figures, measure
    from tokenizer.shards import Shards

    Shards.open(shards)  # cheap, before the weights
    tables.check_lines(out)
    leon = _open_model(model, device, threads, precision)
    tokens = Shards.open(shards, leon.image_tokenizer.hash, leon.codec.text.hash)
    pairs = measure(leon.model, leon.codec, tokens, limit=limit, progress=tables.steps("bits"))
    tables.write_lines(out, map(dataclasses.asdict, pairs))
    rows = figures(pairs, tokens.grid**2)
    table = {
        kind: {
            "pictures": str(row.picture.count),
            "bits per image token": tables.figure_text(row.image_token, 3),
            "bits per picture": tables.figure_text(row.picture, 1),
            "bits per caption byte": tables.figure_text(row.caption_byte, 3),
        }
        for kind, row in rows.items()
    }
    about = {
        "model": leon.hash,
        "precision": leon.precision,
        "measured on": tables.place(shards.name, limit),
    }
    tables.tell_table(context, about, table, tables.plain(rows), as_json)


def captions(
    context: typer.Context,
    model: tables.Model,
    shards: tables.Tokens,
    limit: tables.Limit = None,
    out: tables.Lines = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """How often a caption names the picture's label and its style."""
    from eval.captions import figures, measure
    from tokenizer.shards import Shards

    Shards.open(shards)  # cheap, before the weights
    tables.check_lines(out)
    leon = _open_model(model, device, threads, precision)
    tokens = Shards.open(shards, leon.image_tokenizer.hash, leon.codec.text.hash)
    said = measure(leon.model, leon.codec, tokens, limit=limit, progress=tables.steps("captions"))
    tables.write_lines(out, map(dataclasses.asdict, said))
    rows = figures(said)
    columns = ("label named", "style named", "both", "exact first caption")
    shares = [tables.share_text(figure) for figure in rows.values()]
    table = {"all": {"pictures": str(len(said)), **dict(zip(columns, shares, strict=True))}}
    about = {
        "model": leon.hash,
        "precision": leon.precision,
        "measured on": tables.place(shards.name, limit),
    }
    tables.tell_table(context, about, table, tables.plain(rows), as_json)


def sheet(
    context: typer.Context,
    model: tables.Model,
    prompts: Annotated[
        Path, typer.Argument(metavar="PROMPTS", help="The sheet: a JSON of pictures and edits.")
    ],
    corpus: tables.Corpus,
    out: Annotated[Path, typer.Option(help="The folder to write the sheets to.")],
    split: Annotated[str, typer.Option(help="The tars whose names begin so.")] = "train",
    device: options.Device = "auto",
    precision: options.Precision = "auto",
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
    leon = _open_model(model, device, threads, precision)
    ids = frozenset(edit.source for edit in chosen.edits)
    sources = find_images(tars, leon.image_tokenizer.size, ids)
    drawn = draw(leon, chosen, sources, tables.steps("sheet"))
    notes = {
        **signature("eval sheet", leon.hash),
        "prompt": f"the sheet with SHA-256 {file_hash(prompts)}",
        "seed": "the number of the picture",
        "settings": json.dumps(dataclasses.asdict(leon.sampling)),
        "precision": leon.precision,
    }
    paths = [str(path) for path in write(out, chosen, drawn, sources, notes)]
    counts = {"pictures": str(len(chosen.pictures)), "edits": str(len(chosen.edits))}
    about = {"model": leon.hash, "precision": leon.precision, "measured on": prompts.name}
    tables.tell_table(context, about, {"all": counts}, {"files": paths}, as_json)
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


def _open_model(
    model: str, device: str, threads: int | None, precision: options.Precision
) -> "CM3Leon":
    from cm3leon.checkpoint import find

    return options.open_model(find(model, options.say), device, threads, precision)
