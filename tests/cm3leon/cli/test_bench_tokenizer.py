"""`cm3leon bench tokenizer` at tiny size: what it reports, and that both sides compute the same."""

import json
import sys
from pathlib import Path

import pytest
import torch

from cm3leon.cli import main
from tokenizer.image import ImageTokenizer
from tokenizer.vqgan.network import VQGAN, VQGANConfig

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def codebook(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A codebook such as other libraries have, too, or with what we have beside it."""
    kind = getattr(request, "param", "plain")
    patched = kind != "plain"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = VQGANConfig(
            size=32, codes=64, embed_dim=16, z_channels=8, ch=32, ch_mult=(1, 2, 1),
            num_res_blocks=1, attn_resolutions=(16,), patch=1 + patched, l2_norm=patched,
            local=kind == "local",
        )  # fmt: skip
        net = VQGAN(config)
        for name, weight in net.named_parameters():
            torch.nn.init.normal_(weight, mean="norm" in name and "weight" in name, std=0.1)
    folder = tmp_path_factory.mktemp("codebook") / kind
    ImageTokenizer(net).save(folder)
    return folder


@pytest.mark.parametrize("rival", ["taming", "diffusers"])
@pytest.mark.parametrize("codebook", ["plain", "patched"], indirect=True)
def test_both_sides_have_the_same_weights(rival: str, codebook: Path, capsys: Capture) -> None:
    pytest.importorskip(rival)
    words = ["bench", "tokenizer", "--against", rival, "--model", str(codebook), "--batch", "2"]
    assert main([*words, "--times", "2", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    found = table["against"]
    assert found["ours"]["parameters"] == found["theirs"]["parameters"]
    assert found["theirs"]["name"] == rival
    assert found["same_codes"] > 0.99
    assert found["pixels_apart"] < 1e-4
    for side in ("ours", "theirs"):
        for pace in (found[side]["encode"], found[side]["decode"]):
            seconds = pace["seconds"]
            assert 0 < seconds["least"] <= seconds["median"] <= seconds["most"]
            assert pace["peak_mb"] >= 0
    assert found["encode_ratio"] > 0
    assert " threads" in table["machine"]


@pytest.mark.parametrize("rival", ["taming", "diffusers"])
@pytest.mark.parametrize("codebook", ["local"], indirect=True)
def test_of_a_local_codebook_they_have_the_decoder(
    rival: str, codebook: Path, capsys: Capture
) -> None:
    pytest.importorskip(rival)
    words = ["bench", "tokenizer", "--against", rival, "--model", str(codebook), "--times", "1"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["against"]
    assert found["pixels_apart"] < 1e-4
    assert found["ours"]["encode"]["seconds"]["median"] > 0
    assert found["theirs"]["encode"] is found["encode_ratio"] is found["same_codes"] is None
    assert main(words) == 0
    assert f"| {rival}, 1 at a time: encode | none: it has no" in capsys.readouterr().out


def test_ours_alone_is_timed_at_several_batches(tiny_folder: Path, capsys: Capture) -> None:
    words = ["bench", "tokenizer", "--model", str(tiny_folder), "--times", "1"]
    assert main([*words, "--json"]) == 0
    assert [one["batch"] for one in json.loads(capsys.readouterr().out)["alone"]] == [1, 4, 16]
    assert main([*words, "--batch", "3"]) == 0
    said = capsys.readouterr().out
    assert "16 px, 4 x 4 codes of 32" in said
    assert "| ours, 3 at a time: decode | " in said


@pytest.mark.parametrize(
    ("words", "status", "reason"),
    [
        (["--size", "64"], 2, "--size"),
        (["--shape", "f16"], 2, "--shape"),
        (["--against", "llama"], 2, "--against"),
        (["--model", "/nowhere"], 1, "there is no model folder '/nowhere'"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str], status: int, reason: str, tiny_folder: Path, capsys: Capture
) -> None:
    assert main(["bench", "tokenizer", "--model", str(tiny_folder), *words]) == status
    said = capsys.readouterr()
    assert said.out == ""
    assert reason in said.err


def test_a_missing_library_is_named(
    codebook: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setitem(sys.modules, "taming.modules.diffusionmodules.model", None)
    monkeypatch.setitem(sys.modules, "taming", None)
    words = ["bench", "tokenizer", "--against", "taming", "--model", str(codebook)]
    assert main(words) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "--against taming needs what is not installed" in line
