"""Benchmark of batched requests: throughput of the engine against one request at a time.

Requests of all tasks, on a checkpoint's own images or for a decoder of some shape with random
weights, run through one engine with a fixed number in flight, and one by one; the results are
compared too. `cm3leon bench batching` prints the measurements.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice

from cm3leon import grammar, prompts
from cm3leon.engine.engine import Engine
from cm3leon.engine.request import Request, Streams
from cm3leon.fast.quantize import Precision, prepare
from cm3leon.generate import generate_batch
from cm3leon.grammar import Drawn
from cm3leon.model import Decoder
from cm3leon.pipeline import TEXT_LIMIT, CM3Leon
from cm3leon.prompts import pair
from eval.bench.shapes import CODES, DecodeSetting, job_of
from tokenizer.document import Document, Picture
from tokenizer.timing import Timing, interleaved
from tokenizer.vocabulary import EOS, Vocabulary

THINGS = ("a red fox", "pizza", "a blue heart", "sunflower", "cat face", "a green car", "a house")
STYLES = ("Noto emoji style", "Twemoji style", "3D Fluent emoji style", "EmojiOne style")
HOLE = 3  # every HOLE-th cell of an image is infilled

Ids = list[list[int]]


@dataclass(frozen=True, kw_only=True)
class BatchingResult:
    """Times of the same requests batched and one by one, and the number of equal results."""

    requests: int
    in_flight: int
    tokens: int
    """Ids after the prompts of all requests, generated or given."""
    together: Timing
    """Seconds for all requests through one engine."""
    alone: Timing
    equal: int
    """Requests with the same ids in both."""

    @property
    def ratio(self) -> float:
        """Batched throughput divided by that of one request at a time."""
        return self.alone.median / self.together.median


def measure(
    model: Decoder, requests: Sequence[Request], in_flight: int, times: int
) -> BatchingResult:
    """Time requests through one engine and one by one, in alternating runs."""
    results: dict[str, list[Ids]] = {}

    def together() -> None:
        results["together"] = run(model, requests, in_flight)

    def alone() -> None:
        results["alone"] = [generate_batch(model, [request])[0] for request in requests]

    took = interleaved([together, alone], times, model.embed.weight.device)
    return BatchingResult(
        requests=len(requests),
        in_flight=in_flight,
        tokens=sum(len(ids) for rows in results["alone"] for ids in rows),
        together=took[0],
        alone=took[1],
        equal=sum(a == b for a, b in zip(results["together"], results["alone"], strict=True)),
    )


def run(model: Decoder, requests: Sequence[Request], in_flight: int) -> list[Ids]:
    """Run all requests through one engine; a request is submitted whenever another has finished."""
    rows = in_flight * max(request.rows for request in requests)
    engine = Engine(model, rows=rows, capacity=max(request.room for request in requests))
    coming, tickets, found = list(reversed(requests)), list[int](), dict[int, Ids]()
    while coming or engine.busy:
        while coming and len(tickets) - len(found) < in_flight:
            tickets.append(engine.submit(coming.pop()))
        found |= engine.step()
    return [found[ticket] for ticket in tickets]


def of_shape(shape: str, precision: Precision, device: str) -> tuple[Decoder, Precision]:
    """Return a decoder of a shape of `shapes` with random weights, and its final precision."""
    model = job_of(DecodeSetting(shape=shape, device=device)).model
    return model, prepare(model, precision)


def mixed_of_shape(model: Decoder, count: int, tokens: int) -> list[Request]:
    """Return requests of every task in turn, for random weights and images of `tokens` codes.

    Every other request follows a document. Texts are as long as images, because their grammar has
    no stop id.
    """
    size = model.config.vocabulary
    vocabulary = Vocabulary(image_codes=CODES, text_pieces=size - CODES - 4 - 2 - 2, sentinels=2)
    draw = random.Random(0)

    def text(length: int) -> tuple[int, ...]:
        return tuple(vocabulary.text_id(draw.randrange(1000)) for _ in range(length))

    def picture() -> tuple[int, ...]:
        return tuple(vocabulary.image_id(draw.randrange(CODES)) for _ in range(tokens))

    between = vocabulary.break_id
    found: list[Request] = []
    for number in range(count):
        front = (EOS, *text(10), between, *picture()) if number % 2 else ()
        nothing = (*front, EOS, vocabulary.sentinel_id(0), between)
        whole = grammar.picture(vocabulary, tokens)
        source = (*front, EOS, *picture(), between)
        asked = (*front, EOS, *text(10), between)
        words = (Drawn(range(*vocabulary.text_ids.indices(size)), tokens),)
        prompts, rule = [
            ((asked, nothing), whole),
            (((*source, vocabulary.sentinel_id(0)),), words),
            (((*source, *text(6), between), source, nothing), whole),
            ((asked,), whole),
            ((asked, nothing), whole),
        ][number % 5]
        found.append(Request(streams=Streams(prompts), grammar=rule, seeds=(number,)))
    return found


def mixed(leon: CM3Leon, count: int) -> list[Request]:
    """Return requests of every task in turn, on images generated by the model.

    Every other request has a document before its prompt.
    """
    words = [f"{thing}, {style}" for thing, style in zip(THINGS, cycle(STYLES), strict=False)]
    pictures = [leon.to_picture(leon.text_to_image(text, seed=1)[0]) for text in words[:4]]
    makers = (_paint, _say, _edit, _infill, _paint)
    found: list[Request] = []
    for number, make in enumerate(islice(cycle(makers), count)):
        text, picture = words[number % len(words)], pictures[number % len(pictures)]
        example = pair(words[(number + 1) % 4], pictures[(number + 1) % 4])
        found.append(make(leon, text, picture, [example] if number % 2 else [], number))
    return found


def _paint(
    leon: CM3Leon, text: str, _: Picture, examples: Sequence[Document], seed: int
) -> Request:
    documents = prompts.paint(text, examples=bool(examples))
    return Request(
        streams=Streams(tuple(leon.codec.open(one, examples) for one in documents)),
        grammar=grammar.picture(leon.codec.vocabulary, leon.codec.picture_codes),
        seeds=(seed,),
        sampling=leon.sampling.text_to_image,
    )


def _say(
    leon: CM3Leon, _: str, picture: Picture, examples: Sequence[Document], seed: int
) -> Request:
    ids = leon.codec.infill(prompts.describe(picture), examples)
    room = leon.model.config.context - len(ids)
    return Request(
        streams=Streams((ids,)),
        grammar=grammar.text(leon.codec.vocabulary, min(TEXT_LIMIT, room)),
        seeds=(seed,),
        sampling=leon.sampling.caption,
    )


def _edit(
    leon: CM3Leon, text: str, picture: Picture, examples: Sequence[Document], seed: int
) -> Request:
    documents = prompts.change(f"make it {text}", picture)
    return Request(
        streams=Streams(tuple(leon.codec.open(one, examples) for one in documents)),
        grammar=grammar.picture(leon.codec.vocabulary, leon.codec.picture_codes),
        seeds=(seed,),
        sampling=leon.sampling.edit,
    )


def _infill(
    leon: CM3Leon, text: str, picture: Picture, _: Sequence[Document], seed: int
) -> Request:
    wanted = [cell % HOLE == 0 for cell in range(len(picture.codes))]
    asked = prompts.complete(picture, wanted, text)
    vocabulary = leon.codec.vocabulary
    fillings = [grammar.code_filling(vocabulary, known) for known in asked.known]
    return Request(
        streams=Streams((leon.codec.infill(asked.document),)),
        grammar=grammar.infilling(vocabulary, fillings),
        seeds=(seed,),
        sampling=leon.sampling.infill,
    )
