"""Text-to-image generation of many prompts in one engine; images are yielded as they finish.

`pipeline` generates one request at a time; the images are the same.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from PIL import Image

from cm3leon import grammar, prompts
from cm3leon import rerank as pool
from cm3leon.engine.engine import Engine
from cm3leon.engine.request import Request, Streams
from cm3leon.pipeline import CM3Leon
from cm3leon.sampling import Sampling
from tokenizer.document import Document, Picture

IN_FLIGHT = 16  # images generated at one time


@dataclass(frozen=True, kw_only=True)
class Wish:
    """Prompt and seed of an image to generate; `retrieved` documents are in-context examples."""

    prompt: str
    seed: int = 0
    retrieved: Sequence[Document] = ()


def paint_all(
    leon: CM3Leon,
    wishes: Sequence[Wish],
    sampling: Sampling | None = None,
    *,
    in_flight: int = IN_FLIGHT,
    progress: Callable[[int, int], None] | None = None,
    candidates: int = 1,
    mix: bool = False,
    score: pool.Score | None = None,
) -> Iterator[tuple[int, Image.Image]]:
    """Yield the index of each wish and its image, in order of completion.

    The image is the one that `text_to_image` generates for the wish alone, up to floating-point
    differences from another order of summation.

    in_flight: images generated at one time, candidates included, which bounds the memory; progress:
    called with (tokens so far, total tokens). Raises UserError, before anything is generated, for a
    prompt that does not fit the model.
    """
    drawn = pool.samplings(sampling or leon.sampling.text_to_image, candidates, mix)
    for number, rows in _paint(leon, wishes, drawn, in_flight, progress):
        pictures = [leon.to_image(Picture(codes)) for codes in rows]
        yield number, pool.pick(wishes[number].prompt, pictures, candidates, score)[0]


def paint_codes(
    leon: CM3Leon,
    wishes: Sequence[Wish],
    sampling: Sampling | None = None,
    *,
    in_flight: int = IN_FLIGHT,
    progress: Callable[[int, int], None] | None = None,
    candidates: int = 1,
    score: pool.Score | None = None,
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Like `paint_all`, but yield codes; they are decoded to pixels only to choose a candidate."""
    drawn = pool.samplings(sampling or leon.sampling.text_to_image, candidates, False)
    for number, rows in _paint(leon, wishes, drawn, in_flight, progress):
        if score is None or candidates == 1:
            yield number, rows[0]
            continue
        pictures = [leon.to_image(Picture(codes)) for codes in rows]
        yield number, rows[pool.best(score(wishes[number].prompt, pictures))]


def _paint(
    leon: CM3Leon,
    wishes: Sequence[Wish],
    drawn: Sequence[Sampling],
    in_flight: int,
    progress: Callable[[int, int], None] | None,
) -> Iterator[tuple[int, list[tuple[int, ...]]]]:
    """Yield the index of each wish and the codes of all its candidates, in order of completion."""
    requests = requests_of(leon, wishes, drawn)
    if not requests:
        return
    capacity = max(request.room for request in requests)
    rows = max(in_flight // len(drawn), 1) * requests[0].rows
    engine = Engine(leon.model, rows=rows, capacity=capacity)
    numbers = {engine.submit(request): number for number, request in enumerate(requests)}
    length = leon.codec.picture_codes * len(drawn)
    done = 0
    while engine.busy:
        for ticket, found in engine.step().items():
            done += 1
            yield numbers[ticket], [leon.codec.decode_codes(ids) for ids in found]
        if progress is not None:
            progress(done * length + sum(engine.lengths), len(requests) * length)


def requests_of(leon: CM3Leon, wishes: Sequence[Wish], drawn: Sequence[Sampling]) -> list[Request]:
    """Return the engine request of each wish: a candidate per entry of `drawn`, with consecutive
    seeds.

    Raises UserError for a prompt that does not fit the model.
    """
    requests = [_request(leon, wish, drawn) for wish in wishes]
    for request in requests:
        request.check(leon.model.config)
    return requests


def _request(leon: CM3Leon, wish: Wish, drawn: Sequence[Sampling]) -> Request:
    documents = prompts.paint(wish.prompt, examples=bool(wish.retrieved))
    return Request(
        streams=Streams(tuple(leon.codec.open(one, wish.retrieved) for one in documents)),
        grammar=grammar.picture(leon.codec.vocabulary, leon.codec.picture_codes),
        seeds=tuple(range(wish.seed, wish.seed + len(drawn))),
        sampling=drawn,
    )
