"""`cm3leon eval ledger` through the real command line, and the entries of docs/ledger.md."""

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cm3leon.__main__ import main
from eval.ledger import CORPUS, Entry, read
from eval.report import Report
from tokenizer.tars import Tally, decode, find_tars, read_samples

ROOT = Path(__file__).parent.parent
LEDGER, DRAWINGS = ROOT / "docs" / "ledger.md", ROOT / "tests" / "assets" / "drawings"
HEAD = """## Entries that `cm3leon eval ledger` re-runs

| name | command | value | figure | tolerance | seconds |
| --- | --- | --- | --- | --- | --- |
"""
Capture = pytest.CaptureFixture[str]


def line(name: str, words: str, value: str, figure: float, tolerance: float) -> str:
    return f"| {name} | `cm3leon eval {words}` | {value} | {figure} | {tolerance} | 1 |\n"


@pytest.fixture
def ledger(tmp_path: Path, tiny_folder: Path) -> Path:
    """Two entries of the tiny model, one out of its tolerance."""
    path, model = tmp_path / "ledger.md", f"--model {tiny_folder} --device cpu"
    path.write_text(
        HEAD
        + line("first", f"perplexity --data {CORPUS} {model}", "bits an image token, all", 0, 99)
        + line("second", f"perplexity --data {CORPUS} {model}", "bits an image token, all", 0, 0.1)
        + line("third", f"reconstruction --data {DRAWINGS} {model}", "PSNR in dB, drawing", 0, 99),
        "utf-8",
    )
    return path


def rows_of(captured: Capture) -> dict[str, dict[str, Any]]:
    return {row["entry"]: row for row in json.loads(captured.readouterr().out)}


def test_entries_are_made_again(ledger: Path, corpus_folder: Path, capsys: Capture) -> None:
    words = ["eval", "ledger", "--ledger", str(ledger), "--json"]
    data = ["--data", str(corpus_folder)]
    assert main([*words, *data]) == 1
    rows = rows_of(capsys)
    assert [row["verdict"] for row in rows.values()] == ["ok", "NOT", "ok"]
    assert rows["first"]["is"] == rows["second"]["is"] > 0.1
    assert main([*words, *data, "--only", "first"]) == 0
    assert rows_of(capsys) == {"first": rows["first"]}
    assert main(words) == 0  # the third alone
    alone = rows_of(capsys)
    assert [row["verdict"] for row in alone.values()] == ["skipped", "skipped", "ok"]
    assert alone["first"]["reason"] == "it needs CORPUS; name one with --data"
    assert alone["third"] == rows["third"]
    assert main([*words, "--only", "first"]) == 1
    assert capsys.readouterr().err.endswith("every entry was skipped\n")


