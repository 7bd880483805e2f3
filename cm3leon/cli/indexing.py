"""Commands of memories: index build, add, remove, search, info, verify, compact, train-encoder."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cm3leon.cli import options
from cm3leon.cli.output import tell
from cm3leon.cli.retrieving import described, open_embedder
from cm3leon.cli.training import Changes, IdList, Minutes, Recipe, Resume, Run
from tokenizer.errors import UserError

if TYPE_CHECKING:
    from retrieval.embed import Embedder
    from retrieval.memory import Memory

Folder = Annotated[Path, typer.Argument(metavar="MEMORY", help="A memory's folder.")]
Tars = Annotated[str, typer.Argument(help="WebDataset tars: a folder or a pattern.")]
Encoder = Annotated[
    str,
    typer.Option(
        metavar="ENCODER", help="A folder of `index train-encoder`, or of a CLIP; or hf:owner/name."
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, help="At most so many documents of each tar.")]


def add_to(app: typer.Typer) -> None:
    """Name this file's commands, in a group of their own."""
    group = typer.Typer(help="Build and search a memory of documents.", rich_markup_mode=None)
    for command in (build, add, remove, search, info, verify, compact):
        group.command()(command)
    group.command("train-encoder")(train_encoder)
    app.add_typer(group, name="index")


def build(
    tars: Tars,
    out: Annotated[Path, typer.Option(help="The memory's folder; goes on where it stopped.")],
    encoder: Encoder,
    model: options.Model = "default",
    exclude: IdList = None,
    limit: Limit = None,
    device: options.Device = "auto",
) -> None:
    """Make a memory of pictures and their captions."""
    from cm3leon.checkpoint import IMAGE, find
    from retrieval.build import codebook_of
    from retrieval.memory import TOP, Contents, Memory
    from retrieval.retrieve import Rules
    from tokenizer.image import ImageTokenizer
    from tokenizer.tars import find_tars

    find_tars(tars)  # cheap, before anything is loaded
    embedder = open_embedder(encoder, device)
    image_tokenizer = ImageTokenizer.load(find(model, options.say) / IMAGE)
    if not (out / TOP).is_file():
        contents = Contents(
            encoder=embedder.id,
            dimension=embedder.dimension,
            codebook=codebook_of(image_tokenizer),
            near=Rules().near,
        )
        Memory.create(out, contents)
    _add(out, tars, embedder, image_tokenizer, exclude, limit)


def add(
    memory: Folder,
    tars: Tars,
    encoder: Encoder,
    model: options.Model = "default",
    exclude: IdList = None,
    limit: Limit = None,
    device: options.Device = "auto",
) -> None:
    """Add the documents of more tars to a memory."""
    from cm3leon.checkpoint import IMAGE, find
    from retrieval.memory import read_contents
    from tokenizer.image import ImageTokenizer

    read_contents(memory)
    image_tokenizer = ImageTokenizer.load(find(model, options.say) / IMAGE)
    _add(memory, tars, open_embedder(encoder, device), image_tokenizer, exclude, limit)


def remove(
    memory: Folder, ids: Annotated[list[str], typer.Argument(help="Ids of documents.")]
) -> None:
    """Remove documents from a memory."""
    from retrieval.memory import Memory

    left = Memory.open(memory, say=options.say).remove(ids)
    typer.echo(f"{left.count:,} documents")


