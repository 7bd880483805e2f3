"""Views: the codes of all pictures of a corpus, seen through a few random changes of the pixels.

    codes.npy        uint16 [V, P, N]: for each view the codes of each picture of token shards
    about.json       of which shards; the views
    manifest.json    size and SHA-256 of each part

Offline, beside the token shards: pictures -> `View` -> image tokenizer -> table, which `data`
reads. A model that knows its pictures by heart has no use for a document in front of one. With all
pictures of a row seen through the same view, the documents tell what no weight does: which way the
thing looks, where it stands, what is red. Ours; the papers train on pictures as they are.
"""

# Shapes: V = views, P = pictures, N = codes of one, B = batch, 3 = red, green, blue, H, W = pixels

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice, permutations
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cm3leon.pipeline import pick_device
from tokenizer.data.shards import Shards
from tokenizer.data.sources import find_sources, read_source
from tokenizer.data.tables import read_table, write_about
from tokenizer.data.tars import Tally, decode
from tokenizer.errors import UserError
from tokenizer.image import ImageTokenizer, PictureEncoder
from tokenizer.manifest import new_folder
from tokenizer.pixels import to_pixels
from train.state import Say

BATCH = 64
TABLE = "codes.npy"
LEAST, MOST = 0.8, 1.2  # how large a thing comes out
FAR = 0.15  # how far it moves, of the picture's side


@dataclass(frozen=True)
class View:
    """One change of pixels: which channels are red, green, blue; mirrored or not; size; place."""

    channels: tuple[int, ...]
    mirrored: bool
    zoom: float
    right: float  # of the picture's side
    down: float

    def __call__(self, pixels_B3HW: Tensor) -> Tensor:
        """Pixels as they look through it, of the same shape; an edge goes on beyond itself."""
        across = -1 / self.zoom if self.mirrored else 1 / self.zoom
        # where in -1..1 of the old picture a place of the new one comes from
        theta = pixels_B3HW.new_tensor(
            [
                [across, 0, -2 * self.right * across],
                [0, 1 / self.zoom, -2 * self.down / self.zoom],
            ]
        )
        moved_B3HW = pixels_B3HW[:, list(self.channels)]
        where = F.affine_grid(
            theta.expand(len(moved_B3HW), 2, 3), list(moved_B3HW.shape), align_corners=False
        )
        return F.grid_sample(moved_B3HW, where, padding_mode="border", align_corners=False)


def draw_views(count: int, seed: int) -> list[View]:
    """`count` views; every sixth has the colours as they are, the others each other order."""
    rng = np.random.default_rng(seed)
    orders = list(permutations(range(3)))
    return [
        View(
            channels=orders[number % len(orders)],
            mirrored=bool(rng.random() < 0.5),
            zoom=float(rng.uniform(LEAST, MOST)),
            right=float(rng.uniform(-FAR, FAR)),
            down=float(rng.uniform(-FAR, FAR)),
        )
        for number in range(count)
    ]


def write_views(
    folder: Path,
    pictures: Iterable[tuple[str, Image.Image]],
    shards: Shards,
    image_tokenizer: PictureEncoder,
    views: Sequence[View],
    device: torch.device | str = "cpu",
) -> None:
    """Write the table of some (id, picture), all or nothing; ids that the shards lack are left out.

    Raises UserError where one of the shards' pictures did not come.
    """
    # of two pictures with one id the first counts, as in the shards
    left = {picture["id"]: number for number, picture in enumerate(shards.every_picture())}
    rest = ((left.pop(name), image) for name, image in pictures if name in left)
    with new_folder(folder) as aside:
        codes_VPN = np.lib.format.open_memmap(
            aside / TABLE, "w+", np.uint16, (len(views), *shards.codes_PN.shape)
        )
        while group := list(islice(rest, BATCH)):
            numbers = [number for number, _ in group]
            pixels_B3HW = torch.stack([to_pixels(image) for _, image in group]).to(device)
            for place, view in enumerate(views):
                codes_VPN[place, numbers] = image_tokenizer.encode(view(pixels_B3HW)).cpu().numpy()
        if left:
            raise UserError(
                f"{len(left):,} of the {shards.pictures:,} pictures of {shards.folder} did not "
                f"come, the first is {next(iter(left))!r}; name the sources that these shards were "
                "made from"
            )
        codes_VPN.flush()
        write_about(aside, shards, {"views": [vars(one) for one in views]})


def read_views(folder: Path | str, shards: Shards) -> NDArray[np.uint16]:
    """The table [V, P, N] of these shards, mapped. Raises UserError where it is missing, damaged or
    of other shards."""
    shape = (None, *shards.codes_PN.shape)
    return read_table(folder, TABLE, shards, np.uint16, shape, "cm3leon data views")


def main(
    sources: Sequence[str],
    shards: Path,
    image_tokenizer: Path,
    out: Path,
    *,
    count: int = 12,
    seed: int = 0,
    device: str = "auto",
    say: Say,
) -> Path:
    """`cm3leon data views`: write the views of token shards from the sources that those were made
    from. Returns `out`."""
    place = pick_device(device)
    tokenizer = ImageTokenizer.load(image_tokenizer).to(place)
    tally = Tally()
    opened = Shards.open(shards, tokenizer.hash)
    samples = (one for source in find_sources(sources) for one in read_source(source, tally))
    decoded = decode(samples, tally, tokenizer.size)
    pictures = ((metadata["id"], image) for metadata, image in decoded)
    write_views(out, pictures, opened, tokenizer, draw_views(count, seed), place)
    tally.tell(say)
    say(f"{opened.pictures:,} pictures in {count} views")
    return out
