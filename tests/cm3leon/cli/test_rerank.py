"""`cm3leon generate --candidates`, through the real command line with tiny networks."""

import json
from pathlib import Path

import pytest

from cm3leon.cli import main
from cm3leon.pipeline import CM3Leon
from retrieval.embed import closeness
from retrieval.encoder import SmallEmbedder
from tokenizer.pixels import open_image, read_info

Capture = pytest.CaptureFixture[str]
WORDS = ["--temperature", "1", "--seed", "3"]


@pytest.fixture
def words(
    tiny_folder: Path, small_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """What every command ends with; it runs in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return ["--model", str(tiny_folder), "--encoder", str(small_encoder), "--device", "cpu"]


def test_the_pick_is_the_encoders_and_all_scores_are_told(
    words: list[str], tiny: CM3Leon, small_encoder: Path, capsys: Capture
) -> None:
    paint = ["generate", "a red fox", "-n", "2", "--candidates", "4", *WORDS, *words]
    assert main([*paint, "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    embedder = SmallEmbedder.load(small_encoder)
    painted = tiny.text_to_image("a red fox", n=8, seed=3)
    for number, told in enumerate(table["candidates"]):
        group = painted[4 * number : 4 * number + 4]
        assert told["scores"] == closeness(embedder, "a red fox", group)
        assert told["picked"] == 1 + told["scores"].index(max(told["scores"]))
        kept = open_image(table["files"][number])
        assert kept.tobytes() == group[told["picked"] - 1].tobytes()
    assert (table["mix"], table["encoder"]) == (False, embedder.id)


def test_like_repeats_a_pick_bit_for_bit(words: list[str], capsys: Capture) -> None:
    paint = ["generate", "a red fox", "-n", "3", "--candidates", "4", "--mix", *WORDS, *words]
    assert main([*paint, "--out", "fox.png"]) == 0
    notes = read_info("fox-2.png")
    assert (notes["candidates"], notes["mix"]) == ("4", "true")
    assert notes["encoder"].startswith("small-")
    assert "half of the candidates are drawn with 0.9" in capsys.readouterr().err  # tiny has none
    assert main(["generate", "--like", "fox-2.png", "--out", "again.png", "--json", *words]) == 0
    assert Path("again.png").read_bytes() == Path("fox-2.png").read_bytes()
    said = capsys.readouterr()
    assert len(json.loads(said.out)["candidates"]) == 1  # of what was asked for
    assert "differ" not in said.err
    without = [*words[:2], *words[4:]]
    assert main(["generate", "--like", "fox-2.png", "--out", "other.png", *without]) == 0
    assert "the result may differ" in capsys.readouterr().err
    assert main(["generate", "--like", "fox-2.png", "--candidates", "1", *words[:2]]) == 0
    assert "candidates" not in read_info("generated.png")


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (["--mix"], "even number"),
        (["--mix", "--candidates", "3"], "even number"),
        (["--candidates", "8", "-n", "9"], "at most 64"),
        (["--candidates", "2", "--temperature", "0"], "above 0"),
        (["--candidates", "2", "--mix", "--contrastive"], "leave 'contrastive' off"),
        (["--candidates", "2", "--encoder", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], given: list[str], why: str, capsys: Capture
) -> None:
    assert main(["generate", "a red fox", *words[:2], *given]) == 1
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert why in line
    assert not Path("generated.png").exists()


def test_damaged_notes_ask_for_no_thousand_candidates(words: list[str], capsys: Capture) -> None:
    from tokenizer.pixels import encode_png

    assert main(["generate", "a red fox", "--candidates", "2", *words]) == 0
    notes = read_info("generated.png")
    data = encode_png(open_image("generated.png"), {**notes, "candidates": "1000"})
    Path("bad.png").write_bytes(data)
    assert main(["generate", "--like", "bad.png", *words]) == 1
    assert "out of range" in capsys.readouterr().err
