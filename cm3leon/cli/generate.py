"""Commands that generate an image: generate, edit, infill, reconstruct."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cm3leon.cli import options
from cm3leon.cli.generate_run import ImageRequest, PromptFile, check, run, run_prompts
from cm3leon.cli.options import GuidedSamplingOptions, ModelOptions, SamplingOptions
from cm3leon.cli.output import ImageMetadata, check_out, print_result, signature, write_images
from cm3leon.cli.rerank import Reranker, RerankOptions, default_candidates
from cm3leon.cli.retrieve import RetrievalOptions, open_retriever
from tokenizer.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from cm3leon.regions import Box


def add_to(app: typer.Typer) -> None:
    """Add this file's commands."""
    options.add(app, generate, edit, infill, reconstruct)


def generate(
    prompt: Annotated[str | None, typer.Argument(help="What the image shows.")] = None,
    like: Annotated[
        Path | None, typer.Option(help="Repeat this image; other options change it.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Text file of prompts: an image for every line.")
    ] = None,
    out: options.Out = Path("generated.png"),
    n: options.OtherCount = None,
    seed: options.OtherSeed = None,
    *,
    drawing: GuidedSamplingOptions,
    ranking: RerankOptions,
    retrieval: RetrievalOptions,
    model: ModelOptions,
    as_json: options.Json = False,
) -> None:
    """Generate an image from a text prompt."""
    source, samples, keep = _repeated(like, n)
    folder, sampling = options.sampling_of(model.model, "text_to_image", drawing)
    if source is not None:
        sampling = options.with_changes(source.settings, drawing)
    defaults = options.defaults_of(folder)
    usual = default_candidates(defaults.candidates, samples, sampling.temperature)
    reranker = Reranker.of(ranking, retrieval.encoder, source, usual)
    repeats_none = retrieval.silent and source is not None and not source.retrieved
    wanted = retrieval.or_default(0 if repeats_none else defaults.retrieve)
    wanted.check(encoder_has_use=reranker.candidates > 1)
    if prompts is not None:
        _refuse_with_prompts(prompt, like, n)
        lines = PromptFile(path=prompts, out=out, seed=seed or 0, folder=folder, sampling=sampling)
        return run_prompts(lines, wanted, reranker, model, as_json, quiet=retrieval.silent)
    prompt = _prompt(prompt, source, wanted)
    check(prompt, out, 1 if keep else samples)
    reranker.open(samples, sampling, model.device)
    find = open_retriever(wanted, folder, model.device, quiet=retrieval.silent)
    request = ImageRequest(
        task="generate",
        prompt=prompt,
        seed=(source.seed if source else 0) if seed is None else seed,
        samples=samples,
        like=source,
        keep=keep,
        out=out,
        folder=folder,
        sampling=sampling,
        retrieved=find(prompt, None),
        reranker=reranker,
    )
    examples, ranked = request.retrieved.documents, reranker.arguments
    run(
        request,
        model,
        as_json,
        lambda leon, progress: leon.text_to_image(
            prompt, samples, request.seed, sampling, examples, progress, **ranked
        ),
    )


def edit(
    image: options.ImageFile,
    instruction: Annotated[str, typer.Argument(help="What to change.")],
    out: options.Out = Path("edited.png"),
    n: options.Count = 1,
    seed: options.Seed = 0,
    image_scale: Annotated[
        float | None, typer.Option(help="Guidance scale of the source image.")
    ] = None,
    text_scale: Annotated[
        float | None, typer.Option(help="Guidance scale of the instruction.")
    ] = None,
    keep: Annotated[
        float | None, typer.Option(help="Nats added to each code that the source has there.")
    ] = None,
    *,
    drawing: SamplingOptions,
    retrieval: RetrievalOptions,
    model: ModelOptions,
    as_json: options.Json = False,
) -> None:
    """Edit an image by an instruction."""
    check(instruction, out, n, "instruction")
    retrieval.check()
    source = options.open_image(image)
    scales = {"image_scale": image_scale, "text_scale": text_scale, "keep": keep}
    folder, sampling = options.sampling_of(model.model, "edit", drawing, **scales)
    find = open_retriever(retrieval, folder, model.device, quiet=False)
    request = ImageRequest(
        task="edit",
        prompt=instruction,
        seed=seed,
        samples=n,
        out=out,
        folder=folder,
        sampling=sampling,
        retrieved=find(instruction, source),
    )
    run(
        request,
        model,
        as_json,
        lambda leon, progress: leon.edit(
            source, instruction, n, seed, sampling, request.retrieved.documents, progress
        ),
    )


