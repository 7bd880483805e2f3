"""Atomic writes of folders and files, and manifests that detect damage.

Every result on disk (checkpoints, tokenizers, token shards, memories, images) is written to a
temporary path, synced and renamed; a folder has a `manifest.json` with the size and the SHA-256 of
every part, so that an incomplete copy or a flipped bit is reported when the folder is read.
"""

import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, cast

from tokenizer.errors import UserError

MANIFEST = "manifest.json"
VERIFIED = "verified.json"  # beside it: the parts when this machine last verified them
LONGEST_NOTE = 1 << 20  # maximum bytes of that file; a longer file is not ours
FORMAT = 1


@contextmanager
def new_folder(
    path: Path | str,
    *,
    replace: bool = False,
    aside: Path | None = None,
    hashes: Mapping[str, str] | None = None,
) -> Generator[Path]:
    """Yield an empty folder beside `path`; if the block succeeds, it is renamed to `path`.

    With `replace`, an existing folder at `path` is swapped out and deleted if it has a manifest or
    is empty. On any exception nothing is left behind.
    For several processes that fill one folder: `aside` is its temporary path in all of them (an
    existing one is deleted), and `hashes` are the SHA-256 of parts that the others wrote and
    synced.
    Raises UserError, before the block runs, if `path` cannot be created or already exists.
    """
    shown, path = str(path), _resolved(path)
    _check_parent(shown, path)
    _check_free(shown, path, replace)
    if aside is None:
        aside = _aside(path)
    else:
        shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir()
    except OSError as error:
        raise UserError(f"cannot write {shown!r}: {error.strerror}") from error
    try:
        yield aside
        _seal(aside, hashes or {})
        _check_free(shown, path, replace)
        _swap(aside, path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def write_file(path: Path | str, data: bytes) -> None:
    """Write `data` to `path` atomically; an existing file is replaced.

    Raises UserError if the parent folder is missing or the file cannot be written.
    """
    check_writable(path)
    shown, path = str(path), _resolved(path)
    aside = _aside(path)
    try:
        try:
            with open(aside, "xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(aside, path)
            _sync_folder(path.parent)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(f"cannot write {shown!r}: {error.strerror}") from error


def sync(path: Path) -> str:
    """Sync a file to disk, and return its SHA-256 in hexadecimal."""
    with open(path, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        os.fsync(stream.fileno())
    return digest


@contextmanager
def locked(lock: Path, busy: str) -> Generator[None]:
    """Hold a lock file until the end of the block or of the process. Raises UserError with the
    message `busy` if another process holds it."""
    try:
        file = lock.open("a")
    except OSError as error:
        raise UserError(f"cannot write {str(lock)!r}: {error.strerror}") from error
    os.register_at_fork(after_in_child=file.close)  # otherwise a child would keep the lock
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(busy) from error
        yield


def file_hash(path: Path | str) -> str:
    """Return the SHA-256 of a file in hexadecimal. Raises UserError if it cannot be read."""
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {str(path)!r}: {error.strerror}") from error


def verify(folder: Path | str, hashes: bool = True) -> frozenset[str]:
    """Check a folder against its manifest: every part exists and has its size and (`hashes`) its
    hash. Return the names of the parts.

    Files that the manifest does not list are ignored. Raises UserError naming folder and part.
    """
    shown, folder = str(folder), Path(folder)
    parts = _read_manifest(shown, folder)
    for name, (size, digest) in parts.items():
        part = folder / name
        if not _is_file(part):
            raise UserError(f"{shown!r} is incomplete: {name!r} is missing; copy it again")
        got = part.stat().st_size
        if got != size:
            raise UserError(
                f"{shown!r} is damaged: {name!r} has {got} bytes, not {size}; copy it again"
            )
        if hashes and file_hash(part) != digest:
            raise UserError(
                f"{shown!r} is damaged: {name!r} is not what was written; copy it again"
            )
    return frozenset(parts)


@contextmanager
def first_look(folder: Path | str) -> Generator[bool]:
    """Yield whether this machine still has to `verify` the folder with its hashes.

    If the block succeeds, the sizes, times and inodes of the parts are recorded in the folder, and
    the next call yields True only if they have changed. In a read-only folder every call yields
    True. Raises UserError if the manifest cannot be read.
    """
    path = Path(folder) / VERIFIED
    stamp = _stamp(Path(folder))
    fresh = stamp is None or _read_note(path) != stamp
    yield fresh
    if fresh and stamp is not None and not path.is_symlink() and os.access(folder, os.W_OK):
        with suppress(UserError):
            write_file(path, json.dumps(stamp).encode())


def check_writable(path: Path | str) -> None:
    """Check, before expensive work begins, that a result can be written at `path`.

    Raises UserError if its folder is missing or not writable, or if `path` is itself a folder.
    """
    shown, path = str(path), _resolved(path)
    _check_parent(shown, path)
    if path.is_dir():
        raise UserError(f"cannot write {shown!r}: it is a folder; name another")
    if path.exists() and not path.is_file():
        raise UserError(f"cannot write {shown!r}: it is not a plain file")


def _resolved(path: Path | str) -> Path:
    # A rename would replace a symbolic link itself, not its target.
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot use the path {str(path)!r}: {error}") from error


def _check_parent(shown: str, path: Path) -> None:
    try:
        path.exists()  # raises for a name that the file system does not allow
        if not path.parent.is_dir():
            raise UserError(
                f"cannot write {shown!r}: there is no folder {str(path.parent)!r}; create it first"
            )
    except OSError as error:
        raise UserError(f"cannot write {shown!r}: {error.strerror}") from error
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {shown!r}: the folder {str(path.parent)!r} is not writable")


def _check_free(shown: str, path: Path, replace: bool) -> None:
    if not path.exists():
        return
    if not replace:
        raise UserError(f"{shown!r} already exists; choose another name or move it away")
    if not path.is_dir():
        raise UserError(f"cannot replace {shown!r}: it is a file, not a folder")
    # A mistyped output path must never delete a user's folder that we did not write.
    if not (path / MANIFEST).is_file() and any(path.iterdir()):
        raise UserError(f"cannot replace {shown!r}: it has no {MANIFEST}, so it may not be ours")


def _aside(path: Path) -> Path:
    # Truncated, so that a long but valid name stays valid with our suffix.
    return path.parent / f".{path.name[:40]}.{secrets.token_hex(6)}"


def _seal(folder: Path, hashes: Mapping[str, str]) -> None:
    """Sync every part to disk and write the manifest that lists them."""
    assert not (folder / MANIFEST).exists(), f"{MANIFEST} is written by new_folder alone"
    files: dict[str, dict[str, int | str]] = {}
    for part in sorted(folder.rglob("*")):
        if part.is_dir():
            _sync_folder(part)
            continue
        part.chmod(0o644)  # safetensors makes files owner-only; access is set on the folder
        name = part.relative_to(folder).as_posix()
        digest = hashes.get(name) or sync(part)
        files[name] = {"bytes": part.stat().st_size, "sha256": digest}
    text = json.dumps({"format": FORMAT, "files": files}, indent=2, sort_keys=True) + "\n"
    write_file(folder / MANIFEST, text.encode())


def _swap(aside: Path, path: Path) -> None:
    if not path.exists():
        aside.rename(path)
        _sync_folder(path.parent)
        return
    old = _aside(path)
    path.rename(old)
    try:
        aside.rename(path)
    except BaseException:
        old.rename(path)
        raise
    _sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that the file system does not allow
        return False


def _stamp(folder: Path) -> dict[str, Any] | None:
    """Return a value that differs if a part has changed; None if a part is missing."""
    names = _read_manifest(str(folder), folder)
    stamp: dict[str, Any] = {MANIFEST: file_hash(folder / MANIFEST)}
    try:
        for name in sorted(names):
            found = (folder / name).stat()
            stamp[f"/{name}"] = [found.st_size, found.st_mtime_ns, found.st_ino]
    except (OSError, ValueError):
        return None
    return stamp


def _read_note(path: Path) -> object:
    """Read the record of the last verification; None if it is not usable, because an untrusted
    folder may hold anything under its name."""
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > LONGEST_NOTE:
            return None
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read_manifest(shown: str, folder: Path) -> dict[str, tuple[int, str]]:
    if not folder.is_dir():
        raise UserError(f"there is no folder {shown!r}")
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{shown!r} has no {MANIFEST}: it is not a folder we wrote, or a torn copy")
    bad = f"{shown!r} is damaged: its {MANIFEST} cannot be read; copy it again"
    try:
        content: object = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(bad) from error
    if not isinstance(content, dict):
        raise UserError(bad)
    table = cast("dict[str, object]", content)
    made = table.get("format")
    if type(made) is not int:
        raise UserError(bad)
    if made != FORMAT:
        raise UserError(f"{shown!r} is of format {made}; this version reads {FORMAT}")
    files = table.get("files")
    if not isinstance(files, dict):
        raise UserError(bad)
    return {
        name: _read_entry(shown, name, entry)
        for name, entry in cast("dict[str, object]", files).items()
    }


def _read_entry(shown: str, name: str, entry: object) -> tuple[int, str]:
    pure = PurePosixPath(name)
    inside = name and not pure.is_absolute() and ".." not in pure.parts
    if not inside or "\\" in name or "\0" in name:
        raise UserError(f"{shown!r} is refused: its {MANIFEST} names {name!r}, outside the folder")
    match entry:
        case {"bytes": int(size), "sha256": str(digest)}:
            return size, digest
        case _:
            raise UserError(f"{shown!r} is damaged: {MANIFEST} lacks size or hash of {name!r}")
