"""`generate --prompts` and `--precision`, with the tiny model."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cm3leon.__main__ import main
from cm3leon.pipeline import CM3Leon
from tokenizer.errors import UserError
from tokenizer.pixels import open_image, read_info

Run = Callable[..., list[str]]


@pytest.fixture
def run(
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Run a command that must do well, in a folder of its own; its lines on stdout."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: str) -> list[str]:
        assert main([*argv, "--model", str(tiny_folder)]) == 0
        return capsys.readouterr().out.splitlines()

    return run


def test_every_line_becomes_the_picture_it_is_alone(run: Run, tmp_path: Path) -> None:
    Path("prompts.txt").write_text("a red fox\n\n  a blue heart \na cat\n", "utf-8")
    lines = run("generate", "--prompts", "prompts.txt", "--out", "p.png", "--seed", "5")
    assert lines == ["p-1.png", "p-2.png", "p-3.png", "p.png"]
    for number, prompt in enumerate(("a red fox", "a blue heart", "a cat"), start=1):
        run("generate", prompt, "--out", "alone.png", "--seed", "5")
        assert Path(f"p-{number}.png").read_bytes() == Path("alone.png").read_bytes()
    assert open_image(Path("p.png")).size[0] > 16
    (line,) = run("generate", "--prompts", "prompts.txt", "--out", "q.png", "--json")
    table = json.loads(line)
    assert table["files"] == ["q-1.png", "q-2.png", "q-3.png"]
    assert table["prompts"] == ["a red fox", "a blue heart", "a cat"]


def test_one_line_is_one_picture(run: Run) -> None:
    Path("one.txt").write_text("a red fox", "utf-8")
    assert run("generate", "--prompts", "one.txt", "--out", "p.png") == ["p.png"]
    assert read_info(Path("p.png"))["prompt"] == "a red fox"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--prompts", "empty.txt"], "empty.txt: has no prompts; write one a line"),
        (["--prompts", "no.txt"], "cannot read no.txt: No such file or directory"),
        (["--prompts", "bytes.txt"], "bytes.txt: is no text in UTF-8"),
        (
            ["a fox", "--prompts", "one.txt"],
            "leave PROMPT, --like and -n",
        ),
        (
            ["--prompts", "one.txt", "-n", "2"],
            "leave PROMPT, --like and -n",
        ),
        (["a fox", "--precision", "int9"], "'int9' is not one of"),
    ],
)
def test_bad_files_of_prompts_are_refused(
    words: list[str],
    line: str,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("\n \n")
    Path("one.txt").write_text("a fox")
    Path("bytes.txt").write_bytes(b"\xff\xfe\x00")
    assert main(["generate", *words, "--model", str(tiny_folder)]) in (1, 2)
    assert line in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.glob("*.png"))


def test_the_precision_is_noted_and_repeated(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run("generate", "a red fox", "--out", "fox.png", "--precision", "int8")
    assert read_info(Path("fox.png"))["precision"] == "int8"
    run("generate", "--like", "fox.png", "--out", "again.png")
    assert Path("again.png").read_bytes() == Path("fox.png").read_bytes()
    words = ["generate", "--like", "fox.png", "--out", "plain.png", "--precision", "fp32"]
    run(*words)
    assert "precision" not in read_info(Path("plain.png"))


def test_another_precision_is_said_aloud(
    run: Run, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("generate", "a red fox", "--out", "fox.png")
    words = ["generate", "--like", "fox.png", "--precision", "int8", "--model", str(tiny_folder)]
    assert main(words) == 0
    told = capsys.readouterr().err
    assert "precision: int8" in told
    assert "that image was made in fp32, not int8; the result will differ" in told


def test_packed_weights_are_not_saved(tiny_folder: Path, tmp_path: Path) -> None:
    leon = CM3Leon.from_pretrained(tiny_folder, precision="int8")
    assert leon.precision == "int8"
    with pytest.raises(UserError, match="packed as int8, which is not stored"):
        leon.save_pretrained(tmp_path / "m")
    assert not (tmp_path / "m").exists()
    CM3Leon.from_pretrained(tiny_folder).save_pretrained(tmp_path / "m")
