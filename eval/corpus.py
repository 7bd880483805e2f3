"""Evaluation data: a split of a corpus, or a published data set.

Data path: `open_source` -> metadata of all images by id, pixels of some, the questions and the
edits about them.
"""

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from eval.published import Answered, Captioned, read_captions, read_questions, read_vizwiz
from tokenizer.data.tars import Tally, decode, find_tars, read_ids, read_samples
from tokenizer.errors import UserError
from tokenizer.manifest import file_hash
from tokenizer.pixels import fit, open_image

Layout = Literal["coco", "vqa", "ok-vqa", "vizwiz"]
ANSWERED = ("vqa", "ok-vqa")  # layouts with the answers in a separate file
TEST = "test"
EDITS, QUESTIONS = "edits.jsonl.gz", "questions.jsonl.gz"
Metadata = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class DataLocation:
    """Command-line options that name the data."""

    data: Path
    """Folder of tars, or a published set's JSON file."""
    split: str | None = None
    """Of a corpus; `TEST` by default."""
    layout: Layout | None = None
    """Of a published set."""
    images: Path | None = None
    """Folder of a published set's images."""
    annotations: Path | None = None
    """Answers to the questions, for the layouts in `ANSWERED`."""


@dataclass(frozen=True, kw_only=True)
class Asking:
    """Question about an image, and the answers that people gave."""

    id: str
    picture: str
    """Id of the image."""
    question: str
    answers: tuple[str, ...]
    kind: str


@dataclass(frozen=True)
class Corpus:
    """Split of a corpus: tars, with edits and questions beside them."""

    folder: Path
    split: str
    tars: tuple[Path, ...]
    counting: str = "corpus"
    """Key of `COUNTINGS` in `eval/metrics/vqa.py`."""

    def __str__(self) -> str:
        return f"the {self.split} split of {self.folder}"

    @classmethod
    def open(cls, folder: Path, split: str) -> "Corpus":
        """Open a split of a folder. Raises UserError if there is no tar of the split."""
        return cls(folder, split, tuple(find_tars(folder, f"{split}-")))

    def pictures(self) -> dict[str, Metadata]:
        """Return the metadata of all images by id, in order."""
        return {one["id"]: one for one in list_pictures(self.tars)}

    def read(self, ids: Set[str], size: int | None) -> Iterator[tuple[Metadata, Image.Image]]:
        """Yield the metadata and image of these ids, without damaged images.

        Images are `size` x `size` or (None) of their own size.
        """
        return read_images(self.tars, ids, Tally(), size)

    def questions(self) -> list[Asking]:
        """Return all questions about images of this split or of others."""
        return [
            Asking(
                id=str(place),
                picture=row["id"],
                question=row["question"],
                answers=(row["answer"],),
                kind=str(row.get("type", "question")),
            )
            for place, row in enumerate(self._lines(QUESTIONS))
        ]

    def edits(self) -> Iterator[Metadata]:
        """Yield rows of `source`, `target`, `instructions` and perhaps `type`, of all splits."""
        return self._lines(EDITS)

    def hashes(self) -> dict[str, str]:
        """Return the hashes by which a result is bound to this data."""
        return {tar.name: file_hash(tar) for tar in self.tars}

    def _lines(self, name: str) -> Iterator[Metadata]:
        """Yield the rows of a file of the corpus, one JSON object per line."""
        path = self.folder / name
        if not path.is_file():
            raise UserError(f"{self.folder} has no {name}; name a corpus that has")
        try:
            with gzip.open(path, "rt", encoding="utf-8") as file:
                for line in file:
                    yield json.loads(line)
        except (OSError, EOFError, ValueError) as error:
            raise UserError(f"{path} is damaged ({error})") from error


