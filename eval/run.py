"""From a name to a report: `cm3leon eval NAME`, and `all` of them.

A lab is opened once; every measure that can be made with what is there is made, and the others say
what they lack.
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
from eval.context import Lab
from eval.metrics import concept as concept_score
from eval.metrics import copies, recall
from eval.metrics import distribution as apart
from eval.metrics import images as painted
from eval.metrics import language as spoken
from eval.metrics import perplexity as measures
from eval.report import FILE, Found, Report, text_of
from eval.samples import read_settings
from tokenizer.errors import UserError
from tokenizer.manifest import file_hash, write_file

Measure = Callable[[Lab], Found]
MEASURES: dict[str, Measure] = {
    "perplexity": measures.perplexity,
    "reconstruction": measures.reconstruction,
    "retrieval": measures.retrieval,
    "recall": recall.recall,
    "caption": spoken.caption,
    "vqa": spoken.vqa,
    "embedder-score": painted.embedder_score,
    "clip-score": painted.clip_score,
    "concept": concept_score.concept,
    "concept-sweep": concept_score.sweep,
    "fid": apart.fid,
    "kid": apart.kernel_distance,
    "mobilenet-distance": apart.mobilenet_distance,
    "copying": copies.audit,
    "edit": painted.edit,
    "infill": painted.infill,
}
INDEX = "README.md"


def run(
    lab: Lab, wanted: Mapping[str, Measure], command: str, out: Path, *, every: bool
) -> list[Report]:
    """Make the reports of these names, and a page that lists all that lie there. With `every` those
    that lack something are skipped; otherwise that is a UserError."""
    made_by = circumstances(lab, command)
    reports: list[Report] = []
    for name, measure in wanted.items():
        report = measured(lab, name, measure, made_by, every)
        report.write(out)
        reports.append(report)
        write_file(out / INDEX, index(written(out)).encode())
    return reports


def written(out: Path) -> list[Report]:
    """The reports in a folder, but those of other versions."""
    reports: list[Report] = []
    for place in sorted(out.glob(f"*/{FILE}")):
        with suppress(UserError):
            reports.append(Report.read(place))
    return reports


def measured(
    lab: Lab, name: str, measure: Measure, made_by: Mapping[str, Any], every: bool
) -> Report:
    """One report."""
    begun = time.perf_counter()
    try:
        found = measure(lab)
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


def circumstances(lab: Lab, command: str) -> dict[str, Any]:
    """All that decides a figure."""
    asked, leon = lab.asked, lab.leon
    return {
        "command": command,
        "seed": asked.seed,
        "data": lab.source.hashes(),
        "ids": None if asked.ids is None else file_hash(asked.ids),
        "limit": asked.limit,
        "model": leon.hash,
        "precision": leon.precision,
        "sampling": asdict(leon.sampling),
        "samples": asked.samples and read_settings(asked.samples),
        "retrieve": asked.retrieve,
        "candidates": asked.candidates,
        "memory": lab.memory and _hash(repr(lab.memory.contents)),
        "encoder": lab.embedder.id,
        "device": str(leon.model.embed.weight.device),
        "decode step": "compiled" if native.library() else "PyTorch's",
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of what computes."""
    return {
        "cm3leon": __version__,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
    }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def index(reports: Sequence[Report]) -> str:
    """The page over all reports."""
    lines = ["# Evaluation", ""]
    lines += ["| | model | | value (95% interval), of |", "| --- | --- | --- | --- |"]
    for report in reports:
        start = f"| [{report.name}]({report.name}/README.md) | {report.made_by.get('model', '')}"
        if report.skipped:
            lines.append(f"{start} | skipped | {report.skipped} |")
        lines += [f"{start} | {name} | {text_of(v)} |" for name, v in report.values.items()]
    return "\n".join(lines) + "\n"
