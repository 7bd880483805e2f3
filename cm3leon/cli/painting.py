"""Commands that end in a picture: generate, edit, infill, reconstruct."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cm3leon.cli import options
from cm3leon.cli.output import Notes, Progress, check_out, signature, tell, write_pictures
from cm3leon.cli.picking import Candidates, Mix, Picker
from cm3leon.cli.retrieving import (
    DEFAULT,
    Count,
    EncoderName,
    MemoryFolder,
    Retrieved,
    Wanted,
)
from cm3leon.cli.retrieving import retrieve as find_documents
from cm3leon.cli.terminal import open_screen
from tokenizer.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from cm3leon.generate import Progress as Progressing
    from cm3leon.live import Watcher
    from cm3leon.pipeline import CM3Leon
    from cm3leon.regions import Box
    from cm3leon.sampling import Sampling

    Paint = Callable[[CM3Leon, Sampling, Progressing, Watcher | None], list[Image.Image]]

CfgScale = Annotated[float | None, typer.Option(help="Pull towards the prompt; 1 is no guidance.")]
Contrastive = Annotated[
    bool | None, typer.Option("--contrastive", help="CD-K decoding in the place of guidance.")
]


def add_to(app: typer.Typer) -> None:
    """Name this file's commands."""
    for command in (generate, edit, infill, reconstruct):
        app.command()(command)


@dataclass(frozen=True, kw_only=True)
class Request:
    """One painting task: what to note in its pictures, and where things are."""

    task: str
    prompt: str
    seed: int
    samples: int
    like: Notes | None = None  # of the picture to be repeated
    keep: int | None = None  # only this sample of all is wanted
    out: Path
    folder: Path
    sampling: "Sampling"
    retrieved: Retrieved = Retrieved()  # noqa: RUF009  frozen
    picker: Picker = field(default_factory=Picker)
    device: str
    threads: int | None
    watch: bool
    as_json: bool


