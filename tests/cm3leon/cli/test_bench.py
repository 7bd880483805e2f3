"""`cm3leon bench` at tiny size: the shape of what it reports, never its speed."""

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


def test_train_reports_every_figure(shards_folder: Path, capsys: Capture) -> None:
    words = ["bench", "train", "--size", "tiny", "--length", "64", "--rows", "2", "--times", "1"]
    words += ["--pictures", "3", "--shards", str(shards_folder)]
    assert main([*words, "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert [one["family"] for one in table["against"]] == ["opt", "llama"]
    for one in table["against"]:
        assert one["ratio"] > 0
        assert one["tokens"] == 128
        assert 0 < one["ours"]["products"] < 1
    assert [one["rows"] for one in table["loading"]] == ["packed blocks", "one document a row"]
    assert table["encoding"]["ratio"] > 0


@pytest.mark.parametrize(
    ("words", "status", "reason"),
    [
        (["--size", "10g"], 1, "unknown model size '10g'"),
        (["--length", "1"], 2, "--length"),
        (["--precision", "fp8"], 2, "--precision"),
        (["--shards", "/nowhere"], 1, "there is no folder '/nowhere'"),
    ],
)
def test_a_mistake_in_training_is_one_line(
    words: list[str], status: int, reason: str, capsys: Capture
) -> None:
    assert main(["bench", "train", *words]) == status
    said = capsys.readouterr()
    assert said.out == ""
    assert reason in said.err
