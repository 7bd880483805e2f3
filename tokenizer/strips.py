"""The VQGAN's wide maps, strip by strip: norm, SiLU, 3x3 convolution and sum without whole copies.

Above `winograd`, below `blocks`. On a CPU a map of 256 x 256 x 128 leaves every cache; each whole
pass over it, and each new copy, costs about as much as a tenth of its convolution. So where no
gradient is asked for, a strip of a few MB is turned (norm and SiLU), convolved and added to while
it is near. Results are those of whole maps but for rounding: a norm's means are taken over the
whole map first, and a strip brings a row of its neighbours with it.
"""

# Shapes: B = batch, C, O = channels in and out, H, W = height and width of a map, S = rows of a
#         strip with a row above and below, N = positions, G = groups of a norm

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.winograd import TILE, Conv3, Space

STRIP = 2**22  # bytes of a strip
LEAST = 2**26  # H * W * C * C of a map for which strips pay


class Turn(NamedTuple):
    """What norm makes of one picture's map before SiLU: x * scale + shift."""

    scale_C: Tensor
    shift_C: Tensor


def wanted(x_BCHW: Tensor) -> bool:
    """Whether a map is worked through in strips."""
    return (
        not torch.is_grad_enabled()
        and x_BCHW.device.type == "cpu"
        and x_BCHW.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and x_BCHW.shape[1:].numel() * x_BCHW.shape[1] >= LEAST
    )


def convolve(
    conv: Conv3,
    x_BCHW: Tensor,
    norm: nn.GroupNorm,
    *,
    add_BOHW: Tensor | None = None,
    over: bool = False,
) -> Tensor:
    """conv(silu(norm(x))) + add; where it is asked for, written over x."""
    x_BHWC = x_BCHW.permute(0, 2, 3, 1).contiguous()
    out_BHWO = x_BHWC if over else x_BHWC.new_empty(*x_BHWC.shape[:3], conv.out_channels)
    add_BHWO = None if add_BOHW is None else add_BOHW.permute(0, 2, 3, 1)
    bias_O = conv.bias
    assert bias_O is not None
    work = _Work(conv, x_BHWC[0])
    for number, x_HWC in enumerate(x_BHWC):
        for rows, found_HWO in work.strips(x_HWC, turn_of(norm, x_HWC)):
            place_HWO = out_BHWO[number, rows]
            torch.add(found_HWO, bias_O, out=place_HWO)
            if add_BHWO is not None:
                place_HWO += add_BHWO[number, rows]
    return out_BHWO.permute(0, 3, 1, 2)


