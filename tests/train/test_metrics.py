"""The log of a run: one line a step, the same after a kill, and nothing past where it resumed."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from tokenizer.errors import UserError
from train import metrics as report
from train.metrics import LOG, MetricLogger, check_tensorboard, read

ROOT = Path(__file__).parents[2]


def write(run: Path, start: int, end: int, steps: int = 10) -> None:
    with MetricLogger(run, start=start, steps=steps) as report:
        for step in range(start, end):
            report.step(step + 1, loss=1.0 / (step + 1))


def test_each_step_is_one_line_that_keeps_every_bit(tmp_path: Path) -> None:
    write(tmp_path, 0, 3)
    lines = read(tmp_path)
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert [list(line) for line in lines] == [["step", "loss", "seconds"]] * 3


@pytest.mark.parametrize("tail", ['{"step": 4, "lo', "{", '{"step": 4, "loss": 0.2'])
def test_a_line_cut_short_by_a_kill_is_dropped(tmp_path: Path, tail: str) -> None:
    write(tmp_path, 0, 3)
    with (tmp_path / LOG).open("a") as file:
        file.write(tail)
    assert [line["step"] for line in read(tmp_path)] == [1, 2, 3]
    write(tmp_path, 3, 5)
    assert [line["step"] for line in read(tmp_path)] == [1, 2, 3, 4, 5]
    for line in (tmp_path / LOG).read_text().splitlines():
        json.loads(line)


def test_lines_past_the_step_resumed_from_are_dropped(tmp_path: Path) -> None:
    write(tmp_path, 0, 7)
    write(tmp_path, 4, 6)
    assert [line["step"] for line in read(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_start_from_nothing_empties_the_log(tmp_path: Path) -> None:
    write(tmp_path, 0, 7)
    write(tmp_path, 0, 2)
    assert [line["step"] for line in read(tmp_path)] == [1, 2]


def test_a_step_is_in_the_log_before_the_run_ends(tmp_path: Path) -> None:
    with MetricLogger(tmp_path, start=0, steps=10) as report:
        report.step(1, loss=2.0)
        assert [line["loss"] for line in read(tmp_path)] == [2.0]


def test_a_loss_that_is_no_number_is_logged_as_such(tmp_path: Path) -> None:
    with MetricLogger(tmp_path, start=0, steps=1) as report:
        report.step(1, loss=math.nan)
    assert math.isnan(read(tmp_path)[0]["loss"])


def test_progress_goes_to_stderr_fifty_times(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, 0, 205, steps=205)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert 50 <= len(lines) <= 53
    assert lines[0].startswith("step 4/205 loss 0.25 seconds 0")
    assert lines[-1].startswith("step 205/205")


def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    """In a process of its own: the package warns of itself while it is imported."""
    write_and_read = """
import sys
from pathlib import Path
from train.metrics import MetricLogger
for start, end in ((0, 5), (3, 4)):
    with MetricLogger(Path(sys.argv[1]), start=start, steps=5, tensorboard=True) as report:
        for step in range(start, end):
            report.step(step + 1, loss=1.0 / (step + 1))
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
found = EventAccumulator(sys.argv[1] + "/tensorboard")
found.Reload()
print([(one.step, round(one.value, 6)) for one in found.Scalars("loss")])
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", write_and_read, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.stdout == "[(1, 1.0), (2, 0.5), (3, 0.333333), (4, 0.25)]\n", done.stderr


def test_tensorboard_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "find_spec", lambda _: None)
    check_tensorboard(wanted=False)
    with pytest.raises(UserError, match="tensorboard=true needs the package tensorboard"):
        check_tensorboard(wanted=True)
