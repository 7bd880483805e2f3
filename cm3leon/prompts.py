"""Document templates of every task, for training and generation alike.

The codec turns the documents into ids. The upper half has the training documents, with the answer
before the image; the lower half the prompts, each of which is the beginning of a masked training
row: the requested part becomes a Hole, or is left out at the end. Templates: CM3Leon table 5;
guidance streams: sections 3.1 and 4.2.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from tokenizer.document import Document, Field, Hole, Part, Picture
from tokenizer.errors import UserError

DESCRIBE = "Describe the given picture."
EDIT = "Edit first image following the instruction"
MOST_RUNS = 4  # an infilled region of more runs of codes than this becomes one covering span

# Question templates: before the answer, the space that belongs to the answer, after it.
QUESTION_FORMS = (
    ("Question: {} Answer:", " ", "."),
    ("Question: {}\n", "", ""),
    ("Question: {} The answer is", " ", "."),
)

# Form of the unconditional prompt. `trained`: the query text is one masked segment, which the
# objective trains. `meta`: the shorter forms of Meta's scripts, which leave the text out.
StreamForm = Literal["trained", "meta"]


def pair(caption: str, picture: Picture) -> Document:
    """Return a caption and its image: the most common training document."""
    return (field(caption), picture)


def described(caption: str, picture: Picture) -> Document:
    """Return a captioning document: instruction, caption and image."""
    return (DESCRIBE, field(caption), picture)


def edit(instruction: str, source: Picture, target: Picture) -> Document:
    """Return an editing document: source image, instruction and target image."""
    return (EDIT, source, field(instruction), target)


def question(asked: str, answer: str, picture: Picture, form: int = 0) -> Document:
    """Return a question about an image and its answer, in one of QUESTION_FORMS."""
    return (*_asked(asked, needed(answer, "answer"), form), picture)


def paint(
    caption: str, *, examples: bool = False, form: StreamForm = "trained"
) -> tuple[Document, Document]:
    """Return the text-to-image prompts: with the caption, and without it.

    `examples`: retrieved documents will precede both.
    """
    nothing: Document = () if form == "meta" and examples else (Hole(),)
    return (field(caption),), nothing


def change(
    instruction: str, source: Picture, *, form: StreamForm = "trained"
) -> tuple[Document, Document, Document]:
    """Return the editing prompts: with instruction and source, with the source, with neither."""
    blank: Document = (EDIT, source) if form == "meta" else (EDIT, source, Hole())
    return (EDIT, source, field(instruction)), blank, (Hole(),)


def describe(picture: Picture, *, asked: bool = True) -> Document:
    """Return a captioning prompt, in the form of `described` (or of `pair`, if not `asked`)."""
    return (DESCRIBE, Hole(), picture) if asked else (Hole(), picture)


def ask(asked: str, picture: Picture, form: int = 0) -> Document:
    """Return the prompt of a question about an image."""
    return (*_asked(asked, None, form), picture)


@dataclass(frozen=True)
class Region:
    """Image with a region to regenerate.

    known: for every Hole of the image its codes, None where they are to be drawn; the others are
    only inside a covering span and are forced to their known values.
    """

    document: Document
    known: tuple[tuple[int | None, ...], ...]


def complete(picture: Picture, wanted: Sequence[bool], caption: str | None = None) -> Region:
    """Return the prompt that regenerates the `wanted` codes of a whole image.

    Each run of codes in raster order is one Hole; more than MOST_RUNS runs become one covering
    Hole. Without a caption, the caption is itself the first Hole.
    """
    assert len(wanted) == len(picture.codes)
    assert any(wanted), "nothing to generate"
    runs = _runs(wanted)
    if len(runs) > MOST_RUNS:
        runs = [(runs[0][0], runs[-1][1])]
    codes: list[int | Hole] = []
    known: list[tuple[int | None, ...]] = []
    done = 0
    for start, end in runs:
        codes += [*picture.codes[done:start], Hole(end - start)]
        known.append(tuple(None if wanted[i] else _code(picture, i) for i in range(start, end)))
        done = end
    codes += picture.codes[done:]
    words = Hole() if caption is None else field(caption)
    return Region((words, Picture(tuple(codes))), tuple(known))


def needed(text: str, name: str = "prompt") -> str:
    """Return the text without surrounding whitespace. Raises UserError if it is empty."""
    stripped = text.strip()
    if not stripped:
        raise UserError(f"the {name} is empty; write what you want")
    return stripped


def field(text: str, name: str = "prompt") -> Field:
    """Return a text that a task may request, with the space before it.

    Raises UserError if it is empty.
    """
    return Field(f" {needed(text, name)}")


def _asked(asked: str, answer: str | None, form: int) -> tuple[Part, ...]:
    """Return the text of a question, with its answer as a Field or, if not yet known, a Hole."""
    before, space, after = QUESTION_FORMS[form]
    slot: Part = Hole() if answer is None else Field(space + answer)
    words = (before.format(needed(asked, "question")), slot)
    return (*words, after) if after else words


def _runs(wanted: Sequence[bool]) -> list[tuple[int, int]]:
    """Return [start, end) of every run of wanted codes."""
    runs: list[tuple[int, int]] = []
    for is_wanted, places in groupby(range(len(wanted)), lambda place: wanted[place]):
        if is_wanted:
            run = list(places)
            runs.append((run[0], run[-1] + 1))
    return runs


def _code(picture: Picture, place: int) -> int:
    code = picture.codes[place]
    assert isinstance(code, int), "the image has holes already"
    return code
