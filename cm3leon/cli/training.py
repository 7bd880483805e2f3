"""Commands that make models: data encode and views, tokenizer train-image and train-text,
pretrain, tune, export."""

import math
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from cm3leon.cli import launching, options
from cm3leon.cli.emoji import emoji
from cm3leon.cli.inspect import inspect

Recipe = Annotated[str, typer.Argument(help="A recipe's shipped name, or a YAML file.")]
Changes = Annotated[
    list[str] | None, typer.Argument(metavar="[NAME=VALUE]...", help="Settings to change.")
]
Run = Annotated[Path, typer.Option(help="The folder of the run.")]
Resume = Annotated[
    str, typer.Option(metavar="latest|STEP|none", help="Go on with the run in --out from there.")
]
Minutes = Annotated[
    float,
    typer.Option(
        min=0,
        show_default=False,
        help="Stop after so many, state saved; go on with --resume latest.",
    ),
]
Layout = Literal["coco", "vqa", "instruct-pix2pix", "llava"]
IdList = Annotated[Path | None, typer.Option(help="A file with one picture id a line.")]


def add_to(app: typer.Typer) -> None:
    """Name this file's commands, in two groups of their own where they are many."""
    app.command()(pretrain)
    app.command()(tune)
    app.command()(export)
    tokenizer = typer.Typer(help="Train a tokenizer.", rich_markup_mode=None)
    tokenizer.command("train-image")(train_image)
    tokenizer.command("train-text")(train_text)
    app.add_typer(tokenizer, name="tokenizer")
    data = typer.Typer(help="Prepare data for training.", rich_markup_mode=None)
    data.callback()(_data)
    data.command()(encode)
    data.command()(views)
    data.command()(inspect)
    data.command()(emoji)
    app.add_typer(data, name="data")


def pretrain(
    recipe: Recipe,
    changes: Changes = None,
    *,
    out: Run,
    resume: Resume = "none",
    init: Annotated[str | None, typer.Option(help="A model whose weights to start from.")] = None,
    device: options.Device = "auto",
    minutes: Minutes = math.inf,
    processes: launching.Processes = None,
    hostfile: launching.Hostfile = None,
    nodes: launching.Nodes = 1,
    node_rank: launching.NodeRank = 0,
    master_addr: launching.MasterAddr = None,
    master_port: launching.MasterPort = None,
    dry_run: launching.DryRun = False,
) -> None:
    """Train a decoder from token shards, in one process or many."""
    from train.pretrain import check, main

    given = changes or []
    worker = ["pretrain", recipe, "--out", out, "--resume", resume, "--init", init]
    worker += ["--device", device, "--minutes", minutes]
    if launching.launched(
        [*worker, *given],
        out,
        device,
        partial(check, recipe, given, init),
        processes=processes,
        hostfile=hostfile,
        nodes=nodes,
        node_rank=node_rank,
        master_addr=master_addr,
        master_port=master_port,
        dry_run=dry_run,
    ):
        return
    made = main(recipe, given, out, resume, init, options.say, device, minutes)
    if made is not None:
        typer.echo(made)


def tune(
    recipe: Recipe,
    changes: Changes = None,
    *,
    out: Run,
    init: Annotated[str, typer.Option(help="The model to tune.")] = "default",
    resume: Resume = "none",
    device: options.Device = "auto",
    minutes: Minutes = math.inf,
    processes: launching.Processes = None,
    hostfile: launching.Hostfile = None,
    nodes: launching.Nodes = 1,
    node_rank: launching.NodeRank = 0,
    master_addr: launching.MasterAddr = None,
    master_port: launching.MasterPort = None,
    dry_run: launching.DryRun = False,
) -> None:
    """Train a finished model further, on a recipe of its own."""
    pretrain(
        recipe,
        changes,
        out=out,
        resume=resume,
        init=init,
        device=device,
        minutes=minutes,
        processes=processes,
        hostfile=hostfile,
        nodes=nodes,
        node_rank=node_rank,
        master_addr=master_addr,
        master_port=master_port,
        dry_run=dry_run,
    )


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a decoder's run.")],
    out: Annotated[Path, typer.Option(help="The model folder to write.")],
    step: Annotated[str, typer.Option(metavar="latest|STEP", help="Which state.")] = "latest",
    weights: Annotated[
        Literal["fp32", "fp16", "int8"], typer.Option(help="How they are stored.")
    ] = "fp16",
) -> None:
    """Make a model of a run's state."""
    from train.export import main

    typer.echo(main(run, out, step=step, stored=weights, say=options.say))


