"""Outputs of every command at fixed seeds, compared with golden.json.

`GOLDEN=write pytest tests/test_golden.py` writes the file anew. Floats may differ by their
tolerance; images and texts are compared byte by byte on processors of the kind that wrote the file.
"""

import gzip
import hashlib
import io
import json
import os
import platform
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cm3leon.__main__ import main

GOLDEN = Path(__file__).parent / "golden.json"
WRITE = os.environ.get("GOLDEN") == "write"
TOLERANCE = 2e-3  # relative, of training losses and of figures
ELSEWHERE = 0.1  # of another kind of processor, where a rounded sum may choose another code
COLOURS = {"red": (220, 30, 40), "green": (40, 160, 60), "blue": (40, 70, 200)}
SHAPES = ("square", "disc", "stripe", "cross")

IMAGE = """
job: image-tokenizer
data: {corpus}
steps: 60
batch: 8
schedule: {{peak: 8e-3, warmup: 4}}
loss: {{l2: 1.0}}
save_every: 60
sample_every: 100
model: {{size: 32, codes: 32, embed_dim: 8, z_channels: 32, ch: 32, ch_mult: [1, 1],
  num_res_blocks: 1, attn_resolutions: [], patch: 4, local: true}}
"""
TEXT = "job: text-tokenizer\ndata: {corpus}\npieces: 300\n"
DECODER = """
job: pretrain
shards: {folder}/shards
validation: {folder}/shards
image_tokenizer: {folder}/image/image_tokenizer
text_tokenizer: {folder}/tokenizer.model
model: {{context: 128, layers: 2, width: 32, heads: 2, init_std: 0.1}}
rows: {{forms: {{pair: 2, edit: 1, question: 1}}, packed: 0.5}}
mask: {{noise: 0.3}}
optimizer: {{matrices: muon}}
schedule: {{peak: 1e-2, warmup: 5}}
steps: 30
batch: 8
save_every: 15
validate_every: 30
sample_every: 100
"""
ENCODER = """
job: encoder
data: {corpus}
text_tokenizer: {folder}/tokenizer.model
features: {folder}/features.safetensors
model: {{size: 32, dimension: 8, width: 16, layers: 1, heads: 2, longest: 16}}
schedule: {{peak: 1e-3, warmup: 2}}
steps: 8
batch: 8
"""


def processor() -> str:
    """Name the processor's kind: float sums are the same on two of one kind."""
    words = ("vendor_id", "cpu family", "model")
    found: dict[str, str] = {}
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            found.setdefault(name.strip(), value.strip())
    kind = " ".join(found.get(word, "?") for word in words)
    return (
        f"{platform.machine()} {kind} {torch.backends.cpu.get_cpu_capability()} {torch.__version__}"
    )