class _Work:
    """One convolution, and room for the strips of such maps as x."""

    def __init__(self, conv: Conv3, x_HWC: Tensor) -> None:
        self.conv = conv
        self.height, width, _ = x_HWC.shape
        row = 4 * width * conv.in_channels
        self.rows = TILE * max(1, min(STRIP // row, self.height + TILE - 1) // TILE)
        self.strip_SWC = torch.empty(self.rows + 2, width, conv.in_channels)
        self.packed_24CO = conv.packed()
        if self.packed_24CO is not None:
            self.space = Space(self.rows, width, conv.in_channels, conv.out_channels)

    def strips(self, x_HWC: Tensor, turn: Turn) -> Iterator[tuple[slice, Tensor]]:
        """Which rows, and their convolution without its bias. These rows of x may be written over
        at once."""
        above_WC = torch.zeros_like(self.strip_SWC[0])
        for first in range(0, self.height, self.rows):
            last = min(first + self.rows, self.height)
            tall = TILE * -(-(last - first) // TILE) + 2
            strip_SWC = self.strip_SWC[:tall]
            real = min(last + 1, self.height) - first  # the row below is there but for the last
            strip_SWC[0] = above_WC
            turned_SWC = strip_SWC[1 : 1 + real]
            torch.addcmul(turn.shift_C, x_HWC[first : first + real], turn.scale_C, out=turned_SWC)
            F.silu(turned_SWC, inplace=True)
            strip_SWC[1 + real :] = 0
            above_WC.copy_(strip_SWC[last - first])
            yield slice(first, last), self._convolved(strip_SWC)[: last - first]

    def _convolved(self, strip_SWC: Tensor) -> Tensor:
        if self.packed_24CO is not None:
            return self.space.convolve(strip_SWC, self.packed_24CO)
        strip_1CSW = strip_SWC.permute(2, 0, 1).unsqueeze(0)
        found_1OHW = F.conv2d(strip_1CSW, self.conv.weight, padding=(0, 1))
        return found_1OHW[0].permute(1, 2, 0)


def turn_of(norm: nn.GroupNorm, x_HWC: Tensor) -> Turn:
    """A norm of one picture as a factor and a summand a channel.

    Sums are taken of what lies beyond a first mean: squares of large numbers would cancel.
    """
    x_NC = x_HWC.flatten(0, 1)
    count, channels = x_NC.shape
    some = min(count, max(1, STRIP // (8 * channels)))
    pivot_C = x_NC[:some].mean(0)
    beyond_NC, ones_N = x_NC.new_empty(some, channels), x_NC.new_ones(some)
    sums_2C = x_NC.new_zeros(2, channels, dtype=torch.double)
    for part_NC in x_NC.split(some):
        these_NC, ones = beyond_NC[: len(part_NC)], ones_N[: len(part_NC)]
        torch.sub(part_NC, pivot_C, out=these_NC)
        sums_2C[0] += ones @ these_NC  # a product sums columns twice as fast as a sum does
        sums_2C[1] += ones @ these_NC.square_()
    mean_C, square_C = sums_2C / count
    groups = (norm.num_groups, -1)
    real_GC = (pivot_C + mean_C).view(groups)
    mean_G1 = real_GC.mean(1, keepdim=True)
    spread_GC = (square_C - mean_C.square()).view(groups) + (real_GC - mean_G1).square()
    scale_GC = (spread_GC.mean(1, keepdim=True) + norm.eps).rsqrt() * norm.weight.view(groups)
    shift_GC = norm.bias.view(groups) - mean_G1 * scale_GC
    return Turn(scale_GC.flatten().float(), shift_GC.flatten().float())


def halve(conv: nn.Conv2d, x_BCHW: Tensor) -> Tensor:
    """taming's downsampling, a convolution of stride 2 with zeros to the right and below."""
    count, channels, height, width = x_BCHW.shape
    x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
    out_BHWO = x_BCHW.new_empty(count, height // 2, width // 2, conv.out_channels)
    some = max(1, STRIP // (2 * width * channels))
    for first in range(0, height // 2, some):
        last = min(first + some, height // 2)
        rows_BCSW = x_BCHW[:, :, 2 * first : 2 * last + 1]
        below = max(0, 2 * last + 1 - height)
        out_BHWO[:, first:last] = conv(F.pad(rows_BCSW, (0, 1, 0, below))).permute(0, 2, 3, 1)
    return out_BHWO.permute(0, 3, 1, 2)


def double(conv: Conv3, x_BCHW: Tensor) -> Tensor:
    """conv(x made twice as high and wide): a result has four places of x beneath it, not nine, and
    which weights it gives them is a matter of whether its row and column are even."""
    count, channels, height, width = x_BCHW.shape
    x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
    out_BHWO = x_BCHW.new_empty(count, 2 * height, 2 * width, conv.out_channels)
    weights = fold(conv.weight)
    some = max(1, STRIP // (4 * width * channels))
    for first in range(0, height, some):
        last = min(first + some, height)
        rows_BCSW = x_BCHW[:, :, max(first - 1, 0) : last + 1]
        rows_BCSW = F.pad(rows_BCSW, (1, 1, int(first == 0), int(last == height)))
        place_BSWO = out_BHWO[:, 2 * first : 2 * last]
        for down, along in product(range(2), range(2)):
            here_BCSW = rows_BCSW[:, :, down : down + last - first + 1, along : along + width + 1]
            found_BOSW = F.conv2d(here_BCSW, weights[down][along], conv.bias)
            place_BSWO[:, down::2, along::2] = found_BOSW.permute(0, 2, 3, 1)
    return out_BHWO.permute(0, 3, 1, 2)


def fold(weight_OC33: Tensor) -> list[list[Tensor]]:
    """The weights [O, C, 2, 2] for even and odd rows, and in each for even and odd columns."""
    # An even row sees a row of x once and the next one twice; an odd row sees the first one twice.
    first, middle, last = weight_OC33.unbind(2)
    by_rows = [torch.stack(two, 2) for two in ((first, middle + last), (first + middle, last))]
    folded = list[list[Tensor]]()
    for weight_OC23 in by_rows:
        left, centre, right = weight_OC23.unbind(3)
        both = ((left, centre + right), (left + centre, right))
        folded.append(
            [torch.stack(two, 3).contiguous(memory_format=torch.channels_last) for two in both]
        )
    return folded
