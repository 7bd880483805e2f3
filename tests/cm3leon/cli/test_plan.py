"""`cm3leon plan`: what it prints, and what it does without."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cm3leon.cli import main
from cm3leon.pipeline import CM3Leon
from tokenizer.vocabulary import Vocabulary

RECIPE = """
job: pretrain
model: {context: 64, layers: 2, width: 64, heads: 2}
rows: {packed: 1.0}
schedule: {peak: 8e-3, warmup: 10}
steps: 160
batch: 8
micro_tokens: 130
"""


@pytest.fixture
def stranger(tmp_path: Path) -> str:
    """A recipe that names no shards and no tokenizers."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return str(tmp_path / "recipe.yaml")


def test_the_command_needs_nothing_but_the_recipe(
    stranger: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", stranger, "model.vocabulary=64000", "--gpus", "2", "--gpu-memory", "80GB"]
    assert main(words) == 0
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert told.err == ""
    assert lines[:3] == [
        "parameters: 4.2M, vocabulary 64,000",
        "a step: 512 tokens, 4 rows a GPU in 2 micro-batches of 2; the largest has 128 ids",
        "the run: 81,920 tokens at most",
    ]
    head, first, *_ = sheet = lines[6:15]
    assert head.split("  ")[0] == "GB a GPU"
    assert first.startswith("zero 0 ")
    assert len({len(line) for line in sheet}) == 1
    assert main([*words, "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert table["ways"][0]["weights"] == 4 * table["parameters"]
    assert (table["gpus"], table["cut"]["passes"], table["ways"][0]["fits"]) == (2, 2, True)


def test_the_vocabulary_comes_from_tokenizers_where_they_are(
    stranger: str, tiny: CM3Leon, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", stranger, "--gpus", "1", "--gpu-memory", "8GB"]
    assert main(words) == 1
    assert capsys.readouterr().err == (
        "error: the recipe states no model.vocabulary, and its tokenizers are not there to tell "
        "it; give model.vocabulary=N (the paper's tokenizers make 65032)\n"
    )
    folder = f"{tiny_folder}/image_tokenizer"
    paths = [f"image_tokenizer={folder}", f"text_tokenizer={tiny_folder}/tokenizer.model"]
    assert main([*words, *paths, "--json"]) == 0
    size = Vocabulary(image_codes=32, text_pieces=tiny.codec.text.pieces).size
    assert json.loads(capsys.readouterr().out)["vocabulary"] == size
    assert main([*words, "model.vocabulary=64", "--mfu", "2"]) == 2


def test_its_help_loads_no_torch() -> None:
    script = (
        "import sys; from cm3leon.cli import main; main(['plan', '--help']); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.endswith("False\n"), done.stderr
