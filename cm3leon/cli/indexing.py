"""Commands that change a memory: index build, add, compact, remove, train-encoder."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cm3leon.cli import options, searching
from cm3leon.cli.retrieving import DEFAULT, EncoderName, find_memory, open_embedder
from cm3leon.cli.training import Changes, IdList, Minutes, Recipe, Resume, Run
from tokenizer.errors import UserError

if TYPE_CHECKING:
    from retrieval.embed import Embedder
    from retrieval.memory import Memory
    from tokenizer.data.shards import Shards
    from tokenizer.image import ImageTokenizer


def _own(folder: Path) -> Path:
    if str(folder) == DEFAULT:
        raise UserError(
            f"the memory that ships is not changed; copy {find_memory(folder)} and name the copy, "
            "or build one"
        )
    return folder


Folder = Annotated[Path, typer.Argument(metavar="MEMORY", help="A memory's folder.", callback=_own)]
Limit = Annotated[int | None, typer.Option(min=1, help="At most so many documents a source.")]


def add_to(app: typer.Typer) -> None:
    """Name this file's commands and those that look into a memory, in a group of their own."""
    group = typer.Typer(help="Build and search a memory of documents.", rich_markup_mode=None)
    for command in (build, add, compact, remove):
        group.command()(command)
    searching.add_to(group)
    group.command("train-encoder")(train_encoder)
    app.add_typer(group, name="index")


def build(
    sources: options.Sources,
    out: Annotated[Path, typer.Option(help="The memory's folder; goes on where it stopped.")],
    encoder: EncoderName = DEFAULT,
    model: options.Model = "default",
    memory_budget: options.Budget = None,
    neighbours: Annotated[
        Path | None,
        typer.Option(
            metavar="SHARDS",
            help="Token shards of the same pictures: write OUT/neighbours, which training reads.",
        ),
    ] = None,
    least: Annotated[
        float, typer.Option(min=-1, max=1, help="Words never retrieve what scores below it.")
    ] = -1.0,
    exclude: IdList = None,
    limit: Limit = None,
    device: options.Device = "auto",
) -> None:
    """Make a memory of pictures and their captions, merged into one segment.

    Many processes share the work: python -m torch.distributed.run --nproc-per-node N --module
    cm3leon index build ...
    """
    from retrieval.build import merge, recall_by_kind
    from tokenizer.data.shards import Shards
    from tokenizer.data.sources import find_sources

    budget = options.bytes_of(memory_budget)
    shards = None if neighbours is None else Shards.open(neighbours)

    def finish(
        bank: "Memory", embedder: "Embedder", tokenizer: "ImageTokenizer", place: Any
    ) -> None:
        bank = merge(bank, budget)
        (segment,) = bank.segments
        options.say(f"index: {segment.kind}, {segment.bytes_per_vector:g} bytes a vector")
        for name, (at_1, at_10) in recall_by_kind(bank, embedder, tokenizer, place).items():
            options.say(f"recall against exact by {name}: @1 {at_1:.3f}, @10 {at_10:.3f}")
        if shards is not None:
            _write_neighbours(out / "neighbours", bank, embedder, shards, find_sources(sources))

    _fill(out, sources, encoder, model, exclude, limit, device, finish, new=least)


def add(
    memory: Folder,
    sources: options.Sources,
    encoder: EncoderName = DEFAULT,
    model: options.Model = "default",
    exclude: IdList = None,
    limit: Limit = None,
    device: options.Device = "auto",
) -> None:
    """Add the documents of more sources to a memory, in segments of their own."""
    from retrieval.memory import read_contents

    read_contents(memory)
    _fill(memory, sources, encoder, model, exclude, limit, device)


def remove(
    memory: Folder, ids: Annotated[list[str], typer.Argument(help="Ids of documents.")]
) -> None:
    """Remove documents from a memory."""
    from retrieval.memory import Memory

    left = Memory.open(memory, say=options.say).remove(ids)
    typer.echo(f"{left.count:,} documents")


