"""The command line, end to end with the tiny model: exact lines, notes, and the same again."""

import io
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from cm3leon import __version__
from cm3leon.__main__ import main
from cm3leon.checkpoint import hash_of
from cm3leon.cli.output import Progress
from tokenizer.pixels import open_image, read_info

ROOT = Path(__file__).parents[3]
Run = Callable[..., list[str]]


@pytest.fixture
def run(tiny_folder: Path, tmp_path: Path, monkeypatch, capsys) -> Run:
    """Run a command that must do well, in a folder of its own; its lines on stdout."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: str, model: Path | None = tiny_folder) -> list[str]:
        chosen = [] if model is None else ["--model", str(model)]
        assert main([*argv, *chosen]) == 0
        return capsys.readouterr().out.splitlines()

    return run


def test_help_is_there_at_once_and_loads_no_torch() -> None:
    code = (
        "import sys; from cm3leon.__main__ import main; status = main(['--help']); "
        "print(status, [name for name in ('torch', 'numpy', 'rich') if name in sys.modules])"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.splitlines()[-1] == "0 []"
    for command in ("generate", "edit", "infill", "caption", "answer", "info", "pretrain"):
        assert f"\n  {command} " in done.stdout
    # Time on the processor, not on the wall: other work on the machine does not count.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.4


def test_no_command_is_a_cry_for_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert capsys.readouterr().out.startswith("Usage: cm3leon [OPTIONS] COMMAND")


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("generate", "train", "tune", "data encode"):
        assert main([*command.split(), "-h"]) == 0
        assert capsys.readouterr().out.startswith(f"Usage: cm3leon {command} ")


def test_generate_writes_one_picture_and_says_where(run: Run, tiny) -> None:
    assert run("generate", "a red fox", "--out", "fox.png", "--seed", "3") == ["fox.png"]
    (picture,) = tiny.text_to_image("a red fox", seed=3)
    assert open_image("fox.png").tobytes() == picture.tobytes()
    notes = read_info("fox.png")
    settings = json.loads(notes.pop("settings"))
    assert settings["cfg_scale"] == 3.0
    assert notes == {
        "software": f"cm3leon {__version__}",
        "task": "generate",
        "prompt": "a red fox",
        "seed": "3",
        "samples": "1",
        "number": "1",
        "model": tiny.hash,
    }


def test_progress_goes_to_stderr(run: Run, tiny_folder: Path, capsys) -> None:
    main(["generate", "a red fox", "--model", str(tiny_folder)])
    said = capsys.readouterr().err
    assert said.startswith("16 tokens in ")
    assert said.endswith(" tokens/s\n")
    assert said.count("\n") == 1


def test_progress_on_a_terminal_renews_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(2) as progress:
        progress(1, 4)
        progress(4, 4)
    first, second, cleared = terminal.getvalue().split("\r\x1b[K")[1:]
    assert first.startswith("1/4 tokens, ")
    assert first.endswith(" s left")
    assert second.startswith("4/4 tokens, ")
    assert cleared.startswith("8 tokens in ")


def test_several_samples_come_with_a_contact_sheet(run: Run) -> None:
    lines = run("generate", "a red fox", "-n", "3", "--out", "fox.png")
    assert lines == ["fox-1.png", "fox-2.png", "fox-3.png", "fox.png"]
    assert open_image("fox.png").size[0] > 2 * 16
    assert "number" not in read_info("fox.png")
    assert [read_info(line)["number"] for line in lines[:3]] == ["1", "2", "3"]


def test_json_is_one_line(run: Run, tiny) -> None:
    (line,) = run("generate", "a red fox", "-n", "2", "--json", "--seed", "9")
    assert json.loads(line) == {
        "task": "generate",
        "files": ["generated-1.png", "generated-2.png"],
        "sheet": "generated.png",
        "prompt": "a red fox",
        "seed": 9,
        "model": tiny.hash,
        "retrieved": [],
    }
    (line,) = run("caption", "generated-1.png", "--json")
    assert json.loads(line)["texts"] == tiny.caption(Path("generated-1.png"))


def test_like_repeats_a_picture_bit_for_bit(run: Run) -> None:
    given = ("--temperature", "0.8", "--top-k", "9", "--cfg-scale", "2", "--seed", "4")
    run("generate", "a red fox", "-n", "3", "--out", "fox.png", *given)
    for name in ("fox-1.png", "fox-3.png"):
        assert run("generate", "--like", name, "--out", "again.png") == ["again.png"]
        assert Path("again.png").read_bytes() == Path(name).read_bytes()
    assert len(run("generate", "--like", "fox.png", "--out", "all.png")) == 4
    assert Path("all.png").read_bytes() == Path("fox.png").read_bytes()
    assert Path("all-2.png").read_bytes() == Path("fox-2.png").read_bytes()


def test_what_is_given_beside_like_wins(run: Run) -> None:
    run("generate", "a red fox", "--out", "fox.png", "--top-k", "9")
    run("generate", "a blue heart", "--like", "fox.png", "--out", "heart.png", "--seed", "8")
    notes = read_info("heart.png")
    assert (notes["prompt"], notes["seed"]) == ("a blue heart", "8")
    assert json.loads(notes["settings"])["top_k"] == 9


def test_like_with_another_model_is_said_aloud(run: Run, other_folder: Path, capsys) -> None:
    run("generate", "a red fox", "--out", "fox.png")
    assert main(["generate", "--like", "fox.png", "--model", str(other_folder)]) == 0
    assert f"not {hash_of(other_folder)}; the result will differ" in capsys.readouterr().err


def test_info_shows_how_a_picture_was_made(run: Run, tiny) -> None:
    run("generate", "a red fox", "--out", "fox.png")
    lines = run("info", "fox.png", model=None)
    assert lines[:8] == [
        "size: 16 x 16",
        f"software: cm3leon {__version__}",
        "task: generate",
        f"model: {tiny.hash}",
        "prompt: a red fox",
        "seed: 0",
        "samples: 1",
        "number: 1",
    ]
    (line,) = run("info", "fox.png", "--json", model=None)
    assert json.loads(line)["prompt"] == "a red fox"


def test_info_shows_what_a_model_is(run: Run, tiny, tiny_folder: Path) -> None:
    parameters = sum(weight.numel() for weight in tiny.model.parameters())
    assert run("info", str(tiny_folder), model=None) == [
        f"folder: {tiny_folder}",
        f"model: {tiny.hash}",
        f"parameters: {parameters}",
        "layers: 2",
        "width: 32",
        "heads: 2",
        "context: 160",
        f"vocabulary: {tiny.codec.vocabulary.size}",
        "text pieces: 280",
        "image: 16 x 16 pixels",
        "codes: 4 x 4 of 32",
    ]


def test_info_says_what_the_world_of_the_default_model_is(run: Run) -> None:
    (line,) = run("info", "default", "--json", model=None)
    table = json.loads(line)
    assert table["can"].startswith("generate emoji-like images of things and people from words")
    assert "scenes, several things at once" in table["cannot"]
    assert table["not for"] == "judging anybody or anything by what it generates."


def test_edit_infill_and_reconstruct_write_pictures(run: Run, tiny) -> None:
    run("generate", "a red fox", "--out", "fox.png")
    fox = Path("fox.png")
    assert run("edit", "fox.png", "make it blue", "--text-scale", "5") == ["edited.png"]
    assert json.loads(read_info("edited.png")["settings"])["text_scale"] == 5.0
    assert run("infill", "fox.png", "--box", "4,4,12,12", "--seed", "2") == ["infilled.png"]
    (painted,) = tiny.infill(fox, (4, 4, 12, 12), seed=2)
    assert open_image("infilled.png").tobytes() == painted.tobytes()
    Image.new("L", (16, 16), "white").save("mask.png")
    assert len(run("infill", "fox.png", "--mask", "mask.png", "--prompt", "a cat", "-n", "2")) == 3
    assert run("reconstruct", "fox.png") == ["reconstructed.png"]
    assert open_image("reconstructed.png").tobytes() == tiny.reconstruct(fox).tobytes()
    assert read_info("reconstructed.png")["model"] == tiny.hash


def test_caption_and_answer_print_their_texts(run: Run, tiny) -> None:
    run("generate", "a red fox", "--out", "fox.png")
    fox = Path("fox.png")
    assert "\n".join(run("caption", "fox.png")) == "\n".join(tiny.caption(fox)[0].splitlines())
    run("answer", "fox.png", "what is it?", "--temperature", "1", "-n", "2")


@pytest.mark.parametrize(
    ("command", "module", "wanted"),
    [
        (
            "pretrain r a.b=1 c=2 --out run",
            "pretrain",
            ("r", ["a.b=1", "c=2"], "run", "none", None),
        ),
        ("pretrain r --out run --resume 5", "pretrain", ("r", [], "run", "5", None)),
        ("pretrain r --out run --init m", "pretrain", ("r", [], "run", "none", "m")),
        ("tune r --out run --init m", "pretrain", ("r", [], "run", "none", "m")),
        (
            "train emoji-64-image a=1 --out run",
            "tokenizers.image",
            ("emoji-64-image", ["a=1"], "run", "none"),
        ),
        ("train emoji-64-text --out t.m", "tokenizers.text", ("emoji-64-text", [], "t.m")),
        ("train tiny --out run", "pretrain", ("tiny", [], "run", "none", None)),
        ("data encode tars --tokenizer t --out s", "data.encode", (["tars"], "t", "s")),
        (
            "data views tars --shards s --tokenizer t --out v",
            "data.views",
            (["tars"], "s", "t", "v"),
        ),
    ],
)
def test_training_commands_only_pass_on(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: str, module: str, wanted: tuple[object]
) -> None:
    told: list[tuple[object, ...]] = []

    def record(*given: object, **_: object) -> str:
        told.append(tuple(str(item) if isinstance(item, Path) else item for item in given))
        return "where it is"

    job = ModuleType(f"train.{module}")
    monkeypatch.setattr(job, "main", record, raising=False)
    monkeypatch.setattr(job, "check", record, raising=False)
    monkeypatch.setitem(sys.modules, job.__name__, job)
    assert run(*command.split(), model=None) == ["where it is"]
    assert told[0][: len(wanted)] == wanted
