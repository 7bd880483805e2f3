"""Entries of published datasets, in one form for all layouts: images with their annotations.

Data path: files of a layout -> entries (`annotations.py`, `layouts.py`) -> slices of entries, each
a source -> `samples_of` and `documents_of` -> a part of token shards. A slice is small enough to be
distributed over processes and to be repeated after a kill. Images are opened like those of a tar:
missing, damaged or invalid images are skipped, and recorded with the reason in a `Tally`.
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
"""Damaged item, as (what, why)."""


@dataclass(frozen=True, kw_only=True)
class Listed:
    """Image of a dataset, not opened yet."""

    id: str
    files: tuple[str, ...]
    """Possible paths in the image folder; the first that exists is read."""
    captions: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Image, or a few related images, with all annotations of the dataset."""

    pictures: tuple[Listed, ...] = ()
    documents: tuple[dict[str, Any], ...] = ()
    bad: tuple[Bad, ...] = ()
    """Annotations that cannot be used."""
    ignored: tuple[tuple[str, int], ...] = ()
    """Items of another kind that were left out, with their counts."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Part of a dataset: a source of images and documents, identified by its name."""

    name: str
    images: Path
    entries: Callable[[], Sequence[Entry]]
    stamp: Callable[[], object]
    """Function that returns JSON, which differs if anything in the slice has changed."""

    def __str__(self) -> str:
        return self.name


def samples_of(images: Path, entries: Sequence[Entry], tally: Tally) -> Iterator[Sample]:
    """Yield the images of some entries, read from the folder `images`; their ids are distinct."""
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
    """Yield the documents of some entries whose images are all in `ids`."""
    for entry in entries:
        for document in entry.documents:
            if all(document[key] in ids for key in TASKS[document["task"]][0]):
                yield document
            else:
                tally.outside += 1


def size_of(images: Path, file: str) -> int:
    """Return the bytes of a file in a folder, or -1 if it does not exist; used in stamps."""
    try:
        return (images / file).stat().st_size
    except (OSError, ValueError):
        return -1


def words(value: object, name: str) -> str:
    """Return an untrusted text without surrounding whitespace. Raises UserError if it is empty,
    damaged or not a text."""
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
    """Read a JSON file. Raises UserError if it is missing or not JSON."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name its JSON file") from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: not JSON ({error}); name the annotation file, unpacked, or fetch it again"
        ) from error


def rows(path: Path, table: object, name: str, keys: Sequence[str]) -> list[Any]:
    """Return the list `name` of an annotation file, whose first row has `keys`.

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
    """Return whether an untrusted path stays inside the folder it is relative to."""
    path = PurePosixPath(file.replace("\\", "/"))
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def _read(images: Path, files: Sequence[str]) -> bytes:
    for file in files:
        if not inside(file):
            raise UserError(f"{printable(file)!r} leads out of the folder of images")
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
    raise UserError(f"its image is missing: {images} holds no {names}")
