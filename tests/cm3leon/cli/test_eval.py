"""`cm3leon eval NAME` and `all`, through the real command line, tiny."""

import gzip
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from cm3leon.__main__ import main
from cm3leon.cli.eval import METRICS, MORE
from eval import run
from tokenizer.pixels import open_image

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def data(corpus_folder: Path, tmp_path: Path) -> Path:
    """The six pictures, with an edit and two questions."""
    folder = tmp_path / "corpus"
    shutil.copytree(corpus_folder, folder)
    edits = [
        {"source": "p1", "target": "p2", "instructions": ["bluer"], "type": "recolour"},
        {"source": "p1", "target": "of another split", "instructions": ["redder"]},
    ]
    questions = [
        {"id": "p3", "question": "What is this?", "answer": "cow", "type": "what"},
        {"id": "p4", "question": "Is this a wolf?", "answer": "yes", "type": "yesno"},
    ]
    for name, rows in (("edits", edits), ("questions", questions)):
        with gzip.open(folder / f"{name}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return folder


def asked(name: str, data: Path, model: Path, out: Path, *more: str) -> list[str]:
    words = ["eval", name, "--data", str(data), "--model", str(model), "--out", str(out)]
    return [*words, "--device", "cpu", *more]


def read(path: Path) -> dict[str, Any]:
    table = json.loads((path / "report.json").read_text())
    del table["seconds"]
    return table


def test_every_measure_has_a_command() -> None:
    assert {*METRICS, *MORE} == {*run.METRICS, "people"}


def test_all_is_measured_and_the_same_again(
    data: Path, tiny_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "report"
    assert main(asked("all", data, tiny_folder, out)) == 0
    told = capsys.readouterr().out
    assert re.search(r"\[retrieval\]\(\S+\) \| [0-9a-f]{12} \| skipped \| there is no memory", told)
    first = {name: read(out / name) for name in METRICS}
    skipped = {name for name, one in first.items() if one["skipped"]}
    lacking = {"clip-score", "fid", "kid", "mobilenet-distance", "copying"}
    assert skipped == {"retrieval", "concept", *lacking}
    assert first["perplexity"]["values"]["bits an image token, all"]["count"] == 6
    assert first["vqa"]["values"]["accuracy, all"]["count"] == 2
    assert first["edit"]["values"]["the edit: cosine"]["count"] == 1
    for name, one in first.items():
        for picture in one["pictures"]:
            open_image(out / name / f"{picture}.png")
    again = tmp_path / "again"
    assert main(asked("all", data, tiny_folder, again)) == 0
    for name in METRICS:
        table = read(again / name)
        assert table["values"] == first[name]["values"]
    assert main(["eval", "compare", str(out / "vqa"), str(again / "vqa")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.endswith(": the same")][-1].startswith("command: ")


def test_ids_and_limit_choose_and_one_page_lists_all(
    data: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    ids, out = tmp_path / "ids.txt", tmp_path / "report"
    ids.write_text("p1\np4\n")
    assert main(asked("infill", data, tiny_folder, out, "--limit", "2")) == 0
    assert main(asked("reconstruction", data, tiny_folder, out, "--ids", str(ids))) == 0
    page = (out / "README.md").read_text()
    assert "[infill](infill/README.md)" in page
    assert "[reconstruction](reconstruction/README.md)" in page
    assert read(out / "reconstruction")["values"]["PSNR in dB, emoji"]["count"] == 2
    assert main(asked("reconstruction", data, tiny_folder, out, "--limit", "3", "--json")) == 0
    assert read(out / "reconstruction")["values"]["PSNR in dB, all"]["count"] == 3


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("edit --data {empty}", "no tar is found as"),
        ("edit --data {bare}", "has no edits.jsonl.gz; name a corpus that has"),
        ("retrieval --data {bare}", "name one with --memory"),
        ("embedder-score --data {bare} --ids {ids}", "1 ids of"),
        ("embedder-score --data {bare} --out {ids}", "is a file; name a folder for the reports"),
        ("embedder-score --data {bare} --model nobody", "there is no model folder 'nobody'"),
    ],
)
def test_a_mistake_is_one_line(
    words: str,
    reason: str,
    tiny_folder: Path,
    corpus_folder: Path,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    ids, empty = tmp_path / "ids.txt", tmp_path / "empty"
    ids.write_text("nobody\n")
    empty.mkdir()
    given = words.format(empty=empty, bare=corpus_folder, ids=ids).split()
    if "--model" not in given:
        given += ["--model", str(tiny_folder)]
    assert main(["eval", *given]) == 1
    assert reason in capsys.readouterr().err.splitlines()[-1]
