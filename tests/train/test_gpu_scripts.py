"""The scripts of docs/gpu-runs.md walk their whole path, tiny and on a CPU, and go on where they
stopped; the page names files that are there."""

import gzip
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cm3leon.checkpoint import load
from train.metrics import read

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "gpu-runs.md"


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A pack of 32 pictures of all four kinds, with an edit and a question each beside it."""
    draw = np.random.default_rng(0)
    names = [f"{kind}-{n}" for n in range(8) for kind in ("emoji", "photo", "clipart", "icon")]
    with tarfile.open(tmp_path / "train-0.tar", "w") as tar:
        for name in names:
            picture = io.BytesIO()
            pixels_HW3 = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels_HW3).save(picture, "PNG")
            word = "".join(draw.choice(list("aeioubcdfgkmnt"), 8))
            about = {"id": name, "caption": f"a {word}", "kind": name.partition("-")[0]}
            for ending, data in (("png", picture.getvalue()), ("json", json.dumps(about).encode())):
                member = tarfile.TarInfo(f"{name}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    edits = [
        {"source": a, "target": b, "instructions": [f"make it a {b}"], "type": "style"}
        for a, b in pairwise(names)
    ]
    questions = [
        {"id": name, "question": "What?", "answer": name, "type": "what"} for name in names
    ]
    for what, rows in (("edits", edits), ("questions", questions)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{what}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    out = tmp_path / "pack.tar.xz"
    words = [sys.executable, str(ROOT / "scripts" / "gpu" / "pack.py"), str(tmp_path)]
    words += ["--out", str(out), "--size", "32", "--edits", str(tmp_path / "edits.jsonl.gz")]
    words += ["--questions", str(tmp_path / "questions.jsonl.gz")]
    subprocess.run(words, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    return out


def run(script: str, packed: Path, *changes: str, **more: str) -> str:
    given = {
        "PACK": str(packed),
        "RUNS": str(packed.parent / "runs"),
        "PYTHON": sys.executable,
        "DEVICE": "cpu",
        "TINY": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "gpu" / script), *changes],
        env={**os.environ, **given, **more},
        cwd=packed.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_the_speed_of_variants_is_told(tmp_path: Path) -> None:
    (tmp_path / "pack.tar").touch()
    last = run("speed.sh", tmp_path / "pack.tar", STEPS="7", SIZES="350m")
    assert last.startswith("350m-zero3 ")
    logs = sorted(path.stem for path in (tmp_path / "runs" / "speed").glob("*.jsonl"))
    assert logs == [
        "350m-compile", "350m-plain", "350m-recompute", "350m-zero1", "350m-zero2", "350m-zero3",
    ]  # fmt: skip
    assert len(read_lines(tmp_path / "runs" / "speed" / "350m-plain.jsonl")) == 7


@pytest.mark.slow
def test_the_speed_of_decoding_is_told(tmp_path: Path) -> None:
    (tmp_path / "pack.tar").touch()
    last = run("decoding.sh", tmp_path / "pack.tar", TIMES="1")
    assert last.startswith("| 760m, guided, 64 at once: ours, bf16 |")


def read_lines(path: Path) -> list[str]:
    return path.read_text("utf-8").splitlines()


@pytest.mark.slow
def test_the_scripts_make_a_model_from_a_pack(packed: Path) -> None:
    runs = packed.parent / "runs"
    made = run("image-tokenizer.sh", packed)
    assert made == str(runs / "image" / "image_tokenizer")
    assert run("image-tokenizer.sh", packed) == f"{made} is there already"
    found = run("decoder.sh", packed, "steps=3", VAL=str(packed))
    assert found == str(runs / "emoji-128" / "model")
    model = load(found).model
    assert (model.config.context, model.config.width) == (1280, 32)
    lines = read(runs / "emoji-128")
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert "held_out_image_bits" in lines[-1]
    # what was made elsewhere is taken as it is
    with tarfile.open(packed.parent / "made.tar.xz", "w:xz") as tar:
        tar.add(runs / "shards", "shards")
    parts = {
        "SHARDS": str(packed.parent / "made.tar.xz"),
        "IMAGE": made,
        "TEXT": str(runs / "tokenizer.model"),
        "RUNS": str(packed.parent / "other"),
    }
    again = Path(run("decoder.sh", packed, "steps=3", PACK="not needed", **parts))
    assert (again / "model.safetensors").read_bytes() == Path(
        found, "model.safetensors"
    ).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("broken", [False, True])
def test_the_campaign_brings_what_is_done(packed: Path, broken: bool) -> None:
    out = packed.parent / "brought"
    given = {"VAL": str(packed), "OUT": str(out)}
    if broken:
        given["TEXT"] = "nowhere.model"
        with pytest.raises(AssertionError):
            run("campaign.sh", packed, **given)
    else:
        assert run("campaign.sh", packed, **given).endswith(" s] done")
    names = {path.name for path in out.iterdir()}
    wanted = {"image_tokenizer.tar", "logs.tar.gz"}
    assert names == (wanted if broken else {*wanted, "model.tar.00"})
    if not broken:
        with tarfile.open(out / "model.tar.00") as tar:
            tar.extractall(packed.parent, filter="data")
        assert load(packed.parent / "model").model.config.width == 32
        lines = read(packed.parent / "runs" / "emoji-128")
        assert len(lines) == 12
        assert sum("held_out_image_bits" in line for line in lines) == 4


def test_the_page_names_what_is_there() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for path in set(re.findall(r"\bscripts/[\w/.-]+\.(?:sh|py)", page)):
        assert (ROOT / path).is_file(), path
    for name in set(re.findall(r"emoji-128[\w-]*", page)):
        assert (ROOT / "train" / "recipes" / f"{name}.yaml").is_file(), name
