"""eval people: prompts in people's own words, by the concept classifier and on a sheet."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from cm3leon.cli import options, tables
from cm3leon.cli.evaluating_reports import (
    Candidates,
    Data,
    Folder,
    check_out,
    open_lab,
    tell_reports,
)
from cm3leon.cli.retrieving import COUNT, DEFAULT, Count, MemoryFolder

Half = Annotated[
    Literal["open", "sealed"],
    typer.Option(help="The half to develop with, or the one that is scored once, at the end."),
]


def add_to(group: typer.Typer) -> None:
    """Name this file's command in the group of all that measure."""
    group.command()(people)


def people(
    context: typer.Context,
    prompts: Annotated[
        Path, typer.Argument(metavar="PROMPTS", help="A JSON of both halves: prompts, families.")
    ],
    data: Data,
    half: Half = "open",
    model: options.Model = "default",
    memory: MemoryFolder = None,
    retrieve: Count = None,
    candidates: Candidates = 1,
    seed: options.Seed = 0,
    out: Folder = Path("report"),
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Paint one picture of every prompt, and tell how many show what the prompt may mean."""
    from eval.context import Asked
    from eval.corpus import Place
    from eval.metrics.prompt_suite import Prompts
    from eval.metrics.prompt_suite import people as measure
    from eval.run import run

    chosen = Prompts.read(prompts).half(half)
    check_out(out)
    count = (0 if memory is None else COUNT) if retrieve is None else retrieve
    asked = Asked(seed=seed, retrieve=count, candidates=candidates, cache=out)
    place = Place(data=data)
    lab = open_lab(asked, place, model, memory, DEFAULT, device, precision, threads)
    command, name = tables.command(context), f"people-{half}"
    reports = run(lab, {name: lambda lab: measure(lab, chosen)}, command, out, every=False)
    tell_reports(reports, as_json)
