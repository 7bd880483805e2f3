"""Readers of a raw corpus: pixels, text lines and documents, which the tokenizers are trained on.

Tars (`tokenizer/data/tars.py`), edits and questions become pixels for the training of the image
tokenizer and lines for that of the text tokenizer; once both are trained, `encode.py` turns the
same corpus into token shards for all other training. `exclude` holds ids held out from training:
their images are left out, and with them every edit and question that refers to them.

`edits` and `questions` are JSON lines files, optionally gzipped: {"source", "target",
"instructions": [...], "type"} and {"id", "question", "answer", "type"}, with the ids of images.
"""

# Shapes: P = images, B = batch, 3 = RGB, H = height, W = width, L = codes

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tokenizer import manifest
from tokenizer.data.shard_writer import growing_array
from tokenizer.data.tars import MAX_TEXT_BYTES, Sample, Tally, decode, read_samples
from tokenizer.errors import UserError
from train.state import Say

T = TypeVar("T")


def read_pictures(
    tars: Sequence[Path],
    size: int,
    exclude: Set[str],
    tally: Tally,
    *,
    keep: Set[str] | None = None,
) -> Iterator[tuple[dict[str, Any], NDArray[np.uint8]]]:
    """Yield metadata and pixels, uint8 [size, size, 3], of all images except those in `exclude`.

    With `keep`, of only the images in it. Damaged images are skipped and recorded in `tally`.
    """
    samples = chosen(read_samples(tars, tally), exclude, keep, tally)
    for metadata, image in decode(samples, tally, size):
        yield metadata, np.array(image)


def load_pixels(
    tars: Sequence[Path],
    size: int,
    exclude: Set[str],
    cache: Path | None = None,
    *,
    say: Say,
    keep: Set[str] | None = None,
) -> tuple[list[dict[str, Any]], NDArray[np.uint8]]:
    """Return metadata and pixels, uint8 [P, 3, size, size], of a whole corpus.

    With `cache`, they are stored in that folder for later runs, under a hash of the tars' names and
    sizes, `size`, `exclude` and `keep`; the pixels then stay on disk and are memory-mapped.
    """
    folder = cache and cache / f"pixels-{_key(tars, size, exclude, keep)}"
    if folder and not (folder / manifest.MANIFEST).is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with manifest.new_folder(folder) as aside:
            _write_pixels(aside, _told(tars, size, exclude, keep, say), size)
    if folder:
        manifest.verify(folder, hashes=False)
        with (folder / "pictures.jsonl").open("rb") as file:
            pictures = [json.loads(line) for line in file]
        return pictures, np.load(folder / "pixels.npy", mmap_mode="r", allow_pickle=False)
    found = list(_told(tars, size, exclude, keep, say))
    pixels = [pixels_HW3.transpose(2, 0, 1) for _, pixels_HW3 in found]
    return [metadata for metadata, _ in found], np.stack(pixels)


def text_lines(
    tars: Sequence[Path],
    edits: Path | None,
    questions: Path | None,
    exclude: Set[str],
    *,
    also: Callable[[Mapping[str, Any]], Iterable[str]] = lambda _: (),
    say: Say,
) -> Iterator[str]:
    """Yield every text of a corpus, for the training of the text tokenizer.

    Texts of excluded images are left out. `also`: returns further texts for an image's metadata.
    Each text is yielded once, so that templates repeated a thousand times do not outweigh captions.
    """
    tally = Tally()
    ids: set[str] = set()

    def captions() -> Iterator[str]:
        for sample in chosen(read_samples(tars, tally), exclude, None, tally):
            tally.pictures += 1
            ids.add(sample.metadata["id"])
            yield from sample.metadata["captions"]
            yield from also(sample.metadata)

    def others() -> Iterator[str]:
        for document in read_edits(edits, ids, tally):
            yield from document["instructions"]
        for document in read_questions(questions, ids, tally):
            yield from (document["question"], document["answer"])

    seen: set[str] = set()
    for line in chain(captions(), others()):
        if line not in seen:
            seen.add(line)
            yield line
    tally.tell(say)


