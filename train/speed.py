"""How fast training is: our step against those of transformers' OPT and Llama, the making of rows
beside a step, and the encoding of pictures in batches against one by one.

Beside the training loop, for `cm3leon bench train`; the other benches are in
`eval/bench/retrieval.py`. Both sides of a comparison run in one process by turns, on the same ids,
with the same AdamW and clipping and with PyTorch's own attention. That neither reaches what its
products take is told by a profile.
"""

# Shapes: B = rows, L = ids a row

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from cm3leon.attention import Attention, attend, attend_by_products
from cm3leon.model import Decoder
from tokenizer.data.tars import Tally
from tokenizer.distributed import DistributedContext
from tokenizer.image import PictureEncoder
from train import loop
from train.config import Precision, PretrainRecipe
from train.data.encode import Work, coded
from train.data.rows import Rows
from train.engine import new_engine
from train.flops import Speed
from train.rivals import Family, model_of, their_model, their_step
from train.schedule import Schedule
from train.synthetic import pictures

Action = Callable[[], object]

RATE = 1e-4
CPU = torch.device("cpu")
PRODUCTS = {"aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm"}
ATTENTION = "aten::_scaled_dot_product"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is compared."""

    size: str = "10m"
    context: int = 512
    rows: int = 4
    precision: Precision = "fp32"
    times: int = 7
    device: torch.device = CPU

    @property
    def tokens(self) -> int:
        """Of one step."""
        return self.context * self.rows


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds of the runs of one thing."""

    median: float
    least: float
    most: float
    processor: float
    """Median of the seconds that all threads together had a core; others' work on the machine
    hardly changes it, where there is one thread."""

    @classmethod
    def of(cls, seconds: Sequence[tuple[float, float]]) -> "Times":
        """The times of runs, each on the clock and of the processor."""
        clock, processor = zip(*seconds, strict=True)
        middle, least, most = median(clock), min(clock), max(clock)
        return cls(median=middle, least=least, most=most, processor=median(processor))


@dataclass(frozen=True, kw_only=True)
class Side:
    """One side of a comparison."""

    parameters: int
    step: Times
    products: float | None
    """Share of a step's time that is spent in matrix products, those of attention included."""


@dataclass(frozen=True, kw_only=True)
class Against:
    """Our training step and that of another library, for a decoder of one make."""

    family: Family
    tokens: int
    ours: Side
    theirs: Side
    by_products: Times | None
    """Our step with the attention that a run on a CPU takes."""

    @property
    def ratio(self) -> float:
        """Our tokens a second over theirs, by medians."""
        return self.theirs.step.median / self.ours.step.median

    @property
    def best(self) -> float:
        """The same, by the quickest run of each: what other work on the machine spoilt least."""
        return self.theirs.step.least / self.ours.step.least

    @property
    def processor(self) -> float:
        """The same, by the time that the processor worked."""
        return self.theirs.step.processor / self.ours.step.processor


@dataclass(frozen=True, kw_only=True)
class Loading:
    """The making of rows beside the step that reads them, in one process."""

    rows: str
    tokens: int
    row_seconds: float
    """Of making the rows and micro-batches of one step."""
    step_seconds: float

    @property
    def share(self) -> float:
        """What the log of a run calls `waited`."""
        return self.row_seconds / (self.row_seconds + self.step_seconds)


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """Pictures a second on the way to codes, from PNG files in memory."""

    pictures: int
    batch: int
    batched: Times
    one_by_one: Times

    @property
    def ratio(self) -> float:
        """Batched over one by one."""
        return self.one_by_one.median / self.batched.median


def recipe_of(family: Family, rows: Rows, setting: Setting) -> PretrainRecipe:
    """A recipe of which only the step is run."""
    vocabulary = rows.codec.vocabulary.size
    return PretrainRecipe(
        shards="shards",
        image_tokenizer="image_tokenizer",
        text_tokenizer="tokenizer.model",
        model=model_of(family, setting.size, setting.context, vocabulary),
        schedule=Schedule(peak=RATE),
        steps=1,
        batch=setting.rows,
        precision=setting.precision,
    )


class Blind:
    """Looks at nothing: a `Watch` for a job whose steps alone are run."""

    def validate(self, model: Decoder) -> dict[str, float]:
        return {}

    def draw(self, model: Decoder, path: Path) -> None:
        """Draw nothing."""


def our_job(recipe: PretrainRecipe, rows: Rows, setting: Setting, attention: Attention) -> loop.Job:
    """Our engine with a fresh decoder."""
    torch.manual_seed(0)
    model = Decoder(recipe.model).to(setting.device)
    model.attend = attention
    vocabulary = rows.codec.vocabulary
    return loop.Job(
        recipe=recipe,
        engine=new_engine(model, vocabulary, recipe, setting.device, DistributedContext()),
        rows=rows,
        vocabulary=vocabulary,
        watch=Blind(),
        folder=Path(),
        speed=Speed(model=recipe.model, device=setting.device),
        say=lambda _: None,
    )


