"""Image regions to regenerate: a box or a mask, as pixels and as codes.

Used by the pipeline's `infill`; `blend` puts the generated region back into the image. An edit
keeps the pixels where the codes are unchanged.
"""

# Shapes: H, W = pixels per side, 3 = red, green, blue, G = codes per side

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from tokenizer.document import Picture
from tokenizer.errors import UserError
from tokenizer.pixels import fit, to_image, to_pixels

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom excluded

FEATHER = 32  # the border of a generated region fades over 1/FEATHER of the image's side


def mask_of(whole: Image.Image, region: Image.Image | Box, size: int) -> Tensor:
    """Return a bool mask [H, W] of the central square at the model's `size`: True to generate."""
    if not isinstance(region, Image.Image):
        check_box(region, whole.size)
        mask = Image.new("L", whole.size)
        mask.paste(255, region)
    elif region.size != whole.size:
        (wide, high), (width, height) = region.size, whole.size
        raise UserError(
            f"the mask has {wide} x {high} pixels, the image {width} x {height}; "
            "make them the same size"
        )
    else:
        mask = region.convert("L")
    return torch.from_numpy(np.array(fit(mask, size))) > 127


def cells_of(mask_HW: Tensor, grid: int) -> list[bool]:
    """Return whether to generate each of grid x grid codes: those that cover a pixel of the mask.

    Raises UserError if there are none.
    """
    cell = mask_HW.shape[0] // grid
    covered = F.max_pool2d(mask_HW[None].float(), cell) > 0
    if not covered.any():
        raise UserError(
            "the region to infill is empty, too small, or outside the image's middle "
            "square, which is all that the model sees; mark a larger one"
        )
    return covered.flatten().tolist()


def mask_of_changed(before: Picture, after: Picture, size: int) -> Tensor:
    """Return a bool mask [H, W] of an image of `size`: True where a code has changed."""
    changed = [old != new for old, new in zip(before.codes, after.codes, strict=True)]
    grid = math.isqrt(len(changed))
    mask_GG = torch.tensor(changed).view(grid, grid)
    return mask_GG.repeat_interleave(size // grid, 0).repeat_interleave(size // grid, 1)


def check_box(box: Box, size: tuple[int, int]) -> None:
    """Raise UserError for a box that is empty or exceeds an image of `size` (width, height)."""
    left, top, right, bottom = box
    width, height = size
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise UserError(
            f"the box {left},{top},{right},{bottom} is not inside the image of {width} x {height}"
            "; give left,top,right,bottom in its pixels"
        )


def blend(before: Image.Image, after: Image.Image, mask_HW: Tensor) -> Image.Image:
    """Return `after` inside the mask, fading in from its border, and exactly `before` outside."""
    steps = max(1, before.width // FEATHER)
    outside_1HW = (~mask_HW)[None].float()
    share_1HW = 1 - outside_1HW
    for _ in range(steps):  # each iteration grows the outside by a pixel
        outside_1HW = F.max_pool2d(outside_1HW, 3, stride=1, padding=1)
        share_1HW = share_1HW + 1 - outside_1HW
    before_3HW, after_3HW = to_pixels(before), to_pixels(after)
    return to_image(before_3HW.lerp(after_3HW, share_1HW / (steps + 1)))
