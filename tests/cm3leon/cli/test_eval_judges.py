"""`cm3leon eval` by judges whose weights do not ship, and its copying audit: tiny and random."""

import io
import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cm3leon.__main__ import main
from cm3leon.cli.output import signature
from eval.metrics.fid import WAYS
from eval.networks.inception import FidInception
from eval.networks.lpips import Lpips
from tokenizer.pixels import encode_png, to_image
from tokenizer.vqgan.perceptual import FeatureNet

Capture = pytest.CaptureFixture[str]


def read(path: Path) -> dict[str, Any]:
    return json.loads((path / "report.json").read_text())


def asked(name: str, data: Path, model: Path, out: Path, *more: str) -> list[str]:
    words = ["eval", name, "--data", str(data), "--model", str(model), "--out", str(out)]
    return [*words, "--device", "cpu", *more]


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All networks with random weights."""
    folder = tmp_path_factory.mktemp("judges")
    torch.manual_seed(0)
    nets = {"inception": FidInception(), "mobilenet_v2": FeatureNet(), "lpips_vgg": Lpips()}
    for name, net in nets.items():
        for part in net.modules():
            if isinstance(part, torch.nn.Conv2d):  # features of a size that can be told apart
                torch.nn.init.kaiming_normal_(part.weight)
        weights = {key: value.contiguous() for key, value in net.state_dict().items()}
        save_file(weights, folder / f"{name}.safetensors")
    return folder


@pytest.fixture
def data(corpus_folder: Path, tmp_path: Path) -> Path:
    """The test split is the six pictures, and so is the train split, under ids of its own."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    shutil.copy(corpus_folder / "test-0.tar", folder)
    with (
        tarfile.open(corpus_folder / "test-0.tar") as old,
        tarfile.open(folder / "train-0.tar", "w") as new,
    ):
        for member in old.getmembers():
            file = old.extractfile(member)
            assert file is not None
            text = file.read()
            if member.name.endswith(".json"):
                table = json.loads(text)
                text = json.dumps({**table, "id": f"train-{table['id']}"}).encode()
            member.size = len(text)
            new.addfile(member, io.BytesIO(text))
    return folder


