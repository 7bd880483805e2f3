"""Training loop of the decoder.

Masked rows from `train/data` are batched into micro-batches; the engine computes gradients and
updates the weights; `state` saves the training state, `metrics` writes the log.
"""

# Shapes: B = rows, L = ids per row, K = kinds of token

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
from train.data.batches import micro_batches, rows_of_steps
from train.data.cached import CachedRows
from train.data.noise import level, read_with_noise
from train.data.rows import Mixture, Rows
from train.engine import TrainEngine
from train.flops import Speed
from train.metrics import MetricLogger
from train.objective import KINDS, Ids, targets_and_weights
from train.state import Say

REMEMBERED = 100  # recent losses whose mean is the baseline of a spike
FEW = 10  # fewest losses for a baseline
MOST_SKIPPED = 10  # consecutive steps


class Validation(Protocol):
    """Interface of the periodic evaluation of a run: held-out loss and sample images."""

    def validate(self, model: Decoder) -> dict[str, float]: ...

    def draw(self, model: Decoder, path: Path) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Job:
    """Components of a training run."""

    recipe: PretrainRecipe
    engine: TrainEngine
    rows: Rows | Mixture
    vocabulary: Vocabulary
    watch: Validation
    folder: Path
    speed: Speed
    say: Say
    dist: DistributedContext = field(default_factory=DistributedContext)
    cached: CachedRows | None = None  # rows on the device, used instead of `rows`
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))


def run(job: Job, start: int, deadline: float = math.inf) -> int:
    """Train from step `start` to the recipe's last step, until `time.monotonic()` reaches
    `deadline`, or until a stop request; save the state and return the number of steps done. All
    processes execute every step together."""
    recipe, dist = job.recipe, job.dist
    done, skipped = start, 0
    ahead = micros_of_steps(job, range(start, recipe.steps))
    curves = recipe.tensorboard
    with MetricLogger(
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
                dist.note(done, "looking at held-out images")
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
    """Save the state after `done` steps; collective."""
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
    """Yield this process's micro-batches of each step, in order."""
    if job.cached is not None:
        yield from (list(job.cached.micros(step)) for step in steps)
        return
    recipe, share = job.recipe, job.dist.share(job.recipe.batch)
    ahead = rows_of_steps(job.rows, recipe.batch, share, steps, recipe.workers)
    for step, rows in zip(steps, ahead, strict=True):
        yield list(micros_of(job, rows, step))


def micros_of(job: Job, rows: Sequence[Ids], step: int = 0) -> Iterator[Micro]:
    """Yield the micro-batches of this process's rows of a step."""
    tokens, mask = job.recipe.micro_tokens, job.recipe.mask
    # noise does not change the length of a row, so both are cut into the same micro-batches
    both = (micro_batches(some, tokens) for some in (rows, read_of(job, rows, step)))
    for ids_BL, read_BL in zip(*both, strict=True):
        targets_BL, weights_BL = targets_and_weights(ids_BL, job.vocabulary, mask)
        arrays = (read_BL[:, :-1].copy(), targets_BL.copy(), weights_BL)
        yield tuple(torch.from_numpy(array) for array in arrays)  # type: ignore[misc]


def read_of(job: Job, rows: Sequence[Ids], step: int) -> Sequence[Ids]:
    """Return the input rows, with noise that is seeded by the row's number in the run."""
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
    """Return, over all processes: the loss weight of the step, the largest number of micro-batches
    of a process, the number of input ids, and whether to stop after this step."""
    weight = float(sum(weights.sum().double() for _, _, weights in micros))
    tokens = sum(int((ids != PAD).sum()) for ids, _, _ in micros)
    table = dist.table([weight, len(micros), tokens, late])
    weight, _, tokens, late = table.sum(0).tolist()
    return weight, int(table[:, 1].max()), int(tokens), late > 0


def train_step(
    job: Job, micros: Sequence[Micro], whole: float, passes: int, rate: float
) -> dict[str, float]:
    """Run one training step and return its metrics; the loss is divided by `whole`, the total loss
    weight of the step.

    All processes run the same number of `passes`, because gradients are summed collectively. In a
    bad step (non-finite loss or gradient, or a loss spike) the weights are unchanged. Raises
    UserError for a bad step if the recipe stops there.
    """
    found: Tensor | int = 0  # loss, then nats and weight per kind; on the device to avoid syncs
    mean, spike, sums = 0.0, False, torch.zeros(0)
    for number in range(passes):
        last = number == passes - 1
        batch = micros[number] if number < len(micros) else nothing()
        loss = job.engine.loss(*batch, last)
        found = found + torch.cat([loss.total.detach()[None], loss.kinds_K2.flatten()]).double()
        if last:  # check for a spike before the weights are updated
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
    """Return a micro-batch of zero loss weight, for a process with fewer micro-batches."""
    ids_BL = torch.full((1, 1), PAD)
    return ids_BL, ids_BL, torch.zeros(1, 1)


def is_spike(loss: float, job: Job) -> bool:
    """Return whether a loss exceeds the mean of the recent losses by the recipe's factor."""
    if job.recipe.spike is None or len(job.losses) < FEW:
        return False
    return loss > job.recipe.spike * float(np.mean(job.losses))


ADVICE = (
    "there is no going on from here; begin a new run with a lower schedule.peak or a longer "
    "schedule.warmup, or go back with --resume STEP"
)


def pass_over(job: Job, loss: float, norm: float, spike: bool) -> None:
    """Report a skipped step; raises UserError if the recipe stops at bad steps."""
    found = f"the loss is {loss:.6g} and the gradient {norm:.6g}"
    if spike:
        usual = float(np.mean(job.losses))
        found = f"the loss is {loss:.6g}, a spike: the last were {usual:.6g} in the mean"
    if job.recipe.bad_step == "stop":
        raise UserError(f"{found}: {ADVICE}")
    job.say(f"step skipped: {found}")
