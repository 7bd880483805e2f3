"""Token shards: images stored as codes, and documents that refer to them by id.

Data path: images -> image tokenizer -> `write_shards` (`shard_writer.py`; offline, once) ->
token-shard folder -> `Shards`, from which training, memory building and evaluation read by number.
No later step runs the image tokenizer, so the folder is bound to that tokenizer by its hash.
"""

# Shapes: P = images, N = codes of one image

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from mmap import ACCESS_READ, mmap
from os import SEEK_END
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tokenizer import manifest
from tokenizer.errors import UserError

FORMAT = 1
MAX_CODES = 1 << 16  # codes are stored as 16-bit numbers
LINES = ("pictures", "documents")
PARTS = {
    *("index.json", "codes.npy", "documents.tasks.npy"),
    *(f"{name}{ending}" for name in LINES for ending in (".jsonl", ".offsets.npy")),
}
LARGEST, MANY = 1 << 16, 1 << 40  # upper limits: side of an image; items in a folder
CHUNK = 1 << 24  # bytes that are checked at once

# task -> the keys that refer to images, and the other required keys of its documents. Folders store
# the number of a task, so new tasks are added at the end.
TASKS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "pair": (("picture",), ()),
    "edit": (("source", "target"), ("instructions",)),
    "question": (("picture",), ("question", "answer")),
    "structure": (("condition", "picture"), ("structure", "caption")),
    "grounded": (("picture",), ("caption", "objects")),
    "ocr": (("picture",), ("text",)),
    "paragraph": (("picture",), ("caption",)),
    "narrative": (("picture",), ("caption",)),
    "scienceqa": (("picture",), ("question", "options", "answer")),
    "conversation": (("picture",), ("turns",)),
}
TASK_NAMES = tuple(TASKS)


