"""The options of commands that can run as many processes, and what becomes of them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from cm3leon.cli import options

Processes = Annotated[
    int | None, typer.Option(min=1, help="On each machine; one for each GPU if not given.")
]
Hostfile = Annotated[
    Path | None, typer.Option(help="Machines, 'NAME slots=8' a line, to be reached by ssh.")
]
Nodes = Annotated[int, typer.Option(min=1, help="Machines, where this command is typed on each.")]
NodeRank = Annotated[int, typer.Option(min=0, help="Which of them this is.")]
MasterAddr = Annotated[str | None, typer.Option(help="Name of the first of them.")]
MasterPort = Annotated[int | None, typer.Option(min=1, max=65535, help="Where it listens.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only print the commands that would run.")]


def launched(
    worker: Sequence[str | Path | float | None],
    out: Path,
    device: str,
    check: Callable[[int], None],
    **where: Any,
) -> bool:
    """Run a command line as the processes of the cluster that the options in `where` tell; False
    where this process is to do the work. On the CPU it is one process unless more are asked for.

    worker: the command; an option whose value is None is left out with its name. `check(size)`
    refuses what is known to be wrong before anything starts.
    """
    from retrieval.parts import is_worker
    from train.launch import Cluster, found, launch

    if device == "cpu" and where["hostfile"] is None and not is_worker():
        where["processes"] = where["processes"] or 1
    place = found(Cluster(**where))
    if place is None:
        return False
    words: list[str] = []
    for word in worker:
        if word is None:
            words.pop()
        else:
            words.append(str(word))
    check(place.all_processes())
    if status := launch(words, out, place, options.say):
        raise typer.Exit(status)
    return True
