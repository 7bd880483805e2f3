"""Packages: fetched once, by name, version and hash, and read without trust."""

import hashlib
import io
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from cm3leon.cli import main as cli
from tokenizer.errors import UserError
from train.emoji import build as emoji
from train.emoji import fetch as emoji_packages
from train.emoji.fetch import DEBIAN, NPM, PACKAGES, Package, fetch, read_members, read_texts

DATA = b"a package"
PACKAGE = Package(
    name="@some/thing",
    version="1.2.3",
    size=len(DATA),
    sha256=hashlib.sha256(DATA).hexdigest(),
    authors="Jane",
    licence="MIT",
)
URL = "https://registry.npmjs.org/@some/thing/-/thing-1.2.3.tgz"

Opener = Callable[..., object]


def tgz(path: Path, files: dict[str, bytes], link: str) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        member = tarfile.TarInfo(link)
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member)
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def test_a_package_is_fetched_aloud_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    asked: list[tuple[str, int]] = []

    def download(url: str, size: int) -> bytes:
        asked.append((url, size))
        return DATA

    monkeypatch.setattr(emoji_packages, "download", download)
    for _ in range(2):
        path = fetch(PACKAGE, tmp_path, NPM, DEBIAN, said.append)
        assert path == tmp_path / "some-thing-1.2.3.tgz"
        assert path.read_bytes() == DATA
    assert asked == [(URL, len(DATA))]
    assert said == [f"fetching {URL} (0.00 MB)"]


@pytest.mark.parametrize("got", [b"", b"another", DATA + b"!"])
def test_another_hash_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, got: bytes
) -> None:
    monkeypatch.setattr(emoji_packages, "download", lambda *_: got)
    wanted = f"thing-1.2.3.tgz has {len(got)} bytes with SHA-256 .*, wanted 9 with .*; try again"
    with pytest.raises(UserError, match=wanted):
        fetch(PACKAGE, tmp_path, NPM, DEBIAN, print)
    assert not list(tmp_path.iterdir())
    (tmp_path / PACKAGE.file).write_bytes(got)
    with pytest.raises(UserError, match=r"thing-1\.2\.3\.tgz has SHA-256 .*; delete it and run"):
        fetch(PACKAGE, tmp_path, NPM, DEBIAN, print)
    assert (tmp_path / PACKAGE.file).read_bytes() == got


def test_every_package_is_pinned_and_has_its_place() -> None:
    for name, package in PACKAGES.items():
        assert re.fullmatch("[0-9a-f]{64}", package.sha256)
        assert package.authors
        assert package.licence
        assert package.version.rpartition(":")[2] in package.url("http://n/", "http://d/")
        assert name in package.file
    assert PACKAGES["noto"].url(NPM, "") == f"{NPM}/@iconify-json/noto/-/noto-1.2.9.tgz"
    assert PACKAGES["emojibase-data"].file == "emojibase-data-17.0.0.tgz"
    art = PACKAGES["openclipart-svg"]
    assert art.source == "openclipart-svg 1:0.18+dfsg-19 (Debian)"
    name = "openclipart-svg_0.18+dfsg-19_all.deb"
    assert art.url("", f"{DEBIAN}/") == f"{DEBIAN}/pool/main/o/openclipart/{name}"
    assert len({package.file for package in PACKAGES.values()}) == len(PACKAGES)


class Answer(io.BytesIO):
    """An answer of a registry, maybe longer than was said."""


def test_no_more_is_downloaded_than_the_package_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emoji_packages, "urlopen", lambda *_, **__: Answer(b"x" * 1000))
    assert emoji_packages.download(URL, 9) == b"x" * 10


def refuse(url: str, timeout: float) -> object:
    raise emoji_packages.HTTPError(url, 404, "Not Found", None, io.BytesIO())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("url", "opener", "complaint"),
    [
        ("http://127.0.0.1:9/x.tgz", None, r"cannot fetch http://127\.0\.0\.1:9/x\.tgz \(.*"),
        ("https://host/x.tgz", refuse, r"\(HTTP Error 404: Not Found\); check the network, name"),
        ("file:///etc/passwd", None, "begins with https:// or http://"),
    ],
)
def test_what_cannot_be_fetched_is_one_line(
    monkeypatch: pytest.MonkeyPatch, url: str, opener: Opener | None, complaint: str
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    if opener:
        monkeypatch.setattr(emoji_packages, "urlopen", opener)
    with pytest.raises(UserError, match=complaint) as caught:
        emoji_packages.download(url, 10)
    assert "\n" not in str(caught.value)


def test_packages_are_read_without_following_links(tmp_path: Path) -> None:
    path = tgz(tmp_path / "x-1.tgz", {"package/a.json": b"[1]"}, "package/link")
    assert list(read_members(path, lambda _: True)) == [("package/a.json", b"[1]")]
    assert read_texts(path, ["a.json"]) == [[1]]
    links: dict[str, str] = {}
    assert len(list(read_members(path, lambda _: True, links=links))) == 1
    assert links == {"package/link": ".//etc/passwd"}  # a name that no member has
    with pytest.raises(UserError, match=r"'package/a\.json' has 3 bytes; at most 2 are read"):
        list(read_members(path, lambda _: True, 2))
    for name in ("b.json", "link"):
        with pytest.raises(UserError, match=f"holds no '{name}'"):
            read_texts(path, [name])


@pytest.mark.parametrize("name", ["x.tgz", "x.deb"])
@pytest.mark.parametrize("data", [b"", b"no package", b"!<arch>\n" + b"debian-binary".ljust(60)])
def test_what_is_no_package_is_one_line(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match="is no package that can be read"):
        list(read_members(tmp_path / name, lambda _: True))


def test_the_command_passes_on_where_packages_come_from(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[object] = []

    def record(out: Path, packages: Path | None, **more: object) -> Path:
        told.append((out, packages, more["npm"], more["debian"], more["jobs"]))
        return out

    monkeypatch.setattr(emoji, "main", record)
    monkeypatch.delenv("NPM_CONFIG_REGISTRY", raising=False)
    assert cli(["data", "emoji", "--out", "o"]) == 0
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "http://n")
    assert cli(["data", "emoji", "--out", "o", "--packages", "p", "--debian", "http://d"]) == 0
    assert told == [
        (Path("o"), None, NPM, DEBIAN, None),
        (Path("o"), Path("p"), "http://n", "http://d", None),
    ]
    assert capsys.readouterr().out == "o\no\n"
