"""Images straight from a split's tars: the metadata of all, and the pixels of some."""

from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import Any

from PIL import Image

from tokenizer.data.tars import Tally, decode, read_samples
from tokenizer.errors import UserError


def list_pictures(tars: Sequence[Path]) -> list[dict[str, Any]]:
    """The metadata of all pictures, in order. Raises UserError where there is none."""
    found = [sample.metadata for sample in read_samples(tars, Tally())]
    if not found:
        raise UserError(f"there is no picture with its text in {len(tars)} tars")
    return found


def read_images(
    tars: Sequence[Path], ids: Set[str], tally: Tally, size: int | None = None
) -> Iterator[tuple[dict[str, Any], Image.Image]]:
    """Metadata and picture, `size` x `size` or (None) of its own size, of those with these ids;
    damaged ones are noted in `tally` and left out."""
    wanted = (sample for sample in read_samples(tars, tally) if sample.metadata["id"] in ids)
    return decode(wanted, tally, size)
