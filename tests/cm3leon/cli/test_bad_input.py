"""Bad input through the real command line: one line, status 1 or 2, nothing half-written."""

import io
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cm3leon.__main__ import main

ROOT = Path(__file__).parents[3]
Fails = Callable[..., str]


@pytest.fixture
def fails(tiny_folder: Path, tmp_path: Path, monkeypatch, capsys) -> Fails:
    """Run a command that must fail in one line and leave nothing behind; what it says."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (16, 16), "red").save("good.png")

    def fails(*argv: str, status: int = 1, model: Path | None = tiny_folder) -> str:
        before = sorted(tmp_path.rglob("*"))
        chosen = [] if model is None else ["--model", str(model)]
        assert main([*argv, *chosen]) == status
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("error: ")
        assert said.err.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before
        return said.err.removeprefix("error: ").removesuffix("\n")

    return fails


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(side: int = 64) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(values)


def header(width: int, height: int) -> bytes:
    """A PNG that says it has this size, and no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


PNG, JPEG = encoded(noise(), "PNG"), encoded(noise(), "JPEG")

BROKEN = {
    "empty.png": (b"", "is empty (0 bytes)"),
    "cut.png": (PNG[: len(PNG) // 2], "is damaged or cut short"),
    "cut.jpg": (JPEG[: len(JPEG) // 2], "is damaged or cut short"),
    "text.png": (b"a red fox\n", "is not an image"),
    "huge.png": (header(60_000, 60_000), "pixels"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize(
    "command", ["caption {}", "edit {} blue", "infill {} --box 0,0,4,4", "reconstruct {}"]
)
def test_broken_pictures(fails: Fails, name: str, command: str) -> None:
    content, reason = BROKEN[name]
    Path(name).write_bytes(content)
    said = fails(*command.format(name).split())
    assert said.startswith(f"{name}: ")
    assert reason in said


@pytest.mark.parametrize("name", ["nothing.png", "."])
def test_pictures_that_are_none(fails: Fails, name: str) -> None:
    reason = "no such file" if name != "." else "is a folder"
    assert reason in fails("caption", name)
    assert reason in fails("answer", name, "what is it?")
    assert reason in fails("infill", "good.png", "--mask", name)
    assert reason in fails("generate", "--like", name)


def upside_down() -> Image.Exif:
    exif = Image.Exif()
    exif[274] = 3
    return exif


TWO_FRAMES = {"save_all": True, "append_images": [Image.new("RGB", (64, 64))]}
ODD = {
    "animation.gif": encoded(noise(), "GIF", **TWO_FRAMES),
    "deep.png": encoded(Image.fromarray(np.full((9, 9), 60_000, dtype=np.uint16)), "PNG"),
    "print.jpg": encoded(noise().convert("CMYK"), "JPEG"),
    "palette.png": encoded(noise().convert("P"), "PNG"),
    "clear.png": encoded(Image.new("RGBA", (9, 9), (255, 0, 0, 0)), "PNG"),
    "turned.jpg": encoded(noise(), "JPEG", exif=upside_down()),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_pictures_are_read(
    name: str, tiny_folder: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(ODD[name])
    assert main(["reconstruct", name, "--model", str(tiny_folder)]) == 0
    said = capsys.readouterr()
    assert said.out == "reconstructed.png\n"
    frames = "animation.gif holds several frames; only the first is used\n"
    assert said.err == (frames if name == "animation.gif" else "")


def test_prompts_that_cannot_be(fails: Fails) -> None:
    assert fails("generate", "") == "the prompt is empty; write what you want"
    assert fails("generate", " \n") == "the prompt is empty; write what you want"
    assert fails("edit", "good.png", "") == "the instruction is empty; write what you want"
    assert "the question is empty" in fails("answer", "good.png", " ")
    assert "do not fit into the model's 160; shorten" in fails("generate", "a red fox " * 90)
    assert fails("generate", "fox", "--like", "good.png") == (
        "good.png: has no metadata of cm3leon on how it was made"
    )
    assert "half a character" in fails("generate", "\udc80")


@pytest.mark.parametrize(
    ("options", "status", "reason"),
    [
        ("--top-p 1.5", 1, "top_p is 1.5; it must be above 0 and at most 1"),
        ("--top-p 0", 1, "top_p is 0.0; it must be above 0 and at most 1"),
        ("--top-k 0", 1, "top_k is 0; it must be at least 1"),
        ("--temperature -1", 1, "temperature is -1.0; it must be 0 or more"),
        ("--temperature nan", 1, "temperature is nan; it must be 0 or more"),
        ("--cfg-scale nan", 1, "cfg_scale is nan; it must be 0 or more"),
        ("--cfg-scale inf", 1, "cfg_scale is inf; it must be 0 or more"),
        ("--cfg-scale much", 2, "--cfg-scale"),
        ("-n 0", 2, "-n"),
        ("-n 65", 2, "-n"),
        ("--seed -1", 2, "--seed"),
        ("--threads 0", 2, "--threads"),
        ("--cgf-scale 3", 2, "--cfg-scale"),  # what was meant
        ("--device gpu", 1, "unknown device 'gpu'"),
        ("more words", 2, "unexpected"),
    ],
)
def test_options_out_of_range(fails: Fails, options: str, status: int, reason: str) -> None:
    assert reason in fails("generate", "fox", *options.split(), status=status)


def test_wrong_usage(fails: Fails) -> None:
    assert "give a prompt, or --like IMAGE" in fails("generate", status=2)
    assert "Missing" in fails("edit", "good.png", status=2)
    assert "generate" in fails("genrate", "fox", status=2, model=None)
    assert "Missing command" in fails("data", status=2, model=None)


@pytest.mark.parametrize("box", ["0,0,17,4", "-1,0,4,4", "4,4,4,4", "9,0,3,4"])
def test_boxes_outside_the_picture(fails: Fails, box: str) -> None:
    said = fails("infill", "good.png", "--box", box)
    assert said.startswith(f"the box {box} is not inside the image of 16 x 16")


def test_regions_that_cannot_be(fails: Fails) -> None:
    assert "write left,top,right,bottom" in fails("infill", "good.png", "--box", "1,2,3", status=2)
    assert "write left,top" in fails("infill", "good.png", "--box", "1,2,3,x", status=2)
    assert "give either --box or --mask" in fails("infill", "good.png", status=2)
    Image.new("L", (8, 8), "white").save("small.png")
    Image.new("L", (16, 16)).save("black.png")
    assert "the mask has 8 x 8 pixels" in fails("infill", "good.png", "--mask", "small.png")
    assert "the region to infill is empty" in fails("infill", "good.png", "--mask", "black.png")


def test_places_that_cannot_be_written(fails: Fails) -> None:
    Path("folder.png").mkdir()
    assert "there is no folder" in fails("generate", "fox", "--out", "nowhere/fox.png")
    assert "it is a folder" in fails("generate", "fox", "--out", "folder.png")
    assert "name it fox.png" in fails("generate", "fox", "--out", "fox.jpg")
    assert "name it fox.png" in fails("edit", "good.png", "blue", "--out", "fox")
    assert "File name too long" in fails("reconstruct", "good.png", "--out", "x" * 300 + ".png")
    assert "is not a plain file" in fails("generate", "fox", "--out", _device("null.png"))


def _device(name: str) -> str:
    Path(name).symlink_to("/dev/null")
    return name


@pytest.mark.parametrize("part", ["model.safetensors", "tokenizer.model", "image_tokenizer"])
def test_models_with_a_bad_part(
    fails: Fails, tiny_folder: Path, other_folder: Path, tmp_path: Path, part: str
) -> None:
    folder = tmp_path / "model"
    file = part if part != "image_tokenizer" else "image_tokenizer/model.safetensors"
    shutil.copytree(tiny_folder, folder)
    shutil.copy(other_folder / file, folder / file)
    assert file in fails("generate", "fox", model=folder)
    (folder / file).write_bytes((tiny_folder / file).read_bytes()[:100])
    assert f"{file!r} has 100 bytes" in fails("generate", "fox", model=folder)
    (folder / file).unlink()
    assert f"{file!r} is missing" in fails("generate", "fox", model=folder)
    assert f"{file!r} is missing" in fails("info", str(folder), model=None)


def test_models_that_are_none(fails: Fails, tmp_path: Path) -> None:
    assert "there is no model folder" in fails("generate", "fox", model=Path("nowhere"))
    assert "there is no model folder" in fails("caption", "good.png", model=Path("good.png"))
    (tmp_path / "bare").mkdir()
    assert "manifest.json" in fails("reconstruct", "good.png", model=Path("bare"))
    assert "generation_config.json" in fails("generate", "fox", model=Path("bare"))
    assert "no such file" in fails("info", "nowhere", model=None)


def test_recipes_that_cannot_be(fails: Fails) -> None:
    Path("recipe.yaml").write_text("job: text-tokenizer\ndata: tars\npeices: 300\n")
    train = ("train",)
    said = fails(*train, "recipe.yaml", "--out", "t.model", model=None)
    assert "unknown setting 'peices'; did you mean 'pieces'?" in said
    said = fails(*train, "recipe.yaml", "pieces", "--out", "t.model", model=None)
    assert "write it as name=value" in said
    said = fails(*train, "nowhere", "--out", "t.model", model=None)
    assert "no recipe 'nowhere'" in said
    said = fails("pretrain", "recipe.yaml", "--out", "run", model=None)
    assert "its job is 'text-tokenizer', this command wants 'pretrain'" in said


def test_damaged_notes_are_refused(fails: Fails) -> None:
    from tokenizer.pixels import encode_png

    good = {
        "software": "cm3leon 0",
        "task": "generate",
        "prompt": "fox",
        "seed": "0",
        "samples": "1",
        "number": "1",
        "settings": "{}",
        "model": "x",
    }
    for change, reason in (
        ({"task": "edit"}, "was made by 'edit', not by 'generate'"),
        ({"seed": "x"}, "its metadata is damaged"),
        ({"settings": "[" * 9}, "its metadata is damaged"),
        ({"settings": "3"}, "its metadata is damaged"),
        ({"settings": '{"top_p": 7}'}, "top_p is 7"),
        ({"samples": "1000000"}, "out of range"),
        ({"number": "2"}, "out of range"),
        ({"seed": "-3"}, "out of range"),
        ({"prompt": " "}, "the prompt is empty"),
    ):
        Path("notes.png").write_bytes(encode_png(noise(8), {**good, **change}))
        assert reason in fails("generate", "--like", "notes.png")


def test_interrupted_leaves_one_line_and_no_file(tiny_folder: Path, tmp_path: Path) -> None:
    """A real Ctrl-C, while the model is at work."""
    code = (
        "import signal, sys, time, cm3leon.pipeline as p; from cm3leon.__main__ import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job in the background
        "def slow(*_): print('busy', flush=True); time.sleep(60)\n"
        "p.generate = slow; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "generate", "fox", "--model", str(tiny_folder)]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "busy\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_interrupted_between_pictures_leaves_whole_files_only(
    tiny_folder: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    import tokenizer.manifest

    monkeypatch.chdir(tmp_path)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tokenizer.manifest.os, "replace", interrupted)
    assert main(["generate", "fox", "-n", "2", "--model", str(tiny_folder)]) == 130
    assert capsys.readouterr().err.endswith("interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_the_installed_command_fails_in_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cm3leon", "generate", "", "--out", "fox.png"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: the prompt is empty; write what you want\n"
    assert list(tmp_path.iterdir()) == []
