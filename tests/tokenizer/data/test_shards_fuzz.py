"""Token-shard folders of strangers, damaged in every way: refused in one line, or read faithfully.

A folder is broken at its files, at its JSON, at its arrays and at its lines; half of the times its
manifest is sealed anew, so that what stands behind the hashes is tried too.
"""

import hashlib
import json
import shutil
import time
import tracemalloc
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokenizer.codec import Codec
from tokenizer.data.shard_writer import write_shards
from tokenizer.data.shards import Shards
from tokenizer.errors import UserError
from tokenizer.manifest import MANIFEST
from tokenizer.text import TextTokenizer
from tokenizer.vocabulary import Vocabulary
from train.config import RowsConfig
from train.data.rows import Rows
from train.objective import MaskConfig

TIMES = 500
SECONDS, BYTES = 5.0, 50_000_000  # that one folder may take
Draw = np.random.Generator
Table = dict[str, Any]

TEXT = TextTokenizer.train(["a red fox, a blue heart"], 270)
CODEC = Codec(Vocabulary(image_codes=16, text_pieces=270, sentinels=4), TEXT, 4, 64)
FORMS = RowsConfig(forms={"pair": 0.4, "edit": 0.3, "question": 0.3}, packed=0.2)
PICTURES: list[Table] = [
    {"id": f"p{number}", "captions": [f"thing {number}", "a thing"][: number % 3], "kind": kind}
    for number, kind in enumerate(("emoji", "icon", "emoji", "photo", "icon", "emoji"))
]
DOCUMENTS: list[Table] = [
    {"task": "pair", "picture": "p1"},
    {"task": "edit", "source": "p0", "target": "p2", "instructions": ["be 2"], "type": "x"},
    {"task": "question", "picture": "p3", "question": "what?", "answer": "3", "type": "what"},
    {"task": "pair", "picture": "p4"},
]
ODD: list[Any] = [
    *(None, True, -1, 0, 2, 7, 2**31, 2**63, 2**64, 10**30, 1.5, float("nan"), float("inf")),
    *("", "..", "../../etc/passwd", "/etc/passwd", "a\nb", "\0", "\ud800", "x" * 5000, "p1"),
    *([], {}, [[]], {"a": {"b": []}}, ["p0"], [1, 2], {"pictures": 6}, "task", "edit"),
]


def write(folder: Path) -> None:
    codes_PN = np.random.default_rng(1).integers(0, 16, (len(PICTURES), 4)).tolist()
    about: Table = {"image_tokenizer_hash": "ab12", "size": 8, "grid": 2, "codes": 16}
    write_shards(folder, zip(PICTURES, codes_PN, strict=True), DOCUMENTS, **about)


def seal(folder: Path) -> None:
    """The manifest of what is there now, as one would forge it."""
    files: Table = {}
    for part in sorted(folder.iterdir()):
        if part.is_file() and part.name != MANIFEST:
            data = part.read_bytes()
            files[part.name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / MANIFEST).write_text(json.dumps({"format": 1, "files": files}, indent=2) + "\n")


def one_of(draw: Draw, things: Any) -> Any:
    return things[int(draw.integers(len(things)))]


def part_of(folder: Path, draw: Draw, pattern: str = "*") -> Path:
    return one_of(draw, sorted(folder.glob(pattern)))


def break_bytes(folder: Path, draw: Draw) -> None:
    """Flip, cut, lengthen, or replace the bytes of a file."""
    path = part_of(folder, draw)
    data = bytearray(path.read_bytes())
    place = int(draw.integers(len(data)))
    match int(draw.integers(6)):
        case 0:
            data[place] ^= 1 << int(draw.integers(8))
        case 1:
            del data[place:]
        case 2:
            data += draw.bytes(int(draw.integers(1, 200)))
        case 3:
            data[place : place + 20] = draw.bytes(20)
        case 4:
            data = bytearray(draw.bytes(len(data)))
        case _:
            del data[place : place + int(draw.integers(1, 40))]
    path.write_bytes(data)


