"""A picture while it is painted: what has come of its codes, drawn at a bounded cost.

Between generate, which tells of ids as they come, and whoever watches. The pipeline hangs it in.
"""

# Shapes: L = cells of a picture, row by row

import math
import time
from collections.abc import Callable, Sequence

from PIL import Image

from cm3leon.prompts import Region
from tokenizer.codec import Codec
from tokenizer.document import Hole, Picture
from tokenizer.pixels import sheet

Watcher = Callable[[Image.Image, float], None]  # the picture so far, and the share that has come

SHARE = 0.03  # of all the time, at most, goes into views
GUESS = 2e-6  # seconds a pixel, what the first view is taken to cost
GREY = (128, 128, 128)


class Live:
    """Shows a watcher the samples of a request as their codes come: one picture, or a sheet.

    It keeps an account of the time that views take, the watcher's own included, and leaves a view
    out where that would exceed SHARE of the time since it was made. A view is taken to cost what
    the last one did; what the first will cost is a guess by its pixels.

    region: what is to be painted, if that is not a whole picture; finish: what else becomes of a
    picture.
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
        """Hear of all ids of a sample so far; with the last sample comes the view."""
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
    """The picture of the codes that are known; the cells of the others are grey."""
    grid = math.isqrt(len(codes_L))
    image = to_image(Picture(filled(codes_L, grid)))
    missing = Image.new("L", (grid, grid))
    missing.putdata([255 * (code is None) for code in codes_L])
    image.paste(GREY, mask=missing.resize(image.size, Image.Resampling.NEAREST))
    return image


def filled(codes_L: Sequence[int | None], grid: int) -> tuple[int, ...]:
    """Every unknown code as the one above it: the picture keeps its colours, which a decoder that
    evens them out over the whole picture looks at. In the first row: as the one before it."""
    whole: list[int] = []
    last = next((code for code in codes_L if code is not None), 0)
    for cell, code in enumerate(codes_L):
        if code is None:
            code = whole[cell - grid] if cell >= grid else last
        whole.append(code)
        last = code
    return tuple(whole)


def opened(region: Region) -> tuple[list[int | None], list[int]]:
    """The codes of a region's picture before anything has come, None where one is to be drawn; and
    the cells where those belong that come, in their order."""
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
