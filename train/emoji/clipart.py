"""Drawings and metadata of Debian's Open Clip Art packages.

`clipart_drawings` reads the packages openclipart-svg and -png; `draw.py` renders the drawings. The
second package has PNG images of the first; they replace the many drawings of old programs whose
size is in points or millimetres, which resvg refuses. The metadata is each drawing's own, written
by many authors: only drawings marked as public domain are used, and an uninformative title is
replaced by the words of the file name.
"""

import hashlib
import html
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from train.emoji.draw import About, Drawing
from train.emoji.fetch import PACKAGES, read_members
from train.emoji.names import Names, split_of
from train.emoji.styles import OTHERS

ROOT, SPARE_ROOT = "./usr/share/openclipart/svg/", "./usr/share/openclipart/png/"
LARGEST = 900_000  # bytes of a drawing; larger ones are left out
HEAD = 60_000  # characters of a drawing that are searched for its metadata
COMMON = 6  # a title that more drawings share is uninformative
VAGUE = re.compile(
    r"collection|clipart|clip art|theme|HASH|iconset|AIGA|Etiquette|gramastar|untitled|^icons?$|"
    r"svg|^card$|cliparts|^shapes?$|example|^\d+$",
    re.IGNORECASE,
)
UNWANTED = re.compile(
    r"shapes/stars|logos|buttons|computer/icons|recreation/games/cards|shapes/gradient|"
    r"computer/.*theme|shapes/jigsaw"
)
EMPTY_WORDS = {"clipart", "clip", "art", "icon", "svg"}


@dataclass(frozen=True, kw_only=True)
class Art:
    """One public-domain drawing with its author's metadata."""

    path: str
    """Path relative to ROOT, without its extension."""
    svg: str
    title: str
    description: str
    keywords: list[str]
    creator: str


def clipart_drawings(path: Path, spare: Path, names: Names) -> Iterator[Drawing]:
    """Yield the drawings of the package `path` that have a usable name, ordered by path, each with
    its PNG image from the package `spare`."""
    members = read_members(path, lambda name: name.startswith(ROOT) and name.endswith(".svg"))
    small = ((name, data) for name, data in members if len(data) <= LARGEST)
    read = (read_art(name[len(ROOT) : -len(".svg")], data) for name, data in small)
    arts = sorted((art for art in read if art), key=lambda art: f"{art.path}.svg")
    titles = Counter(art.title for art in arts)
    known = vocabulary(arts, names)
    links: dict[str, str] = {}  # many drawings are linked from a second folder
    spares = dict(read_members(spare, lambda name: name.startswith(SPARE_ROOT), links=links))
    for art in arts:
        label = "" if UNWANTED.match(art.path) else name_of(art, titles[art.title], known)
        if label:
            name = f"{SPARE_ROOT}{art.path}.png"
            yield Drawing(
                about=about_art(art, label),
                data=art.svg,
                spare=spares.get(links.get(name, name), b""),
                wide=is_wide(art.svg),
                cropped=True,
            )


def read_art(path: str, data: bytes) -> Art | None:
    """Parse a drawing's metadata; return None if it is not marked as public domain."""
    svg = data.decode("utf-8", "ignore")
    metadata = _first(r"(<metadata.*?</metadata>)", svg[:HEAD])
    if "ublic" not in _first(r'cc:license rdf:resource="([^"]*)"', metadata):
        return None
    keywords = [
        _plain(word).lower() for word in re.findall(r"<rdf:li>(.*?)</rdf:li>", metadata, re.DOTALL)
    ]
    return Art(
        path=path,
        svg=svg,
        title=_plain(_first(r"<dc:title>(.*?)</dc:title>", metadata)),
        description=_plain(_first(r"<dc:description>(.*?)</dc:description>", metadata)),
        keywords=[word for word in keywords if word and "hash" not in word and len(word) < 30],
        creator=_plain(_first(r"<dc:creator>.*?<dc:title>(.*?)</dc:title>", metadata)),
    )


