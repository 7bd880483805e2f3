"""`cm3leon data encode`: encode sources of images with an image tokenizer into token shards.

A source is a location of captioned images (`tokenizer/data/sources.py`) or a slice of a published
data set (`tokenizer/data/layouts.py`), which has documents as well as images. Each source becomes a
part, token shards of its own, in the folder OUT.parts; a restarted run keeps the finished parts.
`python -m torch.distributed.run --nproc-per-node N --module cm3leon data encode ...` distributes
the work: process r of N takes every N-th source, then process 0 gathers the parts in order. The
shards depend neither on the number of processes nor on interruptions.
"""

# Shapes: B = batch, 3 = RGB, H = height, W = width, L = codes per image

import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch

from cm3leon.pipeline import pick_device
from tokenizer.data.entries import Slice, documents_of, samples_of
from tokenizer.data.layouts import find_slices
from tokenizer.data.shard_writer import write_shards
from tokenizer.data.shards import Shards
from tokenizer.data.sources import COMMAND, URLS, find_sources, read_source
from tokenizer.data.tars import Sample, Tally, decode, read_ids
from tokenizer.distributed import DistributedContext, distributed_context
from tokenizer.errors import UserError
from tokenizer.image import ImageTokenizer, PictureEncoder
from tokenizer.manifest import MANIFEST, check_writable, new_folder, verify
from tokenizer.pixels import to_pixels
from tokenizer.text import TextTokenizer
from train.data.corpus import chosen, read_edits, read_questions
from train.data.documents import read_documents
from train.state import Say

SHARDS, TALLY = "shards", "tally.json"
OURS = re.compile(r"\.?part-[0-9a-f]{16}")  # the dot: temporary folder of a killed run
ENDS = 1 << 16  # bytes hashed at the start and at the end of a tar
MOST_BAD = 0.1  # largest accepted share of damaged items,
FEW = 100  # checked once at least this many items were read

Coded = tuple[dict[str, Any], list[int]]  # metadata and codes of an image
Source = str | Slice


@dataclass(frozen=True, kw_only=True)
class Work:
    """Settings of the encoding of each source.

    exclude: ids to leave out; keep: if given, the only ids to encode.
    """

    image_tokenizer: PictureEncoder
    exclude: Set[str] = frozenset()
    keep: Set[str] | None = None
    batch: int = 64
    device: torch.device | str = "cpu"

    @cached_property
    def choice(self) -> str:
        """Hash of `exclude` and `keep`."""
        return _digest([sorted(self.exclude), None if self.keep is None else sorted(self.keep)])

    def key(self, source: Source) -> str:
        """Return the name of a source's part, a hash of everything that its content depends on."""
        told = [str(source), _stamp(source), self.image_tokenizer.hash, self.choice]
        return f"part-{_digest(told)[:16]}"


def encode(
    sources: Sequence[Source],
    edits: Path | None,
    questions: Path | None,
    work: Work,
    out: Path,
    *,
    documents: Path | None = None,
    dist: DistributedContext = DistributedContext(),  # noqa: B008
    most_bad: float = MOST_BAD,
    text_tokenizer_hash: str | None = None,
    replace: bool = False,
    say: Say,
) -> dict[str, int]:
    """Write the token shards of `sources` to the folder `out`; return the counts.

    Only process 0 gathers the shards; the others return an empty dict. Documents: a pair for every
    image with a caption; those of slices and of the files `edits`, `questions` and `documents`
    whose images were all encoded. Raises UserError for a missing source, and if more than a share
    `most_bad` of one source, or of all of them, is damaged; finished parts are then kept.
    """
    assert work.image_tokenizer.hash, "save the image tokenizer first: shards carry its hash"
    for path in (edits, questions, documents):
        if path and not path.is_file():
            raise UserError(f"{path}: no such file")
    if not replace:
        check_writable(out)
    parts = _make_room(out.with_name(f"{out.name}.parts"), sources)
    folders = [parts / work.key(source) for source in sources]
    for source, folder in list(zip(sources, folders, strict=True))[dist.rank :: dist.size]:
        if not (folder / MANIFEST).is_file():
            _write_part(folder, source, work)
        tally = _read_tally(folder)
        say(f"{source}: {tally.pictures:,} images encoded")
        _check_share(str(source), tally, most_bad, say)
    dist.wait()
    if dist.rank:
        return {}
    tally = Tally()
    for folder in folders:
        tally.add(_read_tally(folder))
    _check_share("all sources", tally, most_bad, say)

    def told(ids: Set[str]) -> Iterator[dict[str, Any]]:
        yield from read_edits(edits, ids, tally)
        yield from read_questions(questions, ids, tally)
        yield from read_documents(documents, ids, tally, work.image_tokenizer.size)

    counts = _gather(folders, tally, told, work, out, text_tokenizer_hash, replace)
    tally.tell(say)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # it may hold parts of sources of an earlier command
        parts.rmdir()
    return counts


