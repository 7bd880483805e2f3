"""Options shared by several commands, and how they are resolved.

A command takes groups of options as dataclasses; `command` gives it each of their fields as an
option of its own.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast, get_type_hints

import typer

if TYPE_CHECKING:
    from PIL import Image

    from cm3leon.checkpoint import Task, TaskSampling
    from cm3leon.pipeline import CM3Leon
    from cm3leon.sampling import Sampling

MOST = 64  # samples of one request
LAST_SEED = 2**32 - 1

Device = Annotated[str, typer.Option(help="cpu, cuda, or auto (a GPU if there is one).")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads (default: all cores).")]
Json = Annotated[bool, typer.Option("--json", help="Print one line of JSON.")]
Model = Annotated[
    str, typer.Option(metavar="MODEL", help="A checkpoint folder, 'default' or 'hf:owner/name'.")
]
Seed = Annotated[int, typer.Option(min=0, max=LAST_SEED, help="Random seed.")]
OtherSeed = Annotated[int | None, typer.Option(min=0, max=LAST_SEED, help="Random seed.")]
Count = Annotated[int, typer.Option("-n", min=1, max=MOST, help="Number of samples.")]
OtherCount = Annotated[int | None, typer.Option("-n", min=1, max=MOST, help="Number of samples.")]
Out = Annotated[Path, typer.Option(help="PNG file to write; with -n, the contact sheet.")]
Budget = Annotated[str | None, typer.Option(help="Memory for the index, as 500MB or 2GB.")]
Precision = Literal["auto", "fp32", "bf16", "int8", "int4"]
ImageFile = Annotated[Path, typer.Argument(metavar="IMAGE", help="An image file.")]
Recipe = Annotated[str, typer.Argument(help="Name of a shipped recipe, or a YAML file.")]
Changes = Annotated[
    list[str] | None, typer.Argument(metavar="[NAME=VALUE]...", help="Settings to change.")
]
IdList = Annotated[Path | None, typer.Option(help="File with one image id a line.")]
Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCES",
        help="Tars, a glob of them, a folder of tars, or of images with .txt or .json beside "
        "them; urls of tars, or 'pipe:COMMAND' that writes one; {000..099} is a range.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Weights to load, and the device to run them on."""

    model: Model = "default"
    precision: Annotated[
        Precision | None,
        typer.Option(help="Of the weights (default auto: bf16 on a GPU, fp32 on a CPU)."),
    ] = None
    device: Device = "auto"
    threads: Threads = None

    def open(self, folder: Path, precision: Precision | None = None) -> "CM3Leon":
        """Load the model of a folder: the slow part, after all cheap checks."""
        return open_model(folder, self.device, self.threads, self.precision or precision or "auto")


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """Sampling of tokens; None leaves the model's default."""

    temperature: Annotated[
        float | None, typer.Option(help="Sampling temperature (0 = greedy).")
    ] = None
    top_k: Annotated[int | None, typer.Option(help="Keep the k most likely tokens.")] = None
    top_p: Annotated[
        float | None,
        typer.Option(help="Nucleus sampling: keep the smallest set with this probability mass."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class GuidedSamplingOptions(SamplingOptions):
    """Sampling of an image's tokens from a prompt."""

    cfg_scale: Annotated[
        float | None, typer.Option(help="Classifier-free guidance scale (1 = off).")
    ] = None
    contrastive: Annotated[
        bool | None, typer.Option("--contrastive", help="Contrastive decoding (CD-K), no guidance.")
    ] = None


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Return a command whose parameters that are dataclasses of options are their fields.

    typer sees each field as an option; the function gets the dataclass. Fields keep their order,
    at the place of the parameter.
    """
    groups: dict[str, type] = {}
    parameters: list[inspect.Parameter] = []
    for one in inspect.signature(function, eval_str=True).parameters.values():
        if not dataclasses.is_dataclass(one.annotation):
            parameters.append(one.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        groups[one.name] = cast(type, one.annotation)
        hints = get_type_hints(one.annotation, include_extras=True)
        parameters += [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=(
                    inspect.Parameter.empty
                    if field.default is dataclasses.MISSING
                    else field.default
                ),
                annotation=hints[field.name],
            )
            for field in dataclasses.fields(one.annotation)
        ]

    @functools.wraps(function)
    def run(**given: Any) -> None:
        for name, group in groups.items():
            fields = {field.name: given.pop(field.name) for field in dataclasses.fields(group)}
            given[name] = group(**fields)
        function(**given)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


def add(app: typer.Typer, *functions: Callable[..., None]) -> None:
    """Add functions to an app as commands of their names."""
    for function in functions:
        app.command(function.__name__.rstrip("_").replace("_", "-"))(command(function))


def say(line: str) -> None:
    """Print a line for the user on stderr."""
    typer.echo(line, err=True)


def open_image(path: Path) -> "Image.Image":
    """Open an image file as upright RGB; warn of what had to be left out."""
    from tokenizer.pixels import open_image

    return open_image(path, say)


def with_changes(base: "Sampling", options: SamplingOptions) -> "Sampling":
    """Return a sampling with the options that were given."""
    given = dataclasses.asdict(options)
    return dataclasses.replace(base, **{k: v for k, v in given.items() if v is not None})


def sampling_of(
    model: str, task: "Task", options: SamplingOptions, **more: Any
) -> tuple[Path, "Sampling"]:
    """Return the folder of a model, and its sampling for a task with the options given: checked
    before any weights are read."""
    from cm3leon.checkpoint import find, read_sampling

    folder = find(model, say)
    known = read_sampling(folder)
    if task in known.untrained:
        say(f"{model} was not trained for {task}: expect nothing of the result (cm3leon info)")
    sampling = with_changes(getattr(known, task), options)
    given = {name: value for name, value in more.items() if value is not None}
    return folder, dataclasses.replace(sampling, **given)


def defaults_of(folder: Path) -> "TaskSampling":
    """Return a model's defaults; reads no weights."""
    from cm3leon.checkpoint import read_sampling

    return read_sampling(folder)


def open_model(
    folder: Path, device: str, threads: int | None, precision: Precision = "auto"
) -> "CM3Leon":
    """Load a model."""
    import torch

    from cm3leon.pipeline import CM3Leon

    if threads is not None:
        torch.set_num_threads(threads)
    return CM3Leon.from_pretrained(folder, device=device, precision=precision, say=say)


def bytes_of(text: str | None) -> int | None:
    """Parse a size: `500MB` -> 500,000,000."""
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
