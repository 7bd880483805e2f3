"""bench generate and bench batching: what they print, tiny."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cm3leon.__main__ import main

TINY = ["--layers", "1", "--width", "64", "--tokens", "5", "--times", "1", "--json"]
Bench = Callable[..., dict[str, Any]]


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str]) -> Bench:
    def bench(*words: str) -> dict[str, Any]:
        assert main(["bench", *words]) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return bench


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_shape_is_timed_against_the_least_it_must_read(bench: Bench, precision: str) -> None:
    (case,) = bench("generate", "-n", "2", "--precision", precision, *TINY)["cases"]
    width, ffn, codes = 64, 256, 8192
    numbers = 4 * width**2 + 3 * width * ffn + codes * width
    assert case["floor"]["weights"] == numbers * (4 if precision == "fp32" else 1)
    cached = 2 * (32 + 2 + 3 + 2) * 2 * width * 4  # both streams of both pictures, at half way
    assert case["floor"]["cache"] == cached
    assert case["ours"]["drawing"]["least"] <= case["ours"]["drawing"]["most"]
    assert case["theirs"] is None


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs transformers")
@pytest.mark.parametrize("shape", ["chameleon", "paper"])
def test_both_sides_compute_the_same(bench: Bench, shape: str) -> None:
    words = ["--shape", shape, "--against", "transformers"]
    (case,) = bench("generate", *words, *TINY)["cases"]
    assert case["difference"] < 1e-3
    ours, theirs = case["ours"], case["theirs"]
    assert abs(ours["parameters"] / theirs["parameters"] - 1) < 0.01
    ratio = theirs["drawing"]["median"] / ours["drawing"]["median"]
    assert case["ratio"] == pytest.approx(ratio)


def test_requests_together_come_to_the_same_as_alone(bench: Bench, tiny_folder: Path) -> None:
    words = ["--requests", "7", "--in-flight", "3", "--times", "1", "--json"]
    found = bench("batching", "--model", str(tiny_folder), *words)
    assert (found["requests"], found["equal"]) == (7, 7)
    assert found["ratio"] == pytest.approx(found["alone"]["median"] / found["together"]["median"])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--shape", "350"], "there is no shape '350'"),
        (
            ["--shape", "350m", "--against", "transformers"],
            "in the shapes chameleon and paper only",
        ),
        (["--model", "default", "--tokens", "9"], "a checkpoint has its own sizes"),
        (["--cli"], "--cli goes with --model"),
    ],
)
def test_what_cannot_be_measured_is_said(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "generate", *words]) in (1, 2)
    assert line in " ".join(capsys.readouterr().err.split())
