"""The command line: one file a group of commands, one short function a command.

It may import everything, but only inside a command, so that `--help` loads no torch. Results go
to stdout, everything else to stderr; status 0 is done, 1 a user's mistake, 2 wrong usage, 130
interrupted.
"""

import io
import sys
import traceback

import typer
from typer.exceptions import TyperException

from cm3leon.cli import bench, caption, data, eval, generate, index, info, plan, train  # noqa: A004
from tokenizer.errors import UserError
from tokenizer.run_control import report_failure

app = typer.Typer(
    name="cm3leon",
    help="CM3Leon: one transformer that generates, edits and describes images.",
    add_completion=False,
    rich_markup_mode=None,  # loading rich would triple the time that --help takes
    context_settings={"help_option_names": ["-h", "--help"]},
)
for group in (generate, caption, info, data, train, plan, index, eval, bench):
    group.add_to(app)


def main(argv: list[str] | None = None) -> int:
    """Run one command line (default: the process's own) and return its exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a caption may hold what a terminal cannot show
        sys.stdout.reconfigure(errors="replace")
    given = sys.argv[1:] if argv is None else argv
    command = typer.main.get_command(app)
    try:
        status = command.main(given or ["--help"], prog_name="cm3leon", standalone_mode=False)
    except UserError as error:
        return _failed(str(error), 1)
    except TyperException as error:
        return _failed(error.format_message(), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        status = 130
    except Exception:
        if not report_failure("crash", traceback.format_exc()):
            raise
        return 70  # the launcher prints what went wrong
    if status == 130:
        print("interrupted", file=sys.stderr)
    return status or 0


def _failed(reason: str, status: int) -> int:
    if report_failure("error", " ".join(reason.split())):
        return status
    print(f"error: {' '.join(reason.split())}", file=sys.stderr)
    return status
