"""Pictures for the big protocols: many prompts, any number of processes, killed at any time.

a list of `Wanted` -> blocks of neighbours in it -> codes, a block at a time, through
`cm3leon.batch` -> one file of records a block, written aside and renamed; `read` gives them all,
`write_pictures` makes them a folder that `eval.networks.folders` reads.

Block b is painted by process b % world, always by itself and whole, so that a picture has the same
company whoever paints it and however often the work was stopped: the records are the same bit for
bit wherever sums are added in one order (one machine, one number of threads). What is there is
never painted again.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from cm3leon.batch import IN_FLIGHT, Wish, paint_codes, requests_of
from cm3leon.fast import native
from cm3leon.pipeline import CM3Leon
from cm3leon.sampling import Sampling
from tokenizer.document import Document, Picture
from tokenizer.errors import UserError
from tokenizer.manifest import write_file
from tokenizer.pixels import encode_png

TOP = "samples.json"
PICTURES = "pictures"  # the folder of PNG files in that of the records
FORMAT = 1

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A picture to paint from words."""

    id: str
    prompt: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class Record:
    """A picture that was painted, as codes; `retrieved` are the ids of the documents that stood in
    front of its prompt."""

    id: str
    prompt: str
    seed: int
    codes: tuple[int, ...]
    retrieved: tuple[str, ...] = ()


Find = Callable[[Sequence[Wanted]], Sequence[Sequence[tuple[str, Document]]]]
"""For each picture the documents to stand in front of its prompt, with their ids."""


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """Where documents come from: `memory` tells one memory from another, `count` is how many are
    asked of it."""

    memory: str
    count: int
    find: Find


