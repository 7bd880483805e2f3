"""Continuous-batching engine: requests of any task join and leave between decoding steps.

`generate` submits requests and waits for them. Every stream of every sample has a row of the KV
cache, and all rows advance by one id per step. Equal prompts that are admitted together, and equal
prefixes of prompts, are read once and their rows copied. Samples with the same allowed ids and the
same sampling parameters form a group, which draws without a host synchronisation until something
can change: no step within an image waits for the device.

Shapes: R = rows of the cache in use, W = guidance streams, B = samples of a group, M = W * B,
P = distinct prompts, L = new tokens, D = width, T = steps, V = ids that may be drawn.
"""

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

from cm3leon.engine.prefill import Prompt, Reading, plan
from cm3leon.engine.request import ActiveSample, Request
from cm3leon.fast.cuda_graphs import stepper
from cm3leon.grammar import Choices
from cm3leon.model import Decoder
from cm3leon.sampling import Sampling, choose, combine, favour
from tokenizer.errors import UserError
from tokenizer.vocabulary import PAD


@dataclass(frozen=True)
class ActiveRequest:
    """Admitted request and its samples."""

    request: Request
    samples: Sequence[ActiveSample]


class SampleGroup:
    """Samples with the same allowed ids and the same sampling parameters.

    Drawn ids stay on the device until `settle` passes them to the samples: after each draw if any
    draw may be the last, otherwise at the end.
    """

    def __init__(self, samples: Sequence[ActiveSample], device: torch.device) -> None:
        self.samples = samples
        self.choices, self.sampling = samples[0].choices, samples[0].sampling
        self.watchful = any(sample.walk.may_stop for sample in samples)
        self.drawn: list[Tensor] = []  # ids_B of each step since the last `settle`
        rows_WB = zip(*(sample.rows for sample in samples), strict=True)
        self.rows_M = torch.tensor([row for rows_B in rows_WB for row in rows_B], device=device)
        self.streams = len(samples[0].rows)
        steps = min(sample.walk.left for sample in samples)
        noise_TB = torch.stack([sample.noise(steps) for sample in samples], dim=1).to(device)
        self.noise = noise_TB.unbind()
        self.step = 0
        ids = [token for part in self.choices for token in part]
        lie_together = ids[-1] - ids[0] == len(ids) - 1
        self.first = ids[0] if lie_together else None
        self.ids_V = torch.tensor(ids, device=device)
        self.favoured: Sequence[Tensor] = ()  # columns_B of each step
        if samples[0].favoured:
            ids_BT = [one.favoured[one.drawn : one.drawn + steps] for one in samples]
            self.favoured = (torch.tensor(ids_BT, device=device).T - ids[0]).unbind()

    def draw(self, model: Decoder, hidden_RD: Tensor) -> Tensor:
        """Draw the next id of every sample and return ids_B."""
        logits_MV = logits_of(model, hidden_RD[self.rows_M], self.choices)
        logits_WBV = logits_MV.unflatten(0, (-1, len(self.samples)))
        logits_BV, noise_B = combine(logits_WBV, self.sampling), self.noise[self.step]
        if self.favoured:
            logits_BV = favour(logits_BV, self.favoured[self.step], self.sampling.keep)
        columns_B = choose(logits_BV, self.sampling, noise_B)
        ids_B = self.ids_V[columns_B] if self.first is None else columns_B + self.first
        self.drawn.append(ids_B)
        self.step += 1
        return ids_B

    def settle(self, *, fed: bool) -> None:
        """Append the drawn ids to the samples; `fed`: the model has processed the last of them."""
        if not self.drawn:
            return
        rows = torch.stack(self.drawn, dim=1).tolist()
        self.drawn = []
        for sample, tokens in zip(self.samples, rows, strict=True):
            sample.add(tokens)
            if fed:
                sample.unfed.clear()

    def goes_on(self) -> bool:
        """Return whether all samples draw from the same ids again after this draw."""
        if not self.watchful:
            return self.step < len(self.noise)
        self.settle(fed=False)
        return not any(
            sample.over or len(sample.unfed) > 1 or sample.walk.choices != self.choices
            for sample in self.samples
        )


