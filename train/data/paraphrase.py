"""Rule-based paraphrases of captions, in the style of user prompts, from label, tags and style.

`reword` turns the metadata of an image into a caption for a training row, at the rate set in the
recipe. The captions of a corpus follow templates, and a model trained on them alone fails on "can
you draw a small car, flat". The rules know kinds of words (articles, requests, colours, names of
styles), not particular objects. A paraphrase is never a target of captioning.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


REQUESTS = (
    "draw {}", "please draw {}", "show me {}", "make {}", "can you draw {}?", "I want {}",
    "paint {}", "create {}", "generate {}", "give me {}", "draw me {}", "i need {}", "{} please",
)  # fmt: skip
WORKS = ("picture", "image", "drawing", "emoji", "icon", "cartoon", "illustration", "sticker")
FILLERS = (
    "cute",
    "little",
    "small",
    "big",
    "nice",
    "simple",
    "funny",
    "beautiful",
    "cool",
    "cartoon",
)
# Adjectives that may be dropped without changing the object: a green pear is a pear. The first word
# of a compound is not in this list: without it the object may be another.
LOOSE = _words(
    "red green blue yellow orange purple brown black white grey pink open closed wrapped glowing "
    "sparkling tropical old mobile large medium small heavy slightly dotted unlit"
)
# Tags that name a category much wider than the object.
WIDE = _words(
    "animal face person people body hand food fruit vegetable plant flower place building vehicle "
    "clothing sport music tool object symbol sign button arrow flag weather time office mail money "
    "drink eat adult man woman boy girl no not the and on up in"
)
STYLES: Mapping[str, Sequence[str]] = {
    "twemoji": ("Twitter", "Twemoji", "flat"),
    "noto": ("Google", "Noto", "Android"),
    "noto-v1": ("blob", "old Android", "Google blob"),
    "fluent-3d": ("3D", "3d", "3D rendered", "Microsoft 3D"),
    "fluent-color": ("glossy", "gradient", "Fluent", "shiny"),
    "fluent-flat": ("flat", "minimal", "Microsoft flat"),
    "fxemoji": ("Firefox", "Mozilla"),
    "emojione-v2": ("EmojiOne",),
    "openclipart": ("clip art", "clipart"),
    "photo": ("photo", "photograph", "realistic"),
    "icon-park": ("two tone", "outline icon"),
    "streamline-freehand": ("hand drawn", "sketchy", "freehand"),
    "streamline-ultimate": ("duotone", "line icon"),
    "streamline-emojis": ("Streamline",),
    "meteocons": ("weather icon",),
    "flat-color-icons": ("flat color icon",),
    "circle-flags": ("round", "circular"),
    "fluent-color-icon": ("app icon", "gradient icon"),
}
_TONE = re.compile(r"^(.*) skin tone$")
_WHO = {"man": "male", "woman": "female"}


def reword(picture: Mapping[str, Any], rng: np.random.Generator) -> str | None:
    """Return a random paraphrased caption, or None for an image without a label."""
    label = str(picture.get("label") or "").strip()
    if not label:
        return None
    tags: object = picture.get("tags")  # of a foreign corpus: any type
    thing = _thing(label, [str(tag) for tag in tags] if isinstance(tags, list) else [], rng)
    styles = STYLES.get(str(picture.get("style")), ())
    said = _styled(thing, styles, rng) if styles and rng.random() < 0.45 else _plain(thing, rng)
    if rng.random() < 0.3:
        said = _pick(REQUESTS, rng).format(said)
    if rng.random() < 0.15:
        said = said[0].upper() + said[1:]
    return said + _pick(("", "", "", "", "", ".", "!"), rng)


def _pick(things: Sequence[T], rng: np.random.Generator) -> T:
    return things[int(rng.integers(len(things)))]


def _thing(label: str, tags: Sequence[str], rng: np.random.Generator) -> str:
    """Return a noun phrase: the label, a part of it or a tag instead of it, with its qualifiers."""
    base, _, rest = label.partition(":")
    base, qualities = base.strip() or label, [one.strip() for one in rest.split(",") if one.strip()]
    if base == "flag" and qualities:
        land = qualities[0]
        return _pick((f"flag of {land}", f"the flag of {land}", f"{land} flag", f"{land}"), rng)
    if base == "keycap" and qualities:
        key = qualities[0]
        return _pick((f"number {key}", f"the number {key}", f"{key}", f"{key} key"), rng)
    base = re.sub(r" \(.*\)$| button$", "", base) or base
    words = base.split()
    own = frozenset(word.lower() for word in words)
    names = [tag for tag in tags if tag.isalpha() and not {tag, tag.rstrip("s")} & (WIDE | own)]
    draw = rng.random()
    if names and draw < 0.15:
        base = _pick(names, rng)
        if words[-1] == "face":
            base += " face"
    elif names and draw < 0.3:
        base = f"{_pick(names, rng)} {base}"
    elif len(words) == 2 and words[1] == "face" and draw < 0.6:
        base = words[0]
    elif len(words) == 2 and words[0].lower() in LOOSE and draw < 0.6:
        base = words[1]
    elif len(words) > 1 and words[0] in _WHO and draw < 0.6:
        base = " ".join([_WHO[words[0]], *words[1:]])
    return _qualified(base, qualities, rng)


def _qualified(base: str, qualities: Sequence[str], rng: np.random.Generator) -> str:
    said = base
    for quality in qualities:
        if tone := _TONE.match(quality):
            tone = tone[1].replace("-", " ")
            forms = (f"{said} with {tone} skin", f"{tone} skinned {said}", f"{said}, {tone} skin")
        else:
            forms = (f"{said} with {quality}", f"{said}, {quality}", f"{quality} {said}")
        said = _pick(forms, rng)
    return said


def _plain(thing: str, rng: np.random.Generator) -> str:
    draw = rng.random()
    if draw < 0.25:
        return thing
    if draw < 0.4:
        thing = f"{_pick(FILLERS, rng)} {thing}"
    if draw < 0.8:
        return with_article(thing, rng)
    work = _pick(WORKS, rng)
    return _pick((f"{work} of {with_article(thing, rng)}", f"{_one(work)} of {thing}"), rng)


def _styled(thing: str, styles: Sequence[str], rng: np.random.Generator) -> str:
    style = _pick(styles, rng)
    article = with_article(thing, rng)
    forms = (
        f"{style} {thing}", f"{thing}, {style}", f"{thing} {style}", f"{article} in {style} style",
        f"{article}, {style} style", f"{thing} in {style}", f"{style} style {thing}",
        f"{style} {_pick(WORKS, rng)} of {article}",
    )  # fmt: skip
    return _pick(forms, rng)


def with_article(thing: str, rng: np.random.Generator) -> str:
    """Return `a fox`, `an owl`, `the fox`, `some cherries`, or sometimes a singular in plural."""
    if re.match(r"(?i)(the|a|an|some|number) ", thing):
        return thing
    last = thing.split(" with ")[0].split()[-1].lower()
    if last.endswith("s") and not last.endswith(("ss", "us", "is")):
        return _pick((f"some {thing}", thing), rng)
    draw = rng.random()
    if draw < 0.1 and " " not in thing and last.isalpha():
        return f"{_pick(('some', 'two', 'many'), rng)} {_plural(thing)}"
    if draw < 0.25:
        return f"the {thing}"
    return _one(thing)


def _one(thing: str) -> str:
    return f"{'an' if thing[0].lower() in 'aeiou' else 'a'} {thing}"


def _plural(word: str) -> str:
    if word.endswith(("s", "x", "ch", "sh")):
        return f"{word}es"
    if word.endswith("y") and word[-2:-1] not in tuple("aeiou"):
        return f"{word[:-1]}ies"
    return f"{word}s"
