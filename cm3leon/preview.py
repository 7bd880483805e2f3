"""Previews of an image during generation: decodes the codes so far, at a bounded cost.

`generate` passes on ids as they are drawn, and a watcher receives the previews. Set up by the
pipeline.
"""

# Shapes: L = cells of an image, in raster order

import math
import time
from collections.abc import Callable, Sequence

from PIL import Image

from cm3leon.prompts import Region
from tokenizer.codec import Codec
from tokenizer.document import Hole, Picture
from tokenizer.pixels import sheet

Watcher = Callable[[Image.Image, float], None]  # the image so far, and the fraction generated

SHARE = 0.03  # maximum share of the total time spent on previews
GUESS = 2e-6  # seconds per pixel, the assumed cost of the first preview
GREY = (128, 128, 128)


class Live:
    """Preview of the samples of a request as their codes are generated: one image, or a sheet.

    The time that previews take, the watcher's own included, is measured, and a preview is skipped
    where it would exceed SHARE of the time since the object was created. A preview is assumed to
    cost as much as the last; the cost of the first is estimated from its number of pixels.

    region: the region to generate, if that is not a whole image; finish: postprocessing of an
    image.
    """

    def __init__(
        self,
        watcher: Watcher,
        codec: Codec,
        to_image: Callable[[Picture], Image.Image],
        *,
        samples: int,
        size: int,
        region: Region | None = None,
        finish: Callable[[Image.Image], Image.Image] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.watcher, self.codec, self.to_image, self.clock = watcher, codec, to_image, clock
        length = codec.picture_codes
        blank = Region((Picture((Hole(length),)),), ((None,) * length,))
        self.start_L, self.cells = opened(region or blank)
        self.finish = finish
        self.rows: list[Sequence[int]] = [()] * samples
        self.begun = clock()
        self.spent = 0.0
        self.cost = GUESS * size**2 * samples

    def __call__(self, number: int, ids: Sequence[int]) -> None:
        """Receive all ids of a sample so far; with the last sample, show the preview."""
        self.rows[number] = ids
        if number + 1 < len(self.rows):
            return
        now = self.clock()
        if self.spent + self.cost > SHARE * (now - self.begun):
            return
        is_image = self.codec.vocabulary.is_image
        come = [self.codec.decode_codes([*filter(is_image, row)]) for row in self.rows]
        if any(come):
            images = [self._image(codes) for codes in come]
            columns = math.ceil(math.sqrt(len(images)))
            whole = images[0] if len(images) == 1 else sheet(images, columns)
            done = sum(map(len, come)) / (len(come) * len(self.cells))
            self.watcher(whole, done)
            self.cost = self.clock() - now
            self.spent += self.cost

    def _image(self, come: Sequence[int]) -> Image.Image:
        codes_L = list(self.start_L)
        for cell, code in zip(self.cells, come, strict=False):
            codes_L[cell] = code
        image = partial(codes_L, self.to_image)
        return image if self.finish is None else self.finish(image)


def partial(
    codes_L: Sequence[int | None], to_image: Callable[[Picture], Image.Image]
) -> Image.Image:
    """Return the image of the known codes; the cells of the others are grey."""
    grid = math.isqrt(len(codes_L))
    image = to_image(Picture(filled(codes_L, grid)))
    missing = Image.new("L", (grid, grid))
    missing.putdata([255 * (code is None) for code in codes_L])
    image.paste(GREY, mask=missing.resize(image.size, Image.Resampling.NEAREST))
    return image


def filled(codes_L: Sequence[int | None], grid: int) -> tuple[int, ...]:
    """Replace every unknown code by the code above it, or in the first row by the code before it.

    The image keeps its overall colours, which affect a decoder that normalises over the whole
    image.
    """
    whole: list[int] = []
    last = next((code for code in codes_L if code is not None), 0)
    for cell, code in enumerate(codes_L):
        if code is None:
            code = whole[cell - grid] if cell >= grid else last
        whole.append(code)
        last = code
    return tuple(whole)


def opened(region: Region) -> tuple[list[int | None], list[int]]:
    """Return the codes of a region's image before generation, and the cells of the generated codes.

    A code is None where it is to be drawn; the cells are in the order of generation.
    """
    codes_L: list[int | None] = []
    cells: list[int] = []
    known = iter(region.known)
    assert isinstance(region.document[-1], Picture)
    for code in region.document[-1].codes:
        if isinstance(code, Hole):
            run = next(known)
            cells += range(len(codes_L), len(codes_L) + len(run))
            codes_L += run
        else:
            codes_L.append(code)
    return codes_L, cells
