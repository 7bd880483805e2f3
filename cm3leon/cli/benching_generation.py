"""bench generate: the speed of decoding."""

import dataclasses
import os
import platform
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cm3leon.cli import options, tables

if TYPE_CHECKING:
    from eval.decoding import Found, Times
    from eval.shapes import Setting
    from eval.stages import Command


def generate(
    context: typer.Context,
    shape: Annotated[
        str, typer.Option(help="chameleon, paper, or a named size of decoder: 350m, 760m, 7b.")
    ] = "chameleon",
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="A checkpoint's pictures in the place of a shape."),
    ] = None,
    against: Annotated[
        Literal["transformers"] | None, typer.Option(help="Whose decoding to compare with.")
    ] = None,
    n: Annotated[
        list[int] | None,
        typer.Option("-n", "--n", min=1, help="Pictures at once; may be repeated."),
    ] = None,
    guided: Annotated[
        bool, typer.Option("--guided/--unguided", help="With classifier-free guidance or without.")
    ] = True,
    precision: Annotated[
        Literal["fp32", "bf16"] | None,
        typer.Option(help="Of our weights; fp32, and bf16 for a named size."),
    ] = None,
    times: Annotated[int, typer.Option(min=1, help="Runs of each that are timed.")] = 5,
    layers: Annotated[int | None, typer.Option(min=1, help="Of a shape.")] = None,
    width: Annotated[int | None, typer.Option(min=8, help="Of a shape.")] = None,
    tokens: Annotated[int | None, typer.Option(min=2, help="Image tokens of a picture.")] = None,
    cli: Annotated[
        bool, typer.Option("--cli", help="Time 'generate' with --model as a whole process too.")
    ] = False,
    device: options.Device = "cpu",
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Speed of generation: the image tokens of a decoder with random weights, against transformers'
    decoder with the same weights; or the pictures of a checkpoint."""
    from eval import decoding, rivals
    from eval.shapes import PROMPT, Setting
    from eval.stages import command

    if cli and model is None:
        raise typer.BadParameter("--cli goes with --model")
    settings = [
        Setting(
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
    machine = _machine(device)
    result = {
        "machine": machine,
        "cases": [decoding.as_json(one) for one in found],
        "command_line": ran and {**dataclasses.asdict(ran), "rest": ran.rest},
    }
    lines = {} if ran is None else _of_command(ran)
    for one in found:
        lines |= _of_case(one)
    table = {name: {"figure": figure} for name, figure in lines.items()}
    tables.tell_table(context, {"machine": machine}, table, result, as_json)


def _measured(setting: "Setting") -> "Found":
    """One case, said aloud before it begins."""
    from eval import decoding

    options.say(f"{_name(setting)}: {setting.times} runs of each, by turns")
    return decoding.measure(setting)


def _name(setting: "Setting") -> str:
    what = setting.shape if setting.model is None else f"model {setting.model}"
    return f"{what}, {'guided' if setting.guided else 'unguided'}, {setting.n} at once"


def _of_case(found: "Found") -> dict[str, str]:
    """Both sides, and what that comes to."""
    case, floor = _name(found.setting), found.floor
    sides = {f"ours, {found.setting.weights}": found.ours, "transformers, fp32": found.theirs}
    lines: dict[str, str] = {}
    for whose, side in sides.items():
        if side is None:
            continue
        count = found.setting.n
        lines |= {
            f"{case}: {whose}, parameters": f"{side.parameters:,}",
            f"{case}: {whose}, image tokens a second": _rate(count * found.tokens, side.drawing, 1),
            f"{case}: {whose}, pictures a second": _rate(count, side.drawing, 3),
            f"{case}: {whose}, a step": f"{1000 * found.step(side):.2f} ms",
            f"{case}: {whose}, prefill and first token": _milliseconds(side.prefill),
            f"{case}: {whose}, memory at most": f"{side.peak_mb:,.0f} MB",
        }
    lines[f"{case}: least time of a step, by {floor.bandwidth / 1e9:.1f} GB/s"] = (
        f"{1000 * floor.seconds:.2f} ms: {floor.weights / 1e6:.1f} MB of weights, "
        f"{floor.cache / 1e6:.1f} MB of cache"
    )
    lines[f"{case}: that over a step of ours"] = f"{found.share:.1%}"
    if found.whole is not None:
        lines[f"{case}: seconds a picture, from words to pixels"] = _seconds(
            found.whole, found.setting.n
        )
    if found.ratio is not None:
        lines[f"{case}: ratio, ours over transformers"] = f"{found.ratio:.2f}"
        lines[f"{case}: largest difference of both sides' logits"] = f"{found.difference:.1e}"
    return lines


def _of_command(ran: "Command") -> dict[str, str]:
    """A whole process and its stages."""
    stages = ", ".join(f"{name} {seconds:.2f}" for name, seconds in ran.stages.items())
    return {
        "cm3leon generate as a whole process, seconds": f"{ran.median:.2f} "
        f"({ran.least:.2f}-{ran.most:.2f})",
        "of these, in stages": f"{stages}, the rest {ran.rest:.2f}",
    }


def _rate(things: int, seconds: "Times", digits: int) -> str:
    """`38.5 (37.1-39.0)`: the median, and the slowest and quickest."""
    rates = (seconds.median, seconds.most, seconds.least)
    middle, least, most = (f"{things / one:,.{digits}f}" for one in rates)
    return f"{middle} ({least}-{most})"


def _milliseconds(time: "Times") -> str:
    return f"{1000 * time.median:.1f} ms ({1000 * time.least:.1f}-{1000 * time.most:.1f})"


def _seconds(time: "Times", n: int) -> str:
    return f"{time.median / n:.3f} ({time.least / n:.3f}-{time.most / n:.3f})"


def _machine(device: str) -> str:
    import torch

    from cm3leon.pipeline import pick_device

    place = pick_device(device)
    if place.type == "cuda":
        return torch.cuda.get_device_name(place)
    return f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
