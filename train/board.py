"""Where the processes of a launched run and the command that a user typed leave each other notes.

A folder beside the run's, seen from every machine: `launch` asks for an orderly end there, and
each process that fails writes why, so that one line is shown and not one a process.
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

VARIABLE = "CM3LEON_BOARD"  # names the folder to the processes

Kind = Literal["error", "crash"]  # what a user can mend; a fault of ours


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a process ended: one line, or for a crash the traceback."""

    rank: int
    kind: Kind
    told: str
    when: float


@dataclass(frozen=True)
class Board:
    """The folder of notes."""

    folder: Path

    @classmethod
    def of_environment(cls) -> Self | None:
        """The board of the run that this process belongs to; None where nobody launched it."""
        place = os.environ.get(VARIABLE)
        return cls(Path(place)) if place else None

    def ask_to_stop(self) -> None:
        """Ask all processes to save and end."""
        self.folder.mkdir(exist_ok=True)
        (self.folder / "stop").touch()

    def stop_wanted(self) -> bool:
        """Whether somebody asked for that."""
        return (self.folder / "stop").exists()

    def clear(self) -> None:
        """Take away the notes of an earlier launch."""
        for note in (*self.folder.glob("rank-*"), self.folder / "stop"):
            note.unlink(missing_ok=True)

    def tell(self, rank: int, kind: Kind, told: str) -> bool:
        """Leave a note on why this process ends; the first of a process counts. False where it
        cannot be left, as on a full disk."""
        note = {"kind": kind, "told": told, "when": time.time()}
        path = self.folder / f"rank-{rank:05d}.json"
        try:
            if not path.exists():
                aside = path.with_suffix(".new")
                aside.write_text(json.dumps(note), "utf-8")
                aside.replace(path)
        except OSError:
            return False
        return True

    def failures(self) -> list[Failure]:
        """All notes on why processes ended, the likeliest cause first: what a user can mend comes
        before a crash, for a process whose neighbour has gone crashes too."""
        found = [
            Failure(
                rank=int(path.stem.removeprefix("rank-")), **json.loads(path.read_text("utf-8"))
            )
            for path in self.folder.glob("rank-*.json")
        ]
        return sorted(found, key=lambda one: (one.kind == "crash", one.when))


def told(kind: Kind, line: str) -> bool:
    """Tell whoever launched this process why it ends; whether there was somebody to tell."""
    board = Board.of_environment()
    if board is None or "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    return board.tell(int(os.environ["RANK"]), kind, line)
