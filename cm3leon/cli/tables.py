"""What the commands that measure share: their arguments, and the table that each prints.

Each prints its command, the model's hash, what was measured on and a Markdown table, so that a line
of the ledger can be copied from it.
"""

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from cm3leon.cli import options
from cm3leon.cli.output import tell

if TYPE_CHECKING:
    pass


def tell_table(
    context: typer.Context,
    about: Mapping[str, str],
    table: Mapping[str, Mapping[str, str]],
    result: Mapping[str, Any],
    as_json: bool,
) -> None:
    """Print the command, what was measured with what (`about`), and the table: its rows by name."""
    about = {"command": command(context), **about}
    columns = ["", *next(iter(table.values()))]
    rows = [
        columns,
        ["---"] * len(columns),
        *([name, *row.values()] for name, row in table.items()),
    ]
    lines = [f"{name}: {value}" for name, value in about.items()]
    lines += ["", *(_line(row) for row in rows)]
    tell(lines, {**about, **result}, as_json)


def steps(what: str) -> Callable[[int, int], None]:
    """Progress on stderr: a line at each tenth of the way, with the time left."""
    begun, told = time.perf_counter(), 0

    def progress(done: int, total: int) -> None:
        nonlocal told
        if 10 * done // total > told:
            told = 10 * done // total
            left = (time.perf_counter() - begun) * (total - done) / done
            options.say(f"{what}: {done:,} of {total:,}, {left:.0f} s left")

    return progress


def _line(row: Sequence[str]) -> str:
    return f"| {' | '.join(row)} |"


def command(context: typer.Context) -> str:
    """The command as it was given, less the options that say what they would have said anyway."""
    words = context.command_path.split()
    for parameter in context.command.params:
        value = context.params.get(str(parameter.name))
        if value is None or value is False or value in ((), parameter.default):
            continue  # but 0 is something to say
        option = parameter.opts[0] if parameter.param_type_name == "option" else None
        for one in value if isinstance(value, tuple) else (value,):
            words += [text for text in (option, None if one is True else str(one)) if text]
    return shlex.join(words)
