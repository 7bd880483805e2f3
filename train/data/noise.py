"""Input noise: image codes replaced by another image's, so that training depends on the caption.

Applied after the objective has masked a row and before the model reads it; the targets stay clean.
The first rows of an image predict much of the rest, so a model that always reads true codes hardly
needs the caption; and at generation it reads its own codes. With noise from the first step on, a
wrong caption costs several bits per code, and more prompts show what they ask for (docs/log.md).

Ours; akin to reAR's random input codes (arXiv 2510.04450) and to word dropout (arXiv 1511.06349).
"""

# Shapes: L = ids per row, P = images, N = codes per image

import numpy as np
from numpy.typing import NDArray

from tokenizer.vocabulary import Vocabulary
from train.objective import Ids, MaskConfig


def level(config: MaskConfig, step: int, steps: int) -> float:
    """Return the largest share of an image's codes to replace at a step, interpolated linearly from
    the first step to the last."""
    if config.noise_end is None:
        return config.noise
    return config.noise + (config.noise_end - config.noise) * step / max(1, steps - 1)


def read_with_noise(
    row_L: Ids,
    vocabulary: Vocabulary,
    most: float,
    codes_PN: NDArray[np.uint16],
    rng: np.random.Generator,
) -> Ids:
    """Return the input row, with a share of the last image's codes replaced by those of random
    other images at the same positions. The share is drawn uniformly from 0 to `most`.

    Ids before that image are unchanged. codes_PN: the images to take codes from. If spans of the
    image were moved, positions are counted among the remaining codes.
    """
    image = vocabulary.image_ids
    codes = (image.start <= row_L) & (row_L < image.stop)
    (walls,) = np.nonzero(row_L == vocabulary.break_id)
    codes[: walls[-1] if len(walls) else 0] = False
    (places,) = np.nonzero(codes)
    hit = rng.random(len(places)) < most * rng.random()
    images = rng.integers(len(codes_PN), size=len(places))
    others = codes_PN[images, np.arange(len(places)) % codes_PN.shape[1]].astype(np.int64)
    read_L = row_L.copy()
    read_L[places[hit]] = others[hit] + image.start
    return read_L
