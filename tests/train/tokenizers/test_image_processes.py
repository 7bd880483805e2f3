"""The image tokenizer's training in two processes is that of one: same launch, same states."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tokenizer.image import ImageTokenizer

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
RECIPE: dict[str, Any] = {
    "job": "image-tokenizer",
    "steps": 8,
    "batch": 4,
    "save_every": 4,
    "sample_every": 100,
    "schedule": {"peak": 1e-3},
    "model": {
        "size": 32, "patch": 2, "ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1,
        "attn_resolutions": [], "z_channels": 32, "embed_dim": 4, "codes": 32,
    },
}  # fmt: skip


def train(folder: Path, corpus: Path, run: str, *words: str) -> list[dict[str, Any]]:
    """Train through the command; the lines of the log."""
    (folder / "recipe.yaml").write_text(json.dumps(RECIPE))
    done = subprocess.run(
        [sys.executable, "-m", "cm3leon", "train", "recipe.yaml",
         f"data={corpus}", *words, "--out", run, "--resume", "latest"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{run}/image_tokenizer\n"
    assert ImageTokenizer.load(folder / run / "image_tokenizer").codes == 32
    return [json.loads(line) for line in (folder / run / "log.jsonl").read_text().splitlines()]


def test_two_processes_learn_what_one_learns(tmp_path: Path, corpus_folder: Path) -> None:
    alone = train(tmp_path, corpus_folder, "alone")
    two = train(tmp_path, corpus_folder, "two", "--processes", "2")
    for name in ("loss", "psnr", "gradient", "used", "reseeded"):
        found, wanted = ([line[name] for line in log] for log in (two, alone))
        assert found == pytest.approx(wanted, rel=1e-4), name


def test_with_a_judge_and_a_resume_two_processes_go_on(tmp_path: Path, corpus_folder: Path) -> None:
    judged = ("loss.adversarial=0.1", "loss.adversarial_start=2", "--processes", "2")
    whole = train(tmp_path, corpus_folder, "whole", *judged)
    train(tmp_path, corpus_folder, "again", *judged)
    for path in (tmp_path / "again").glob("state-00000008"):
        (path / "state.json").unlink()  # damaged: passed over for the one of step 4
    again = train(tmp_path, corpus_folder, "again", *judged)
    assert [line["loss"] for line in again] == pytest.approx([line["loss"] for line in whole])
    assert "judge" in whole[3]