def run(
    folder: Path,
    wanted: Sequence[Wanted],
    leon: CM3Leon,
    sampling: Sampling | None = None,
    *,
    retrieval: Retrieval | None = None,
    rank: int = 0,
    world: int = 1,
    block: int = IN_FLIGHT,
    progress: Progress | None = None,
) -> int:
    """Paint what is not there yet of this process's share, and return how many that was.

    block: pictures under way at one time and in one file; progress: called with (tokens so far, all
    there will be) of the share. The other processes are not waited for.
    Raises UserError, before anything is painted, for a folder of another run, for two pictures of
    one id, and for a prompt that does not fit the model.
    """
    assert 0 <= rank < world, f"process {rank} of {world}"
    assert block > 0
    sampling = sampling or leon.sampling.text_to_image
    _check(wanted)
    requests_of(leon, [_wish(one) for one in wanted], [sampling])
    _open(folder, _settings(wanted, leon, sampling, retrieval, block))
    share = range(rank, -(-len(wanted) // block), world)
    for number in share:
        for leftover in folder.glob(f".{_name(number)}.*"):  # of a process that was killed
            leftover.unlink(missing_ok=True)
    cut = {number: wanted[number * block : (number + 1) * block] for number in share}
    left = [number for number in share if not (folder / _name(number)).exists()]
    length = leon.codec.picture_codes
    most = length * sum(map(len, cut.values()))
    done = most - length * sum(len(cut[number]) for number in left)
    if progress is not None:
        progress(done, most)
    for number in left:
        told = None if progress is None else _after(progress, done, most)
        records = _paint(cut[number], leon, sampling, retrieval, told)
        write_file(folder / _name(number), _lines(records))
        done += length * len(records)
    return sum(len(cut[number]) for number in left)


def read(folder: Path) -> list[Record]:
    """All records, in the order of the list that was wanted.

    Raises UserError for a folder that is none of ours, that lacks some, or that holds others than
    were wanted.
    """
    settings = read_settings(folder)
    count, block = settings["count"], settings["block"]
    names = [_name(number) for number in range(-(-count // block))]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} of its {len(names)} files, {missing[0]} for one; give "
            "the command that began it once more, which paints what is missing"
        )
    records = [record for name in names for record in _read_block(folder / name)]
    ids = {record.id for record in records}
    if len(records) != count or len(ids) != count or _digest(records) != settings["wanted"]:
        raise UserError(
            f"{folder} is damaged: {len(records)} records with {len(ids)} ids are not the {count} "
            f"that {TOP} speaks of; paint them again into another folder"
        )
    return records


def fingerprint(records: Iterable[Record]) -> str:
    """The same for the same records alone."""
    return hashlib.sha256(_lines(records)).hexdigest()[:12]


def write_pictures(
    folder: Path,
    leon: CM3Leon,
    *,
    rank: int = 0,
    world: int = 1,
    progress: Progress | None = None,
) -> int:
    """Make the records of this process's share, which it has painted, PNG files of `PICTURES`,
    named by their place in the list that was wanted; return how many were not there yet."""
    settings, place = read_settings(folder), folder / PICTURES
    count, block = settings["count"], settings["block"]
    try:
        place.mkdir(exist_ok=True)
        names = {path.name for path in place.iterdir()}
    except OSError as error:
        raise UserError(f"cannot write {str(place)!r}: {error.strerror}") from error
    share = range(rank, -(-count // block), world)
    for name in names:  # what a process that was killed was writing
        number = name[1:].partition(".")[0]
        if name.startswith(".") and number.isdigit() and int(number) // block in share:
            (place / name).unlink(missing_ok=True)
    blocks = {number: _read_block(folder / _name(number)) for number in share}
    done, most, made = 0, sum(map(len, blocks.values())), 0
    for number, records in blocks.items():
        for row, record in enumerate(records):
            path = place / f"{number * block + row:08d}.png"
            if path.name not in names:
                notes = {"id": record.id, "prompt": record.prompt, "seed": str(record.seed)}
                image = leon.to_image(Picture(record.codes))
                write_file(path, encode_png(image, {**notes, "model": leon.hash}))
                made += 1
            done += 1
            if progress is not None:
                progress(done, most)
    return made


def _check(wanted: Sequence[Wanted]) -> None:
    if not wanted:
        raise UserError("no pictures are wanted; give at least one prompt")
    seen = set[str]()
    for one in wanted:
        if one.id in seen:
            raise UserError(f"two of the wanted pictures have the id {one.id!r}; give each its own")
        seen.add(one.id)


def _settings(
    wanted: Sequence[Wanted],
    leon: CM3Leon,
    sampling: Sampling,
    retrieval: Retrieval | None,
    block: int,
) -> dict[str, Any]:
    """All that decides a record."""
    seeds = [one.seed for one in wanted]
    device = leon.model.embed.weight.device.type
    return {
        "format": FORMAT,
        "model": leon.hash,
        "precision": leon.precision,
        "device": device,
        "threads": torch.get_num_threads() if device == "cpu" else None,
        "decode step": "compiled" if native.library() else "PyTorch's",
        "torch": torch.__version__,
        **{f"sampling.{name}": value for name, value in asdict(sampling).items()},
        "seeds": [min(seeds), max(seeds)],
        "memory": retrieval and retrieval.memory,
        "retrieve": 0 if retrieval is None else retrieval.count,
        "wanted": _digest(wanted),
        "count": len(wanted),
        "block": block,
    }


def _digest(wanted: Iterable[Wanted | Record]) -> str:
    digest = hashlib.sha256()
    for one in wanted:
        digest.update(f"{json.dumps([one.id, one.prompt, one.seed])}\n".encode())
    return digest.hexdigest()[:16]


def _open(folder: Path, settings: Mapping[str, Any]) -> None:
    """Begin a folder, or go on with one of the same settings."""
    top = folder / TOP
    if not top.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            strangers = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
        except OSError as error:
            raise UserError(f"cannot write {str(folder)!r}: {error.strerror}") from error
        if strangers and not top.exists():  # which another process may have written just now
            raise UserError(
                f"{folder} has no {TOP}, but {sorted(strangers)[0]!r}; name a folder that is new"
            )
        text = json.dumps(settings, indent=1, ensure_ascii=False)
        write_file(top, f"{text}\n".encode())
    there = read_settings(folder)
    others = [
        f"{name} is {there.get(name)!r} there and {settings.get(name)!r} here"
        for name in dict.fromkeys([*there, *settings])
        if there.get(name) != settings.get(name)
    ]
    if others:
        raise UserError(
            f"{folder} is of another run: {'; '.join(others)}; name another folder, or ask the same"
        )


def read_settings(folder: Path) -> dict[str, Any]:
    """All that decides the records of a folder. Raises UserError where it is none of ours."""
    try:
        table = json.loads((folder / TOP).read_text(encoding="utf-8"))
        made = table["format"]
        sane = all(type(table[name]) is int and table[name] > 0 for name in ("count", "block"))
    except FileNotFoundError as error:
        raise UserError(f"there are no samples in {folder}: it has no {TOP}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / TOP} is damaged ({error}); name another folder") from error
    if made != FORMAT:
        raise UserError(f"{folder} is of format {made}, this version writes {FORMAT}; name another")
    if not sane or type(table.get("wanted")) is not str:
        raise UserError(f"{folder / TOP} is damaged (no count); name another folder")
    return table


def _paint(
    wanted: Sequence[Wanted],
    leon: CM3Leon,
    sampling: Sampling,
    retrieval: Retrieval | None,
    progress: Progress | None,
) -> list[Record]:
    fronts = [()] * len(wanted) if retrieval is None else retrieval.find(wanted)
    wishes = [_wish(one, front) for one, front in zip(wanted, fronts, strict=True)]
    found = dict(paint_codes(leon, wishes, sampling, in_flight=len(wishes), progress=progress))
    return [
        Record(
            id=one.id,
            prompt=one.prompt,
            seed=one.seed,
            codes=found[place],
            retrieved=tuple(name for name, _ in front),
        )
        for place, (one, front) in enumerate(zip(wanted, fronts, strict=True))
    ]


def _wish(one: Wanted, front: Sequence[tuple[str, Document]] = ()) -> Wish:
    return Wish(
        prompt=one.prompt, seed=one.seed, retrieved=tuple(document for _, document in front)
    )


def _after(progress: Progress, before: int, most: int) -> Progress:
    return lambda done, _: progress(before + done, most)


def _name(number: int) -> str:
    return f"block-{number:06d}.jsonl"


def _lines(records: Iterable[Record]) -> bytes:
    lines = (json.dumps(asdict(record), ensure_ascii=False) for record in records)
    return "".join(f"{line}\n" for line in lines).encode()


def _read_block(path: Path) -> list[Record]:
    try:
        tables = [json.loads(line) for line in path.read_bytes().splitlines()]
        return [
            Record(
                id=str(table["id"]),
                prompt=str(table["prompt"]),
                seed=int(table["seed"]),
                codes=tuple(map(int, table["codes"])),
                retrieved=tuple(map(str, table["retrieved"])),
            )
            for table in tables
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error}); delete it and give the command that began it once more"
        ) from error
