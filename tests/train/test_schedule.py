"""The learning rate goes where each shape of schedule says, and is a function of the step alone."""

import math
from itertools import pairwise
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenizer import config as settings
from tokenizer.errors import UserError
from train.schedule import Schedule


def rates(schedule: Schedule, steps: int) -> list[float]:
    return [schedule.rate(step, steps) for step in range(steps)]


def test_linear_goes_up_then_down_in_even_steps() -> None:
    schedule = Schedule(peak=4.0, warmup=4, decay="linear", end_fraction=0.0)
    assert rates(schedule, 9) == pytest.approx([1.0, 2.0, 3.0, 4.0, 4.0, 3.0, 2.0, 1.0, 0.0])


def test_cosine_is_half_way_in_the_middle() -> None:
    schedule = Schedule(peak=2.0, decay="cosine", end_fraction=0.5)
    got = rates(schedule, 5)
    assert got == pytest.approx([1.5 + 0.5 * math.cos(math.pi * k / 4) for k in range(5)])
    assert (got[0], got[2], got[4]) == pytest.approx((2.0, 1.5, 1.0))


def test_wsd_stays_at_the_peak_until_its_tail() -> None:
    schedule = Schedule(peak=1.0, decay="wsd", end_fraction=0.0, tail=0.25)
    assert rates(schedule, 9) == pytest.approx([1, 1, 1, 1, 1, 1, 1, 0.5, 0])


def test_before_its_tail_wsd_does_not_know_how_long_the_run_is() -> None:
    schedule = Schedule(peak=1e-3, warmup=5, decay="wsd")
    assert rates(schedule, 100)[:70] == rates(schedule, 300)[:70]


@given(
    peak=st.floats(1e-6, 1.0),
    warmup=st.integers(0, 30),
    decay=st.sampled_from(["linear", "cosine", "wsd"]),
    end_fraction=st.floats(0.0, 1.0),
    tail=st.floats(0.05, 1.0),
    steps=st.integers(1, 60),
)
def test_every_schedule_rises_to_the_peak_and_falls_to_its_end(
    peak: float,
    warmup: int,
    decay: Literal["linear", "cosine", "wsd"],
    end_fraction: float,
    tail: float,
    steps: int,
) -> None:
    schedule = Schedule(peak=peak, warmup=warmup, decay=decay, end_fraction=end_fraction, tail=tail)
    got = rates(schedule, steps)
    slack = 1e-9 * peak
    assert all(-slack <= rate <= peak + slack for rate in got)
    up, down = got[:warmup], got[warmup:]
    assert up == sorted(up)
    assert all(a >= b - slack for a, b in pairwise(down))
    if steps >= warmup > 0:
        assert got[warmup - 1] == pytest.approx(peak)
    if steps > warmup + 1:
        assert got[warmup] == pytest.approx(peak)
        assert got[-1] == pytest.approx(end_fraction * peak)


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ({"peak": 0}, "peak must be above 0"),
        ({"peak": float("nan")}, "setting 'peak' is nan; it must be a finite number"),
        ({"peak": 1e-3, "warmup": -1}, "warmup at least 0"),
        ({"peak": 1e-3, "end_fraction": 1.5}, "end_fraction must be in 0..1"),
        ({"peak": 1e-3, "tail": 0}, "tail in 0..1"),
        ({"peak": 1e-3, "decay": "cosin"}, "one of linear, cosine, wsd"),
    ],
)
def test_impossible_schedules_are_refused(table: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        settings.build(Schedule, table)
