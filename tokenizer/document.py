"""Documents: text and images in reading order, as plain data.

Tasks, retrieved examples and training pairs are represented as Documents; the codec converts them
to ids. Images are already codes here, so neither this file nor later steps need a network.
"""

from dataclasses import dataclass
from itertools import groupby

from tokenizer.errors import UserError


@dataclass(frozen=True)
class Field:
    """Part of a text template that a task asks for: a caption, an answer, an instruction.

    It is tokenised separately from the text around it, so that its ids in training are the ids to
    be generated where a Hole replaces it. The space before it is part of it: `" a red fox"`.
    """

    text: str


@dataclass(frozen=True)
class Hole:
    """Part of a document to be filled in: text of any length, or `length` codes inside an image."""

    length: int | None = None

    def __post_init__(self) -> None:
        if self.length is not None and self.length < 1:
            raise UserError(f"a hole of {self.length} codes, wanted at least 1")


@dataclass(frozen=True)
class Picture:
    """Codes of an image in row-major order; a Hole replaces `length` codes."""

    codes: tuple[int | Hole, ...]


Part = str | Field | Hole | Picture
Document = tuple[Part, ...]


def segments(document: Document) -> list[tuple[Part, ...]]:
    """Split a document at the positions of `<break>`: adjacent text parts are one segment, and each
    image is a segment of its own."""
    found: list[tuple[Part, ...]] = []
    for is_picture, parts in groupby(document, lambda part: isinstance(part, Picture)):
        if is_picture:
            found += [(picture,) for picture in parts]
        else:
            found.append(tuple(parts))
    return found
