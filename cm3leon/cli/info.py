"""The command that describes an image or a model: info."""

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from cm3leon.cli import options
from cm3leon.cli.output import print_result


def add_to(app: typer.Typer) -> None:
    """Add this file's command."""
    options.add(app, info)


def info(
    thing: Annotated[str, typer.Argument(metavar="IMAGE|MODEL", help="An image file, or a model.")],
    as_json: options.Json = False,
) -> None:
    """Show how an image was generated, or what a model is."""
    of_model = thing == "default" or thing.startswith("hf:") or Path(thing).is_dir()
    table = _of_model(thing) if of_model else _of_image(Path(thing))
    print_result([f"{name}: {value}" for name, value in table.items()], table, as_json)


def _of_image(path: Path) -> dict[str, Any]:
    from tokenizer.pixels import read_info

    width, height = options.open_image(path).size
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
        "image": f"{picture.size} x {picture.size} pixels",
        "codes": f"{picture.grid} x {picture.grid} of {config.vocabulary.image_codes}",
        **({"not trained for": ", ".join(untrained)} if untrained else {}),
        **_purpose(folder / "README.md"),
    }


def _purpose(card: Path) -> dict[str, str]:
    """Return the points "Can", "Cannot" and "Not for" of a model's card, where it has them."""
    text = card.read_text("utf-8") if card.is_file() else ""
    points = re.findall(r"^- \*\*(Can|Cannot|Not for)\*\*: (.*(?:\n  .*)*)", text, re.MULTILINE)
    return {name.lower(): " ".join(told.split()) for name, told in points}
