"""Sources of images (tars, image folders, URLs, shell commands) -> samples.

Data path: names -> `find_sources` -> `read_source`, one source after the other -> a memory. Only
sources named by the user are fetched: a URL or the output of a command is first saved as a tar in a
temporary folder, so that it is read in the same way as a local tar.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO
from urllib.error import HTTPError
from urllib.request import urlopen

from tokenizer.data.tars import (
    ENDINGS,
    PICTURE,
    Member,
    Sample,
    Tally,
    find_tars,
    printable,
    read_samples,
    refusal,
    whole_samples,
)
from tokenizer.errors import UserError

URLS, COMMAND = ("http://", "https://"), "pipe:"
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
MOST = 1_000_000  # maximum number of sources of a range
PATIENCE = 60  # timeout of a download, in seconds without data


def find_sources(names: Sequence[str]) -> list[str]:
    """Return the sources that these names denote, each once, in the order given.

    A name is a tar, a glob of tars, a folder of tars, a folder of images with `.txt` or `.json`
    files beside them, a URL of a tar, or `pipe:` and a shell command that writes a tar;
    `{000..099}` in it stands for every number of that range. Local files are looked up; nothing is
    fetched yet.
    Raises UserError if a name denotes nothing.
    """
    each = (one for name in names for one in _numbered(name))
    return list(dict.fromkeys(source for one in each for source in _found(one)))


def read_source(source: str, tally: Tally) -> Iterator[Sample]:
    """Yield all complete samples of a source; see `read_samples`.

    In an image folder the files of a sample have the same path except for the extension; that path,
    relative to the folder, is its id unless its JSON has another. Symbolic links to files are
    followed, those to folders are not. Raises UserError for a source that cannot be fetched or is
    not a tar.
    """
    if source.startswith((*URLS, COMMAND)):
        with _fetched(source) as tar:
            yield from read_samples([tar], tally)
    elif os.path.isdir(source):
        yield from whole_samples(_files(Path(source), tally), set(), tally)
    else:
        yield from read_samples([Path(source)], tally)


def _numbered(name: str) -> list[str]:
    """Expand ranges: `a-{08..10}.tar` -> a-08.tar, a-09.tar, a-10.tar."""
    found = RANGE.search(name)
    if found is None:
        return [name]
    first, last = found.groups()
    count = int(last) - int(first) + 1
    if not 0 < count <= MOST:
        raise UserError(
            f"{found[0]} in {name!r} means {max(0, count):,} sources; write {{FIRST..LAST}}, at "
            f"most {MOST:,} of them"
        )
    width = len(first) if first.startswith("0") else 0
    before, after = name[: found.start()], _numbered(name[found.end() :])
    numbers = range(int(first), int(last) + 1)
    return [f"{before}{number:0{width}}{rest}" for number in numbers for rest in after]


def _found(name: str) -> list[str]:
    if name.startswith((*URLS, COMMAND)):
        return [name]
    folder = Path(name)
    if not folder.is_dir() or any(folder.glob("*.tar")):
        return [str(tar) for tar in find_tars(folder)]
    for _, _, files in os.walk(folder):
        if any(ENDINGS.get(_ending(file)) == PICTURE for file in files):
            return [name]
    kinds = ", ".join(f".{ending}" for ending, part in ENDINGS.items() if part == PICTURE)
    raise UserError(f"no tar and no image ({kinds}) is found in {name!r}; name another folder")


def _files(folder: Path, tally: Tally) -> Iterator[Member]:
    """Yield the files of an image folder that belong to samples, those of one sample together."""

    def closed(error: OSError) -> None:
        tally.skip(printable(str(error.filename)), error.strerror)

    for place, folders, names in os.walk(folder, onerror=closed):
        folders.sort()
        for name in sorted(names, key=os.path.splitext):
            path = Path(place, name)
            shown = printable(path.relative_to(folder).as_posix())
            part = ENDINGS.get(_ending(name))
            if part is None:
                tally.ignore(printable(_ending(name)))
                continue
            try:
                why = refusal(part, path.is_file(), path.stat().st_size)
                data = b"" if why else path.read_bytes()
            except OSError as error:
                why, data = str(error.strerror), b""
            if why:
                tally.skip(shown, why)
            else:
                yield os.path.splitext(shown)[0], part, data


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].removeprefix(".").lower()


@contextmanager
def _fetched(source: str) -> Generator[Path]:
    """Yield the tar of a URL or a command, in a temporary folder."""
    with TemporaryDirectory(prefix="cm3leon-") as folder:
        tar = Path(folder) / _tar_name(source)
        try:
            with tar.open("wb") as file:
                (_run if source.startswith(COMMAND) else _download)(source, file)
        except (OSError, HTTPException, ValueError) as error:
            reason = " ".join(str(error).split())
            if isinstance(error, HTTPError):
                error.close()  # the error is also a response, which holds a socket
            raise UserError(f"{source}: cannot be fetched ({reason})") from error
        yield tar


def _download(url: str, file: IO[bytes]) -> None:
    with urlopen(url, timeout=PATIENCE) as answer:
        shutil.copyfileobj(answer, file, 1 << 20)
        told = answer.headers.get("Content-Length")
    if told is not None and int(told) != file.tell():
        raise OSError(f"ended after {file.tell():,} of {int(told):,} bytes")


def _run(source: str, file: IO[bytes]) -> None:
    status = subprocess.run(source.removeprefix(COMMAND), shell=True, stdout=file).returncode
    if status:
        raise OSError(f"the command ended with status {status}")


def _tar_name(source: str) -> str:
    """Return the name of the tar in a URL or a command, which becomes the prefix of sample ids."""
    names = re.findall(r"([\w.-]+\.tar)(?!\w)", source)
    return names[-1] if names else f"{sha256(source.encode()).hexdigest()[:12]}.tar"
