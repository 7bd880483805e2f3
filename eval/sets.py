"""What is measured on: pictures straight from a split's tars, or their codes from token shards.

tars -> `list_pictures` (metadata of all) -> a choice of ids -> `read_images` (pixels of those);
token shards -> `captioned` (metadata and codes, a group at a time).
"""

from collections.abc import Callable, Iterator, Sequence, Set
from pathlib import Path
from typing import Any

from PIL import Image

from eval.figures import kind_of, limited
from tokenizer.document import Picture
from tokenizer.errors import UserError
from tokenizer.shards import Shards
from tokenizer.tars import Tally, decode, read_samples

GROUP = 64  # pictures of token shards measured together, between two words of progress


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


def find_images(tars: Sequence[Path], size: int, ids: Set[str]) -> dict[str, Image.Image]:
    """The pictures with these ids, all of them. Raises UserError where one is not there."""
    found = {meta["id"]: image for meta, image in read_images(tars, ids, Tally(), size)}
    missing = sorted(ids - found.keys())
    if missing:
        raise UserError(
            f"{len(missing)} pictures are not in the tars, {missing[0]!r} for one; "
            "give the corpus from which they were chosen"
        )
    return found


def captioned(
    shards: Shards, limit: int | None, progress: Callable[[int, int], None] | None
) -> Iterator[list[tuple[dict[str, Any], Picture]]]:
    """Metadata and codes of the pictures that have a caption, at most `limit` of each kind, evenly
    spaced, `GROUP` at a time; `progress` hears after each group how many are done, and of how many.

    Raises UserError where there is none.
    """
    pictures = enumerate(shards.every_picture())
    kinds = {number: kind_of(picture) for number, picture in pictures if picture.get("captions")}
    if not kinds:
        raise UserError(f"no picture of {str(shards.folder)!r} has a caption")
    numbers = [list(kinds)[place] for place in limited(list(kinds.values()), limit)]
    for start in range(0, len(numbers), GROUP):
        group = [shards.picture(number) for number in numbers[start : start + GROUP]]
        yield [(metadata, Picture(codes)) for metadata, codes in group]
        if progress is not None:
            progress(start + len(group), len(numbers))
