"""eval ledger: the ledger's small entries made again, and held against what they were."""

import io
import json
import time
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from cm3leon.cli import options

if TYPE_CHECKING:
    from typer.core import TyperGroup

    from eval.ledger import Entry, Row

PAGE = Path("docs/ledger.md")


def add_to(group: typer.Typer) -> None:
    """Name this file's command in the group of all that measure."""
    group.command()(ledger)


def ledger(
    context: typer.Context,
    ledger: Annotated[Path, typer.Option(help="The ledger's page.")] = PAGE,
    data: Annotated[Path | None, typer.Option(help="A corpus, in the place of CORPUS.")] = None,
    only: Annotated[str | None, typer.Option(metavar="NAME", help="This entry alone.")] = None,
    as_json: options.Json = False,
) -> None:
    """Run the ledger's small entries again, and say whether each is within its tolerance: status 1
    where one is not, 2 where the page cannot be understood."""
    from typer.core import TyperGroup

    from eval.ledger import NOT, SKIPPED, Malformed, page, read
    from tokenizer.errors import UserError
    from tokenizer.tars import find_tars

    group = context.parent and context.parent.command
    assert isinstance(group, TyperGroup)
    if data is not None:
        find_tars(data)
    try:
        entries = read(ledger)
        for entry in entries:
            _check(group, entry, str(ledger))
    except Malformed as error:
        options.say(f"error: {error}")
        raise typer.Exit(2) from error
    if only is not None and only not in [entry.name for entry in entries]:
        names = ", ".join(entry.name for entry in entries)
        raise UserError(f"{ledger} has no entry {only!r}; there are {names}")
    rows: list[Row] = []
    for entry in entries:
        if only in (None, entry.name):
            rows.append(_again(context, entry, data))
    if as_json:
        typer.echo(json.dumps([row.table() for row in rows], ensure_ascii=False))
    else:
        typer.echo(page(rows))
    if all(row.verdict == SKIPPED for row in rows):
        raise UserError("nothing could be made again: every entry was skipped")
    if any(row.verdict == NOT for row in rows):
        raise typer.Exit(1)


def _check(group: "TyperGroup", entry: "Entry", shown: str) -> None:
    """Raises Malformed, without running it, where an entry's command is none that makes a
    report."""
    from typer.exceptions import TyperException

    from eval.ledger import Malformed
    from eval.runs import MEASURES

    reason = f"there is no measure {entry.measure!r}; there are {', '.join(MEASURES)}"
    if entry.measure in MEASURES:
        try:
            group.commands[entry.measure].make_context(entry.measure, [*entry.words[1:]])
            return
        except TyperException as error:
            reason = error.format_message()
    raise Malformed(f"{shown}:{entry.line}: {reason}")


def _again(context: typer.Context, entry: "Entry", data: Path | None) -> "Row":
    """Run an entry's command as it would be typed, but for its folder."""
    from eval.ledger import CORPUS, NOT, SKIPPED, Row, compare
    from eval.report import Report
    from tokenizer.errors import UserError

    if entry.needs_corpus and data is None:
        reason = f"it needs {CORPUS}; name one with --data"
        return Row(entry=entry, verdict=SKIPPED, reason=reason)
    words = list(entry.words) if data is None else entry.words_with(data)
    options.say(f"{entry.name}: about {entry.seconds:g} s")
    begun = time.perf_counter()
    with TemporaryDirectory(prefix="ledger-") as out, redirect_stdout(io.StringIO()):
        try:
            context.find_root().command.main(
                ["eval", *words, "--out", out], prog_name="cm3leon", standalone_mode=False
            )
            report = Report.read(Path(out) / entry.measure)
        except UserError as error:
            return Row(entry=entry, verdict=NOT, reason=str(error))
    return compare(entry, report.values, time.perf_counter() - begun)
