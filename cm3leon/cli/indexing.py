"""Commands that change a memory: index build, add, recode, compact, remove, train-encoder."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cm3leon.cli import options, searching
from cm3leon.cli.retrieving import open_embedder
from cm3leon.cli.searching import Encoder, Folder
from cm3leon.cli.training import Changes, IdList, Minutes, Recipe, Resume, Run

if TYPE_CHECKING:
    from retrieval.embed import Embedder
    from retrieval.memory import Memory
    from tokenizer.image import ImageTokenizer

Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCES...",
        help="Tars, a glob of them, a folder of tars, or of pictures with .txt or .json beside "
        "them; urls of tars, or 'pipe:COMMAND' that writes one; {000..099} is a range.",
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, help="At most so many documents a source.")]
Budget = Annotated[str | None, typer.Option(help="Bytes of the index in memory, as 500MB or 2GB.")]


def add_to(app: typer.Typer) -> None:
    """Name this file's commands and those that look into a memory, in a group of their own."""
    group = typer.Typer(help="Build and search a memory of documents.", rich_markup_mode=None)
    for command in (build, add, remove, compact):
        group.command()(command)
    searching.add_to(group)
    group.command("train-encoder")(train_encoder)
    app.add_typer(group, name="index")


def build(
    sources: Sources,
    out: Annotated[Path, typer.Option(help="The memory's folder; goes on where it stopped.")],
    encoder: Encoder,
    model: options.Model = "default",
    memory_budget: Budget = None,
    exclude: IdList = None,
    limit: Limit = None,
    device: options.Device = "auto",
) -> None:
    """Make a memory of pictures and their captions, merged into one segment."""
    from retrieval.build import add_sources, codebook_of, merge, recall_by_kind
    from retrieval.memory import TOP, Contents, Memory
    from retrieval.retrieve import Rules
    from tokenizer.sources import find_sources
    from tokenizer.tars import Tally, read_ids

    budget, found = _bytes(memory_budget), find_sources(sources)  # cheap, before weights are read
    left_out = read_ids(exclude) if exclude else frozenset[str]()
    embedder, tokenizer, place = _open(encoder, model, device)
    if not (out / TOP).is_file():
        contents = Contents(
            encoder=embedder.id,
            dimension=embedder.dimension,
            codebook=codebook_of(tokenizer),
            near=Rules().near,
        )
        Memory.create(out, contents)
    bank = Memory.open(out, embedder.id, tokenizer.hash, options.say)
    bank = add_sources(
        bank, found, embedder, tokenizer,
        exclude=left_out, limit=limit, device=place, tally=(tally := Tally()), say=options.say,
    )  # fmt: skip
    tally.tell(options.say)
    if bank.count:
        bank = merge(bank, budget)
        (segment,) = bank.segments
        options.say(f"index: {segment.kind}, {segment.bytes_per_vector:g} bytes a vector")
        for name, (at_1, at_10) in recall_by_kind(bank, embedder, tokenizer, place).items():
            options.say(f"recall against exact by {name}: @1 {at_1:.3f}, @10 {at_10:.3f}")
    _calibrate(bank)


def add(
    memory: Folder,
    sources: Sources,
    encoder: Encoder,
    model: options.Model = "default",
    exclude: IdList = None,
    limit: Limit = None,
    device: options.Device = "auto",
) -> None:
    """Add the documents of more sources to a memory, in small segments of their own."""
    from retrieval.build import add_sources
    from retrieval.memory import Memory, read_contents
    from tokenizer.sources import find_sources
    from tokenizer.tars import Tally, read_ids

    read_contents(memory)
    found = find_sources(sources)
    left_out = read_ids(exclude) if exclude else frozenset[str]()
    embedder, tokenizer, place = _open(encoder, model, device)
    bank = Memory.open(memory, embedder.id, tokenizer.hash, options.say)
    bank = add_sources(
        bank, found, embedder, tokenizer,
        exclude=left_out, limit=limit, device=place, tally=(tally := Tally()), say=options.say,
    )  # fmt: skip
    tally.tell(options.say)
    _calibrate(bank)


def remove(
    memory: Folder, ids: Annotated[list[str], typer.Argument(help="Ids of documents.")]
) -> None:
    """Remove documents from a memory."""
    from retrieval.memory import Memory

    left = Memory.open(memory, say=options.say).remove(ids)
    typer.echo(f"{left.count:,} documents")


def compact(
    memory: Folder,
    memory_budget: Budget = None,
) -> None:
    """Merge a memory's segments into one, without what was removed."""
    from retrieval.index import plan
    from retrieval.memory import Memory

    bank = Memory.open(memory, say=options.say)
    kind = plan(bank.count, bank.contents.dimension, _bytes(memory_budget)) if bank.count else None
    bank = bank.compact(kind)
    typer.echo(f"{bank.count:,} documents" + (f", {kind.name}" if kind else ""))


def train_encoder(
    recipe: Recipe,
    changes: Changes = None,
    *,
    out: Run,
    resume: Resume = False,
    device: options.Device = "auto",
    minutes: Minutes = math.inf,
) -> None:
    """Train the encoder that memories are searched by."""
    from train.encoder import main

    typer.echo(main(recipe, changes or [], out, resume, options.say, device, minutes))


def _open(encoder: str, model: str, device: str) -> "tuple[Embedder, ImageTokenizer, Any]":
    """What makes vectors, what makes codes, and the device that they are on."""
    from cm3leon.checkpoint import IMAGE, find
    from cm3leon.pipeline import pick_device
    from tokenizer.image import ImageTokenizer

    place = pick_device(device)
    embedder = open_embedder(encoder, device)
    return embedder, ImageTokenizer.load(find(model, options.say) / IMAGE).to(place), place


def _calibrate(bank: "Memory") -> None:
    from retrieval.build import calibrate

    bank = calibrate(bank)
    options.say(f"near copies score above {bank.contents.near:.4f}")
    typer.echo(f"{bank.count:,} documents")


def _bytes(text: str | None) -> int | None:
    """`500MB` -> 500,000,000."""
    if text is None:
        return None
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
    number, unit = text[:-2], units.get(text[-2:].upper())
    try:
        if unit is None or not float(number) > 0:
            raise ValueError
        return int(float(number) * unit)
    except (ValueError, OverflowError) as error:
        raise typer.BadParameter(f"{text!r} is no size; write it as 500MB or 2GB") from error
