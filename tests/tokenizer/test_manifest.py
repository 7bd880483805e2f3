"""manifest.py: a result is wholly there or not there, and damage is named."""

import json
import os
from hashlib import sha256
from pathlib import Path

import pytest

from tokenizer.errors import UserError
from tokenizer.manifest import (
    MANIFEST,
    check_writable,
    file_hash,
    new_folder,
    verify,
    write_file,
)


def make(path: Path, text: str = "weights", *, replace: bool = False) -> Path:
    with new_folder(path, replace=replace) as folder:
        (folder / "inner").mkdir()
        (folder / "model.bin").write_text(text)
        (folder / "inner" / "part.txt").write_text("part")
    return path


def test_a_folder_appears_with_its_manifest(tmp_path: Path) -> None:
    path = make(tmp_path / "out")
    verify(path)
    assert json.loads((path / MANIFEST).read_text()) == {
        "format": 1,
        "files": {
            "inner/part.txt": {"bytes": 4, "sha256": sha256(b"part").hexdigest()},
            "model.bin": {"bytes": 7, "sha256": sha256(b"weights").hexdigest()},
        },
    }
    assert os.listdir(tmp_path) == ["out"]
    assert path.stat().st_mode & 0o777 == (tmp_path / "out" / "inner").stat().st_mode & 0o777


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_of_a_folder_that_failed(tmp_path: Path, kind: type[BaseException]) -> None:
    def fail() -> None:
        with new_folder(tmp_path / "out") as folder:
            (folder / "model.bin").write_text("half")
            assert not (tmp_path / "out").exists()
            raise kind

    with pytest.raises(kind):
        fail()
    assert os.listdir(tmp_path) == []


def test_a_failed_replacement_leaves_the_old_folder(tmp_path: Path) -> None:
    path = make(tmp_path / "out", "old")
    with pytest.raises(RuntimeError), new_folder(path, replace=True):
        raise RuntimeError
    verify(path)
    assert (path / "model.bin").read_text() == "old"


def test_a_folder_is_replaced_only_when_asked(tmp_path: Path) -> None:
    path = make(tmp_path / "out", "old")
    with pytest.raises(UserError, match="already exists"):
        make(path, "new")
    assert (path / "model.bin").read_text() == "old"
    make(path, "new", replace=True)
    verify(path)
    assert (path / "model.bin").read_text() == "new"
    assert os.listdir(tmp_path) == ["out"]


def test_a_folder_that_is_not_ours_is_never_replaced(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    make(home, replace=True)  # empty: nothing to lose
    (home / MANIFEST).unlink()
    with pytest.raises(UserError, match="may not be ours"):
        make(home, replace=True)
    assert (home / "model.bin").exists()
    (tmp_path / "file").write_text("text")
    with pytest.raises(UserError, match="it is a file"):
        make(tmp_path / "file", replace=True)


def test_a_folder_taken_while_we_worked_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "out"

    def race() -> None:
        with new_folder(path):
            path.mkdir()
            (path / "theirs").write_text("theirs")

    with pytest.raises(UserError, match="already exists"):
        race()
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(path) == ["theirs"]


def test_a_link_is_followed_not_replaced(tmp_path: Path) -> None:
    real = make(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to(real)
    make(tmp_path / "link", "new", replace=True)
    assert (tmp_path / "link").is_symlink()
    assert (real / "model.bin").read_text() == "new"
    (tmp_path / "name").symlink_to(tmp_path / "file")
    write_file(tmp_path / "name", b"data")
    assert (tmp_path / "file").read_bytes() == b"data"


def test_a_manifest_within_is_a_part_like_others(tmp_path: Path) -> None:
    inner = make(tmp_path / "inner")
    with new_folder(tmp_path / "outer") as folder:
        (folder / "tokenizer").mkdir()
        (folder / "tokenizer" / MANIFEST).write_bytes((inner / MANIFEST).read_bytes())
    verify(tmp_path / "outer")
    (tmp_path / "outer" / "tokenizer" / MANIFEST).write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer/manifest\.json"):
        verify(tmp_path / "outer")


def test_verify_names_the_folder_and_the_damaged_part(tmp_path: Path) -> None:
    path = make(tmp_path / "out")
    part = path / "model.bin"
    part.write_text("weighty")
    verify(path, hashes=False)
    with pytest.raises(UserError, match=r"out' is damaged: 'model\.bin' is not what was written"):
        verify(path)
    part.write_text("weight")
    with pytest.raises(UserError, match=r"out' is damaged: 'model\.bin' has 6 bytes, not 7"):
        verify(path, hashes=False)
    part.unlink()
    with pytest.raises(UserError, match=r"out' is incomplete: 'model\.bin' is missing"):
        verify(path, hashes=False)


def test_verify_lets_files_be_that_it_does_not_know(tmp_path: Path) -> None:
    path = make(tmp_path / "out")
    (path / "notes.txt").write_text("mine")
    verify(path)


def test_verify_wants_a_folder_with_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no folder"):
        verify(tmp_path / "none")
    with pytest.raises(UserError, match=r"has no manifest\.json"):
        verify(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "\udcff",
        "{" * 5,
        "[" * 100_000,
        '{"format": 2, "files": {}}',
        '{"files": {}}',
        '{"format": 1}',
        '{"format": 1, "files": []}',
        '{"format": 1, "files": {"a": 3}}',
        '{"format": 1, "files": {"a": {"bytes": "1", "sha256": "x"}}}',
        '{"format": 1, "files": {"a": {"bytes": 1}}}',
    ],
)
def test_a_broken_manifest_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / MANIFEST).write_text(content, errors="surrogateescape")
    (tmp_path / "a").write_text("x")
    with pytest.raises(UserError) as caught:
        verify(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "x/../../a", "..", "", "..\\a", "a\0b"])
def test_a_manifest_cannot_name_what_is_outside(tmp_path: Path, name: str) -> None:
    entry = {"bytes": 1, "sha256": sha256(b"x").hexdigest()}
    (tmp_path / "a").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / MANIFEST).write_text(
        json.dumps({"format": 1, "files": {name: entry}}),
    )
    with pytest.raises(UserError, match="outside the folder"):
        verify(tmp_path / "folder")


def test_a_file_is_written_whole_and_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_file(path, b"one")
    write_file(path, b"two")
    assert path.read_bytes() == b"two"
    assert file_hash(path) == sha256(b"two").hexdigest()
    assert os.listdir(tmp_path) == ["a.png"]


def test_a_hash_wants_a_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        file_hash(tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing/a.png", "there is no folder"),
        (".", "it is a folder"),
        ("file/a.png", "there is no folder"),
        ("a" * 300, "name too long"),
        ("a\0b", "null"),
        ("pipe", "not a plain file"),
    ],
)
def test_what_cannot_be_written_is_said_early(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "file").write_text("text")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=f"(?i){message}"):
        check_writable(tmp_path / name)
    with pytest.raises(UserError, match=f"(?i){message}"):
        write_file(tmp_path / name, b"data")


def test_a_new_folder_wants_its_parent(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="create it first"):
        make(tmp_path / "missing" / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_closed_folder_is_said_early(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(UserError, match="is not writable"):
            check_writable(tmp_path / "a.png")
        with pytest.raises(UserError, match="is not writable"):
            make(tmp_path / "out")
    finally:
        tmp_path.chmod(0o755)


def test_a_good_place_passes(tmp_path: Path) -> None:
    check_writable(tmp_path / "a.png")
    check_writable(str(tmp_path / ("a" * 250)))
    write_file(tmp_path / ("a" * 250), b"data")
    check_writable(tmp_path / ("a" * 250))
