"""Tables with one row per image of token shards, bound to the shards by their hash.

A table is a folder of one .npy file, `about.json` (the hash of the shards, and metadata from its
writer) and a manifest. It is stored beside the shards, not in them, because it is made later, by
packages further down the data path.
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
    """Write `about.json` to a table's folder before it is sealed: the shards' hash, and `told`."""
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
    """Return the table `name` of these shards, memory-mapped; None in `shape` matches any size.

    Raises UserError if it is missing, damaged, of another dtype or shape, or of other shards; the
    message names `command`, which makes the table.
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
    return np.asarray(table)  # a plain array, because indexing a memmap is slow
