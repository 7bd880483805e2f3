"""Every command of docs/training.md, run in its order on a corpus of six images.

The words are the page's own. Added are settings that make a model tiny and a run short, and asked
for are fewer processes and machines than the page has.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cm3leon.__main__ import main

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "training.md").read_text("utf-8")

SMALL_IMAGE = (
    "steps=2", "batch=2", "model.size=32", "model.ch=32", "model.ch_mult=[1,1,2]",
    "model.num_res_blocks=1", "model.attn_resolutions=[]", "model.z_channels=32",
    "model.embed_dim=4", "model.codes=32", "precision=fp32", "sample_every=100",
)  # fmt: skip
SMALL_RUN = ("steps=2", "batch=2", "micro_tokens=512", "workers=0", "precision=fp32")
SMALL_MODEL = ("model.layers=1", "model.width=32", "model.heads=2", "model.context=256")


def commands() -> list[list[str]]:
    """The page's commands, in order, as words."""
    text = re.sub(r"\\\n *", "", PAGE)
    lines = re.findall(r"^    ((?:cm3leon|python) .*)$", text, re.M)
    return [shlex.split(line) for line in lines]


def tiny(words: list[str]) -> list[str]:
    """The same command for a laptop."""
    where = {
        "--processes": "2",
        "--nproc-per-node": "2",
        "--nodes": "1",
        "--master-addr": "127.0.0.1",
    }
    small = [where.get(before, word) for before, word in zip(["", *words[:-1]], words, strict=True)]
    if "image-256" in words:
        small += SMALL_IMAGE
    elif "emoji-64-text" in words:
        small[small.index("pieces=56320")] = "pieces=300"
    elif "pretrain" in words or "tune" in words:
        small += SMALL_RUN
        if "tiny" not in words and "tune" not in words:
            small += SMALL_MODEL
    if words[0] == "cm3leon":
        return [sys.executable, "-m", *small]
    return [sys.executable, *small[1:]]


@pytest.fixture
def place(tmp_path: Path, corpus_folder: Path) -> Path:
    """A folder with raw/."""
    (tmp_path / "raw").mkdir()
    for name in ("train-00000", "val-00000"):
        shutil.copy(corpus_folder / "test-0.tar", tmp_path / "raw" / f"{name}.tar")
    return tmp_path


def test_the_page_shows_what_the_plan_prints(capsys: pytest.CaptureFixture[str]) -> None:
    plans = [words[1:] for words in commands() if words[1] == "plan"]
    assert [words[1] for words in plans] == ["350m", "760m", "7b"]
    for words in plans:
        assert main(words) == 0
        table, _, legend = capsys.readouterr().out.partition("\n\npeak:")
        assert f"```\n{table}\n```" in PAGE
        assert f"```\npeak:{legend}```" in PAGE


def test_every_command_of_the_page_runs(place: Path) -> None:
    variables = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    asked = commands()
    assert len(asked) >= 15
    for words in asked:
        done = subprocess.run(
            tiny(words), cwd=place, env=variables, capture_output=True, text=True, timeout=300
        )
        print(f"{done.returncode} {shlex.join(words)[:110]}")
        assert done.returncode == 0, f"{shlex.join(tiny(words))}\n{done.stdout}\n{done.stderr}"
    for made in ("runs/7b/model", "runs/350m/model", "runs/760m/model", "runs/tuned/model"):
        assert (place / made / "manifest.json").is_file()
    assert (place / "fox.png").is_file()
