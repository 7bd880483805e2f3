"""Raw pictures and texts -> pixels, text lines and token shards: all that happens before training.

On the path: tars (`tokenizer/tars.py`), edits and questions -> pixels for the image tokenizer's
training, lines for the text tokenizer's, and, once both are made, token shards
(`tokenizer/shards.py`) for everything else. `exclude` holds ids that nothing may see: their
pictures go, and with them every edit and question that touches them.

`edits` and `questions` are files of JSON lines, maybe gzipped: {"source", "target",
"instructions": [...], "type"} and {"id", "question", "answer", "type"}, with the ids of pictures.
"""

# Shapes: P = pictures, B = batch, 3 = red, green, blue, H = height, W = width, L = codes

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence, Set
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tokenizer import manifest
from tokenizer.errors import UserError
from tokenizer.image import PictureEncoder
from tokenizer.pixels import to_pixels
from tokenizer.shard_writer import growing_array, write_shards
from tokenizer.tars import MAX_TEXT_BYTES, Sample, Tally, decode, read_samples
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
    """Metadata and pixels, uint8 [size, size, 3], of all pictures but those in `exclude`.

    With `keep`, of none but those in it. Damaged pictures are skipped and noted in `tally`.
    """
    for metadata, image in decode(_chosen(tars, exclude, keep, tally), tally, size):
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
    """Metadata and pixels, uint8 [P, 3, size, size], of a whole corpus.

    Under the folder `cache` they are kept for the next time, under a name that tells the tars'
    names and sizes, `size`, `exclude` and `keep`; the pixels then stay on disk and are mapped.
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


def encode_corpus(
    tars: Sequence[Path],
    edits: Path | None,
    questions: Path | None,
    exclude: Set[str],
    image_tokenizer: PictureEncoder,
    out: Path,
    *,
    say: Say,
    keep: Set[str] | None = None,
    batch: int = 64,
    device: torch.device | str = "cpu",
    text_tokenizer_hash: str | None = None,
    replace: bool = False,
) -> dict[str, int]:
    """Write the token shards of a corpus to the folder `out`; return the counts.

    Documents: a pair for every picture with a caption; the edits whose both pictures, and the
    questions whose picture, came into the folder. `exclude` and `keep` as in `read_pictures`.
    """
    assert image_tokenizer.hash, "save the image tokenizer first: shards are bound to its hash"
    for path in (edits, questions):
        if path and not path.is_file():
            raise UserError(f"{path}: no such file")
    tally = Tally()
    captioned: dict[str, bool] = {}

    def pictures() -> Iterator[tuple[dict[str, Any], list[int]]]:
        found = read_pictures(tars, image_tokenizer.size, exclude, tally, keep=keep)
        for group in _batches(found, batch):
            pixels_B3HW = torch.stack([to_pixels(Image.fromarray(pixels)) for _, pixels in group])
            codes_BL = image_tokenizer.encode(pixels_B3HW.to(device)).tolist()
            for (metadata, _), codes_L in zip(group, codes_BL, strict=True):
                captioned[metadata["id"]] = bool(metadata["captions"])
                yield metadata, codes_L
                if len(captioned) % 5000 == 0:
                    say(f"{len(captioned):,} pictures encoded")

    def documents() -> Iterator[dict[str, Any]]:
        for picture_id, has_caption in captioned.items():
            if has_caption:
                yield {"task": "pair", "picture": picture_id}
        yield from read_edits(edits, captioned.keys(), tally)
        yield from read_questions(questions, captioned.keys(), tally)

    counts = write_shards(
        out,
        pictures(),
        documents(),
        image_tokenizer_hash=image_tokenizer.hash,
        size=image_tokenizer.size,
        grid=image_tokenizer.grid,
        codes=image_tokenizer.codes,
        text_tokenizer_hash=text_tokenizer_hash,
        replace=replace,
    )
    tally.tell(say)
    return counts


def text_lines(
    tars: Sequence[Path],
    edits: Path | None,
    questions: Path | None,
    exclude: Set[str],
    *,
    say: Say,
) -> Iterator[str]:
    """Every text of a corpus for the text tokenizer's training, none of an excluded picture.

    Each comes once, so that templates told a thousand times do not drown the captions.
    """
    tally = Tally()
    ids: set[str] = set()

    def captions() -> Iterator[str]:
        for sample in _chosen(tars, exclude, None, tally):
            tally.pictures += 1
            ids.add(sample.metadata["id"])
            yield from sample.metadata["captions"]

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


def read_edits(path: Path | None, ids: Set[str], tally: Tally) -> Iterator[dict[str, Any]]:
    """The edit documents of a file whose both pictures are among `ids`."""
    for where, row in _rows(path, tally):
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
    """The question documents of a file whose picture is among `ids`."""
    for where, row in _rows(path, tally):
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


def _rows(path: Path | None, tally: Tally) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, object) for every line of a file of JSON lines, gzipped where its name says so."""
    if path is None:
        return
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            # The limit keeps a small gzip of endless zeros from swelling in memory.
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


def _chosen(
    tars: Sequence[Path], exclude: Set[str], keep: Set[str] | None, tally: Tally
) -> Iterator[Sample]:
    for sample in read_samples(tars, tally):
        picture_id = sample.metadata["id"]
        if picture_id in exclude or (keep is not None and picture_id not in keep):
            tally.excluded += 1
        else:
            yield sample


def _told(
    tars: Sequence[Path], size: int, exclude: Set[str], keep: Set[str] | None, say: Say
) -> Iterator[tuple[dict[str, Any], NDArray[np.uint8]]]:
    """`read_pictures` that must find something, and says what it found."""
    tally = Tally()
    yield from read_pictures(tars, size, exclude, tally, keep=keep)
    tally.tell(say)
    if not tally.pictures:
        raise UserError(f"no picture could be read from {len(tars)} tars")


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


def _batches(things: Iterable[T], size: int) -> Iterator[list[T]]:
    source = iter(things)
    while group := list(islice(source, size)):
        yield group