def draw(shape: str, colour: tuple[int, int, int], shift: int) -> bytes:
    """Return a 32 x 32 PNG of a shape on white."""
    y, x = np.mgrid[0:32, 0:32] - (15 + shift)
    inside = {
        "square": np.maximum(abs(x), abs(y)) < 9,
        "disc": x**2 + y**2 < 90,
        "stripe": abs(x - y) < 5,
        "cross": np.minimum(abs(x), abs(y)) < 4,
    }[shape]
    file = io.BytesIO()
    pixels_HW3 = np.where(inside[..., None], np.uint8(colour), np.uint8(255))
    Image.fromarray(pixels_HW3.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_tar(path: Path, shift: int, split: str) -> None:
    with tarfile.open(path, "w") as archive:
        for shape in SHAPES:
            for word, colour in COLOURS.items():
                key = f"{split}-{word}-{shape}"
                caption = f"a {word} {shape}, flat style"
                table = {"id": key, "caption": caption, "kind": "emoji", "label": f"{word} {shape}"}
                for ending, data in (
                    ("png", draw(shape, colour, shift)),
                    ("json", json.dumps(table).encode()),
                ):
                    member = tarfile.TarInfo(f"{key}.{ending}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images to train on and twelve to test, with edits and questions."""
    folder = tmp_path_factory.mktemp("golden-corpus")
    write_tar(folder / "train-0.tar", 0, "train")
    write_tar(folder / "test-0.tar", 2, "test")
    edits, questions = [], []
    for split in ("train", "test"):
        for shape in SHAPES:
            for a, b in (("red", "green"), ("green", "blue")):
                pair = {"source": f"{split}-{a}-{shape}", "target": f"{split}-{b}-{shape}"}
                edits.append({**pair, "instructions": [f"make it {b}"], "type": "recolour"})
            asked = {"question": "What is this?", "answer": f"a {shape}", "type": "what"}
            questions.append({"id": f"{split}-blue-{shape}", **asked})
    for name, rows in (("edits", edits), ("questions", questions)):
        with gzip.open(folder / f"{name}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return folder


@pytest.fixture(scope="module")
def one_processor_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def write_features(path: Path) -> None:
    """Write random weights of the network whose features the encoder starts from."""
    from safetensors.torch import save_file

    from tokenizer.vqgan.perceptual import FeatureNet

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = FeatureNet()
        for module in net.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight)
        save_file(net.state_dict(), path)


def run(*argv: object) -> None:
    assert main([str(word) for word in argv]) == 0


@pytest.fixture(scope="module")
def trained(
    corpus: Path, tmp_path_factory: pytest.TempPathFactory, one_processor_thread: None
) -> Path:
    """Everything that the commands train: tokenizers, shards, encoder, memory, decoder, tuned."""
    folder = tmp_path_factory.mktemp("golden-runs")
    for name, text in (("i", IMAGE), ("t", TEXT), ("d", DECODER), ("e", ENCODER)):
        (folder / f"{name}.yaml").write_text(text.format(corpus=corpus, folder=folder))
    run("train", folder / "i.yaml", "--out", folder / "image")
    run("train", folder / "t.yaml", "--out", folder / "tokenizer.model")
    extra = [w for n in ("edits", "questions") for w in (f"--{n}", corpus / f"{n}.jsonl.gz")]
    tokenizer = folder / "image" / "image_tokenizer"
    shards = ("--tokenizer", tokenizer, "--out", folder / "shards")
    run("data", "encode", corpus / "train-0.tar", *extra, *shards, "--device", "cpu")
    write_features(folder / "features.safetensors")
    run("train", folder / "e.yaml", "--out", folder / "encoder")
    run("pretrain", folder / "d.yaml", "--out", folder / "decoder", "--device", "cpu")
    tune = ("steps=4", "mask.noise=0", "--init", folder / "decoder" / "model", "--device", "cpu")
    run("tune", folder / "d.yaml", *tune, "--out", folder / "tuned")
    about = ("--encoder", folder / "encoder" / "encoder", "--model", folder / "decoder" / "model")
    run("index", "build", corpus / "train-0.tar", "--out", folder / "memory", *about)
    return folder


def losses(run_folder: Path) -> list[float]:
    lines = (run_folder / "log.jsonl").read_text().splitlines()
    return [round(table["loss"], 5) for table in map(json.loads, lines) if "loss" in table]


def hashed(path: Path) -> str:
    """Hash the pixels of an image: what it carries besides may change."""
    image = Image.open(path)
    return hashlib.sha256(f"{image.size}".encode() + image.convert("RGB").tobytes()).hexdigest()


def values(report: Path) -> dict[str, float]:
    table = json.loads((report / "report.json").read_text())
    return {name: round(one["value"], 5) for name, one in table["values"].items()}


def close(found: Any, golden: Any, tolerance: float) -> bool:
    """Compare nested tables: floats within the tolerance, everything else exactly."""
    if isinstance(golden, dict):
        same = found.keys() == golden.keys()
        return same and all(close(found[k], golden[k], tolerance) for k in golden)
    if isinstance(golden, list):
        pairs = zip(found, golden, strict=False)
        return len(found) == len(golden) and all(close(a, b, tolerance) for a, b in pairs)
    if isinstance(golden, float):
        return bool(abs(found - golden) <= tolerance * max(1.0, abs(golden)))
    return found == golden


def check(name: str, found: Any, exact: bool = False) -> None:
    """Compare with golden.json, or write there; exact ones only where it was written."""
    table = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if WRITE:
        table |= {name: found, "processor": processor()}
        GOLDEN.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
    elif exact and table["processor"] != processor():
        pytest.skip(f"golden.json was written on {table['processor']}, this is {processor()}")
    else:
        tolerance = TOLERANCE if table["processor"] == processor() else ELSEWHERE
        assert close(found, table[name], tolerance), f"{name}: found {found}, was {table[name]}"


@pytest.mark.parametrize("job", ["image", "encoder", "decoder", "tuned"])
def test_losses_of_every_training(trained: Path, job: str) -> None:
    check(f"losses of {job}", losses(trained / job))


def test_a_resumed_run_is_the_run(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "decoder", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    whole = losses(trained / "decoder")
    cpu = ("--device", "cpu")
    run("pretrain", trained / "d.yaml", "--out", tmp_path / "run", "--resume", "15", *cpu)
    assert losses(tmp_path / "run") == whole


def test_images_of_a_small_model(trained: Path, tmp_path: Path) -> None:
    model = ("--model", trained / "decoder" / "model")
    pair = ("--encoder", trained / "encoder" / "encoder")
    memory = ("--memory", trained / "memory", "--retrieve", 2, *pair)
    source = tmp_path / "source.png"
    source.write_bytes(draw("disc", COLOURS["red"], 0))
    out: dict[str, Path] = {}

    def image(name: str, *argv: object) -> None:
        out[name] = tmp_path / f"{name}.png"
        run(*argv, *model, "--out", out[name], "--seed", 3)

    image("generated", "generate", "a red disc, flat style")
    image("guided", "generate", "a blue cross", "--cfg-scale", 2, "--top-p", 0.9)
    image("contrastive", "generate", "a blue cross", "--contrastive")
    image("retrieved", "generate", "a blue cross", *memory)
    image("picked", "generate", "a blue cross", "--candidates", 4, *pair)
    image("edited", "edit", source, "make it green")
    image("filled", "infill", source, "--box", "8,8,24,24", "--prompt", "a red disc")
    check("images", {name: hashed(path) for name, path in out.items()}, exact=True)


def test_texts_of_a_small_model(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source.png"
    source.write_bytes(draw("disc", COLOURS["red"], 0))
    model = ("--model", trained / "decoder" / "model")
    capsys.readouterr()
    run("caption", source, *model)
    run("answer", source, "What is this?", *model)
    check("texts", capsys.readouterr().out, exact=True)


def test_searches(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    encoder = ("--encoder", trained / "encoder" / "encoder")
    run("index", "search", trained / "memory", "a red disc", *encoder, "--json")
    check("search", json.loads(capsys.readouterr().out), exact=True)


def test_reports_of_every_metric(corpus: Path, trained: Path, tmp_path: Path) -> None:
    model = ("--model", trained / "decoder" / "model", "--device", "cpu")
    memory = ("--memory", trained / "memory", "--encoder", trained / "encoder" / "encoder")
    out = tmp_path / "report"
    run("eval", "all", "--data", corpus, *model, *memory, "--out", out)
    found = {path.parent.name: values(path.parent) for path in sorted(out.glob("*/report.json"))}
    check("metrics", {name: one for name, one in found.items() if one}, exact=True)


def test_plan_of_the_paper(capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    sizes = ("model.vocabulary=65536", "--gpus", 256, "--gpu-memory", "80GB", "--json")
    run("plan", "7b", *sizes)
    table = json.loads(capsys.readouterr().out)
    peaks = [way["peak"] for way in table["ways"]]
    check("plan", {"parameters": table["parameters"], "tokens": table["tokens"], "peaks": peaks})


def test_the_default_model(tmp_path: Path, one_processor_thread: None) -> None:
    fox = tmp_path / "fox.png"
    run("generate", "a red fox, Noto emoji style", "--out", fox, "--precision", "fp32")
    one = tmp_path / "one.png"
    run("generate", "a blue heart", "--candidates", 1, "--seed", 5, "--out", one)
    check("default", {"fox": hashed(fox), "heart": hashed(one)}, exact=True)
