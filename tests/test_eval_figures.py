"""Figures: a ratio with its error, kinds, and what a limit keeps."""

import random
import statistics
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.figures import by_kind, evenly, limited, ratio


def test_a_mean_has_the_error_of_a_mean() -> None:
    values = [1.0, 2.0, 4.0, 9.0]
    found = ratio(values)
    assert found.value == 4
    assert found.error == pytest.approx(statistics.stdev(values) / 2)
    assert found.count == 4


def test_a_ratio_is_of_sums_and_equal_sizes_only_scale_it() -> None:
    assert ratio([3.0, 1.0], [1.0, 3.0]).value == 1
    mean, scaled = ratio([1.0, 2.0, 6.0]), ratio([1.0, 2.0, 6.0], [4.0] * 3)
    assert mean.error is not None
    assert (scaled.value, scaled.error) == pytest.approx((mean.value / 4, mean.error / 4))


def test_one_document_has_no_error() -> None:
    assert ratio([3.0], [2.0]).error is None


def test_the_error_of_a_ratio_is_how_far_it_strays() -> None:
    """Against drawing again and again."""
    rng = random.Random(0)

    def draw() -> tuple[list[float], list[float]]:
        sizes = [rng.uniform(5, 50) for _ in range(200)]
        return [2 * size + rng.gauss(0, size / 3) for size in sizes], sizes

    found = [ratio(*draw()) for _ in range(400)]
    strayed = statistics.stdev(one.value for one in found)
    told = statistics.mean(one.error or 0 for one in found)
    assert told == pytest.approx(strayed, rel=0.15)


def test_kinds_come_by_name_and_all_last() -> None:
    assert by_kind(["b", "a", "b"]) == {"a": [1], "b": [0, 2], "all": [0, 1, 2]}
    assert by_kind(["a", "a"]) == {"a": [0, 1]}


@given(st.integers(1, 60), st.integers(1, 60))
def test_a_limit_spreads_evenly(count: int, limit: int) -> None:
    kept = evenly(range(count), limit)
    assert len(kept) == min(count, limit)
    steps = {after - before for before, after in pairwise(kept)}
    assert steps <= {count // len(kept), -(-count // len(kept))}
    assert kept[0] == 0


def test_a_limit_holds_for_each_kind() -> None:
    kinds = ["a", "b", "a", "a", "b", "a", "c"]
    assert limited(kinds, 2) == [0, 1, 3, 4, 6]
    assert limited(kinds, None) == list(range(7))
