"""Readers of published annotation files, which return one entry per image.

Data path: JSON files -> `read_coco`, `read_vqa`, `read_llava` -> entries, which `layouts.py`
divides into slices. A file is read completely, because the records of an image can be anywhere in
it; several files are read as one collection. A bad record is noted in its image's entry; a file of
another layout is an error.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizer.data.entries import Bad, Entry, Listed, load, rows, words
from tokenizer.data.tars import MAX_TEXT_BYTES
from tokenizer.errors import UserError

PLACEHOLDERS = ("<image>", "<|image|>")  # of an image in conversations of LLaVA and others


@dataclass
class _Draft:
    """Entry of an image while its records are being read."""

    files: tuple[str, ...]
    captions: list[str] = field(default_factory=list[str])
    documents: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    bad: list[Bad] = field(default_factory=list[Bad])

    def entry(self, name: str) -> Entry:
        captions = tuple(dict.fromkeys(self.captions))
        picture = Listed(id=name, files=self.files, captions=captions)
        return Entry(pictures=(picture,), documents=tuple(self.documents), bad=tuple(self.bad))


def read_coco(paths: Sequence[Path]) -> list[Entry]:
    """Read COCO captions: `images` (`id`, `file_name`) and `annotations` (`image_id`, `caption`).

    The id of an image is COCO's number. Raises UserError for a file of another layout.
    """
    drafts: dict[str, _Draft] = {}
    bad: list[Bad] = []
    for path in paths:
        table = load(path)
        told = rows(path, table, "annotations", ("image_id", "caption"))
        for number, row in enumerate(rows(path, table, "images", ("id", "file_name")), start=1):
            match row:
                case {"id": int() | str() as name, "file_name": str(file)}:
                    drafts.setdefault(str(name), _Draft((file,)))
                case _:
                    bad.append((f"{path.name} image {number}", "id and file_name are wanted"))
        for number, row in enumerate(told, start=1):
            where = f"{path.name} annotation {number}"
            match row:
                case {"image_id": int() | str() as name, **rest} if str(name) in drafts:
                    draft = drafts[str(name)]
                    try:
                        draft.captions.append(words(rest.get("caption"), "caption"))
                    except UserError as error:
                        draft.bad.append((where, str(error)))
                case {"image_id": name}:
                    bad.append((where, f"no image has its image_id {name!r}"))
                case _:
                    bad.append((where, "image_id and caption are wanted"))
    return _entries(drafts, bad)


def read_vqa(paths: Sequence[Path]) -> list[Entry]:
    """Read VQA v2: files of `questions` and files of `annotations`, joined by `question_id`.

    The answer is `multiple_choice_answer`, the type `answer_type`; all ten `answers` are kept for
    evaluation. Images have COCO's file names, of 2014 or of 2017, and COCO's numbers as ids. Raises
    UserError for a file of another layout, and if `questions` or `annotations` are missing.
    """
    tables = [(path, load(path)) for path in paths]
    asking = [pair for pair in tables if isinstance(pair[1], dict) and "questions" in pair[1]]
    telling = [pair for pair in tables if pair not in asking]
    if not asking or not telling:
        lacks = "annotations" if asking else "questions"
        raise UserError(
            f"{', '.join(map(str, paths))}: the {lacks} are missing; name both as SOURCES, "
            "v2_OpenEnded_mscoco_..._questions.json and v2_mscoco_..._annotations.json"
        )
    drafts: dict[str, _Draft] = {}
    bad: list[Bad] = []
    answers: dict[str, dict[str, Any]] = {}
    for path, table in telling:
        keys = ("question_id", "multiple_choice_answer")
        for number, row in enumerate(rows(path, table, "annotations", keys), start=1):
            match row:
                case {"question_id": int() | str() as asked}:
                    answers[str(asked)] = row
                case _:
                    bad.append((f"{path.name} annotation {number}", "question_id is wanted"))
    for path, table in asking:
        subtype = table.get("data_subtype")
        keys = ("question_id", "image_id", "question")
        for number, row in enumerate(rows(path, table, "questions", keys), start=1):
            match row:
                case {"question_id": int() | str() as asked, "image_id": int() | str() as image}:
                    files = coco_files(str(image), subtype)
                    draft = drafts.setdefault(str(image), _Draft(files))
                    try:
                        draft.documents.append(
                            _answered(str(image), row, answers.pop(str(asked), None))
                        )
                    except UserError as error:
                        draft.bad.append((f"question {asked}", str(error)))
                case _:
                    what = f"{path.name} question {number}"
                    bad.append((what, "question_id, image_id and question are wanted"))
    bad += [(f"annotation of question {asked}", "no such question is there") for asked in answers]
    return _entries(drafts, bad)


def read_llava(paths: Sequence[Path]) -> list[Entry]:
    """Read LLaVA's and ShareGPT's files: a list, or JSON lines, of `image` and `conversations`,
    turns `from` human and gpt with a `value`; one turn has one of PLACEHOLDERS for the image.

    The id of an image is its path. Conversations without an image are counted and skipped. Raises
    UserError for a file of another layout.
    """
    drafts: dict[str, _Draft] = {}
    bad: list[Bad] = []
    mute = 0
    for path in paths:
        for number, row in enumerate(_conversations(path), start=1):
            where = f"{path.name} entry {number}"
            match row:
                case {"image": str(image), "conversations": [*turns]} if image:
                    draft = drafts.setdefault(image, _Draft((image,)))
                    try:
                        told = {"task": "conversation", "picture": image, "turns": _turns(turns)}
                        draft.documents.append(told)
                    except UserError as error:
                        draft.bad.append((where, str(error)))
                case {"conversations": [*turns]} if "image" not in row and not _shown(turns):
                    mute += 1
                case {"conversations": [*_]}:
                    bad.append((where, "its 'image' is not the path of one image"))
                case UserError():
                    bad.append((where, str(row)))
                case _:
                    bad.append((where, "not a conversation: image and conversations are wanted"))
    beside = [Entry(ignored=(("conversations without an image", mute),))] if mute else []
    return [*_entries(drafts, bad), *beside]


def _entries(drafts: dict[str, _Draft], bad: Sequence[Bad]) -> list[Entry]:
    """Return one entry per image. Bad records without an image are distributed over all entries, so
    that each slice has its share of them, as of the file."""
    for number, draft in enumerate(drafts.values()):
        draft.bad += bad[number :: len(drafts)]
    return [draft.entry(name) for name, draft in drafts.items()]


def coco_files(image: str, subtype: object) -> tuple[str, ...]:
    """Return the possible file names of a COCO image: COCO_train2014_000000000009.jpg, and
    000000000009.jpg as named since 2017."""
    name = f"{image:0>12}.jpg"
    # questions of test-dev2015 refer to images of test2015
    split = subtype.replace("-dev", "") if isinstance(subtype, str) else ""
    return (f"COCO_{split}_{name}", name) if split else (name,)


def _answered(image: str, asked: dict[str, Any], told: dict[str, Any] | None) -> dict[str, Any]:
    """Return a question document. Raises UserError if a text is missing or empty."""
    if told is None:
        raise UserError("no annotation answers it")
    listed = told.get("answers")
    others = listed if isinstance(listed, list) else []
    given = [one.get("answer") for one in others if isinstance(one, dict)]
    return {
        "task": "question",
        "picture": image,
        "question": words(asked.get("question"), "question"),
        "answer": words(told.get("multiple_choice_answer"), "multiple_choice_answer"),
        "type": str(told.get("answer_type", "")),
        "answers": [answer for answer in given if isinstance(answer, str)],
    }


def _conversations(path: Path) -> Iterator[Any]:
    """Yield the rows of a list or of JSON lines, with a UserError in place of a bad line."""
    try:
        with path.open("rb") as file:
            start = file.read(1024).lstrip()[:1]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name its JSON file") from error
    if start != b"{":
        table = load(path)
        if not isinstance(table, list):
            raise UserError(f"{path}: not a list of conversations; name a file of this layout")
        found = rows(path, {"conversations": table}, "conversations", ("conversations",))
        yield from found
        return
    with path.open("rb") as file:
        lines = iter(lambda: file.readline(MAX_TEXT_BYTES), b"")
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                row = UserError(f"damaged ({error})")
            if number == 1 and not (isinstance(row, dict) and "conversations" in row):
                raise UserError(
                    f"{path}: its first line is no object with 'conversations'; a list or JSON "
                    "lines of conversations are wanted: name a file of this layout"
                )
            yield row


def _shown(turns: Sequence[object]) -> int:
    """Return the number of image placeholders in a conversation."""
    return sum(str(turn).count(placeholder) for turn in turns for placeholder in PLACEHOLDERS)


def _turns(turns: Sequence[object]) -> list[tuple[str, str]]:
    """Return (question, answer) of every two turns, without the placeholder. Raises UserError for
    other turns."""
    said: list[str] = []
    shown = 0
    for number, turn in enumerate(turns):
        speaker = ("human", "gpt")[number % 2]
        match turn:
            case {"from": str(who), "value": str(value)} if who == speaker:
                for placeholder in PLACEHOLDERS:
                    shown += value.count(placeholder)
                    value = value.replace(placeholder, "")
                said.append(words(value, f"turn {number + 1}"))
            case _:
                raise UserError(f"its turn {number + 1} has no 'from' {speaker!r} and 'value'")
    if shown != 1:
        raise UserError(f"it shows {shown} images; one placeholder {PLACEHOLDERS[0]} is wanted")
    if not said or len(said) % 2:
        raise UserError(f"it has {len(said)} turns; an answer to every question is wanted")
    return list(zip(said[::2], said[1::2], strict=True))
