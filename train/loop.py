"""The decoder's training loop, to be read aloud.

Rows come from `data`, already masked; the loss is `objective`'s; state and report stand beside.
"""

# Shapes: B = rows, L = ids a row, T = tokens that are predicted, D = width, V = vocabulary

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from cm3leon.model import Decoder
from tokenizer.errors import UserError
from tokenizer.vocabulary import Vocabulary
from train import state
from train.config import Precision, PretrainRecipe
from train.data import Rows, micro_batches, rows_of_steps
from train.objective import KINDS, Ids, Loss, masked_cross_entropy, targets_and_weights
from train.report import Report


class Watch(Protocol):
    """What looks at a run from outside it at intervals: held-out loss, sample pictures."""

    def validate(self, model: Decoder) -> dict[str, float]: ...

    def draw(self, model: Decoder, path: Path) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one run of the loop needs."""

    recipe: PretrainRecipe
    model: Decoder
    optimizer: torch.optim.Optimizer
    rows: Rows
    vocabulary: Vocabulary
    device: torch.device
    watch: Watch
    folder: Path


def run(job: Job, start: int, deadline: float = math.inf) -> int:
    """Train from step `start` to the recipe's last, or until the clock (`time.monotonic`) is past
    `deadline`; returns how many steps are done. Every line here happens at every step."""
    recipe = job.recipe
    done = start
    ahead = rows_of_steps(job.rows, recipe.batch, range(start, recipe.steps), recipe.workers)
    with Report(job.folder, start=start, steps=recipe.steps) as report:
        while done < recipe.steps:
            began = time.monotonic()
            rate = recipe.schedule.rate(done, recipe.steps)
            rows = next(ahead)
            figures = train_step(job, rows, rate)
            figures["tokens_per_second"] = sum(map(len, rows)) / (time.monotonic() - began)
            done += 1
            last = done == recipe.steps
            late = time.monotonic() >= deadline
            if done % recipe.validate_every == 0 or last:
                figures |= job.watch.validate(job.model)
            report.step(done, **figures)
            if done % recipe.sample_every == 0 or last:
                job.watch.draw(job.model, job.folder / f"sample-{done:08d}.png")
            if done % recipe.save_every == 0 or last or late:
                state.save(job.folder, done, state.pack(job.model, job.optimizer))
            if late:
                break
    return done


def train_step(job: Job, rows: Sequence[Ids], rate: float) -> dict[str, float]:
    """One update from the rows of one step; the loss is divided by the whole batch's tokens."""
    for group in job.optimizer.param_groups:
        group["lr"] = rate
    whole = float(sum(weights.sum() for _, _, weights in micros(job, rows)))
    kinds_K2 = torch.zeros(len(KINDS), 2)
    total = 0.0
    job.optimizer.zero_grad(set_to_none=True)
    for ids_BL, targets_BL, weights_BL in micros(job, rows):
        loss = micro_loss(job, ids_BL, targets_BL, weights_BL)
        (loss.total / whole).backward()
        total += loss.total.item() / whole
        kinds_K2 += loss.kinds_K2.cpu()
    clip = job.recipe.optimizer.clip
    norm = torch.nn.utils.clip_grad_norm_(job.model.parameters(), clip).item()
    if not (math.isfinite(total) and math.isfinite(norm)):
        raise UserError(
            f"the loss is {total} and the gradient {norm}: there is no going on from here; begin a "
            f"new run with a lower schedule.peak, or a longer schedule.warmup"
        )
    job.optimizer.step()
    figures = {"loss": total, "gradient": norm, "rate": rate}
    for name, (nats, weight) in zip(KINDS, kinds_K2.tolist(), strict=True):
        if weight:
            figures[name] = nats / weight
    return figures


def micros(job: Job, rows: Sequence[Ids]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Inputs, targets and weights of each micro-batch, all [B, L], on the host."""
    for ids_BL in micro_batches(rows, job.recipe.micro_tokens):
        targets_BL, weights_BL = targets_and_weights(ids_BL, job.vocabulary, job.recipe.mask)
        arrays = (ids_BL[:, :-1].copy(), targets_BL.copy(), weights_BL)
        yield tuple(torch.from_numpy(array) for array in arrays)  # type: ignore[misc]


def micro_loss(job: Job, ids_BL: Tensor, targets_BL: Tensor, weights_BL: Tensor) -> Loss:
    """The loss of one micro-batch; the head is asked only where something is to be predicted."""
    counted_BL = weights_BL > 0
    with autocast(job.recipe.precision, job.device):
        hidden_BLD = job.model(ids_BL.to(job.device))
        logits_TV = job.model.logits(hidden_BLD[counted_BL.to(job.device)])
    return masked_cross_entropy(
        logits_TV,
        targets_BL[counted_BL].to(job.device),
        weights_BL[counted_BL].to(job.device),
        job.vocabulary,
        job.recipe.model.z_loss,
    )


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """The products of a forward pass in bf16 or fp32, whichever `in_bf16` says."""
    return torch.autocast(device.type, torch.bfloat16, enabled=in_bf16(precision, device))


def in_bf16(precision: Precision, device: torch.device) -> bool:
    """Whether to multiply in bf16; `auto` does where the device has circuits for it."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cpu":
        can = torch.cpu.get_capabilities()
        return bool(can.get("avx512_bf16") or can.get("amx_bf16"))
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
