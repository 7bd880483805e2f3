"""Pictures as codes, made once, and documents that refer to them by id.

On the path: pictures -> image tokenizer -> `write_shards` (`shard_writer.py`; offline, once) -> a
token-shard folder -> `Shards`, from which training, memory building and evaluation read by number.
No step after this one runs the image tokenizer, so the folder is bound to that tokenizer by its
hash.
"""

# Shapes: P = pictures, N = codes of one picture

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from mmap import ACCESS_READ, mmap
from os import SEEK_END
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tokenizer import manifest
from tokenizer.errors import UserError

FORMAT = 1

# task -> the keys that name pictures, and the other keys that its documents need. Folders hold the
# number of a task: new ones are added at the end.
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
    """An open token-shard folder; nothing but the parts that are asked for is read from disk."""

    folder: Path
    image_tokenizer: str
    """Hash of the image tokenizer that made the codes."""
    text_tokenizer: str | None
    size: int
    """Side of the pictures in pixels."""
    grid: int
    """Codes a side."""
    codes: int
    """Codebook entries."""
    counts: dict[str, int]
    """Pictures, and documents of each task that there is."""
    codes_PN: NDArray[np.uint16]

    @classmethod
    def open(
        cls,
        folder: Path | str,
        image_tokenizer_hash: str | None = None,
        text_tokenizer_hash: str | None = None,
    ) -> Self:
        """Open a folder and check that its parts are whole (sizes; `verify` also reads them).

        Raises UserError where it is no such folder, where a part is missing or cut, or where it
        was made with other tokenizers than those of the hashes. Texts are kept as texts: a folder
        that was bound to no text tokenizer goes with any.
        """
        folder = Path(folder)
        manifest.verify(folder, hashes=False)
        index = _read_index(folder)
        made_with = index["image_tokenizer"]
        if image_tokenizer_hash not in (None, made_with):
            raise UserError(
                f"{str(folder)!r} was made with image tokenizer {made_with[:12]}, but this one is "
                f"{str(image_tokenizer_hash)[:12]}; encode the pictures again with this one"
            )
        bound_to = index["text_tokenizer"]
        if text_tokenizer_hash is not None and bound_to not in (None, text_tokenizer_hash):
            raise UserError(
                f"{str(folder)!r} was made for text tokenizer {bound_to[:12]}, but this one is "
                f"{text_tokenizer_hash[:12]}; name that one, or encode the corpus again for this"
            )
        codes_PN = np.load(folder / "codes.npy", mmap_mode="r", allow_pickle=False)
        shape = (index["counts"]["pictures"], index["grid"] ** 2)
        if codes_PN.shape != shape or codes_PN.dtype != np.uint16:
            raise UserError(
                f"{str(folder)!r} is damaged: codes.npy holds {codes_PN.dtype} {codes_PN.shape}, "
                f"not uint16 {shape}; copy it again"
            )
        del index["format"]
        return cls(folder=folder, codes_PN=np.asarray(codes_PN), **index)  # memmaps are slow

    @property
    def pictures(self) -> int:
        """How many pictures there are."""
        return len(self.codes_PN)

    @property
    def documents(self) -> int:
        """How many documents there are, of all tasks."""
        return len(self._tasks)

    def picture(self, number: int) -> tuple[dict[str, Any], tuple[int, ...]]:
        """Metadata and codes of one picture; numbers outside the folder are a UserError."""
        return self.metadata(number), tuple(self.codes_PN[number].tolist())

    def metadata(self, number: int) -> dict[str, Any]:
        """Metadata of one picture: its `id`, its `captions`, what else was told of it."""
        return self._line("pictures", number, self.pictures)

    def document(self, number: int) -> dict[str, Any]:
        """One document: its `task`, the ids of its pictures, its texts."""
        return self._line("documents", number, self.documents)

    def numbers(self, task: str) -> NDArray[np.int64]:
        """The numbers of all documents of one task, rising."""
        return np.flatnonzero(self._tasks == TASK_NAMES.index(task))

    def every_picture(self) -> Iterator[dict[str, Any]]:
        """The metadata of all pictures, in order."""
        return self._every("pictures")

    def every_document(self) -> Iterator[dict[str, Any]]:
        """All documents, in order."""
        return self._every("documents")

    def number_of(self, picture_id: str) -> int:
        """The number of the picture with this id. Raises UserError where there is none."""
        if picture_id not in self._numbers:
            raise UserError(f"{str(self.folder)!r} has no picture with the id {picture_id!r}")
        return self._numbers[picture_id]

    def verify(self) -> None:
        """Read every part again and compare it with the manifest; UserError names a bad one."""
        manifest.verify(self.folder)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {picture["id"]: number for number, picture in enumerate(self.every_picture())}

    @cached_property
    def _tasks(self) -> NDArray[np.uint8]:
        return np.load(self.folder / "documents.tasks.npy", mmap_mode="r", allow_pickle=False)

    @cached_property
    def _lines(self) -> dict[str, mmap]:
        """Mapped: a handle would be one seek pointer for all loader processes."""
        found: dict[str, mmap] = {}
        for name in ("pictures", "documents"):
            with (self.folder / f"{name}.jsonl").open("rb") as file:
                if file.seek(0, SEEK_END):  # an empty file cannot be mapped
                    found[name] = mmap(file.fileno(), 0, access=ACCESS_READ)
        return found

    @cached_property
    def _offsets(self) -> dict[str, NDArray[np.uint64]]:
        return {
            name: np.asarray(
                np.load(self.folder / f"{name}.offsets.npy", mmap_mode="r", allow_pickle=False)
            )
            for name in ("pictures", "documents")
        }

    def _line(self, name: str, number: int, count: int) -> dict[str, Any]:
        if not 0 <= number < count:
            raise UserError(
                f"number {number} is outside the {count} {name} of {str(self.folder)!r}"
            )
        start, end = self._offsets[name][number : number + 2].tolist()
        return self._parsed(name, self._lines[name][start:end])

    def _every(self, name: str) -> Iterator[dict[str, Any]]:
        with (self.folder / f"{name}.jsonl").open("rb") as file:
            for line in file:
                yield self._parsed(name, line)

    def _parsed(self, name: str, line: bytes) -> dict[str, Any]:
        try:
            return json.loads(line)
        except (ValueError, RecursionError) as error:
            path = self.folder / f"{name}.jsonl"
            raise UserError(f"{path} is damaged ({error}); copy the folder again") from error


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / "index.json"
    if not path.is_file():
        raise UserError(f"{str(folder)!r} is not a token-shard folder: it has no index.json")
    try:
        index = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{str(path)!r} is damaged: not JSON; copy the folder again") from error
    match index:
        case {
            "format": int(made),
            "image_tokenizer": str(),
            "text_tokenizer": str() | None,
            "size": int(),
            "grid": int(),
            "codes": int(),
            "counts": {"pictures": int()},
            **rest,
        } if not rest:
            if made != FORMAT:
                raise UserError(
                    f"{str(folder)!r} has format {made}; this version reads {FORMAT}: encode again"
                )
            return index
        case _:
            raise UserError(f"{str(path)!r} is not the index of a token-shard folder")
