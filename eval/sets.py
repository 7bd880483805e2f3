"""What is measured on: the pictures of a split, straight from its tars.

tars -> `list_pictures` (metadata of all) -> a choice of ids -> `read_images` (pixels of those).
Evaluation of the decoder reads codes from token shards and does not come through here.
"""

from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import Any

from PIL import Image

from tokenizer.errors import UserError
from tokenizer.pixels import fit, open_image
from tokenizer.tars import Tally, read_samples


def list_pictures(tars: Sequence[Path]) -> list[dict[str, Any]]:
    """The metadata of all pictures, in order. Raises UserError where there is none."""
    found = [sample.metadata for sample in read_samples(tars, Tally())]
    if not found:
        raise UserError(f"there is no picture with its text in {len(tars)} tars")
    return found


def read_images(
    tars: Sequence[Path], size: int, ids: Set[str], tally: Tally
) -> Iterator[tuple[dict[str, Any], Image.Image]]:
    """Metadata and picture, `size` x `size`, of those with these ids; damaged ones are noted in
    `tally` and left out."""
    for sample in read_samples(tars, tally):
        if sample.metadata["id"] not in ids:
            continue
        try:
            image = fit(open_image(sample.picture), size)
        except UserError as error:
            tally.skip(sample.name, error)
            continue
        tally.pictures += 1
        yield sample.metadata, image


def find_images(tars: Sequence[Path], size: int, ids: Set[str]) -> dict[str, Image.Image]:
    """The pictures with these ids, all of them. Raises UserError where one is not there."""
    found = {meta["id"]: image for meta, image in read_images(tars, size, ids, Tally())}
    missing = sorted(ids - found.keys())
    if missing:
        raise UserError(
            f"{len(missing)} pictures are not in the tars, {missing[0]!r} for one; "
            "give the corpus from which they were chosen"
        )
    return found
