"""What a user names as the place of pictures -> samples: tars, folders of pictures, urls, commands.

On the path: names -> `find_sources` -> `read_source`, one source after the other -> a memory.
Only what a user names is ever fetched: an url or a command's output becomes a tar in a temporary
folder first, so that it goes through the same door as a tar that was always here.
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
MOST = 1_000_000  # sources of one range
PATIENCE = 60  # seconds without a byte, then a download is given up


def find_sources(names: Sequence[str]) -> list[str]:
    """The sources that these names mean, each once, in the order given.

    A name is a tar, a glob of tars, a folder of tars, a folder of pictures with `.txt` or `.json`
    beside them, an url of a tar, or `pipe:` and a shell command that writes one; `{000..099}` in it
    stands for every number between. What lies here is looked for; nothing is fetched yet.
    Raises UserError where a name means nothing.
    """
    each = (one for name in names for one in _numbered(name))
    return list(dict.fromkeys(source for one in each for source in _found(one)))


def read_source(source: str, tally: Tally) -> Iterator[Sample]:
    """All whole samples of one source; see `read_samples`.

    In a folder of pictures the files of one sample share their path up to the ending, and that
    path within the folder is its id where no JSON says another. Links are followed to files, not to
    folders. Raises UserError for what cannot be fetched or is no tar.
    """
    if source.startswith((*URLS, COMMAND)):
        with _fetched(source) as tar:
            yield from read_samples([tar], tally)
    elif os.path.isdir(source):
        yield from whole_samples(_files(Path(source), tally), set(), tally)
    else:
        yield from read_samples([Path(source)], tally)


def _numbered(name: str) -> list[str]:
    """`a-{08..10}.tar` -> a-08.tar, a-09.tar, a-10.tar."""
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
    raise UserError(f"no tar and no picture ({kinds}) is found in {name!r}; name another folder")


def _files(folder: Path, tally: Tally) -> Iterator[Member]:
    """The files of a folder of pictures that are ours to read, those of one sample together."""

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
    """The tar behind an url or a command, in a temporary folder."""
    with TemporaryDirectory(prefix="cm3leon-") as folder:
        tar = Path(folder) / _tar_name(source)
        try:
            with tar.open("wb") as file:
                (_run if source.startswith(COMMAND) else _download)(source, file)
        except (OSError, HTTPException, ValueError) as error:
            reason = " ".join(str(error).split())
            if isinstance(error, HTTPError):
                error.close()  # it is an answer too, and holds its socket
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
    """The name of the tar in an url or a command, because it begins the ids of its samples."""
    names = re.findall(r"([\w.-]+\.tar)(?!\w)", source)
    return names[-1] if names else f"{sha256(source.encode()).hexdigest()[:12]}.tar"
