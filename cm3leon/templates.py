"""Further fine-tuning templates: Table 5 beyond captions, edits and questions.

`prompts.py` has the templates of the commands; the codec turns both into ids. Each function returns
one whole training document; the image that it is about comes last, as in all of Table 5. The
requested part is a Field, so a prompt is the same document with a Hole for a Field, or without its
last image. Templates: CM3Leon table 5, boxes figure 15. `conversation` is ours, not the paper's.
"""

from collections.abc import Sequence

from cm3leon.prompts import field, needed
from tokenizer.document import Document, Field, Part, Picture
from tokenizer.errors import UserError

Box = tuple[int, int, int, int]
"""x1, y1, x2, y2 in pixels of the image as the model generates it."""

STRUCTURE = "Make high quality image from"
# kind of condition -> its name in the instruction
STRUCTURES = {
    "canny": "canny edge features",
    "segmentation": "a segmentation map",
    "hed": "hed features",
    "openpose": "openpose features",
    "depth": "depth features",
    "normals": "3D norm features",
    "scribble": "children's scribbles",
}
PARAGRAPH_FORMS = (
    "Describe the given picture in very detail.",
    "Describe all the objects in the given image in very detail.",
    "Generate a long caption for the given image.",
)
NARRATIVE_FORMS = (
    "Describe the given picture in very detail.",
    "Generate a long narration of what is happening in the given image.",
    "Generate a long caption for the given image.",
)


def structured(structure: str, caption: str, condition: Picture, picture: Picture) -> Document:
    """Return a document of an image after a condition (edges, a map, a pose ...) and a caption.

    Raises UserError for a structure that is not in STRUCTURES.
    """
    if structure not in STRUCTURES:
        raise UserError(f"unknown structure {structure!r}; known: {', '.join(STRUCTURES)}")
    return f"{STRUCTURE} {STRUCTURES[structure]}", condition, field(caption), picture


def grounded(caption: str, objects: Sequence[tuple[str, Box]], picture: Picture) -> Document:
    """Return a document of an image with named objects in given boxes.

    The list of objects is a Field, so that detection is trained too. Raises UserError if there is
    no object.
    """
    if not objects:
        raise UserError("there is no object; name at least one, and its box")
    places = ", ".join(f"{needed(name, 'name')} at {place(box)}" for name, box in objects)
    asked = "Generate high quality image of"
    return asked, field(caption), " with segmentations", field(places), picture


def place(box: Box) -> str:
    """Return a box as text: `(x1, y1) -> (x2, y2)`."""
    left, top, right, bottom = box
    return f"({left}, {top}) -> ({right}, {bottom})"


def written(text: str, picture: Picture) -> Document:
    """Return a document of an image of written text."""
    return 'draw "', Field(needed(text, "text")), '"', picture


def paragraph(caption: str, picture: Picture, form: int = 0) -> Document:
    """Return a document of a long caption, requested in one of PARAGRAPH_FORMS."""
    return PARAGRAPH_FORMS[form], field(caption), picture


def narrative(caption: str, picture: Picture, form: int = 0) -> Document:
    """Return a document of a spoken description, requested in one of NARRATIVE_FORMS."""
    return NARRATIVE_FORMS[form], field(caption), picture


def science(
    question: str,
    options: Sequence[str],
    answer: str,
    picture: Picture,
    *,
    context: str = "",
    explanation: str = "",
) -> Document:
    """Return a question with options and its answer, after an explanation if there is one.

    Table 5 gives only `Options: {o}`: here they are (A) one (B) two. Without a context its line is
    left out. Raises UserError unless there are 1 to 26 options, one per letter.
    """
    if not 0 < len(options) <= 26:
        raise UserError(f"{len(options)} options; from 1 to 26 are wanted")
    told = " ".join(
        f"({chr(ord('A') + number)}) {needed(option, 'option')}"
        for number, option in enumerate(options)
    )
    lines = [f"Question: {needed(question, 'question')}"]
    lines += [f"Context: {context.strip()}"] if context.strip() else []
    asked = "\n".join([*lines, f"Options: {told}", "Answer:"])
    if not explanation.strip():
        return asked, field(answer, "answer"), ".", picture
    step = f"{asked} Let's think step-by-step:"
    return step, field(explanation), " So the answer is", field(answer, "answer"), ".", picture


def conversation(turns: Sequence[tuple[str, str]], picture: Picture) -> Document:
    """Return a document of questions and answers about one image, in turn; each answer is a Field.

    Not in the paper. As in Table 5 all text precedes the image, so the last answer is infilled like
    that of any question. Raises UserError if there is no turn.
    """
    if not turns:
        raise UserError("a conversation without a turn; at least one is wanted")
    parts: list[Part] = []
    for question, answer in turns:
        line = f"Question: {needed(question, 'question')}\nAnswer:"
        parts += [f"\n{line}" if parts else line, field(answer, "answer")]
    return (*parts, picture)
