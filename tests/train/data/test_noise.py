"""Input codes replaced by other images': so many, codes only, those of the same place."""

# Shapes: L = ids a row, P = images, N = codes of one

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenizer.errors import UserError
from tokenizer.vocabulary import EOS, Vocabulary
from train.data.noise import level, read_with_noise
from train.objective import Ids, MaskConfig

VOCABULARY = Vocabulary(image_codes=64, text_pieces=16, sentinels=4)
CODES_PN = np.arange(40, dtype=np.uint16)[None].repeat(3, 0)  # code n at place n


def row(seed: int, texts: int, codes: int) -> Ids:
    rng = np.random.default_rng(seed)
    text = [VOCABULARY.text_id(int(piece)) for piece in rng.integers(0, 16, texts)]
    image = [VOCABULARY.image_id(63) for _ in range(codes)]
    return np.array([EOS, *text, VOCABULARY.break_id, *image, EOS], dtype=np.int64)


def noisy(row_L: Ids, most: float, seed: int = 0) -> Ids:
    return read_with_noise(row_L, VOCABULARY, most, CODES_PN, np.random.default_rng(seed))


@given(st.integers(0, 999), st.integers(0, 9), st.integers(0, 40), st.floats(0, 1))
def test_only_codes_change_and_to_those_of_other_images_at_their_place(
    seed: int, texts: int, codes: int, most: float
) -> None:
    row_L = row(seed, texts, codes)
    before_L, read_L = row_L.copy(), noisy(row_L, most, seed)
    assert np.array_equal(row_L, before_L)
    (changed,) = np.nonzero(read_L != row_L)
    first = texts + 2
    assert all(read_L[place] == VOCABULARY.image_id(place - first) for place in changed)
    assert np.array_equal(read_L, noisy(row_L, most, seed))


def test_images_before_the_last_are_read_as_they_are() -> None:
    row_L = np.concatenate([row(0, 5, 20)[:-1], row(1, 3, 20)])
    read_L = noisy(row_L, 1.0)
    assert np.array_equal(read_L[:30], row_L[:30])
    assert not np.array_equal(read_L[30:], row_L[30:])


def test_the_share_of_a_row_is_even_between_none_and_the_most() -> None:
    row_L = row(0, 5, 40)
    shares = np.array([(noisy(row_L, 0.6, seed) != row_L).mean() * 47 / 40 for seed in range(2000)])
    assert np.allclose(np.quantile(shares, (0.25, 0.5, 0.75)), (0.15, 0.3, 0.45), atol=0.04)
    assert np.array_equal(noisy(row_L, 0.0), row_L)


def test_the_level_goes_on_a_line_from_the_first_step_to_the_last() -> None:
    falling = MaskConfig(noise=0.7, noise_end=0.1)
    assert [round(level(falling, step, 4), 9) for step in range(4)] == [0.7, 0.5, 0.3, 0.1]
    assert level(MaskConfig(noise=0.4), 7, 10) == 0.4
    assert level(falling, 0, 1) == 0.7
    with pytest.raises(UserError, match=r"noise_end is 1\.5"):
        MaskConfig(noise_end=1.5)