def _make_room(parts: Path, sources: Sequence[Source]) -> Path:
    """Create and return the folder of parts.

    Raises UserError if it cannot be created, lies within a source or has other content.
    """
    for source in sources:
        if isinstance(source, Slice) or not os.path.isdir(source):
            continue
        if Path(source).resolve() in parts.resolve().parents:
            raise UserError(f"{parts} would lie among the images of {source}; name another --out")
    try:
        parts.mkdir(exist_ok=True)
        strange = [path.name for path in parts.iterdir() if not OURS.match(path.name)]
    except OSError as error:
        raise UserError(f"cannot use the folder {parts}: {error.strerror}") from error
    if strange:
        raise UserError(f"{parts} is for parts but holds {strange[0]!r}; name another --out")
    return parts


def _write_part(folder: Path, source: Source, work: Work) -> None:
    """Write the images and documents of one source as token shards, and the tally of its reading.

    A source without images has no shards.
    """
    tally = Tally()
    entries = source.entries() if isinstance(source, Slice) else ()
    samples = (
        samples_of(source.images, entries, tally)
        if isinstance(source, Slice)
        else read_source(source, tally)
    )
    ids: set[str] = set()
    found = coded(samples, work, tally, ids)
    with new_folder(folder) as aside:
        first = next(found, None)
        if first is not None:
            documents = documents_of(entries, ids, tally)
            whole = chain([first], found)
            write_shards(aside / SHARDS, whole, documents, columns=False, **_about(work))
        else:
            tally.outside += sum(len(entry.documents) for entry in entries)
        told = {**vars(tally), "ignored": dict(tally.ignored)}
        (aside / TALLY).write_text(json.dumps(told), "utf-8")


def coded(samples: Iterator[Sample], work: Work, tally: Tally, ids: set[str]) -> Iterator[Coded]:
    """Yield metadata and codes of the images that `work` allows; add their ids to `ids`."""
    wanted = chosen(samples, work.exclude, work.keep, tally)
    decoded = decode(wanted, tally, work.image_tokenizer.size)
    while group := list(islice(decoded, work.batch)):
        pixels_B3HW = torch.stack([to_pixels(image) for _, image in group]).to(work.device)
        codes_BL = work.image_tokenizer.encode(pixels_B3HW).tolist()
        for (metadata, _), codes_L in zip(group, codes_BL, strict=True):
            ids.add(metadata["id"])
            yield metadata, codes_L


def _gather(
    folders: Sequence[Path],
    tally: Tally,
    told: Callable[[Set[str]], Iterator[dict[str, Any]]],
    work: Work,
    out: Path,
    text_tokenizer_hash: str | None,
    replace: bool,
) -> dict[str, int]:
    """Merge all parts, in order, into one folder of token shards; return the counts.

    Documents: pairs, those of the parts, and those that `told` returns for the ids of the images.
    Of two images with one id the first is kept; skipped items are added to `tally`.
    """
    captioned: dict[str, bool] = {}
    parts = [
        Shards.open(folder / SHARDS, work.image_tokenizer.hash)
        for folder in folders
        if (folder / SHARDS).is_dir()
    ]

    def pictures() -> Iterator[Coded]:
        for part in parts:
            for metadata, codes_L in zip(part.every_picture(), part.codes_PN, strict=True):
                name = metadata["id"]
                if name in captioned:
                    tally.skip(name, f"an image of an earlier source has its id {name!r}")
                    continue
                captioned[name] = bool(metadata["captions"])
                yield metadata, codes_L.tolist()

    def documents() -> Iterator[dict[str, Any]]:
        for picture_id, has_caption in captioned.items():
            if has_caption:
                yield {"task": "pair", "picture": picture_id}
        for part in parts:
            yield from part.every_document()
        yield from told(captioned.keys())

    return write_shards(
        out,
        pictures(),
        documents(),
        text_tokenizer_hash=text_tokenizer_hash,
        skipped=tally.skipped,
        replace=replace,
        **_about(work),
    )