def train_image(
    recipe: Recipe,
    changes: Changes = None,
    *,
    out: Run,
    resume: Resume = "none",
    device: options.Device = "auto",
    minutes: Minutes = math.inf,
    processes: launching.Processes = None,
    hostfile: launching.Hostfile = None,
    nodes: launching.Nodes = 1,
    node_rank: launching.NodeRank = 0,
    master_addr: launching.MasterAddr = None,
    master_port: launching.MasterPort = None,
    dry_run: launching.DryRun = False,
) -> None:
    """Train an image tokenizer from pictures, in one process or many."""
    from train.tokenizers.image import check, main

    given = changes or []
    worker = ["tokenizer", "train-image", recipe, "--out", out, "--resume", resume]
    worker += ["--device", device, "--minutes", minutes]
    if launching.launched(
        [*worker, *given],
        out,
        device,
        partial(check, recipe, given),
        processes=processes,
        hostfile=hostfile,
        nodes=nodes,
        node_rank=node_rank,
        master_addr=master_addr,
        master_port=master_port,
        dry_run=dry_run,
    ):
        return
    made = main(recipe, given, out, resume, options.say, device, minutes)
    if made is not None:
        typer.echo(made)


def train_text(
    recipe: Recipe,
    changes: Changes = None,
    *,
    out: Annotated[Path, typer.Option(help="The .model file to write.")],
) -> None:
    """Train a text tokenizer from captions, instructions and questions."""
    from train.tokenizers.text import main

    typer.echo(main(recipe, changes or [], out, options.say))


def _data() -> None:
    """Prepare data for training."""


def encode(
    sources: options.Sources,
    tokenizer: Annotated[Path, typer.Option(help="The image tokenizer's folder.")],
    out: Annotated[Path, typer.Option(help="The folder of token shards to write.")],
    edits: Annotated[Path | None, typer.Option(help="JSON lines of edits.")] = None,
    questions: Annotated[Path | None, typer.Option(help="JSON lines of questions.")] = None,
    documents: Annotated[
        Path | None, typer.Option(help="JSON lines of documents of any task, named by 'task'.")
    ] = None,
    layout: Annotated[
        Layout | None,
        typer.Option("--as", help="SOURCES are files of a data set in this published layout."),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="The folder of the pictures, for --as.")
    ] = None,
    exclude: IdList = None,
    keep: IdList = None,
    text_tokenizer: Annotated[
        Path | None, typer.Option(help="A .model file: the shards then go with no other.")
    ] = None,
    most_bad: Annotated[
        float, typer.Option(min=0, max=1, help="Stop where a larger share is damaged.")
    ] = 0.1,
    device: options.Device = "auto",
) -> None:
    """Turn pictures into token shards; a killed run goes on where it stopped.

    Data sets as they are published, with --as: coco (captions_train2017.json), vqa (the questions
    and the annotations of VQA v2, both as SOURCES), llava (a list or JSON lines of conversations),
    each with --images; instruct-pix2pix (folders of prompt.json and SEED_0.jpg, SEED_1.jpg).

    Many processes share the work: python -m torch.distributed.run --nproc-per-node N --module
    cm3leon data encode ...
    """
    from train.data.encode import main

    typer.echo(
        main(
            sources,
            tokenizer,
            out,
            edits=edits,
            questions=questions,
            documents=documents,
            layout=layout,
            images=images,
            exclude=exclude,
            keep=keep,
            text_tokenizer=text_tokenizer,
            most_bad=most_bad,
            device=device,
            say=options.say,
        )
    )


def views(
    sources: options.Sources,
    shards: Annotated[Path, typer.Option(help="Token shards, as `data encode` writes them.")],
    tokenizer: Annotated[Path, typer.Option(help="The image tokenizer's folder.")],
    out: Annotated[Path, typer.Option(help="The folder of views to write.")],
    count: Annotated[int, typer.Option(min=1, help="How many views.")] = 12,
    seed: Annotated[int, typer.Option(min=0, help="Draws them.")] = 0,
    device: options.Device = "auto",
) -> None:
    """See all pictures of token shards anew, for training with documents in front."""
    from train.data.views import main

    typer.echo(
        main(
            sources, shards, tokenizer, out, count=count, seed=seed, device=device, say=options.say
        )
    )
