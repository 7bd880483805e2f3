"""Visual questions whose answers follow from the metadata of the image.

`make_questions` reads the metadata of all images; the result is written to questions.jsonl.gz. The
types: what, yesno, style, group, skin tone, flag, clock, gender, color, medium.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from train.emoji.draw import About
from train.emoji.edits import FEMALE, MALE, is_clock
from train.emoji.names import TONES, normal
from train.emoji.styles import SHORT

LONGEST = 5  # words of a clip art's name; a longer one is no useful answer
COLOURS = set("red orange yellow green blue purple brown black white grey pink".split())  # noqa: SIM905
COLOURED = {"heart", "circle", "square", "book", "apple"}
MAN, WOMAN = "1f468", "1f469"
ONE_OF = {MAN, WOMAN, "1f466", "1f467"}  # no question of gender for several of them

Asked = tuple[str, str, str]  # question, answer, type


@dataclass(frozen=True)
class EmojiQuestion:
    """One question, as in the output file."""

    id: str
    question: str
    answer: str
    type: str
    split: str


def make_questions(pictures: Sequence[About]) -> Iterator[EmojiQuestion]:
    """Yield all questions about these images, in their order."""
    labels = [picture["label"] for picture in pictures]
    for picture in pictures:
        if picture["kind"] == "clipart" and len(picture["label"].split()) > LONGEST:
            continue
        number = hashlib.sha256(f"cm3leon-other:{picture['id']}".encode()).digest()
        other = labels[int.from_bytes(number[:8]) % len(labels)]
        for asked in (*of_name(picture, other), *of_kind(picture), *of_details(picture)):
            yield EmojiQuestion(picture["id"], *asked, picture["split"])


def of_name(picture: About, other: str) -> Iterator[Asked]:
    """Yield questions about the object: its name, and yes-no questions about it and about `other`,
    if the two share no word."""
    label = picture["label"]
    yield "What is shown in this picture?", label, "what"
    words = set(f"{label} {' '.join(picture['tags'])}".lower().split())
    if words.isdisjoint(other.lower().split()):
        yield f"Does this picture show {other}?", "no", "yesno"
        yield f"Does this picture show {label}?", "yes", "yesno"


def of_kind(picture: About) -> Iterator[Asked]:
    """Yield questions about style, group and medium."""
    if picture["kind"] == "emoji":
        yield "Which emoji style is this drawn in?", SHORT[picture["style"]], "style"
        group = picture["group"].replace("-", " ")
        yield "Which group does this emoji belong to?", group, "group"
    if picture["kind"] in ("emoji", "clipart"):
        yield "Is this a photo or a drawing?", "a drawing", "medium"


def of_details(picture: About) -> Iterator[Asked]:
    """Yield questions about skin tone, country, time, gender and colour, as far as they apply."""
    label = picture["label"]
    points = normal(picture["codepoint"] or "0")
    parts = points.split("-")
    tones = {part for part in parts if part in TONES}
    if len(tones) == 1:
        yield "What is the skin tone?", TONES[tones.pop()], "skin tone"
    for start in ("flag: ", "flag of "):
        if label.startswith(start):
            yield "Whose flag is this?", label.removeprefix(start), "flag"
    if is_clock(points):
        yield "What time does the clock show?", label, "clock"
    alone = sum(part in ONE_OF for part in parts) == 1
    if parts[-1] in (FEMALE, MALE) or (parts[0] in (MAN, WOMAN) and alone):
        is_woman = parts[-1] == FEMALE or parts[0] == WOMAN
        yield "Is this a man or a woman?", "woman" if is_woman else "man", "gender"
    words = label.lower().split()
    if words[0] in COLOURS and words[-1] in COLOURED:
        yield f"What color is the {words[-1]}?", words[0], "color"
