"""Commands of memories: index build, add, remove, compact, search, info, verify."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cm3leon.cli import options
from cm3leon.cli.output import print_result
from cm3leon.cli.retrieve import DEFAULT, EncoderName, described, find_memory, open_embedder
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


OwnMemory = Annotated[
    Path, typer.Argument(metavar="MEMORY", help="A memory's folder.", callback=_own)
]
AnyMemory = Annotated[
    Path, typer.Argument(metavar="MEMORY", help="A memory's folder; 'default' ships.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Documents of a source, at most.")]


def add_to(app: typer.Typer) -> None:
    """Add the group `index`."""
    group = typer.Typer(help="Build and search a memory of documents.", rich_markup_mode=None)
    options.add(group, build, add, compact, remove, search, info, verify)
    app.add_typer(group, name="index")


def build(
    sources: options.Sources,
    out: Annotated[Path, typer.Option(help="The memory's folder; resumes where it stopped.")],
    encoder: EncoderName = DEFAULT,
    model: options.Model = "default",
    memory_budget: options.Budget = None,
    neighbours: Annotated[
        Path | None,
        typer.Option(
            metavar="SHARDS",
            help="Token shards of the same images: write OUT/neighbours, which training reads.",
        ),
    ] = None,
    least: Annotated[
        float, typer.Option(min=-1, max=1, help="Lowest score that a text query retrieves.")
    ] = -1.0,
    exclude: options.IdList = None,
    limit: Limit = None,
    device: options.Device = "auto",
) -> None:
    """Build a memory of images and their captions, merged into one segment.

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
    memory: OwnMemory,
    sources: options.Sources,
    encoder: EncoderName = DEFAULT,
    model: options.Model = "default",
    exclude: options.IdList = None,
    limit: Limit = None,
    device: options.Device = "auto",
) -> None:
    """Add the documents of more sources to a memory."""
    from retrieval.memory import read_contents

    read_contents(memory)
    _fill(memory, sources, encoder, model, exclude, limit, device)


def remove(
    memory: OwnMemory, ids: Annotated[list[str], typer.Argument(help="Ids of documents.")]
) -> None:
    """Remove documents from a memory."""
    from retrieval.memory import Memory

    left = Memory.open(memory, say=options.say).remove(ids)
    typer.echo(f"{left.count:,} documents")


def compact(memory: OwnMemory, memory_budget: options.Budget = None) -> None:
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


def search(
    memory: AnyMemory,
    text: Annotated[str | None, typer.Argument(help="Text query.")] = None,
    *,
    encoder: EncoderName = DEFAULT,
    image: Annotated[Path | None, typer.Option(help="Image query.")] = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Number of results.")] = 10,
    sheet: Annotated[Path | None, typer.Option(help="PNG of the results to write.")] = None,
    model: options.Model = "default",
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Search a memory by text, by an image, or by both."""
    from retrieval.embed import document_vectors
    from retrieval.memory import Memory

    if text is None and image is None:
        raise typer.BadParameter("give words, or --image IMAGE, or both")
    if text is not None and not text.strip():
        raise UserError("the words to search by are empty; write some, or give --image alone")
    query = None if image is None else options.open_image(image)
    embedder = open_embedder(encoder, device)
    bank = Memory.open(find_memory(memory), embedder.id, say=options.say)
    (found,) = bank.search(document_vectors(embedder, [text], [query]), n)
    rows = [described(bank.row(one.id)[0], one.score) for one in found]
    if sheet is not None:
        _write_sheet(sheet, bank, rows, model)
    lines = [f"{r['score']:.3f}  {r['id']}  {r['caption']}  ({r['licence']})" for r in rows]
    print_result(lines, {"found": rows}, as_json)


def info(memory: AnyMemory, as_json: options.Json = False) -> None:
    """Show what a memory holds."""
    from retrieval.memory import Memory

    bank = Memory.open(find_memory(memory), say=options.say)
    table: dict[str, Any] = {
        "documents": bank.count,
        "removed": sum(len(one.removed) for one in bank.contents.segments),
        "encoder": bank.contents.encoder,
        "dimension": bank.contents.dimension,
        "image tokenizer": bank.contents.codebook.image_tokenizer[:12],
        "near": round(bank.contents.near, 4),
        "least": round(bank.contents.least, 4),
    }
    for entry, segment in zip(bank.contents.segments, bank.segments, strict=True):
        table[entry.name] = (
            f"{segment.rows:,} documents, {segment.kind}, {segment.bytes_per_vector:g} bytes a "
            "vector"
        )
    print_result([f"{name}: {value}" for name, value in table.items()], table, as_json)


def verify(memory: AnyMemory) -> None:
    """Read a whole memory and compare every part with its hash."""
    from retrieval.memory import verify_memory

    contents = verify_memory(find_memory(memory))
    typer.echo(f"{contents.count:,} documents in {len(contents.segments)} segments are whole")


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
    from retrieval.build import add_sources, calibrate, create, fill_together, gather
    from retrieval.memory import TOP, Memory
    from tokenizer.data.sources import find_sources
    from tokenizer.data.tars import Tally, read_ids
    from tokenizer.distributed import distributed_context
    from tokenizer.image import ImageTokenizer

    found = find_sources(names)  # cheap, before weights are read
    left_out = read_ids(exclude) if exclude else frozenset[str]()
    with distributed_context() as dist:
        say, tally, place = dist.named(options.say), Tally(), pick_device(device)
        embedder = open_embedder(encoder, device)
        tokenizer = ImageTokenizer.load(find(model, say) / IMAGE).to(place)

        def fill(bank: "Memory", some: Sequence[str], beside: "Memory | None") -> "Memory":
            return add_sources(
                bank, some, embedder, tokenizer, exclude=left_out, limit=limit, beside=beside,
                device=place, tally=tally, say=say,
            )  # fmt: skip

        if dist.first:
            if new is not None and not (folder / TOP).is_file():
                create(folder, embedder, tokenizer, new)
            gather(Memory.open(folder, embedder.id, tokenizer.hash, say), tally)
        dist.wait()
        bank = Memory.open(folder, embedder.id, tokenizer.hash)
        bank = fill_together(bank, found, dist, fill, tally)
        tally.tell(say)
        if dist.first:
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
    options.say(f"{out}: {served:,} of {len(table_PN):,} images have neighbours")


def _write_sheet(out: Path, bank: "Memory", rows: list[dict[str, Any]], model: str) -> None:
    """Write the images that were found, decoded from their codes."""
    import torch

    from cm3leon.checkpoint import IMAGE, find
    from tokenizer.image import ImageTokenizer
    from tokenizer.manifest import write_file
    from tokenizer.pixels import encode_png, fit, sheet, to_image

    tokenizer = ImageTokenizer.load(find(model, options.say) / IMAGE)
    if tokenizer.hash != bank.contents.codebook.image_tokenizer:
        raise UserError(f"{model} cannot show these codes: they are of another image tokenizer")
    shown = [(row, codes) for row in rows if (codes := bank.row(row["id"])[1])]
    if not shown:
        raise UserError("nothing that was found has an image to show; leave --sheet out")
    codes_BL = torch.tensor([codes for _, codes in shown])
    images = [fit(to_image(pixels_3HW), 128) for pixels_3HW in tokenizer.decode(codes_BL)]
    labels = [f"{row['score']:.3f} {row['caption']}" for row, _ in shown]
    write_file(out, encode_png(sheet(images, 5, labels)))
