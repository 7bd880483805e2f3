"""How fast pictures are drawn, token by token: our decoding, beside transformers' of the same
weights and beside what reading the weights once a step takes at least.

A shape with random weights, or a whole checkpoint -> runs by turns in one process -> seconds and
tokens a second; the memory of each side is looked at in a process of its own.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import nn

from cm3leon.fast.cached import kept
from cm3leon.fast.native import NativeDecoder
from cm3leon.pipeline import pick_device
from eval.bench import baselines as rivals
from eval.bench.retrieval import Watched, apart
from eval.bench.shapes import (
    BYTES,
    CODES,
    NOTHING,
    PROMPT,
    SCALE,
    TEXT,
    Job,
    Setting,
    config_of,
    job_of,
    ready,
)

Action = Callable[[], object]

GIGABYTE = 10**9


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds of the runs of one thing."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Times":
        """The times of some runs."""
        return cls(median=median(seconds), least=min(seconds), most=max(seconds))


@dataclass(frozen=True, kw_only=True)
class Side:
    """One side of a comparison."""

    parameters: int
    drawing: Times
    """Of `n` pictures' tokens, prefill included."""
    prefill: Times
    """Of the first token alone."""
    peak_mb: float
    """Memory that the model and a run of it take beyond what the libraries do."""


@dataclass(frozen=True, kw_only=True)
class Floor:
    """What a step must at least read, and how long that takes."""

    weights: int
    """Bytes of the blocks' matrices and of the head's image rows."""
    cache: int
    """Bytes of keys and values that a step in the middle of a picture reads."""
    bandwidth: float
    """Bytes a second that this machine reads."""

    @property
    def seconds(self) -> float:
        """The least time of a step."""
        return (self.weights + self.cache) / self.bandwidth


@dataclass(frozen=True, kw_only=True)
class DecodingResult:
    """What was measured of one setting."""

    setting: Setting
    tokens: int
    """Of one picture."""
    ours: Side
    theirs: Side | None
    difference: float | None
    """The largest between both sides' logits of the prompts, before ours change precision."""
    floor: Floor
    compiled: bool
    """Whether our step was native's."""
    whole: Times | None
    """Of `n` pictures from words to pixels, where a checkpoint paints them."""

    def step(self, side: Side) -> float:
        """Seconds of a step after the prefill."""
        return (side.drawing.median - side.prefill.median) / (self.tokens - 1)

    @property
    def share(self) -> float:
        """The floor's time over that of our step: 1 is as fast as memory can be read."""
        return self.floor.seconds / self.step(self.ours)

    @property
    def ratio(self) -> float | None:
        """Our tokens a second over theirs."""
        return (
            None if self.theirs is None else self.theirs.drawing.median / self.ours.drawing.median
        )


def measure(setting: Setting) -> DecodingResult:
    """Everything there is to say of one setting."""
    job = job_of(setting)
    device = job.model.embed.weight.device
    net, apart_by = None, None
    if setting.against:
        net = rivals.their_model(job.model.config).to(device)
        rivals.give(job.model, net)
        apart_by = rivals.difference(job.model, net, job.prompts)
    read, count = matrices(job), parameters(job.model)
    job = ready(job, setting.weights)
    lengths = (job.tokens, 1)
    actions: list[Action] = [partial(job.run, setting.n, length) for length in lengths]
    if net is not None:
        draw = rivals.their_generate(net, job.prompts, setting.n, job.allowed.start, SCALE)
        actions += [partial(draw, length) for length in lengths]
    leon = job.leon
    if leon is not None:
        actions.append(partial(leon.text_to_image, PROMPT, setting.n))
    times = by_turns(actions, setting.times, device)
    return DecodingResult(
        setting=setting,
        tokens=job.tokens,
        ours=Side(
            parameters=count,
            drawing=times[0],
            prefill=times[1],
            peak_mb=apart(peak, setting, theirs=False),
        ),
        theirs=None
        if net is None
        else Side(
            parameters=parameters(net),
            drawing=times[2],
            prefill=times[3],
            peak_mb=apart(peak, setting, theirs=True),
        ),
        difference=apart_by,
        floor=floor(job, setting.n, read * BYTES[setting.weights]),
        compiled=isinstance(kept(job.model), NativeDecoder),
        whole=None if leon is None else times[-1],
    )


def by_turns(actions: Sequence[Action], times: int, device: torch.device) -> list[Times]:
    """The times of some actions that take turns, forwards and backwards; the first is not told."""
    seconds = [list[float]() for _ in actions]
    order = list(enumerate(actions))
    for number in range(times + 1):
        for place, action in order:
            _wait(device)
            begun = time.perf_counter()
            action()
            _wait(device)
            if number:
                seconds[place].append(time.perf_counter() - begun)
        order.reverse()
    return [Times.of(one) for one in seconds]


def peak(setting: Setting, *, theirs: bool) -> float:
    """Megabytes that one side's model and one run of it take at most. For a fresh process."""
    device = pick_device(setting.device)
    small = Setting(shape=setting.shape, device=setting.device, layers=1, width=64, tokens=2)
    _run_once(small, theirs)  # whatever is imported late is there before one looks
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        _run_once(setting, theirs)
        return torch.cuda.max_memory_allocated(device) / 1e6
    with Watched() as watched:
        _run_once(setting, theirs)
    return watched.peak_mb


def matrices(job: Job) -> int:
    """Numbers that a step multiplies with: the blocks' matrices and the rows of the head for what
    may be drawn."""
    blocks = sum(one.numel() for one in job.model.blocks.parameters() if one.ndim > 1)
    return blocks + len(job.allowed) * job.model.config.width


def floor(job: Job, n: int, weights: float) -> Floor:
    """What a step reads at least: every matrix once, for all rows together."""
    table = job.model.embed.weight
    made = job.model.config
    read = sum(len(prompt) + job.tokens // 2 for prompt in job.prompts)  # positions, all streams
    return Floor(
        weights=round(weights),
        cache=n * read * 2 * made.layers * made.width * table.element_size(),
        bandwidth=bandwidth(table.device),
    )


def bandwidth(device: torch.device, size: int = GIGABYTE) -> float:
    """Bytes a second that are read while a large tensor is summed; the best of five."""
    numbers = torch.ones(size // 4, device=device)
    return size / by_turns([numbers.sum], 5, device)[0].least


def parameters(net: nn.Module) -> int:
    """How many numbers a network learns."""
    return sum(weight.numel() for weight in net.parameters())


def as_json(found: DecodingResult) -> dict[str, Any]:
    """The figures, with those that follow from them."""
    table = asdict(found)
    for name, side in (("ours", found.ours), ("theirs", found.theirs)):
        if side is not None:
            count = found.setting.n
            table[name] |= {
                "step_ms": 1000 * found.step(side),
                "tokens_a_second": count * found.tokens / side.drawing.median,
                "pictures_a_second": count / side.drawing.median,
            }
    table["floor"] |= {"step_ms": 1000 * found.floor.seconds, "share": found.share}
    return {**table, "weights": found.setting.weights, "ratio": found.ratio}


def _run_once(setting: Setting, theirs: bool) -> None:
    if not theirs:
        job = ready(job_of(setting), setting.weights)
        job.run(setting.n, job.tokens)
        return
    if setting.threads is not None:
        torch.set_num_threads(setting.threads)
    made = config_of(setting)
    net = rivals.their_model(made).to(pick_device(setting.device))
    asked = (TEXT, NOTHING) if setting.guided else (TEXT,)
    first = made.vocabulary - CODES
    rivals.their_generate(net, asked, setting.n, first, SCALE)(setting.drawn)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