def break_files(folder: Path, draw: Draw) -> None:
    """Delete, swap, empty or link a file, or put a folder in its place."""
    path, other = part_of(folder, draw), part_of(folder, draw)
    match int(draw.integers(6)):
        case 0:
            path.unlink()
        case 1:
            ours, theirs = path.read_bytes(), other.read_bytes()
            path.write_bytes(theirs)
            other.write_bytes(ours)
        case 2:
            path.write_bytes(b"")
        case 3:
            path.unlink()
            path.mkdir()
        case 4:
            path.unlink()
            path.symlink_to(one_of(draw, ["/dev/zero", "/nowhere", path, other.name]))
        case _:
            path.write_bytes(other.read_bytes())


def places_of(found: Any) -> list[tuple[Any, Any]]:
    """(table or list, key or number) of everything inside."""
    keys: list[Any] = []
    if isinstance(found, dict):
        keys = list(found)
    elif isinstance(found, list):
        keys = list(range(len(found)))
    return [(found, key) for key in keys] + [at for key in keys for at in places_of(found[key])]


def changed(found: Any, draw: Draw) -> str:
    """The JSON of something with one thing in it removed, renamed, added or replaced."""
    where, key = one_of(draw, places_of(found))
    odd = one_of(draw, ODD)
    match int(draw.integers(6)):
        case 0:
            del where[key]
        case 1 if isinstance(where, dict):
            where[str(odd)] = where.pop(key)
        case 2 if isinstance(where, dict):
            where[
                one_of(draw, ["x", "y" * 300, "../up", "/abs", "codes.npy", "grid", "\ud800"])
            ] = odd
        case 3:
            return one_of(draw, ["", "null", "[" * 3000, "[]", "{}", "1", "{" * 10, '"x"', "NaN"])
        case _:
            where[key] = odd
    return json.dumps(found)


def break_json(folder: Path, draw: Draw) -> None:
    path = folder / one_of(draw, ["index.json", MANIFEST])
    path.write_text(changed(json.loads(path.read_text()), draw))


def break_lines(folder: Path, draw: Draw) -> None:
    """Change, drop, repeat, join or swap JSON lines; often their offsets follow."""
    name = one_of(draw, ["pictures", "documents"])
    path = folder / f"{name}.jsonl"
    lines = path.read_text().splitlines()
    place, other = (int(draw.integers(len(lines))) for _ in range(2))
    match int(draw.integers(7)):
        case 0:
            del lines[place]
        case 1:
            lines.insert(place, lines[other])
        case 2:
            lines[place], lines[other] = lines[other], lines[place]
        case 3:
            lines[place : place + 2] = ["".join(lines[place : place + 2])]
        case _:
            lines[place] = changed(json.loads(lines[place]), draw)
    ends = np.cumsum([0, *(len(line.encode("utf-8", "replace")) + 1 for line in lines)])
    path.write_bytes("".join(line + "\n" for line in lines).encode("utf-8", "replace"))
    if draw.random() < 0.7:
        np.save(folder / f"{name}.offsets.npy", ends.astype(np.uint64))


def break_array(folder: Path, draw: Draw) -> None:
    """Another dtype, shape, order or header of an array, or other numbers in it."""
    path = part_of(folder, draw, "*.npy")
    old = np.load(path)
    match int(draw.integers(9)):
        case 0:
            np.save(path, old.astype(one_of(draw, ["<i8", ">u2", "<f4", "S4", "<u4", "?"])))
        case 1:
            np.save(path, np.array([{"a": 1}] * len(old), dtype=object), allow_pickle=True)
        case 2:
            np.save(path, np.asfortranarray(np.atleast_2d(old)))
        case 3:
            np.save(path, old[: int(draw.integers(len(old)))])
        case 4:
            np.save(path, np.concatenate([old, old]))
        case 5:
            header = {"descr": old.dtype.str, "fortran_order": bool(draw.integers(2))}
            shapes = [(10**15,), (2**62, 4), (-1,), (len(old), 10**12), (10**40,), (0,), (), (1.5,)]
            with path.open("wb") as file:
                table = {**header, "shape": one_of(draw, shapes)}
                np.lib.format.write_array_header_1_0(file, table)
                file.write(old.tobytes())
        case 6:
            odd = ["{}", "[" * 500, "{'descr': 'O'}", "x", "{'descr': [('a', 'O')], 'shape': (6,)}"]
            text = one_of(draw, odd).encode()
            size = int(one_of(draw, [len(text), 2, 65535]))
            path.write_bytes(b"\x93NUMPY\x01\x00" + size.to_bytes(2, "little") + text)
        case 7:
            np.savez(path.with_suffix(""), a=old)
            path.with_suffix(".npz").replace(path)
        case _:
            new = old.copy()
            new.flat[int(draw.integers(new.size))] = int(one_of(draw, [0, 1, 9, 200, 17]))
            np.save(path, new)


