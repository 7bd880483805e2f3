"""Token ids in, token ids out: prefill the prompts, then one step at a time.

After prompts and codec (which make the ids), before codec again (which reads the result). All
guidance streams of all samples stand in one batch: equal prompts are read once and their cache rows
repeated, every stream has its own length in the cache, and each drawn token is fed to every stream
of its sample.

Shapes: W = guidance streams, B = samples still growing, P = distinct prompts, L = new tokens,
D = width, V = ids that may be drawn.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cm3leon.attention import KVCache
from cm3leon.grammar import Choices, Grammar, Walk, longest, token_at
from cm3leon.model import Decoder
from cm3leon.sampling import Sampling, choose, combine
from tokenizer.errors import UserError
from tokenizer.vocabulary import PAD

Progress = Callable[[int, int], None]  # tokens of the sample that is farthest on, and at most


@dataclass(frozen=True)
class Streams:
    """The prompts that guide one request, the one that says everything first.

    One prompt: no guidance. Two: with and without the text. Three, for editing: instruction and
    picture, picture only, neither.
    """

    prompts: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        assert 1 <= len(self.prompts) <= 3, "one to three streams"
        assert all(self.prompts), "a prompt without ids"


@dataclass(frozen=True, kw_only=True)
class Request:
    """One thing to generate, with one seed for every sample wanted."""

    streams: Streams
    grammar: Grammar
    seeds: tuple[int, ...]


class Sample:
    """One sample under way."""

    def __init__(self, request: Request, seed: int) -> None:
        self.walk = Walk(request.grammar)
        self.generator = torch.Generator().manual_seed(seed)
        self.ids = self.walk.given()
        self.unfed = list(self.ids)  # ids the model has not seen yet

    @property
    def over(self) -> bool:
        return not self.walk.choices

    def add(self, token: int) -> None:
        """Take a drawn token and all that follows from it."""
        self.walk.take(token)
        self.unfed = [token, *self.walk.given()]
        self.ids += self.unfed


def generate(
    model: Decoder,
    streams: Streams,
    grammar: Grammar,
    sampling: Sampling,
    seeds: Sequence[int],
    progress: Progress | None = None,
) -> list[list[int]]:
    """One row of new ids for each seed, given ids and stops included."""
    request = Request(streams=streams, grammar=grammar, seeds=tuple(seeds))
    return generate_batch(model, [request], sampling, progress)[0]


@torch.inference_mode()
def generate_batch(
    model: Decoder,
    requests: Sequence[Request],
    sampling: Sampling,
    progress: Progress | None = None,
) -> list[list[list[int]]]:
    """Several requests in one batch: for each, one row of new ids for each of its seeds.

    A sample depends on its own prompts and seed only, not on who shares its batch. Raises
    UserError when prompt and answer do not fit the model's context, and when contrastive decoding
    is asked of anything but two streams.
    """
    check(model, requests, sampling)
    samples = [[Sample(request, seed) for seed in request.seeds] for request in requests]
    growing = [sample for row in samples for sample in row]
    most = max(longest(request.grammar) for request in requests)
    cache, hidden_WBD = prefill(model, requests)
    while True:
        speak(model, growing, hidden_WBD, sampling)
        if progress is not None:
            progress(max(len(sample.ids) for sample in growing), most)
        growing, cache = drop_finished(growing, cache)
        if not growing:
            return [[sample.ids for sample in row] for row in samples]
        hidden_WBD = feed(model, growing, cache)


def check(model: Decoder, requests: Sequence[Request], sampling: Sampling) -> None:
    """Refuse what cannot work before anything dear happens."""
    assert requests, "nothing to generate"
    widths = {len(request.streams.prompts) for request in requests}
    assert len(widths) == 1, "requests in one batch have the same streams"
    if sampling.contrastive and widths != {2}:
        raise UserError(
            "contrastive decoding compares a prompt with none, which this task does not do; "
            "leave 'contrastive' off"
        )
    context = model.config.context
    for request in requests:
        assert request.seeds, "a request for no samples"
        assert longest(request.grammar), "a grammar that lets nothing through"
        prompt = max(len(ids) for ids in request.streams.prompts)
        to_come = longest(request.grammar)
        if prompt + to_come - 1 > context:  # nothing follows the last id, so it needs no place
            raise UserError(
                f"the prompt has {prompt} tokens and up to {to_come} are to follow, but the model "
                f"has room for {context}; shorten the prompt or ask for less"
            )


def prefill(model: Decoder, requests: Sequence[Request]) -> tuple[KVCache, Tensor]:
    """Read every distinct prompt once, right-padded in one batch; then a cache row and a last
    hidden state, hidden_WBD, for every stream of every sample (streams outermost)."""
    by_stream = zip(*(request.streams.prompts for request in requests), strict=True)
    wanted = [
        prompt
        for prompts in by_stream
        for prompt, request in zip(prompts, requests, strict=True)
        for _ in request.seeds
    ]
    places = {prompt: place for place, prompt in enumerate(dict.fromkeys(wanted))}
    prompts = list(places)
    counts = [len(prompt) for prompt in prompts]
    device = model.embed.weight.device
    padded = [[*prompt, *[PAD] * (max(counts) - len(prompt))] for prompt in prompts]
    cache = model.new_cache(len(prompts), max(counts))
    hidden_PLD = model(torch.tensor(padded, device=device), cache, counts=counts)
    last_P = torch.tensor(counts, device=device) - 1
    hidden_PD = hidden_PLD[torch.arange(len(prompts), device=device), last_P]
    if not hidden_PD.isfinite().all():
        raise UserError("the model answers with numbers that are not finite; its weights are bad")
    rows = [places[prompt] for prompt in wanted]
    room = max(
        len(prompt) + longest(request.grammar) - 1
        for request in requests
        for prompt in request.streams.prompts
    )
    hidden_WBD = hidden_PD[rows].unflatten(0, (len(requests[0].streams.prompts), -1))
    return cache.take(rows, room), hidden_WBD


def speak(
    model: Decoder, growing: Sequence[Sample], hidden_WBD: Tensor, sampling: Sampling
) -> None:
    """Draw the next id of every sample that has been read to its end.

    Samples that may say the same are drawn together, and only the rows of the head that hold what
    they may say are multiplied.
    """
    together: dict[Choices, list[int]] = defaultdict(list)
    for row, sample in enumerate(growing):
        if not sample.unfed and not sample.over:
            together[sample.walk.choices].append(row)
    for choices, rows in together.items():
        chosen_WBD = hidden_WBD[:, rows]
        logits_WBV = logits_of(model, chosen_WBD, choices)
        noise_B = torch.stack([torch.rand((), generator=growing[row].generator) for row in rows])
        columns_B = choose(combine(logits_WBV, sampling), sampling, noise_B)
        for row, column in zip(rows, columns_B.tolist(), strict=True):
            growing[row].add(token_at(choices, column))


def logits_of(model: Decoder, hidden_D: Tensor, choices: Choices) -> Tensor:
    """Logits of the ids in `choices`, side by side in float32; any leading shape."""
    parts = [model.logits(hidden_D, slice(ids.start, ids.stop)).float() for ids in choices]
    return torch.cat(parts, dim=-1)


def drop_finished(growing: list[Sample], cache: KVCache) -> tuple[list[Sample], KVCache]:
    """Keep the samples that go on, and their cache rows."""
    kept = [row for row, sample in enumerate(growing) if not sample.over]
    if len(kept) in (0, len(growing)):
        return [growing[row] for row in kept], cache
    starts = range(0, len(cache.lengths), len(growing))  # of each stream's rows
    cache = cache.take([start + row for start in starts for row in kept])
    return [growing[row] for row in kept], cache


def feed(model: Decoder, growing: Sequence[Sample], cache: KVCache) -> Tensor:
    """Show every stream as many new ids as all samples have in store; hidden_WBD of the last."""
    length = min(len(sample.unfed) for sample in growing)
    ids_BL = torch.tensor([sample.unfed[:length] for sample in growing], device=cache.device)
    for sample in growing:
        del sample.unfed[:length]
    streams = len(cache.lengths) // len(growing)
    hidden_BLD = model(ids_BL.repeat(streams, 1), cache)
    return hidden_BLD[:, -1].unflatten(0, (streams, -1))
