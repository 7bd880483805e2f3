"""An image tokenizer's folder: what is saved is loaded, and what is wrong is said in one line."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cm3leon.checkpoint import find
from tokenizer.errors import UserError
from tokenizer.image import ImageTokenizer
from tokenizer.vqgan.network import VQGAN, VQGANConfig

SMALL = VQGANConfig(
    size=16, codes=16, embed_dim=8, z_channels=8, ch=32, ch_mult=(1, 1), num_res_blocks=1,
    attn_resolutions=(8,), l2_norm=True,
)  # fmt: skip


def made(config: VQGANConfig = SMALL) -> ImageTokenizer:
    """An untrained tokenizer that uses many codes."""
    torch.manual_seed(0)
    net = VQGAN(config)
    torch.nn.init.normal_(net.quantize.embedding.weight)
    return ImageTokenizer(net)


def pixels(count: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.rand((count, 3, 16, 16), generator=random) * 2 - 1


def complaint(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        ImageTokenizer.load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made().save(tmp_path / "saved")
    return tmp_path / "saved"


def test_what_is_saved_is_loaded(folder: Path) -> None:
    before, after = made(), ImageTokenizer.load(folder)
    assert after.config == SMALL
    assert (after.size, after.grid, after.picture_codes, after.codes) == (16, 8, 64, 16)
    codes_BL = before.encode(pixels(3))
    assert codes_BL.shape == (3, 64)
    assert codes_BL.dtype == torch.int64
    assert len(codes_BL.unique()) > 3
    assert torch.equal(after.encode(pixels(3)), codes_BL)
    painted = after.decode(codes_BL)
    assert painted.shape == (3, 3, 16, 16)
    assert painted.abs().max() <= 1
    torch.testing.assert_close(painted, before.decode(codes_BL), atol=1e-5, rtol=0)


def test_a_picture_has_the_same_codes_in_any_company() -> None:
    tokenizer = made()
    together = tokenizer.encode(pixels(3))
    alone = torch.cat([tokenizer.encode(picture[None]) for picture in pixels(3)])
    assert torch.equal(together, alone)


def test_the_hash_is_of_what_was_saved(folder: Path) -> None:
    first = ImageTokenizer.load(folder)
    first.save(folder.parent / "again")
    again = ImageTokenizer.load(folder.parent / "again")
    assert re.fullmatch("[0-9a-f]{64}", first.hash)
    assert again.hash == first.hash
    again.net.decoder.conv_out.bias += 1e-3
    again.save(folder.parent / "weights")
    made(replace(SMALL, l2_norm=False)).save(folder.parent / "config")
    others = {ImageTokenizer.load(folder.parent / name).hash for name in ("weights", "config")}
    assert len(others | {first.hash}) == 3


def test_the_default_saved_again_is_the_default(tmp_path: Path) -> None:
    shipped = ImageTokenizer.load(find("default") / "image_tokenizer")
    shipped.save(tmp_path / "again", half=True)
    assert ImageTokenizer.load(tmp_path / "again").hash == shipped.hash


def test_half_precision_is_half_the_file_and_computes_in_full(folder: Path) -> None:
    made().save(folder.parent / "half", half=True)
    name = "model.safetensors"
    whole, half = ((folder.parent / kind / name).stat().st_size for kind in ("saved", "half"))
    assert half < 0.55 * whole
    tokenizer = ImageTokenizer.load(folder.parent / "half")
    assert {weight.dtype for weight in tokenizer.net.parameters()} == {torch.float32}
    same = tokenizer.encode(pixels(3)) == made().encode(pixels(3))
    assert same.float().mean() > 0.95
    codes_BL = torch.arange(64).remainder(16)[None]
    painted = tokenizer.decode(codes_BL)
    torch.testing.assert_close(painted, made().decode(codes_BL), atol=1e-2, rtol=0)


@pytest.mark.parametrize("part", ["config.json", "model.safetensors"])
def test_a_missing_part_is_named(folder: Path, part: str) -> None:
    (folder / part).unlink()
    assert complaint(folder) == f"{folder}: not an image tokenizer, {part} is missing"


def test_no_folder_at_all_is_a_missing_part(tmp_path: Path) -> None:
    assert "config.json is missing" in complaint(tmp_path / "nowhere")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_weights_cut_short_are_refused(folder: Path, share: float) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: math.floor(len(data) * share)])
    assert complaint(folder).startswith(f"{path}: not a whole safetensors file (")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[]", "not a table of settings"),
        ("3", "not a table of settings"),
        ('{"chanels": 32}', "unknown setting 'chanels'"),
        ('{"ch": "many"}', "setting 'ch' is 'many'; it must be a whole number"),
        ('{"size": 17}', "size 17 is not a multiple of 8"),
    ],
)
def test_a_config_that_is_none_is_refused(folder: Path, text: str, wanted: str) -> None:
    (folder / "config.json").write_text(text)
    assert complaint(folder).startswith(f"{folder / 'config.json'}: {wanted}")


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"codes": 32}, "weight 'quantize.embedding.weight' has shape (16, 8), config.json asks"),
        ({"ch_mult": (1, 1, 1)}, "is missing; config.json is of another model"),
        ({"attn_resolutions": ()}, "does not belong to this model; config.json is of another"),
    ],
)
def test_the_config_of_another_model_is_refused(
    folder: Path, change: dict[str, object], wanted: str
) -> None:
    table = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(table | change))
    assert wanted in complaint(folder)


def test_one_weight_of_another_name_is_refused_by_name(folder: Path) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    state["extra"] = torch.zeros(1)
    save_file(state, path)
    assert complaint(folder).startswith(f"{path}: weight 'extra' does not belong to this model")


@pytest.mark.parametrize("shape", [(1, 3, 16, 15), (3, 16, 16), (1, 1, 16, 16), (2, 3, 32, 32)])
def test_pixels_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"shape \(.*wants \[B, 3, 16, 16\]"):
        made().encode(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 63), (64,), (1, 8, 8)])
def test_codes_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"shape \(.*wants \[B, 64\]"):
        made().decode(torch.zeros(shape, dtype=torch.long))


def test_a_taken_folder_is_never_written_over(folder: Path) -> None:
    with pytest.raises(UserError, match="already exists"):
        made().save(folder)
