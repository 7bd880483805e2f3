"""The command that looks at things: info, of a picture or of a model."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cm3leon.cli import options
from cm3leon.cli.output import tell


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

    from cm3leon.checkpoint import find, hash_of, read_config
    from cm3leon.model import Decoder
    from tokenizer.manifest import verify

    folder = find(source, options.say)
    verify(folder)
    config = read_config(folder)
    with torch.device("meta"):
        parameters = sum(weight.numel() for weight in Decoder(config.model).parameters())
    decoder, picture = config.model, config.picture
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
    }
