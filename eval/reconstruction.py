"""How much of a picture survives the codebook: pixels -> codes -> pixels, against the original.

The ceiling of everything that the decoder can paint, and whether the codebook is alive: PSNR, and
the share of its entries that some picture uses.
"""

# Shapes: 3 = red, green, blue; H, W = pixels; B = batch of one; L = codes of one picture

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from eval.figures import Figure, by_kind, evenly, kind_of, limited, ratio
from eval.sets import list_pictures, read_images
from tokenizer.errors import UserError
from tokenizer.image import ImageTokenizer
from tokenizer.pixels import sheet, to_image, to_pixels
from tokenizer.tars import Tally

SHOWN = 32  # pictures on the sheet
COLUMNS = 8


@dataclass(frozen=True)
class Row:
    """What became of one kind of picture."""

    psnr: Figure
    """dB, the mean over pictures."""
    used: float
    """Share of the codebook's entries that stand in some picture of this kind."""


@dataclass(frozen=True)
class Reconstruction:
    """The figures by kind, and some pictures before and after, by turns."""

    rows: dict[str, Row]
    pictures: tuple[Image.Image, ...]

    def sheet(self) -> Image.Image:
        """Each original with its reconstruction on its right."""
        return sheet(self.pictures, COLUMNS)


def psnr(before: Image.Image, after: Image.Image) -> float:
    """Peak signal-to-noise ratio of two RGB pictures of one size in dB, of 8-bit values.

    Equal pictures count as if a single value were off by one, so that a mean stays finite.
    """
    error_HW3 = np.asarray(before, dtype=np.float64) - np.asarray(after, dtype=np.float64)
    mean_square = max(float(np.square(error_HW3).mean()), 1 / error_HW3.size)
    return 10 * math.log10(255**2 / mean_square)


def measure(
    tokenizer: ImageTokenizer,
    tars: Sequence[Path],
    *,
    limit: int | None = None,
    tally: Tally,
    progress: Callable[[int, int], None] | None = None,
) -> Reconstruction:
    """Send the pictures of some tars through the codebook, at most `limit` of each kind.

    One at a time, as the pipeline does. Damaged pictures are left out and noted in `tally`.
    """
    listed = list_pictures(tars)
    chosen = limited([kind_of(picture) for picture in listed], limit)
    ids = frozenset(listed[place]["id"] for place in chosen)
    show = set(evenly(range(len(ids)), SHOWN))
    device = next(tokenizer.net.parameters()).device
    kinds: list[str] = []
    values: list[float] = []
    used: list[list[int]] = []
    shown: list[Image.Image] = []
    for number, (metadata, before) in enumerate(read_images(tars, ids, tally, tokenizer.size)):
        codes_BL = tokenizer.encode(to_pixels(before).unsqueeze(0).to(device))
        after = to_image(tokenizer.decode(codes_BL)[0])
        kinds.append(kind_of(metadata))
        values.append(psnr(before, after))
        used.append(torch.unique(codes_BL).tolist())
        if number in show:
            shown += [before, after]
        if progress is not None:
            progress(number + 1, len(ids))
    if not kinds:
        raise UserError(f"none of the {len(ids)} pictures could be read")
    rows = {
        kind: Row(
            psnr=ratio([values[place] for place in places]),
            used=len({code for place in places for code in used[place]}) / tokenizer.codes,
        )
        for kind, places in by_kind(kinds).items()
    }
    return Reconstruction(rows, tuple(shown))
