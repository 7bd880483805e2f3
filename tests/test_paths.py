"""The natural paths through the real command line, at a tiny size: tars to a model to pictures."""

import contextlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

from cm3leon.__main__ import main
from cm3leon.pipeline import CM3Leon
from tokenizer.data.shards import Shards
from tokenizer.pixels import open_image, read_info
from train.metrics import read

COLOURS = ("red", "green", "blue", "orange")
SHAPES = ("circle", "square", "bar")
HELD_OUT = "blue-square"


def drawing(colour: str, shape: str) -> bytes:
    image = Image.new("RGB", (20, 20), "white")
    draw = ImageDraw.Draw(image)
    if shape == "circle":
        draw.ellipse((3, 3, 16, 16), fill=colour)
    else:
        draw.rectangle((3, 3, 16, 16) if shape == "square" else (2, 8, 17, 11), fill=colour)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def write_tar(path: Path, names: list[tuple[str, str]]) -> None:
    with tarfile.open(path, "w") as archive:
        for colour, shape in names:
            key = f"{colour}-{shape}"
            about = {"id": key, "captions": [f"a {colour} {shape}", f"a {shape}"], "kind": "shape"}
            for name, data in (
                (f"{key}.png", drawing(colour, shape)),
                (f"{key}.json", json.dumps(about).encode()),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def write_corpus(folder: Path) -> None:
    """Tars of drawings, edits of their colour, questions about it, and one id held out."""
    names = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    write_tar(folder / "train-0.tar", names[:6])
    write_tar(folder / "train-1.tar", names[6:10])
    write_tar(folder / "val-0.tar", names[10:])
    edits = [
        {"source": f"red-{shape}", "target": f"{colour}-{shape}", "type": "colour",
         "instructions": [f"make it {colour}"]}
        for colour in COLOURS[1:] for shape in SHAPES
    ]  # fmt: skip
    questions = [
        {"id": f"{colour}-{shape}", "question": "Which colour is it?", "answer": colour,
         "type": "what"}
        for colour, shape in names
    ]  # fmt: skip
    (folder / "edits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in edits))
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    (folder / "held-out.txt").write_text(HELD_OUT + "\n")


def cm3leon(*argv: str) -> str:
    """Run a command line that must do well; its result."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(list(argv)) == 0
    return out.getvalue().strip()


class Made:
    """What the chain of commands has made, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = folder / "run" / "model"

    def __getitem__(self, name: str) -> str:
        return str(self.folder / name)

    def cm3leon(self, *argv: str) -> str:
        """A command with the model that was trained."""
        return cm3leon(*argv, "--model", str(self.model))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Tars -> text tokenizer, image tokenizer -> token shards -> decoder."""
    made = Made(tmp_path_factory.mktemp("paths"))
    write_corpus(made.folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    data, held_out = f"data={made.folder}", f"exclude={made['held-out.txt']}"
    texts = (f"edits={made['edits.jsonl']}", f"questions={made['questions.jsonl']}")
    said = cm3leon(
        "train", "emoji-64-text", data, held_out, *texts, "pieces=300",
        "--out", made["t.model"],
    )  # fmt: skip
    assert said == made["t.model"]
    said = cm3leon(
        "train", "emoji-64-image", data, held_out, "shares={}", "steps=8",
        "batch=4", "schedule.warmup=2", "sample_every=8", "model.size=16", "model.codes=32",
        "model.ch=32", "model.z_channels=32", "loss.perceptual=0", "--out", made["image"],
    )  # fmt: skip
    assert said == made["image/image_tokenizer"]
    for split in ("train", "val"):
        given = (
            "--edits", made["edits.jsonl"], "--questions", made["questions.jsonl"],
            "--exclude", made["held-out.txt"], "--text-tokenizer", made["t.model"],
        )  # fmt: skip
        tars, folder = made[f"{split}-*.tar"], made[f"shards-{split}"]
        assert cm3leon("data", "encode", tars, "--tokenizer", said, "--out", folder, *given)
    about = (
        f"shards={made['shards-train']}", f"validation={made['shards-val']}",
        f"image_tokenizer={made['image/image_tokenizer']}", f"text_tokenizer={made['t.model']}",
        "rows.kinds={}", "mask.predict=all", "rows.edits={}", "rows.questions={}",
        "model.context=96", "model.layers=2", "model.width=64", "model.heads=2", "batch=4",
        "schedule.warmup=2",
        "sample_prompts=[a red bar]",
    )  # fmt: skip
    said = cm3leon("pretrain", "emoji-64", *about, "steps=8", "--out", made["run"])
    assert said == str(made.model)
    said = cm3leon(
        "tune", "emoji-64", *about, "steps=2", "--init", str(made.model), "--out", made["tuned"]
    )
    assert said == made["tuned/model"]
    torch.set_num_threads(threads)
    return made


def test_what_is_held_out_is_in_no_shard(made: Made) -> None:
    shards = Shards.open(made["shards-train"])
    assert shards.counts == {"pictures": 9, "pair": 9, "edit": 6, "question": 9}
    lines = [*shards.every_picture(), *shards.every_document()]
    assert not any(HELD_OUT in json.dumps(line) for line in lines)
    assert Shards.open(made["shards-val"]).pictures == 2


def test_every_kind_of_training_left_its_log_and_samples(made: Made) -> None:
    assert [line["step"] for line in read(made.folder / "image")] == list(range(1, 9))
    log = read(made.folder / "run")
    assert log[-1]["loss"] < log[0]["loss"]
    assert {"text", "image", "held_out_image_bits", "held_out_text_bits"} <= log[-1].keys()
    for name in ("image/sample-00000008.png", "run/sample-00000008.png"):
        assert open_image(made.folder / name).width > 8
    # tuning goes on from the model, where a new one would be as ignorant as at the beginning
    assert read(made.folder / "tuned")[0]["loss"] < log[0]["loss"] - 0.1


def test_words_become_pictures_and_the_same_again(made: Made) -> None:
    sheet = made["red.png"]
    said = made.cm3leon("generate", "a red circle", "--out", sheet, "-n", "2", "--seed", "3")
    assert said.splitlines() == [made["red-1.png"], made["red-2.png"], sheet]
    assert open_image(Path(made["red-2.png"])).size == (16, 16)
    made.cm3leon("generate", "--like", made["red-2.png"], "--out", made["again.png"])
    second, again = (Path(made[name]) for name in ("red-2.png", "again.png"))
    assert open_image(second).tobytes() == open_image(again).tobytes()
    assert read_info(again)["prompt"] == "a red circle"


def test_pictures_become_words_and_other_pictures(made: Made) -> None:
    picture = made["own.png"]
    Path(picture).write_bytes(drawing("green", "circle"))
    results: dict[str, Any] = {}
    for name, argv in {
        "caption": ("caption", picture),
        "answer": ("answer", picture, "Which colour is it?"),
        "edit": ("edit", picture, "make it red", "--out", made["edited.png"]),
        "infill": ("infill", picture, "--box", "0,0,9,9", "--out", made["infilled.png"]),
        "reconstruct": ("reconstruct", picture, "--out", made["through.png"]),
    }.items():
        results[name] = json.loads(made.cm3leon(*argv, "--json"))
        assert results[name]["task"] == name
    assert isinstance(results["caption"]["texts"][0], str)
    assert isinstance(results["answer"]["texts"][0], str)
    for name in ("edited.png", "infilled.png", "through.png"):
        assert open_image(Path(made[name])).size == (16, 16)
    leon = CM3Leon.from_pretrained(made.model)
    through = open_image(Path(made["through.png"]))
    assert through.tobytes() == leon.reconstruct(open_image(Path(picture))).tobytes()


def test_info_tells_of_the_model_and_of_its_pictures(made: Made) -> None:
    about = json.loads(cm3leon("info", str(made.model), "--json"))
    assert (about["layers"], about["width"], about["context"]) == (2, 64, 96)
    assert about["codes"] == "2 x 2 of 32"
    made.cm3leon("generate", "a blue bar", "--out", made["bar.png"], "--seed", "5")
    of_picture = json.loads(cm3leon("info", made["bar.png"], "--json"))
    assert (of_picture["prompt"], of_picture["seed"]) == ("a blue bar", "5")
    assert of_picture["model"] == about["model"] == CM3Leon.from_pretrained(made.model).hash
