"""`cm3leon data emoji`: build the corpus of the default models from npm and Debian packages.

Packages (`fetch.py`) and names (`names.py`) give a part for every style (`styles.py`, `clipart.py`,
`draw.py`, `parts.py`); the parts give tars of captioned images, edits (`edits.py`), questions
(`questions.py`) and the held-out ids, in one folder for `data encode`.

The splits are by family: an emoji is in the same split in every style, tone and gender. The default
models were also trained on photos of groceries, which are in no package registry and are not part
of this corpus.
"""

import gzip
import io
import json
import random
import re
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tokenizer import config as settings
from tokenizer.data.tars import Say
from tokenizer.errors import UserError
from tokenizer.manifest import check_writable, new_folder
from train.emoji.clipart import clipart_drawings
from train.emoji.draw import SIZE, About, Drawing, check_rasteriser
from train.emoji.edits import make_edits, visible
from train.emoji.fetch import DEBIAN, NPM, PACKAGES, Package, fetch, read_texts
from train.emoji.names import Names, read_names
from train.emoji.parts import Painted, Painter, painter, part_name, read_part, write_part
from train.emoji.questions import make_questions
from train.emoji.styles import EMOJI, ICONS, NAMED_BY, drawings

NO_FAMILY = "-"  # the empty family, of the skin tone swatches
HELD_OUT: dict[str, str] = settings.read(Path(__file__).with_name("held_out.yaml"))  # type: ignore[assignment]
SPLITS = ("train", "val", "test")
OF_TAR = 4096  # images per tar
SHUFFLE = 7  # seed of the order within a split
OURS = re.compile(r"\.?part-[0-9a-f]{16}")  # the dot: temporary folder of a killed run
NAMES, CLIPART, SPARES = "emojibase-data", "openclipart-svg", "openclipart-png"
OPENCLIPART = "openclipart"  # name of the style


def main(
    out: Path,
    packages: Path | None = None,
    *,
    npm: str = NPM,
    debian: str = DEBIAN,
    jobs: int | None = None,
    say: Say,
) -> Path:
    """Write the corpus to the folder `out` and return it.

    packages: folder that the packages are in or are downloaded to, OUT.packages by default. npm,
    debian: addresses of a registry and a mirror. jobs: processes that render images, one per core
    by default. A restarted run keeps what is finished. Raises UserError if a package cannot be
    obtained or the result cannot be written.
    """
    check_writable(out)
    rasteriser = check_rasteriser()
    packages = packages or out.with_name(f"{out.name}.packages")
    parts = out.with_name(f"{out.name}.parts")
    for folder in (packages, parts):
        _make_room(folder)
    strange = [path.name for path in parts.iterdir() if not OURS.match(path.name)]
    if strange:
        raise UserError(f"{parts} is for parts but holds {strange[0]!r}; name another --out")
    files = {name: fetch(package, packages, npm, debian, say) for name, package in PACKAGES.items()}
    with painter(jobs) as paint_all:
        folders = paint_styles(files, parts, rasteriser, paint_all, say)
    pictures = [picture for folder in folders for picture in read_part(folder)]
    with new_folder(out) as aside:
        counts = write_corpus(aside, pictures)
    say(", ".join(f"{count:,} {what}" for what, count in counts.items()))
    for path in list(parts.iterdir()):
        shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        parts.rmdir()
    return out


def paint_styles(
    files: Mapping[str, Path], parts: Path, rasteriser: str, paint_all: Painter, say: Say
) -> list[Path]:
    """Write a part for every style, except those that exist; return the folders in order."""
    names = names_of(files)
    every: list[tuple[str, list[str], Iterable[Drawing]]] = [
        (style.name, [style.package], drawings(style, files[style.package], names))
        for style in (*EMOJI, *ICONS)
    ]
    art = clipart_drawings(files[CLIPART], files[SPARES], names)
    every.append((OPENCLIPART, [CLIPART, SPARES], art))
    folders: list[Path] = []
    for style, packages, found in every:
        folders.append(parts / part_name(style, [NAMES, *NAMED_BY, *packages], rasteriser))
        say(f"{style} ...")
        write_part(folders[-1], found, paint_all, say, once=style == OPENCLIPART)
    return folders


