"""eval folders: how far two folders of pictures lie apart, whoever made them."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cm3leon.cli import options, tables
from cm3leon.cli.evaluating_reports import Folder, Weights, check_out
from cm3leon.cli.output import MADE_BY, tell

if TYPE_CHECKING:
    from eval.report import Report

AGAIN = "give the same command again"

Pictures = Annotated[Path, typer.Argument(help="A folder of real pictures.")]
Made = Annotated[Path, typer.Argument(help="A folder of pictures that were made.")]
By = Annotated[
    Literal["fid", "kid", "mobilenet-distance"], typer.Option(help="The distance to measure.")
]
Size = Annotated[
    int | None, typer.Option(min=8, help="Crop and resize all to so many pixels a side.")
]
Processes = Annotated[int, typer.Option(min=1, help="So many share the pictures.")]


def add_to(group: typer.Typer) -> None:
    """Name this file's command in the group of all that measure."""
    group.command()(folders)


def folders(
    context: typer.Context,
    real: Pictures,
    made: Made,
    weights: Weights = None,
    by: By = "fid",
    size: Size = None,
    processes: Processes = 1,
    out: Folder = Path("report"),
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """The distance of two folders of pictures, and precision, recall, density and coverage. FID is
    pytorch-fid's: its network, its resizing, pictures of one size."""
    from eval.metrics.distribution import check_folders
    from retrieval.parts import is_worker
    from train.launch import Cluster, launch

    check_out(out)
    check_folders(real, made, weights, by, MADE_BY)
    if processes > 1 and not is_worker():
        words = ["eval", "folders", str(real), str(made), "--by", by, "--out", str(out)]
        words += ["--weights", str(weights), "--device", device]
        words += [] if size is None else ["--size", str(size)]
        if status := launch(words, out, Cluster(processes=processes), options.say, AGAIN):
            raise typer.Exit(status)
        return
    with _joined() as first:
        report = _measured(tables.command(context), real, made, weights, by, size, device)
    if first:
        from eval.run import index

        report.write(out)
        tell([index([report])], report.table(), as_json)


@contextmanager
def _joined() -> Generator[bool]:
    """The group of all processes, where there are several; whether this is the first."""
    from torch import distributed

    from retrieval.parts import is_worker

    if not is_worker():
        yield True
        return
    distributed.init_process_group("gloo")
    try:
        yield int(os.environ["RANK"]) == 0
    finally:
        distributed.destroy_process_group()


def _measured(
    command: str,
    real: Path,
    made: Path,
    weights: Path | None,
    by: Literal["fid", "kid", "mobilenet-distance"],
    size: int | None,
    device: str,
) -> "Report":
    import time

    from cm3leon.pipeline import pick_device
    from eval.metrics.distribution import of_folders
    from eval.report import Report
    from eval.run import versions

    begun = time.perf_counter()
    found, hashes = of_folders(
        real, made, weights, by, size, pick_device(device), tables.steps("features")
    )
    return Report(
        name="folders",
        values=found.values,
        made_by={"command": command, **hashes, "size": size, "versions": versions()},
        seconds=time.perf_counter() - begun,
        notes=found.notes,
    )
