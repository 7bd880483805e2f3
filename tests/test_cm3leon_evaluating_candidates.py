"""`cm3leon eval candidates` through the real command line, with tiny networks."""

import io
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cm3leon.cli import main
from cm3leon.pipeline import CM3Leon
from retrieval.encoder import SmallEmbedder
from tokenizer.pixels import read_info

Capture = pytest.CaptureFixture[str]
FAMILIES = 5


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of each of five families two pictures of noise in train-0.tar, and one in test-0.tar."""
    folder = tmp_path_factory.mktemp("families")
    draw = np.random.default_rng(0)
    for split, variants in (("train", 2), ("test", 1)):
        with tarfile.open(folder / f"{split}-0.tar", "w") as archive:
            for family in range(FAMILIES):
                for number in range(variants):
                    name, picture = f"{split}-{family}-{number}", io.BytesIO()
                    pixels_HW3 = draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                    Image.fromarray(pixels_HW3).save(picture, "PNG")
                    table = {"id": name, "family": f"f{family}", "kind": "emoji"}
                    table |= {"caption": f"a red fox {family}"}
                    parts = {"png": picture.getvalue(), "json": json.dumps(table).encode()}
                    for ending, data in parts.items():
                        member = tarfile.TarInfo(f"{name}.{ending}")
                        member.size = len(data)
                        archive.addfile(member, io.BytesIO(data))
    return folder


@pytest.fixture
def words(tiny_folder: Path, corpus: Path, small_encoder: Path, features_file: Path) -> list[str]:
    given = ["eval", "candidates", str(tiny_folder), str(corpus), "--encoder", str(small_encoder)]
    return [*given, "--features", str(features_file), "--device", "cpu"]


def test_a_table_is_printed(
    words: list[str],
    tiny: CM3Leon,
    small_encoder: Path,
    tmp_path: Path,
    capsys: Capture,
) -> None:
    files = ["--sheet", str(tmp_path / "sheet.png"), "--out", str(tmp_path / "lines.jsonl")]
    asked = ["--candidates", "4", "--prompts", "5", "--mix", *files]
    assert main([*words, *asked]) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[1:5] == [
        f"model: {tiny.hash}",
        "precision: fp32",
        f"picked by: {SmallEmbedder.load(small_encoder).id}",
        "measured on: 5 captions of test of families0, one a family: 5 emoji",
    ]
    assert lines[5].startswith(
        "judged by: MobileNetV2 against 10 train pictures of 5 families; of the prompts' own"
    )
    assert lines[7] == "|  | the pick | a random one | any of them | pick - random |"
    names = [line.split(" | ")[0] for line in lines[9:]]
    assert names == ["| 2 alike", "| 2 mixed", "| 4 alike", "| 4 mixed", "| mixed - alike"]
    assert all(re.search(r"( \| -?\d+\.\d% ± \d+\.\d){4} \|$", line) for line in lines[9:])
    assert "prompts: 5 of 5, 0 s left" in said.err
    assert read_info(tmp_path / "sheet.png")["model"] == tiny.hash
    rows = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
    assert main([*words, *asked, "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    hits = [row["pools"]["alike"]["hits"] for row in rows]
    assert table["4 alike"]["any"]["value"] == sum(map(any, hits)) / 5
    assert table["4 alike"]["random"]["value"] == sum(map(sum, hits)) / 20
    assert len({row["asked"]["family"] for row in rows}) == 5


def test_prompts_of_the_real_split_are_not_compared_with_themselves(
    words: list[str], tmp_path: Path, capsys: Capture
) -> None:
    ids = tmp_path / "held.txt"
    ids.write_text("train-0-1\ntrain-3-0\n")
    asked = ["--split", "train", "--candidates", "2", "--prompts", "2"]
    assert main([*words, *asked, "--ids", str(ids), "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert table["judged by"].startswith("MobileNetV2 against 8 train pictures of 5 families")
    assert list(table)[-1] == "2 alike"
    assert main([*words, *asked]) == 1  # all of them could be asked for
    assert "only 0 families" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (["--prompts", "6"], "only 5 families"),
        (["--candidates", "3", "--mix"], "even number"),
        (["--sheet", "nowhere/sheet.png"], "nowhere"),
        (["--features", "nowhere.safetensors", "--prompts", "5"], "no MobileNetV2 weights"),
        (["--split", "val"], "val-"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], given: list[str], why: str, capsys: Capture
) -> None:
    assert main([*words, *given]) == 1
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert why in line
