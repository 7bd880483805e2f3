"""Commands that read a picture and end in words: caption, answer."""

from typing import Annotated

import typer

from cm3leon.cli import options
from cm3leon.cli.output import Progress, tell
from cm3leon.cli.retrieving import DEFAULT, Count, EncoderName, MemoryFolder, Wanted, with_habit
from cm3leon.cli.retrieving import retrieve as find_documents
from tokenizer.errors import UserError


def add_to(app: typer.Typer) -> None:
    """Name this file's commands."""
    app.command()(caption)
    app.command()(answer)


def caption(
    picture: options.PictureFile,
    n: options.Count = 1,
    seed: options.Seed = 0,
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
    """Say what a picture shows."""
    silent = memory is None and retrieve is None
    image = options.open_picture(picture)
    folder, sampling = options.sampling_of(
        model, "caption", temperature=temperature, top_k=top_k, top_p=top_p
    )
    memory, retrieve = with_habit(memory, encoder, retrieve, options.habits_of(folder).retrieve)
    wanted = Wanted(memory=memory, encoder=encoder, count=retrieve, habit=silent)
    retrieved = find_documents(wanted, folder, device, picture=image)
    leon = options.open_model(folder, device, threads, precision)
    with Progress(n) as progress:
        texts = leon.caption(image, n, seed, sampling, retrieved.documents, progress)
    table = {"task": "caption", "texts": texts, "seed": seed, "model": leon.hash}
    tell(texts, {**table, "retrieved": retrieved.used}, as_json)


def answer(
    picture: options.PictureFile,
    question: Annotated[str, typer.Argument(help="What to ask about the picture.")],
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
    """Answer a question about a picture."""
    if not question.strip():
        raise UserError("the question is empty; write what you want to know")
    image = options.open_picture(picture)
    folder, sampling = options.sampling_of(
        model, "answer", temperature=temperature, top_k=top_k, top_p=top_p
    )
    leon = options.open_model(folder, device, threads, precision)
    with Progress(n) as progress:
        texts = leon.answer(image, question, n, seed, sampling, progress)
    tell(texts, {"task": "answer", "texts": texts, "seed": seed, "model": leon.hash}, as_json)
