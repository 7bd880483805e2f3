"""What a published data set tells of its pictures, in one shape for all layouts.

On the path: files of a layout -> entries (`annotations.py`, `layouts.py`) -> slices of them, each a
source -> `samples_of` and `documents_of` -> a part of token shards. A slice is small enough to
share among processes and to do again after a kill. Pictures are opened as those of a tar are: what
is missing, damaged or odd is skipped, with the reason, and noted in a `Tally`.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

from tokenizer.data.shards import TASKS
from tokenizer.data.tars import PICTURE, Sample, Tally, printable, refusal
from tokenizer.errors import UserError

Bad = tuple[str, str]
"""(what, why) of something damaged."""


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A picture of a data set, not opened yet."""

    id: str
    files: tuple[str, ...]
    """Where it may lie in the folder of pictures; the first that is there is read."""
    captions: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A picture, or a few that belong together, and all that the data set tells of them."""

    pictures: tuple[Listed, ...] = ()
    documents: tuple[dict[str, Any], ...] = ()
    bad: tuple[Bad, ...] = ()
    """What was told but cannot be used."""
    ignored: tuple[tuple[str, int], ...] = ()
    """What was left out as being of another kind, and how often."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """A part of a data set: a source of pictures and documents. Its name tells which."""

    name: str
    images: Path
    entries: Callable[[], Sequence[Entry]]
    stamp: Callable[[], object]
    """JSON that is another where anything in the slice changed."""

    def __str__(self) -> str:
        return self.name


def samples_of(images: Path, entries: Sequence[Entry], tally: Tally) -> Iterator[Sample]:
    """The pictures of some entries, read from the folder `images`; their ids differ."""
    for entry in entries:
        for what, why in entry.bad:
            tally.skip(printable(what), why)
        tally.ignored.update(dict(entry.ignored))
        for one in entry.pictures:
            shown = printable(one.id)
            try:
                words(one.id, "id")
                data = _read(images, one.files)
            except UserError as error:
                tally.skip(shown, error)
                continue
            yield Sample(shown, {"id": one.id, "captions": list(one.captions)}, data)


def documents_of(entries: Sequence[Entry], ids: Set[str], tally: Tally) -> Iterator[dict[str, Any]]:
    """The documents of some entries whose pictures are all among `ids`."""
    for entry in entries:
        for document in entry.documents:
            if all(document[key] in ids for key in TASKS[document["task"]][0]):
                yield document
            else:
                tally.outside += 1


def size_of(images: Path, file: str) -> int:
    """Bytes of a file in a folder, -1 where it is not there; all that a stamp wants to know."""
    try:
        return (images / file).stat().st_size
    except (OSError, ValueError):
        return -1


def words(value: object, name: str) -> str:
    """A stranger's text without the space around it. Raises UserError for what is none."""
    if not isinstance(value, str):
        raise UserError(f"its {name} is {type(value).__name__}, not a text")
    if not value.strip():
        raise UserError(f"its {name} is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # lone surrogates
        raise UserError(f"its {name} is damaged ({error.reason})") from error
    return value.strip()


def load(path: Path) -> Any:
    """A JSON file. Raises UserError where it is missing or no JSON."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name its JSON file") from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: not JSON ({error}); name the annotation file, unpacked, or fetch it again"
        ) from error


def rows(path: Path, table: object, name: str, keys: Sequence[str]) -> list[Any]:
    """The list `name` of an annotation file, whose first row has `keys`.

    Raises UserError, which names the missing key, for a file of another layout.
    """
    if not isinstance(table, dict):
        raise UserError(f"{path}: {_kind(table)}; an object with a list {name!r} is wanted")
    found = cast("dict[str, object]", table).get(name)
    if not isinstance(found, list):
        held = ", ".join(map(repr, list(cast("dict[str, object]", table))[:8])) or "nothing"
        raise UserError(f"{path}: it has no list {name!r} but {held}; name a file of this layout")
    listed = cast("list[object]", found)
    if not listed:
        raise UserError(f"{path}: its {name!r} are empty; name another file")
    first = listed[0]
    missing = [key for key in keys if not (isinstance(first, Mapping) and key in first)]
    if missing:
        raise UserError(f"{path}: its {name!r} have no {missing[0]!r}; name a file of this layout")
    return listed


def _kind(value: object) -> str:
    return "a list" if isinstance(value, list) else f"a JSON {type(value).__name__}"


def inside(file: str) -> bool:
    """Whether a stranger's path stays in the folder that it is told of."""
    path = PurePosixPath(file.replace("\\", "/"))
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def _read(images: Path, files: Sequence[str]) -> bytes:
    for file in files:
        if not inside(file):
            raise UserError(f"{printable(file)!r} leads out of the folder of pictures")
        if "\0" in file:
            raise UserError(f"{printable(file)!r} is no file name")
        path = images / file
        try:
            if not path.exists():
                continue
            why = refusal(PICTURE, path.is_file(), path.stat().st_size)
            data = b"" if why else path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot be read ({error.strerror})") from error
        if why:
            raise UserError(why)
        return data
    names = " nor ".join(printable(file) for file in files)
    raise UserError(f"its picture is missing: {images} holds no {names}")