def generate(
    prompt: Annotated[str | None, typer.Argument(help="What the picture shows.")] = None,
    like: Annotated[
        Path | None, typer.Option(help="Repeat this picture; other options change it.")
    ] = None,
    out: options.Out = Path("generated.png"),
    n: options.OtherCount = None,
    seed: options.OtherSeed = None,
    cfg_scale: CfgScale = None,
    contrastive: Contrastive = None,
    candidates: Candidates = None,
    mix: Mix = None,
    memory: MemoryFolder = None,
    encoder: EncoderName = DEFAULT,
    retrieve: Count = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    model: options.Model = "default",
    device: options.Device = "auto",
    threads: options.Threads = None,
    watch: options.Watch = False,
    as_json: options.Json = False,
) -> None:
    """Paint a picture from words."""
    notes = None if like is None else Notes.read(like, "generate")
    picker = Picker.of(candidates, mix, encoder, notes)
    picks = picker.candidates > 1
    wanted = Wanted(memory=memory, encoder=encoder, count=retrieve, picks=picks)
    prompt = _prompt(prompt, notes, wanted)
    keep = notes.number if notes and n is None else None
    samples = n or (notes.samples if notes else 1)
    _check(prompt, out, 1 if keep else samples)
    given = {"cfg_scale": cfg_scale, "contrastive": contrastive}
    given |= {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    folder, sampling = options.sampling_of(model, "text_to_image", **given)
    if notes is not None:
        sampling = options.with_changes(notes.settings, **given)
    picker.open(samples, sampling, device)
    request = Request(
        task="generate",
        prompt=prompt,
        seed=(notes.seed if notes else 0) if seed is None else seed,
        samples=samples,
        like=notes,
        keep=keep,
        out=out,
        folder=folder,
        sampling=sampling,
        retrieved=find_documents(wanted, folder, device, text=prompt),
        picker=picker,
        device=device,
        threads=threads,
        watch=watch,
        as_json=as_json,
    )
    _paint(request, _from_words(request))


def edit(
    picture: options.PictureFile,
    instruction: Annotated[str, typer.Argument(help="What to change.")],
    out: options.Out = Path("edited.png"),
    n: options.Count = 1,
    seed: options.Seed = 0,
    image_scale: Annotated[float | None, typer.Option(help="Pull towards the picture.")] = None,
    text_scale: Annotated[float | None, typer.Option(help="Pull towards the instruction.")] = None,
    memory: MemoryFolder = None,
    encoder: EncoderName = DEFAULT,
    retrieve: Count = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    model: options.Model = "default",
    device: options.Device = "auto",
    threads: options.Threads = None,
    watch: options.Watch = False,
    as_json: options.Json = False,
) -> None:
    """Paint a picture again as an instruction says."""
    _check(instruction, out, n, "instruction")
    wanted = Wanted(memory=memory, encoder=encoder, count=retrieve)
    image = options.open_picture(picture)
    folder, sampling = options.sampling_of(
        model,
        "edit",
        image_scale=image_scale,
        text_scale=text_scale,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
    )
    request = Request(
        task="edit",
        prompt=instruction,
        seed=seed,
        samples=n,
        out=out,
        folder=folder,
        sampling=sampling,
        retrieved=find_documents(wanted, folder, device, text=instruction, picture=image),
        device=device,
        threads=threads,
        watch=watch,
        as_json=as_json,
    )
    _paint(
        request,
        lambda leon, sampling, progress, watch: leon.edit(
            image, instruction, n, seed, sampling, request.retrieved.documents, progress, watch
        ),
    )


def infill(
    picture: options.PictureFile,
    box: Annotated[str | None, typer.Option(help="left,top,right,bottom in pixels.")] = None,
    mask: Annotated[
        Path | None, typer.Option(help="A picture of the same size, white where to paint.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="What the whole picture shows.")] = None,
    out: options.Out = Path("infilled.png"),
    n: options.Count = 1,
    seed: options.Seed = 0,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    model: options.Model = "default",
    device: options.Device = "auto",
    threads: options.Threads = None,
    watch: options.Watch = False,
    as_json: options.Json = False,
) -> None:
    """Paint a region of a picture anew."""
    _check("nothing" if prompt is None else prompt, out, n)
    image = options.open_picture(picture)
    region = _region(image.size, box, mask)
    folder, sampling = options.sampling_of(
        model, "infill", temperature=temperature, top_k=top_k, top_p=top_p
    )
    request = Request(
        task="infill",
        prompt=prompt or "",
        seed=seed,
        samples=n,
        out=out,
        folder=folder,
        sampling=sampling,
        device=device,
        threads=threads,
        watch=watch,
        as_json=as_json,
    )
    _paint(
        request,
        lambda leon, sampling, progress, watch: leon.infill(
            image, region, prompt, n, seed, sampling, progress, watch
        ),
    )


def reconstruct(
    picture: options.PictureFile,
    out: options.Out = Path("reconstructed.png"),
    model: options.Model = "default",
    device: options.Device = "auto",
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Show what is left of a picture when it has been through the codebook and back."""
    from cm3leon.checkpoint import find

    check_out(out, 1)
    image = options.open_picture(picture)
    leon = options.open_model(find(model, options.say), device, threads)
    table = signature("reconstruct", leon.hash)
    paths = write_pictures(out, [leon.reconstruct(image)], [table])
    tell(paths, {"task": "reconstruct", "files": [str(out)], "model": leon.hash}, as_json)


def _from_words(request: Request) -> "Paint":
    """How `generate` paints."""
    examples, asked = request.retrieved.documents, request.picker.asked
    return lambda leon, sampling, progress, watch: leon.text_to_image(
        request.prompt, request.samples, request.seed, sampling, examples, progress, watch, **asked
    )


def _prompt(prompt: str | None, notes: Notes | None, wanted: Wanted) -> str:
    """The prompt given, or else that of the picture to be repeated."""
    if notes is None:
        if prompt is None:
            raise typer.BadParameter("give a prompt, or --like PICTURE")
        return prompt
    if notes.retrieved and wanted.memory is None and wanted.count != 0:
        raise UserError(
            "that picture was painted with documents of a memory; name it with --memory and "
            "--encoder, or leave them out with --retrieve 0"
        )
    return notes.prompt if prompt is None else prompt


def _check(prompt: str, out: Path, samples: int, name: str = "prompt") -> None:
    """What can be said before anything is loaded."""
    if not prompt.strip():
        raise UserError(f"the {name} is empty; write what you want")
    check_out(out, samples)


def _region(size: tuple[int, int], box: str | None, mask: Path | None) -> "Image.Image | Box":
    """The mask picture, or the box as four numbers that lie inside the picture."""
    if (box is None) == (mask is None):
        raise typer.BadParameter("give either --box or --mask")
    if mask is not None:
        return options.open_picture(mask)
    assert box is not None
    from cm3leon.regions import check_box

    try:
        left, top, right, bottom = (int(side) for side in box.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"--box is {box!r}; write left,top,right,bottom") from error
    check_box((left, top, right, bottom), size)
    return left, top, right, bottom


def _paint(request: Request, paint: "Paint") -> None:
    """Load, paint, write the pictures with their notes, and say where they are."""
    screen = open_screen() if request.watch else None
    leon = options.open_model(request.folder, request.device, request.threads)
    if request.like is not None and request.like.model != leon.hash:
        options.say(f"that was by model {request.like.model}, this is {leon.hash}: it will differ")
    if request.like is not None and request.like.retrieved != request.retrieved.told:
        options.say("that was with other documents retrieved: it will differ")
    picker = request.picker
    picker.warn(request.like)
    with Progress(request.samples * picker.candidates) as progress:
        pictures = paint(leon, request.sampling, progress, screen and screen.show)
    numbers: Sequence[int | None] = range(1, request.samples + 1)
    if request.keep is not None:
        numbers, pictures = [request.keep], [pictures[request.keep - 1]]
    several = len(pictures) > 1
    tables = [
        Notes(
            task=request.task,
            prompt=request.prompt,
            seed=request.seed,
            samples=request.samples,
            number=number,
            settings=request.sampling,
            model=leon.hash,
            retrieved=request.retrieved.told,
            candidates=picker.candidates,
            mix=picker.mix,
            encoder=picker.id,
        ).table()
        for number in [*numbers, *([None] if several else [])]
    ]
    paths = write_pictures(request.out, pictures, tables)
    if screen:
        screen.finish(request.out, below=1)  # what Progress says in the end
    table = {
        "task": request.task,
        "files": [str(path) for path in paths[: len(pictures)]],
        "sheet": str(request.out) if several else None,
        "prompt": request.prompt,
        "seed": request.seed,
        "model": leon.hash,
        "retrieved": request.retrieved.used,
        **picker.table(request.keep),
    }
    tell(paths, table, request.as_json)
