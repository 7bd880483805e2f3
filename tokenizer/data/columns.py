"""Columns of token shards: arrays beside the JSON lines, by which training rows are sampled.

    pictures.kinds.npy      uint16 [P]: number of the kind
    pictures.captions.npy   uint8 [P]: number of captions, at most 255
    pictures.units.npy      int64 [P]: first image of the unit, usually the image itself
    pictures.order.npy      int64 [P]: all images by kind, those with captions first and by unit
    documents.types.npy     uint16 [D]: number of the task and its type
    documents.pictures.npy  int64 [D, 2]: images in the order of TASKS, -1 for none
    documents.order.npy     int64 [D]: all documents by type
    columns.json            kinds and types by number, with the count of each

`shard_writer.py` writes them and `train/data/rows.py` reads them memory-mapped, so that a corpus of
any size opens at once and all processes of a machine share it. Folders without columns are read
line by line.
"""

# Shapes: P = images, D = documents, N = a subset of either, U = units

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from tokenizer.data.registry import NONE, OF_DOCUMENTS, OF_PICTURES, Kind, Registry, Type, arrange
from tokenizer.data.shards import Shards, mapped
from tokenizer.errors import UserError

COLUMNS = "columns.json"
ORDER_P, ORDER_D = "pictures.order.npy", "documents.order.npy"


class Group(NamedTuple):
    """Numbers of images or documents, grouped by unit."""

    numbers_N: NDArray[np.int64]
    bounds_U: NDArray[np.int64] | None
    """Start of each unit, and end of the last; None if each number is a unit by itself."""

    @property
    def units(self) -> int:
        """Number of units."""
        return len(self.numbers_N) if self.bounds_U is None else len(self.bounds_U) - 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Columns:
    """Columns of token shards."""

    folder: Path
    kinds: tuple[Kind, ...]
    types: tuple[Type, ...]
    kinds_P: NDArray[np.uint16]
    captions_P: NDArray[np.uint8]
    units_P: NDArray[np.int64]
    order_P: NDArray[np.int64]
    types_D: NDArray[np.uint16]
    pictures_D2: NDArray[np.int64]
    order_D: NDArray[np.int64]

    @classmethod
    def open(cls, shards: Shards) -> Self:
        """Map the columns of a folder, or compute them if it has none. Raises UserError if they do
        not match its images and documents."""
        folder = shards.folder
        if not (folder / COLUMNS).is_file():
            return cls(folder=folder, **_made(shards))
        kinds, types = _read_names(shards)
        parts = _map_parts(folder, shards.pictures, shards.documents)
        order_P = mapped(folder / ORDER_P, np.int64, (shards.pictures,))
        order_D = mapped(folder / ORDER_D, np.int64, (shards.documents,))
        return cls(
            folder=folder, kinds=kinds, types=types, order_P=order_P, order_D=order_D, **parts
        )

    def captioned(self) -> dict[str, Group]:
        """Return the images with captions, for each kind that has any."""
        groups: dict[str, Group] = {}
        for kind, first in zip(self.kinds, self._firsts, strict=True):
            numbers_N = self.order_P[first : first + kind.captioned]
            bounds_U = None
            if kind.units < kind.captioned:
                units_N = self.units_P[numbers_N]
                bounds_U = np.flatnonzero(np.diff(units_N, prepend=-1, append=-1))
            if kind.captioned:
                groups[kind.name] = Group(numbers_N, bounds_U)
        return groups

    def documents(self, task: str) -> dict[str, Group]:
        """Return the documents of each type of a task."""
        firsts = _firsts(one.documents for one in self.types)
        return {
            one.name: Group(self.order_D[first : first + one.documents], None)
            for one, first in zip(self.types, firsts, strict=True)
            if one.task == task
        }

    def like(self, picture: int) -> NDArray[np.int64]:
        """Return the numbers of all images of the same kind as this image."""
        kind = int(self.kinds_P[picture])
        self._check(kind < len(self.kinds), "pictures.kinds.npy")
        first = self._firsts[kind]
        return self.order_P[first : first + self.kinds[kind].pictures]

    def pictures(self, document: int) -> list[int]:
        """Return the numbers of a document's images, in the order of TASKS."""
        found: list[int] = [one for one in self.pictures_D2[document].tolist() if one != NONE]
        inside = all(0 <= one < len(self.kinds_P) for one in found)
        self._check(inside and len(found) > 0, "documents.pictures.npy")
        return found

    @cached_property
    def _firsts(self) -> list[int]:
        """Start of each kind in the order of the images."""
        return _firsts(kind.pictures for kind in self.kinds)

    def _check(self, good: bool, part: str) -> None:
        if not good:
            raise UserError(f"{str(self.folder)!r} is damaged: {part} is odd; copy it again")


def _firsts(counts: Iterable[int]) -> list[int]:
    return [0, *accumulate(counts)][:-1]


def write_order(folder: Path, registry: Registry, counts: Mapping[str, int]) -> None:
    """Write orders and names to a folder that has the other columns, before it is sealed."""
    pictures, documents = len(registry.ids), sum(counts.values())
    order = arrange(registry, _map_parts(folder, pictures, documents))
    np.save(folder / ORDER_P, order.order_P, allow_pickle=False)
    np.save(folder / ORDER_D, order.order_D, allow_pickle=False)
    table = {"kinds": order.kinds, "types": order.types}
    (folder / COLUMNS).write_text(json.dumps(table, indent=2) + "\n", "utf-8")


def _made(shards: Shards) -> dict[str, Any]:
    """Compute the columns of a folder that was written without them."""
    registry = Registry()
    rows: dict[str, NDArray[Any]] = {}
    for of, tables, row in (
        (OF_PICTURES, shards.every_picture(), registry.picture),
        (OF_DOCUMENTS, shards.every_document(), registry.document),
    ):
        kind = np.dtype([(name, dtype, shape) for name, (_, dtype, shape) in of.items()])
        try:
            found = np.fromiter((row(table) for table in tables), kind)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{str(shards.folder)!r} is damaged: an image or document is odd ({error!r}); "
                "copy it again"
            ) from error
        rows |= {name: np.ascontiguousarray(found[name]) for name in of}
    return {**arrange(registry, rows)._asdict(), **rows}


def _read_names(shards: Shards) -> tuple[tuple[Kind, ...], tuple[Type, ...]]:
    path = shards.folder / COLUMNS
    try:
        table: Any = json.loads(path.read_bytes())
        kinds = tuple(Kind(str(name), *map(int, counts)) for name, *counts in table["kinds"])
        types = tuple(
            Type(str(task), str(name), int(count)) for task, name, count in table["types"]
        )
        whole = sum(one.pictures for one in kinds), sum(one.documents for one in types)
        fits = all(0 <= one.units <= one.captioned <= one.pictures for one in kinds)
        fits = fits and all(one.documents >= 0 for one in types)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{str(path)!r} is damaged ({error!r}); copy the folder again") from error
    if not fits or whole != (shards.pictures, shards.documents):
        raise UserError(
            f"{str(path)!r} is damaged: it tells of {whole[0]} images and {whole[1]} documents, "
            f"not {shards.pictures} and {shards.documents}; copy the folder again"
        )
    return kinds, types


def _map_parts(folder: Path, pictures: int, documents: int) -> dict[str, NDArray[Any]]:
    return {
        name: mapped(folder / file, dtype, (count, *shape))
        for count, of in ((pictures, OF_PICTURES), (documents, OF_DOCUMENTS))
        for name, (file, dtype, shape) in of.items()
    }
