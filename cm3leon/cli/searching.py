"""Commands that look into a memory and change nothing: index search, info, verify."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cm3leon.cli import options
from cm3leon.cli.output import tell
from cm3leon.cli.retrieving import DEFAULT, EncoderName, described, find_memory, open_embedder
from tokenizer.errors import UserError

if TYPE_CHECKING:
    from retrieval.memory import Memory

Folder = Annotated[
    Path, typer.Argument(metavar="MEMORY", help="A memory's folder; 'default' ships.")
]


def add_to(group: typer.Typer) -> None:
    """Name this file's commands."""
    for command in (search, info, verify):
        group.command()(command)


def search(
    memory: Folder,
    text: Annotated[str | None, typer.Argument(help="Words to search by.")] = None,
    *,
    encoder: EncoderName = DEFAULT,
    image: Annotated[Path | None, typer.Option(help="A picture to search by.")] = None,
    n: Annotated[int, typer.Option("-n", min=1, help="How many to show.")] = 10,
    sheet: Annotated[Path | None, typer.Option(help="A PNG of what was found to write.")] = None,
    model: options.Model = "default",
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Search a memory by words, by a picture, or by both."""
    from retrieval.embed import document_vectors
    from retrieval.memory import Memory

    if text is None and image is None:
        raise typer.BadParameter("give words, or --image PICTURE, or both")
    if text is not None and not text.strip():
        raise UserError("the words to search by are empty; write some, or give --image alone")
    picture = None if image is None else options.open_picture(image)
    embedder = open_embedder(encoder, device)
    bank = Memory.open(find_memory(memory), embedder.id, say=options.say)
    (found,) = bank.search(document_vectors(embedder, [text], [picture]), n)
    rows = [described(bank.row(one.id)[0], one.score) for one in found]
    if sheet is not None:
        _write_sheet(sheet, bank, rows, model)
    lines = [f"{r['score']:.3f}  {r['id']}  {r['caption']}  ({r['licence']})" for r in rows]
    tell(lines, {"found": rows}, as_json)


def info(memory: Folder, as_json: options.Json = False) -> None:
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
    tell([f"{name}: {value}" for name, value in table.items()], table, as_json)


def verify(memory: Folder) -> None:
    """Read a memory whole and compare every part with its hash."""
    from retrieval.memory import verify_memory

    contents = verify_memory(find_memory(memory))
    typer.echo(f"{contents.count:,} documents in {len(contents.segments)} segments are whole")


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
    shown = [(row, codes) for row in rows if (codes := bank.row(row["id"])[1])]
    if not shown:
        raise UserError("nothing that was found has a picture to show; leave --sheet out")
    codes_BL = torch.tensor([codes for _, codes in shown])
    pictures = [fit(to_image(pixels_3HW), 128) for pixels_3HW in tokenizer.decode(codes_BL)]
    labels = [f"{row['score']:.3f} {row['caption']}" for row, _ in shown]
    write_file(out, encode_png(sheet(pictures, 5, labels)))
