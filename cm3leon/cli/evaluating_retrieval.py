"""Commands that measure retrieval: eval retrieved, retrieval-sheet, encoder, index."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cm3leon.cli import options, tables
from cm3leon.cli.output import check_out, signature
from cm3leon.cli.retrieving import (
    DEFAULT,
    EncoderName,
    described,
    find_memory,
    open_embedder,
)
from tokenizer.errors import UserError

if TYPE_CHECKING:
    from eval.figures import Figure
    from eval.recall import Embedded
    from eval.retrieval import Row
    from retrieval.embed import Embedder

MOST = 8  # documents in front of a prompt

Bank = Annotated[
    Path, typer.Option("--memory", metavar="MEMORY", help="A memory's folder; 'default' ships.")
]
EncoderFolder = Annotated[
    str, typer.Argument(metavar="ENCODER", help="What makes vectors, as of --encoder.")
]
Split = Annotated[str, typer.Option(help="The tars whose names begin so.")]


def add_to(group: typer.Typer) -> None:
    """Name this file's commands in the group of all that measure."""
    for command in (retrieved, encoder, index):
        group.command()(command)
    group.command("retrieval-sheet")(sheet)


def retrieved(
    context: typer.Context,
    model: tables.Model,
    shards: tables.Tokens,
    *,
    memory: Bank,
    encoder: EncoderName = DEFAULT,
    retrieve: Annotated[
        str, typer.Option(metavar="K,K", help="How many documents; none is measured too.")
    ] = "1,2",
    limit: tables.Limit = None,
    out: tables.Lines = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Bits of pictures given their first caption, with documents found by it, with as many random
    ones of the picture's kind, and with none."""
    from cm3leon.checkpoint import find, read_config
    from eval.retrieval import conditions, figures, measure
    from retrieval.memory import Memory
    from tokenizer.shards import Shards

    counts = _counts(retrieve)
    place = _with_room(memory, max(counts))
    tables.check_lines(out)
    folder = find(model, options.say)
    codebook = read_config(folder).image_tokenizer
    tokens = Shards.open(shards, codebook)
    embedder = open_embedder(encoder, device)
    bank = Memory.open(place, embedder.id, codebook, options.say)
    leon = options.open_model(folder, device, threads)
    wanted = conditions(counts)
    scored = measure(
        leon.model,
        leon.codec,
        tokens,
        bank,
        embedder,
        wanted,
        limit=limit,
        progress=tables.steps("retrieval"),
    )
    tables.write_lines(out, map(dataclasses.asdict, scored))
    rows = figures(scored, wanted, tokens.grid**2)
    about = {
        "model": leon.hash,
        "memory": f"{bank.count:,} documents, vectors of {embedder.id}",
        "measured on": tables.place(shards.name, limit),
        "figures": "bits per image token ± half of the 95% interval over pictures",
    }
    tables.tell_table(context, about, _turned(rows), tables.plain(rows), as_json)


def sheet(
    context: typer.Context,
    model: tables.Model,
    prompts: Annotated[
        Path, typer.Argument(metavar="PROMPTS", help="The sheet: a JSON of pictures and edits.")
    ],
    *,
    memory: Bank,
    encoder: EncoderName = DEFAULT,
    retrieve: Annotated[int, typer.Option(min=1, max=MOST, help="Documents to retrieve.")] = 2,
    limit: Annotated[int, typer.Option(min=1, help="At most so many prompts.")] = 24,
    out: Annotated[Path, typer.Option(help="The PNG to write.")],
    device: options.Device = "auto",
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Paint the fixed sheet's prompts twice, with nothing in front and with documents, and show
    both beside what was retrieved."""
    from cm3leon.checkpoint import find, read_config
    from eval.beside import draw, picture
    from eval.figures import evenly
    from eval.sheet import Chosen
    from retrieval.memory import Memory
    from tokenizer.manifest import file_hash, write_file
    from tokenizer.pixels import encode_png

    pictures = Chosen.read(prompts).pictures
    chosen = [pictures[place] for place in evenly(range(len(pictures)), limit)]
    place = _with_room(memory, retrieve)
    check_out(out, 1)
    folder = find(model, options.say)
    embedder = open_embedder(encoder, device)
    codebook = read_config(folder).image_tokenizer
    bank = Memory.open(place, embedder.id, codebook, options.say)
    leon = options.open_model(folder, device, threads)
    drawn = draw(leon, bank, embedder, chosen, retrieve, tables.steps("sheet"))
    notes = {
        **signature("eval retrieval-sheet", leon.hash),
        "prompt": f"the sheet with SHA-256 {file_hash(prompts)}",
        "seed": "the number of the picture",
        "settings": json.dumps(dataclasses.asdict(leon.sampling)),
    }
    write_file(out, encode_png(picture(drawn, retrieve), notes))
    about = {
        "model": leon.hash,
        "memory": f"{bank.count:,} documents, vectors of {embedder.id}",
        "measured on": prompts.name,
        "file": str(out),
    }
    fewer = sum(len(one.found) < retrieve for one in drawn)
    table = {"all": {"prompts": str(len(drawn)), f"fewer than {retrieve} retrieved": str(fewer)}}
    told = [
        {"number": one.prompt.number, "prompt": one.prompt.prompt}
        | {"retrieved": [described(found.metadata, found.score) for found in one.found]}
        for one in drawn
    ]
    tables.tell_table(context, about, table, {"prompts": told}, as_json)


def encoder(
    context: typer.Context,
    encoder: EncoderFolder,
    corpus: tables.Corpus,
    split: Split = "test",
    limit: tables.Limit = None,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """How often a caption finds a picture that carries it, and a picture a caption of its own."""
    from eval.recall import AT, measure
    from tokenizer.tars import find_tars

    tars = find_tars(corpus, f"{split}-")
    embedder = open_embedder(encoder, device)
    rows = measure(_embed(embedder, tars, limit))
    table = {
        kind: {
            "pictures": f"{row.to_picture[1].count:,}",
            **{f"caption to picture @{at}": tables.share_text(row.to_picture[at]) for at in AT},
            **{f"picture to caption @{at}": tables.share_text(row.to_caption[at]) for at in AT},
        }
        for kind, row in rows.items()
    }
    about = {
        "encoder": embedder.id,
        "measured on": tables.place(f"{split} of {corpus.name}", limit),
        "candidates": "all pictures of all kinds; their different first captions",
    }
    tables.tell_table(context, about, table, tables.plain(rows), as_json)


def index(
    context: typer.Context,
    memory: Annotated[
        Path, typer.Argument(metavar="MEMORY", help="A memory's folder; 'default' ships.")
    ],
    corpus: tables.Corpus,
    *,
    encoder: EncoderName = DEFAULT,
    memory_budget: options.Budget,
    split: Split = "test",
    limit: tables.Limit = None,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Recall of an index that fits a budget of memory, against exact search of the same vectors."""
    from eval.recall import of_index
    from retrieval.index import plan
    from retrieval.memory import Memory, read_contents
    from tokenizer.tars import find_tars

    place = find_memory(memory)
    contents = read_contents(place)
    kind = plan(contents.count, contents.dimension, options.bytes_of(memory_budget))
    tars = find_tars(corpus, f"{split}-")
    embedder = open_embedder(encoder, device)
    bank = Memory.open(place, embedder.id, say=options.say)
    found = _embed(embedder, tars, limit)
    shares = of_index(bank, kind, found)
    table = {
        name: {
            "queries": f"{len(found.kinds):,}",
            **{f"recall@{at}": f"{share:.1%}" for at, share in row.items()},
        }
        for name, row in shares.items()
    }
    about = {
        "encoder": embedder.id,
        "memory": f"{bank.count:,} documents",
        "index": f"{kind.name}, {kind.bytes_per_vector:.1f} bytes a vector",
        "measured on": tables.place(f"{split} of {corpus.name}", limit),
    }
    tables.tell_table(context, about, table, shares, as_json)


def _with_room(memory: Path, count: int) -> Path:
    """Where a memory lies that has at least `count` documents; looked at before all else."""
    from retrieval.memory import read_contents

    folder = find_memory(memory)
    there = read_contents(folder).count
    if count > there:
        raise UserError(f"--retrieve is {count}, but {memory} has {there} documents")
    return folder


def _turned(rows: dict[str, "Row"]) -> dict[str, dict[str, str]]:
    """A line for each figure, a column for each kind of picture."""
    first = next(iter(rows.values()))
    table = {"pictures": {kind: f"{row.bits['none'].count:,}" for kind, row in rows.items()}}
    for name in first.bits:
        table[name] = {kind: _with_margin(row.bits[name]) for kind, row in rows.items()}
    for name in first.differences:
        table[name] = {kind: _with_margin(row.differences[name]) for kind, row in rows.items()}
    for name in first.fewer:
        line = {kind: f"{row.fewer[name]:,}" for kind, row in rows.items()}
        table[f"fewer than {name}"] = line
    return table


def _embed(embedder: "Embedder", tars: Sequence[Path], limit: int | None) -> "Embedded":
    """The vectors of a split's pictures and captions."""
    from eval.recall import embed
    from tokenizer.tars import Tally

    tally = Tally()
    found = embed(embedder, tars, limit=limit, tally=tally, progress=tables.steps("embedding"))
    tally.tell(options.say)
    return found


def _with_margin(figure: "Figure") -> str:
    margin = "" if figure.margin is None else f" ± {figure.margin:.3f}"
    return f"{figure.value:.3f}{margin}"


def _counts(text: str) -> list[int]:
    """`1,2` -> [1, 2]."""
    try:
        counts = [int(word) for word in text.split(",")]
    except ValueError:
        counts = [-1]
    if not all(0 <= count <= MOST for count in counts) or not any(counts):
        raise typer.BadParameter(
            f"--retrieve is {text!r}; write numbers of documents up to {MOST}, as 1,2"
        )
    return counts
