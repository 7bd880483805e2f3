"""Codes replaced as they are read: so many, codes only, and the same beside whatever other rows."""

# Shapes: B = rows, L = ids a row

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tokenizer.vocabulary import EOS, PAD, Vocabulary
from train.noise import read_with_noise
from train.objective import Ids

VOCABULARY = Vocabulary(image_codes=64, text_pieces=16, sentinels=4)


def row(seed: int, texts: int, codes: int) -> list[int]:
    rng = np.random.default_rng(seed)
    text = [VOCABULARY.text_id(int(piece)) for piece in rng.integers(0, 16, texts)]
    image = [VOCABULARY.image_id(int(code)) for code in rng.integers(0, 64, codes)]
    return [EOS, *text, VOCABULARY.break_id, *image, EOS]


def padded(rows: list[list[int]], more: int = 0) -> Ids:
    length = max(map(len, rows)) + more
    return np.array([one + [PAD] * (length - len(one)) for one in rows], dtype=np.int64)


def is_image(ids: Ids) -> np.ndarray:
    image = VOCABULARY.image_ids
    return (image.start <= ids) & (ids < image.stop)


@given(
    st.lists(st.tuples(st.integers(0, 999), st.integers(0, 9), st.integers(0, 40)), min_size=1),
    st.floats(0, 1),
    st.integers(0, 9),
)
def test_only_codes_change_and_a_row_by_itself_alone(
    given_rows: list[tuple[int, int, int]], share: float, more: int
) -> None:
    rows = [row(*one) for one in given_rows]
    ids_BL = padded(rows)
    before_BL = ids_BL.copy()
    read_BL = read_with_noise(ids_BL, VOCABULARY, share)
    assert np.array_equal(ids_BL, before_BL)
    assert np.array_equal(is_image(read_BL), is_image(ids_BL))
    assert np.array_equal(read_BL[~is_image(ids_BL)], ids_BL[~is_image(ids_BL)])
    for place, one in enumerate(rows):
        alone = read_with_noise(padded([one], more), VOCABULARY, share)[0]
        assert np.array_equal(alone[: len(one)], read_BL[place, : len(one)])


def test_pictures_before_the_last_are_read_as_they_are() -> None:
    rows = [row(seed, 5, 20)[:-1] + row(seed + 99, 3, 20)[1:] for seed in range(40)]
    ids_BL = padded(rows)
    read_BL = read_with_noise(ids_BL, VOCABULARY, 1.0)
    assert np.array_equal(read_BL[:, :30], ids_BL[:, :30])
    assert not np.array_equal(read_BL[:, 30:], ids_BL[:, 30:])


def test_so_many_rows_and_of_each_any_part() -> None:
    ids_BL = padded([row(seed, 5, 200) for seed in range(600)])
    assert read_with_noise(ids_BL, VOCABULARY, 0) is ids_BL
    read_BL = read_with_noise(ids_BL, VOCABULARY, 0.5)
    parts_B = (read_BL != ids_BL).sum(1) / 200 * 64 / 63  # of 64 draws one changes nothing
    assert 0.44 < (parts_B > 0).mean() < 0.56
    noisy = parts_B[parts_B > 0]
    assert np.allclose(np.quantile(noisy, (0.25, 0.5, 0.75)), (0.25, 0.5, 0.75), atol=0.08)
