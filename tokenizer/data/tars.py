"""Untrusted WebDataset tars -> samples: the bytes of an image with its metadata.

Data path: tars -> `read_samples` -> a selection of samples -> `decode` -> a training corpus or an
evaluation split. Tars are read member by member and never unpacked; only regular files with the
extensions below are opened. Damaged or invalid members are skipped and recorded in a `Tally`, so
that one bad member in a million neither stops a run nor goes unnoticed.
"""

import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from operator import iadd
from pathlib import Path
from typing import Any, cast

from PIL import Image

from tokenizer.errors import UserError
from tokenizer.pixels import MAX_BYTES, fit, open_image

Say = Callable[[str], None]

PICTURE = "picture"
MAX_TEXT_BYTES = 1_000_000
# file extension -> part of a sample
ENDINGS = {**dict.fromkeys(("jpg", "jpeg", "png", "webp"), PICTURE), "json": "json", "txt": "txt"}
MOST_ENDINGS = 100  # other extensions counted separately; untrusted input may have any number

Member = tuple[str, str, bytes]  # key, part, content


@dataclass
class Tally:
    """Counts of items that were read, excluded or skipped."""

    pictures: int = 0
    excluded: int = 0
    """Images excluded by id."""
    outside: int = 0
    """Documents left out because one of their images is missing."""
    known: int = 0
    """Images that a memory already held."""
    mute: int = 0
    """Images without a caption."""
    ignored: Counter[str] = field(default_factory=Counter[str])
    """Files of other kinds, by extension, which are never opened. Also items of a dataset other
    than images."""
    skipped: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    """Damaged items, as (what, why)."""

    def skip(self, what: str, why: object) -> None:
        """Record a damaged item."""
        self.skipped.append((what, str(why)))

    def ignore(self, ending: str) -> None:
        """Count a file of another kind."""
        shown = f".{ending[:12].lower()}" if ending else "without ending"
        new = shown not in self.ignored and len(self.ignored) >= MOST_ENDINGS
        self.ignored["of more kinds" if new else shown] += 1

    def add(self, other: "Tally") -> None:
        """Add the counts of another tally."""
        for item in fields(self):
            setattr(self, item.name, iadd(getattr(self, item.name), getattr(other, item.name)))

    def tell(self, say: Say, most: int = 20) -> None:
        """Report the counts, and name up to `most` damaged items."""
        say(
            f"{self.pictures:,} images read, {self.excluded:,} left out by id, "
            f"{len(self.skipped):,} damaged things skipped"
        )
        if self.outside:
            say(f"{self.outside:,} documents left out: an image of theirs is not there")
        if self.known:
            say(f"{self.known:,} were there before")
        if self.mute:
            say(f"{self.mute:,} have no caption")
        if self.ignored:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.ignored.most_common())
            say(f"{self.ignored.total():,} of other kinds ignored ({kinds})")
        for what, why in self.skipped[:most]:
            say(f"skipped {what}: {why}")
        if len(self.skipped) > most:
            say(f"... and {len(self.skipped) - most:,} more")


@dataclass(frozen=True)
class Sample:
    """Image as stored in a tar, not yet decoded."""

    name: str
    """`shard/KEY`, used in error messages."""
    metadata: dict[str, Any]
    """`id`, `captions` (possibly empty), and all other fields of its JSON."""
    picture: bytes


def find_tars(place: str | Path, start: str = "") -> list[Path]:
    """Return the tars in a folder (whose names begin with `start`) or of a glob, sorted by name.

    Raises UserError if there are none.
    """
    path = Path(place)
    pattern = path / f"{start}*.tar" if path.is_dir() else path
    found = sorted(pattern.parent.glob(pattern.name))
    if not found:
        raise UserError(f"no tar is found as {str(pattern)!r}; name a folder of tars, or a glob")
    return found


def read_ids(path: Path | str) -> frozenset[str]:
    """Read the image ids in a text file, one per line. Raises UserError if it cannot be read."""
    try:
        return frozenset(Path(path).read_text("utf-8").splitlines()) - {""}
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable list of ids ({error})") from error


def read_samples(tars: Sequence[Path], tally: Tally) -> Iterator[Sample]:
    """Yield all complete samples of the tars, in order, with distinct ids.

    A sample is a run of members with the same name before the first dot: an image, and a JSON
    object or a text file (the caption). Its id is the JSON's, or else `shard/KEY`.
    Raises UserError for a file that is missing or is not a tar.
    """
    for tar in tars:
        if not tar.is_file():
            raise UserError(f"{tar}: no such tar file")
    ids: set[str] = set()
    for tar in tars:
        yield from whole_samples(_members(tar, tally), ids, tally)


def whole_samples(members: Iterable[Member], ids: set[str], tally: Tally) -> Iterator[Sample]:
    """Yield the samples formed by adjacent members of one key, except those whose id is in `ids`;
    their ids are added to `ids`."""
    for key, parts in _groups(members, tally):
        try:
            sample = _sample(key, parts)
        except UserError as error:
            tally.skip(key, error)
            continue
        if sample.metadata["id"] in ids:
            tally.skip(key, f"an earlier image has its id {sample.metadata['id']!r}")
            continue
        ids.add(sample.metadata["id"])
        yield sample


