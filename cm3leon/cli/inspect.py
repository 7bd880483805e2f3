"""The commands that look at things: info, of a picture or of a model; data inspect, of shards."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cm3leon.cli import options
from cm3leon.cli.output import tell
from tokenizer.errors import UserError

if TYPE_CHECKING:
    from tokenizer.data.shards import Shards
    from tokenizer.document import Document

COLUMNS, TOGETHER = 8, 64  # pictures in a row of a sheet, and decoded in one batch


def add_to(app: typer.Typer) -> None:
    """Name this file's command."""
    app.command()(info)


def info(
    thing: Annotated[
        str, typer.Argument(metavar="PICTURE|MODEL", help="A picture file, or a model.")
    ],
    as_json: options.Json = False,
) -> None:
    """Show how a picture was made, or what a model is."""
    of_model = thing == "default" or thing.startswith("hf:") or Path(thing).is_dir()
    table = _of_model(thing) if of_model else _of_picture(Path(thing))
    tell([f"{name}: {value}" for name, value in table.items()], table, as_json)


def _of_picture(path: Path) -> dict[str, Any]:
    from tokenizer.pixels import read_info

    width, height = options.open_picture(path).size
    return {"size": f"{width} x {height}", **read_info(path)}


def _of_model(source: str) -> dict[str, Any]:
    import torch

    from cm3leon.checkpoint import find, hash_of, read_config, read_sampling
    from cm3leon.model import Decoder
    from tokenizer.manifest import verify

    folder = find(source, options.say)
    verify(folder)
    config = read_config(folder)
    with torch.device("meta"):
        parameters = sum(weight.numel() for weight in Decoder(config.model).parameters())
    decoder, picture = config.model, config.picture
    untrained = read_sampling(folder).untrained
    return {
        "folder": str(folder),
        "model": hash_of(folder),
        "parameters": parameters,
        "layers": decoder.layers,
        "width": decoder.width,
        "heads": decoder.heads,
        "context": decoder.context,
        "vocabulary": decoder.vocabulary,
        "text pieces": config.vocabulary.text_pieces,
        "picture": f"{picture.size} x {picture.size} pixels",
        "codes": f"{picture.grid} x {picture.grid} of {config.vocabulary.image_codes}",
        **({"not trained for": ", ".join(untrained)} if untrained else {}),
        **_world(folder / "README.md"),
    }


def _world(card: Path) -> dict[str, str]:
    """What the points "Can", "Cannot" and "Not for" of a model's card say, where it has them."""
    text = card.read_text("utf-8") if card.is_file() else ""
    points = re.findall(r"^- \*\*(Can|Cannot|Not for)\*\*: (.*(?:\n  .*)*)", text, re.MULTILINE)
    return {name.lower(): " ".join(told.split()) for name, told in points}


def inspect(
    shards: Annotated[
        Path, typer.Argument(metavar="SHARDS", help="Token shards, as `data encode` writes them.")
    ],
    count: Annotated[int, typer.Option("-n", min=1, help="How many documents.")] = 8,
    sheet: Annotated[Path | None, typer.Option(help="A PNG of their pictures to write.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="The image tokenizer's folder, for --sheet.")
    ] = None,
) -> None:
    """Show what token shards hold: the counts, and documents as text, evenly from all of them."""
    from tokenizer.data.shards import Shards
    from tokenizer.manifest import check_writable

    if (sheet is None) != (tokenizer is None):
        raise UserError("--sheet and --tokenizer go together: it draws the pictures")
    if sheet is not None:
        check_writable(sheet)
    opened = Shards.open(shards)
    counts = ", ".join(f"{number:,} {name}" for name, number in opened.counts.items())
    typer.echo(counts)
    typer.echo(
        f"{opened.size} x {opened.size} pixels are {opened.grid} x {opened.grid} codes of "
        f"{opened.codes:,}, image tokenizer {opened.image_tokenizer[:12]}"
    )
    if not opened.documents and sheet is not None:
        raise UserError(f"{shards} has no documents whose pictures --sheet could show")
    count = min(count, opened.documents)
    shown: list[str] = []
    for number in (place * opened.documents // count for place in range(count)):
        table = opened.document(number)
        document, names = _document(opened, table)
        typer.echo(f"{number} {table['task']}: {_as_text(document, names)}")
        shown += names
    if sheet is not None and tokenizer is not None:
        _draw(opened, list(dict.fromkeys(shown)), tokenizer, sheet)
        typer.echo(sheet)


def _document(shards: "Shards", table: dict[str, Any]) -> tuple["Document", list[str]]:
    """A document as training words it, with its first caption or instruction, and the ids of its
    pictures."""
    from cm3leon import prompts
    from tokenizer.data.shards import TASKS
    from tokenizer.document import Picture
    from train.data.templates import FORMS, first

    task = table["task"]
    names: list[str] = [table[key] for key in TASKS[task][0]]
    rows = [shards.picture(shards.number_of(name)) for name in names]
    pictures = [Picture(codes) for _, codes in rows]
    if task in FORMS:
        return FORMS[task](table, pictures, first), names
    captions: list[str] = rows[0][0].get("captions") or []
    return prompts.pair(captions[0], pictures[0]) if captions else (pictures[0],), names


def _as_text(document: "Document", names: list[str]) -> str:
    """Its segments with `<break>` between, its pictures as their ids."""
    from tokenizer.document import Field, Picture, segments

    left = iter(names)
    texts: list[str] = []
    for segment in segments(document):
        if isinstance(segment[0], Picture):
            texts.append(f"[{next(left)}]")
        else:
            words = (part.text if isinstance(part, Field) else str(part) for part in segment)
            texts.append("".join(words).strip().replace("\n", "\\n"))  # one document, one line
    return " <break> ".join(texts)


def _draw(shards: "Shards", names: list[str], tokenizer: Path, out: Path) -> None:
    import torch

    from tokenizer.image import ImageTokenizer
    from tokenizer.manifest import write_file
    from tokenizer.pixels import encode_png, sheet, to_image

    decoder = ImageTokenizer.load(tokenizer)
    if decoder.hash != shards.image_tokenizer:
        raise UserError(
            f"{shards.folder} was made with image tokenizer {shards.image_tokenizer[:12]}, this "
            f"one is {decoder.hash[:12]}; name that one"
        )
    codes_BL = torch.tensor([shards.picture(shards.number_of(name))[1] for name in names])
    decoded = (decoder.decode(some_BL) for some_BL in codes_BL.split(TOGETHER))
    pictures = [to_image(pixels_3HW) for pixels_B3HW in decoded for pixels_3HW in pixels_B3HW]
    write_file(out, encode_png(sheet(pictures, COLUMNS, names)))
