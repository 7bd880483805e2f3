"""Commands that train: train, with pretrain and tune as names of it; export."""

import math
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from cm3leon.cli import options
from cm3leon.cli.options import Changes, Recipe
from cm3leon.cli.output import command_line
from tokenizer.errors import UserError

Init = Annotated[str | None, typer.Option(help="Model whose weights to start from.")]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """A run's folder, and how it goes on."""

    out: Annotated[Path, typer.Option(help="The run's folder; for a text tokenizer, its file.")]
    resume: Annotated[
        str, typer.Option(metavar="latest|STEP|none", help="State of --out to resume from.")
    ] = "none"
    device: options.Device = "auto"
    minutes: Annotated[
        float,
        typer.Option(min=0, show_default=False, help="Save and stop after so many minutes."),
    ] = math.inf


@dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """The processes of a run; the command is typed on each machine."""

    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes a machine (default: one a GPU).")
    ] = None
    nodes: Annotated[int, typer.Option(min=1, help="Number of machines.")] = 1
    node_rank: Annotated[int, typer.Option(min=0, help="Number of this machine.")] = 0
    master_addr: Annotated[str | None, typer.Option(help="Name of the first machine.")] = None
    master_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port of the first machine.")
    ] = None
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the commands of the processes only.")
    ] = False


def add_to(app: typer.Typer) -> None:
    """Add this file's commands."""
    options.add(app, train, pretrain, tune, export)


def train(
    context: typer.Context,
    recipe: Recipe,
    changes: Changes = None,
    *,
    run: RunOptions,
    init: Init = None,
    launch: LaunchOptions,
) -> None:
    """Train what a recipe says: a decoder, a tokenizer or the retriever's encoder."""
    from train import config

    job = config.job_of(recipe)
    if init is not None and job != "pretrain":
        raise UserError(f"--init is of a decoder's recipe; {recipe} trains another thing ({job})")
    given = changes or []
    result: Path | None
    match job:
        case "pretrain":
            return _decoder(context, recipe, given, run, init, launch)
        case "image-tokenizer":
            from train.tokenizers.image import check, main

            if _launched(context, run, launch, lambda size: check(recipe, given, size)):
                return
            result = main(recipe, given, run.out, run.resume, options.say, run.device, run.minutes)
        case "text-tokenizer":
            from train.tokenizers.text import main as train_text

            if run != RunOptions(out=run.out) or launch != LaunchOptions():
                raise UserError("a text tokenizer is trained in one go: leave all but --out out")
            result = train_text(recipe, given, run.out, options.say)
        case _:
            from train.retriever.contrastive import main as train_encoder

            if launch != LaunchOptions():
                raise UserError("the encoder is trained in one process: leave --processes out")
            result = train_encoder(
                recipe, given, run.out, run.resume, options.say, run.device, run.minutes
            )
    if result is not None:
        typer.echo(result)


def pretrain(
    context: typer.Context,
    recipe: Recipe,
    changes: Changes = None,
    *,
    run: RunOptions,
    init: Init = None,
    launch: LaunchOptions,
) -> None:
    """Train a decoder from token shards, in one process or many."""
    _decoder(context, recipe, changes or [], run, init, launch)


def tune(
    context: typer.Context,
    recipe: Recipe,
    changes: Changes = None,
    *,
    run: RunOptions,
    init: Annotated[str, typer.Option(help="Model to tune.")] = "default",
    launch: LaunchOptions,
) -> None:
    """Train a finished model further, on a recipe of its own."""
    _decoder(context, recipe, changes or [], run, init, launch)


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a decoder's run.")],
    out: Annotated[Path, typer.Option(help="Model folder to write.")],
    step: Annotated[str, typer.Option(metavar="latest|STEP", help="State to export.")] = "latest",
    weights: Annotated[
        Literal["fp32", "fp16", "int8"], typer.Option(help="Format of the stored weights.")
    ] = "fp16",
) -> None:
    """Export a run's state as a model folder."""
    from train.export import main

    typer.echo(main(run, out, step=step, stored=weights, say=options.say))


def _decoder(
    context: typer.Context,
    recipe: str,
    changes: list[str],
    run: RunOptions,
    init: str | None,
    launch: LaunchOptions,
) -> None:
    from train.pretrain import check, main

    if _launched(context, run, launch, lambda size: check(recipe, changes, init, size)):
        return
    made = main(recipe, changes, run.out, run.resume, init, options.say, run.device, run.minutes)
    if made is not None:
        typer.echo(made)


def _launched(
    context: typer.Context, run: RunOptions, where: LaunchOptions, check: Callable[[int], None]
) -> bool:
    """Start the same command in the processes of the cluster; return False where this process is to
    do the work. `check(size)` refuses what is known to be wrong before anything starts."""
    from dataclasses import asdict, replace

    from train.launch import Cluster, launch, needs_launch

    if run.device == "cpu" and where.processes is None:
        where = replace(where, processes=1)
    cluster = Cluster(**asdict(where))
    if not needs_launch(cluster):
        return False
    check(cluster.size)
    words = [word for word in shlex.split(command_line(context))[1:] if word != "--dry-run"]
    if status := launch(words, run.out, cluster, options.say):
        raise typer.Exit(status)
    return True
