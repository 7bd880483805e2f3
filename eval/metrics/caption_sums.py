"""BLEU and METEOR of any choice of pictures, from what each adds up of every picture.

Both are ratios of sums over captions, so their intervals need the sums drawn anew; pycocoevalcap
has only the ratios. `caption_scores` keeps the counts; tests hold these to pycocoevalcap's figures.
"""

# Shapes: C = counts, summed over pictures; M = METEOR's four ways to match

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.float64]

LONGEST = 4  # n-grams of BLEU
# Of METEOR 1.5 for English: what its jar counts with, to the last bit (Denkowski and Lavie 2014)
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
WEIGHTS_M = np.array((1.0, 0.6, 0.8, 0.6))  # the same word, stem, synonym, paraphrase


def bleu(sums_C: Counts, longest: int) -> float:
    """BLEU of n-grams up to `longest`. Of captions: their tokens, the tokens of the nearest
    references; of each length up to LONGEST the n-grams, then those of them that are right.

    The small numbers are pycocoevalcap's.
    """
    said, wanted = sums_C[:2]
    grams, right = np.split(sums_C[2:], 2)
    shares = (right + 1e-15) / (grams + 1e-9)
    short = (said + 1e-15) / (wanted + 1e-9)
    whole = shares[:longest].prod() ** (1 / longest)
    return float(whole * np.exp(min(0.0, 1 - 1 / short)))


def meteor_counts(line: str) -> tuple[float, ...]:
    """What METEOR tells of one caption, ready to be added up. One that is its reference word for
    word counts as no chunk, as in METEOR's own sums."""
    *counts, chunks, said, wanted = map(float, line.split())
    whole = chunks == 1 and [said, wanted] == counts[:2]
    return (*counts, 0.0 if whole else chunks, said, wanted)


def meteor(sums_C: Counts) -> float:
    """METEOR. Of captions and of the references nearest to them: their tokens, the function words
    among these; of each way to match, the other words that match of each side, then the function
    words; the chunks of words in the same order, and the words of each side that match.
    """
    lengths, matched, (chunks, *words) = np.split(sums_C, (4, 20))
    weights = np.array((DELTA, 1 - DELTA))  # of a word, of a function word
    found = WEIGHTS_M @ (weights @ matched.reshape(4, 2, 2))
    if not found.all():
        return 0.0
    precision, recall = found / (weights @ (lengths[:2] - lengths[2:], lengths[2:]))
    agreed = 1 / ((1 - ALPHA) / precision + ALPHA / recall)
    broken = 2 * chunks / sum(words)
    return float(agreed * (1 - GAMMA * broken**BETA))