def decode(
    samples: Iterable[Sample], tally: Tally, size: int | None = None
) -> Iterator[tuple[dict[str, Any], Image.Image]]:
    """Yield metadata and image of each sample, `size` x `size` or (None) in its own size; damaged
    images are recorded in `tally` and skipped."""
    for sample in samples:
        try:
            image = open_image(sample.picture)
        except UserError as error:
            tally.skip(sample.name, error)
            continue
        tally.pictures += 1
        yield sample.metadata, image if size is None else fit(image, size)


def _groups(members: Iterable[Member], tally: Tally) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Group adjacent members of one key, by part."""
    key, parts = "", dict[str, bytes]()
    for member_key, part, data in members:
        if member_key != key:
            if parts:
                yield key, parts
            key, parts = member_key, {}
        if part in parts:
            tally.skip(key, f"has a second {part}; the first is used")
        parts.setdefault(part, data)
    if parts:
        yield key, parts


def _members(tar: Path, tally: Tally) -> Iterator[Member]:
    """Yield the members that belong to samples; their keys begin with the tar's name."""
    damaged = "damaged or cut short here; the rest of this tar was not read"
    with _open(tar) as archive:
        try:
            last = -1
            for member in archive:
                if member.offset <= last:  # a negative size would cause an endless loop
                    raise tarfile.ReadError("goes backwards")
                last = member.offset
                if member.isdir():
                    continue
                shown = printable(member.name)
                folder, _, name = shown.rpartition("/")
                stem, _, ending = name.partition(".")
                part = ENDINGS.get(ending.lower())
                if part is None:
                    tally.ignore(ending)
                    continue
                why = refusal(part, member.isreg() and not member.issparse(), member.size)
                if why:
                    tally.skip(f"{tar.stem}/{shown}", why)
                    continue
                file = archive.extractfile(member)
                assert file is not None
                key = f"{folder}/{stem}".lstrip("/")
                yield f"{tar.stem}/{key}", part, file.read()
        # Bad numbers in headers make tarfile raise almost any exception: its own errors,
        # ValueError, OverflowError, MemoryError, RecursionError ... All mean the same to the user.
        except Exception:
            tally.skip(tar.name, damaged)
            return
        end = archive.offset
    # tarfile treats a broken header after the first as the end: check for the end-of-archive mark.
    with tar.open("rb") as file:
        file.seek(end)
        if any(file.read(tarfile.BLOCKSIZE) or b"cut"):
            tally.skip(tar.name, damaged)


def printable(name: str) -> str:
    """Return an untrusted name, which may hold any bytes, so that it can be printed and become an
    id."""
    return "".join(c if c.isprintable() else "\ufffd" for c in name)


def refusal(part: str, is_plain: bool, size: int) -> str:
    """Return the reason why a file of `size` bytes is not opened for this part; empty if it is."""
    if not is_plain:
        return "not a plain file"
    limit = MAX_BYTES if part == PICTURE else MAX_TEXT_BYTES
    return f"{size:,} bytes; at most {limit:,}" if size > limit else ""


def _open(tar: Path) -> tarfile.TarFile:
    try:
        # Uncompressed only, so that a small file cannot expand; not "r|", which reads block by
        # block through the terabytes that a damaged header may claim.
        return tarfile.open(tar, "r:")
    except OSError as error:
        raise UserError(f"{tar}: cannot be read ({error.strerror})") from error
    except Exception as error:  # as in _members
        raise UserError(f"{tar}: not an uncompressed tar file ({error})") from error


def _sample(name: str, parts: dict[str, bytes]) -> Sample:
    if PICTURE not in parts:
        raise UserError("no image stands beside it")
    if parts.keys() == {PICTURE}:
        # Its JSON may have been cut off; without its true id it could bypass a held-out list.
        raise UserError("no .json or .txt stands beside it")
    try:
        table: object = json.loads(parts["json"]) if "json" in parts else {}
        text = parts.get("txt", b"").decode("utf-8")
        json.dumps(table, ensure_ascii=False).encode("utf-8")  # rejects lone surrogates
    except (ValueError, RecursionError) as error:
        raise UserError(f"its text is damaged ({error})") from error
    if not isinstance(table, dict):
        raise UserError("its JSON is not an object")
    metadata = cast("dict[str, Any]", table)
    picture_id = metadata.pop("id", name)
    if isinstance(picture_id, bool) or not isinstance(picture_id, str | int) or picture_id == "":
        raise UserError(f"its id is {picture_id!r}, not a text")
    captions = _captions(metadata.pop("caption", None), metadata.pop("captions", []), text)
    metadata = {"id": str(picture_id), "captions": captions, **metadata}
    return Sample(name, metadata, parts[PICTURE])


def _captions(first: object, others: object, text: str) -> list[str]:
    """Return the distinct captions, `first` first; `text` is used only if the JSON has none."""
    if not isinstance(first, str | None) or not isinstance(others, list):
        raise UserError("its captions are not texts")
    captions = [first or "", *cast("list[object]", others)]
    if not all(isinstance(caption, str) for caption in captions):
        raise UserError("its captions are not texts")
    stripped = [caption.strip() for caption in cast("list[str]", captions)]
    return list(dict.fromkeys(caption for caption in stripped if caption)) or [
        line for line in [text.strip()] if line
    ]