@dataclass(frozen=True)
class Published:
    """Published data set: JSON files in their publishers' layout, and a folder of images."""

    counting: str
    """Layout; except for captions also a key of `COUNTINGS` in `eval/metrics/vqa.py`."""
    files: tuple[Path, ...]
    images: Path
    records: Sequence[Captioned | Answered]

    def __str__(self) -> str:
        return str(self.files[0])

    @cached_property
    def _paths(self) -> dict[str, Path]:
        return {self._picture(one): one.image for one in self.records}

    def pictures(self) -> dict[str, Metadata]:
        """Return the metadata of all images by id, in order; sets of questions have no captions."""
        return {
            self._picture(one): {
                "id": self._picture(one),
                "captions": list(one.captions) if isinstance(one, Captioned) else [],
                "kind": one.kind if isinstance(one, Captioned) else "picture",
            }
            for one in self.records
        }

    def read(self, ids: Set[str], size: int | None) -> Iterator[tuple[Metadata, Image.Image]]:
        """Yield the metadata and image of these ids, `size` x `size` or (None) of their own size.

        Raises UserError for a damaged image: a score on part of the set would not be a score on the
        set.
        """
        for name, metadata in self.pictures().items():
            if name in ids:
                image = open_image(self._paths[name])
                yield metadata, image if size is None else fit(image, size)

    def questions(self) -> list[Asking]:
        """Return all questions. Raises UserError if the set has captions instead."""
        found = [
            Asking(
                id=one.id,
                picture=self._picture(one),
                question=one.question,
                answers=one.answers,
                kind=one.kind,
            )
            for one in self.records
            if isinstance(one, Answered)
        ]
        if not found:
            raise UserError(f"{self} holds captions, no question; name a set of questions")
        return found

    def edits(self) -> Iterator[Metadata]:
        """Raise UserError: a published set has no edits."""
        raise UserError(f"{self} holds no edit; name a corpus with {EDITS}")

    def hashes(self) -> dict[str, str]:
        """Return the hashes by which a result is bound to this data.

        They are those of the files, and the number and total size of the images.
        """
        weight = sum(path.stat().st_size for path in self._paths.values())
        told = f"{len(self._paths):,} files, {weight:,} bytes"
        return {path.name: file_hash(path) for path in self.files} | {"images": told}

    def _picture(self, one: Captioned | Answered) -> str:
        """Return the id of a record's image; questions share images, identified by their files."""
        if isinstance(one, Captioned):
            return one.id
        return one.image.relative_to(self.images).as_posix()


Source = Corpus | Published


def open_source(place: DataLocation) -> Source:
    """Open the data that the options name; a published set is read completely.

    Raises UserError for options that do not go together, for missing files, and as the readers of
    `published`.
    """
    data, images, more = place.data, place.images, place.annotations
    if place.layout is None:
        if images is not None or more is not None:
            word = "--annotations" if images is None else "--images"
            raise UserError(f"{word} is of a published set; say which layout it has with --as")
        if data.suffix == ".json":
            raise UserError(f"{data} is a JSON file; say which layout it has with --as")
        return Corpus.open(data, place.split or TEST)
    if place.split is not None:
        raise UserError(f"--split {place.split} is of a corpus; with --as name the split's file")
    if images is None:
        raise UserError(f"--as {place.layout} needs the folder of the images: add --images")
    wants = place.layout in ANSWERED
    if wants and more is None:
        raise UserError(f"--as {place.layout} needs the file of the answers: add --annotations")
    if not wants and more is not None:
        raise UserError(f"--as {place.layout} has all in one file; leave out --annotations")
    files = (data,) if more is None else (data, more)
    for file in files:
        if not file.is_file():
            raise UserError(f"there is no file {str(file)!r}; name the set's JSON file")
    if not images.is_dir():
        raise UserError(f"{images}: no such folder; name the folder that the images lie in")
    return Published(place.layout, files, images, _read(place.layout, files, images))


def _read(layout: Layout, files: tuple[Path, ...], images: Path) -> Sequence[Captioned | Answered]:
    if layout == "coco":
        return read_captions(files[0], images)
    if layout == "vizwiz":
        return read_vizwiz(files[0], images)
    return read_questions(files[0], files[1], images)


def corpus_of(source: Source, why: str) -> Path:
    """Return the folder of a corpus. Raises UserError for a published set."""
    if isinstance(source, Corpus):
        return source.folder
    raise UserError(f"{why} is in a corpus of tars, not in {source}; name one with --data")


def chosen(source: Source, ids: Path | None) -> dict[str, Metadata]:
    """Return the metadata of all images by id, or of those listed in a file, sorted by id.

    Raises UserError if a listed image is missing.
    """
    found = source.pictures()
    if ids is None:
        return found
    wanted = sorted(read_ids(ids))
    missing = [one for one in wanted if one not in found]
    if missing:
        raise UserError(
            f"{len(missing)} ids of {ids}, {missing[0]!r} for one, are not in {source}; name what "
            "they are of"
        )
    return {one: found[one] for one in wanted}


def captioned(source: Source, listed: Mapping[str, Metadata]) -> list[Metadata]:
    """Return the metadata of images that have a caption. Raises UserError if there are none."""
    found = [one for one in listed.values() if one.get("captions")]
    if not found:
        raise UserError(f"no image of {source} has a caption; name captioned ones")
    return found


def list_pictures(tars: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the metadata of all images, in order. Raises UserError if there are none."""
    found = [sample.metadata for sample in read_samples(tars, Tally())]
    if not found:
        raise UserError(f"there is no image with its text in {len(tars)} tars")
    return found


def read_images(
    tars: Sequence[Path], ids: Set[str], tally: Tally, size: int | None = None
) -> Iterator[tuple[dict[str, Any], Image.Image]]:
    """Yield the metadata and image of these ids.

    Images are `size` x `size` or (None) of their own size; damaged images are recorded in `tally`
    and skipped.
    """
    wanted = (sample for sample in read_samples(tars, tally) if sample.metadata["id"] in ids)
    return decode(wanted, tally, size)
