"""Codes that are read in training, some of them replaced: beside the objective, before the model.

A picture's first rows tell much of the others, and when a model paints, the first rows are its own.
Codes replaced by chance are meant to make it look at the caption, and go on after a mistake. In a
short run they brought no clear gain (docs/ledger.md). What is to be predicted stays the row.

Akin to word dropout (Bowman et al., arXiv 1511.06349) and to the flipped bits of Infinity (arXiv
2412.04431). Ours: codes alone, any code in their place. The CM3 papers have no such thing.
"""

# Shapes: B = rows, L = ids a row

import zlib

import numpy as np

from tokenizer.vocabulary import PAD, Vocabulary
from train.objective import Ids


def read_with_noise(ids_BL: Ids, vocabulary: Vocabulary, share: float) -> Ids:
    """The rows as they are read: in a `share` of them a part of the last picture's codes, drawn
    evenly from none to all, are any codes. What stands before it (the picture to be edited,
    retrieved ones) is read as it is.

    Chance hangs on a row's own ids, so it is the same beside whatever other rows.
    """
    if not share:
        return ids_BL
    image, read_BL = vocabulary.image_ids, ids_BL.copy()
    for padded_L in read_BL:
        row_L = padded_L[: np.count_nonzero(padded_L != PAD)]  # a view
        rng = np.random.default_rng(zlib.crc32(row_L.tobytes()))
        if rng.random() >= share:
            continue
        codes = (image.start <= row_L) & (row_L < image.stop)
        (walls,) = np.nonzero(row_L == vocabulary.break_id)
        codes[: walls[-1] if len(walls) else 0] = False
        (hit,) = np.nonzero(codes & (rng.random(len(row_L)) < rng.random()))
        row_L[hit] = rng.integers(image.start, image.stop, len(hit))
    return read_BL
