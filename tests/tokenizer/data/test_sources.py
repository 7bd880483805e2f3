"""What users name is found, fetched where it is far, and read through one door."""

import io
import os
import shlex
import tarfile
import tempfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tokenizer.data.sources import find_sources, read_source
from tokenizer.data.tars import Tally, read_samples
from tokenizer.errors import UserError


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    path = tmp_path / "shard-007.tar"
    with tarfile.open(path, "w") as archive:
        for name, data in {
            "a.png": b"A",
            "a.txt": b"a fox",
            "b.jpg": b"B",
            "b.txt": b"bat",
        }.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go in this test."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


@pytest.fixture
def server(tar: Path) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if "gone" in self.path:
                self.send_error(404)
                return
            data = tar.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data) + 7 * ("cut" in self.path)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_names_are_told_apart(tar: Path, tmp_path: Path) -> None:
    for number in range(8, 12):
        (tmp_path / f"shard-{number:03}.tar").write_bytes(tar.read_bytes())
    pictures = tmp_path / "pictures"
    (pictures / "deep").mkdir(parents=True)
    (pictures / "deep" / "x.PNG").write_bytes(b"X")
    shards = [str(tmp_path / f"shard-{number:03}.tar") for number in range(7, 12)]
    assert find_sources([str(tar)]) == [str(tar)]
    assert find_sources([str(tmp_path)]) == find_sources([f"{tmp_path}/shard-*.tar"]) == shards
    assert find_sources([f"{tmp_path}/shard-{{008..010}}.tar", shards[0]]) == [
        *shards[1:4], shards[0],
    ]  # fmt: skip
    assert find_sources([str(pictures), shards[1], str(pictures)]) == [str(pictures), shards[1]]
    assert find_sources(["https://x/{0..1}-{8..10}.tar", "pipe:cat {1..2}"]) == [
        *(f"https://x/{a}-{b}.tar" for a in (0, 1) for b in (8, 9, 10)), "pipe:cat 1", "pipe:cat 2",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("{here}/empty", "no tar and no image (.jpg, .jpeg, .png, .webp) is found in"),
        ("{here}/none.tar", "no tar is found as"),
        ("{here}/none-*.tar", "no tar is found as"),
        ("a-{{5..3}}.tar", "{5..3} in 'a-{5..3}.tar' means 0 sources"),
        ("a-{{0..9999999}}.tar", "means 10,000,000 sources"),
    ],
)
def test_what_means_nothing_is_refused(tmp_path: Path, name: str, complaint: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as error:
        find_sources([name.format(here=tmp_path)])
    assert complaint in str(error.value)


def test_an_url_and_a_command_give_what_the_tar_gives(
    tar: Path, server: str, temporary: Path
) -> None:
    wanted = list(read_samples([tar], Tally()))
    assert [sample.metadata["id"] for sample in wanted] == ["shard-007/a", "shard-007/b"]
    command = f"pipe:cat {shlex.quote(str(tar))}"
    for source in (str(tar), f"{server}/far/shard-007.tar?key=1", command):
        assert list(read_source(source, Tally())) == wanted
        assert next(read_source(source, Tally())) == wanted[0]  # and then no more is wanted
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("{server}/gone.tar", "cannot be fetched (HTTP Error 404: Not Found)"),
        ("{server}/cut.tar", "cannot be fetched (ended after 10,240 of 10,247 bytes)"),
        ("http://127.0.0.1:1/x.tar", "cannot be fetched (<urlopen error"),
        ("http://[x/y.tar", "cannot be fetched ("),
        ("pipe:exit 3", "cannot be fetched (the command ended with status 3)"),
        ("pipe:echo no tar", "not an uncompressed tar file"),
    ],
)
def test_what_cannot_be_fetched_is_one_line_and_leaves_nothing(
    server: str, temporary: Path, source: str, complaint: str
) -> None:
    with pytest.raises(UserError) as error:
        list(read_source(source.format(server=server), Tally()))
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)
    assert list(temporary.iterdir()) == []


def test_a_folder_of_pictures_is_read_like_a_tar(tmp_path: Path) -> None:
    files = {
        "fox.png": b"F", "fox.txt": b"a fox\n", "in/my.bat.JPG": b"B", "in/my.bat.txt": b"a bat",
        "in/owl.webp": b"O", "in/owl.json": b'{"id": "night-owl", "caption": "an owl"}',
        "bare.png": b"P", "bad.png": b"Q", "bad.json": b"{", "alone.txt": b"no image",
        "run.exe": b"MZ", "in/notes": b"?", ".DS_Store": b"?", "two.png": b"2", "two.jpg": b"1",
        "two.txt": b"two", "long.png": b"L", "long.txt": b" " * 1_000_001,
        "again.png": b"A", "again.json": b'{"id": "fox"}',
    }  # fmt: skip
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    os.mkfifo(tmp_path / "pipe.png")  # would be waited for without end
    (tmp_path / "lost.png").symlink_to("nowhere")
    (tmp_path / "link.png").symlink_to("fox.png")
    (tmp_path / "link.txt").symlink_to("fox.txt")
    tally = Tally()
    found = list(read_source(str(tmp_path), tally))
    assert [(one.metadata, one.picture) for one in found] == [
        ({"id": "fox", "captions": []}, b"A"),
        ({"id": "link", "captions": ["a fox"]}, b"F"),
        ({"id": "two", "captions": ["two"]}, b"1"),
        ({"id": "in/my.bat", "captions": ["a bat"]}, b"B"),
        ({"id": "night-owl", "captions": ["an owl"]}, b"O"),
    ]
    assert dict(tally.skipped).keys() == {
        "alone", "bad", "bare", "fox", "long", "long.txt", "lost.png", "pipe.png", "two",
    }  # fmt: skip
    assert dict(tally.skipped)["bare"] == "no .json or .txt stands beside it"
    assert tally.ignored == {".exe": 1, "without ending": 2}
