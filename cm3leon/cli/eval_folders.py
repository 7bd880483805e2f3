"""eval folders: the distance of two folders of images, whoever made them."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cm3leon.cli import options
from cm3leon.cli.eval_options import Out, Weights, check_out
from cm3leon.cli.output import MADE_BY, command_line, print_result, progress_lines

if TYPE_CHECKING:
    from eval.report import Report

AGAIN = "give the same command again"
By = Literal["fid", "kid", "mobilenet-distance"]


def add_to(group: typer.Typer) -> None:
    """Add this file's command."""
    options.add(group, folders)


def folders(
    context: typer.Context,
    real: Annotated[Path, typer.Argument(help="Folder of real images.")],
    made: Annotated[Path, typer.Argument(help="Folder of generated images.")],
    weights: Weights = None,
    by: Annotated[By, typer.Option(help="Distance to measure.")] = "fid",
    size: Annotated[
        int | None, typer.Option(min=8, help="Crop and resize all to so many pixels a side.")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes that share the images.")] = 1,
    out: Out = Path("report"),
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Measure the distance of two folders, and precision, recall, density and coverage.

    FID is pytorch-fid's: its network, its resizing, images of one size.
    """
    from eval.metrics.fid import check_folders
    from tokenizer.distributed import distributed_context, is_worker
    from train.launch import Cluster, launch

    check_out(out)
    check_folders(real, made, weights, by, MADE_BY)
    command = command_line(context)
    if processes > 1 and not is_worker():
        words = shlex.split(command)[1:]
        if status := launch(words, out, Cluster(processes=processes), options.say, AGAIN):
            raise typer.Exit(status)
        return
    with distributed_context() as dist:
        report = _measured(command, real, made, weights, by, size, device)
    if dist.first:
        from eval.run import index

        report.write(out)
        print_result([index([report])], report.table(), as_json)


def _measured(
    command: str,
    real: Path,
    made: Path,
    weights: Path | None,
    by: By,
    size: int | None,
    device: str,
) -> "Report":
    import time

    from cm3leon.pipeline import pick_device
    from eval.metrics.fid import of_folders
    from eval.report import Report
    from eval.run import versions

    begun = time.perf_counter()
    found, hashes = of_folders(
        real, made, weights, by, size, pick_device(device), progress_lines("features")
    )
    return Report(
        name="folders",
        values=found.values,
        made_by={"command": command, **hashes, "size": size, "versions": versions()},
        seconds=time.perf_counter() - begun,
        notes=found.notes,
    )
