"""Editing examples from pairs of existing images: two emoji that differ in one attribute.

`make_edits` reads the metadata of all images; `visible` drops the pairs of images that look alike;
the rest are written to edits.jsonl.gz. Source and target of an edit are in the same split. The
types: style, skin tone, gender, age, hair, direction, recolour, clock, moon, arrow, keycap, globe,
cat face, day/night.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from train.emoji.draw import About
from train.emoji.names import TONES, normal
from train.emoji.styles import SHORT

LEAST = 0.6  # smallest visible change: mean difference of two images' thumbnails, of 0..255
JOINER, FEMALE, MALE, RIGHT = "200d", "2640", "2642", "27a1"
# Three ages of three genders, in that order.
PEOPLE = {
    "1f468": "man",
    "1f469": "woman",
    "1f9d1": "person",
    "1f466": "boy",
    "1f467": "girl",
    "1f9d2": "child",
    "1f474": "old man",
    "1f475": "old woman",
    "1f9d3": "older person",
}
HAIR = {"1f9b0": "red hair", "1f9b1": "curly hair", "1f9b2": "a bald head", "1f9b3": "white hair"}
COLOURS = (
    "red orange yellow green blue light-blue purple brown black white grey pink".split()  # noqa: SIM905
)
COLOURED = {
    "heart",
    "circle",
    "square",
    "book",
    "apple",
    "large square",
    "medium square",
    "small square",
}
CLOCKS = range(0x1F550, 0x1F568)
MOON = re.compile(r"(new|waxing|first quarter|full|waning|last quarter).*moon$")
ARROW = re.compile(r"(up-left|up-right|down-left|down-right|up|down|left|right) arrow$")
SERIES: dict[str, tuple[str, ...]] = {
    "clock": ("set the clock to {}", "change the time to {}"),
    "moon": ("change the moon phase to {}",),
    "arrow": ("make the arrow point {}", "rotate the arrow to point {}"),
    "keycap": ("change the digit to {}", "make the key show {}"),
    "globe": ("turn the globe to show {}",),
}

Set = Mapping[str, About]  # the emoji of one style, by code points
Change = tuple[About, About, list[str], str]  # from, to, instructions, type


@dataclass(frozen=True)
class Edit:
    """One edit, as in the output file."""

    source: str
    target: str
    instructions: list[str]
    type: str
    split: str


def make_edits(pictures: Sequence[About]) -> list[Edit]:
    """Return all edits between these images, one per pair and type."""
    styles: dict[str, dict[str, About]] = defaultdict(dict)
    drawn: dict[str, dict[str, About]] = defaultdict(dict)
    for picture in pictures:
        if picture["codepoint"]:
            points = normal(picture["codepoint"])
            styles[picture["style"]][points] = picture
            drawn[points][picture["style"]] = picture
    edits: dict[tuple[str, str, str], Edit] = {}
    rules = (tones, people, signs, hair, directions, colours, series, cats)
    found: list[Iterable[Change]] = [restyled(drawn.values())]
    found += [rule(one) for one in styles.values() for rule in rules]
    found.append(weather([picture for picture in pictures if picture["style"] == "meteocons"]))
    for changes in found:
        for source, target, instructions, kind in changes:
            if source["id"] != target["id"] and source["split"] == target["split"]:
                edit = Edit(source["id"], target["id"], instructions, kind, source["split"])
                edits[edit.source, edit.target, kind] = edit
    return list(edits.values())


def visible(edits: Iterable[Edit], thumbs: Mapping[str, NDArray[np.uint8]]) -> Iterator[Edit]:
    """Yield the edits whose two images differ visibly; `thumbs`: thumbnail pixels by id."""
    for edit in edits:
        source, target = (thumbs[name].astype(np.int16) for name in (edit.source, edit.target))
        if np.abs(source - target).mean() >= LEAST:
            yield edit


def restyled(drawn: Iterable[Mapping[str, About]]) -> Iterator[Change]:
    """Yield edits of an emoji from each style to each other style."""
    for styles in drawn:
        for source, target in permutations(styles, 2):
            if target == "circle-flags":
                told = ["make the flag round", "turn it into a round flag icon"]
            else:
                name = SHORT[target]
                told = [f"redraw this in {name} style", f"change the style to {name}"]
                told.append(f"make it look like a {name} emoji")
            yield styles[source], styles[target], told, "style"


def tones(emojis: Set) -> Iterator[Change]:
    """Yield edits between skin tones; emoji with two different tones are left out."""
    groups: dict[str, list[tuple[str, About]]] = defaultdict(list)
    for points, picture in emojis.items():
        parts = points.split("-")
        found = {part for part in parts if part in TONES}
        if len(found) < 2:
            rest = "-".join(part for part in parts if part not in TONES)
            groups[rest].append((TONES[found.pop()] if found else "", picture))
    for group in groups.values():
        for (_, source), (tone, target) in permutations(group, 2):
            told = [f"change the skin tone to {tone}", f"make the skin {tone}"]
            told.append(f"give it a {tone} skin tone")
            if not tone:
                told = ["remove the skin tone", "change the skin to the default yellow"]
                told.append("make the skin yellow")
            yield source, target, told, "skin tone"


def people(emojis: Set) -> Iterator[Change]:
    """Yield edits of gender or age, for emoji of a single person."""
    order = list(PEOPLE)
    for points, picture in emojis.items():
        first, *rest = points.split("-")
        if first not in PEOPLE or rest.count(JOINER) > 1 or any(part in PEOPLE for part in rest):
            continue
        for other, name in PEOPLE.items():
            target = emojis.get("-".join([other, *rest]))
            if other != first and target:
                whom = f"an {name}" if name.startswith("old") else f"a {name}"
                told = [f"make it {whom}", f"change the {PEOPLE[first]} to {whom}"]
                same_age = order.index(first) // 3 == order.index(other) // 3
                yield picture, target, told, "gender" if same_age else "age"


def signs(emojis: Set) -> Iterator[Change]:
    """Yield edits of gender, for emoji whose last code point is a gender sign."""
    names = {FEMALE: "woman", MALE: "man"}
    for points, picture in emojis.items():
        *rest, sign = points.split("-")
        if not rest or sign not in names:
            continue
        told = {one: [f"make it a {w}", f"change the person to a {w}"] for one, w in names.items()}
        other = MALE if sign == FEMALE else FEMALE
        if target := emojis.get("-".join([*rest, other])):
            yield picture, target, told[other], "gender"
        if neutral := emojis.get("-".join(rest[:-1])):
            yield picture, neutral, ["make the person gender neutral"], "gender"
            yield neutral, picture, told[sign], "gender"


def hair(emojis: Set) -> Iterator[Change]:
    """Yield edits of hair, for emoji whose last code point is a hair component."""
    for points, picture in emojis.items():
        *rest, sign = points.split("-")
        if sign not in HAIR:
            continue
        for other, name in HAIR.items():
            target = emojis.get("-".join([*rest, other]))
            if other != sign and target:
                yield picture, target, [f"give them {name}", f"change the hair to {name}"], "hair"
        if plain := emojis.get("-".join(rest[:-1])):
            yield plain, picture, [f"give them {HAIR[sign]}", f"add {HAIR[sign]}"], "hair"
            yield picture, plain, ["give them plain default hair"], "hair"


def directions(emojis: Set) -> Iterator[Change]:
    """Yield edits of direction: emoji face left unless their last code point is a right arrow."""
    for points, picture in emojis.items():
        *rest, sign = points.split("-")
        left = emojis.get("-".join(rest[:-1]))
        if sign == RIGHT and len(rest) > 1 and left:
            told = ["make it face right", "turn it to face right", "flip it to face right"]
            yield left, picture, told, "direction"
            yield picture, left, ["make it face left", "turn it to face left"], "direction"


def colours(emojis: Set) -> Iterator[Change]:
    """Yield edits between objects that differ in colour only."""
    groups: dict[str, list[tuple[str, About]]] = defaultdict(list)
    for picture in emojis.values():
        label = picture["label"].lower().replace("light blue", "light-blue").replace("gray", "grey")
        colour, _, thing = " ".join(label.split()).partition(" ")
        if colour in COLOURS and thing in COLOURED:
            groups[thing].append((colour.replace("-", " "), picture))
    for thing, group in groups.items():
        for (old, source), (new, target) in permutations(group, 2):
            told = [f"make the {thing} {new}", f"change the color to {new}"]
            yield source, target, [*told, f"recolor the {thing} from {old} to {new}"], "recolour"


def series(emojis: Set) -> Iterator[Change]:
    """Yield edits within series: clock times, moon phases, arrows, keycaps, sides of the globe."""
    groups: dict[str, list[tuple[str, About]]] = defaultdict(list)
    for points, picture in emojis.items():
        label = picture["label"]
        if is_clock(points):
            groups["clock"].append((label, picture))
        elif MOON.match(label):
            groups["moon"].append((label, picture))
        elif ARROW.match(label):
            groups["arrow"].append((label.removesuffix(" arrow"), picture))
        elif label.startswith("keycap: "):
            groups["keycap"].append((label.removeprefix("keycap: "), picture))
        elif label.startswith("globe showing "):
            groups["globe"].append((label.removeprefix("globe showing "), picture))
    for kind, group in groups.items():
        for (_, source), (name, target) in permutations(group, 2):
            yield source, target, [told.format(name) for told in SERIES[kind]], kind


def is_clock(points: str) -> bool:
    """Return whether an emoji is a clock face."""
    return int(points.split("-")[0], 16) in CLOCKS


def cats(emojis: Set) -> Iterator[Change]:
    """Yield edits between a face and the cat face of the same expression."""
    labels = {picture["label"]: (points, picture) for points, picture in emojis.items()}
    for label, (points, cat) in labels.items():
        before, found, after = label.rpartition("cat")
        if not found or not (cat["subgroup"] == "cat face" or points.startswith("1f63")):
            continue
        if other := labels.get(f"{before}face{after}".strip()):
            face = other[1]
            yield face, cat, ["turn the face into a cat", "make it a cat"], "cat face"
            told = ["turn the cat into a human smiley", "make it a plain smiley face"]
            yield cat, face, told, "cat face"


def weather(pictures: Iterable[About]) -> Iterator[Change]:
    """Yield edits between the day and night versions of weather icons."""
    icons = {picture["id"]: picture for picture in pictures}
    turns: tuple[tuple[str, str, str], ...] = (
        ("day", "night", "make it night"),
        ("night", "day", "make it daytime"),
    )
    for name, picture in icons.items():
        for old, new, told in turns:
            target = icons.get(name.replace(f"-{old}", f"-{new}", 1))
            if f"-{old}" in name and target:
                yield picture, target, [told, f"change the weather icon to {new}"], "day/night"
