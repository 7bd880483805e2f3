"""Commands that measure a model: eval METRIC..., samples, folders, compare."""

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from cm3leon.cli import eval_folders, eval_samples, options
from cm3leon.cli.eval_options import DataOptions, Out, Weights, check_out
from cm3leon.cli.options import ModelOptions
from cm3leon.cli.output import command_line, print_result, progress_lines
from cm3leon.cli.retrieve import RetrievalOptions, open_embedder, open_memory

if TYPE_CHECKING:
    from eval.context import EvalContext
    from eval.report import MetricResult, Report

METRICS = {
    "perplexity": "bits of images given captions and of captions given images",
    "reconstruction": "PSNR, SSIM, LPIPS and rFID of images through the codebook",
    "retrieval": "bits of images behind retrieved, random and no documents",
    "recall": "recall of the retriever's encoder, --encoder",
    "caption": "captions against people's: COCO's scores, label and style named",
    "vqa": "answers to questions about images",
    "embedder-score": "cosine of generated images and captions by the retriever's encoder",
    "clip-score": "the same by a CLIP, named by --encoder",
    "concept": "thing and style of generated emoji by a classifier",
    "fid": "Frechet Inception distance, precision and recall of generated images",
    "kid": "kernel Inception distance of generated images",
    "mobilenet-distance": "Frechet distance by MobileNetV2, which is no FID",
    "copying": "generated images that are copies of training images or retrieved ones",
    "edit": "distance of edits from their real targets",
    "infill": "distance of an infilled middle from the real one",
}
MORE = {  # not in `all`
    "concept-sweep": "the concept score over guidance scales and ways of sampling",
    "people": "prompts in people's words, of --prompts, by the concept classifier",
}
ALL = "all"


class DefaultGroup(TyperGroup):
    """A group whose command `run` need not be named: `eval fid` is `eval run fid`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


@dataclass(frozen=True, kw_only=True)
class PromptSuiteOptions:
    """The prompts of the metric `people`."""

    prompts: Annotated[
        Path | None, typer.Option(help="JSON of both halves, for the metric 'people'.")
    ] = None
    half: Annotated[
        Literal["open", "sealed"],
        typer.Option(help="Half of --prompts: for development, or scored once, at the end."),
    ] = "open"


def add_to(app: typer.Typer) -> None:
    """Add the group `eval`."""
    listed = "".join(f"\n\n  {name}: {text}" for name, text in (METRICS | MORE).items())
    group = typer.Typer(
        cls=DefaultGroup,
        help=f"Measure a model: eval METRIC... or 'all'.\n\nMetrics:{listed}",
        rich_markup_mode=None,
    )
    options.add(group, run, compare)
    eval_samples.add_to(group)
    eval_folders.add_to(group)
    app.add_typer(group, name="eval")


def run(
    context: typer.Context,
    metrics: Annotated[list[str], typer.Argument(metavar="METRIC...", help="Or 'all'.")],
    *,
    source: DataOptions,
    model: ModelOptions,
    retrieval: RetrievalOptions,
    candidates: Annotated[
        int, typer.Option(min=1, max=options.MOST, help="Candidates per image; the best counts.")
    ] = 1,
    seed: options.Seed = 0,
    samples: Annotated[
        Path | None, typer.Option(help="Folder of 'eval samples' to measure instead of generating.")
    ] = None,
    weights: Weights = None,
    suite: PromptSuiteOptions,
    out: Out = Path("report"),
    as_json: options.Json = False,
) -> None:
    """Measure a model on a corpus or a published data set; write a report for each metric.

    Those of 'all' that lack something are skipped, and say what.
    """
    names = _names(metrics)
    _check_suite(names, suite)
    check_out(out)
    from eval.context import EvalOptions
    from eval.run import METRICS, run

    chosen = {name: METRICS[name] for name in names if name != "people"}
    if "people" in names:
        chosen |= _people(suite)
    asked = EvalOptions(
        ids=source.ids,
        limit=source.limit,
        seed=seed,
        retrieve=retrieval.count,
        candidates=candidates,
        samples=samples,
        weights=weights,
        cache=out,
    )
    opened = open_context(asked, source, model, retrieval)
    reports = run(opened, chosen, command_line(context), out, every=ALL in metrics)
    print_reports(reports, as_json)


def compare(
    one: Annotated[Path, typer.Argument(metavar="REPORT", help="A report.json, or its folder.")],
    other: Annotated[Path, typer.Argument(metavar="OTHER", help="Another.")],
    as_json: options.Json = False,
) -> None:
    """Compare two reports: what was asked differently, which values differ beyond intervals."""
    from eval.report import Report, differences

    lines = differences(Report.read(one), Report.read(other))
    print_result(lines or ["nothing differs"], {"lines": lines}, as_json)


def print_reports(reports: "Sequence[Report]", as_json: bool) -> None:
    """Print reports as one page, or one line of JSON."""
    from eval.run import index

    if as_json:
        typer.echo(json.dumps([one.table() for one in reports], ensure_ascii=False))
    else:
        typer.echo(index(reports))


def open_context(
    asked: Any, source: DataOptions, model: ModelOptions, retrieval: RetrievalOptions
) -> "EvalContext":
    """Open data, encoder and memory, then the weights: cheap things first."""
    from cm3leon.checkpoint import find
    from eval.context import EvalContext
    from eval.corpus import open_source

    data = open_source(source.place())
    folder = find(model.model, options.say)
    embedder = open_embedder(retrieval.encoder, model.device)
    memory = None
    if retrieval.memory is not None:
        memory = open_memory(retrieval.memory, embedder, folder)
    leon = model.open(folder)
    return EvalContext(asked, data, leon, embedder, memory, progress_lines)


def _names(metrics: Sequence[str]) -> list[str]:
    """Return the metrics asked for; raise BadParameter for one that is not known."""
    known = METRICS | MORE
    names: list[str] = []
    for name in metrics:
        if name != ALL and name not in known:
            near = difflib.get_close_matches(name, [*known, ALL], n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}, all"
            raise typer.BadParameter(f"there is no metric '{name}'; {hint}")
        names += METRICS if name == ALL else [name]
    return list(dict.fromkeys(names))


def _check_suite(names: Sequence[str], suite: PromptSuiteOptions) -> None:
    if ("people" in names) != (suite.prompts is not None):
        raise typer.BadParameter("the metric 'people' and --prompts go together")


def _people(suite: PromptSuiteOptions) -> dict[str, Any]:
    """Return the metric of a half of the prompts, by the name of its report."""
    from eval.metrics.prompt_suite import Prompts, people

    assert suite.prompts is not None
    prompts = Prompts.read(suite.prompts).half(suite.half)

    def measure(context: "EvalContext") -> "MetricResult":
        return people(context, prompts)

    return {f"people-{suite.half}": measure}
