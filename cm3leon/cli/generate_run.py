"""Run a request of the image commands: generate, save with metadata, print the result."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3leon.cli import options
from cm3leon.cli.options import ModelOptions
from cm3leon.cli.output import (
    ImageMetadata,
    Progress,
    check_out,
    paths_for,
    print_result,
    sheet_of,
    signature,
    write_image,
    write_images,
)
from cm3leon.cli.rerank import Reranker
from cm3leon.cli.retrieve import RetrievalOptions, Retrieved, open_retriever
from tokenizer.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from cm3leon.generate import Progress as OnProgress
    from cm3leon.pipeline import CM3Leon
    from cm3leon.sampling import Sampling

    Generate = Callable[[CM3Leon, OnProgress], list[Image.Image]]


@dataclass(frozen=True, kw_only=True)
class ImageRequest:
    """One image task: what goes into the metadata of its images, and where they are written."""

    task: str
    prompt: str
    seed: int
    samples: int
    like: ImageMetadata | None = None  # of the image to be repeated
    keep: int | None = None  # only this sample of all is wanted
    out: Path
    folder: Path
    sampling: "Sampling"
    retrieved: Retrieved = Retrieved()  # noqa: RUF009  frozen
    reranker: Reranker = field(default_factory=Reranker)


@dataclass(frozen=True, kw_only=True)
class PromptFile:
    """A file of prompts, one a line, and where its images are written."""

    path: Path
    out: Path
    seed: int
    folder: Path
    sampling: "Sampling"


def check(prompt: str, out: Path, samples: int, name: str = "prompt") -> None:
    """Check what can be checked before anything is loaded."""
    if not prompt.strip():
        raise UserError(f"the {name} is empty; write what you want")
    check_out(out, samples)


def run(request: ImageRequest, model: ModelOptions, as_json: bool, generate: "Generate") -> None:
    """Load the model, generate, write the images with their metadata, and print the paths."""
    like, reranker = request.like, request.reranker
    leon = model.open(request.folder, like and like.precision)
    _warn(request, leon)
    reranker.warn(like)
    with Progress(request.samples * reranker.candidates) as progress:
        images = generate(leon, progress)
    numbers: Sequence[int | None] = range(1, request.samples + 1)
    if request.keep is not None:
        numbers, images = [request.keep], [images[request.keep - 1]]
    several = len(images) > 1
    base = _metadata(
        leon, reranker, task=request.task, prompt=request.prompt, seed=request.seed,
        samples=request.samples, number=None, settings=request.sampling,
        retrieved=request.retrieved.metadata,
    )  # fmt: skip
    tables = [
        replace(base, number=number).table() for number in [*numbers, *([None] if several else [])]
    ]
    paths = write_images(request.out, images, tables)
    table = {
        "task": request.task,
        "files": [str(path) for path in paths[: len(images)]],
        "sheet": str(request.out) if several else None,
        "prompt": request.prompt,
        "seed": request.seed,
        "model": leon.hash,
        "retrieved": request.retrieved.used,
        **reranker.table(request.keep),
    }
    print_result(paths, table, as_json)


def _metadata(leon: "CM3Leon", reranker: Reranker, **given: Any) -> ImageMetadata:
    """Return metadata with what model and reranker add to it."""
    return ImageMetadata(
        model=leon.hash,
        precision=leon.precision,
        candidates=reranker.candidates,
        mix=reranker.mix,
        encoder=reranker.id,
        **given,
    )


def _warn(request: ImageRequest, leon: "CM3Leon") -> None:
    """Warn where an image cannot be repeated exactly."""
    like, end = request.like, "the result will differ"
    if like is None:
        return
    if like.model != leon.hash:
        options.say(f"warning: that image was made by model {like.model}, not {leon.hash}; {end}")
    if like.precision != leon.precision:
        options.say(
            f"warning: that image was made in {like.precision}, not {leon.precision}; {end}"
        )
    if like.retrieved != request.retrieved.metadata:
        options.say(f"warning: that image was made with other documents retrieved; {end}")


def read_prompts(path: Path) -> tuple[str, ...]:
    """Return the lines of a text file that are not empty. Raises UserError where there is none."""
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is no text in UTF-8; write one prompt a line") from error
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not prompts:
        raise UserError(f"{path}: has no prompts; write one a line")
    return prompts


def run_prompts(
    lines: PromptFile,
    wanted: RetrievalOptions,
    reranker: Reranker,
    model: ModelOptions,
    as_json: bool,
    *,
    quiet: bool,
) -> None:
    """Generate each line's image as `generate` would alone, many at a time, and write it at once:
    what is done stays if the command is stopped. Up to a sheet's worth get a contact sheet."""
    from cm3leon.batch import Wish, paint_all

    prompts = read_prompts(lines.path)
    count = len(prompts)
    check_out(lines.out, count)
    reranker.open(1, lines.sampling, model.device)
    find = open_retriever(wanted, lines.folder, model.device, quiet=quiet)
    retrieved = [find(prompt, None) for prompt in prompts]
    leon = model.open(lines.folder)
    wishes = [
        Wish(prompt=prompt, seed=lines.seed, retrieved=found.documents)
        for prompt, found in zip(prompts, retrieved, strict=True)
    ]
    base = _metadata(leon, reranker, task="generate", prompt="", seed=lines.seed, samples=1,
                     number=1, settings=lines.sampling)  # fmt: skip
    paths = paths_for(lines.out, count)
    images: dict[int, Image.Image] = {}
    with Progress(1) as progress:
        for number, image in paint_all(
            leon, wishes, lines.sampling, progress=progress, **reranker.arguments
        ):
            metadata = replace(base, prompt=prompts[number], retrieved=retrieved[number].metadata)
            write_image(paths[number], image, metadata.table())
            if count <= options.MOST:
                images[number] = image
    written = [str(path) for path in paths]
    if len(images) > 1:
        whole = sheet_of([images[number] for number in range(count)])
        write_image(lines.out, whole, signature("generate --prompts", leon.hash))
        written.append(str(lines.out))
    table: dict[str, Any] = {
        "task": "generate",
        "files": written[:count],
        "prompts": prompts,
        "seed": lines.seed,
        "sheet": written[count] if len(written) > count else None,
        "model": leon.hash,
        "retrieved": [found.used for found in retrieved],
    }
    print_result(written, table, as_json)