def our_step(job: loop.Job, micros: Sequence[loop.Micro]) -> Action:
    """A training step as the loop makes it."""
    whole, passes, _, _ = loop.agree(job.dist, micros, late=False)
    return lambda: loop.train_step(job, micros, whole, passes, RATE)


def against(family: Family, rows: Rows, setting: Setting) -> Against:
    """Our step and theirs by turns, on the first rows."""
    recipe = recipe_of(family, rows, setting)
    job = our_job(recipe, rows, setting, attend)
    micros = list(loop.micros_of(job, [rows.at(number) for number in range(setting.rows)]))
    net = their_model(family, recipe.model)
    whole = tuple(torch.cat([micro[part] for micro in micros]) for part in range(3))
    ids_BL, targets_BL, weights_BL = whole
    assert bool((weights_BL == 1).all()), "their loss counts every target alike"
    actions: list[Action] = [
        our_step(job, micros),
        their_step(net, recipe, (ids_BL, targets_BL, weights_BL), setting.device),
    ]
    on_cpu = setting.device.type == "cpu"
    if on_cpu:
        actions.append(our_step(our_job(recipe, rows, setting, attend_by_products), micros))
    times = by_turns(actions, setting)
    shares = [products_of(action, setting.device) for action in actions[:2]]
    sizes = [sum(p.numel() for p in one.parameters()) for one in (job.engine.whole(), net) if one]
    sides = [
        Side(parameters=size, step=step, products=share)
        for size, step, share in zip(sizes, times[:2], shares, strict=True)
    ]
    return Against(
        family=family,
        tokens=setting.tokens,
        ours=sides[0],
        theirs=sides[1],
        by_products=times[2] if on_cpu else None,
    )


def by_turns(actions: Sequence[Action], setting: Setting) -> list[Times]:
    """The times of some actions that take turns, forwards and backwards; the first is not told."""
    seconds = [list[tuple[float, float]]() for _ in actions]
    order = list(enumerate(actions))
    for number in range(setting.times + 1):
        for place, action in order:
            found = _seconds(action, setting.device)
            if number:
                seconds[place].append(found)
        order.reverse()
    return [Times.of(one) for one in seconds]


def products_of(action: Action, device: torch.device) -> float:
    """Share of the time of an action that is spent in matrix products."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would speak on stderr
    on_cpu = device.type == "cpu"
    kind = ProfilerActivity.CPU if on_cpu else ProfilerActivity.CUDA
    with profile(activities=list({ProfilerActivity.CPU, kind})) as found:
        action()
        _wait(device)
    name = "self_cpu_time_total" if on_cpu else "self_device_time_total"
    spent = {one.key: float(getattr(one, name)) for one in found.key_averages()}
    if not on_cpu:  # a kernel's own line would count it twice
        spent = {key: time for key, time in spent.items() if key.startswith("aten::")}
    products = [t for key, t in spent.items() if key in PRODUCTS or key.startswith(ATTENTION)]
    return sum(products) / sum(spent.values())


def loading(rows: Rows, step: Times, setting: Setting) -> Loading:
    """Make as many rows as hold the ids of a step, which takes so long; several times."""
    job = our_job(recipe_of("opt", rows, setting), rows, setting, attend)
    packed = rows.config.packed == 1
    length = setting.context if packed else len(rows.at(0))
    count = max(1, round(setting.tokens / length))
    seconds, tokens = list[float](), list[int]()
    for number in range(setting.times + 1):
        begun = time.perf_counter()
        made = [rows.at(number * count + place) for place in range(count)]
        micros = list(loop.micros_of(job, made))
        seconds.append(time.perf_counter() - begun)
        tokens.append(loop.agree(job.dist, micros, late=False)[2])
    return Loading(
        rows="packed blocks" if packed else "one document a row",
        tokens=round(sum(tokens) / len(tokens)),
        # a mean: a window of the stream is cut once for all its blocks
        row_seconds=sum(seconds[1:]) / setting.times,
        step_seconds=step.median,
    )


def encoding(tokenizer: PictureEncoder, count: int, setting: Setting) -> Encoding:
    """Encode the same pictures as `data encode` does, and in batches of one."""
    samples = list(pictures(count, 2 * tokenizer.size))
    works = [Work(image_tokenizer=tokenizer, device=setting.device)]
    works.append(replace(works[0], batch=1))

    def run(work: Work) -> Action:
        return lambda: sum(1 for _ in coded(iter(samples), work, Tally(), set()))

    batched, one_by_one = by_turns([run(work) for work in works], replace(setting, times=3))
    return Encoding(pictures=count, batch=works[0].batch, batched=batched, one_by_one=one_by_one)


def as_json(found: Against | Loading | Encoding) -> dict[str, Any]:
    """The figures, with those that follow from them."""
    match found:
        case Against():
            more = {"ratio": found.ratio, "best": found.best, "processor": found.processor}
        case Loading():
            more = {"share": found.share}
        case Encoding():
            more = {"ratio": found.ratio}
    return {**asdict(found), **more}


def _seconds(action: Action, device: torch.device) -> tuple[float, float]:
    _wait(device)
    begun, worked = time.perf_counter(), time.process_time()
    action()
    _wait(device)
    return time.perf_counter() - begun, time.process_time() - worked


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
