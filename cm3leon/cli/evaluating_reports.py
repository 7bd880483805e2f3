"""eval NAME: measures of a model on a corpus, each with a report that says all that made it."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cm3leon.cli import options, tables
from cm3leon.cli.output import tell
from cm3leon.cli.retrieving import (
    COUNT,
    DEFAULT,
    Count,
    EncoderName,
    MemoryFolder,
    find_memory,
    open_embedder,
)

if TYPE_CHECKING:
    from eval.context import Asked, Lab
    from eval.corpus import Place
    from eval.report import Report

NAMES = {
    "perplexity": "Bits of pictures given captions and of captions given pictures.",
    "reconstruction": "What the codebook leaves of a picture: PSNR, SSIM, LPIPS, rFID.",
    "retrieval": "What documents in front of a prompt are worth, in bits.",
    "recall": "How often a caption finds its picture, and a picture its caption, by --encoder.",
    "caption": "What the model says of pictures, against their captions.",
    "vqa": "Its answers to questions about pictures.",
    "embedder-score": "How near painted pictures come to captions, by the retriever's encoder.",
    "clip-score": "The same by a CLIP, which --encoder names.",
    "concept": "Whether painted emoji show the thing and the style that were asked for.",
    "fid": "The Frechet Inception Distance of painted pictures, and precision and recall.",
    "kid": "The kernel distance by Inception, for fewer pictures than a FID takes.",
    "mobilenet-distance": "The Frechet distance by MobileNetV2, which is no FID.",
    "copying": "Whether painted pictures are copies of training pictures or retrieved ones.",
    "edit": "How near edits come to their real targets.",
    "infill": "How near a middle painted anew comes to the real one.",
}
SWEEP = {"concept-sweep": "The concept score over guidance and ways of drawing."}
ALL = "all"

Layout = Literal["coco", "vqa", "ok-vqa", "vizwiz"]
Data = Annotated[
    Path, typer.Option(help="A corpus: a folder of WebDataset tars. Or a published set's JSON.")
]
Split = Annotated[
    str | None, typer.Option(help="The corpus's tars whose names begin so: test if not given.")
]
As = Annotated[
    Layout | None, typer.Option("--as", help="The layout of a published set; NoCaps has coco's.")
]
Images = Annotated[
    Path | None, typer.Option(help="The folder of a published set's pictures, for --as.")
]
Annotations = Annotated[
    Path | None, typer.Option(help="The file of the answers, for --as vqa and ok-vqa.")
]
Ids = Annotated[
    Path | None, typer.Option(help="A file of picture ids, one a line: no others are measured on.")
]
Limit = Annotated[
    int | None, typer.Option(min=1, help="At most so many things, evenly spaced; all if not given.")
]
Samples = Annotated[
    Path | None,
    typer.Option(help="A folder of 'eval samples', in place of painting; the best of each is it."),
]
Candidates = Annotated[
    int,
    typer.Option(min=1, max=options.MOST, help="Painted for each picture; the best of them is it."),
]
Weights = Annotated[
    Path | None,
    typer.Option(help="A folder of the judges' weights, which do not ship (docs/evaluation.md)."),
]
Folder = Annotated[Path, typer.Option(help="The folder to write reports to.")]


def add_to(group: typer.Typer) -> None:
    """A command for every measure, and `all`."""
    for name, text in (NAMES | SWEEP).items():
        group.command(name, help=text)(_command([name], every=False))
    text = "All measures; those that lack something say what, and are skipped."
    group.command(ALL, help=text)(_command([*NAMES], every=True))
    group.command()(compare)


def compare(
    one: Annotated[Path, typer.Argument(metavar="REPORT", help="A report.json, or its folder.")],
    other: Annotated[Path, typer.Argument(metavar="OTHER", help="Another.")],
    as_json: options.Json = False,
) -> None:
    """What was asked otherwise in two reports, and whether their figures differ by more than their
    intervals."""
    from eval.report import Report, differences

    lines = differences(Report.read(one), Report.read(other))
    tell(lines or ["nothing differs"], {"lines": lines}, as_json)


def _command(names: list[str], *, every: bool) -> Callable[..., None]:
    def measure(
        context: typer.Context,
        data: Data,
        model: options.Model = "default",
        memory: MemoryFolder = None,
        retrieve: Count = None,
        candidates: Candidates = 1,
        encoder: EncoderName = DEFAULT,
        split: Split = None,
        layout: As = None,
        images: Images = None,
        annotations: Annotations = None,
        ids: Ids = None,
        limit: Limit = None,
        seed: options.Seed = 0,
        samples: Samples = None,
        weights: Weights = None,
        out: Folder = Path("report"),
        device: options.Device = "auto",
        precision: options.Precision = "auto",
        threads: options.Threads = None,
        as_json: options.Json = False,
    ) -> None:
        from eval.context import Asked
        from eval.corpus import Place
        from eval.run import MEASURES, run

        check_out(out)
        place = Place(data=data, split=split, layout=layout, images=images, annotations=annotations)
        asked = Asked(
            ids=ids,
            limit=limit,
            seed=seed,
            retrieve=(0 if memory is None else COUNT) if retrieve is None else retrieve,
            candidates=candidates,
            samples=samples,
            weights=weights,
            cache=out,
        )
        lab = open_lab(asked, place, model, memory, encoder, device, precision, threads)
        wanted = {name: MEASURES[name] for name in names}
        reports = run(lab, wanted, tables.command(context), out, every=every)
        tell_reports(reports, as_json)

    return measure


def tell_reports(reports: "Sequence[Report]", as_json: bool) -> None:
    """What was measured: a page, or one line of JSON."""
    from eval.run import index

    if as_json:
        typer.echo(json.dumps([one.table() for one in reports], ensure_ascii=False))
    else:
        typer.echo(index(reports))


def open_lab(
    asked: "Asked",
    place: "Place",
    model: str,
    memory: Path | None,
    encoder: str,
    device: str,
    precision: options.Precision,
    threads: int | None,
) -> "Lab":
    """Cheap things first, the weights last."""
    from cm3leon.checkpoint import find, read_config
    from eval.context import Lab
    from eval.corpus import open_source
    from retrieval.memory import Memory

    source = open_source(place)
    folder = find(model, options.say)
    embedder = open_embedder(encoder, device)
    bank = None
    if memory is not None:
        codebook = read_config(folder).image_tokenizer
        bank = Memory.open(find_memory(memory), embedder.id, codebook, options.say)
    leon = options.open_model(folder, device, threads, precision)
    return Lab(asked, source, leon, embedder, bank, tables.steps)


def check_out(out: Path) -> None:
    """Raise UserError for a file in the place of the folder of reports."""
    from tokenizer.errors import UserError

    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; name a folder for the reports")
