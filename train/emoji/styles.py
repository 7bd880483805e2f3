"""Drawings and metadata of the emoji styles and icon sets from npm.

`drawings` reads a style's package with the help of `Names`; `draw.py` renders the drawings. Seven
sets of emoji and eight of icons are in Iconify's format, one JSON of SVG bodies; one set is WebP
files. An icon whose name matches no emoji is left out of an emoji style.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizer import config as settings
from train.emoji.draw import About, Drawing
from train.emoji.fetch import PACKAGES, read_members, read_texts
from train.emoji.names import Emoji, Names, captions, family, normal, split_of, with_article

INK = "#212121"  # `currentColor` of the icons
OTHERS = "cm3leon-extra:"  # salt of the splits of images that are not emoji
NAMED_BY = ("noto", "twemoji", "fluent-emoji-flat")  # packages whose icon names extend `Names`
ASSETS = "package/assets/"
# Brand names: their icons are left out of the icon sets.
MARKS = re.compile(
    r"\b(linkedin|facebook|twitter|instagram|google|visa|mastercard|paypal|dribbble|stumbleupon|"
    r"youtube|android|github|gitlab|tiktok|whatsapp|skype|spotify|amazon|alipay|wechat|taobao|"
    r"faceu|weibo|qq|bytedance|toutiao|xigua|figma|sketch app|safari|chrome|windows|apple one|"
    r"iphone|ipad|zoom|logo)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class Style:
    """Name, package, credit and caption phrases of one set."""

    name: str
    package: str
    credit: str
    phrases: tuple[str, ...]
    short: str = ""
    """Name of the style in edits and questions; empty if it has none there."""


@dataclass(frozen=True, kw_only=True)
class _Styles:
    emoji: tuple[Style, ...]
    icons: tuple[Style, ...]


_ALL = settings.load(_Styles, Path(__file__).with_name("styles.yaml"))
EMOJI, ICONS = _ALL.emoji, _ALL.icons
SHORT = {style.name: style.short for style in (*EMOJI, *ICONS) if style.short}


def drawings(style: Style, path: Path, names: Names) -> Iterator[Drawing]:
    """Yield the drawings of one style's package `path`, each id once."""
    if style in ICONS:
        (icons,) = read_texts(path, ["icons.json"])
        yield from icon_drawings(style, icons, names)
    elif style.name == "fluent-3d":
        yield from file_drawings(style, path, names)
    else:
        icons, characters = read_texts(path, ["icons.json", "chars.json"])
        yield from emoji_drawings(style, icons, characters, names)


def emoji_drawings(
    style: Style, icons: dict[str, Any], characters: dict[str, str], names: Names
) -> Iterator[Drawing]:
    """Yield the emoji of a set whose table `characters` has the code points of most icons.

    Of two icons for one emoji the first is used; a name in another spelling is used only if there
    is no other icon.
    """
    told: dict[str, str] = {}
    for character, icon in characters.items():
        if normal(character) in names.emojis:
            told.setdefault(icon, normal(character))
    seen: set[str] = set()

    def match(icon: str) -> str | None:
        return told.get(icon) or names.find_squashed(icon)

    left = [icon for icon in icons["icons"] if not match(icon)]
    rounds: tuple[tuple[list[str], Callable[[str], str | None]], ...] = (
        (list(icons["icons"]), match),
        (left, names.find_respelt),
    )
    for some, find in rounds:
        for icon in some:
            points = find(icon)
            if points and points not in seen:
                seen.add(points)
                svg, wide = _svg(icons, icon)
                about = _emoji_about(style, names.emojis[points])
                yield Drawing(about=about, data=svg, wide=wide)


def file_drawings(style: Style, path: Path, names: Names) -> Iterator[Drawing]:
    """Yield the emoji of a set of image files that are named by code points."""
    seen: set[str] = set()
    for name, data in sorted(read_members(path, lambda name: name.startswith(ASSETS))):
        points = normal(name.removeprefix(ASSETS).rpartition(".")[0])
        if points in names.emojis and points not in seen:
            seen.add(points)
            yield Drawing(about=_emoji_about(style, names.emojis[points]), data=data)


