"""eval samples: images for the large protocols, by any number of processes, resumable."""

import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cm3leon.cli import options
from cm3leon.cli.eval_options import DataOptions
from cm3leon.cli.options import GuidedSamplingOptions
from cm3leon.cli.output import command_line, print_result, progress_lines
from cm3leon.cli.retrieve import RetrievalOptions, find_memory, open_embedder, open_memory

if TYPE_CHECKING:
    from cm3leon.sampling import Sampling
    from eval.samples import Progress
    from tokenizer.distributed import DistributedContext

BLOCK = 16
AGAIN = "give the same command again, which resumes where it stopped"


@dataclass(frozen=True, kw_only=True)
class SamplesOptions:
    """Samples to generate, and the division of the work."""

    each: Annotated[int, typer.Option(min=1, help="Images of each caption, of other seeds.")] = 1
    seed: options.Seed = 0
    png: Annotated[bool, typer.Option("--png", help="Also write PNG files, in OUT/pictures.")] = (
        False
    )
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of each process.")] = 1
    block: Annotated[
        int, typer.Option(min=1, help="Images a process generates at a time, into one file.")
    ] = BLOCK


class Stopped(Exception):
    """Somebody asked for an orderly end."""


def add_to(group: typer.Typer) -> None:
    """Add this file's command."""
    options.add(group, samples)


def samples(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder of the records; the same resumes it.")],
    *,
    source: DataOptions,
    wanted: SamplesOptions,
    model: options.Model = "default",
    retrieval: RetrievalOptions,
    drawing: GuidedSamplingOptions,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes (default: one a GPU, or one a core).")
    ] = None,
    device: options.Device = "auto",
    precision: Annotated[options.Precision, typer.Option(help="Of the weights.")] = "auto",
    as_json: options.Json = False,
) -> None:
    """Generate the first caption of every image into records; a killed run resumes.

    The records are the same for any number of processes.
    """
    from tokenizer.distributed import distributed_context

    retrieval.check()
    folder, sampling = options.sampling_of(model, "text_to_image", drawing)
    _check(source, out, retrieval)
    if not _launched(context, out, processes, wanted.threads, device):
        with distributed_context() as dist:
            job = _Job(source, wanted, retrieval, out, folder, sampling, device, precision)
            _generate(job, dist)
            if dist.size > 1:
                return
    _print(out, wanted.png, as_json)


@dataclass(frozen=True)
class _Job:
    source: DataOptions
    wanted: SamplesOptions
    retrieval: RetrievalOptions
    out: Path
    folder: Path
    sampling: "Sampling"
    device: str
    precision: options.Precision


def _check(source: DataOptions, out: Path, retrieval: RetrievalOptions) -> None:
    """Check cheap things, before any process starts."""
    from eval.corpus import open_source
    from retrieval.memory import read_contents
    from tokenizer.errors import UserError

    open_source(source.place())
    if source.ids is not None and not source.ids.is_file():
        raise UserError(f"there is no file {str(source.ids)!r}; name a list of ids, one a line")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; name a folder for the records")
    if retrieval.memory is not None:
        read_contents(find_memory(retrieval.memory))


def _launched(
    context: typer.Context, out: Path, processes: int | None, threads: int, device: str
) -> bool:
    """Run the processes, if there are to be several; False where this one is to do the work."""
    from cm3leon.pipeline import pick_device
    from tokenizer.distributed import is_worker
    from train.launch import Cluster, launch, needs_launch

    if processes is None and not is_worker() and pick_device(device).type == "cpu":
        processes = max(1, len(os.sched_getaffinity(0)) // threads)
    cluster = Cluster(processes=processes)
    if not needs_launch(cluster):
        return False
    words = shlex.split(command_line(context))[1:]
    if status := launch(words, out, cluster, options.say, AGAIN):
        raise typer.Exit(status)
    return True


def _generate(job: _Job, dist: "DistributedContext") -> None:
    """Do this process's share."""
    from cm3leon.pipeline import pick_device
    from eval.corpus import captioned, chosen, open_source
    from eval.protocol import retrieval_of, wanted_of
    from eval.samples import run, write_pictures

    device = str(dist.device(pick_device(job.device)))
    source = open_source(job.source.place())
    images = captioned(source, chosen(source, job.source.ids))
    wanted = wanted_of(images, job.source.limit, job.wanted.each, job.wanted.seed)
    leon = options.open_model(job.folder, device, job.wanted.threads, job.precision)
    retrieval = None
    if job.retrieval.memory is not None and job.retrieval.count:
        embedder = open_embedder(job.retrieval.encoder, device)
        memory = open_memory(job.retrieval.memory, embedder, job.folder)
        retrieval = retrieval_of(memory, embedder, leon.codec, job.retrieval.count)
    name = f", process {dist.rank} of {dist.size}" if dist.size > 1 else ""
    part = {"rank": dist.rank, "world": dist.size}
    try:
        run(
            job.out,
            wanted,
            leon,
            job.sampling,
            retrieval=retrieval,
            block=job.wanted.block,
            progress=_stopping(dist, progress_lines(f"codes{name}")),
            **part,
        )
        if job.wanted.png:
            progress = _stopping(dist, progress_lines(f"PNG files{name}"))
            write_pictures(job.out, leon, progress=progress, **part)
    except Stopped:
        options.say(f"stopped{name}; {AGAIN}")


def _stopping(dist: "DistributedContext", progress: "Progress") -> "Callable[[int, int], None]":
    """Return a progress that also ends this process when that is asked for, or when whoever
    launched it is gone."""
    parent = os.getppid()

    def stopping(done: int, most: int) -> None:
        stop = dist.control is not None and dist.control.stop_requested()
        if dist.size > 1 and (stop or os.getppid() != parent):
            raise Stopped
        progress(done, most)

    return stopping


def _print(out: Path, png: bool, as_json: bool) -> None:
    """Print what there is in the end. Raises UserError where something is missing."""
    from eval.samples import PICTURES, fingerprint, read

    records = read(out)
    captions = len({record.id.rpartition("#")[0] for record in records})
    table = {"pictures": len(records), "captions": captions, "records": fingerprint(records)}
    place = out / PICTURES if png else out
    line = f"{len(records):,} images of {captions:,} captions, records {table['records']}"
    print_result([line, place], {**table, "folder": str(place)}, as_json)
