"""Pack a corpus small enough to carry to another machine and train on there.

    python3 scripts/gpu/pack.py 'CORPUS/train-*.tar' --out pack.tar.xz --exclude IDS \
      --most photo=1000 --edits CORPUS/edits.jsonl.gz --questions CORPUS/questions.jsonl.gz

Tars of any size -> one tar of small WebP images beside their JSON, which `tokenizer/data/tars.py`
reads like any other (once unpacked, where it is a .tar.xz), and the edits and questions about them.
"""

import argparse
import gzip
import hashlib
import io
import json
import tarfile
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Literal

from tokenizer.data.registry import TONE
from tokenizer.data.tars import Sample, Tally, decode, find_tars, read_ids, read_samples
from tokenizer.errors import UserError
from tokenizer.manifest import check_writable, write_file
from train.data.corpus import read_edits, read_questions
from train.state import Say

MEGABYTE = 1_000_000
THIN = 10  # the quality is searched on every so manieth picture ...
SPARE = 0.97  # ... and must fit with this much of the limit: the other pictures may be larger


def pack(
    tars: str,
    out: Path,
    *,
    size: int = 128,
    limit: float = 20,
    quality: int | None = None,
    most: Sequence[str] = (),
    seed: int = 0,
    exclude: Path | None = None,
    edits: Path | None = None,
    questions: Path | None = None,
    say: Say,
) -> Path:
    """Write the pack `out`, of at most `limit` megabytes, and return it.

    size: side of its pictures in pixels. quality: of WebP, 1..100; the best that fits if None.
    most: `KIND=NUMBER`, so many pictures of a kind at most. exclude: a file with one picture id a
    line. The edits and questions whose pictures are in the pack go into files beside it.
    Raises UserError where the pack does not fit or cannot be written.
    """
    if not out.name.endswith((".tar", ".tar.xz")):
        raise UserError(f"a pack is a .tar, or a .tar.xz, which is far smaller; got {out.name!r}")
    check_writable(out)
    mode: Literal["w", "w:xz"] = "w:xz" if out.suffix == ".xz" else "w"
    tally = Tally()
    left_out = read_ids(exclude) if exclude else frozenset[str]()
    chosen = choose(read_samples(find_tars(tars), tally), left_out, parse_most(most), seed, tally)
    if not chosen:
        raise UserError(f"{tars}: no picture is left to pack")
    bytes_at_most = int(limit * MEGABYTE)
    wanted = quality or best_quality(chosen, size, bytes_at_most, mode)
    data, packed = tar_of(chosen, size, wanted, mode, tally)
    while len(data) > bytes_at_most:
        if quality or wanted == 1:
            raise too_large(len(data), wanted, limit)
        wanted -= 1
        data, packed = tar_of(chosen, size, wanted, mode, Tally())
    write_file(out, data)
    tally.tell(say)
    kinds = Counter(str(about.get("kind", "picture")) for about in packed)
    told = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
    say(f"{out}: {len(data):,} bytes at quality {wanted}: {told}")
    ids = {about["id"] for about in packed}
    write_documents(out, "edits", read_edits(edits, ids, tally), say)
    write_documents(out, "questions", read_questions(questions, ids, tally), say)
    return out


def parse_most(most: Sequence[str]) -> dict[str, int]:
    """`["photo=800"]` -> `{"photo": 800}`."""
    table: dict[str, int] = {}
    for item in most:
        kind, _, number = item.partition("=")
        if not (kind and number.isdecimal()):
            raise UserError(f"'{item}' is not KIND=NUMBER, such as photo=800")
        table[kind] = int(number)
    return table


def drawn(seed: int, name: str) -> bytes:
    """A random number for a name, the same everywhere."""
    return hashlib.sha256(f"{seed} {name}".encode()).digest()


