"""Reader of `data encode --documents`: JSON lines of documents of any task, for token shards.

`read_edits` and `read_questions` of `corpus.py` read one task each. A line has its `task`, the ids
of its images and its texts, under the keys of `TASKS`; OPTIONAL lists its optional keys. A line
that no training template could format is skipped here, with the reason.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, cast

from cm3leon.templates import STRUCTURES, Box
from tokenizer.data.entries import words
from tokenizer.data.shards import TASKS
from tokenizer.data.tars import Tally
from tokenizer.errors import UserError
from train.data.corpus import rows_of
from train.data.templates import FORMS

OPTIONAL: dict[str, tuple[str, ...]] = {"scienceqa": ("context", "explanation")}


def read_documents(
    path: Path | None, ids: Set[str], tally: Tally, size: int
) -> Iterator[dict[str, Any]]:
    """Yield the documents of a file whose images are all in `ids`.

    size: side in pixels of the encoded images, the coordinate system of boxes; in a line with the
    `width` and `height` of an image, boxes are in the original image's pixels.
    """
    for where, row in rows_of(path, tally):
        try:
            document = _checked(row, size)
        except UserError as error:
            tally.skip(where, error)
            continue
        if all(document[key] in ids for key in TASKS[document["task"]][0]):
            yield document
        else:
            tally.outside += 1


def _checked(row: object, size: int) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        raise UserError("not an object with a task")
    table = cast("Mapping[str, Any]", row)
    task = table.get("task")
    if not isinstance(task, str) or task not in FORMS:
        raise UserError(f"its task is {task!r}; known: {', '.join(FORMS)}")
    pictures, texts = TASKS[task]
    document: dict[str, Any] = {"task": task}
    for key in pictures:
        document[key] = words(table.get(key), key)
    for key in texts:
        document[key] = _value(key, table, size)
    for key in OPTIONAL.get(task, ()):
        if table.get(key):
            document[key] = words(table[key], key)
    return {**document, "type": str(table.get("type", document.get("structure", "")))}


def _value(key: str, table: Mapping[str, Any], size: int) -> Any:
    """Return the checked value of a key, in the form that its template expects."""
    value = table.get(key)
    match key:
        case "instructions" | "options":
            return [words(one, key) for one in _list(value, key)]
        case "objects":
            found = [_object(one, table, size) for one in _list(value, key)]
            kept = [one for one in found if one is not None]
            if not kept:
                raise UserError("none of its objects lies in the image's middle square")
            return kept
        case "turns":
            return [_turn(one) for one in _list(value, key)]
        case "structure" if value not in list(STRUCTURES):
            raise UserError(f"its structure is {value!r}; known: {', '.join(STRUCTURES)}")
        case "answer" if isinstance(value, int) and isinstance(table.get("options"), list):
            options = table["options"]
            if not 0 <= value < len(options):
                raise UserError(f"its answer is {value} of {len(options)} options")
            return words(options[value], key)
        case _:
            return words(value, key)


def _list(value: object, key: str) -> Sequence[object]:
    if not isinstance(value, list) or not value:
        raise UserError(f"its {key} are {value!r:.40}; a list that is not empty is wanted")
    return cast("list[object]", value)


def _turn(turn: object) -> list[str]:
    match turn:
        case [question, answer]:
            return [words(question, "question"), words(answer, "answer")]
        case _:
            raise UserError("its turns are not [question, answer]")


def _object(one: object, table: Mapping[str, Any], size: int) -> dict[str, Any] | None:
    match one:
        case {"name": str(name), "box": [int(), int(), int(), int()] as told}:
            left, top, right, bottom = cast("list[int]", told)
        case _:
            raise UserError("its objects are not {name, box: [x1, y1, x2, y2]}, whole pixels")
    box: Box | None = (left, top, right, bottom)
    match table.get("width"), table.get("height"):
        case int(width), int(height):
            box = on_canvas(box, width, height, size)
        case None, None if not (0 <= left < right <= size and 0 <= top < bottom <= size):
            raise UserError(
                f"its box {list(box)} is not x1 < x2, y1 < y2 within {size} x {size}; tell the "
                "image's width and height where boxes are in its own pixels"
            )
        case None, None:
            pass
        case _:
            raise UserError("its width and height are not both whole numbers")
    return None if box is None else {"name": words(name, "name"), "box": list(box)}


def on_canvas(box: Box, width: int, height: int, size: int) -> Box | None:
    """Map a box of a width x height image to its middle square resized to `size` x `size`, as by
    `pixels.fit`.

    Returns None if less than a pixel of the box is left. Raises UserError for an empty image.
    """
    if width < 1 or height < 1:
        raise UserError(f"its width and height are {width} and {height}")
    side = min(width, height)

    def scaled(value: int, whole: int) -> int:
        return min(max(round((value - (whole - side) / 2) * size / side), 0), size)

    left, right = scaled(box[0], width), scaled(box[2], width)
    top, bottom = scaled(box[1], height), scaled(box[3], height)
    return (left, top, right, bottom) if left < right and top < bottom else None