@pytest.mark.parametrize("name", ["fid", "kid", "mobilenet-distance"])
def test_distances_name_their_network_and_both_references(
    name: str,
    data: Path,
    judges: Path,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("eval.metrics.fid.FEWEST", 2)
    out = tmp_path / "report"
    assert main(asked(name, data, tiny_folder, out, "--weights", str(judges))) == 0
    called = {"fid": "FID", "kid": "KID"}.get(name, "mobilenet distance")
    values = read(out / name)["values"]
    for side in (", raw reference", ", reference through the codebook", " of the codebook alone"):
        one = values.pop(f"{called}{side}")
        assert one["count"] == 6
        assert one["low"] <= one["high"]
    assert set(values) == {"precision", "recall", "density", "coverage"}


def test_reconstruction_has_all_that_is_at_hand(
    data: Path, judges: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare, whole = tmp_path / "bare", tmp_path / "whole"
    assert main(asked("reconstruction", data, tiny_folder, bare)) == 0
    one = read(bare / "reconstruction")
    assert [note.split(":")[0] for note in one["notes"]] == ["no LPIPS", "no rFID"]
    monkeypatch.setattr("eval.metrics.fid.FEWEST", 2)
    assert main(asked("reconstruction", data, tiny_folder, whole, "--weights", str(judges))) == 0
    other = read(whole / "reconstruction")
    assert other["notes"] == []
    assert set(other["values"]) - set(one["values"]) == {
        "rFID, all", "LPIPS, all", "LPIPS, emoji", "LPIPS, icon", "LPIPS, photo",
    }  # fmt: skip


def test_what_a_fid_lacks_is_one_line(
    data: Path, judges: Path, tiny_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert main(asked("fid", data, tiny_folder, tmp_path / "a")) == 1
    assert "make inception.safetensors with scripts/" in capsys.readouterr().err.splitlines()[-1]
    assert main(asked("fid", data, tiny_folder, tmp_path / "b", "--weights", str(judges))) == 1
    assert "give at least 2,049 for a FID, or measure kid" in capsys.readouterr().err
    assert main(asked("clip-score", data, tiny_folder, tmp_path / "c")) == 1
    assert "is no CLIP" in capsys.readouterr().err.splitlines()[-1]


def test_copies_are_found(
    data: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "report"
    assert main(asked("copying", data, tiny_folder, out)) == 0
    values = read(out / "copying")["values"]
    assert values["the same of a real held-out image"]["value"] == pytest.approx(1, abs=1e-5)
    assert values["exactly the codes of a training image"]["value"] == 0
    copied = property(lambda context: [item.picture.codes for item in context.items])
    monkeypatch.setattr("eval.context.EvalContext.painted_codes", copied)
    assert main(asked("copying", data, tiny_folder, out)) == 0
    values = read(out / "copying")["values"]
    assert values["exactly the codes of a training image"]["value"] == 1
    assert values["cosine to the nearest training image"]["value"] == pytest.approx(1, abs=1e-5)


def test_the_train_split_is_not_audited(data: Path, tiny_folder: Path, tmp_path: Path) -> None:
    assert main(asked("copying", data, tiny_folder, tmp_path, "--split", "train")) == 1


def filled(folder: Path, count: int, seed: int, by: str = "") -> Path:
    folder.mkdir()
    draw = torch.Generator().manual_seed(seed)
    for number in range(count):
        image = to_image(torch.rand(3, 9, 9, generator=draw) * 2 - 1)
        notes = signature(by, "a model") if by else {}
        (folder / f"{number}.png").write_bytes(encode_png(image, notes))
    return folder


def test_folders_lie_apart_the_same_for_two_processes_and_any_order(
    judges: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    one, other = filled(tmp_path / "one", 9, 0), filled(tmp_path / "other", 7, 1)
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for number in range(9):
        shutil.copy(one / f"{number}.png", mixed / f"{number * 4 % 9}.png")

    def measured(name: str, *words: str | Path) -> float:
        given = ["--weights", judges, "--by", name, "--device", "cpu", "--out", tmp_path / "out"]
        assert main(["eval", "folders", *map(str, [*words, *given])]) == 0
        return next(iter(read(tmp_path / "out" / "folders")["values"].values()))["value"]

    alone = measured("kid", one, other)
    assert measured("kid", mixed, other) == pytest.approx(alone, rel=1e-4)
    assert measured("kid", one, other, "--processes", "2") == pytest.approx(alone, rel=1e-4)
    assert abs(measured("mobilenet-distance", one, mixed)) < 1e-3
    assert measured("mobilenet-distance", one, other) > 1e-3
    monkeypatch.setattr("eval.metrics.fid.WAYS", WAYS | {"fid": replace(WAYS["fid"], fewest=2)})
    assert abs(measured("fid", one, mixed)) < 1e-3


def test_folders_that_cannot_be_compared(judges: Path, tmp_path: Path, capsys: Capture) -> None:
    few, made = filled(tmp_path / "few", 3, 0), filled(tmp_path / "made", 3, 1, "generate")
    (tmp_path / "empty").mkdir()
    (tmp_path / "two").mkdir()
    for number, side in enumerate((9, 8)):
        image = to_image(torch.zeros(3, side, side))
        (tmp_path / "two" / f"{number}.png").write_bytes(encode_png(image))
    for words, reason in (
        (["few", "made"], "3 images have no covariance"),
        (["made", "few", "--by", "kid"], "the real ones come first"),
        (["few", "empty", "--by", "kid"], "a set to compare takes at least two"),
        (["few", "none", "--by", "kid"], "no such folder"),
        (["few", "two", "--by", "kid"], "images of two sizes"),
    ):
        given = [str(tmp_path / word) if (tmp_path / word).exists() else word for word in words]
        given += ["--weights", str(judges), "--device", "cpu", "--out", str(tmp_path / "out")]
        assert main(["eval", "folders", *given]) == 1
        assert reason in capsys.readouterr().err.splitlines()[-1]
    assert main(["eval", "folders", str(few), str(made), "--by", "kid"]) == 1
    assert "--weights" in capsys.readouterr().err.splitlines()[-1]


def test_of_many_samples_the_best_is_measured(
    data: Path, tiny_folder: Path, other_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    drawn = tmp_path / "drawn"
    words = ["eval", "samples", "--data", data, "--model", tiny_folder, "--out", drawn]
    words += ["--each", 4, "--processes", 1, "--device", "cpu"]
    assert main([str(word) for word in words]) == 0
    score, given = "embedder-score", ["--samples", str(drawn)]
    assert main(asked(score, data, tiny_folder, tmp_path / "one")) == 0
    assert main(asked(score, data, tiny_folder, tmp_path / "best", *given)) == 0
    one, best = (read(tmp_path / name / score) for name in ("one", "best"))
    assert best["values"]["painted"]["value"] > one["values"]["painted"]["value"]
    assert best["values"]["real"] == one["values"]["real"]
    assert (one["made_by"]["samples"], best["made_by"]["samples"]["count"]) == (None, 24)
    capsys.readouterr()
    assert main(asked(score, data, other_folder, tmp_path / "no", *given)) == 1
    assert "was generated by model" in capsys.readouterr().err.splitlines()[-1]
    assert main(asked(score, data, tiny_folder, tmp_path / "no", *given, "--split", "train")) == 1
    assert "has no image of the captions of 6" in capsys.readouterr().err.splitlines()[-1]
