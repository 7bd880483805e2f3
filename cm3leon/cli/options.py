"""The options that several commands share, and what becomes of them."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from PIL import Image

    from cm3leon.checkpoint import Task, TaskSampling
    from cm3leon.pipeline import CM3Leon
    from cm3leon.sampling import Sampling

MOST = 64  # samples of one request
LAST_SEED = 2**32 - 1

Model = Annotated[
    str, typer.Option(metavar="MODEL", help="A checkpoint folder, 'default' or 'hf:owner/name'.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto: a GPU where there is one.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; all cores if not given.")]
_SEED = typer.Option(min=0, max=LAST_SEED, help="Another number, another result.")
_COUNT = typer.Option("-n", min=1, max=MOST, help="How many samples.")
Seed = Annotated[int, _SEED]
OtherSeed = Annotated[int | None, _SEED]  # where a picture's notes may say it
Count = Annotated[int, _COUNT]
OtherCount = Annotated[int | None, _COUNT]
Out = Annotated[Path, typer.Option(help="The PNG to write; with -n, the contact sheet's name.")]
Json = Annotated[bool, typer.Option("--json", help="One line of JSON on stdout.")]
_PRECISION = typer.Option(
    help="Of the weights: auto is bf16 on a GPU and fp32 on a CPU; int8 and int4 are quicker and "
    "less exact."
)
_Precision = Literal["auto", "fp32", "bf16", "int8", "int4"]
Precision = Annotated[_Precision, _PRECISION]
OtherPrecision = Annotated[_Precision | None, _PRECISION]
Temperature = Annotated[
    float | None, typer.Option(help="Boldness of the draws; 0 takes the likeliest.")
]
TopK = Annotated[int | None, typer.Option(help="Draw from the k likeliest only.")]
TopP = Annotated[float | None, typer.Option(help="Draw from the likeliest that hold this share.")]
Budget = Annotated[str | None, typer.Option(help="Bytes of the index in memory, as 500MB or 2GB.")]
PictureFile = Annotated[Path, typer.Argument(metavar="PICTURE", help="A picture file.")]
Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCES",
        help="Tars, a glob of them, a folder of tars, or of pictures with .txt or .json beside "
        "them; urls of tars, or 'pipe:COMMAND' that writes one; {000..099} is a range.",
    ),
]


def say(line: str) -> None:
    """A line for the user beside the result."""
    typer.echo(line, err=True)


def open_picture(path: Path) -> "Image.Image":
    """A picture file as upright RGB; what had to be left out of it is said aloud."""
    from tokenizer.pixels import open_image

    return open_image(path, say)


def with_changes(base: "Sampling", **given: float | int | bool | None) -> "Sampling":
    """A sampling with the options that were given; None leaves the default."""
    return dataclasses.replace(base, **{k: v for k, v in given.items() if v is not None})


def sampling_of(
    model: str, task: "Task", **given: float | int | bool | None
) -> tuple[Path, "Sampling"]:
    """Where a model lies, and its sampling for a task with the options given: checked before any
    weights are read."""
    from cm3leon.checkpoint import find, read_sampling

    folder = find(model, say)
    known = read_sampling(folder)
    if task in known.untrained:
        say(f"{model} was not trained for {task}: expect nothing of the result (cm3leon info)")
    return folder, with_changes(getattr(known, task), **given)


def habits_of(folder: Path) -> "TaskSampling":
    """What a model does when the user does not say; reads no weights."""
    from cm3leon.checkpoint import read_sampling

    return read_sampling(folder)


def open_model(
    folder: Path, device: str, threads: int | None, precision: Precision = "auto"
) -> "CM3Leon":
    """Read the weights: the dear part, after all cheap checks."""
    import torch

    from cm3leon.pipeline import CM3Leon

    if threads is not None:
        torch.set_num_threads(threads)
    return CM3Leon.from_pretrained(folder, device=device, precision=precision, say=say)


def bytes_of(text: str | None) -> int | None:
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
