"""Names of emoji: Unicode's names and keywords, and the spellings of the icon sets.

`Names` is read from emojibase's tables and maps an icon's name to code points, from which
`styles.py` takes label, tags, family, split and captions of an image.

Code points are lower case hexadecimal numbers joined by '-', without variation selectors, which do
not change the meaning: 2764-fe0f is 2764.
"""

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SELECTORS = {"fe0f", "fe0e"}
TONES = {
    "1f3fb": "light",
    "1f3fc": "medium-light",
    "1f3fd": "medium",
    "1f3fe": "medium-dark",
    "1f3ff": "dark",
}
# Joiner, female and male sign, four kinds of hair, facing right: ignored in the family.
UNTOLD = {*TONES, "200d", "2640", "2642", "1f9b0", "1f9b1", "1f9b2", "1f9b3", "27a1"}
# People who differ only by gender, or also by a beard -> the code point of one of them.
SAME = {
    "1f468": "1f9d1",
    "1f469": "1f9d1",
    "1f466": "1f9d2",
    "1f467": "1f9d2",
    "1f474": "1f9d3",
    "1f475": "1f9d3",
    "1f478": "1f934",
    "1f936": "1f385",
    "1f483": "1f57a",
    "1f470": "1f935",
    "1f930": "1fac4",
    "1fac3": "1fac4",
    "1f46b": "1f9d1",
    "1f46c": "1f9d1",
    "1f46d": "1f9d1",
}
TEST, VALIDATION = 5, 3  # percent of families
# Other spellings of some icon sets: pattern in the icon's name -> spelling of the tables.
SPELLINGS = (
    (r"^flag-for-flag-", "flag-"),
    (r"^flag-for-", "flag-"),
    (r"-button", "-button-blood-type"),
    (r"-(dark|light|medium|medium-dark|medium-light)$", r"-\1-skin-tone"),
    (r"adult-", "person-"),
    (r"bearded-person", "person-beard"),
    (r"blond-haired-person", "person-blond-hair"),
    (r"bride-with-veil", "person-with-veil"),
    (r"tone1$", "light-skin-tone"),
    (r"tone2$", "medium-light-skin-tone"),
    (r"tone3$", "medium-skin-tone"),
    (r"tone4$", "medium-dark-skin-tone"),
    (r"tone5$", "dark-skin-tone"),
)


@dataclass(frozen=True, kw_only=True)
class Emoji:
    """One emoji, independent of style."""

    points: str
    codepoint: str
    """Unicode's notation, with variation selectors: 2764-FE0F."""
    label: str
    tags: list[str]
    group: str
    subgroup: str


@dataclass(frozen=True)
class Names:
    """All emoji by code points, and tables from names to code points."""

    emojis: dict[str, Emoji] = field(default_factory=dict[str, Emoji])
    slugs: dict[str, str] = field(default_factory=dict[str, str])
    squashed: dict[str, str] = field(default_factory=dict[str, str])
    icons: dict[str, str] = field(default_factory=dict[str, str])
    """Icon names -> code points, from the icon sets that list both."""

    def find(self, icon: str) -> str | None:
        """Return the code points of an icon's name in the spelling of the tables, or None."""
        return self.slugs.get(icon) or self.icons.get(icon)

    def find_squashed(self, icon: str) -> str | None:
        """Return the result of `find`, or else the code points by letters and digits only."""
        return self.find(icon) or self.squashed.get(icon.replace("-", ""))

    def find_respelt(self, icon: str) -> str | None:
        """Return the result of `find` for the name rewritten by one of SPELLINGS, or None."""
        respelt = (self.find(re.sub(old, new, icon)) for old, new in SPELLINGS)
        return next((points for points in respelt if points), None)


def read_names(
    data: list[dict[str, Any]],
    messages: Mapping[str, list[dict[str, Any]]],
    characters: list[Mapping[str, str]],
) -> Names:
    """Build the names from emojibase's `data.json` and `messages.json` and the tables of icon sets
    (code points -> icon)."""
    groups = {group["order"]: group["message"] for group in messages["groups"]}
    subgroups = {group["order"]: group["message"] for group in messages["subgroups"]}
    names = Names()
    for entry in data:
        group = entry.get("group")
        tags: list[str] = entry.get("tags", [])
        about: dict[str, str] = {
            "group": "symbols & flags" if group is None else groups.get(group, ""),
            "subgroup": subgroups.get(entry.get("subgroup"), ""),
        }
        for one in (entry, *entry.get("skins", [])):
            points = normal(one["hexcode"])
            emoji = Emoji(
                points=points, codepoint=one["hexcode"], label=one["label"], tags=tags, **about
            )
            names.emojis[points] = emoji
    for points, emoji in names.emojis.items():
        names.slugs.setdefault(slug(emoji.label), points)
        names.squashed.setdefault(squash(emoji.label), points)
    for table in characters:
        for character, icon in table.items():
            points = normal(character)
            if points in names.emojis:
                names.icons.setdefault(icon, points)
    for points in names.emojis:
        own = "" if "-" in points else unicodedata.name(chr(int(points, 16)), "")
        if own:
            names.squashed.setdefault(squash(own), points)
    return names


def normal(codepoint: str) -> str:
    """Return normalised code points: `2764-FE0F` -> `2764`."""
    parts = re.split("[-_]", codepoint.lower())
    return "-".join(part.lstrip("0") or "0" for part in parts if part not in SELECTORS)


def family(points: str) -> str:
    """Return the code points without tone, gender, hair and direction. A family shares a split."""
    return "-".join(SAME.get(part, part) for part in points.split("-") if part not in UNTOLD)


def split_of(name: str, salt: str = "cm3leon-emoji:") -> str:
    """Return train, val or test from a hash of `name`: the same in every style and machine."""
    number = int(hashlib.sha256((salt + name).encode()).hexdigest(), 16) % 100
    return "test" if number < TEST else "val" if number < TEST + VALIDATION else "train"


def slug(name: str) -> str:
    """Return an ASCII slug: `Côte d'Ivoire` -> `cote-divoire`."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub("[^a-z0-9]+", "-", plain.replace("'", "")).strip("-")


def squash(name: str) -> str:
    """Return the letters and digits of a name."""
    return slug(name).replace("-", "")


def with_article(words: str) -> str:
    """Prefix the indefinite article: `icon` -> `an icon`."""
    return f"an {words}" if words[:1].lower() in "aeiou" else f"a {words}"


def captions(emoji: Emoji, phrases: tuple[str, ...]) -> list[str]:
    """Return the captions of an emoji in a style, first the one with the style's first phrase."""
    label, first = emoji.label.replace(":", ","), phrases[0]
    tags = [tag for tag in emoji.tags if tag.lower() not in emoji.label.lower()]
    lines = [f"{label}, {first}", label, f"an emoji of {label} in {phrases[-1]}"]
    if tags:
        lines.append(f"{label} ({', '.join(tags[:4])}), {phrases[len(phrases) // 2]}")
        lines.append(f"icon showing {', '.join(tags[:3])}: {label}")
    lines.append(f"a picture of {label}, {emoji.group.replace('-', ' ')}, {first}")
    return lines
