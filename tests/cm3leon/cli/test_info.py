"""`data inspect`: what shards hold, in words and pictures."""

from pathlib import Path

import pytest

from cm3leon.__main__ import main
from cm3leon.pipeline import CM3Leon
from tokenizer.data.shard_writer import write_shards
from tokenizer.pixels import open_image


@pytest.fixture
def shards(tiny: CM3Leon, tmp_path: Path) -> Path:
    image = tiny.image_tokenizer
    pictures = [
        ({"id": name, "captions": [f"a {name}", "x"]}, [number] * image.picture_codes)
        for number, name in enumerate(("fox", "owl"))
    ]
    documents = [
        {"task": "pair", "picture": "owl"},
        {"task": "edit", "source": "fox", "target": "owl", "instructions": ["give it wings"]},
        {"task": "question", "picture": "fox", "question": "What is it?", "answer": "a fox"},
    ]
    about = {"size": image.size, "grid": image.grid, "codes": image.codes}
    folder = tmp_path / "shards"
    write_shards(folder, pictures, documents, image_tokenizer_hash=image.hash, **about)
    return folder


def test_documents_come_as_text(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "inspect", str(shards)]) == 0
    counts, about, *lines = capsys.readouterr().out.splitlines()
    assert counts == "2 images, 1 pair, 1 edit, 1 question"
    assert about.startswith("16 x 16 pixels are 4 x 4 codes of 32, image tokenizer ")
    assert lines == [
        "0 pair: a owl <break> [owl]",
        "1 edit: Edit first image following the instruction <break> [fox] <break> give it wings "
        "<break> [owl]",
        "2 question: Question: What is it? Answer: a fox. <break> [fox]",
    ]
    assert main(["data", "inspect", str(shards), "-n", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split(":")[0] for line in lines] == ["0 pair", "1 edit"]


def test_shards_without_documents_or_captions_are_shown(
    tiny: CM3Leon, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, pair = tiny.image_tokenizer, {"task": "pair", "picture": "fox"}
    about = {"size": image.size, "grid": image.grid, "codes": image.codes}
    for name, documents in (("none", []), ("mute", [pair])):
        pictures = [({"id": "fox", "captions": []}, [1] * image.picture_codes)]
        where = tmp_path / name
        write_shards(where, pictures, documents, image_tokenizer_hash=image.hash, **about)
        assert main(["data", "inspect", str(where)]) == 0
        assert ("[fox]" in capsys.readouterr().out) == (name == "mute")
    tokenizer = ["--tokenizer", str(tiny_folder / "image_tokenizer")]
    told = [str(tmp_path / "none"), "--sheet", str(tmp_path / "s.png"), *tokenizer]
    assert main(["data", "inspect", *told]) == 1
    assert "no documents whose images --sheet could show" in capsys.readouterr().err


def test_their_pictures_come_as_a_sheet(
    shards: Path, tiny_folder: Path, other_folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    sheet = tmp_path / "sheet.png"
    command = ["data", "inspect", str(shards), "--sheet", str(sheet)]
    assert main(command) == 1
    assert "--sheet and --tokenizer go together" in capsys.readouterr().err
    assert main([*command, "--tokenizer", str(other_folder / "image_tokenizer")]) == 1
    assert "was made with image tokenizer" in capsys.readouterr().err
    assert not sheet.exists()
    assert main([*command, "--tokenizer", str(tiny_folder / "image_tokenizer")]) == 0
    assert open_image(sheet).width >= 2 * 16
