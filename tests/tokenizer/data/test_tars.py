"""Tars of strangers: whole samples come through, everything else is named and left behind."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tokenizer.data.tars import Tally, find_tars, read_ids, read_samples
from tokenizer.errors import UserError


def tar_bytes(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def table(**values: Any) -> bytes:
    return json.dumps(values).encode()


TWO = tar_bytes(
    {"a.png": b"A", "a.json": table(id="fox"), "b.png": b"B" * 600, "b.json": table(id="bat")}
)


def samples(tmp_path: Path, data: bytes) -> tuple[list[tuple[str, Any, bytes]], Tally]:
    path, tally = tmp_path / "s-0.tar", Tally()
    path.write_bytes(data)
    found = list(read_samples([path], tally))
    return [(each.name, each.metadata, each.picture) for each in found], tally


def test_samples_carry_their_id_captions_and_metadata(tmp_path: Path) -> None:
    members = {
        "one.webp": b"1",
        "one.json": table(id="fox", caption=" a fox ", captions=["fox", "a fox", ""], kind="emoji"),
        "in/two.tar.jpeg": b"not ours: the ending is all after the first dot",
        "in/two.JPG": b"2",
        "in/two.txt": b"a bat\n",
        "README.md": b"not ours",
        "three.json": table(caption="json first"),
        "three.txt": b"text second",
        "three.png": b"3",
    }
    found, tally = samples(tmp_path, tar_bytes(members))
    assert found == [
        ("s-0/one", {"id": "fox", "captions": ["a fox", "fox"], "kind": "emoji"}, b"1"),
        ("s-0/in/two", {"id": "s-0/in/two", "captions": ["a bat"]}, b"2"),
        ("s-0/three", {"id": "s-0/three", "captions": ["json first"]}, b"3"),
    ]
    assert tally.skipped == []
    assert tally.ignored == {".tar.jpeg": 1, ".md": 1}


def test_executables_and_pickles_are_ignored_and_counted(tmp_path: Path) -> None:
    members = {"a.pkl": b"P", "a.png": b"A", "a.txt": b"fox", "b/run.EXE": b"MZ", "c.pkl": b"P"}
    found, tally = samples(tmp_path, tar_bytes({**members, "LICENSE": b"free"}))
    assert [picture for _, _, picture in found] == [b"A"]
    told: list[str] = []
    tally.tell(told.append)
    assert told[1:] == ["4 of other kinds ignored (2 .pkl, 1 .exe, 1 without ending)"]


def test_endings_without_end_are_counted_together(tmp_path: Path) -> None:
    _, tally = samples(tmp_path, tar_bytes({f"a.{number}": b"" for number in range(150)}))
    assert len(tally.ignored) == 101
    assert (tally.ignored.total(), tally.ignored["of more kinds"]) == (150, 50)


def test_a_name_of_odd_bytes_becomes_a_printable_id(tmp_path: Path) -> None:
    found, _ = samples(tmp_path, tar_bytes({"\x1b[2J\udcff.png": b"X", "\x1b[2J\udcff.txt": b""}))
    assert found == [("s-0/\ufffd[2J\ufffd", {"id": "s-0/\ufffd[2J\ufffd", "captions": []}, b"X")]


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"x.png": b"X"}, "no .json or .txt stands beside it"),
        ({"x.json": b"{}"}, "no image stands beside it"),
        ({"x.png": b"X", "x.json": b"{"}, "its text is damaged"),
        ({"x.png": b"X", "x.json": b"[" * 100_000}, "its text is damaged"),
        ({"x.png": b"X", "x.json": b'{"caption": "\\ud800"}'}, "its text is damaged"),
        ({"x.png": b"X", "x.txt": b"\xff"}, "its text is damaged"),
        ({"x.png": b"X", "x.json": b"[1]"}, "its JSON is not an object"),
        ({"x.png": b"X", "x.json": table(id=[1])}, "its id is [1], not a text"),
        ({"x.png": b"X", "x.json": table(captions=[1])}, "its captions are not texts"),
        ({"x.png": b"X", "x.json": table(id="fox")}, "an earlier image has its id 'fox'"),
        ({"x.png": b"X", "x.txt": b" " * 1_000_001}, "1,000,001 bytes; at most 1,000,000"),
    ],
)
def test_a_bad_sample_is_skipped_and_named(
    tmp_path: Path, members: dict[str, bytes], reason: str
) -> None:
    first, last = {"a.png": b"A", "a.json": table(id="fox")}, {"z.png": b"Z", "z.txt": b""}
    found, tally = samples(tmp_path, tar_bytes({**first, **members, **last}))
    assert [picture for _, _, picture in found] == [b"A", b"Z"]
    what, why = tally.skipped[0]
    assert what.startswith("s-0/x")
    assert why.startswith(reason)


def test_links_and_devices_are_not_followed(tmp_path: Path) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, kind in (("a.png", tarfile.SYMTYPE), ("b.png", tarfile.CHRTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    found, tally = samples(tmp_path, file.getvalue())
    assert found == []
    assert tally.skipped == [(f"s-0/{x}.png", "not a plain file") for x in "ab"]


# Cut inside a picture; at the border of two members; with the end mark gone; a header overwritten.
@pytest.mark.parametrize(
    "data",
    [TWO[:2600], TWO[:2048], TWO[:4608], TWO[:2048] + b"?" * 512 + TWO[2560:]],
    ids=["inside", "border", "mark", "header"],
)
def test_what_stands_before_the_damage_is_read(tmp_path: Path, data: bytes) -> None:
    found, tally = samples(tmp_path, data)
    assert [metadata["id"] for _, metadata, _ in found][:1] == ["fox"]
    assert tally.skipped[0][0] == "s-0.tar"
    assert tally.skipped[0][1].startswith("damaged or cut short here")


def test_what_is_no_tar_is_refused(tmp_path: Path) -> None:
    for data in (b"", b"hello", b"\x1f\x8b" + b"0" * 600):
        with pytest.raises(UserError, match="not an uncompressed tar file"):
            samples(tmp_path, data)
    with pytest.raises(UserError, match="no such tar file"):
        list(read_samples([tmp_path], Tally()))


# A size of 2 ** 87 bytes, and a pax header.
@example(2, 124, b"\x80\x80" + b"\0" * 10)
@example(0, 156, b"x")
@given(st.integers(0, 3), st.integers(0, 511), st.binary(min_size=1, max_size=24))
def test_no_header_escapes_as_another_error(
    tmp_path_factory: pytest.TempPathFactory, number: int, place: int, junk: bytes
) -> None:
    start = [0, 1024, 2048, 3584][number]
    header = bytearray(TWO[start : start + 512])
    header[place : place + len(junk)] = junk
    header[148:156] = b" " * 8  # the checksum must hold, or tarfile looks no further
    header[148:156] = b"%06o\0 " % sum(header[:512])
    data = TWO[:start] + bytes(header[:512]) + TWO[start + 512 :]
    try:
        found, _ = samples(tmp_path_factory.getbasetemp(), data)
    except UserError:
        return
    assert len(found) <= 2


def test_tars_are_found_in_a_folder_or_by_a_glob(tmp_path: Path) -> None:
    for name in ("val-0.tar", "train-1.tar", "train-0.tar", "notes.txt"):
        (tmp_path / name).touch()
    train = [tmp_path / "train-0.tar", tmp_path / "train-1.tar"]
    assert find_tars(tmp_path, "train-") == find_tars(f"{tmp_path}/train-*.tar") == train
    assert find_tars(tmp_path / "val-0.tar") == [tmp_path / "val-0.tar"]
    with pytest.raises(UserError, match="no tar is found"):
        find_tars(tmp_path, "test-")


def test_ids_are_read_one_a_line(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("fox\n\nbat\n")
    assert read_ids(tmp_path / "ids.txt") == {"fox", "bat"}
    with pytest.raises(UserError, match="not a readable list of ids"):
        read_ids(tmp_path / "none.txt")


def test_a_long_tally_is_told_shortly() -> None:
    told: list[str] = []
    tally = Tally(pictures=1234, outside=2, known=3, mute=4)
    for number in range(5):
        tally.skip(f"thing {number}", "odd")
    tally.tell(told.append, most=2)
    assert told == [
        "1,234 images read, 0 left out by id, 5 damaged things skipped",
        "2 documents left out: an image of theirs is not there",
        "3 were there before",
        "4 have no caption",
        "skipped thing 0: odd",
        "skipped thing 1: odd",
        "... and 3 more",
    ]
