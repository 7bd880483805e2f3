"""Runner of metrics by name that writes their reports: `cm3leon eval METRIC...`.

One context is opened for all metrics; each metric whose inputs are available is computed, and the
others report what is missing.
"""

import hashlib
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy
import torch

from cm3leon import __version__
from cm3leon.fast import native
from eval.context import EvalContext
from eval.metrics import (
    caption,
    concept,
    copying,
    fid,
    images,
    perplexity,
    recall,
    reconstruction,
    retrieval,
    vqa,
)
from eval.report import FILE, MetricResult, Report, text_of
from eval.samples import read_settings
from tokenizer.errors import UserError
from tokenizer.manifest import file_hash, write_file

Metric = Callable[[EvalContext], MetricResult]
METRICS: dict[str, Metric] = {
    "perplexity": perplexity.perplexity,
    "reconstruction": reconstruction.reconstruction,
    "retrieval": retrieval.retrieval,
    "recall": recall.recall,
    "caption": caption.caption,
    "vqa": vqa.vqa,
    "embedder-score": images.embedder_score,
    "clip-score": images.clip_score,
    "concept": concept.concept,
    "concept-sweep": concept.sweep,
    "fid": fid.fid,
    "kid": fid.kernel_distance,
    "mobilenet-distance": fid.mobilenet_distance,
    "copying": copying.audit,
    "edit": images.edit,
    "infill": images.infill,
}
INDEX = "README.md"


def run(
    context: EvalContext, wanted: Mapping[str, Metric], command: str, out: Path, *, every: bool
) -> list[Report]:
    """Write the reports of these metrics, and an index page of all reports in the folder.

    With `every`, metrics that lack an input are skipped; otherwise that raises UserError.
    """
    made_by = circumstances(context, command)
    reports: list[Report] = []
    for name, metric in wanted.items():
        report = measured(context, name, metric, made_by, every)
        report.write(out)
        reports.append(report)
        write_file(out / INDEX, index(written(out)).encode())
    return reports


def written(out: Path) -> list[Report]:
    """Read the reports in a folder, except those of other versions."""
    reports: list[Report] = []
    for place in sorted(out.glob(f"*/{FILE}")):
        with suppress(UserError):
            reports.append(Report.read(place))
    return reports


def measured(
    context: EvalContext, name: str, metric: Metric, made_by: Mapping[str, Any], every: bool
) -> Report:
    """Compute the report of one metric."""
    begun = time.perf_counter()
    try:
        found = metric(context)
    except UserError as error:
        if not every:
            raise
        return Report(name=name, values={}, made_by=made_by, skipped=str(error))
    return Report(
        name=name,
        values=found.values,
        made_by=made_by,
        seconds=time.perf_counter() - begun,
        notes=found.notes,
        pictures=found.pictures,
        results=found.results,
    )


def circumstances(context: EvalContext, command: str) -> dict[str, Any]:
    """Return everything that determines a value."""
    asked, leon = context.asked, context.leon
    return {
        "command": command,
        "seed": asked.seed,
        "data": context.source.hashes(),
        "ids": None if asked.ids is None else file_hash(asked.ids),
        "limit": asked.limit,
        "model": leon.hash,
        "precision": leon.precision,
        "sampling": asdict(leon.sampling),
        "samples": asked.samples and read_settings(asked.samples),
        "retrieve": asked.retrieve,
        "candidates": asked.candidates,
        "memory": context.memory and _hash(repr(context.memory.contents)),
        "encoder": context.embedder.id,
        "device": str(leon.model.embed.weight.device),
        "decode step": "compiled" if native.library() else "PyTorch's",
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Return the versions of the software that computes."""
    return {
        "cm3leon": __version__,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
    }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def index(reports: Sequence[Report]) -> str:
    """Return the index page of all reports."""
    lines = ["# Evaluation", ""]
    lines += ["| | model | | value (95% interval), of |", "| --- | --- | --- | --- |"]
    for report in reports:
        start = f"| [{report.name}]({report.name}/README.md) | {report.made_by.get('model', '')}"
        if report.skipped:
            lines.append(f"{start} | skipped | {report.skipped} |")
        lines += [f"{start} | {name} | {text_of(v)} |" for name, v in report.values.items()]
    return "\n".join(lines) + "\n"