def compact(
    memory: Folder,
    memory_budget: options.Budget = None,
) -> None:
    """Merge a memory's segments into one, without what was removed."""
    from retrieval.index import plan
    from retrieval.memory import Memory

    bank = Memory.open(memory, say=options.say)
    kind = (
        plan(bank.count, bank.contents.dimension, options.bytes_of(memory_budget))
        if bank.count
        else None
    )
    bank = bank.compact(kind)
    typer.echo(f"{bank.count:,} documents" + (f", {kind.name}" if kind else ""))


def train_encoder(
    recipe: Recipe,
    changes: Changes = None,
    *,
    out: Run,
    resume: Resume = "none",
    device: options.Device = "auto",
    minutes: Minutes = math.inf,
) -> None:
    """Train the encoder that memories are searched by."""
    from train.retriever.contrastive import main

    typer.echo(main(recipe, changes or [], out, resume, options.say, device, minutes))


def _fill(
    folder: Path,
    names: list[str],
    encoder: str,
    model: str,
    exclude: Path | None,
    limit: int | None,
    device: str,
    finish: "Callable[[Memory, Embedder, ImageTokenizer, Any], None] | None" = None,
    *,
    new: float | None = None,
) -> None:
    """Add what the sources hold, in one process or many; the first of them finishes the memory,
    and makes it where it is not there: with `new` as its `Rules.least`."""
    from cm3leon.checkpoint import IMAGE, find
    from cm3leon.pipeline import pick_device
    from retrieval.build import add_sources, calibrate, create
    from retrieval.memory import TOP, Memory
    from retrieval.parts import crew, fill_together, gather
    from tokenizer.data.sources import find_sources
    from tokenizer.data.tars import Tally, read_ids
    from tokenizer.image import ImageTokenizer

    found = find_sources(names)  # cheap, before weights are read
    left_out = read_ids(exclude) if exclude else frozenset[str]()
    with crew() as we:
        say, tally, place = we.said(options.say), Tally(), pick_device(device)
        embedder = open_embedder(encoder, device)
        tokenizer = ImageTokenizer.load(find(model, say) / IMAGE).to(place)

        def fill(bank: "Memory", some: Sequence[str], beside: "Memory | None") -> "Memory":
            return add_sources(
                bank, some, embedder, tokenizer, exclude=left_out, limit=limit, beside=beside,
                device=place, tally=tally, say=say,
            )  # fmt: skip

        if we.rank == 0:
            if new is not None and not (folder / TOP).is_file():
                create(folder, embedder, tokenizer, new)
            gather(Memory.open(folder, embedder.id, tokenizer.hash, say), tally)
        we.wait()
        bank = Memory.open(folder, embedder.id, tokenizer.hash)
        bank = fill_together(bank, found, we, fill, tally)
        tally.tell(say)
        if we.rank == 0:
            bank = calibrate(bank)
            say(f"near copies score above {bank.contents.near:.4f}")
            if finish is not None:
                finish(bank, embedder, tokenizer, place)
            typer.echo(f"{bank.count:,} documents")


def _write_neighbours(
    out: Path, bank: "Memory", embedder: "Embedder", shards: "Shards", sources: Sequence[str]
) -> None:
    from retrieval.neighbours import find_neighbours, write_neighbours
    from retrieval.rules import Rules
    from tokenizer.data.sources import read_source
    from tokenizer.data.tars import Tally, decode

    tally = Tally()
    numbers = {picture["id"]: number for number, picture in enumerate(shards.every_picture())}
    rules = Rules(near=bank.contents.near)
    samples = (sample for source in sources for sample in read_source(source, tally))
    table_PN = find_neighbours(bank, embedder, decode(samples, tally), numbers, rules)
    tally.tell(options.say)
    write_neighbours(out, table_PN, shards, bank)
    served = int((table_PN >= 0).any(axis=1).sum())
    options.say(f"{out}: {served:,} of {len(table_PN):,} pictures have neighbours")
