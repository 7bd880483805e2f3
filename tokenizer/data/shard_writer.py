"""Writer of token-shard folders, which are written atomically; `shards.py` reads them."""

# Shapes: N = codes of one image

import json
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence, Set
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tokenizer import manifest
from tokenizer.data.columns import write_order
from tokenizer.data.registry import OF_DOCUMENTS, OF_PICTURES, Parts, Registry
from tokenizer.data.shards import FORMAT, MAX_CODES, TASK_NAMES, TASKS
from tokenizer.errors import UserError


@contextmanager
def growing_array(
    path: Path, row_shape: tuple[int, ...], dtype: DTypeLike
) -> Generator[Callable[[NDArray[Any]], None]]:
    """Yield a function that appends a row to a .npy file, so that only one row is in memory."""
    rows = 0

    def write_header() -> None:
        # numpy pads the header, so a larger number of rows still fits in place.
        shape = (rows, *row_shape)
        table = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, table)

    def append(row: NDArray[Any]) -> None:
        nonlocal rows
        assert row.shape == row_shape, f"{row.shape} is not {row_shape}"
        file.write(row.astype(dtype).tobytes())
        rows += 1

    with path.open("wb") as file:
        write_header()
        yield append
        file.seek(0)
        write_header()


def write_shards(
    folder: Path | str,
    pictures: Iterable[tuple[dict[str, Any], Sequence[int]]],
    documents: Iterable[dict[str, Any]],
    *,
    image_tokenizer_hash: str,
    size: int,
    grid: int,
    codes: int,
    text_tokenizer_hash: str | None = None,
    skipped: Sequence[tuple[str, str]] | None = None,
    replace: bool = False,
    columns: bool = True,
) -> dict[str, int]:
    """Write a token-shard folder atomically; return the counts of images and of each task.

    An image is its metadata (a JSON object with at least `id`) and its `grid * grid` codes below
    `codes`, in row-major order; `size` is its side in pixels. `documents` is iterated only after
    the last image, so it may depend on which images were written. Both are streamed. `skipped`
    lists (what, why) of everything that was left out; it is read last and becomes `skipped.jsonl`.
    Without `columns` there are fewer files: for memories and parts, from which no training rows are
    sampled.
    Raises UserError for a duplicate or unknown id, a wrong number of codes, a bad document.
    """
    assert 0 < codes <= MAX_CODES
    with manifest.new_folder(folder, replace=replace) as aside:
        registry = Registry()
        of_pictures, of_documents = (OF_PICTURES, OF_DOCUMENTS) if columns else ({}, {})
        _write_pictures(aside, pictures, grid * grid, codes, registry, of_pictures)
        of_tasks = _write_documents(aside, documents, registry, of_documents)
        if columns:
            write_order(aside, registry, of_tasks)
        counts = {"pictures": len(registry.ids), **of_tasks}
        if skipped is not None:
            lines = [json.dumps({"what": what, "why": why}) + "\n" for what, why in skipped]
            (aside / "skipped.jsonl").write_text("".join(lines), "utf-8")
        index = {
            "format": FORMAT,
            "image_tokenizer": image_tokenizer_hash,
            "text_tokenizer": text_tokenizer_hash,
            "size": size,
            "grid": grid,
            "codes": codes,
            "counts": counts,
        }
        (aside / "index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return counts


def _write_pictures(
    folder: Path,
    pictures: Iterable[tuple[dict[str, Any], Sequence[int]]],
    length: int,
    codes: int,
    registry: Registry,
    parts: Parts,
) -> None:
    with (
        _growing_lines(folder, "pictures") as write_line,
        _growing_columns(folder, parts) as write_columns,
        growing_array(folder / "codes.npy", (length,), np.uint16) as write_codes,
    ):
        for metadata, row in pictures:
            name = metadata.get("id")
            if not isinstance(name, str):
                raise UserError(f"an image needs a text as its id, got {name!r}")
            if name in registry.ids:
                raise UserError(f"two images have the id {name!r}; give each its own")
            _check_codes(name, row, length, codes)
            write_line(metadata)
            write_columns(registry.picture(metadata))
            write_codes(np.asarray(row))
    if not registry.ids:
        raise UserError("there are no images to write")


def _check_codes(name: str, row: Sequence[int], length: int, codes: int) -> None:
    if len(row) != length:
        raise UserError(f"image {name!r} has {len(row)} codes, not {length}")
    if min(row) < 0 or max(row) >= codes:
        raise UserError(f"image {name!r} has a code outside 0..{codes - 1}")


def _write_documents(
    folder: Path, documents: Iterable[dict[str, Any]], registry: Registry, parts: Parts
) -> dict[str, int]:
    counts: Counter[str] = Counter()
    with ExitStack() as stack:
        write_line = stack.enter_context(_growing_lines(folder, "documents"))
        tasks = growing_array(folder / "documents.tasks.npy", (), np.uint8)
        write_task = stack.enter_context(tasks)
        write_columns = stack.enter_context(_growing_columns(folder, parts))
        for number, document in enumerate(documents):
            task = _check_document(number, document, registry.ids.keys())
            write_line(document)
            write_columns(registry.document(document))
            write_task(np.asarray(TASK_NAMES.index(task)))
            counts[task] += 1
    return {task: counts[task] for task in TASKS if counts[task]}


def _check_document(number: int, document: dict[str, Any], ids: Set[str]) -> str:
    task = document.get("task")
    if task not in TASKS:
        raise UserError(f"document {number} has the task {task!r}; known: {', '.join(TASKS)}")
    pictures, others = TASKS[task]
    for key in (*pictures, *others):
        if key not in document:
            raise UserError(f"document {number} ({task}) lacks its {key!r}")
    for key in pictures:
        if document[key] not in ids:
            raise UserError(f"document {number} ({task}): no image has the id {document[key]!r}")
    return task


@contextmanager
def _growing_lines(folder: Path, name: str) -> Generator[Callable[[dict[str, Any]], None]]:
    """Yield a function that appends a JSON line, and record the start and end of each line."""
    with ExitStack() as stack:
        file = stack.enter_context((folder / f"{name}.jsonl").open("wb"))
        offsets = growing_array(folder / f"{name}.offsets.npy", (), np.uint64)
        write_offset = stack.enter_context(offsets)
        write_offset(np.asarray(0))

        def append(table: dict[str, Any]) -> None:
            file.write(json.dumps(table).encode() + b"\n")
            write_offset(np.asarray(file.tell()))

        yield append


@contextmanager
def _growing_columns(folder: Path, parts: Parts) -> Generator[Callable[[tuple[Any, ...]], None]]:
    """Yield a function that appends a row to all columns, if there are any."""
    with ExitStack() as stack:
        writers = [
            stack.enter_context(growing_array(folder / file, shape, dtype))
            for file, dtype, shape in parts.values()
        ]

        def append(row: tuple[Any, ...]) -> None:
            for write, value in zip(writers, row, strict=bool(writers)):
                write(np.asarray(value))

        yield append