def chosen(
    samples: Iterable[Sample], exclude: Set[str], keep: Set[str] | None, tally: Tally
) -> Iterator[Sample]:
    """Yield the samples whose ids are not in `exclude` and, if `keep` is given, are in `keep`."""
    for sample in samples:
        picture_id = sample.metadata["id"]
        if picture_id in exclude or (keep is not None and picture_id not in keep):
            tally.excluded += 1
        else:
            yield sample


def read_edits(path: Path | None, ids: Set[str], tally: Tally) -> Iterator[dict[str, Any]]:
    """Yield the edit documents of a file whose two images are both in `ids`."""
    for where, row in rows_of(path, tally):
        match row:
            case {
                "source": str(source),
                "target": str(target),
                "instructions": [*instructions],
            } if instructions and all(isinstance(s, str) and s.strip() for s in instructions):
                if source not in ids or target not in ids:
                    tally.outside += 1
                    continue
                kind = str(row.get("type", ""))
                document = {"task": "edit", "source": source, "target": target}
                yield {**document, "instructions": instructions, "type": kind}
            case _:
                tally.skip(where, "not an edit: source, target and instructions are wanted")


def read_questions(path: Path | None, ids: Set[str], tally: Tally) -> Iterator[dict[str, Any]]:
    """Yield the question documents of a file whose image is in `ids`."""
    for where, row in rows_of(path, tally):
        match row:
            case {"id": str(picture), "question": str(question), "answer": str(answer)} if (
                question.strip() and answer.strip()
            ):
                if picture not in ids:
                    tally.outside += 1
                    continue
                kind = str(row.get("type", ""))
                document = {"task": "question", "picture": picture}
                yield {**document, "question": question, "answer": answer, "type": kind}
            case _:
                tally.skip(where, "not a question: id, question and answer are wanted")


def rows_of(path: Path | None, tally: Tally) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (location, object) for every line of a JSON lines file, gzipped if it ends in .gz.

    Damaged lines are recorded in `tally`. Raises UserError for a file that cannot be read.
    """
    if path is None:
        return
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            # The limit bounds the memory that a small gzip file of zeros would expand to.
            lines = iter(lambda: file.readline(MAX_TEXT_BYTES), b"")
            for number, line in enumerate(lines, start=1):
                where = f"{path.name} line {number}"
                try:
                    row = json.loads(line)
                    json.dumps(row, ensure_ascii=False).encode("utf-8")  # no lone surrogates
                except (ValueError, RecursionError) as error:
                    tally.skip(where, f"damaged ({error})")
                    continue
                yield where, row
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: missing, damaged or cut short ({error})") from error


def _told(
    tars: Sequence[Path], size: int, exclude: Set[str], keep: Set[str] | None, say: Say
) -> Iterator[tuple[dict[str, Any], NDArray[np.uint8]]]:
    """Yield from `read_pictures` and report the counts. Raises UserError if no image was read."""
    tally = Tally()
    yield from read_pictures(tars, size, exclude, tally, keep=keep)
    tally.tell(say)
    if not tally.pictures:
        raise UserError(f"no image could be read from {len(tars)} tars")


def _write_pixels(
    folder: Path, pictures: Iterable[tuple[dict[str, Any], NDArray[np.uint8]]], size: int
) -> None:
    shape = (3, size, size)
    with (
        growing_array(folder / "pixels.npy", shape, np.uint8) as append,
        (folder / "pictures.jsonl").open("wb") as lines,
    ):
        for metadata, pixels_HW3 in pictures:
            append(pixels_HW3.transpose(2, 0, 1))
            lines.write(json.dumps(metadata).encode() + b"\n")


def _key(tars: Sequence[Path], size: int, exclude: Set[str], keep: Set[str] | None) -> str:
    try:
        files = [(tar.name, tar.stat().st_size) for tar in tars]
    except OSError as error:
        raise UserError(f"{error.filename}: no such tar file") from error
    told = [files, size, sorted(exclude), keep if keep is None else sorted(keep)]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
