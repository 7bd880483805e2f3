"""eval samples: pictures for the big protocols, by any number of processes, resumable."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cm3leon.cli import options, tables
from cm3leon.cli.evaluating_reports import Annotations, As, Data, Ids, Images, Limit, Split
from cm3leon.cli.output import tell
from cm3leon.cli.painting import CfgScale, Contrastive
from cm3leon.cli.retrieving import (
    COUNT,
    DEFAULT,
    Count,
    EncoderName,
    MemoryFolder,
    Wanted,
    find_memory,
    open_embedder,
)

if TYPE_CHECKING:
    from cm3leon.sampling import Sampling
    from eval.corpus import Place
    from eval.samples import Progress

BLOCK = 16
AGAIN = "give the same command again, which goes on where it stopped"

Each = Annotated[
    int, typer.Option(min=1, help="Pictures of each caption, with seeds of their own.")
]
Folder = Annotated[Path, typer.Option(help="The folder of the records; name it again to go on.")]
Processes = Annotated[
    int | None,
    typer.Option(min=1, help="One for each GPU if not given, or for each --threads of the cores."),
]
Threads = Annotated[
    int, typer.Option(min=1, help="CPU threads of each process; with another number sums differ.")
]
Block = Annotated[
    int, typer.Option(min=1, help="Pictures painted at a time by a process, into one file.")
]
Png = Annotated[bool, typer.Option("--png", help="Also as PNG files, in OUT/pictures.")]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be done, in each process."""

    place: "Place"
    ids: Path | None
    limit: int | None
    each: int
    seed: int
    out: Path
    png: bool
    folder: Path
    """Of the model."""
    front: Wanted
    sampling: "Sampling"
    block: int
    device: str
    precision: options.Precision
    threads: int


class Stopped(Exception):
    """Somebody asked for an orderly end."""


def add_to(group: typer.Typer) -> None:
    """Name this file's command in the group of all that measure."""
    group.command()(samples)


def samples(
    context: typer.Context,
    data: Data,
    out: Folder,
    split: Split = None,
    layout: As = None,
    images: Images = None,
    annotations: Annotations = None,
    ids: Ids = None,
    limit: Limit = None,
    each: Each = 1,
    seed: options.Seed = 0,
    png: Png = False,
    model: options.Model = "default",
    memory: MemoryFolder = None,
    retrieve: Count = None,
    encoder: EncoderName = DEFAULT,
    cfg_scale: CfgScale = None,
    contrastive: Contrastive = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    processes: Processes = None,
    threads: Threads = 1,
    block: Block = BLOCK,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    as_json: options.Json = False,
) -> None:
    """Paint the first caption of every picture. Killed, it goes on where it stopped when it is
    given again; the records are the same for any number of processes."""
    from eval.corpus import Place

    given = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    given |= {"cfg_scale": cfg_scale, "contrastive": contrastive}
    front = Wanted(memory=memory, encoder=encoder, count=retrieve)
    folder, sampling = options.sampling_of(model, "text_to_image", **given)
    job = Job(
        place=Place(data=data, split=split, layout=layout, images=images, annotations=annotations),
        ids=ids,
        limit=limit,
        each=each,
        seed=seed,
        out=out,
        png=png,
        folder=folder,
        front=front,
        sampling=sampling,
        block=block,
        device=device,
        precision=precision,
        threads=threads,
    )
    _check(job)
    if not _launched(_worker(context), job, processes) and not _paint(job):
        return
    _tell(out, png, as_json)


def _check(job: Job) -> None:
    """Cheap things, before any process starts."""
    from eval.corpus import open_source
    from retrieval.memory import read_contents
    from tokenizer.errors import UserError

    open_source(job.place)
    if job.ids is not None and not job.ids.is_file():
        raise UserError(f"there is no file {str(job.ids)!r}; name a list of ids, one a line")
    if job.out.exists() and not job.out.is_dir():
        raise UserError(f"{job.out} is a file; name a folder for the records")
    if job.front.memory is not None:
        read_contents(find_memory(job.front.memory))