def infill(
    image: options.ImageFile,
    box: Annotated[str | None, typer.Option(help="left,top,right,bottom in pixels.")] = None,
    mask: Annotated[
        Path | None, typer.Option(help="Image of the same size, white where to generate.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="What the whole image shows.")] = None,
    out: options.Out = Path("infilled.png"),
    n: options.Count = 1,
    seed: options.Seed = 0,
    *,
    drawing: SamplingOptions,
    model: ModelOptions,
    as_json: options.Json = False,
) -> None:
    """Generate a region of an image anew."""
    check("nothing" if prompt is None else prompt, out, n)
    source = options.open_image(image)
    region = _region(source.size, box, mask)
    folder, sampling = options.sampling_of(model.model, "infill", drawing)
    request = ImageRequest(
        task="infill",
        prompt=prompt or "",
        seed=seed,
        samples=n,
        out=out,
        folder=folder,
        sampling=sampling,
    )
    run(
        request,
        model,
        as_json,
        lambda leon, progress: leon.infill(source, region, prompt, n, seed, sampling, progress),
    )


def reconstruct(
    image: options.ImageFile,
    out: options.Out = Path("reconstructed.png"),
    model: options.Model = "default",
    device: options.Device = "auto",
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Encode an image to codes and decode it again."""
    from cm3leon.checkpoint import find

    check_out(out, 1)
    source = options.open_image(image)
    leon = options.open_model(find(model, options.say), device, threads)
    table = signature("reconstruct", leon.hash)
    paths = write_images(out, [leon.reconstruct(source)], [table])
    print_result(paths, {"task": "reconstruct", "files": [str(out)], "model": leon.hash}, as_json)


def _refuse_with_prompts(*others: object) -> None:
    if any(other is not None for other in others):
        raise typer.BadParameter(
            "--prompts generates one image a line; leave PROMPT, --like and -n out"
        )


def _repeated(like: Path | None, n: int | None) -> tuple[ImageMetadata | None, int, int | None]:
    """Return the metadata of the image to be repeated, how many samples, and which alone is
    wanted."""
    if like is None:
        return None, n or 1, None
    source = ImageMetadata.read(like, "generate")
    return source, n or source.samples, source.number if n is None else None


def _prompt(prompt: str | None, source: ImageMetadata | None, wanted: RetrievalOptions) -> str:
    """Return the prompt given, or else that of the image to be repeated."""
    if source is None:
        if prompt is None:
            raise typer.BadParameter("give a prompt, or --like IMAGE")
        return prompt
    if source.retrieved and wanted.memory is None and wanted.retrieve != 0:
        raise UserError(
            "that image was generated with documents of a memory; name it with --memory and "
            "--encoder, or leave them out with --retrieve 0"
        )
    return source.prompt if prompt is None else prompt


def _region(size: tuple[int, int], box: str | None, mask: Path | None) -> "Image.Image | Box":
    """Return the mask image, or the box as four numbers that lie inside the image."""
    if (box is None) == (mask is None):
        raise typer.BadParameter("give either --box or --mask")
    if mask is not None:
        return options.open_image(mask)
    assert box is not None
    from cm3leon.regions import check_box

    try:
        left, top, right, bottom = (int(side) for side in box.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"--box is {box!r}; write left,top,right,bottom") from error
    check_box((left, top, right, bottom), size)
    return left, top, right, bottom
