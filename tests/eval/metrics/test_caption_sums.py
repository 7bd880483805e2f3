"""Sums of BLEU and METEOR: by hand here, against pycocoevalcap in test_eval_caption_scores.py."""

import math

import numpy as np
import pytest

from eval.metrics.coco_caption import bleu, meteor, meteor_counts


def test_bleu_by_hand() -> None:
    # "a red fox" for "a red dog runs": two of three words, one of two pairs, no triple
    counts_C = np.array([3, 4, 3, 2, 1, 0, 2, 1, 0, 0], dtype=float)
    brief = math.exp(1 - 4 / 3)
    assert bleu(counts_C, 1) == pytest.approx(2 / 3 * brief)
    assert bleu(counts_C, 2) == pytest.approx(math.sqrt(2 / 3 * 1 / 2) * brief)
    assert bleu(counts_C, 3) < 1e-4
    # a longer caption is not punished for its length
    assert bleu(np.array([4, 3, 4, 3, 2, 1, 3, 2, 1, 0], dtype=float), 1) == pytest.approx(3 / 4)
    assert bleu(np.zeros(10), 4) == 0


def test_meteor_by_hand() -> None:
    # As METEOR tells of "the fox" for "a fox": one other word matches, one function word each not.
    line = "2.0 2.0 1.0 1.0 1.0 1.0" + " 0.0" * 14 + " 1.0 1.0 1.0"
    # precision = recall = 0.75 / (0.75 + 0.25); one chunk of one word costs 0.6 * 1 ** 0.2
    assert meteor(np.array(meteor_counts(line))) == pytest.approx(0.75 * 0.4)
    # Found by its stem only, it weighs 0.6.
    stem = "2.0 2.0 1.0 1.0 0.0 0.0 0.0 0.0 1.0 1.0" + " 0.0" * 10 + " 1.0 1.0 1.0"
    assert meteor(np.array(meteor_counts(stem))) == pytest.approx(0.6 * 0.75 * 0.4)


def test_a_caption_that_is_its_reference_has_no_chunk() -> None:
    line = "2.0 2.0 1.0 1.0 1.0 1.0 1.0 1.0" + " 0.0" * 12 + " 1.0 2.0 2.0"
    counts = meteor_counts(line)
    assert (len(counts), counts[20]) == (23, 0)
    assert meteor(np.array(counts)) == pytest.approx(1)
    # and adds none to those of others
    other = meteor_counts("2.0 2.0 1.0 1.0 1.0 1.0" + " 0.0" * 14 + " 1.0 1.0 1.0")
    both = meteor(np.array(counts) + np.array(other))
    assert both == pytest.approx(7 / 8 * (1 - 0.6 * (1 / 3) ** 0.2))


def test_nothing_in_common_is_0() -> None:
    assert meteor(np.zeros(23)) == 0
    assert meteor(np.array([2.0, 3, 0, 1, *[0] * 19])) == 0
