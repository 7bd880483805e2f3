"""bench tokenizer: speed of encoding and decoding images, beside other libraries."""

import dataclasses
import os
import platform
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cm3leon.cli import options
from cm3leon.cli.output import print_table

if TYPE_CHECKING:
    from eval.bench.tokenizer import CodebookComparison, CodebookSide, Pace
    from tokenizer.image import ImageTokenizer

SIZE = 256  # pixels a side: the paper's
BATCHES = (1, 4, 16)  # of our side alone
NONE = "none: it has no local encoder"


def tokenizer(
    context: typer.Context,
    against: Annotated[
        Literal["taming", "diffusers"] | None,
        typer.Option(help="Another library's VQGAN with the same weights; else ours alone."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A checkpoint folder, an image tokenizer's folder, 'default' or 'hf:owner/name'; "
            "else random weights."
        ),
    ] = None,
    shape: Annotated[
        Literal["f8", "f16"] | None,
        typer.Option(help="Pixels a side of a code, without --model: the paper's 8, taming's 16."),
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=32, help="Pixels a side, without --model; 256 if not given.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Images at once (default: 1; alone 4 and 16 too).")
    ] = None,
    times: Annotated[int, typer.Option(min=1, help="Timed runs of each.")] = 7,
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Speed and memory of the codebook: images to codes and back, on the CPU."""
    import torch

    from eval.bench import tokenizer as speed

    for name, given in (("--size", size), ("--shape", shape)):
        if model is not None and given is not None:
            raise typer.BadParameter("a model has its own; leave one out", param_hint=name)
    if threads is not None:
        torch.set_num_threads(threads)
    codebook = _open(model, shape or "f8", size or SIZE)
    about = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads",
        "codebook": f"{codebook.size} px, {codebook.grid} x {codebook.grid} codes of "
        f"{codebook.codes:,}; {model or 'random weights'}",
    }
    result: dict[str, Any]
    if against is None:
        batches = BATCHES if batch is None else (batch,)
        sides = [speed.alone(codebook, one, times) for one in batches]
        result = {"alone": [dataclasses.asdict(side) for side in sides]}
        lines = dict(line for side in sides for line in _of_side(side))
    else:
        found = speed.against(against, codebook, batch or 1, times)
        ratios = {"encode_ratio": found.encode, "decode_ratio": found.decode}
        result = {"against": {**dataclasses.asdict(found), **ratios}}
        lines = _of_both(found)
    table = {name: {"figure": figure} for name, figure in lines.items()}
    print_table(context, about, table, result, as_json)


def _open(model: str | None, shape: str, size: int) -> "ImageTokenizer":
    from cm3leon.checkpoint import IMAGE, find
    from eval.bench.tokenizer import fresh
    from tokenizer.image import ImageTokenizer

    if model is None:
        return fresh(shape, size)
    folder = find(model, options.say)
    inside = folder / IMAGE
    return ImageTokenizer.load(inside if inside.is_dir() else folder)


def _of_side(side: "CodebookSide") -> list[tuple[str, str]]:
    name = f"{side.name}, {side.batch} at a time"
    return [
        (f"{name}: parameters", f"{side.parameters:,}"),
        (f"{name}: encode", _pace(side.encode, side.batch) if side.encode else NONE),
        (f"{name}: decode", _pace(side.decode, side.batch)),
    ]


def _of_both(found: "CodebookComparison") -> dict[str, str]:
    return {
        **dict(_of_side(found.ours)),
        **dict(_of_side(found.theirs)),
        "ratio, images a second: encode": f"{found.encode:.2f}" if found.encode else NONE,
        "ratio, images a second: decode": f"{found.decode:.2f}",
        "the same codes": NONE if found.same_codes is None else f"{found.same_codes:.2%}",
        "pixels of the same codes (-1..1) at most apart": f"{found.pixels_apart:.1e}",
    }


def _pace(pace: "Pace", batch: int) -> str:
    """Format images a second, milliseconds an image (least-most), and the memory."""
    middle, least, most = (
        1000 * one / batch for one in (pace.seconds.median, pace.seconds.least, pace.seconds.most)
    )
    return (
        f"{1000 / middle:.2f} images/s, {middle:.1f} ms an image ({least:.1f}-{most:.1f}), "
        f"{pace.peak_mb:,.0f} MB at most"
    )
