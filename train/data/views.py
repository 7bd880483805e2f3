"""Views: the codes of all images of a corpus under a few random augmentations of the pixels.

    codes.npy        uint16 [V, P, N]: for each view the codes of each image of token shards
    about.json       the shards they belong to; the views
    manifest.json    size and SHA-256 of each part

Computed offline, next to the token shards: images -> `View` -> image tokenizer -> table, which
`train/data/rows.py` reads. A model that has memorised its images does not need the documents before
an image. If all images of a row have the same view, these documents carry information that is not
in the weights: direction and position of the object, and the order of its colour channels. Ours;
the papers train on images without augmentation.
"""

# Shapes: V = views, P = images, N = codes per image, B = batch, 3 = RGB, H, W = pixels

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
LEAST, MOST = 0.8, 1.2  # range of the zoom factor
FAR = 0.15  # largest shift, as a fraction of the image's side


@dataclass(frozen=True)
class View:
    """One augmentation: permutation of the RGB channels, mirroring, zoom and shift."""

    channels: tuple[int, ...]
    mirrored: bool
    zoom: float
    right: float  # as a fraction of the image's side
    down: float

    def __call__(self, pixels_B3HW: Tensor) -> Tensor:
        """Return the augmented pixels, of the same shape; border pixels are repeated outside."""
        across = -1 / self.zoom if self.mirrored else 1 / self.zoom
        # affine map from coordinates of the output to those of the input, both in -1..1
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
    """Return `count` random views, whose channel orders cycle through all six permutations; every
    sixth keeps the original colours."""
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
    """Write the table of codes of `pictures`, pairs of (id, image), atomically.

    Ids that the shards lack are ignored. Raises UserError if an image of the shards is missing.
    """
    # of two images with one id the first is used, as in the shards
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
                f"{len(left):,} of the {shards.pictures:,} images of {shards.folder} did not "
                f"come, the first is {next(iter(left))!r}; name the sources that these shards were "
                "made from"
            )
        codes_VPN.flush()
        write_about(aside, shards, {"views": [vars(one) for one in views]})


def read_views(folder: Path | str, shards: Shards) -> NDArray[np.uint16]:
    """Return the memory-mapped table [V, P, N] of these shards. Raises UserError if it is missing,
    damaged or of other shards."""
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
    """Write the views of token shards, from the sources of these shards (`cm3leon data views`).
    Returns `out`."""
    place = pick_device(device)
    tokenizer = ImageTokenizer.load(image_tokenizer).to(place)
    tally = Tally()
    opened = Shards.open(shards, tokenizer.hash)
    samples = (one for source in find_sources(sources) for one in read_source(source, tally))
    decoded = decode(samples, tally, tokenizer.size)
    pictures = ((metadata["id"], image) for metadata, image in decoded)
    write_views(out, pictures, opened, tokenizer, draw_views(count, seed), place)
    tally.tell(say)
    say(f"{opened.pictures:,} images in {count} views")
    return out
