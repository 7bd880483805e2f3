"""The fixed sheet's prompts painted twice, with nothing in front and with what was retrieved, and
all of it side by side for a person to judge.

`eval.sheet.Chosen` -> documents found by the prompt alone -> two pictures of one seed -> a sheet.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from cm3leon.pipeline import CM3Leon
from eval.retrieval import look_up
from eval.sheet import CELL, Prompt
from retrieval.embed import Embedder
from retrieval.memory import Memory
from tokenizer.document import Picture
from tokenizer.pixels import fit, sheet

ACROSS = 2  # prompts in a row of the sheet


@dataclass(frozen=True, kw_only=True)
class Found:
    """A document that was retrieved: its picture as the codebook gives it back."""

    score: float
    metadata: dict[str, Any]
    picture: Image.Image


@dataclass(frozen=True, kw_only=True)
class Beside:
    """A prompt, its picture with nothing in front, and the one painted with what was found."""

    prompt: Prompt
    plain: Image.Image
    helped: Image.Image
    found: tuple[Found, ...]


def draw(
    model: CM3Leon,
    memory: Memory,
    embedder: Embedder,
    prompts: Sequence[Prompt],
    count: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[Beside]:
    """Paint every prompt twice with its number as the seed, the second time with up to `count`
    documents, none of which is the picture whose caption the prompt is."""
    words, ids = [one.prompt for one in prompts], [one.id for one in prompts]
    drawn: list[Beside] = []
    for one, chosen in zip(prompts, look_up(memory, embedder, words, ids, count), strict=True):
        documents = [memory.document(candidate.id) for candidate in chosen]
        (plain,) = model.text_to_image(one.prompt, seed=one.number)
        (helped,) = model.text_to_image(one.prompt, seed=one.number, retrieved=documents)
        rows = [(candidate.score, *memory.row(candidate.id)) for candidate in chosen]
        found = tuple(
            Found(score=score, metadata=metadata, picture=model.to_image(Picture(tuple(codes))))
            for score, metadata, codes in rows
        )
        drawn.append(Beside(prompt=one, plain=plain, helped=helped, found=found))
        if progress is not None:
            progress(len(drawn), len(prompts))
    return drawn


def picture(drawn: Sequence[Beside], count: int) -> Image.Image:
    """The sheet: of each prompt both pictures, then up to `count` documents with their scores."""
    blank = Image.new("RGB", (CELL, CELL), "white")
    cells: list[Image.Image] = []
    labels: list[str] = []
    for one in drawn:
        missing = count - len(one.found)
        pictures = [one.plain, one.helped, *(found.picture for found in one.found)]
        cells += [*(fit(picture, CELL) for picture in pictures), *[blank] * missing]
        labels += [f"{one.prompt.number}: {one.prompt.prompt}", f"with {len(one.found)} retrieved"]
        labels += [f"{found.score:.2f} {_caption(found)}" for found in one.found]
        labels += [""] * missing
    return sheet(cells, ACROSS * (2 + count), labels)


def _caption(found: Found) -> str:
    return next(iter(found.metadata.get("captions") or []), found.metadata["id"])