class Engine:
    """Continuous-batching engine with a fixed number of cache rows.

    Requests are admitted in order of arrival as rows become free, and returned when finished. A
    sample depends only on its own prompts, sampling and seed, not on the other samples in the
    batch.

    rows: streams of samples that can be decoded at one time; capacity: tokens per row. Their
    product bounds the memory (`KVCache`), however many requests wait.
    """

    def __init__(self, model: Decoder, *, rows: int, capacity: int) -> None:
        self.model = model
        self.cache = model.new_cache(rows, capacity)
        self.decode = stepper(model, self.cache)
        self.waiting: deque[tuple[int, Request]] = deque()
        self.jobs: dict[int, ActiveRequest] = {}
        self.samples: list[ActiveSample] = []  # running
        self.owners: list[tuple[ActiveSample, int]] = []  # sample and stream of each row in use
        self.groups: list[SampleGroup] | None = None  # None: to be rebuilt
        self.hidden_RD = model.embed.weight.new_empty(0, model.config.width)  # after the last id
        self.next_R = torch.zeros(rows, dtype=torch.long, device=self.cache.device)
        self.tickets = count()

    @property
    def busy(self) -> bool:
        """True if any request is running or waiting."""
        return bool(self.jobs or self.waiting)

    @property
    def lengths(self) -> list[int]:
        """Number of ids of each running sample."""
        unsettled = {
            id(sample): len(group.drawn) for group in self.groups or () for sample in group.samples
        }
        return [len(sample.ids) + unsettled.get(id(sample), 0) for sample in self.samples]

    def submit(self, request: Request) -> int:
        """Queue a request and return its ticket. Raises UserError when it can never fit."""
        request.check(self.model.config)
        rows, room = len(self.cache.lengths), self.cache.capacity
        if request.rows > rows or request.room > room:
            raise UserError(
                f"the request needs {request.rows} rows of {request.room} tokens, but the engine "
                f"has {rows} of {room}; ask for fewer samples or make the engine larger"
            )
        ticket = next(self.tickets)
        self.waiting.append((ticket, request))
        return ticket

    @torch.inference_mode()
    def cancel(self, ticket: int) -> None:
        """Drop a request, whether waiting or running; its rows are free at once."""
        self.waiting = deque(entry for entry in self.waiting if entry[0] != ticket)
        job = self.jobs.pop(ticket, None)
        if job is not None:
            self._settle(fed=True)
            self._release([sample for sample in job.samples if sample in self.samples])

    @torch.inference_mode()
    def so_far(self, ticket: int) -> list[list[int]]:
        """Return the ids so far of each sample of a request; an empty list while it waits."""
        if ticket not in self.jobs:
            return []
        self._settle(fed=True)
        return [list(sample.ids) for sample in self.jobs[ticket].samples]

    @torch.inference_mode()
    def step(self) -> dict[int, list[list[int]]]:
        """Generate one more id for every running sample.

        Returns the finished requests: for each ticket, the new ids of every sample, given ids and
        stops included.
        """
        self._admit()
        self._draw()
        if self.groups is None:  # otherwise no sample can be complete
            self._release([sample for sample in self.samples if sample.over])
        if self.samples:
            self._feed()
        over = [t for t, job in self.jobs.items() if all(sample.over for sample in job.samples)]
        return {ticket: [sample.ids for sample in self.jobs.pop(ticket).samples] for ticket in over}

    def _admit(self) -> None:
        """Admit requests from the head of the queue while rows are free, and read their prompts."""
        free = len(self.cache.lengths) - len(self.owners)
        wanted = list[tuple[ActiveSample, int, Prompt]]()
        while self.waiting and self.waiting[0][1].rows <= free:
            ticket, request = self.waiting.popleft()
            samples = [
                ActiveSample(request, sampling, seed)
                for seed, sampling in zip(request.seeds, request.samplings, strict=True)
            ]
            self.jobs[ticket] = ActiveRequest(request, samples)
            self.samples += samples
            for stream, prompt in enumerate(request.streams.prompts):
                wanted += [(sample, stream, prompt) for sample in samples]
            free -= request.rows
        if wanted:
            self._settle(fed=True)
            self._prefill(wanted)

    def _prefill(self, wanted: Sequence[tuple[ActiveSample, int, Prompt]]) -> None:
        """Read every distinct prompt once, and copy its row to the other rows with that prompt."""
        first = len(self.owners)
        passes = plan(list({prompt: None for *_, prompt in wanted}), self.cache.capacity)
        order = [reading.prompt for readings in passes for reading in readings]
        places = {prompt: first + number for number, prompt in enumerate(order)}
        hidden = torch.cat([self._read(readings, places) for readings in passes])
        if not hidden.isfinite().all():
            raise UserError("the model's answers are not finite numbers; its weights are bad")
        leaders: dict[Prompt, tuple[ActiveSample, int, Prompt]] = {}
        others: list[tuple[ActiveSample, int, Prompt]] = []
        for entry in wanted:
            if leaders.setdefault(entry[2], entry) is not entry:
                others.append(entry)
        entries = [*(leaders[prompt] for prompt in order), *others]
        sources = [places[prompt] for *_, prompt in others]
        self.cache.copy(sources, range(first + len(order), first + len(entries)))
        for row, (sample, stream, _) in enumerate(entries, first):
            sample.rows[stream] = row
            self.owners.append((sample, stream))
        at = [places[prompt] - first for *_, prompt in entries]
        self.hidden_RD = torch.cat((self.hidden_RD[:first], hidden[at]))

    def _read(self, readings: Sequence[Reading], places: Mapping[Prompt, int]) -> Tensor:
        """Run one right-padded pass of the plan; return hidden_PD, the states after the last
        ids."""
        cache, device = self.cache, self.cache.device
        start = places[readings[0].prompt]
        cache.rows = range(start, start + len(readings))
        cache.clear(cache.rows)
        if readings[0].source:
            sources = [places[reading.source] for reading in readings]
            cache.copy(sources, cache.rows, [reading.shared for reading in readings])
        counts = [len(reading.rest) for reading in readings]
        padded = [
            [*reading.rest, *[PAD] * (max(counts) - count)]
            for reading, count in zip(readings, counts, strict=True)
        ]
        hidden_PLD = self.model(torch.tensor(padded, device=device), cache, counts=counts)
        last_P = torch.tensor(counts, device=device) - 1
        return hidden_PLD[torch.arange(len(counts), device=device), last_P]

    def _draw(self) -> None:
        """Draw one id for every sample without unfed ids, grouped by choices and sampling."""
        if self.groups is None:
            together: dict[tuple[Choices, Sampling, int, bool], list[ActiveSample]] = defaultdict(
                list
            )
            for sample in self.samples:
                if sample.choices:
                    like = (sample.choices, sample.sampling, len(sample.rows))
                    together[*like, bool(sample.favoured)].append(sample)
            self.groups = [SampleGroup(samples, self.cache.device) for samples in together.values()]
        for group in self.groups:
            ids_B = group.draw(self.model, self.hidden_RD)
            self.next_R.index_copy_(0, group.rows_M, ids_B.repeat(group.streams))
        if not all([group.goes_on() for group in self.groups]):
            self._settle(fed=False)
            return
        for group in self.groups:  # their next ids are on the device
            for sample in group.samples:
                sample.unfed.clear()

    def _settle(self, *, fed: bool) -> None:
        """Pass the drawn ids to all samples, and have the groups rebuilt."""
        for group in self.groups or ():
            group.settle(fed=fed)
        self.groups = None

    def _release(self, samples: Sequence[ActiveSample]) -> None:
        """Free the rows of these samples; the last rows move into the gaps."""
        if not samples:
            return
        gone = {row for sample in samples for row in sample.rows}
        left = len(self.owners) - len(gone)
        gaps = [row for row in sorted(gone) if row < left]
        movers = [row for row in range(left, len(self.owners)) if row not in gone]
        self.cache.copy(movers, gaps)
        for mover, gap in zip(movers, gaps, strict=True):
            sample, stream = self.owners[gap] = self.owners[mover]
            sample.rows[stream] = gap
        self.cache.clear(range(left, len(self.owners)))
        del self.owners[left:]
        self.samples = [sample for sample in self.samples if sample not in samples]
        order = list(range(len(self.hidden_RD)))
        for mover, gap in zip(movers, gaps, strict=True):
            order[gap] = mover
        self.hidden_RD = self.hidden_RD[
            torch.tensor(order[:left], dtype=torch.long, device=self.cache.device)
        ]

    def _feed(self) -> None:
        """Feed every row its next id, or as many ids at once as all samples have waiting."""
        rows, device = len(self.owners), self.cache.device
        self.cache.rows = range(rows)
        length = min(len(sample.unfed) for sample in self.samples)
        if length:
            ids_RL = torch.tensor([s.unfed[:length] for s, _ in self.owners], device=device)
        else:  # ids drawn by a group are on the device only
            length = 1
            forced = {row: s.unfed[0] for row, (s, _) in enumerate(self.owners) if s.unfed}
            if forced:
                at, ids = (torch.tensor([*x], device=device) for x in (forced, forced.values()))
                self.next_R[at] = ids
            ids_RL = self.next_R[:rows].unsqueeze(1)
        if length > 1:
            self.hidden_RD = self.model(ids_RL, self.cache)[:, -1]
        else:
            self.hidden_RD = self.decode(ids_RL[:, 0])
        for sample in self.samples:
            if sample.unfed:
                del sample.unfed[:length]
                if not sample.unfed and self.groups is not None:
                    self._settle(fed=True)


def logits_of(model: Decoder, hidden_D: Tensor, choices: Choices) -> Tensor:
    """Return logits of the ids in `choices`, concatenated in float32; any leading shape."""
    parts = [model.logits(hidden_D, slice(ids.start, ids.stop)).float() for ids in choices]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
