"""Training benchmarks: our step against transformers' OPT and Llama, the data loading relative to a
step, and image encoding in batches against one by one.

For `cm3leon bench train`; the other benchmarks are in `eval/bench/retrieval.py`. Both sides of a
comparison alternate in one process, on the same ids, with the same AdamW and gradient clipping and
PyTorch's attention. A profile measures the share of time in matrix products.
"""

# Shapes: B = rows, L = ids per row

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from cm3leon.attention import Attention, attend, attend_by_products
from cm3leon.model import Decoder
from tokenizer.data.tars import Tally
from tokenizer.distributed import DistributedContext
from tokenizer.image import PictureEncoder
from tokenizer.timing import Action, Timing, interleaved, synchronize
from train import loop
from train.config import Precision, PretrainRecipe
from train.data.encode import Work, coded
from train.data.rows import Rows
from train.engine import new_engine
from train.flops import Speed
from train.rivals import Family, model_of, their_model, their_step
from train.schedule import Schedule
from train.synthetic import pictures

RATE = 1e-4
CPU = torch.device("cpu")
PRODUCTS = {"aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm"}
ATTENTION = "aten::_scaled_dot_product"


@dataclass(frozen=True, kw_only=True)
class StepSetting:
    """Model size, batch and device of a benchmark."""

    size: str = "10m"
    context: int = 512
    rows: int = 4
    precision: Precision = "fp32"
    times: int = 7
    device: torch.device = CPU

    @property
    def tokens(self) -> int:
        """Tokens per step."""
        return self.context * self.rows


@dataclass(frozen=True, kw_only=True)
class StepSide:
    """One side of a comparison."""

    parameters: int
    step: Timing
    products: float | None
    """Share of a step's time in matrix products, including attention's."""


@dataclass(frozen=True, kw_only=True)
class StepComparison:
    """Comparison of our training step with that of transformers, for one architecture."""

    family: Family
    tokens: int
    ours: StepSide
    theirs: StepSide
    by_products: Timing | None
    """Our step with the attention of training on a CPU; None on other devices."""

    @property
    def ratio(self) -> float:
        """Ratio of our tokens per second to theirs, by median times."""
        return self.theirs.step.median / self.ours.step.median

    @property
    def best(self) -> float:
        """The same ratio by the fastest runs, which other load on the machine affects least."""
        return self.theirs.step.least / self.ours.step.least

    @property
    def processor(self) -> float:
        """The same ratio by CPU time."""
        return self.theirs.step.processor / self.ours.step.processor


@dataclass(frozen=True, kw_only=True)
class Loading:
    """Time of data loading relative to the training step, in one process."""

    rows: str
    tokens: int
    row_seconds: float
    """Seconds to make the rows and micro-batches of one step."""
    step_seconds: float

    @property
    def share(self) -> float:
        """Share of data loading in the total time; `waited` in the log of a run."""
        return self.row_seconds / (self.row_seconds + self.step_seconds)


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """Timing of encoding images to codes, from PNG files in memory."""

    pictures: int
    batch: int
    batched: Timing
    one_by_one: Timing

    @property
    def ratio(self) -> float:
        """Speedup of batched encoding over one by one."""
        return self.one_by_one.median / self.batched.median


def recipe_of(family: Family, rows: Rows, setting: StepSetting) -> PretrainRecipe:
    """Return a recipe for running single steps only."""
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
    """No-op `Watch` for a job of which only single steps are run."""

    def validate(self, model: Decoder) -> dict[str, float]:
        return {}

    def draw(self, model: Decoder, path: Path) -> None:
        """Do nothing."""


def our_job(
    recipe: PretrainRecipe, rows: Rows, setting: StepSetting, attention: Attention
) -> loop.Job:
    """Return a job of our engine with a newly initialised decoder."""
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
    """Return the training step of the loop."""
    whole, passes, _, _ = loop.agree(job.dist, micros, late=False)
    return lambda: loop.train_step(job, micros, whole, passes, RATE)


def against(family: Family, rows: Rows, setting: StepSetting) -> StepComparison:
    """Measure our step and theirs alternately, on the first rows."""
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
    times = interleaved(actions, setting.times, setting.device)
    shares = [products_of(action, setting.device) for action in actions[:2]]
    sizes = [sum(p.numel() for p in one.parameters()) for one in (job.engine.whole(), net) if one]
    sides = [
        StepSide(parameters=size, step=step, products=share)
        for size, step, share in zip(sizes, times[:2], shares, strict=True)
    ]
    return StepComparison(
        family=family,
        tokens=setting.tokens,
        ours=sides[0],
        theirs=sides[1],
        by_products=times[2] if on_cpu else None,
    )


def products_of(action: Action, device: torch.device) -> float:
    """Return the share of an action's time in matrix products."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # no log lines on stderr
    on_cpu = device.type == "cpu"
    kind = ProfilerActivity.CPU if on_cpu else ProfilerActivity.CUDA
    with profile(activities=list({ProfilerActivity.CPU, kind})) as found:
        action()
        synchronize(device)
    name = "self_cpu_time_total" if on_cpu else "self_device_time_total"
    spent = {one.key: float(getattr(one, name)) for one in found.key_averages()}
    if not on_cpu:  # kernels have entries of their own, which would count them twice
        spent = {key: time for key, time in spent.items() if key.startswith("aten::")}
    products = [t for key, t in spent.items() if key in PRODUCTS or key.startswith(ATTENTION)]
    return sum(products) / sum(spent.values())


def loading(rows: Rows, step: Timing, setting: StepSetting) -> Loading:
    """Measure the time to make about as many rows as have the ids of a step, repeatedly."""
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
        # the mean, because a window of the stream is cut once for all its blocks
        row_seconds=sum(seconds[1:]) / setting.times,
        step_seconds=step.median,
    )


def encoding(tokenizer: PictureEncoder, count: int, setting: StepSetting) -> Encoding:
    """Measure the encoding of the same images as by `data encode`, and in batches of one."""
    samples = list(pictures(count, 2 * tokenizer.size))
    works = [Work(image_tokenizer=tokenizer, device=setting.device)]
    works.append(replace(works[0], batch=1))

    def run(work: Work) -> Action:
        return lambda: sum(1 for _ in coded(iter(samples), work, Tally(), set()))

    batched, one_by_one = interleaved([run(work) for work in works], 3, setting.device)
    return Encoding(pictures=count, batch=works[0].batch, batched=batched, one_by_one=one_by_one)


def as_json(found: StepComparison | Loading | Encoding) -> dict[str, Any]:
    """Return the measurements and the ratios derived from them, for JSON."""
    match found:
        case StepComparison():
            more = {"ratio": found.ratio, "best": found.best, "processor": found.processor}
        case Loading():
            more = {"share": found.share}
        case Encoding():
            more = {"ratio": found.ratio}
    return {**asdict(found), **more}
