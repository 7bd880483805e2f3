"""bench generate and bench batching: the speed of decoding, and of many requests together."""

import dataclasses
import os
import platform
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cm3leon.cli import options
from cm3leon.cli.options import ModelOptions
from cm3leon.cli.output import print_table

if TYPE_CHECKING:
    from eval.bench.decode import DecodingResult
    from eval.bench.shapes import DecodeSetting
    from eval.bench.stages import Command
    from tokenizer.timing import Timing


Shape = Annotated[
    str, typer.Option(help="chameleon, paper, or a named size of decoder: 350m, 760m, 7b.")
]
Checkpoint = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="Images of a checkpoint instead of a shape."),
]
Against = Annotated[Literal["transformers"] | None, typer.Option(help="Library to compare with.")]
Counts = Annotated[
    list[int] | None,
    typer.Option("-n", "--n", min=1, help="Images at once; may be repeated."),
]
Guided = Annotated[
    bool, typer.Option("--guided/--unguided", help="With classifier-free guidance or without.")
]
Weights = Annotated[
    Literal["fp32", "bf16", "int8", "int4"] | None,
    typer.Option(help="Precision of our weights (fp32; bf16 for a named size)."),
]
AsCommand = Annotated[
    bool, typer.Option("--cli", help="Time 'generate' with --model as a whole process too.")
]


