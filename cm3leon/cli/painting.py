"""Commands that end in a picture: generate, edit, infill, reconstruct."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cm3leon.cli import options
from cm3leon.cli.batching import Lines, paint_lines
from cm3leon.cli.output import Notes, check_out, signature, tell, write_pictures
from cm3leon.cli.picking import Candidates, Mix, Picker, usual
from cm3leon.cli.picturing import Request, check, paint
from cm3leon.cli.retrieving import DEFAULT, Count, EncoderName, MemoryFolder, Wanted, with_habit
from cm3leon.cli.retrieving import retrieve as find_documents
from tokenizer.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from cm3leon.cli.picturing import Paint
    from cm3leon.regions import Box

AUTO: options.Precision = "auto"
CfgScale = Annotated[float | None, typer.Option(help="Pull towards the prompt; 1 is no guidance.")]
Contrastive = Annotated[
    bool | None, typer.Option("--contrastive", help="CD-K decoding in the place of guidance.")
]
Like = Annotated[Path | None, typer.Option(help="Repeat this picture; other options change it.")]
Prompts = Annotated[
    Path | None, typer.Option(help="A text file of prompts: a picture for every line.")
]


def add_to(app: typer.Typer) -> None:
    """Name this file's commands."""
    for command in (generate, edit, infill, reconstruct):
        app.command()(command)


def generate(
    prompt: Annotated[str | None, typer.Argument(help="What the picture shows.")] = None,
    like: Like = None,
    prompts: Prompts = None,
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
    precision: options.OtherPrecision = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Paint a picture from words."""
    given = {"cfg_scale": cfg_scale, "contrastive": contrastive}
    given |= {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    notes, samples, keep = _repeated(like, n)
    folder, sampling = options.sampling_of(model, "text_to_image", **given)
    sampling = options.with_changes(notes.settings if notes else sampling, **given)
    habits = options.habits_of(folder)
    many = usual(habits.candidates, samples, sampling.temperature)
    picker = Picker.of(candidates, mix, encoder, notes, many)
    wanted = _wanted(memory, encoder, retrieve, picker, notes, habits.retrieve)
    if prompts is not None:
        _only_lines((prompt, like, n))
        where = (precision or AUTO, device, threads, as_json)
        return paint_lines(Lines(prompts, out, seed or 0, folder, sampling, wanted, picker, *where))
    prompt = _prompt(prompt, notes, wanted)
    check(prompt, out, 1 if keep else samples)
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
        precision=precision or (notes.precision if notes else AUTO),
        device=device,
        threads=threads,
        as_json=as_json,
    )
    paint(request, _from_words(request))


def edit(
    picture: options.PictureFile,
    instruction: Annotated[str, typer.Argument(help="What to change.")],
    out: options.Out = Path("edited.png"),
    n: options.Count = 1,
    seed: options.Seed = 0,
    image_scale: Annotated[float | None, typer.Option(help="Pull towards the picture.")] = None,
    text_scale: Annotated[float | None, typer.Option(help="Pull towards the instruction.")] = None,
    keep: Annotated[float | None, typer.Option(help="Nats for what the picture has.")] = None,
    memory: MemoryFolder = None,
    encoder: EncoderName = DEFAULT,
    retrieve: Count = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    model: options.Model = "default",
    precision: options.Precision = "auto",
    device: options.Device = "auto",
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Paint a picture again as an instruction says."""
    check(instruction, out, n, "instruction")
    wanted = Wanted(memory=memory, encoder=encoder, count=retrieve)
    image = options.open_picture(picture)
    folder, sampling = options.sampling_of(
        model,
        "edit",
        image_scale=image_scale,
        keep=keep,
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
        precision=precision,
        device=device,
        threads=threads,
        as_json=as_json,
    )
    paint(
        request,
        lambda leon, sampling, progress: leon.edit(
            image, instruction, n, seed, sampling, request.retrieved.documents, progress
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
    precision: options.Precision = "auto",
    device: options.Device = "auto",
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Paint a region of a picture anew."""
    check("nothing" if prompt is None else prompt, out, n)
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
        precision=precision,
        device=device,
        threads=threads,
        as_json=as_json,
    )
    paint(
        request,
        lambda leon, sampling, progress: leon.infill(
            image, region, prompt, n, seed, sampling, progress
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
    return lambda leon, sampling, progress: leon.text_to_image(
        request.prompt, request.samples, request.seed, sampling, examples, progress, **asked
    )


def _repeated(like: Path | None, n: int | None) -> tuple[Notes | None, int, int | None]:
    """The notes of the picture to be repeated, how many samples, and which alone is wanted."""
    if like is None:
        return None, n or 1, None
    notes = Notes.read(like, "generate")
    return notes, n or notes.samples, notes.number if n is None else None


def _wanted(
    memory: Path | None,
    encoder: str,
    count: int | None,
    picker: Picker,
    notes: Notes | None,
    usually: int,
) -> Wanted:
    """What to retrieve: what the user says, else as the picture to be repeated, else as usual."""
    silent = memory is None and count is None
    if silent and notes is not None and not notes.retrieved:
        usually = 0
    memory, count = with_habit(memory, encoder, count, usually)
    picks = picker.candidates > 1
    return Wanted(memory=memory, encoder=encoder, count=count, picks=picks, habit=silent)


def _only_lines(others: tuple[object, ...]) -> None:
    """Refuse what makes no sense beside a file of prompts."""
    if any(other is not None for other in others):
        raise typer.BadParameter(
            "--prompts paints one picture a line; leave PROMPT, --like and -n out"
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
