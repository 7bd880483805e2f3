"""A document: words and pictures in reading order, as plain data.

Tasks, retrieved examples and training pairs all become Documents; the codec turns them into ids.
Pictures are already codes here, so nothing in this file or after it needs a network.
"""

from dataclasses import dataclass
from itertools import groupby

from tokenizer.errors import UserError


@dataclass(frozen=True)
class Field:
    """The part of a text template that a task asks for: a caption, an answer, an instruction.

    It is tokenised apart from the text around it, so that its ids in training are the ids to be
    generated where a Hole takes its place. The space before it belongs to it: `" a red fox"`.
    """

    text: str


@dataclass(frozen=True)
class Hole:
    """Something to be filled in: text of any length, or `length` codes inside a picture."""

    length: int | None = None

    def __post_init__(self) -> None:
        if self.length is not None and self.length < 1:
            raise UserError(f"a hole of {self.length} codes, wanted at least 1")


@dataclass(frozen=True)
class Picture:
    """A picture's codes, row by row; a Hole stands for the `length` codes it replaces."""

    codes: tuple[int | Hole, ...]


Part = str | Field | Hole | Picture
Document = tuple[Part, ...]


def segments(document: Document) -> list[tuple[Part, ...]]:
    """Cut a document where `<break>` will stand: neighbouring text parts are one segment, and
    each picture is a segment of its own."""
    found: list[tuple[Part, ...]] = []
    for is_picture, parts in groupby(document, lambda part: isinstance(part, Picture)):
        if is_picture:
            found += [(picture,) for picture in parts]
        else:
            found.append(tuple(parts))
    return found