def icon_drawings(style: Style, icons: dict[str, Any], names: Names) -> Iterator[Drawing]:
    """Yield the icons of a set, some of which are emoji or flags too, without brand icons."""
    sized = style.name == "fluent-color-icon"  # most icons have several sizes; use the largest
    seen: set[str] = set()
    for icon in sorted(icons["icons"], key=_size, reverse=True) if sized else icons["icons"]:
        plain = re.sub(r"-\d+$", "", icon)
        if icons["icons"][icon].get("hidden") or (sized and plain in seen):
            continue
        seen.add(plain)
        emoji, words = _meaning(style, icon, plain, names)
        is_flag = style.name == "circle-flags"
        if is_flag and emoji is None:
            continue
        if not is_flag and (MARKS.search(words) or not re.search("[a-z]{3}", plain)):
            continue
        svg, wide = _svg(icons, icon, f' color="{INK}"')
        yield Drawing(about=_icon_about(style, icon, words, emoji), data=svg, wide=wide)


def _size(icon: str) -> int:
    found = re.search(r"-(\d+)$", icon)
    return int(found[1]) if found else 0


def _meaning(style: Style, icon: str, plain: str, names: Names) -> tuple[Emoji | None, str]:
    """Return the emoji that an icon depicts, if any, and the icon's name in words."""
    words = plain.replace("-", " ")
    match style.name:
        case "circle-flags":  # named by two-letter country codes
            letters = [f"{0x1F1E6 + ord(letter) - ord('a'):x}" for letter in icon]
            emoji = names.emojis.get("-".join(letters)) if len(icon) == 2 else None
            return emoji, emoji.label.replace("flag: ", "flag of ") if emoji else words
        case "streamline-emojis":
            by_name = names.slugs.get(icon) or names.slugs.get(plain)
            points = by_name or names.icons.get(icon) or names.icons.get(plain)
            if points:
                emoji = names.emojis[points]
                return emoji, emoji.label.replace(":", ",")
            return None, words
        case "meteocons":
            return None, re.sub("-fill$", "", plain).replace("-", " ")
        case _:
            return None, words


def _emoji_about(style: Style, emoji: Emoji) -> About:
    lines = captions(emoji, style.phrases)
    return {
        "id": f"{style.name}_{emoji.points}",
        "caption": lines[0],
        "captions": lines,
        "label": emoji.label,
        "tags": emoji.tags,
        "group": emoji.group,
        "subgroup": emoji.subgroup,
        "codepoint": emoji.codepoint,
        "family": family(emoji.points),
        "kind": "emoji",
        "split": split_of(family(emoji.points)),
        **_source(style),
    }


def _icon_about(style: Style, icon: str, words: str, emoji: Emoji | None) -> About:
    phrase = style.phrases[0]
    kin = family(emoji.points) if emoji else ""
    lines = [
        f"{words}, {phrase}",
        words,
        f"{with_article(phrase)} showing {words}",
        f"a picture of {words}, {phrase}",
    ]
    return {
        "id": f"{style.name}_{icon}",
        "caption": lines[0],
        "captions": lines,
        "label": words,
        "tags": emoji.tags if emoji else [],
        "group": "icon",
        "subgroup": style.name,
        "codepoint": emoji.codepoint if emoji else None,
        "family": kin or f"icon:{words}",
        "kind": "icon",
        "split": split_of(kin) if kin else split_of(words, OTHERS),
        **_source(style),
    }


def _source(style: Style) -> dict[str, str]:
    package = PACKAGES[style.package]
    told = {"style": style.name, "source": package.source, "credit": style.credit}
    return {**told, "licence": package.licence}


def _svg(icons: dict[str, Any], icon: str, more: str = "") -> tuple[str, bool]:
    """Return an icon of a set as a complete SVG, and whether it is at least as wide as high."""
    one = icons["icons"][icon]
    width, height = (one.get(side, icons.get(side, 16)) for side in ("width", "height"))
    box = f"{one.get('left', 0)} {one.get('top', 0)} {width} {height}"
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    start = f'<svg {spaces} viewBox="{box}" width="{width}" height="{height}"{more}>'
    return f"{start}{one['body']}</svg>", width >= height
