"""bench batching: many requests together against one by one."""

import dataclasses
from typing import Annotated

import typer

from cm3leon.cli import options
from cm3leon.cli.options import ModelOptions
from cm3leon.cli.output import print_table


def batching(
    context: typer.Context,
    shape: Annotated[
        str | None, typer.Option(help="Random weights in the place of a model: chameleon, paper.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=2, help="Codes of a shape's picture.")] = 64,
    requests: Annotated[int, typer.Option(min=2, help="Requests of mixed tasks.")] = 32,
    in_flight: Annotated[int, typer.Option(min=2, help="Requests under way at a time.")] = 16,
    times: Annotated[int, typer.Option(min=1, help="Runs of each that are timed.")] = 5,
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
