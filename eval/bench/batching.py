"""How much sooner many requests are done together than one by one, and whether they come to the
same.

Requests of all tasks, of a checkpoint's own pictures or of a shape with random weights, through one
engine with so many in flight; and each by itself. `cm3leon bench batching` prints what is found.
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
from eval.bench.decode import Times, by_turns
from eval.bench.shapes import CODES, Setting, job_of
from tokenizer.document import Document, Picture
from tokenizer.vocabulary import EOS, Vocabulary

THINGS = ("a red fox", "pizza", "a blue heart", "sunflower", "cat face", "a green car", "a house")
STYLES = ("Noto emoji style", "Twemoji style", "3D Fluent emoji style", "EmojiOne style")
HOLE = 3  # of a picture's cells, one in so many is painted anew

Ids = list[list[int]]


@dataclass(frozen=True, kw_only=True)
class BatchingResult:
    """What was measured."""

    requests: int
    in_flight: int
    tokens: int
    """Drawn or given after the prompts, of all requests."""
    together: Times
    """Seconds of all requests."""
    alone: Times
    equal: int
    """Requests with the same ids together and alone."""

    @property
    def ratio(self) -> float:
        """Throughput together over that one by one."""
        return self.alone.median / self.together.median


def measure(
    model: Decoder, requests: Sequence[Request], in_flight: int, times: int
) -> BatchingResult:
    """Time requests through one engine, by turns with one by one."""
    results: dict[str, list[Ids]] = {}

    def together() -> None:
        results["together"] = run(model, requests, in_flight)

    def alone() -> None:
        results["alone"] = [generate_batch(model, [request])[0] for request in requests]

    took = by_turns([together, alone], times, model.embed.weight.device)
    return BatchingResult(
        requests=len(requests),
        in_flight=in_flight,
        tokens=sum(len(ids) for rows in results["alone"] for ids in rows),
        together=took[0],
        alone=took[1],
        equal=sum(a == b for a, b in zip(results["together"], results["alone"], strict=True)),
    )


def run(model: Decoder, requests: Sequence[Request], in_flight: int) -> list[Ids]:
    """All requests through one engine; one comes in whenever one is done."""
    rows = in_flight * max(request.rows for request in requests)
    engine = Engine(model, rows=rows, capacity=max(request.room for request in requests))
    coming, tickets, found = list(reversed(requests)), list[int](), dict[int, Ids]()
    while coming or engine.busy:
        while coming and len(tickets) - len(found) < in_flight:
            tickets.append(engine.submit(coming.pop()))
        found |= engine.step()
    return [found[ticket] for ticket in tickets]


def of_shape(shape: str, precision: Precision, device: str) -> tuple[Decoder, Precision]:
    """A decoder of a shape of `shapes`, with random weights, and the precision it came to have."""
    model = job_of(Setting(shape=shape, device=device)).model
    return model, prepare(model, precision)


def mixed_of_shape(model: Decoder, count: int, tokens: int) -> list[Request]:
    """Requests of every task in turn for random weights, whose pictures have `tokens` codes: every
    other one behind a document, and texts as long as pictures, for nothing ever stops them."""
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
    """Requests of every task in turn, of the model's own pictures; every other one has a document
    in front."""
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
