"""Stop requests and failure reports between the launcher of a run and its processes.

A folder beside the run's, seen from every machine: the launcher asks for an orderly end there, and
each process that fails writes why, so that one line is printed and not one a process.
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

VARIABLE = "CM3LEON_CONTROL"  # names the folder to the processes

Kind = Literal["error", "crash"]  # what a user can mend; a fault of ours


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a process ended: one line, or for a crash the traceback."""

    rank: int
    kind: Kind
    text: str
    when: float


@dataclass(frozen=True)
class RunControl:
    """The folder of requests and reports."""

    folder: Path

    @classmethod
    def of_environment(cls) -> Self | None:
        """Return the folder of the run that this process belongs to; None if nobody launched it."""
        place = os.environ.get(VARIABLE)
        return cls(Path(place)) if place else None

    def request_stop(self) -> None:
        """Ask all processes to save and end."""
        self.folder.mkdir(exist_ok=True)
        (self.folder / "stop").touch()

    def stop_requested(self) -> bool:
        """Return whether somebody asked for that."""
        return (self.folder / "stop").exists()

    def clear(self) -> None:
        """Remove what an earlier launch left."""
        for path in (*self.folder.glob("rank-*"), *self.folder.glob("st*")):  # stop, store
            path.unlink(missing_ok=True)

    def report(self, rank: int, kind: Kind, text: str) -> bool:
        """Report why a process ends; the first report of a process counts. Return False where it
        cannot be written, as on a full disk."""
        table = {"kind": kind, "text": text, "when": time.time()}
        path = self.folder / f"rank-{rank:05d}.json"
        try:
            if not path.exists():
                aside = path.with_suffix(".new")
                aside.write_text(json.dumps(table), "utf-8")
                aside.replace(path)
        except OSError:
            return False
        return True

    def failures(self) -> list[Failure]:
        """Return all reports, the likeliest cause first: what a user can mend comes before a crash,
        for a process whose neighbour has gone crashes too."""
        found = [
            Failure(
                rank=int(path.stem.removeprefix("rank-")), **json.loads(path.read_text("utf-8"))
            )
            for path in self.folder.glob("rank-*.json")
        ]
        return sorted(found, key=lambda one: (one.kind == "crash", one.when))


def report_failure(kind: Kind, text: str) -> bool:
    """Report the reason for exiting to the launcher; return False if there is none."""
    control = RunControl.of_environment()
    if control is None or "RANK" not in os.environ:
        return False
    return control.report(int(os.environ["RANK"]), kind, text)
