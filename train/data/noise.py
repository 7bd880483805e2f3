"""Input codes replaced by another image's, so that a model in training must read the caption.

After the objective has masked a row, before the model reads it; the targets stay clean. An image's
first rows tell much of the rest, so a model that always reads true codes hardly needs the caption;
and when it generates, the codes before are its own. With noise from the first step on, a wrong
caption costs several bits a code, and more prompts show what they ask for (docs/ledger.md).

Ours; akin to reAR's random input codes (arXiv 2510.04450) and to word dropout (arXiv 1511.06349).
"""

# Shapes: L = ids a row, P = images, N = codes of one

import numpy as np
from numpy.typing import NDArray

from tokenizer.vocabulary import Vocabulary
from train.objective import Ids, MaskConfig


def level(config: MaskConfig, step: int, steps: int) -> float:
    """The most of an image's codes that are replaced at a step, on a line from the first step to
    the last."""
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
    """The row as it is read: a share of the last image's codes, drawn evenly from 0 to `most`, are
    those of some other images at the same places. What stands before that image is left.

    codes_PN: the images to take codes from. Where spans of the image were moved, places are counted
    among the codes that are left.
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
