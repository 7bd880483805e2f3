"""Pinned packages of the emoji corpus: download, verification and reading.

`fetch` downloads a package of a given name, version and SHA-256 to the user's folder of packages;
`read_members` reads its files for `styles.py` and `clipart.py`. An existing file is not downloaded
again, and a file with another hash is refused. Packages are read member by member, never unpacked.
"""

import hashlib
import io
import json
import posixpath
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from lzma import LZMAError
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

from tokenizer.data.tars import Say
from tokenizer.errors import UserError
from tokenizer.manifest import file_hash, write_file

NPM, DEBIAN = "https://registry.npmjs.org", "https://deb.debian.org/debian"
PATIENCE = 60  # timeout of a download, in seconds without data
MOST_BYTES = 200_000_000  # size limit of one member
AR_MAGIC, AR_HEADER = b"!<arch>\n", 60


@dataclass(frozen=True, kw_only=True)
class Package:
    """One file of a registry. `pool`: its folder on a Debian mirror, empty for an npm package."""

    name: str
    version: str
    size: int
    sha256: str
    authors: str
    licence: str
    pool: str = ""

    @property
    def file(self) -> str:
        """File name in the folder of packages, as by `npm pack` and `apt-get download`, but without
        Debian's epoch, which the mirrors leave out too."""
        if self.pool:
            return f"{self.name}_{self.version.partition(':')[2]}_all.deb"
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"

    @property
    def source(self) -> str:
        """Name and version, as in the metadata of every image."""
        if self.pool:
            return f"{self.name} {self.version} (Debian)"
        return f"{self.name}@{self.version}"

    def url(self, npm: str, debian: str) -> str:
        """Return the address of the file on an npm registry or a Debian mirror."""
        if self.pool:
            return f"{debian.rstrip('/')}/{self.pool}/{self.file}"
        base = self.name.rpartition("/")[2]
        return f"{npm.rstrip('/')}/{self.name}/-/{base}-{self.version}.tgz"


# Sizes and hashes of the files in the registries; a file with another hash is refused.
_ALL = (
    Package(
        name="@iconify-json/noto",
        version="1.2.9",
        size=3_102_958,
        sha256="3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
        authors="Noto Emoji, Google",
        licence="Apache-2.0",
    ),
    Package(
        name="@iconify-json/noto-v1",
        version="1.2.5",
        size=1_587_591,
        sha256="2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
        authors="Noto Emoji v1 (blobs), Google",
        licence="Apache-2.0",
    ),
    Package(
        name="@iconify-json/fxemoji",
        version="1.2.2",
        size=1_034_876,
        sha256="f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef",
        authors="FxEmojis, Mozilla",
        licence="Apache-2.0",
    ),
    Package(
        name="@iconify-json/icon-park",
        version="1.2.4",
        size=338_205,
        sha256="c1a25212a31602aca93c3fa6f6b3288e89b9d7811afc132dfd78506e9d586b6f",
        authors="IconPark, ByteDance",
        licence="Apache-2.0",
    ),
    Package(
        name="@iconify-json/twemoji",
        version="1.2.5",
        size=1_555_888,
        sha256="19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
        authors="Twemoji, Twitter Inc and other contributors",
        licence="CC-BY-4.0",
    ),
    Package(
        name="@iconify-json/emojione",
        version="1.2.3",
        size=687_690,
        sha256="26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
        authors="EmojiOne 2, Ranks.com Inc",
        licence="CC-BY-4.0",
    ),
    Package(
        name="@iconify-json/streamline-emojis",
        version="1.2.4",
        size=381_714,
        sha256="5dac87c876b322500989828c5823143e0100d78881627a2e4081a4b897cbfdbc",
        authors="Streamline",
        licence="CC-BY-4.0",
    ),
    Package(
        name="@iconify-json/streamline-ultimate-color",
        version="1.2.2",
        size=253_509,
        sha256="46133a11f3734bcef29066391d7edc141ed1d8056242ddfa1b5d36ce286420b6",
        authors="Streamline",
        licence="CC-BY-4.0",
    ),
    Package(
        name="@iconify-json/streamline-freehand-color",
        version="1.2.2",
        size=1_003_916,
        sha256="00d74cbddaf1bcf35c8614ac0544d10af69c7cee8801475473fe424ee0c0c642",
        authors="Streamline",
        licence="CC-BY-4.0",
    ),
    Package(
        name="@iconify-json/fluent-emoji",
        version="1.2.7",
        size=14_323_330,
        sha256="8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b",
        authors="Fluent Emoji, Microsoft",
        licence="MIT",
    ),
    Package(
        name="@iconify-json/fluent-emoji-flat",
        version="1.2.6",
        size=1_172_438,
        sha256="7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
        authors="Fluent Emoji, Microsoft",
        licence="MIT",
    ),
    Package(
        name="@lobehub/fluent-emoji-3d",
        version="1.1.0",
        size=15_792_027,
        sha256="c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        authors="Fluent Emoji, Microsoft (packed by LobeHub)",
        licence="MIT",
    ),
    Package(
        name="@iconify-json/fluent-color",
        version="1.2.21",
        size=263_008,
        sha256="fa2ddaaac7a2a7b902659cea1b5b8c03017ce2ae56295138876b86a36177dfbe",
        authors="Fluent System Icons, Microsoft",
        licence="MIT",
    ),
    Package(
        name="@iconify-json/flat-color-icons",
        version="1.2.3",
        size=47_566,
        sha256="d8878a9b0f02d749bc8671eb7d47882eb711185cbcefbb365cbfb488773c4786",
        authors="Icons8",
        licence="MIT",
    ),
    Package(
        name="@iconify-json/meteocons",
        version="1.2.4",
        size=80_727,
        sha256="1c0b49c6375c0e35c3ed65db6e41e9811a0cbd2368c13ee27f870f60c6185ff0",
        authors="Bas Milius",
        licence="MIT",
    ),
    Package(
        name="@iconify-json/circle-flags",
        version="1.2.11",
        size=109_264,
        sha256="ee9a03f6a6fdd79cc6325bdcb7bb93b83d331e60b16e226188f154a64b6bb4a9",
        authors="HatScripts",
        licence="MIT",
    ),
    Package(
        name="emojibase-data",
        version="17.0.0",
        size=6_711_091,
        sha256="d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
        authors="Miles Johnson; Unicode, Inc.",
        licence="MIT; Unicode-3.0",
    ),
    Package(
        name="openclipart-svg",
        version="1:0.18+dfsg-19",
        size=24_919_068,
        sha256="989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5",
        authors="Open Clip Art Library contributors (each named with its picture)",
        licence="public domain (CC-PDDC)",
        pool="pool/main/o/openclipart",
    ),
    Package(
        name="openclipart-png",
        version="1:0.18+dfsg-19",
        size=130_910_028,
        sha256="f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02",
        authors="Open Clip Art Library contributors (each named with its picture)",
        licence="public domain (CC-PDDC)",
        pool="pool/main/o/openclipart",
    ),
)
PACKAGES = {package.name.rpartition("/")[2]: package for package in _ALL}


