"""Numbering of images and documents, in the order they are written, for the columns of shards.

Used by `columns.py`, which stores the columns in files. Defines the units of sampling, the numbers
of kinds and types, and the order of images and documents by them.
"""

# Shapes: P = images, D = documents, N = a subset of either

import re
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tokenizer.data.shards import TASKS

# name -> file, dtype, shape of a row
Parts = Mapping[str, tuple[str, DTypeLike, tuple[int, ...]]]
OF_PICTURES: Parts = {
    "kinds_P": ("pictures.kinds.npy", np.uint16, ()),
    "captions_P": ("pictures.captions.npy", np.uint8, ()),
    "units_P": ("pictures.units.npy", np.int64, ()),
}
OF_DOCUMENTS: Parts = {
    "types_D": ("documents.types.npy", np.uint16, ()),
    "pictures_D2": ("documents.pictures.npy", np.int64, (2,)),
}
TONE = re.compile("-1F3F[B-F]")  # skin tone modifier in a code point sequence
MOST_NAMES = 1 << 15  # with one more bit the sort keys still have 16 bits, which sort fastest
MOST_CAPTIONS = 255
NONE = -1  # no second image

Name = TypeVar("Name", bound=Hashable)


class Kind(NamedTuple):
    """Images of one kind; `units` is the number of units of its captioned images."""

    name: str
    pictures: int
    captioned: int
    units: int


class Type(NamedTuple):
    """Documents of one type of a task."""

    task: str
    name: str
    documents: int


def unit_of(picture: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the key shared by all images of a sampling unit: an emoji's skin tones in one style
    are one unit. None: the image is a unit by itself."""
    style, codepoint = picture.get("style"), picture.get("codepoint")
    if isinstance(style, str) and isinstance(codepoint, str):
        return style, TONE.sub("", codepoint)
    return None


class Registry:
    """Registry of images, then documents, which returns their rows of the columns."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}
        self.kinds: dict[str, int] = {}
        self.types: dict[tuple[str, str], int] = {}
        self.shared: set[int] = set()
        """Kinds in which a unit may have several images."""
        self._first: dict[tuple[str, str], int] = {}

    def picture(self, metadata: Mapping[str, Any]) -> tuple[int, int, int]:
        """Register an image and return its row of OF_PICTURES."""
        number = self.ids[metadata["id"]] = len(self.ids)
        kind = _number(self.kinds, str(metadata.get("kind", "picture")), "picture")
        common = unit_of(metadata)
        unit = number if common is None else self._first.setdefault(common, number)
        if unit != number:
            self.shared.add(kind)
        captions: Any = metadata.get("captions")
        count = len(captions) if isinstance(captions, list | tuple) else 0
        return kind, min(count, MOST_CAPTIONS), unit

    def document(self, table: Mapping[str, Any]) -> tuple[int, tuple[int, int]]:
        """Register a document and return its row of OF_DOCUMENTS. Its images must be registered."""
        task: str = table["task"]
        kind = _number(self.types, (task, str(table.get("type", task))), (task, task))
        own = [self.ids[table[key]] for key in TASKS[task][0]]
        return kind, (own[0], own[1] if len(own) > 1 else NONE)


def _number(names: dict[Name, int], name: Name, usual: Name) -> int:
    """Return the number of a name; beyond MOST_NAMES, too many to be informative, that of
    `usual`."""
    if name not in names and len(names) >= MOST_NAMES - len(TASKS):
        name = usual
    return names.setdefault(name, len(names))


class Order(NamedTuple):
    """Order of all images and documents by kind and type, with the counts of each."""

    kinds: tuple[Kind, ...]
    types: tuple[Type, ...]
    order_P: NDArray[np.int64]
    order_D: NDArray[np.int64]


def arrange(registry: Registry, columns: Mapping[str, NDArray[Any]]) -> Order:
    """Return the order of all registered images and documents, from their columns."""
    key_P = columns["kinds_P"] * np.uint16(2) + (columns["captions_P"] == 0)
    counts = np.bincount(key_P, minlength=2 * len(registry.kinds)).reshape(-1, 2)
    order_P = np.argsort(key_P, kind="stable")
    kinds: list[Kind] = []
    start = 0
    for (name, number), (captioned, mute) in zip(
        registry.kinds.items(), counts.tolist(), strict=True
    ):
        units = captioned
        if number in registry.shared:
            numbers_N = order_P[start : start + captioned]
            units_N = columns["units_P"][numbers_N]
            numbers_N[:] = numbers_N[np.argsort(units_N, kind="stable")]
            units = len(np.unique(units_N))
        kinds.append(Kind(name, captioned + mute, captioned, units))
        start += captioned + mute
    counts = np.bincount(columns["types_D"], minlength=len(registry.types)).tolist()
    types = (Type(*name, count) for name, count in zip(registry.types, counts, strict=True))
    order_D = np.argsort(columns["types_D"], kind="stable")
    return Order(tuple(kinds), tuple(types), order_P, order_D)
