"""The decoder's training loop, to be read aloud.

Rows come from `data`, already masked; the engine moves the weights; state and report stand beside.
"""

# Shapes: B = rows, L = ids a row, K = kinds of token

import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from cm3leon.model import Decoder
from tokenizer.distributed import DistributedContext
from tokenizer.errors import UserError
from tokenizer.vocabulary import PAD, Vocabulary
from train import state
from train.config import PretrainRecipe
from train.data.cached import CachedRows
from train.data.noise import level, read_with_noise
from train.data.rows import Mixture, Rows, micro_batches, rows_of_steps
from train.engine import Engine
from train.flops import Speed
from train.metrics import Report
from train.objective import KINDS, Ids, targets_and_weights
from train.state import Say

REMEMBERED = 100  # losses that a spike is measured against
FEW = 10  # of them at least
MOST_SKIPPED = 10  # steps in a row


class Watch(Protocol):
    """What looks at a run from outside it at intervals: held-out loss, sample pictures."""

    def validate(self, model: Decoder) -> dict[str, float]: ...

    def draw(self, model: Decoder, path: Path) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one run of the loop needs."""

    recipe: PretrainRecipe
    engine: Engine
    rows: Rows | Mixture
    vocabulary: Vocabulary
    watch: Watch
    folder: Path
    speed: Speed
    say: Say
    dist: DistributedContext = field(default_factory=DistributedContext)
    cached: CachedRows | None = None  # rows on the device, in the place of `rows`
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))


def run(job: Job, start: int, deadline: float = math.inf) -> int:
    """Train from step `start` to the recipe's last, until the clock (`time.monotonic`) is past
    `deadline`, or until somebody asks to stop; returns how many steps are done, the state saved.
    Every line here happens at every step, in all processes."""
    recipe, dist = job.recipe, job.dist
    done, skipped = start, 0
    ahead = micros_of_steps(job, range(start, recipe.steps))
    curves = recipe.tensorboard
    with Report(
        job.folder, start=start, steps=recipe.steps, on=dist.first, tensorboard=curves
    ) as report:
        while done < recipe.steps:
            dist.note(done, "making rows")
            began = time.monotonic()
            micros = next(ahead)
            ready = time.monotonic()
            late = job.dist.must_stop() or time.monotonic() >= deadline
            whole, passes, tokens, halt = agree(dist, micros, late)
            dist.note(done, "computing")
            figures = train_step(
                job, micros, whole, passes, recipe.schedule.rate(done, recipe.steps)
            )
            took = time.monotonic() - began
            figures |= job.speed.figures(tokens, recipe.batch, took)
            figures |= {"waited": (ready - began) / took, "rows": (done + 1) * recipe.batch}
            skipped = skipped + 1 if "skipped" in figures else 0
            if skipped > MOST_SKIPPED:
                raise UserError(f"{skipped} steps in a row were skipped: {ADVICE}")
            done += 1
            last = done == recipe.steps
            look = done % recipe.validate_every == 0 or last
            draw = done % recipe.sample_every == 0 or last
            if look or draw:
                dist.note(done, "looking at held-out pictures")
                model = job.engine.whole()
                if look and model:
                    figures |= job.watch.validate(model)
                if draw and model:
                    job.watch.draw(model, job.folder / f"sample-{done:08d}.png")
            report.step(done, **figures)
            if done % recipe.save_every == 0 or last or halt:
                dist.note(done, "saving")
                save(job, done)
            if halt:
                break
    return done


def save(job: Job, done: int) -> None:
    """The state after `done` steps, by all processes together."""
    recipe = job.recipe
    state.save(
        job.folder,
        done,
        job.engine.tensors(),
        keep=recipe.keep,
        keep_every=recipe.keep_every,
        told={"losses": list(job.losses), "rows": done * recipe.batch},
        dist=job.dist,
    )


Micro = tuple[Tensor, Tensor, Tensor]  # inputs, targets and weights, all [B, L]


def micros_of_steps(job: Job, steps: range) -> Iterator[list[Micro]]:
    """The micro-batches of each step of this process, in order."""
    if job.cached is not None:
        yield from (list(job.cached.micros(step)) for step in steps)
        return
    recipe, share = job.recipe, job.dist.share(job.recipe.batch)
    ahead = rows_of_steps(job.rows, recipe.batch, share, steps, recipe.workers)
    for step, rows in zip(steps, ahead, strict=True):
        yield list(micros_of(job, rows, step))


def micros_of(job: Job, rows: Sequence[Ids], step: int = 0) -> Iterator[Micro]:
    """The micro-batches of this process's rows of a step."""
    tokens, mask = job.recipe.micro_tokens, job.recipe.mask
    # a row is read as long as it is, so both are cut alike
    both = (micro_batches(some, tokens) for some in (rows, read_of(job, rows, step)))
    for ids_BL, read_BL in zip(*both, strict=True):
        targets_BL, weights_BL = targets_and_weights(ids_BL, job.vocabulary, mask)
        arrays = (read_BL[:, :-1].copy(), targets_BL.copy(), weights_BL)
        yield tuple(torch.from_numpy(array) for array in arrays)  # type: ignore[misc]