def _worker(context: typer.Context) -> list[str]:
    """The command line of each process: this one's, less how many and how to tell."""
    words = context.command_path.split()[1:]
    for parameter in context.command.params:
        value = context.params.get(str(parameter.name))
        if parameter.name in ("processes", "as_json") or value is None or value is False:
            continue
        words += [parameter.opts[0], *([] if value is True else [str(value)])]
    return words


def _launched(words: list[str], job: Job, processes: int | None) -> bool:
    """Run the processes, if there are to be several; False where this one is to do the work."""
    from cm3leon.pipeline import pick_device
    from retrieval.parts import is_worker
    from train.launch import Cluster, found, launch

    if processes is None and not is_worker() and pick_device(job.device).type == "cpu":
        processes = max(1, len(os.sched_getaffinity(0)) // job.threads)
    place = found(Cluster(processes=processes))
    if place is None:
        return False
    if status := launch(words, job.out, place, options.say, AGAIN):
        raise typer.Exit(status)
    return True


def _paint(job: Job) -> bool:
    """Do this process's share; whether that was all there was to do."""
    from eval.asking import retrieval_of, wanted_of
    from eval.corpus import captioned, chosen, open_source
    from eval.samples import run, write_pictures
    from retrieval.memory import Memory

    rank, world, device = _place(job.device)
    source = open_source(job.place)
    pictures = captioned(source, chosen(source, job.ids))
    wanted = wanted_of(pictures, job.limit, job.each, job.seed)
    leon = options.open_model(job.folder, device, job.threads, job.precision)
    count = COUNT if job.front.count is None else job.front.count
    retrieval = None
    if job.front.memory is not None and count:
        embedder, codebook = open_embedder(job.front.encoder, device), leon.image_tokenizer.hash
        bank = Memory.open(find_memory(job.front.memory), embedder.id, codebook, options.say)
        retrieval = retrieval_of(bank, embedder, leon.codec, count)
    name = f", process {rank} of {world}" if world > 1 else ""
    stop = _stopping()
    try:
        run(
            job.out,
            wanted,
            leon,
            job.sampling,
            retrieval=retrieval,
            rank=rank,
            world=world,
            block=job.block,
            progress=stop(tables.steps(f"codes{name}")),
        )
        if job.png:
            progress = stop(tables.steps(f"PNG files{name}"))
            write_pictures(job.out, leon, rank=rank, world=world, progress=progress)
    except Stopped:
        options.say(f"stopped{name}; {AGAIN}")
    return world == 1


def _place(device: str) -> tuple[int, int, str]:
    """Which process this is, of how many, and its device."""
    from cm3leon.pipeline import pick_device
    from retrieval.parts import is_worker

    if not is_worker():
        return 0, 1, device
    place = pick_device(device)
    if str(place) == "cuda":
        import torch

        device = f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), device


def _stopping() -> "Callable[[Progress], Progress]":
    """A progress that also ends this process when that is asked for on the board of its launch, or
    when whoever launched it is gone."""
    from train.board import Board

    board, parent = Board.of_environment(), os.getppid()

    def stopping(progress: "Progress") -> "Progress":
        def tell(done: int, most: int) -> None:
            if board is not None and (board.stop_wanted() or os.getppid() != parent):
                raise Stopped
            progress(done, most)

        return tell

    return stopping


def _tell(out: Path, png: bool, as_json: bool) -> None:
    """What there is in the end. Raises UserError where something is missing."""
    from eval.samples import PICTURES, fingerprint, read

    records = read(out)
    captions = len({record.id.rpartition("#")[0] for record in records})
    table = {"pictures": len(records), "captions": captions, "records": fingerprint(records)}
    place = out / PICTURES if png else out
    line = f"{len(records):,} pictures of {captions:,} captions, records {table['records']}"
    tell([line, place], {**table, "folder": str(place)}, as_json)
