"""What the commands that paint share: one request, painted, written with its notes and told."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cm3leon.cli import options
from cm3leon.cli.output import Notes, Progress, check_out, tell, write_pictures
from cm3leon.cli.picking import Picker
from cm3leon.cli.retrieving import Retrieved
from tokenizer.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from cm3leon.generate import Progress as Progressing
    from cm3leon.pipeline import CM3Leon
    from cm3leon.sampling import Sampling

    Paint = Callable[[CM3Leon, Sampling, Progressing], list[Image.Image]]


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
    precision: options.Precision
    device: str
    threads: int | None
    as_json: bool


def check(prompt: str, out: Path, samples: int, name: str = "prompt") -> None:
    """What can be said before anything is loaded."""
    if not prompt.strip():
        raise UserError(f"the {name} is empty; write what you want")
    check_out(out, samples)


def paint(request: Request, how: "Paint") -> None:
    """Load, paint, write the pictures with their notes, and say where they are."""
    leon = options.open_model(request.folder, request.device, request.threads, request.precision)
    if request.like is not None:
        _warn(request.like, request, leon)
    picker = request.picker
    picker.warn(request.like)
    with Progress(request.samples * picker.candidates) as progress:
        pictures = how(leon, request.sampling, progress)
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
            precision=leon.precision,
        ).table()
        for number in [*numbers, *([None] if several else [])]
    ]
    paths = write_pictures(request.out, pictures, tables)
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


def _warn(like: Notes, request: Request, leon: "CM3Leon") -> None:
    """Say aloud why a picture will not be the one to be repeated."""
    if like.model != leon.hash:
        options.say(f"that was by model {like.model}, this is {leon.hash}: it will differ")
    if like.precision != leon.precision:
        options.say(f"that was in {like.precision}, this is {leon.precision}: it will differ")
    if like.retrieved != request.retrieved.told:
        options.say("that was with other documents retrieved: it will differ")