def read_of(job: Job, rows: Sequence[Ids], step: int) -> Sequence[Ids]:
    """The rows as the model reads them: with noise, which hangs on a row's number in the run."""
    recipe = job.recipe
    most = level(recipe.mask, step, recipe.steps)
    if not most:
        return rows
    first = step * recipe.batch + job.dist.rank * len(rows)
    rngs = (np.random.default_rng((recipe.seed, 12, first + k)) for k in range(len(rows)))
    return [
        read_with_noise(row, job.vocabulary, most, job.rows.codes_PN, rng)
        for row, rng in zip(rows, rngs, strict=True)
    ]


def agree(
    dist: DistributedContext, micros: Sequence[Micro], late: bool
) -> tuple[float, int, int, bool]:
    """Over all processes: the weight of the step, the most micro-batches that one has, the ids that
    are read, and whether this step is to be the last for now."""
    weight = float(sum(weights.sum().double() for _, _, weights in micros))
    tokens = sum(int((ids != PAD).sum()) for ids, _, _ in micros)
    table = dist.table([weight, len(micros), tokens, late])
    weight, _, tokens, late = table.sum(0).tolist()
    return weight, int(table[:, 1].max()), int(tokens), late > 0


def train_step(
    job: Job, micros: Sequence[Micro], whole: float, passes: int, rate: float
) -> dict[str, float]:
    """One update; the loss is divided by the weight of the whole step, `whole`.

    All processes make as many `passes`, for they sum gradients together. Where the step is bad (its
    loss or gradient is no number, or the loss is a spike) the weights stay as they are.
    """
    found: Tensor | int = 0  # the loss, and nats and weight of each kind; on the device till last
    mean, spike, sums = 0.0, False, torch.zeros(0)
    for number in range(passes):
        last = number == passes - 1
        batch = micros[number] if number < len(micros) else nothing()
        loss = job.engine.loss(*batch, last)
        found = found + torch.cat([loss.total.detach()[None], loss.kinds_K2.flatten()]).double()
        if last:  # judged before the weights can move
            sums = job.dist.table(found.tolist()).sum(0)
            mean = float(sums[0]) / whole
            spike = is_spike(mean, job)
        job.engine.backward(loss.total * (math.nan if spike else 1 / whole))
    norm = job.engine.step(rate)
    figures = {"loss": mean, "gradient": norm, "rate": rate}
    if math.isfinite(norm):
        job.losses.append(mean)
    else:
        figures["skipped"] = 1.0
        pass_over(job, mean, norm, spike)
    for name, (nats, weight) in zip(KINDS, sums[1:].view(-1, 2).tolist(), strict=True):
        if weight:
            figures[name] = nats / weight
    return figures


def nothing() -> Micro:
    """A micro-batch without a target, for a process that has no more."""
    ids_BL = torch.full((1, 1), PAD)
    return ids_BL, ids_BL, torch.zeros(1, 1)


def is_spike(loss: float, job: Job) -> bool:
    """Whether a loss stands out of the last ones further than the recipe allows."""
    if job.recipe.spike is None or len(job.losses) < FEW:
        return False
    return loss > job.recipe.spike * float(np.mean(job.losses))


ADVICE = (
    "there is no going on from here; begin a new run with a lower schedule.peak or a longer "
    "schedule.warmup, or go back with --resume STEP"
)


def pass_over(job: Job, loss: float, norm: float, spike: bool) -> None:
    """Say that a step is skipped, or stop there, as the recipe wishes."""
    found = f"the loss is {loss:.6g} and the gradient {norm:.6g}"
    if spike:
        usual = float(np.mean(job.losses))
        found = f"the loss is {loss:.6g}, a spike: the last were {usual:.6g} in the mean"
    if job.recipe.bad_step == "stop":
        raise UserError(f"{found}: {ADVICE}")
    job.say(f"step skipped: {found}")