def generate(
    context: typer.Context,
    shape: Shape = "chameleon",
    model: Checkpoint = None,
    against: Against = None,
    n: Counts = None,
    guided: Guided = True,
    precision: Weights = None,
    times: Annotated[int, typer.Option(min=1, help="Timed runs of each.")] = 5,
    layers: Annotated[int | None, typer.Option(min=1, help="Override a shape's.")] = None,
    width: Annotated[int | None, typer.Option(min=8, help="Override a shape's.")] = None,
    tokens: Annotated[int | None, typer.Option(min=2, help="Tokens of an image.")] = None,
    cli: AsCommand = False,
    device: options.Device = "cpu",
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Speed of generation: the image tokens of a decoder with random weights, against transformers'
    decoder with the same weights; or the images of a checkpoint."""
    from eval.bench import baselines as rivals
    from eval.bench import decode as decoding
    from eval.bench.shapes import PROMPT, DecodeSetting
    from eval.bench.stages import command

    if cli and model is None:
        raise typer.BadParameter("--cli goes with --model")
    settings = [
        DecodeSetting(
            shape=shape,
            model=model,
            n=count,
            guided=guided,
            precision=precision,
            against=against is not None,
            times=times,
            device=device,
            threads=threads,
            layers=layers,
            width=width,
            tokens=tokens,
        )
        for count in n or [1]
    ]
    if against is not None:
        rivals.transformers()
    ran = command(PROMPT, model, device, threads, times) if cli and model else None
    found = [_measured(setting) for setting in settings]
    about = {"machine": _machine(device)}
    result = {
        **about,
        "cases": [decoding.as_json(one) for one in found],
        "command_line": ran and {**dataclasses.asdict(ran), "rest": ran.rest},
    }
    about |= {} if ran is None else _of_command(ran)
    about |= {f"least time of a step ({_name(one.setting)})": _least(one) for one in found}
    table = {name: row for one in found for name, row in _rows(one).items()}
    print_table(context, about, table, result, as_json)


def _measured(setting: "DecodeSetting") -> "DecodingResult":
    """One case, said aloud before it begins."""
    from eval.bench import decode as decoding

    options.say(f"{_name(setting)}: {setting.times} runs of each, by turns")
    return decoding.measure(setting)


def _name(setting: "DecodeSetting") -> str:
    what = setting.shape if setting.model is None else f"model {setting.model}"
    return f"{what}, {'guided' if setting.guided else 'unguided'}, {setting.n} at once"


def _rows(found: "DecodingResult") -> dict[str, dict[str, str]]:
    """A row for each side."""
    n, rows = found.setting.n, dict[str, dict[str, str]]()
    step = ", compiled step" if found.compiled else ""
    ours = f"ours, {found.setting.weights}{step}"
    sides = {ours: found.ours, "transformers, fp32": found.theirs}
    for whose, side in sides.items():
        if side is None:
            continue
        is_ours = side is found.ours
        whole = found.whole if is_ours else None
        rows[f"{_name(found.setting)}: {whose}"] = {
            "parameters": f"{side.parameters:,}",
            "image tokens a second": _rate(n * found.tokens, side.drawing, 1),
            "images a second": _rate(n, side.drawing, 3),
            "ms a step": f"{1000 * found.step(side):.2f}",
            "ms of prefill and first token": _times(side.prefill, 1000, 1),
            "MB of memory": f"{side.peak_mb:,.0f}",
            "s an image, text to pixels": "" if whole is None else _times(whole, 1 / n, 2),
            "least time of a step over it": f"{found.share:.1%}" if is_ours else "",
            "ours over theirs": "" if is_ours or found.ratio is None else f"{found.ratio:.2f}",
        }
    return rows


def _least(found: "DecodingResult") -> str:
    """Format the bound of a step, and the largest difference of both sides' logits."""
    floor = found.floor
    text = (
        f"{1000 * floor.seconds:.2f} ms: {floor.weights / 1e6:.1f} MB of weights and "
        f"{floor.cache / 1e6:.1f} MB of cache at {floor.bandwidth / 1e9:.1f} GB/s"
    )
    if found.difference is None:
        return text
    return f"{text}; both sides' logits differ by at most {found.difference:.1e}"


def _of_command(ran: "Command") -> dict[str, str]:
    """A whole process and its stages."""
    stages = ", ".join(f"{name} {seconds:.2f}" for name, seconds in ran.stages.items())
    whole = f"{ran.median:.2f} ({ran.least:.2f}-{ran.most:.2f})"
    return {"seconds of cm3leon generate": f"{whole}: {stages}, the rest {ran.rest:.2f}"}


def _rate(things: int, seconds: "Timing", digits: int) -> str:
    """`38.5 (37.1-39.0)`: the median, and the slowest and quickest."""
    rates = (seconds.median, seconds.most, seconds.least)
    middle, least, most = (f"{things / one:,.{digits}f}" for one in rates)
    return f"{middle} ({least}-{most})"


def _times(seconds: "Timing", unit: float, digits: int) -> str:
    """`31.2 (30.9-33.0)`: the median, and the least and most."""
    times = (seconds.median, seconds.least, seconds.most)
    middle, least, most = (f"{unit * one:,.{digits}f}" for one in times)
    return f"{middle} ({least}-{most})"


def _machine(device: str) -> str:
    import torch

    from cm3leon.pipeline import pick_device

    place = pick_device(device)
    if place.type == "cuda":
        return torch.cuda.get_device_name(place)
    return f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def batching(
    context: typer.Context,
    shape: Annotated[
        str | None, typer.Option(help="Random weights instead of a model: chameleon, paper.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of a shape's image.")] = 64,
    requests: Annotated[int, typer.Option(min=2, help="Number of requests, of mixed tasks.")] = 32,
    in_flight: Annotated[int, typer.Option(min=2, help="Requests in flight.")] = 16,
    times: Annotated[int, typer.Option(min=1, help="Timed runs of each.")] = 5,
    *,
    model: ModelOptions,
    as_json: options.Json = False,
) -> None:
    """Continuous batching: requests of all tasks through one engine, against each by itself."""
    import torch

    from cm3leon.checkpoint import find
    from eval.bench import batching

    if shape is None:
        leon = model.open(find(model.model, options.say))
        net, asked = leon.model, batching.mixed(leon, requests)
        about = {"model": leon.hash, "precision": leon.precision}
    else:
        if model.threads is not None:
            torch.set_num_threads(model.threads)
        net, chosen = batching.of_shape(shape, model.precision or "auto", model.device)
        asked = batching.mixed_of_shape(net, requests, tokens)
        about = {"shape": shape, "precision": chosen}
    options.say(f"{requests} requests, {in_flight} in flight: {times} runs of each, by turns")
    found = batching.measure(net, asked, in_flight, times)
    table = {
        name: {
            "seconds": f"{side.median:.2f} ({side.least:.2f}-{side.most:.2f})",
            "requests a second": f"{found.requests / side.median:.1f}",
            "tokens a second": f"{found.tokens / side.median:,.0f}",
        }
        for name, side in (("together", found.together), ("one by one", found.alone))
    }
    about |= {
        "requests": f"{found.requests} of mixed tasks, {found.in_flight} in flight",
        "together over one by one": f"{found.ratio:.2f}",
        "the same ids": f"{found.equal} of {found.requests}",
    }
    result = {**dataclasses.asdict(found), "ratio": found.ratio}
    print_table(context, about, table, result, as_json)
