"""Many prompts through one engine: each picture as it is done, not when all are.

Beside pipeline, which paints one request; what is painted is the same.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from PIL import Image

from cm3leon import grammar, prompts
from cm3leon.engine import Engine
from cm3leon.pipeline import CM3Leon
from cm3leon.request import Request, Streams
from cm3leon.sampling import Sampling
from tokenizer.document import Document, Picture

IN_FLIGHT = 16  # requests under way at one time


@dataclass(frozen=True, kw_only=True)
class Wish:
    """A picture to paint from words; `retrieved` are examples to lean on."""

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
) -> Iterator[tuple[int, Image.Image]]:
    """The number of each wish and its picture, in the order in which they are done: the very
    picture that `text_to_image` paints of it alone, as far as sums of another order let it.

    in_flight: pictures under way at one time, which bounds the memory; progress: called with
    (tokens so far, all there will be). Raises UserError, before anything is painted, for a prompt
    that does not fit the model.
    """
    found = paint_codes(leon, wishes, sampling, in_flight=in_flight, progress=progress)
    return ((number, leon.to_image(Picture(codes))) for number, codes in found)


def paint_codes(
    leon: CM3Leon,
    wishes: Sequence[Wish],
    sampling: Sampling | None = None,
    *,
    in_flight: int = IN_FLIGHT,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """As `paint_all`, but what comes of a wish is its codes, whose pixels nobody has made yet."""
    requests = requests_of(leon, wishes, sampling)
    if not requests:
        return
    capacity = max(request.room for request in requests)
    engine = Engine(leon.model, rows=in_flight * requests[0].rows, capacity=capacity)
    numbers = {engine.submit(request): number for number, request in enumerate(requests)}
    length = leon.codec.picture_codes
    done = 0
    while engine.busy:
        for ticket, [ids] in engine.step().items():
            done += 1
            yield numbers[ticket], leon.codec.decode_codes(ids)
        if progress is not None:
            progress(done * length + sum(engine.lengths), len(requests) * length)


def requests_of(
    leon: CM3Leon, wishes: Sequence[Wish], sampling: Sampling | None = None
) -> list[Request]:
    """What each wish asks of an engine. Raises UserError for a prompt that does not fit the
    model."""
    requests = [_request(leon, wish, sampling or leon.sampling.text_to_image) for wish in wishes]
    for request in requests:
        request.check(leon.model.config)
    return requests


def _request(leon: CM3Leon, wish: Wish, sampling: Sampling) -> Request:
    documents = prompts.paint(wish.prompt, examples=bool(wish.retrieved))
    return Request(
        streams=Streams(tuple(leon.codec.open(one, wish.retrieved) for one in documents)),
        grammar=grammar.picture(leon.codec.vocabulary, leon.codec.picture_codes),
        seeds=(wish.seed,),
        sampling=sampling,
    )
