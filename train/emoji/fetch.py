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

from tokenizer import config as settings
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
@dataclass(frozen=True, kw_only=True)
class _Packages:
    packages: tuple[Package, ...]


_ALL = settings.load(_Packages, Path(__file__).with_name("packages.yaml")).packages
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