BREAKS: list[Callable[[Path, Draw], None]] = [
    break_bytes,
    break_files,
    break_json,
    break_lines,
    break_lines,
    break_array,
]


def read_all(folder: Path) -> None:
    """Everything that is made of shards; what is told must be what is read."""
    shards = Shards.open(folder, "ab12")
    shards.verify()
    pictures, documents = list(shards.every_picture()), list(shards.every_document())
    told = dict(shards.counts)
    assert len(pictures) == told.pop("pictures") == shards.pictures
    assert len(documents) == sum(told.values()) == shards.documents
    for number, metadata in enumerate(pictures):
        found, codes = shards.picture(number)
        assert found == metadata
        assert len(codes) == shards.grid**2
        assert max(codes) < shards.codes
        assert shards.number_of(metadata["id"]) == number
    assert [shards.document(number) for number in range(len(documents))] == documents
    for task, count in told.items():
        numbers = shards.numbers(task).tolist()
        assert len(numbers) == count
        assert all(documents[number]["task"] == task for number in numbers)
    rows = Rows(shards, CODEC, FORMS, MaskConfig(), seed=0)
    for number in range(8):
        assert 0 < len(rows.at(number)) <= 65


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "shards"
    write(folder)
    return folder


def test_the_folder_itself_is_read(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "copy")
    read_all(tmp_path / "copy")


def test_a_broken_folder_is_refused_in_one_line_or_read_whole(whole: Path, tmp_path: Path) -> None:
    outcomes = Counter[str]()
    for number in range(TIMES):
        draw = np.random.default_rng(number)
        folder = tmp_path / str(number)
        shutil.copytree(whole, folder)
        breaking = [one_of(draw, BREAKS) for _ in range(1 + int(draw.random() < 0.2))]
        sealed = draw.random() < 0.7
        try:
            for one in breaking:
                one(folder, draw)
        except Exception:  # nothing is left that the second could break
            assert len(breaking) == 2
        if sealed and not (folder / MANIFEST).is_dir() and breaking != [break_files]:
            forge(folder, breaking)
        said = f"folder {number}: {[one.__name__ for one in breaking]}, sealed {sealed}"
        begun = time.monotonic()
        tracemalloc.start()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                read_all(folder)
            outcomes["read"] += 1
        except UserError as error:
            outcomes["refused" if "\n" not in str(error) else "in several lines"] += 1
        except BaseException as error:
            raise AssertionError(f"{said}: {type(error).__name__} {error}") from error
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < BYTES, said
        assert time.monotonic() - begun < SECONDS, said
        shutil.rmtree(folder)
    assert set(outcomes) == {"refused", "read"}
    assert min(outcomes.values()) > TIMES // 20, outcomes


def forge(folder: Path, breaking: list[Callable[[Path, Draw], None]]) -> None:
    """Seal it anew where what was broken is not the manifest itself."""
    path = folder / MANIFEST
    if path.exists() and (not path.is_file() or path.is_symlink()):
        return
    try:
        json.loads(path.read_bytes())["files"]["codes.npy"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return
    if break_json in breaking and not hashes_differ(folder):
        return
    seal(folder)


def hashes_differ(folder: Path) -> bool:
    """Whether it is a part that was broken, and not the manifest."""
    table = json.loads((folder / MANIFEST).read_bytes())["files"]
    for name in ("index.json", "codes.npy", "pictures.jsonl"):
        path = folder / name
        if name not in table or not path.is_file() or not isinstance(table[name], dict):
            continue
        if hashlib.sha256(path.read_bytes()).hexdigest() != table[name].get("sha256"):
            return True
    return False
