"""The command that computes what a training run needs: plan."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cm3leon.cli import options
from cm3leon.cli.options import Changes, Recipe
from cm3leon.cli.output import print_result

if TYPE_CHECKING:
    from train.plan import MemoryEstimate, TrainingPlan

CHIP = "H100"  # whose speed is meant where no other is given
MOMENTS = {"+ loss": "loss", "+ backward": "backward", "+ update": "update", "+ look": "look"}
STANDING = ("weights", "gradients", "optimizer", "buffers")


def add_to(app: typer.Typer) -> None:
    """Add this file's command."""
    options.add(app, plan)


def plan(
    recipe: Recipe,
    changes: Changes = None,
    *,
    gpus: Annotated[int, typer.Option(min=1, help="Number of GPUs.")],
    gpu_memory: Annotated[str, typer.Option(help="Memory of each, as 80GB.")],
    flops: Annotated[
        float | None,
        typer.Option(min=1, help=f"bf16 FLOP/s of each, as 990e12 (default: an {CHIP}'s)."),
    ] = None,
    mfu: Annotated[float, typer.Option(min=0.001, max=1, help="Model FLOPs utilisation.")] = 0.45,
    as_json: options.Json = False,
) -> None:
    """Compute what a decoder's training needs: memory of each GPU, days, disk.

    Neither shards nor tokenizers nor a GPU need be there; a recipe whose tokenizers are not there
    wants model.vocabulary=N. All is computed, nothing is run: docstrings of train/plan.py have the
    formulas.
    """
    memory = options.bytes_of(gpu_memory)
    assert memory is not None
    from train.flops import PEAKS
    from train.plan import Hardware, plan_of, read

    hardware = Hardware(gpus=gpus, memory=memory, flops=flops or PEAKS[CHIP], mfu=mfu)
    found = plan_of(read(recipe, changes or []), hardware)
    about = {"gpus": gpus, "gpu_memory": memory, "flops": hardware.flops, "mfu": mfu}
    table = {**about, **dataclasses.asdict(found)}
    table["ways"] = [_plain(found, way, memory) for way in found.ways]
    lines = [f"{name}: {value}" for name, value in _facts(found, hardware.flops, mfu, gpus).items()]
    print_result([*lines, "", *_sheet(found, memory), "", *_legend(memory)], table, as_json)


def _facts(found: "TrainingPlan", flops: float, mfu: float, gpus: int) -> dict[str, str]:
    """Return the facts that hold however the step is spread over the GPUs."""
    cut, disk = found.cut, found.disk
    return {
        "parameters": f"{found.parameters / 1e6:,.1f}M, vocabulary {found.vocabulary:,}",
        "a step": f"{found.tokens_a_step:,} tokens, {cut.rows:,} rows a GPU in {cut.passes:,} "
        f"micro-batches of {cut.rows_at_once:,}; the largest has {cut.ids:,} ids",
        "the run": f"{found.tokens:,} tokens at most",
        "speed": f"{found.tokens_per_second:,.0f} tokens/s on {gpus:,} GPUs of "
        f"{flops / 1e12:,.0f} TFLOP/s, {mfu:.0%} of it used; three quarters of it with recompute",
        "disk": f"token shards {_gb(disk.shards)} GB (each token seen once), states "
        f"{_gb(disk.states)} GB, export {_gb(disk.export)} GB",
    }


def _sheet(found: "TrainingPlan", memory: int) -> list[str]:
    """Return the ways to spread a step, a line each, in GB."""
    with_host = any(way.host for way in found.ways)
    head = ["GB a GPU", *STANDING, *MOMENTS, "peak", "fits"]
    rows = [[*head, *(["host"] if with_host else []), "days"]]
    for way in found.ways:
        parts = [*STANDING, *MOMENTS.values(), "peak"]
        cells = [_gb(getattr(way, part)) for part in parts]
        cells += ["yes" if way.fits(memory) else "no", *([_gb(way.host)] if with_host else [])]
        rows.append([_name(way), *cells, f"{found.days(way.engine):,.1f}"])
    return _aligned(rows)


def _legend(memory: int) -> list[str]:
    from train.plan import MARGIN

    return [
        "peak: the first four, which stand always, and the largest of those with a +, which come",
        "one at a time (look: validation and samples, in the first GPU only).",
        f"fits: the peak leaves {MARGIN:.0%} of {_gb(memory)} GB to CUDA, NCCL and fragments.",
    ]


def _name(way: "MemoryEstimate") -> str:
    engine = way.engine
    name = f"zero {engine.zero}" + (", recompute" if engine.recompute else "")
    return name if engine.offload == "none" else f"{name}, offload {engine.offload}"


def _plain(found: "TrainingPlan", way: "MemoryEstimate", memory: int) -> dict[str, Any]:
    computed = {"peak": way.peak, "fits": way.fits(memory), "days": found.days(way.engine)}
    return {**dataclasses.asdict(way), **computed}


def _gb(size: int) -> str:
    return f"{size / 1e9:,.1f}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as their widest cell: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        )
        for row in rows
    ]