def vocabulary(arts: Sequence[Art], names: Names) -> set[str]:
    """Return the known words: those of emoji names and tags, and of titles and keywords."""
    words: set[str] = set()
    for emoji in names.emojis.values():
        words.update(re.findall("[a-z]{3,}", f"{emoji.label} {' '.join(emoji.tags)}".lower()))
    for art in arts:
        words.update(re.findall("[a-z]{4,}", f"{art.title} {' '.join(art.keywords)}".lower()))
    return words


def name_of(art: Art, same: int, known: set[str]) -> str:
    """Return a name for a drawing, empty if there is none; `same`: number of drawings with its
    title."""
    authors = _authors(art)

    def tells(word: str) -> bool:
        of_author = len(word) > 2 and any(author.startswith(word) for author in authors)
        return len(word) > 2 and word in known and word not in EMPTY_WORDS and not of_author

    words = re.findall("[a-z]+", art.path.rpartition("/")[2].lower())
    told = [word for word in words if word not in authors and tells(word)]
    title = art.title
    good = title and same <= COMMON and not VAGUE.search(title) and len(title) < 90
    name = re.sub("_+", " ", title if good else " ".join(told))
    name = re.sub(r"\s*\d+$", "", name).strip()
    if not re.search("[A-Za-z]{3}", name) or (len(name) < 5 and not told):
        return ""
    capital = name[:2].istitle() or name.istitle()
    return name[0].lower() + name[1:] if capital else name


def about_art(art: Art, name: str) -> About:
    """Return a drawing's metadata and captions."""
    creator, authors = art.creator.lower(), _authors(art)
    folders = [part.replace("_", " ") for part in art.path.split("/")[:-1]]
    folders = [part for part in folders if part not in ("unsorted", "special")]
    tags = [
        tag
        for tag in dict.fromkeys([*art.keywords, *folders])
        if tag not in authors
        and tag.lower() not in name.lower()
        and re.search("[a-z]{3}", tag)
        and not (creator and tag in creator)
    ][:5]
    tags = [tag.replace("_", " ") for tag in tags if "united_nations" not in tag]
    is_flag = "signs_and_symbols/flags" in art.path and "flag" not in name.lower()
    label = f"flag of {name}" if is_flag else name
    lines = [f"{label}, clip art", label, f"a clip art drawing of {label}"]
    if tags:
        lines.append(f"{label} ({', '.join(tags[:4])}), clip art")
    if _says_more(art.description, name):
        lines.append(art.description)
    package = PACKAGES["openclipart-svg"]
    number = hashlib.md5(art.path.encode(), usedforsecurity=False).hexdigest()[:10]
    return {
        "id": f"openclipart_{number}",
        "caption": lines[0],
        "captions": list(dict.fromkeys(lines)),
        "label": label,
        "tags": tags,
        "group": art.path.partition("/")[0],
        "subgroup": "/".join(folders),
        "codepoint": None,
        "family": f"clip:{name.lower()}",
        "style": "openclipart",
        "kind": "clipart",
        "split": split_of(name.lower(), OTHERS),
        "source": package.source,
        "credit": f"Open Clip Art Library: {art.creator}".strip(": "),
        "licence": "CC-PDDC (public domain)",
    }


def is_wide(svg: str) -> bool:
    """Return whether a drawing is at least as wide as high."""
    start = _first(r"(<svg\b[^>]*>)", svg)
    number = r"[\d.eE]+"
    sides = re.search(
        rf"viewBox\s*=\s*[\"']\s*[-\d.eE]+[ ,]+[-\d.eE]+[ ,]+({number})[ ,]+({number})", start
    )
    found = (
        sides.groups()
        if sides
        else [_first(rf"\b{side}\s*=\s*[\"']([\d.]+)", start) for side in ("width", "height")]
    )
    try:
        width, height = (float(side) for side in found)
    except ValueError:
        return True
    return width >= height


def _says_more(description: str, name: str) -> bool:
    if VAGUE.search(description) or "clip art" in description:
        return False
    return 8 < len(description) < 160 and description.lower() != name.lower()


def _authors(art: Art) -> set[str]:
    return set(re.findall("[a-z]+", art.creator.lower()))


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.DOTALL)
    return found[1] if found else ""


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", html.unescape(text)).strip()