def search(
    memory: Folder,
    text: Annotated[str | None, typer.Argument(help="Words to search by.")] = None,
    *,
    encoder: Encoder,
    image: Annotated[Path | None, typer.Option(help="A picture to search by.")] = None,
    n: Annotated[int, typer.Option("-n", min=1, help="How many to show.")] = 10,
    sheet: Annotated[Path | None, typer.Option(help="A PNG of what was found to write.")] = None,
    model: options.Model = "default",
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Search a memory by words, by a picture, or by both."""
    from retrieval.embed import document_vectors

    if text is None and image is None:
        raise typer.BadParameter("give words, or --image PICTURE, or both")
    if text is not None and not text.strip():
        raise UserError("the words to search by are empty; write some, or give --image alone")
    picture = None if image is None else options.open_picture(image)
    embedder = open_embedder(encoder, device)
    bank = _open(memory, embedder)
    (found,) = bank.search(document_vectors(embedder, [text], [picture]), n)
    rows = [described(bank.row(one.id)[0], one.score) for one in found]
    if sheet is not None:
        _write_sheet(sheet, bank, rows, model)
    lines = [f"{r['score']:.3f}  {r['id']}  {r['caption']}  ({r['licence']})" for r in rows]
    tell(lines, {"found": rows}, as_json)


def info(memory: Folder, as_json: options.Json = False) -> None:
    """Show what a memory holds."""
    from retrieval.memory import Memory

    bank = Memory.open(memory, say=options.say)
    table: dict[str, Any] = {
        "documents": bank.count,
        "removed": sum(len(one.removed) for one in bank.contents.segments),
        "encoder": bank.contents.encoder,
        "dimension": bank.contents.dimension,
        "image tokenizer": bank.contents.codebook.image_tokenizer[:12],
        "near": round(bank.contents.near, 4),
    }
    for entry, segment in zip(bank.contents.segments, bank.segments, strict=True):
        table[entry.name] = (
            f"{segment.rows:,} documents, {segment.kind}, {segment.bytes_per_vector:g} bytes a "
            "vector"
        )
    tell([f"{name}: {value}" for name, value in table.items()], table, as_json)


def verify(memory: Folder) -> None:
    """Read a memory whole and compare every part with its hash."""
    from retrieval.memory import verify_memory

    contents = verify_memory(memory)
    typer.echo(f"{contents.count:,} documents in {len(contents.segments)} segments are whole")


def compact(
    memory: Folder,
    memory_budget: options.Budget = None,
) -> None:
    """Merge a memory's segments into one, without what was removed."""
    from retrieval.index import plan
    from retrieval.memory import Memory

    bank = Memory.open(memory, say=options.say)
    budget = options.bytes_of(memory_budget)
    kind = plan(bank.count, bank.contents.dimension, budget) if bank.count else None
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


def _open(folder: Path, embedder: "Embedder", image_tokenizer: str | None = None) -> "Memory":
    from retrieval.memory import Memory

    return Memory.open(folder, embedder.id, image_tokenizer, options.say)


def _add(
    folder: Path,
    tars: str,
    embedder: "Embedder",
    image_tokenizer: Any,
    exclude: Path | None,
    limit: int | None,
) -> None:
    from retrieval.build import add_tars, calibrate
    from tokenizer.tars import Tally, find_tars, read_ids

    tally = Tally()
    bank = add_tars(
        _open(folder, embedder, image_tokenizer.hash),
        find_tars(tars),
        embedder,
        image_tokenizer,
        exclude=read_ids(exclude) if exclude else frozenset(),
        limit=limit,
        tally=tally,
        say=options.say,
    )
    tally.tell(options.say)
    bank = calibrate(bank)
    options.say(f"near copies score above {bank.contents.near:.4f}")
    typer.echo(f"{bank.count:,} documents")


def _write_sheet(out: Path, bank: "Memory", rows: list[dict[str, Any]], model: str) -> None:
    """The pictures that were found, as the codebook gives them back."""
    import torch

    from cm3leon.checkpoint import IMAGE, find
    from tokenizer.image import ImageTokenizer
    from tokenizer.manifest import write_file
    from tokenizer.pixels import encode_png, fit, sheet, to_image

    tokenizer = ImageTokenizer.load(find(model, options.say) / IMAGE)
    if tokenizer.hash != bank.contents.codebook.image_tokenizer:
        raise UserError(f"{model} cannot show these codes: they are of another image tokenizer")
    codes_BL = torch.tensor([bank.row(row["id"])[1] for row in rows])
    pictures = [fit(to_image(pixels_3HW), 128) for pixels_3HW in tokenizer.decode(codes_BL)]
    labels = [f"{row['score']:.3f} {row['caption']}" for row in rows]
    write_file(out, encode_png(sheet(pictures, 5, labels)))
