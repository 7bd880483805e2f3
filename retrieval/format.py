"""Contents of a memory's memory.json, and their atomic update.

Used by `memory.py`. A change writes a segment aside, under a lock, and then calls `confirm`, which
replaces memory.json in one rename; files left by a killed change are deleted by the next change.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from retrieval.segment import CodebookInfo
from tokenizer import config as settings
from tokenizer import manifest
from tokenizer.errors import UserError

FORMAT = 2
TOP, VERIFIED, LOCK = "memory.json", "verified.json", ".lock"
NAME = re.compile(r"segment-\d{6,}-[0-9a-f]{8}")


@dataclass(frozen=True, kw_only=True)
class SegmentEntry:
    """Entry of a segment in memory.json; `manifest` is the hash of the segment's own manifest."""

    name: str
    rows: int
    manifest: str
    removed: tuple[int, ...] = ()  # rows of removed documents, in ascending order

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise UserError(f"{self.name!r} is no name of a segment")
        if any(one >= next_one for one, next_one in pairwise((-1, *self.removed, self.rows))):
            raise UserError(f"the removed rows of {self.name} do not rise within its {self.rows}")


@dataclass(frozen=True, kw_only=True)
class Contents:
    """Contents of memory.json."""

    format: int = FORMAT
    encoder: str  # the Embedder's id: vectors of another embedder cannot be compared
    dimension: int
    codebook: CodebookInfo
    near: float  # two documents with a higher score are near duplicates; see rules.Rules
    least: float = -1.0  # documents with a lower score are irrelevant to a text query
    segments: tuple[SegmentEntry, ...] = ()

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise UserError(
                f"format is {self.format}, this version reads {FORMAT}; build the memory again"
            )
        if len({one.name for one in self.segments}) < len(self.segments):
            raise UserError("a segment is listed twice")

    @property
    def count(self) -> int:
        """Number of documents that are not removed."""
        return sum(one.rows - len(one.removed) for one in self.segments)


def read_contents(folder: Path) -> Contents:
    """Read memory.json. Raises UserError if it is missing or damaged, or if a file that we write is
    a symbolic link: an untrusted memory could otherwise make us overwrite its target."""
    for name in (TOP, VERIFIED, LOCK):
        if (folder / name).is_symlink():
            raise UserError(f"{folder / name}: is a link; copy the memory with what it points to")
    path = folder / TOP
    if not path.is_file():
        raise UserError(f"there is no memory at {str(folder)!r}: it has no {TOP}")
    try:
        table: Any = json.loads(path.read_text("utf-8"))
        body = table["memory"]
        whole = table["sha256"] == _digest(body)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: is damaged ({error}); copy the memory again") from error
    if not whole:
        raise UserError(f"{path}: is damaged, it is not what was written; copy the memory again")
    try:
        return settings.build(Contents, body)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def confirm(folder: Path, contents: Contents) -> None:
    """Write the new state to memory.json; then delete the segments that it does not list."""
    body = settings.table_of(contents)
    text = json.dumps({"sha256": _digest(body), "memory": body}, indent=1) + "\n"
    manifest.write_file(folder / TOP, text.encode())
    kept = {one.name for one in contents.segments}
    for path in [*folder.glob("segment-*"), *folder.glob(".segment-*")]:
        if path.name not in kept:
            shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(".*.json.*"):  # temporary files
        path.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Generator[None]:
    """Hold the lock of the memory in this folder, so that only this process changes it."""
    with manifest.locked(folder / LOCK, f"{folder} is being changed by another; try again"):
        yield


def _digest(body: object) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
