"""Stop requests and failure reports between the launcher of a run and its processes.

They are files in a folder beside the run's, visible from every machine: the launcher requests an
orderly exit there, and each process that fails writes the reason, so that one line is printed
instead of one per process.
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

VARIABLE = "CM3LEON_CONTROL"  # environment variable with the path of the folder

Kind = Literal["error", "crash"]  # an error that the user can fix; a bug


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Reason why a process ended: one line, or for a crash the traceback."""

    rank: int
    kind: Kind
    text: str
    when: float


@dataclass(frozen=True)
class RunControl:
    """Folder of stop requests and failure reports."""

    folder: Path

    @classmethod
    def of_environment(cls) -> Self | None:
        """Return the control folder of this process's run; None without a launcher."""
        place = os.environ.get(VARIABLE)
        return cls(Path(place)) if place else None

    def request_stop(self) -> None:
        """Ask all processes to save and exit."""
        self.folder.mkdir(exist_ok=True)
        (self.folder / "stop").touch()

    def stop_requested(self) -> bool:
        """Return whether a stop was requested."""
        return (self.folder / "stop").exists()

    def clear(self) -> None:
        """Remove the files of an earlier launch."""
        for path in (*self.folder.glob("rank-*"), *self.folder.glob("st*")):  # stop, store
            path.unlink(missing_ok=True)

    def report(self, rank: int, kind: Kind, text: str) -> bool:
        """Report why a process ends; only its first report is kept. Return False if it cannot be
        written, as on a full disk."""
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
        """Return all reports, the most likely cause first: errors that a user can fix come before
        crashes, because a process also crashes when another process has ended."""
        found = [
            Failure(
                rank=int(path.stem.removeprefix("rank-")), **json.loads(path.read_text("utf-8"))
            )
            for path in self.folder.glob("rank-*.json")
        ]
        return sorted(found, key=lambda one: (one.kind == "crash", one.when))


def report_failure(kind: Kind, text: str) -> bool:
    """Report the reason for exiting to the launcher; return False if there is no launcher."""
    control = RunControl.of_environment()
    if control is None or "RANK" not in os.environ:
        return False
    return control.report(int(os.environ["RANK"]), kind, text)
