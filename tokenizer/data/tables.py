"""Tables that go with token shards, a row for each of their pictures: bound to them by their hash.

A table is a folder of one .npy file, `about.json` (of which shards, and what its maker tells) and a
manifest. Beside the shards, not in them: they are made later, by rooms further down the path.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tokenizer.data.shards import Shards
from tokenizer.errors import UserError
from tokenizer.manifest import MANIFEST, file_hash, verify

ABOUT = "about.json"


def write_about(folder: Path, shards: Shards, told: Mapping[str, Any]) -> None:
    """Say in a table's folder, not yet sealed, of which shards it is, and more."""
    about = {"shards": file_hash(shards.folder / MANIFEST), **told}
    (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n", "utf-8")


def read_table(
    folder: Path | str,
    name: str,
    shards: Shards,
    kind: DTypeLike,
    shape: tuple[int | None, ...],
    command: str,
) -> NDArray[Any]:
    """The table `name` of these shards, mapped; a size of None in `shape` is any.

    Raises UserError where it is missing, damaged, of another kind or of other shards; the
    `command` is what makes it.
    """
    folder = Path(folder)
    verify(folder, hashes=False)
    try:
        about: Any = json.loads((folder / ABOUT).read_text("utf-8"))
        table = np.load(folder / name, mmap_mode="r", allow_pickle=False)
        made_for = about["shards"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: cannot be read ({error}); make it with `{command}`") from error
    if made_for != file_hash(shards.folder / MANIFEST):
        raise UserError(
            f"{folder} was made for other shards than {shards.folder}; make it again with "
            f"`{command}`"
        )
    fits = len(table.shape) == len(shape) and all(
        wanted in (None, size) for wanted, size in zip(shape, table.shape, strict=True)
    )
    if not fits or table.dtype != kind:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise UserError(
            f"{folder / name}: holds {table.dtype} {table.shape}, not {np.dtype(kind)} ({wanted}); "
            f"make it again with `{command}`"
        )
    return np.asarray(table)  # no memmap: that one is slow to take from
