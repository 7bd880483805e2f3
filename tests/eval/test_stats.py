"""Groups by kind, and what a limit keeps."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from eval.stats import by_kind, evenly


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
