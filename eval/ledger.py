"""The ledger's entries that can be made again: read from its page, and held against what they are
now.

docs/ledger.md -> `parse` -> `Entry`; the roof runs each command and reads the report's figure ->
`compare` -> `Row` -> `page`.
"""

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.report import Value
from tokenizer.errors import UserError

HEADING = "Entries that `cm3leon eval ledger` re-runs"
COLUMNS = ("name", "command", "value", "figure", "tolerance", "seconds")
BEGIN = ("cm3leon", "eval")
CORPUS = "CORPUS"
OK, NOT, SKIPPED = "ok", "NOT", "skipped"


class Malformed(UserError):
    """A page that is no ledger; the line says where."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A figure of the ledger and the command that made it."""

    name: str
    words: tuple[str, ...]
    """Of the command, from the measure's name on."""
    value: str
    """The name of the figure among those of the measure."""
    figure: float
    tolerance: float
    seconds: float
    line: int

    @property
    def measure(self) -> str:
        """The measure's name."""
        return self.words[0]

    @property
    def needs_corpus(self) -> bool:
        """Whether it cannot be made without one."""
        return any(CORPUS in Path(word).parts for word in self.words)

    def words_with(self, corpus: Path) -> list[str]:
        """The command's words, where the corpus has its place."""
        return [
            str(Path(*(corpus if part == CORPUS else part for part in Path(word).parts)))
            if CORPUS in Path(word).parts
            else word
            for word in self.words
        ]


@dataclass(frozen=True, kw_only=True)
class Row:
    """What became of an entry; `now` is None where it was not made, for a `reason`."""

    entry: Entry
    verdict: str
    now: float | None = None
    seconds: float | None = None
    reason: str = ""

    def table(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "entry": self.entry.name,
            "value": self.entry.value,
            "was": self.entry.figure,
            "is": self.now,
            "tolerance": self.entry.tolerance,
            "verdict": self.verdict,
            "reason": self.reason,
        }


def read(path: Path) -> list[Entry]:
    """The entries of a ledger's page. Raises UserError where it cannot be read, `Malformed` for one
    that has no such section or an entry that is none."""
    try:
        return parse(path.read_text("utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); name the ledger's page") from error


def parse(text: str, shown: str) -> list[Entry]:
    """The entries of a page; `shown` names it in complaints."""
    lines = text.splitlines()
    places = [number for number, line in enumerate(lines, 1) if line == f"## {HEADING}"]
    if len(places) != 1:
        found = f"line {places[1]} is another" if places else "there is none"
        raise Malformed(f"{shown}: it must have one section '## {HEADING}'; {found}")
    table = list(_table(lines, places[0]))
    if not table:
        raise Malformed(f"{shown}:{places[0]}: the section has no table; give it one")
    (first, heads), *rows = table
    if heads != COLUMNS:
        raise Malformed(f"{shown}:{first}: the columns are {heads}, they must be {COLUMNS}")
    if not rows or any(set(cell) - set("-: ") for cell in rows[0][1]):
        raise Malformed(f"{shown}:{first + 1}: there is no line of dashes under the columns")
    entries: dict[str, Entry] = {}
    for number, cells in rows[1:]:
        try:
            entry = _entry(number, cells)
            if entry.name in entries:
                raise UserError(f"line {entries[entry.name].line} has the name {entry.name!r} too")
        except UserError as error:
            raise Malformed(f"{shown}:{number}: {error}") from error
        entries[entry.name] = entry
    if not entries:
        raise Malformed(f"{shown}:{first}: the table has no entry")
    return [*entries.values()]


def compare(entry: Entry, values: Mapping[str, Value], seconds: float) -> Row:
    """An entry beside the figures that its command made now."""
    if entry.value not in values:
        reason = f"no value {entry.value!r}, only {', '.join(map(repr, values))}"
        return Row(entry=entry, verdict=NOT, seconds=seconds, reason=reason)
    now = values[entry.value].value
    verdict = OK if abs(now - entry.figure) <= entry.tolerance else NOT  # NOT for a NaN, too
    return Row(entry=entry, verdict=verdict, now=now, seconds=seconds)


def page(rows: Sequence[Row]) -> str:
    """The table for people."""
    lines = ["| entry | was | is | difference | tolerance | seconds | |"]
    lines.append(f"| {' | '.join(['---'] * 7)} |")
    for row in rows:
        entry, now = row.entry, row.now
        numbers = ["", ""] if now is None else [f"{now:.5g}", f"{now - entry.figure:+.2g}"]
        took = "" if row.seconds is None else f"{row.seconds:.0f}"
        end = f"{row.verdict}: {row.reason}" if row.reason else row.verdict
        cells = [entry.name, f"{entry.figure:g}", *numbers, f"{entry.tolerance:g}", took, end]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _table(lines: Sequence[str], heading: int) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Line numbers and cells of the first table after a heading, up to the next heading."""
    begun = False
    for number, line in enumerate(lines[heading:], heading + 1):
        if line.startswith("|"):
            begun = True
            yield number, tuple(cell.strip() for cell in line.strip().strip("|").split("|"))
        elif begun or line.startswith("#"):
            return


def _entry(number: int, cells: Sequence[str]) -> Entry:
    if len(cells) != len(COLUMNS):
        raise UserError(f"{len(cells)} cells, not {len(COLUMNS)}")
    name, command, value, *numbers = cells
    if not name or not value:
        raise UserError("the entry's name or its value's is empty")
    figure, tolerance, seconds = (
        _number(text, head) for text, head in zip(numbers, COLUMNS[3:], strict=True)
    )
    if tolerance < 0 or seconds < 0:
        raise UserError("tolerance and seconds cannot be negative")
    return Entry(
        name=name,
        words=_words(command),
        value=value,
        figure=figure,
        tolerance=tolerance,
        seconds=seconds,
        line=number,
    )


def _words(command: str) -> tuple[str, ...]:
    """`cm3leon eval perplexity ...` in backticks -> the words from the measure's name on."""
    try:
        words = shlex.split(command.strip("`")) if command[:1] == command[-1:] == "`" else []
    except ValueError as error:
        raise UserError(f"the command {command} cannot be read ({error})") from error
    if tuple(words[:2]) != BEGIN or len(words) < 3 or words[2] == "ledger":
        raise UserError(f"the command is {command!r}; it must be `cm3leon eval NAME ...`")
    return tuple(words[2:])


def _number(text: str, head: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{head} is {text!r}, not a number")
    return number
