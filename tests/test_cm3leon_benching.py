"""`cm3leon bench retrieval` at tiny size: the shape of what it reports, never its speed."""

import json
from pathlib import Path

import pytest

from cm3leon.cli import main

Capture = pytest.CaptureFixture[str]
pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute")
TINY = ["--vectors", "2000", "--dimension", "16", "--memory-budget", "60KB"]


def test_retrieval_reports_every_figure(
    tiny_folder: Path, small_memory: Path, small_encoder: Path, tmp_path: Path, capsys: Capture
) -> None:
    bank = ["--memory", str(small_memory), "--encoder", str(small_encoder)]
    words = ["bench", "retrieval", *TINY, *bank, "--model", str(tiny_folder), "--device", "cpu"]
    assert main([*words, "--out", str(tmp_path), "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert " cores, " in table["machine"]
    assert table["built"]["documents"] == 2000
    assert table["built"]["index"] == "IVF51,SQ8"
    layers = [(one["index"], one["found"]) for one in table["layers"]]
    assert layers == [("IVF51,SQ8", 10), ("IVF51,SQ8", 64), ("exact", 10), ("exact", 64)]
    assert all(one["ratio"] > 0 for one in table["layers"])
    assert table["added"]["documents"] == 1000
    assert set(table["used"]) >= {"open_seconds", "p50_ms", "p99_ms", "anonymous_mb"}
    assert table["share"]["documents"] == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "status", "reason"),
    [
        (["--memory-budget", "1KB"], 1, "need at least"),
        (["--memory-budget", "much"], 2, "'much' is no size"),
        (["--vectors", "10"], 2, "--vectors"),
        (["--encoder", "x"], 2, "go with --memory"),
        (["--out", "/nowhere/at/all"], 1, "cannot make a folder to work in"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], status: int, reason: str, capsys: Capture) -> None:
    assert main(["bench", "retrieval", *TINY, *words]) == status
    said = capsys.readouterr()
    assert said.out == ""
    assert reason in said.err.splitlines()[-1]
