"""Generation of token ids from the token ids of prompts, for a fixed set of requests.

`prompts` and `codec` make the input ids, and `codec` decodes the output ids. For a stream of
requests, keep an `Engine` instead.
"""

from collections.abc import Callable, Sequence

from cm3leon.engine.engine import Engine
from cm3leon.engine.request import Request, Streams
from cm3leon.grammar import Grammar, longest
from cm3leon.model import Decoder
from cm3leon.sampling import Sampling

Progress = Callable[[int, int], None]  # tokens of the longest sample so far, and the maximum
Watch = Callable[[int, Sequence[int]], None]  # a sample's index and its ids so far


def generate(
    model: Decoder,
    streams: Streams,
    grammar: Grammar,
    sampling: Sampling | Sequence[Sampling],
    seeds: Sequence[int],
    progress: Progress | None = None,
    watch: Watch | None = None,
    every: int = 1,
    favoured: tuple[int, ...] = (),
) -> list[list[int]]:
    """Return one row of new ids per seed, given ids and stops included.

    `watch` is called for each sample whenever another `every` ids are generated; `favoured` as in
    `Request`.
    """
    request = Request(
        streams=streams,
        grammar=grammar,
        seeds=tuple(seeds),
        sampling=sampling,
        favoured=favoured,
    )
    return generate_batch(model, [request], progress, watch, every)[0]


def generate_batch(
    model: Decoder,
    requests: Sequence[Request],
    progress: Progress | None = None,
    watch: Watch | None = None,
    every: int = 1,
) -> list[list[list[int]]]:
    """Generate several requests in one batch; return, for each, one row of new ids per seed.

    Raises UserError when prompt and answer do not fit the model's context.
    """
    assert requests, "nothing to generate"
    for request in requests:
        request.check(model.config)
    rows = sum(request.rows for request in requests)
    engine = Engine(model, rows=rows, capacity=max(request.room for request in requests))
    tickets = [engine.submit(request) for request in requests]
    most = max(longest(request.grammar) for request in requests)
    found: dict[int, list[list[int]]] = {}
    told = done = 0
    while engine.busy:
        over = engine.step()
        found |= over
        done = max(done, *engine.lengths, *(len(ids) for rows in over.values() for ids in rows))
        if progress is not None:
            progress(done, most)
        if watch is not None and engine.busy and done // every > told // every:
            told = done
            for number, ids in enumerate(row for t in tickets for row in engine.so_far(t)):
                watch(number, ids)
    return [found[ticket] for ticket in tickets]
