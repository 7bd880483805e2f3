"""How much of a picture survives the codebook: pixels -> codes -> pixels, against the original.

The ceiling of everything that the decoder can paint, and whether the codebook is alive: PSNR, and
the share of its entries that some picture uses.
"""

# Shapes: 3 = red, green, blue; H, W = pixels; B = batch of one; L = codes of one picture

import math

import numpy as np
from PIL import Image


def psnr(before: Image.Image, after: Image.Image) -> float:
    """Peak signal-to-noise ratio of two RGB pictures of one size in dB, of 8-bit values.

    Equal pictures count as if a single value were off by one, so that a mean stays finite.
    """
    error_HW3 = np.asarray(before, dtype=np.float64) - np.asarray(after, dtype=np.float64)
    mean_square = max(float(np.square(error_HW3).mean()), 1 / error_HW3.size)
    return 10 * math.log10(255**2 / mean_square)
