"""Reports: intervals, what is written and read again, and what two of them differ in."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.report import FILE, PAGE, Report, Value, differences, mean, resampled
from tokenizer.errors import UserError


def test_an_interval_is_about_two_standard_errors_each_way() -> None:
    amounts = np.random.default_rng(0).normal(3.0, 2.0, 400)
    found = mean(amounts.tolist())
    error = amounts.std(ddof=1) / 20
    assert found.value == pytest.approx(amounts.mean())
    assert found.low == pytest.approx(found.value - 1.96 * error, abs=0.2 * error)
    assert found.high == pytest.approx(found.value + 1.96 * error, abs=0.2 * error)
    assert found == mean(amounts.tolist())


def test_a_ratio_weighs_by_size() -> None:
    assert mean([1.0, 3.0], [1.0, 1.0]).value == 2
    found = mean([3.0, 1.0], [1.0, 3.0])
    assert (found.value, found.count) == (1, 2)
    assert found.low == pytest.approx(1 / 3)  # the second one twice
    assert found.high == 3


def test_one_thing_has_no_interval() -> None:
    assert resampled(lambda places: 7.0, 1) == Value(value=7.0, count=1)


def report(**changes: object) -> Report:
    values = {"a": Value(value=1.0, low=0.9, high=1.1, count=9), "b": Value(value=2.0, count=9)}
    given = {"name": "edit", "values": values, "made_by": {"seed": 0, "model": "m"}}
    return Report(**{**given, **changes})  # type: ignore[arg-type]


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    one = report(pictures={"some": Image.new("RGB", (4, 4), "red")}, notes=["few"], seconds=1.25)
    one.write(tmp_path)
    again = Report.read(tmp_path / "edit")
    assert (again.values, again.made_by, again.notes) == (one.values, one.made_by, one.notes)
    page = (tmp_path / "edit" / PAGE).read_text()
    assert "| a | 1 | 0.9 to 1.1 | 9 |" in page
    assert "![some](some.png)" in page
    assert (tmp_path / "edit" / "some.png").is_file()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"version": 2}', "is a report of version 2, this is version 1"),
        ("{}", "is no report of 'cm3leon eval'"),
        ("[1]", "is no report of 'cm3leon eval'"),
        ("not JSON", "is no report of 'cm3leon eval'"),
    ],
)
def test_other_files_are_refused(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(UserError, match=reason):
        Report.read(tmp_path)


def test_a_damaged_report_is_refused(tmp_path: Path) -> None:
    report().write(tmp_path)
    path = tmp_path / "edit" / FILE
    table = json.loads(path.read_text())
    table["values"]["a"]["nonsense"] = 1
    path.write_text(json.dumps(table))
    with pytest.raises(UserError, match="is no report"):
        Report.read(path)


def test_two_reports_differ_in_settings_and_beyond_intervals() -> None:
    near = {"a": Value(value=1.15, low=1.05, high=1.2, count=9), "b": Value(value=2.0, count=9)}
    far = {"a": Value(value=2.0, low=1.9, high=2.1, count=9), "c": Value(value=2.0, count=9)}
    assert differences(report(), report()) == [
        "a: 1 (0.9 to 1.1), 9 | 1 (0.9 to 1.1), 9: the same",
        "b: 2, 9 | 2, 9: the same",
    ]
    lines = differences(report(), report(values=near, made_by={"seed": 1, "model": "m"}))
    assert lines[0] == "seed: 0 | 1"
    assert lines[1].endswith(": within the intervals")
    lines = differences(report(), report(values=far))
    assert lines[0].endswith(": differ by more than the intervals")
    assert lines[1:] == ["b: only in one of them", "c: only in one of them"]
    assert "nothing can be compared" in differences(report(), report(name="vqa"))[0]