def test_the_figure_is_the_one_that_the_command_alone_reports(
    ledger: Path, corpus_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    out, data = tmp_path / "report", str(corpus_folder)
    entry = read(ledger)[0]
    assert main(["eval", *entry.words_with(corpus_folder), "--out", str(out)]) == 0
    capsys.readouterr()
    assert main(["eval", "ledger", "--ledger", str(ledger), "--data", data, "--json"]) == 1
    alone = Report.read(out / "perplexity").values[entry.value].value
    assert rows_of(capsys)["first"]["is"] == pytest.approx(alone, rel=1e-6)


def test_the_table_is_for_people(ledger: Path, corpus_folder: Path, capsys: Capture) -> None:
    words = ["eval", "ledger", "--ledger", str(ledger), "--data", str(corpus_folder)]
    assert main([*words, "--only", "second"]) == 1
    captured = capsys.readouterr()
    head, _, row = captured.out.splitlines()
    assert head == "| entry | was | is | difference | tolerance | seconds | |"
    assert row.startswith("| second | 0 | ")
    assert row.endswith(" | NOT |")
    assert captured.err.splitlines()[0] == "second: about 1 s"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (line("a", "vqa --data x --limt 3", "v", 1, 1), ":5: No such option: --limt"),
        (line("a", "vqa --data x --limit few", "v", 1, 1), ":5: Invalid value for '--limit'"),
        (line("a", "vqa", "v", 1, 1), ":5: Missing option '--data'"),
        (line("a", "bits --data x", "v", 1, 1), ":5: there is no measure 'bits'; there are "),
        ("| a | b |\n", ":5: 2 cells, not 6"),
    ],
)
def test_a_malformed_page_is_one_line_and_status_2(
    row: str, reason: str, tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "ledger.md"
    path.write_text(HEAD + row)
    assert main(["eval", "ledger", "--ledger", str(path)]) == 2
    (complaint,) = capsys.readouterr().err.splitlines()
    assert complaint.startswith(f"error: {path}{reason}")


def test_a_mistake_is_one_line(ledger: Path, tmp_path: Path, capsys: Capture) -> None:
    for more, reason in (
        (["--ledger", str(tmp_path / "none.md")], "cannot be read"),
        (["--only", "nobody"], "has no entry 'nobody'; there are first, second, third"),
        (["--data", str(tmp_path)], "no tar is found as"),
    ):
        assert main(["eval", "ledger", "--ledger", str(ledger), *more]) == 1
        (complaint,) = capsys.readouterr().err.splitlines()
        assert reason in complaint


def test_an_entry_that_cannot_be_made_is_not_ok(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "ledger.md"
    path.write_text(HEAD + line("a", f"vqa --data {tmp_path}/nowhere", "v", 1, 1))
    assert main(["eval", "ledger", "--ledger", str(path), "--json"]) == 1
    row = rows_of(capsys)["a"]
    assert row["verdict"] == "NOT"
    assert "no tar is found as" in row["reason"]


def test_the_drawings_are_whole() -> None:
    tally = Tally()
    found = {
        meta["id"]: meta for meta, _ in decode(read_samples(find_tars(DRAWINGS), tally), tally)
    }
    assert (len(found), tally.skipped) == (24, [])
    for name in ("edits", "questions"):
        with gzip.open(DRAWINGS / f"{name}.jsonl.gz") as file:
            rows = [json.loads(row) for row in file]
        ids = {row[key] for row in rows for key in ("id", "source", "target") if key in row}
        assert ids <= found.keys()


@pytest.fixture
def corpus(corpus_folder: Path, tmp_path: Path) -> Path:
    """The six pictures, with an edit and a question."""
    folder = tmp_path / "corpus"
    shutil.copytree(corpus_folder, folder)
    edit = {"source": "p1", "target": "p2", "instructions": ["bluer"], "type": "recolour"}
    question = {"id": "p3", "question": "What is this?", "answer": "cow", "type": "what"}
    other = {"id": "p4", "question": "Is this a wolf?", "answer": "yes", "type": "yesno"}
    for name, rows in (("edits", [edit]), ("questions", [question, other])):
        with gzip.open(folder / f"{name}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return folder


def test_our_ledger_has_entries_of_both_kinds() -> None:
    entries = read(LEDGER)
    assert len({entry.measure for entry in entries}) >= 6
    assert sum(not entry.needs_corpus for entry in entries) >= 2


@pytest.mark.parametrize("entry", read(LEDGER), ids=lambda entry: entry.name)
def test_our_entries_name_a_value_that_the_measure_makes(
    entry: Entry,
    tiny_folder: Path,
    small_encoder: Path,
    small_memory: Path,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the tiny model, on little."""
    monkeypatch.chdir(ROOT)
    more = ["--model", str(tiny_folder), "--encoder", str(small_encoder), "--limit", "2"]
    more += ["--memory", str(small_memory)] if "--memory" in entry.words else []
    more += ["--out", str(tmp_path / "report")]
    assert main(["eval", *entry.words_with(corpus), *more]) == 0
    assert entry.value in Report.read(tmp_path / "report" / entry.measure).values


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bits-drawings", "infill-drawings"])
def test_our_figures_come_out_again(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["eval", "ledger", "--only", name, "--json"]) == 0
    assert rows_of(capsys)[name]["verdict"] == "ok"
