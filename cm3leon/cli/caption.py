"""Commands that read an image and return text: caption, answer."""

from typing import Annotated

import typer

from cm3leon.cli import options
from cm3leon.cli.options import ModelOptions, SamplingOptions
from cm3leon.cli.output import Progress, print_result
from cm3leon.cli.retrieve import RetrievalOptions, open_retriever
from tokenizer.errors import UserError


def add_to(app: typer.Typer) -> None:
    """Add this file's commands."""
    options.add(app, caption, answer)


def caption(
    image: options.ImageFile,
    n: options.Count = 1,
    seed: options.Seed = 0,
    *,
    drawing: SamplingOptions,
    retrieval: RetrievalOptions,
    model: ModelOptions,
    as_json: options.Json = False,
) -> None:
    """Describe an image."""
    source = options.open_image(image)
    folder, sampling = options.sampling_of(model.model, "caption", drawing)
    wanted = retrieval.or_default(options.defaults_of(folder).retrieve)
    wanted.check()
    find = open_retriever(wanted, folder, model.device, quiet=retrieval.silent)
    retrieved = find(None, source)
    leon = model.open(folder)
    with Progress(n) as progress:
        texts = leon.caption(source, n, seed, sampling, retrieved.documents, progress)
    table = {"task": "caption", "texts": texts, "seed": seed, "model": leon.hash}
    print_result(texts, {**table, "retrieved": retrieved.used}, as_json)


def answer(
    image: options.ImageFile,
    question: Annotated[str, typer.Argument(help="What to ask about the image.")],
    n: options.Count = 1,
    seed: options.Seed = 0,
    *,
    drawing: SamplingOptions,
    model: ModelOptions,
    as_json: options.Json = False,
) -> None:
    """Answer a question about an image."""
    if not question.strip():
        raise UserError("the question is empty; write what you want to know")
    source = options.open_image(image)
    folder, sampling = options.sampling_of(model.model, "answer", drawing)
    leon = model.open(folder)
    with Progress(n) as progress:
        texts = leon.answer(source, question, n, seed, sampling, progress)
    table = {"task": "answer", "texts": texts, "seed": seed, "model": leon.hash}
    print_result(texts, table, as_json)