def choose(
    samples: Iterable[Sample], exclude: Set[str], most: Mapping[str, int], seed: int, tally: Tally
) -> list[Sample]:
    """What goes into the pack, in the order it came.

    Of an emoji's skin tones in one style one is drawn, the same in every style that has it, so that
    edits of style keep both their ends; the emoji without a tone stays beside it.
    """
    units: dict[object, tuple[bytes, Sample]] = {}
    for sample in samples:
        about = sample.metadata
        if about["id"] in exclude:
            tally.excluded += 1
            continue
        point = str(about.get("codepoint", ""))
        toned = TONE.search(point) is not None
        unit = (about.get("style"), TONE.sub("", point)) if toned else about["id"]
        lot = drawn(seed, point if toned else about["id"])
        if unit not in units or lot < units[unit][0]:
            units[unit] = lot, sample
    kinds: dict[str, list[tuple[bytes, Sample]]] = {}
    for lot, sample in units.values():
        kinds.setdefault(str(sample.metadata.get("kind", "picture")), []).append((lot, sample))
    kept: set[str] = set()
    for kind, found in kinds.items():
        found.sort(key=lambda pair: pair[0])
        kept |= {sample.metadata["id"] for _, sample in found[: most.get(kind)]}
    return [sample for _, sample in units.values() if sample.metadata["id"] in kept]


def best_quality(
    samples: Sequence[Sample], size: int, bytes_at_most: int, mode: Literal["w", "w:xz"]
) -> int:
    """The highest quality of WebP at which a tenth of the pack keeps to a tenth of the limit."""
    some = samples[::THIN]
    room = SPARE * bytes_at_most * len(some) / len(samples)

    def bytes_at(quality: int) -> int:
        return len(tar_of(some, size, quality, mode, Tally())[0])

    return max(1, bisect_right(range(1, 101), room, key=bytes_at))


def tar_of(
    samples: Sequence[Sample], size: int, quality: int, mode: Literal["w", "w:xz"], tally: Tally
) -> tuple[bytes, list[dict[str, Any]]]:
    """A tar of the pictures at one size and quality, and the metadata of those in it.

    The same bytes from the same pictures. Damaged pictures are skipped and noted in `tally`.
    """
    file = io.BytesIO()
    packed: list[dict[str, Any]] = []
    with tarfile.open(fileobj=file, mode=mode) as tar:
        for metadata, image in decode(samples, tally, size):
            picture = io.BytesIO()
            image.save(picture, "WEBP", quality=quality, method=6)
            text = json.dumps(metadata, ensure_ascii=False)
            for ending, data in (("webp", picture.getvalue()), ("json", text.encode())):
                member = tarfile.TarInfo(f"{len(packed):06d}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
            packed.append(metadata)
    return file.getvalue(), packed


def too_large(size: int, quality: int, limit: float) -> UserError:
    return UserError(
        f"the pack has {size / MEGABYTE:.1f} MB at quality {quality}, the limit is {limit:g} MB; "
        f"take fewer pictures with --most, smaller ones with --size, or name it .tar.xz"
    )


def write_documents(out: Path, what: str, found: Iterable[dict[str, Any]], say: Say) -> None:
    """The documents of one task as lines of JSON in `NAME.edits.jsonl.gz` beside `NAME.tar`."""
    lines = [
        {"id" if k == "picture" else k: v for k, v in row.items() if k != "task"} for row in found
    ]
    if lines:
        path = out.with_name(f"{out.name.partition('.tar')[0]}.{what}.jsonl.gz")
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        data = gzip.compress(text.encode(), 9, mtime=0)
        write_file(path, data)
        say(f"{path}: {len(data):,} bytes: {len(lines):,} {what}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("tars", help="WebDataset tars: a folder or a pattern")
    parser.add_argument("--out", type=Path, required=True, help="the .tar or .tar.xz to write")
    parser.add_argument("--size", type=int, default=128, help="side of its images in pixels")
    parser.add_argument("--limit", type=float, default=20, help="megabytes that it may have")
    parser.add_argument("--quality", type=int, help="of WebP; the best that fits if not given")
    parser.add_argument("--most", action="append", default=[], metavar="KIND=NUMBER")
    parser.add_argument("--seed", type=int, default=0)
    for name in ("exclude", "edits", "questions"):
        parser.add_argument(f"--{name}", type=Path)
    given = vars(parser.parse_args())
    try:
        print(pack(given.pop("tars"), given.pop("out"), **given, say=print))
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