def _about(work: Work) -> dict[str, Any]:
    tokenizer = work.image_tokenizer
    size = {"size": tokenizer.size, "grid": tokenizer.grid, "codes": tokenizer.codes}
    return {"image_tokenizer_hash": tokenizer.hash, **size}


def _check_share(name: str, tally: Tally, most_bad: float, say: Say) -> None:
    bad, read = len(tally.skipped), len(tally.skipped) + tally.pictures + tally.excluded
    if read >= FEW and bad > most_bad * read:
        tally.tell(say)
        raise UserError(
            f"{name}: {bad:,} of {read:,} things read are damaged, {bad / read:.0%}; at most "
            f"{most_bad:.0%} may be: mend them, or allow more with --most-bad"
        )


def _read_tally(folder: Path) -> Tally:
    if not (folder / MANIFEST).is_file():
        raise UserError(
            f"{folder} is not there: another run took it, or not all processes see the same sources"
        )
    verify(folder, hashes=False)
    table: dict[str, Any] = json.loads((folder / TALLY).read_text("utf-8"))
    skipped = [(what, why) for what, why in table.pop("skipped")]
    return Tally(ignored=Counter(table.pop("ignored")), skipped=skipped, **table)


def _stamp(source: Source) -> Any:
    """Return a fingerprint of a local source, the same on any machine.

    For a tar: size and SHA-256 of its first and last ENDS bytes; for a folder: the names and sizes
    of its files; for an url or a command: empty. Raises UserError for a missing tar.
    """
    if isinstance(source, Slice):
        return source.stamp()
    if source.startswith((*URLS, COMMAND)):
        return []
    path = Path(source)
    if path.is_dir():
        files = sorted(one for one in path.rglob("*") if one.is_file())
        return [[one.relative_to(path).as_posix(), one.stat().st_size] for one in files]
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - ENDS))
            end = file.read()
            file.seek(0)
            return [size, hashlib.sha256(file.read(ENDS) + end).hexdigest()]
    except OSError as error:
        raise UserError(f"{source}: no such tar file ({error.strerror})") from error


def _digest(told: object) -> str:
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def main(
    sources: Sequence[str],
    image_tokenizer: Path,
    out: Path,
    *,
    edits: Path | None = None,
    questions: Path | None = None,
    documents: Path | None = None,
    layout: str | None = None,
    images: Path | None = None,
    exclude: Path | None = None,
    keep: Path | None = None,
    text_tokenizer: Path | None = None,
    most_bad: float = MOST_BAD,
    device: str = "auto",
    say: Say,
) -> Path:
    """Encode every image once, write the token shards to the folder `out` and return it.

    exclude, keep: files with one image id per line. text_tokenizer: its hash is stored in the
    shards, which are then refused with another text tokenizer. layout: layout of a published data
    set, whose files the sources are; its images are in the folder `images`.
    """
    if layout is None and images is not None:
        raise UserError("--images goes with --as, which tells what layout the sources have")
    found = find_slices(layout, sources, images) if layout else find_sources(sources)
    text_hash = TextTokenizer.load(text_tokenizer).hash if text_tokenizer else None
    with distributed_context() as dist:
        place = pick_device(device)
        work = Work(
            image_tokenizer=ImageTokenizer.load(image_tokenizer).to(place),
            exclude=read_ids(exclude) if exclude else frozenset(),
            keep=read_ids(keep) if keep else None,
            device=place,
        )
        counts = encode(
            found,
            edits,
            questions,
            work,
            out,
            documents=documents,
            dist=dist,
            most_bad=most_bad,
            text_tokenizer_hash=text_hash,
            say=dist.named(say),
        )
    if counts:
        say(", ".join(f"{count:,} {name}" for name, count in counts.items()))
    return out
