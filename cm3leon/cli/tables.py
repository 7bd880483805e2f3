"""What the commands that measure share: their arguments, and the table that each prints.

Each prints its command, the model's hash, what was measured on and a Markdown table, so that a line
of the ledger can be copied from it.
"""

import dataclasses
import json
import shlex
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cm3leon.cli import options
from cm3leon.cli.output import tell

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from eval.figures import Figure

Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="A checkpoint folder, 'default' or 'hf:owner/name'."),
]
Corpus = Annotated[Path, typer.Argument(metavar="CORPUS", help="A folder of WebDataset tars.")]
Tokens = Annotated[
    Path, typer.Argument(metavar="SHARDS", help="Token shards, as `data encode` writes them.")
]
Limit = Annotated[
    int | None, typer.Option(min=1, help="At most so many pictures of each kind, evenly spaced.")
]
Lines = Annotated[Path | None, typer.Option(help="A file to write: a line of JSON a picture.")]


def check_lines(out: Path | None) -> None:
    """Refuse a file of lines that could not be written, before dear work begins."""
    from tokenizer.manifest import check_writable

    if out is not None:
        check_writable(out)


def write_lines(out: Path | None, rows: Iterable[dict[str, Any]]) -> None:
    """Write a line of JSON for each, where a file was named."""
    from tokenizer.manifest import write_file

    if out is not None:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        write_file(out, "".join(lines).encode())


def figure_text(figure: "Figure", digits: int) -> str:
    """`1.234 ± 0.056`: the value and one standard error."""
    error = "" if figure.error is None else f" ± {figure.error:.{digits}f}"
    return f"{figure.value:.{digits}f}{error}"


def share_text(figure: "Figure") -> str:
    """`12.3% ± 0.4`: a share and one standard error, both in per cent."""
    error = "" if figure.error is None else f" ± {100 * figure.error:.1f}"
    return f"{100 * figure.value:.1f}%{error}"


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


def place(split: str, limit: int | None) -> str:
    """What was measured on, in words."""
    return split if limit is None else f"{split}, at most {limit:,} pictures of each kind"


def plain(rows: Mapping[str, "DataclassInstance"]) -> dict[str, Any]:
    """The rows as JSON has them."""
    return {name: dataclasses.asdict(row) for name, row in rows.items()}


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
