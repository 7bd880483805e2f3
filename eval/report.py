"""Evaluation reports: report.json, a Markdown page, images, and outputs of the model.

Every metric ends here. A report contains all settings needed to reproduce it; `differences`
compares two reports.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eval.stats import evenly
from tokenizer.errors import UserError
from tokenizer.manifest import write_file
from tokenizer.pixels import encode_png, sheet

VERSION = 1  # format version of report.json
RESAMPLES = 1000
SHOWN = 24  # images on a sheet
ACROSS = 8  # approximate number of images in a row of a sheet
FILE, PAGE, RESULTS = "report.json", "README.md", "results.json"


@dataclass(frozen=True, kw_only=True)
class Value:
    """Value of a metric with its 95% interval; a value of a single item has none."""

    value: float
    low: float | None = None
    high: float | None = None
    count: int
    """Number of measured items."""


@dataclass(frozen=True, kw_only=True)
class MetricResult:
    """Result of a metric."""

    values: Mapping[str, Value]
    notes: Sequence[str] = ()
    pictures: Mapping[str, Image.Image] = field(default_factory=dict[str, Image.Image])
    results: Sequence[Mapping[str, Any]] = ()
    """Output of the model for each item, in the layout of publishers' own scorers."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Result of a metric with the settings that produced it."""

    name: str
    values: Mapping[str, Value]
    made_by: Mapping[str, Any]
    """Command, seed, settings, hashes of model and data, versions."""
    seconds: float = 0.0
    notes: Sequence[str] = ()
    skipped: str = ""
    """Reason that nothing was measured, if so."""
    pictures: Mapping[str, Image.Image] = field(default_factory=dict[str, Image.Image])
    """By the name of their file, without extension."""
    results: Sequence[Mapping[str, Any]] = ()

    def write(self, folder: Path) -> None:
        """Write the report into a subfolder of its own name, each file whole or not at all."""
        place = folder / self.name
        place.mkdir(parents=True, exist_ok=True)
        for name, image in self.pictures.items():
            write_file(place / f"{name}.png", encode_png(image))
        if self.results:
            write_file(place / RESULTS, json.dumps(self.results, ensure_ascii=False).encode())
        write_file(place / PAGE, page(self).encode())
        write_file(place / FILE, json.dumps(self.table(), indent=1, ensure_ascii=False).encode())

    def table(self) -> dict[str, Any]:
        """Return the content of report.json."""
        return {
            "version": VERSION,
            "name": self.name,
            "values": {name: asdict(value) for name, value in self.values.items()},
            "made_by": dict(self.made_by),
            "seconds": round(self.seconds, 2),
            "notes": list(self.notes),
            "skipped": self.skipped,
            "pictures": sorted(self.pictures),
        }

    @classmethod
    def read(cls, path: Path) -> "Report":
        """Read a written report, without its images. Raises UserError for anything else."""
        path = path / FILE if path.is_dir() else path
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
            version = table["version"]
            if version != VERSION:
                raise UserError(
                    f"{path} is a report of version {version}, this is version {VERSION}; measure "
                    "again, or compare with the cm3leon that wrote it"
                )
            return cls(
                name=table["name"],
                values={name: Value(**value) for name, value in table["values"].items()},
                made_by=table["made_by"],
                seconds=table["seconds"],
                notes=table["notes"],
                skipped=table["skipped"],
            )
        except UserError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is no report of 'cm3leon eval' ({error})") from error


Statistic = Callable[[Sequence[int]], float]  # of the items at these indices


def resampled(statistic: Statistic, count: int, seed: int = 0, resamples: int = RESAMPLES) -> Value:
    """Return a statistic of all items with its 95% interval.

    The interval is Efron's percentile interval: as many items are drawn with replacement.
    """
    assert count, "nothing was measured"
    whole = float(statistic(range(count)))
    if count == 1:
        return Value(value=whole, count=1)
    draw = np.random.default_rng(seed)
    found = [float(statistic(draw.integers(count, size=count))) for _ in range(resamples)]  # pyright: ignore[reportArgumentType]
    low, high = np.percentile(found, (2.5, 97.5))
    return Value(value=whole, low=float(low), high=float(high), count=count)


def mean(amounts: Sequence[float], sizes: Sequence[float] | None = None, seed: int = 0) -> Value:
    """Return the sum of `amounts` over that of `sizes`, or the mean without sizes.

    Each item has one of both.
    """
    amounts_D = np.asarray(amounts, dtype=np.float64)
    sizes_D = np.ones_like(amounts_D) if sizes is None else np.asarray(sizes, dtype=np.float64)

    def of(places: Sequence[int]) -> float:
        return float(amounts_D[places].sum() / sizes_D[places].sum())

    return resampled(of, len(amounts_D), seed)


def sheet_of(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Return a sheet of evenly chosen rows of images."""
    chosen = [rows[place] for place in evenly(range(len(rows)), SHOWN)]
    across = len(chosen[0])
    return sheet([image for row in chosen for image in row], across * max(1, ACROSS // across))


def text_of(value: Value) -> str:
    """Format a value: `12.34 (11.90 to 12.80), 500`."""
    whole = f"{value.value:.4g}"
    if value.low is None or value.high is None:
        return f"{whole}, {value.count:,}"
    return f"{whole} ({value.low:.4g} to {value.high:.4g}), {value.count:,}"


def page(report: Report) -> str:
    """Return the report as Markdown."""
    lines = [f"# {report.name}", ""]
    if report.skipped:
        lines += [f"Not measured: {report.skipped}.", ""]
    if report.values:
        lines += ["| | value | 95% interval | of |", "| --- | --- | --- | --- |"]
        lines += [_row(name, value) for name, value in report.values.items()]
        lines.append("")
    lines += [f"- {note}" for note in report.notes]
    lines += ["", "Made by:", ""]
    lines += [f"- {name}: {_plain(value)}" for name, value in report.made_by.items()]
    for name in report.pictures:
        lines += ["", f"![{name}]({name}.png)"]
    return "\n".join(lines) + "\n"


def differences(one: Report, other: Report) -> list[str]:
    """Return the settings that differ, and each value with whether the intervals overlap."""
    lines: list[str] = []
    if one.name != other.name:
        lines.append(f"one is of {one.name}, the other of {other.name}: nothing can be compared")
        return lines
    names = dict.fromkeys([*one.made_by, *other.made_by])
    for name in names:
        a, b = one.made_by.get(name), other.made_by.get(name)
        if a != b:
            lines.append(f"{name}: {_plain(a)} | {_plain(b)}")
    for name in dict.fromkeys([*one.values, *other.values]):
        if name not in one.values or name not in other.values:
            lines.append(f"{name}: only in one of them")
            continue
        a, b = one.values[name], other.values[name]
        lines.append(f"{name}: {text_of(a)} | {text_of(b)}: {_verdict(a, b)}")
    return lines


def _verdict(a: Value, b: Value) -> str:
    if a.value == b.value:
        return "the same"
    if None in (a.low, a.high, b.low, b.high):
        return "differ, without intervals"
    assert a.low is not None
    assert a.high is not None
    assert b.low is not None
    assert b.high is not None
    apart = a.low > b.high or b.low > a.high
    return "differ by more than the intervals" if apart else "within the intervals"


def _row(name: str, value: Value) -> str:
    interval = "" if value.low is None else f"{value.low:.4g} to {value.high:.4g}"
    return f"| {name} | {value.value:.4g} | {interval} | {value.count:,} |"


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
