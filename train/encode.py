"""`cm3leon data encode`: sources of captioned pictures and an image tokenizer -> token shards.

Each source becomes a part, token shards of its pictures alone, in the folder OUT.parts; what a
killed run has finished is not done again. `python -m torch.distributed.run --nproc-per-node N
--module cm3leon data encode ...` shares the work: process r of N takes every N-th source, then the
first gathers the parts in the order of the sources and adds the documents. However it was shared or
interrupted, the shards are the same.
"""

# Shapes: B = batch, 3 = red, green, blue, H = height, W = width, L = codes of a picture

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch

from cm3leon.pipeline import pick_device
from retrieval.parts import Crew, crew
from tokenizer.errors import UserError
from tokenizer.image import ImageTokenizer, PictureEncoder
from tokenizer.manifest import MANIFEST, new_folder, verify
from tokenizer.pixels import to_pixels
from tokenizer.shard_writer import write_shards
from tokenizer.shards import Shards
from tokenizer.sources import find_sources, read_source
from tokenizer.tars import Tally, decode, read_ids
from tokenizer.text import TextTokenizer
from train.corpus import chosen, read_edits, read_questions
from train.state import Say

SHARDS, TALLY = "shards", "tally.json"
MOST_BAD = 0.1  # share of damaged things at which a corpus is not what it should be,
FEW = 100  # but of so many at least

Coded = tuple[dict[str, Any], list[int]]  # metadata and codes of a picture


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is done with each source. `exclude` and `keep`: ids that may not come, and the only ones
    that may."""

    image_tokenizer: PictureEncoder
    exclude: Set[str] = frozenset()
    keep: Set[str] | None = None
    batch: int = 64
    device: torch.device | str = "cpu"

    def key(self, source: str) -> str:
        """The name of a source's part: another one where anything that it depends on changed."""
        chosen = [sorted(self.exclude), None if self.keep is None else sorted(self.keep)]
        told = [source, _stamp(source), self.image_tokenizer.hash, chosen]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def encode(
    sources: Sequence[str],
    edits: Path | None,
    questions: Path | None,
    work: Work,
    out: Path,
    *,
    we: Crew = Crew(),  # noqa: B008
    most_bad: float = MOST_BAD,
    text_tokenizer_hash: str | None = None,
    replace: bool = False,
    say: Say,
) -> dict[str, int]:
    """Write the token shards of some sources to the folder `out`; return the counts, none where
    another process gathers them.

    Documents: a pair for every picture with a caption; the edits whose both pictures, and the
    questions whose picture, came into the folder. Raises UserError for a source that is not there,
    and where more than a share `most_bad` of what was read is damaged; finished parts stay.
    """
    assert work.image_tokenizer.hash, "save the image tokenizer first: shards carry its hash"
    for path in (edits, questions):
        if path and not path.is_file():
            raise UserError(f"{path}: no such file")
    if out.exists() and not replace:
        raise UserError(f"{out} is there already; name a new folder")
    parts = out.with_name(f"{out.name}.parts")
    try:
        parts.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {parts}: {error.strerror}") from error
    folders = [parts / work.key(source) for source in sources]
    tally = Tally()
    for source, folder in list(zip(sources, folders, strict=True))[we.rank :: we.size]:
        if not (folder / MANIFEST).is_file():
            _write_part(folder, source, work)
        verify(folder, hashes=False)
        tally.add(_read_tally(folder))
        say(f"{source}: encoded; {tally.pictures:,} pictures by now")
        _check_share(tally, most_bad, say)
    we.wait()
    if we.rank:
        return {}
    counts = _gather(folders, edits, questions, work, out, text_tokenizer_hash, replace, say)
    shutil.rmtree(parts, ignore_errors=True)
    return counts


def _write_part(folder: Path, source: str, work: Work) -> None:
    """The pictures of one source as token shards, none where it has none, and what was skipped."""
    tally = Tally()
    coded = _coded(source, work, tally)
    with new_folder(folder) as aside:
        first = next(coded, None)
        if first is not None:
            write_shards(aside / SHARDS, chain([first], coded), (), **_about(work))
        (aside / TALLY).write_text(json.dumps(asdict(tally)), "utf-8")


