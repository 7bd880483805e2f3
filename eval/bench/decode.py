"""Benchmark of token-by-token image generation: our decoding against transformers'.

The baseline has the same weights; the lower bound is the time to read all weights once per step.
Data path: a shape with random weights, or a whole checkpoint -> alternating runs in one process ->
seconds and tokens per second; the memory of each side is measured in a separate process.
"""

from dataclasses import asdict, dataclass
from functools import partial
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
    DecodeJob,
    DecodeSetting,
    config_of,
    job_of,
    ready,
)
from tokenizer.timing import Action, Timing, interleaved

GIGABYTE = 10**9


@dataclass(frozen=True, kw_only=True)
class DecodeSide:
    """Measurements of one side of the comparison."""

    parameters: int
    drawing: Timing
    """To generate the tokens of `n` images, prefill included."""
    prefill: Timing
    """To generate the first token alone."""
    peak_mb: float
    """Memory of the model and one run, beyond that of the libraries."""


@dataclass(frozen=True, kw_only=True)
class Floor:
    """Lower bound of a step: the bytes that it must read, and the time that takes."""

    weights: int
    """Bytes of the blocks' matrices and of the output head's image rows."""
    cache: int
    """Bytes of keys and values that a step in the middle of an image reads."""
    bandwidth: float
    """Measured read bandwidth of this machine, in bytes per second."""

    @property
    def seconds(self) -> float:
        """Minimum time of a step."""
        return (self.weights + self.cache) / self.bandwidth


@dataclass(frozen=True, kw_only=True)
class DecodingResult:
    """Measurements of one setting."""

    setting: DecodeSetting
    tokens: int
    """Of one image."""
    ours: DecodeSide
    theirs: DecodeSide | None
    difference: float | None
    """Largest difference between both sides' logits on the prompts, before our precision
    changes."""
    floor: Floor
    compiled: bool
    """True if our steps ran in the compiled `NativeDecoder`."""
    whole: Timing | None
    """For `n` images from prompt to pixels, if a checkpoint generates them."""

    def step(self, side: DecodeSide) -> float:
        """Return the seconds of a step after the prefill."""
        return (side.drawing.median - side.prefill.median) / (self.tokens - 1)

    @property
    def share(self) -> float:
        """Time of the lower bound divided by that of our step; 1 is the speed of reading memory."""
        return self.floor.seconds / self.step(self.ours)

    @property
    def ratio(self) -> float | None:
        """Our tokens per second divided by theirs."""
        return (
            None if self.theirs is None else self.theirs.drawing.median / self.ours.drawing.median
        )


def measure(setting: DecodeSetting) -> DecodingResult:
    """Measure one setting: times, memory, difference of logits, and the lower bound."""
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
    times = interleaved(actions, setting.times, device)
    return DecodingResult(
        setting=setting,
        tokens=job.tokens,
        ours=DecodeSide(
            parameters=count,
            drawing=times[0],
            prefill=times[1],
            peak_mb=apart(peak, setting, theirs=False),
        ),
        theirs=None
        if net is None
        else DecodeSide(
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


def peak(setting: DecodeSetting, *, theirs: bool) -> float:
    """Return the peak megabytes of one side's model and one run; call it in a fresh process."""
    device = pick_device(setting.device)
    small = DecodeSetting(shape=setting.shape, device=setting.device, layers=1, width=64, tokens=2)
    _run_once(small, theirs)  # lazy imports happen before memory is measured
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        _run_once(setting, theirs)
        return torch.cuda.max_memory_allocated(device) / 1e6
    with Watched() as watched:
        _run_once(setting, theirs)
    return watched.peak_mb


def matrices(job: DecodeJob) -> int:
    """Count the weights that a step multiplies by.

    They are the blocks' matrices and the head's rows of the ids that may be sampled.
    """
    blocks = sum(one.numel() for one in job.model.blocks.parameters() if one.ndim > 1)
    return blocks + len(job.allowed) * job.model.config.width


def floor(job: DecodeJob, n: int, weights: float) -> Floor:
    """Compute the lower bound of a step, which reads every matrix once for all rows together."""
    table = job.model.embed.weight
    made = job.model.config
    read = sum(len(prompt) + job.tokens // 2 for prompt in job.prompts)  # positions, all streams
    return Floor(
        weights=round(weights),
        cache=n * read * 2 * made.layers * made.width * table.element_size(),
        bandwidth=bandwidth(table.device),
    )


def bandwidth(device: torch.device, size: int = GIGABYTE) -> float:
    """Measure the bytes read per second while a large tensor is summed; the best of five runs."""
    numbers = torch.ones(size // 4, device=device)
    return size / interleaved([numbers.sum], 5, device)[0].least


def parameters(net: nn.Module) -> int:
    """Return the number of parameters of a network."""
    return sum(weight.numel() for weight in net.parameters())


def as_json(found: DecodingResult) -> dict[str, Any]:
    """Return the measurements as a JSON table, with the figures derived from them."""
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


def _run_once(setting: DecodeSetting, theirs: bool) -> None:
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