def fetch(package: Package, folder: Path, npm: str, debian: str, say: Say) -> Path:
    """Return the path of a package's file in `folder`; download the file if it is missing.

    Raises UserError if the download fails or the hash is not the expected one.
    """
    path = folder / package.file
    if path.exists():
        got = file_hash(path)
        if got != package.sha256:
            raise UserError(
                f"{path} has SHA-256 {got[:12]}..., not {package.sha256[:12]}...; delete it and "
                "run again"
            )
        return path
    url = package.url(npm, debian)
    say(f"fetching {url} ({package.size / 1e6:.2f} MB)")
    data = download(url, package.size)
    got = hashlib.sha256(data).hexdigest()
    if got != package.sha256:
        raise UserError(
            f"{url} has {len(data):,} bytes with SHA-256 {got[:12]}..., wanted {package.size:,} "
            f"with {package.sha256[:12]}...; try again, or name another mirror"
        )
    write_file(path, data)
    return path


def download(url: str, size: int) -> bytes:
    """Download at most `size` + 1 bytes from an url. Raises UserError if the download fails."""
    if not url.startswith(("https://", "http://")):
        raise UserError(f"cannot fetch {url}: a registry's address begins with https:// or http://")
    try:
        with urlopen(url, timeout=PATIENCE) as answer:
            return answer.read(size + 1)
    except (OSError, HTTPException, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, HTTPError):
            error.close()  # an HTTPError is a response, which holds a socket
        raise UserError(
            f"cannot fetch {url} ({reason}); check the network, name a mirror with --npm or "
            "--debian, or put the file into --packages"
        ) from error


def read_members(
    path: Path,
    wanted: Callable[[str], bool],
    at_most: int = MOST_BYTES,
    links: dict[str, str] | None = None,
) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of every regular file of a package whose name is `wanted`, in its order.

    Links and devices are not followed; the target of each `wanted` symbolic link within the package
    is stored in `links`. Raises UserError for a file above `at_most` bytes, and for a package that
    cannot be read.
    """
    is_deb = path.suffix == ".deb"
    try:
        with (
            io.BytesIO(_data_of_deb(path.read_bytes())) if is_deb else path.open("rb") as file,
            tarfile.open(fileobj=file, mode="r|xz" if is_deb else "r|gz") as archive,
        ):
            for member in archive:
                if links is not None and member.issym() and wanted(member.name):
                    place = posixpath.join(posixpath.dirname(member.name), member.linkname)
                    links[member.name] = f"./{posixpath.normpath(place)}"
                if not member.isreg() or member.issparse() or not wanted(member.name):
                    continue
                if member.size > at_most:
                    raise UserError(
                        f"{path}: {member.name!r} has {member.size:,} bytes; at most {at_most:,} "
                        "are read"
                    )
                content = archive.extractfile(member)
                assert content is not None
                yield member.name, content.read()
    except (tarfile.TarError, OSError, EOFError, LZMAError, zlib.error) as error:
        raise UserError(f"{path} is no package that can be read ({error}); delete it") from error


def read_texts(path: Path, names: Sequence[str]) -> list[Any]:
    """Return the parsed JSON files of an npm package. Raises UserError if one is missing."""
    found: dict[str, bytes] = {}
    for name, data in read_members(path, {f"package/{name}" for name in names}.__contains__):
        found[name.removeprefix("package/")] = data
    missing = [name for name in names if name not in found]
    if missing:
        raise UserError(f"{path} holds no {missing[0]!r}; delete it and run again")
    return [json.loads(found[name]) for name in names]


def _data_of_deb(data: bytes) -> bytes:
    """Return the member data.tar.xz of a Debian package, which is an ar archive."""
    place = len(AR_MAGIC)
    while data.startswith(AR_MAGIC) and len(data) - place >= AR_HEADER:
        header = data[place : place + AR_HEADER]
        name, size = header[:16].strip().rstrip(b"/"), header[48:58].strip()
        place += AR_HEADER
        if not size.isdigit():
            break
        if name == b"data.tar.xz":
            return data[place : place + int(size)]
        place += int(size) + int(size) % 2
    raise tarfile.ReadError("no data.tar.xz in it")
