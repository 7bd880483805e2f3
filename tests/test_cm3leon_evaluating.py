"""`cm3leon eval ...`: tables that a line of the ledger can be copied from."""

import json
import re
from pathlib import Path

import pytest

from cm3leon.cli import main
from cm3leon.pipeline import CM3Leon
from tokenizer.pixels import open_image, read_info

Capture = pytest.CaptureFixture[str]


def test_reconstruction_prints_a_table(
    tiny: CM3Leon, tiny_folder: Path, corpus_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "before and after.png"
    words = ["eval", "codebook", str(tiny_folder), str(corpus_folder), "--out", str(out)]
    assert main(words) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[:5] == [
        f"command: cm3leon eval codebook {tiny_folder} {corpus_folder} --out '{out}'",
        f"model: {tiny.hash}",
        f"measured on: test of {corpus_folder.name}",
        "",
        "|  | pictures | PSNR, dB | codes in use |",
    ]
    assert [line.split(" | ")[:2] for line in lines[6:]] == [
        ["| emoji", "3"],
        ["| icon", "2"],
        ["| photo", "1"],
        ["| all", "6"],
    ]
    assert re.fullmatch(r"\| all \| 6 \| \d+\.\d\d ± \d\.\d\d \| \d+\.\d% \|", lines[-1])
    assert "codebook: 6 of 6, 0 s left" in said.err.splitlines()
    assert "6 pictures read" in said.err
    assert read_info(out)["model"] == tiny.hash


def test_reconstruction_takes_an_image_tokenizer_too(
    tiny: CM3Leon, tiny_folder: Path, corpus_folder: Path, capsys: Capture
) -> None:
    for folder, told in (
        (tiny_folder, tiny.hash),
        (tiny_folder / "image_tokenizer", tiny.image_tokenizer.hash[:12]),
    ):
        words = ["eval", "codebook", str(folder), str(corpus_folder), "--limit", "1"]
        assert main([*words, "--split", "train", "--json"]) == 0
        table = json.loads(capsys.readouterr().out)
        assert table["model"] == told
        where = f"train of {corpus_folder.name}, at most 1 pictures of each kind"
        assert table["measured on"] == where
        assert table["command"].endswith("--split train --limit 1 --json")
        assert table["all"]["psnr"]["count"] == 3


def test_bits_prints_a_table(
    tiny: CM3Leon, tiny_folder: Path, shards_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = ["eval", "bits", str(tiny_folder), str(shards_folder), "--device", "cpu"]
    assert main([*words, "--out", str(tmp_path / "bits.jsonl")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:4] == [f"model: {tiny.hash}", "precision: fp32", "measured on: test"]
    assert lines[5] == (
        "|  | pictures | bits per image token | bits per picture | bits per caption byte |"
    )
    assert re.fullmatch(r"\| emoji \| 3( \| \d+\.\d+ ± \d+\.\d+){3} \|", lines[7])
    rows = [json.loads(line) for line in (tmp_path / "bits.jsonl").read_text().splitlines()]
    assert main([*words, "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    mean = sum(row["image_bits"] for row in rows) / 6
    assert table["all"]["picture"]["value"] == pytest.approx(mean)


def test_captions_prints_a_table(
    tiny: CM3Leon, tiny_folder: Path, shards_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "said.jsonl"
    words = ["eval", "captions", str(tiny_folder), str(shards_folder), "--limit", "1"]
    assert main([*words, "--out", str(out), "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[5] == ("|  | pictures | label named | style named | both | exact first caption |")
    assert lines[7:] == ["| all | 3 | 0.0% ± 0.0 | 0.0% ± 0.0 | 0.0% ± 0.0 | 0.0% ± 0.0 |"]
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["wanted"] for row in rows] == [
        "fox, Noto icon style",
        "red heart, Noto emoji style",
        "bat, Noto photo style",
    ]


def test_sheet_writes_its_files(
    tiny: CM3Leon, tiny_folder: Path, corpus_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    prompts = tmp_path / "prompts.json"
    picture = {"number": 0, "style": "a", "id": "x", "prompt": "a red fox"}
    edit = {"number": 0, "source": "p1", "target": "p2", "type": "t", "instruction": "bluer"}
    prompts.write_text(json.dumps({"pictures": [picture], "edits": [edit]}))
    out = tmp_path / "sheets"
    words = ["eval", "sheet", str(tiny_folder), str(prompts), str(corpus_folder)]
    assert main([*words, "--out", str(out), "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = ("sheet.png", "sheet-labelled.png", "edits.png", "key.txt")
    assert lines[-6:] == ["| all | 1 | 1 |", "", *(str(out / name) for name in names)]
    assert (out / "key.txt").read_text() == "0: a red fox\n"
    assert read_info(out / "edits.png")["model"] == tiny.hash
    assert open_image(out / "sheet.png").width == 196


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("codebook {model} {empty}", "no tar is found as"),
        ("codebook {empty} {corpus}", "not an image tokenizer, config.json is missing"),
        ("codebook {model} {corpus} --out {empty}/none/x.png", "cannot write"),
        ("bits {model} {empty}", "has no manifest.json"),
        ("bits nobody {shards}", "there is no model folder 'nobody'"),
        ("bits {other} {shards}", "was made with image tokenizer"),
        ("captions {model} {shards} --out {empty}", "it is a folder; name another"),
        ("sheet {model} {empty}/none.json {corpus} --out {empty}/x", "cannot read the settings"),
        ("sheet {model} {model}/config.json {corpus} --out {empty}/x", "unknown setting 'format'"),
    ],
)
def test_a_mistake_is_one_line(
    words: str,
    reason: str,
    tiny_folder: Path,
    other_folder: Path,
    corpus_folder: Path,
    shards_folder: Path,
    tmp_path: Path,
    capsys: Capture,
) -> None:
    places = {
        "model": tiny_folder,
        "other": other_folder,
        "corpus": corpus_folder,
        "shards": shards_folder,
        "empty": tmp_path,
    }
    given = [word.format(**places) for word in words.split()]
    assert main(["eval", *given]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[-1].startswith("error: ")
    assert reason in said.err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_limit_of_none_is_wrong_usage(
    tiny_folder: Path, shards_folder: Path, capsys: Capture
) -> None:
    assert main(["eval", "bits", str(tiny_folder), str(shards_folder), "--limit", "0"]) == 2
    assert "--limit" in capsys.readouterr().err