def _coded(source: str, work: Work, tally: Tally) -> Iterator[Coded]:
    samples = chosen(read_source(source, tally), work.exclude, work.keep, tally)
    decoded = decode(samples, tally, work.image_tokenizer.size)
    while group := list(islice(decoded, work.batch)):
        pixels_B3HW = torch.stack([to_pixels(image) for _, image in group]).to(work.device)
        codes_BL = work.image_tokenizer.encode(pixels_B3HW).tolist()
        for (metadata, _), codes_L in zip(group, codes_BL, strict=True):
            yield metadata, codes_L


def _gather(
    folders: Sequence[Path],
    edits: Path | None,
    questions: Path | None,
    work: Work,
    out: Path,
    text_tokenizer_hash: str | None,
    replace: bool,
    say: Say,
) -> dict[str, int]:
    """All parts, in order, and the documents of their pictures as one folder. Of two pictures with
    one id the first comes."""
    tally = Tally()
    captioned: dict[str, bool] = {}

    def pictures() -> Iterator[Coded]:
        for folder in folders:
            tally.add(_read_tally(folder))
            if not (folder / SHARDS).is_dir():
                continue
            part = Shards.open(folder / SHARDS, work.image_tokenizer.hash)
            for metadata, codes_L in zip(part.every_picture(), part.codes_PN, strict=True):
                name = metadata["id"]
                if name in captioned:
                    tally.skip(name, f"a picture of an earlier source has its id {name!r}")
                    continue
                captioned[name] = bool(metadata["captions"])
                yield metadata, codes_L.tolist()

    def documents() -> Iterator[dict[str, Any]]:
        for picture_id, has_caption in captioned.items():
            if has_caption:
                yield {"task": "pair", "picture": picture_id}
        yield from read_edits(edits, captioned.keys(), tally)
        yield from read_questions(questions, captioned.keys(), tally)

    counts = write_shards(
        out,
        pictures(),
        documents(),
        text_tokenizer_hash=text_tokenizer_hash,
        skipped=tally.skipped,
        replace=replace,
        **_about(work),
    )
    tally.tell(say)
    return counts


def _about(work: Work) -> dict[str, Any]:
    tokenizer = work.image_tokenizer
    size = {"size": tokenizer.size, "grid": tokenizer.grid, "codes": tokenizer.codes}
    return {"image_tokenizer_hash": tokenizer.hash, **size}


def _check_share(tally: Tally, most_bad: float, say: Say) -> None:
    bad, read = len(tally.skipped), len(tally.skipped) + tally.pictures + tally.excluded
    if read >= FEW and bad > most_bad * read:
        tally.tell(say)
        raise UserError(
            f"{bad:,} of {read:,} things read are damaged, {bad / read:.0%}; at most "
            f"{most_bad:.0%} may be: mend the sources, or allow more with --most-bad"
        )


def _read_tally(folder: Path) -> Tally:
    table: dict[str, Any] = json.loads((folder / TALLY).read_text("utf-8"))
    skipped = [(what, why) for what, why in table.pop("skipped")]
    return Tally(ignored=Counter(table.pop("ignored")), skipped=skipped, **table)


def _stamp(source: str) -> list[Any]:
    """What tells whether a source that lies here is still the same."""
    path = Path(source)
    files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    return [[str(one), (s := one.stat()).st_size, s.st_mtime_ns] for one in files if one.exists()]


def main(
    sources: Sequence[str],
    image_tokenizer: Path,
    out: Path,
    *,
    edits: Path | None = None,
    questions: Path | None = None,
    exclude: Path | None = None,
    keep: Path | None = None,
    text_tokenizer: Path | None = None,
    most_bad: float = MOST_BAD,
    device: str = "auto",
    say: Say,
) -> Path:
    """Encode every picture once and write the folder `out`; `exclude` and `keep` are files with
    one picture id a line. Shards made for a `text_tokenizer` are refused with others.
    Returns `out`."""
    found = find_sources(sources)
    text_hash = TextTokenizer.load(text_tokenizer).hash if text_tokenizer else None
    with crew() as we:
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
            we=we,
            most_bad=most_bad,
            text_tokenizer_hash=text_hash,
            say=we.said(say),
        )
    if counts:
        say(", ".join(f"{count:,} {name}" for name, count in counts.items()))
    return out