def names_of(files: Mapping[str, Path]) -> Names:
    """Return the names of all emoji, read from these packages."""
    data, messages = read_texts(files[NAMES], ["en/data.json", "en/messages.json"])
    return read_names(
        data, messages, [read_texts(files[name], ["chars.json"])[0] for name in NAMED_BY]
    )


def write_corpus(folder: Path, pictures: Sequence[Painted]) -> dict[str, int]:
    """Write the files of a corpus; return the counts of their content."""
    abouts = [picture.about for picture in pictures]
    assert len({about["id"] for about in abouts}) == len(abouts)
    for split in SPLITS:
        some = [picture for picture in pictures if picture.about["split"] == split]
        random.Random(SHUFFLE).shuffle(some)
        for number, start in enumerate(range(0, len(some), OF_TAR)):
            write_tar(folder / f"{split}-{number:05}.tar", some[start : start + OF_TAR])
    thumbs = {picture.about["id"]: picture.thumb for picture in pictures}
    edits = [asdict(edit) for edit in visible(make_edits(abouts), thumbs)]
    questions = [asdict(question) for question in make_questions(abouts)]
    write_lines(folder / "edits.jsonl.gz", edits)
    write_lines(folder / "questions.jsonl.gz", questions)
    held_out = sorted(about["id"] for about in abouts if is_kept_from_training(about))
    (folder / "heldout-pairs.txt").write_text("".join(f"{name}\n" for name in held_out), "utf-8")
    (folder / "NOTICE.md").write_text(notice(abouts), "utf-8")
    counts = {"pictures": len(abouts), "edits": len(edits), "questions": len(questions)}
    return {**counts, "ids held out": len(held_out)}


def is_kept_from_training(about: About) -> bool:
    """Return whether an image of the train split is of a held-out pair of style and family."""
    if about["kind"] != "emoji" or about["split"] != "train":
        return False
    families = HELD_OUT.get(about["style"], "").split()
    return (about["family"] or NO_FAMILY) in families


def write_tar(path: Path, pictures: Iterable[Painted]) -> None:
    """Write a WebDataset tar: KEY.webp and KEY.json of every image; the bytes are reproducible."""
    with tarfile.open(path, "w") as tar:
        for picture in pictures:
            told = {
                k: v for k, v in picture.about.items() if k != "split" and v not in ("", [], None)
            }
            text = json.dumps(told, sort_keys=True, ensure_ascii=False)
            key = re.sub("[^A-Za-z0-9_-]", "_", picture.about["id"])
            for ending, data in (("webp", picture.webp), ("json", text.encode())):
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write gzipped JSON lines; the bytes are reproducible."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def notice(abouts: Iterable[About]) -> str:
    """Return the attribution and licence notice, to ship with all models trained on the corpus."""
    counts = Counter(about["source"] for about in abouts)
    styles = {style.package: style.name for style in (*EMOJI, *ICONS)}

    def row(name: str, package: Package) -> str:
        style = styles.get(name, "names and keywords" if name == NAMES else OPENCLIPART)
        count = f"{counts[package.source]}" if package.source in counts else "-"
        cells = (style, package.source, package.authors, package.licence, count, package.sha256)
        return f"| {' | '.join(cells)} |"

    return "\n".join(
        [
            "# Attribution for the image-text corpus (data, not code)",
            "",
            "| style | source | authors | licence | images | SHA-256 of the package |",
            "|---|---|---|---|---|---|",
            *(row(name, package) for name, package in PACKAGES.items()),
            "",
            f"Changes made: drawn as {SIZE}x{SIZE} RGB on white; clip art cropped to what is",
            "drawn; captions, edits and questions assembled from names and keywords, which are",
            "Unicode's (CLDR), through emojibase. Each image's JSON names its source, licence",
            "and whom to thank. No photos are in this corpus.",
            "",
        ]
    )


def _make_room(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot use the folder {folder}: {error.strerror}") from error
