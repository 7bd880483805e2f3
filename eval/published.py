"""Readers of published data sets: captions and questions about a folder of images.

JSON in its publishers' layout -> plain records of the whole set, or a UserError of one line: a
score on part of a set would not be a score on the set. `corpus` opens the sets for evaluation.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import isfile  # False for an invalid name too
from pathlib import Path
from typing import Any

from tokenizer.data.annotations import coco_files
from tokenizer.data.entries import inside, load, rows
from tokenizer.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Captioned:
    """Image and people's captions of it."""

    id: str
    image: Path
    captions: tuple[str, ...]
    kind: str
    """NoCaps' domain, else "picture"."""


@dataclass(frozen=True, kw_only=True)
class Answered:
    """Question about an image, and the answers of several people."""

    id: str
    image: Path
    question: str
    answers: tuple[str, ...]
    kind: str
    """Type of the answer if the file has it, else "question"."""


def read_captions(path: Path, images: Path) -> list[Captioned]:
    """Read COCO's or NoCaps' captions.

    The file has `images` of `id`, `file_name` and perhaps `domain`, and `annotations` of `image_id`
    and `caption`; the image files are in the folder `images`. Images without a caption are skipped,
    and so are captions of white space alone.

    Raises:
        UserError: a file of another layout, captions without an image, missing images.
    """
    table = load(path)
    told = rows(path, table, "annotations", ("image_id", "caption"))
    shown = {_id(path, "images", one, "id"): one for one in _listed(path, table)}
    captions: dict[str, list[str]] = {}
    for row in told:
        text = _text(path, "annotations", row, "caption")
        if text.strip():
            captions.setdefault(_id(path, "annotations", row, "image_id"), []).append(text)
    lost = [name for name in captions if name not in shown]
    if lost:
        count = sum(len(captions[name]) for name in lost)
        raise UserError(
            f"{path}: {count:,} captions have no image in its 'images', those of image_id "
            f"{lost[0]!r} for one; name a file whose two lists belong together"
        )
    if not captions:
        raise UserError(f"{path}: no caption holds a word; name another file")
    chosen = [name for name in shown if name in captions]
    names = [(_text(path, "images", shown[name], "file_name"),) for name in chosen]
    return [
        Captioned(
            id=name,
            image=file,
            captions=tuple(captions[name]),
            kind=str(shown[name].get("domain") or "picture"),
        )
        for name, file in zip(chosen, _files(images, names), strict=True)
    ]


def read_questions(questions: Path, annotations: Path, images: Path) -> list[Answered]:
    """Read VQA v2's or OK-VQA's questions.

    `questions` is a file with `questions` of `question_id`, `image_id` and `question`;
    `annotations` is another with `annotations` of `question_id` and `answers`, each with an
    `answer`. Images have COCO's file names, of 2014 or of 2017. Annotations of other questions are
    ignored.

    Raises:
        UserError: a file of another layout, questions without an answer, missing images.
    """
    table = load(questions)
    asked = rows(questions, table, "questions", ("question_id", "image_id", "question"))
    told = rows(annotations, load(annotations), "annotations", ("question_id", "answers"))
    by_id = {_id(annotations, "annotations", row, "question_id"): row for row in told}
    ids = [_id(questions, "questions", row, "question_id") for row in asked]
    _once(questions, "question_id", ids)
    bare = [name for name in ids if name not in by_id]
    if bare:
        raise UserError(
            f"{annotations}: it answers {len(ids) - len(bare):,} of the {len(ids):,} questions of "
            f"{questions}, not {bare[0]!r} for one; name the two files of one split"
        )
    subtype = table.get("data_subtype")
    pictures = [_id(questions, "questions", row, "image_id") for row in asked]
    files = _files(images, [coco_files(one, subtype) for one in pictures])
    return [
        Answered(
            id=name,
            image=file,
            question=_text(questions, "questions", row, "question"),
            answers=_answers(annotations, "annotations", by_id[name]),
            kind=str(by_id[name].get("answer_type") or "question"),
        )
        for name, row, file in zip(ids, asked, files, strict=True)
    ]


def read_vizwiz(path: Path, images: Path) -> list[Answered]:
    """Read VizWiz's questions.

    The file is a list of `image`, `question` and `answers`, each with an `answer`, and perhaps
    `answer_type` and `answerable`. The id of a question is the name of its image.

    Raises:
        UserError: a file of another layout, missing images.
    """
    told = _list(path, ("image", "question", "answers"))
    ids = [_text(path, "entries", row, "image") for row in told]
    _once(path, "image", ids)
    able = {"0": "unanswerable", "1": "answerable"}
    return [
        Answered(
            id=name,
            image=file,
            question=_text(path, "entries", row, "question"),
            answers=_answers(path, "entries", row),
            kind=str(row.get("answer_type") or able.get(str(row.get("answerable")), "question")),
        )
        for name, row, file in zip(ids, told, _files(images, [(one,) for one in ids]), strict=True)
    ]


def _listed(path: Path, table: object) -> Sequence[Mapping[str, Any]]:
    found = rows(path, table, "images", ("id", "file_name"))
    _once(path, "id", [_id(path, "images", one, "id") for one in found])
    return found


def _list(path: Path, keys: Sequence[str]) -> list[Any]:
    """Return the rows of a file that is a list."""
    table = load(path)
    if not isinstance(table, list):
        held = (
            ", ".join(map(repr, list(table)[:8])) if isinstance(table, dict) else repr(table)[:40]
        )
        raise UserError(
            f"{path}: it holds {held or 'nothing'}; a list of objects with "
            f"{', '.join(map(repr, keys))} is wanted: name a file of this layout"
        )
    return rows(path, {"entries": table}, "entries", keys)


def _id(path: Path, where: str, row: object, key: str) -> str:
    match row:
        case {**rest} if isinstance(rest.get(key), int | str):
            return str(rest[key])
        case _:
            raise UserError(f"{path}: one of its {where!r} has no number or name {key!r}; mend it")


def _text(path: Path, where: str, row: object, key: str) -> str:
    match row:
        case {**rest} if isinstance(rest.get(key), str):
            return rest[key]
        case _:
            raise UserError(f"{path}: one of its {where!r} has no text {key!r}; mend it")


def _answers(path: Path, where: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    match row.get("answers"):
        case [_, *_] as told:
            return tuple(_text(path, "answers", one, "answer") for one in told)
        case _:
            raise UserError(f"{path}: one of its {where!r} has no list 'answers'; mend it")


def _once(path: Path, key: str, ids: Sequence[str]) -> None:
    (name, count), *_ = Counter(ids).most_common(1)
    if count > 1:
        raise UserError(f"{path}: {key} {name!r} stands there {count} times; each must be another")


def _files(images: Path, names: Sequence[Sequence[str]]) -> list[Path]:
    """Return the image file of each record: the first of its names that is in the folder."""
    if not images.is_dir():
        raise UserError(f"{images}: no such folder; name the folder that the images lie in")
    found: list[Path] = []
    missing: list[str] = []
    for options in names:
        out = [name for name in options if not inside(name)]
        if out:
            raise UserError(f"{out[0]!r} leads out of the folder of images; mend the file")
        there = [images / name for name in options if isfile(images / name)]
        found += there[:1]
        missing += [] if there else [options[0]]
    if missing:
        raise UserError(
            f"{images}: {len(missing):,} of {len(names):,} images are missing, {missing[0]!r} "
            "for one; name the folder of this split's images, all unpacked"
        )
    return found
