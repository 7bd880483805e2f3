"""`cm3leon eval retrieved` and its kin, through the real command line."""

import json
import re
from pathlib import Path

import pytest

from cm3leon.cli import main
from cm3leon.pipeline import CM3Leon
from tokenizer.pixels import read_info

WAYS = ("caption to picture", "picture to caption")
Capture = pytest.CaptureFixture[str]
pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute")


@pytest.fixture(scope="module")
def bank(small_memory: Path, small_encoder: Path) -> list[str]:
    return ["--memory", str(small_memory), "--encoder", str(small_encoder), "--device", "cpu"]


def test_retrieval_prints_a_table(
    tiny: CM3Leon,
    tiny_folder: Path,
    shards_folder: Path,
    bank: list[str],
    tmp_path: Path,
    capsys: Capture,
) -> None:
    out = tmp_path / "bits.jsonl"
    words = ["eval", "retrieved", str(tiny_folder), str(shards_folder), *bank]
    assert main([*words, "--retrieve", "0,1", "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == f"model: {tiny.hash}"
    assert lines[3:6] == [
        "measured on: test",
        "figures: bits per image token ± half of the 95% interval over pictures",
        "",
    ]
    assert lines[6] == "|  | emoji | icon | photo | all |"
    assert lines[8] == "| pictures | 3 | 2 | 1 | 6 |"
    names = [line.split(" | ")[0].removeprefix("| ") for line in lines[9:]]
    assert names == [
        "none",
        "1 retrieved",
        "1 random",
        "1 retrieved - none",
        "1 retrieved - 1 random",
        "1 random - none",
        "fewer than 1 retrieved",
        "fewer than 1 random",
    ]
    assert re.fullmatch(r"\| none( \| \d\.\d{3} ± \d\.\d{3}){2} \| \d\.\d{3} \| .*", lines[9])
    assert lines[-1] == "| fewer than 1 random | 0 | 0 | 1 | 1 |"
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert main([*words, "--retrieve", "1", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    gain = sum(row["bits"]["1 retrieved"] - row["bits"]["none"] for row in rows) / 16 / 6
    assert table["all"]["differences"]["1 retrieved - none"]["value"] == pytest.approx(gain)


def test_encoder_prints_recall_by_kind(
    small_encoder: Path, corpus_folder: Path, capsys: Capture
) -> None:
    assert main(["eval", "encoder", str(small_encoder), str(corpus_folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"command: cm3leon eval encoder {small_encoder} {corpus_folder}"
    assert lines[1].startswith("encoder: small-")
    assert lines[2] == f"measured on: test of {corpus_folder.name}"
    ways = [f"{way} @{at}" for way in WAYS for at in (1, 5, 10)]
    assert lines[5] == f"|  | pictures | {' | '.join(ways)} |"
    assert [line.split(" | ")[:2] for line in lines[7:]] == [
        ["| emoji", "3"],
        ["| icon", "2"],
        ["| photo", "1"],
        ["| all", "6"],
    ]
    assert lines[-1].endswith("100.0% ± 0.0 |")  # ten of six


def test_index_prints_recall_for_three_kinds_of_query(
    small_encoder: Path, small_memory: Path, corpus_folder: Path, capsys: Capture
) -> None:
    words = ["eval", "index", str(small_memory), str(corpus_folder), "--memory-budget", "1MB"]
    assert main([*words, "--encoder", str(small_encoder), "--split", "train"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:5] == [
        "memory: 6 documents",
        "index: exact, 32.0 bytes a vector",
        f"measured on: train of {corpus_folder.name}",
    ]
    assert lines[6:] == [
        "|  | queries | recall@1 | recall@6 |",
        "| --- | --- | --- | --- |",
        *(f"| {name} | 6 | 100.0% | 100.0% |" for name in ("text", "picture", "both")),
    ]


def test_sheet_shows_both_and_says_what_was_retrieved(
    tiny: CM3Leon, tiny_folder: Path, bank: list[str], tmp_path: Path, capsys: Capture
) -> None:
    prompts, out = tmp_path / "prompts.json", tmp_path / "beside.png"
    words = ("a red fox", "a blue heart", "a bat")
    pictures = [
        {"number": number, "style": "a", "id": f"p{number}", "prompt": prompt}
        for number, prompt in enumerate(words)
    ]
    prompts.write_text(json.dumps({"pictures": pictures, "edits": []}))
    given = ["eval", "retrieval-sheet", str(tiny_folder), str(prompts), *bank, "--out", str(out)]
    assert main([*given, "--limit", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[4] == f"file: {out}"
    assert lines[6:] == [
        "|  | prompts | fewer than 2 retrieved |",
        "| --- | --- | --- |",
        "| all | 2 | 0 |",
    ]
    assert read_info(out)["model"] == tiny.hash
    assert main([*given, "--retrieve", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["prompts"]
    assert [one["prompt"] for one in told] == list(words)
    for one in told:
        (row,) = one["retrieved"]
        assert row["id"] != f"p{one['number']}"
        assert row["licence"] == "unknown"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("retrieved {model} {shards} --memory {empty} --encoder {encoder}", "there is no memory"),
        (
            "retrieved {model} {shards} --memory {memory} --encoder {encoder} --retrieve 7",
            "--retrieve is 7, but {memory} has 6 documents",
        ),
        (
            "retrieved {other} {shards} --memory {memory} --encoder {encoder}",
            "was made with image tokenizer",
        ),
        ("retrieved {model} {shards} --memory {memory} --encoder {empty}", "no model folder there"),
        (
            "retrieval-sheet {model} {empty}/x --memory {memory} --encoder {encoder} --out x.png",
            "cannot read the settings",
        ),
        ("encoder {encoder} {empty}", "no tar is found as"),
        ("encoder {empty} {corpus}", "no model folder there"),
        ("index {empty} {corpus} --encoder {encoder} --memory-budget 1MB", "there is no memory"),
        (
            "index {memory} {corpus} --encoder {encoder} --memory-budget 0.05KB",
            "6 vectors of 8 numbers need at least",
        ),
    ],
)
def test_a_mistake_is_one_line(
    words: str,
    reason: str,
    tiny_folder: Path,
    other_folder: Path,
    shards_folder: Path,
    corpus_folder: Path,
    small_memory: Path,
    small_encoder: Path,
    tmp_path: Path,
    capsys: Capture,
) -> None:
    places = {
        "model": tiny_folder,
        "other": other_folder,
        "shards": shards_folder,
        "corpus": corpus_folder,
        "memory": small_memory,
        "encoder": small_encoder,
        "empty": tmp_path,
    }
    assert main(["eval", *(word.format(**places) for word in words.split())]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[-1].startswith("error: ")
    assert reason.format(**places) in said.err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("counts", ["", "1,x", "9", "0", "-1"])
def test_counts_that_are_none_are_wrong_usage(
    counts: str, tiny_folder: Path, shards_folder: Path, bank: list[str], capsys: Capture
) -> None:
    words = ["eval", "retrieved", str(tiny_folder), str(shards_folder), *bank]
    assert main([*words, "--retrieve", counts]) == 2
    assert "write numbers of documents" in capsys.readouterr().err
