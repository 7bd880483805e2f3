"""Templates of the documents of token shards, by task, for training rows and for `inspect`.

They turn the records of the shards (texts and ids of images) into documents for the codec. Choices
(of instructions and wordings) are made by a function of the caller.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cm3leon import prompts
from cm3leon import templates as forms
from tokenizer.document import Document, Picture

Choose = Callable[[int], int]
"""Function from count to an index in 0 .. count - 1."""
Form = Callable[[Mapping[str, Any], Sequence[Picture], Choose], Document]
"""Function from a record, its images in the order of TASKS, and a choice to a document."""


def first(_: int) -> int:
    """Return 0: the deterministic choice."""
    return 0


def _edit(table: Mapping[str, Any], pictures: Sequence[Picture], choose: Choose) -> Document:
    wordings = table["instructions"]
    return prompts.edit(wordings[choose(len(wordings))], *pictures)


def _question(table: Mapping[str, Any], pictures: Sequence[Picture], choose: Choose) -> Document:
    form = choose(len(prompts.QUESTION_FORMS))
    return prompts.question(table["question"], table["answer"], pictures[0], form)


def _structure(table: Mapping[str, Any], pictures: Sequence[Picture], _: Choose) -> Document:
    return forms.structured(table["structure"], table["caption"], *pictures)


def _grounded(table: Mapping[str, Any], pictures: Sequence[Picture], _: Choose) -> Document:
    objects = [(one["name"], tuple(one["box"])) for one in table["objects"]]
    return forms.grounded(table["caption"], objects, pictures[0])


def _ocr(table: Mapping[str, Any], pictures: Sequence[Picture], _: Choose) -> Document:
    return forms.written(table["text"], pictures[0])


def _paragraph(table: Mapping[str, Any], pictures: Sequence[Picture], choose: Choose) -> Document:
    form = choose(len(forms.PARAGRAPH_FORMS))
    return forms.paragraph(table["caption"], pictures[0], form)


def _narrative(table: Mapping[str, Any], pictures: Sequence[Picture], choose: Choose) -> Document:
    form = choose(len(forms.NARRATIVE_FORMS))
    return forms.narrative(table["caption"], pictures[0], form)


def _science(table: Mapping[str, Any], pictures: Sequence[Picture], choose: Choose) -> Document:
    """Return a science question; if it has an explanation, include it with probability 1/2."""
    explanation = table.get("explanation", "")
    return forms.science(
        table["question"],
        table["options"],
        table["answer"],
        pictures[0],
        context=table.get("context", ""),
        explanation="" if explanation and choose(2) else explanation,
    )


def _conversation(table: Mapping[str, Any], pictures: Sequence[Picture], _: Choose) -> Document:
    return forms.conversation([(asked, told) for asked, told in table["turns"]], pictures[0])


FORMS: dict[str, Form] = {
    "edit": _edit,
    "question": _question,
    "structure": _structure,
    "grounded": _grounded,
    "ocr": _ocr,
    "paragraph": _paragraph,
    "narrative": _narrative,
    "scienceqa": _science,
    "conversation": _conversation,
}
