"""Codes that are read in training, some of them replaced: beside the objective, before the model.

A picture's first rows tell much of the others, so a model that always reads the true ones learns to
go by them, hardly by the caption; when it paints, the first rows are its own, and what they
lack nothing mends. With codes replaced by chance it has to look at the caption, and to go on after
a mistake. Only what is read changes: what is to be predicted stays the row.

Source: word dropout (Bowman et al., arXiv 1511.06349, section 3.1) replaces what a decoder reads;
Infinity (arXiv 2412.04431, section 3.4) flips bits of it at a rate drawn evenly. Ours: codes alone,
any other code in their place. The CM3 papers have no such thing.
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