@dataclass(frozen=True, kw_only=True, eq=False)
class Shards:
    """Open token-shard folder; only requested parts are read from disk."""

    folder: Path
    image_tokenizer: str
    """Hash of the image tokenizer that made the codes."""
    text_tokenizer: str | None
    size: int
    """Side of the images in pixels."""
    grid: int
    """Codes per side."""
    codes: int
    """Codebook entries."""
    counts: dict[str, int]
    """Number of images, and of documents of each task that occurs."""
    codes_PN: NDArray[np.uint16]

    @classmethod
    def open(
        cls,
        folder: Path | str,
        image_tokenizer_hash: str | None = None,
        text_tokenizer_hash: str | None = None,
        *,
        compared: bool = False,
    ) -> Self:
        """Open a folder and check its parts: their sizes and, the first time on this machine, their
        hashes and their consistency. `compared`: the caller has checked the hashes before.

        Raises UserError if it is not such a folder, if a part is missing or damaged, or if it was
        made with other tokenizers than those of the hashes. Texts are stored as text: a folder that
        is bound to no text tokenizer can be used with any.
        """
        if compared:
            return cls._open(Path(folder), image_tokenizer_hash, text_tokenizer_hash, first=False)
        with manifest.first_look(folder) as first:
            return cls._open(Path(folder), image_tokenizer_hash, text_tokenizer_hash, first=first)

    @classmethod
    def _open(
        cls,
        folder: Path,
        image_tokenizer_hash: str | None,
        text_tokenizer_hash: str | None,
        *,
        first: bool,
    ) -> Self:
        # reject a wrong folder before its hashes are compared, which is slow
        if lost := sorted(PARTS - manifest.verify(folder, hashes=False)):
            raise UserError(
                f"{str(folder)!r} is not a whole token-shard folder: its {manifest.MANIFEST} does "
                f"not name {lost[0]}"
            )
        index = _read_index(folder)
        made_with = index["image_tokenizer"]
        if image_tokenizer_hash not in (None, made_with):
            raise UserError(
                f"{str(folder)!r} was made with image tokenizer {made_with[:12]}, but this one is "
                f"{str(image_tokenizer_hash)[:12]}; encode the images again with this one"
            )
        bound_to = index["text_tokenizer"]
        if text_tokenizer_hash is not None and bound_to not in (None, text_tokenizer_hash):
            raise UserError(
                f"{str(folder)!r} was made for text tokenizer {bound_to[:12]}, but this one is "
                f"{text_tokenizer_hash[:12]}; name that one, or encode the corpus again for this"
            )
        shape = (index["counts"]["pictures"], index["grid"] ** 2)
        codes_PN = mapped(folder / "codes.npy", np.uint16, shape)
        del index["format"]
        found = cls(folder=folder, codes_PN=codes_PN, **index)
        if first:
            found.verify()
        return found

    @property
    def pictures(self) -> int:
        """Number of images."""
        return len(self.codes_PN)

    @property
    def documents(self) -> int:
        """Number of documents of all tasks."""
        return sum(self.counts.values()) - self.counts["pictures"]

    def picture(self, number: int) -> tuple[dict[str, Any], tuple[int, ...]]:
        """Return metadata and codes of an image. Raises UserError for a number out of range."""
        return self.metadata(number), tuple(self.codes_PN[number].tolist())

    def metadata(self, number: int) -> dict[str, Any]:
        """Return metadata of an image: its `id`, its `captions`, and all other recorded fields."""
        return self._line("pictures", number, self.pictures)

    def document(self, number: int) -> dict[str, Any]:
        """Return a document: its `task`, the ids of its images, its texts."""
        return self._line("documents", number, self.documents)

    def numbers(self, task: str) -> NDArray[np.int64]:
        """Return the numbers of all documents of a task, in ascending order."""
        return np.flatnonzero(self._tasks == TASK_NAMES.index(task))

    def every_picture(self) -> Iterator[dict[str, Any]]:
        """Iterate over the metadata of all images, in order."""
        return self._every("pictures")

    def every_document(self) -> Iterator[dict[str, Any]]:
        """Iterate over all documents, in order."""
        return self._every("documents")

    def number_of(self, picture_id: str) -> int:
        """Return the number of the image with this id. Raises UserError if there is none."""
        if picture_id not in self._numbers:
            raise UserError(f"{str(self.folder)!r} has no image with the id {picture_id!r}")
        return self._numbers[picture_id]

    def verify(self) -> None:
        """Read every part again, compare it with the manifest, and check that all parts are
        consistent. Raises UserError naming a bad part."""
        manifest.verify(self.folder)
        for name in LINES:
            self._check_offsets(name)
        rows = max(1, CHUNK // self.codes_PN.itemsize // self.grid**2)
        for start in range(0, self.pictures, rows):
            if int(self.codes_PN[start : start + rows].max()) >= self.codes:
                raise self._damaged("codes.npy", f"it has a code outside 0..{self.codes - 1}")
        found = np.bincount(self._tasks, minlength=len(TASKS)).tolist()
        if found != [self.counts.get(task, 0) for task in TASKS]:
            raise self._damaged("documents.tasks.npy", "it has other tasks than index.json tells")

    def _check_offsets(self, name: str) -> None:
        """Check that every line ends where the next line begins, or at the end of the file."""
        offsets, seen, place = self._offsets[name], 1, 0
        right = int(offsets[0]) == 0
        with (self.folder / f"{name}.jsonl").open("rb") as file:
            while right and (data := file.read(CHUNK)):
                ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n")) + place + 1
                right = np.array_equal(offsets[seen : seen + len(ends)], ends)
                seen, place = seen + len(ends), place + len(data)
        if not right or seen != len(offsets) or int(offsets[-1]) != place:
            raise self._damaged(f"{name}.jsonl", f"its lines are not those of {name}.offsets.npy")

    def _damaged(self, part: str, why: str) -> UserError:
        return UserError(f"{self.folder / part} is damaged ({why}); copy the folder again")

    @cached_property
    def _numbers(self) -> dict[str, int]:
        numbers = {picture["id"]: number for number, picture in enumerate(self.every_picture())}
        if len(numbers) < self.pictures:
            raise self._damaged("pictures.jsonl", "two images have one id")
        return numbers

    @cached_property
    def _tasks(self) -> NDArray[np.uint8]:
        path = self.folder / "documents.tasks.npy"
        return mapped(path, np.uint8, (self.documents,))

    @cached_property
    def _lines(self) -> dict[str, mmap]:
        """Memory maps of the JSON lines: loader processes would share a file handle's position."""
        found: dict[str, mmap] = {}
        for name in LINES:
            with (self.folder / f"{name}.jsonl").open("rb") as file:
                if file.seek(0, SEEK_END):  # an empty file cannot be mapped
                    found[name] = mmap(file.fileno(), 0, access=ACCESS_READ)
        return found

    @cached_property
    def _offsets(self) -> dict[str, NDArray[np.uint64]]:
        counts = (self.pictures, self.documents)
        return {
            name: mapped(self.folder / f"{name}.offsets.npy", np.uint64, (count + 1,))
            for name, count in zip(LINES, counts, strict=True)
        }

    def _line(self, name: str, number: int, count: int) -> dict[str, Any]:
        if not 0 <= number < count:
            raise UserError(
                f"number {number} is outside the {count} {name} of {str(self.folder)!r}"
            )
        start, end = self._offsets[name][number : number + 2].tolist()
        return self._parsed(name, number, self._lines.get(name, b"")[start:end])

    def _every(self, name: str) -> Iterator[dict[str, Any]]:
        count, seen = (self.pictures if name == "pictures" else self.documents), 0
        with (self.folder / f"{name}.jsonl").open("rb") as file:
            for line in file:
                if seen < count:
                    yield self._parsed(name, seen, line)
                seen += 1
        if seen != count:
            raise self._damaged(f"{name}.jsonl", f"it has {seen} lines, not {count}")

    def _parsed(self, name: str, number: int, line: bytes) -> dict[str, Any]:
        try:
            table: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise self._damaged(f"{name}.jsonl", str(error)) from error
        match table:
            case {"id": str()} if name == "pictures" and _has_texts(table.get("captions", [])):
                return table
            case {"task": str(task)} if name == "documents" and task in TASKS:
                pictures, others = TASKS[task]
                right = all(isinstance(table.get(key), str) for key in pictures)
                if (
                    right
                    and table.keys() >= set(others)
                    and TASK_NAMES[self._tasks[number]] == task
                ):
                    return table
            case _:
                pass
        raise self._damaged(f"{name}.jsonl", f"line {number} is none of {name}")


def _has_texts(found: object) -> bool:
    return isinstance(found, list) and all(isinstance(one, str) for one in found)


def mapped(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return a memory-mapped .npy file of exactly this dtype and shape, or raise UserError."""
    try:
        with np.errstate(all="raise"):
            found = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:  # the folder was changed since it was opened
        raise
    except Exception as error:  # numpy raises almost any exception for a bad header
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is damaged ({reason}); copy the folder again") from error
    whole = found.offset + found.nbytes == path.stat().st_size and found.flags.c_contiguous
    if found.dtype != dtype or found.shape != shape or not whole:
        raise UserError(
            f"{path} is damaged: it holds {found.dtype} {found.shape}, not "
            f"{np.dtype(dtype)} {shape}; copy the folder again"
        )
    return np.asarray(found)  # a plain array, because indexing a memmap is slow


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / "index.json"
    if not path.is_file():
        raise UserError(f"{str(folder)!r} is not a token-shard folder: it has no index.json")
    try:
        index = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{str(path)!r} is damaged: not JSON; copy the folder again") from error
    match index:
        case {
            "format": int(made),
            "image_tokenizer": str(image),
            "text_tokenizer": str() | None as text,
            "size": size,
            "grid": grid,
            "codes": codes,
            "counts": {"pictures": pictures, **tasks},
            **rest,
        } if not rest:
            if made != FORMAT:
                raise UserError(
                    f"{str(folder)!r} has format {made}; this version reads {FORMAT}: encode again"
                )
            limits = ((size, LARGEST), (grid, LARGEST), (codes, MAX_CODES), (pictures, MANY))
            named = image.isprintable() and (text is None or text.isprintable())
            if (
                named
                and all(_is_count(number, 1, most) for number, most in limits)
                and tasks.keys() <= TASKS.keys()
                and all(_is_count(number, 0, MANY) for number in tasks.values())
            ):
                return index
        case _:
            pass
    raise UserError(f"{str(path)!r} is not the index of a token-shard folder")


def _is_count(found: object, least: int, most: int) -> bool:
    return type(found) is int and least <= found <= most
