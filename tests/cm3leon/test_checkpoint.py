"""checkpoint.py: what is saved is what is loaded, and what does not belong is named."""

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from cm3leon import checkpoint
from cm3leon.pipeline import CM3Leon
from cm3leon.sampling import Sampling
from tokenizer.errors import UserError
from tokenizer.manifest import MANIFEST, new_folder

PARTS = {
    "README.md",
    "config.json",
    "generation_config.json",
    "image_tokenizer",
    "manifest.json",
    "model.safetensors",
    "tokenizer.model",
}


def rewritten(folder: Path, target: Path, part: str, content: bytes | Path) -> Path:
    """A copy whose manifest is right, but with another part in it."""
    with new_folder(target) as aside:
        shutil.copytree(folder, aside, dirs_exist_ok=True)
        (aside / MANIFEST).unlink()
        if isinstance(content, Path):
            shutil.rmtree(aside / part)
            shutil.copytree(content, aside / part)
        else:
            (aside / part).write_bytes(content)
    return target


def same_weights(one: CM3Leon, other: CM3Leon, tolerance: float = 0.0) -> bool:
    mine, its = one.model.state_dict(), other.model.state_dict()
    pairs = [(mine[name], its[name]) for name in mine]
    return mine.keys() == its.keys() and all(
        torch.allclose(a, b, rtol=tolerance, atol=tolerance) for a, b in pairs
    )


def test_the_folder_has_what_users_expect(tiny_folder: Path) -> None:
    assert {path.name for path in tiny_folder.iterdir()} == PARTS
    card = (tiny_folder / "README.md").read_text()
    assert "16 x 16 pixels are 4 x 4 codes of 32" in card
    config = json.loads((tiny_folder / "config.json").read_text())
    assert config["picture"] == {"size": 16, "grid": 4}
    assert config["vocabulary"]["image_codes"] == 32


def test_saved_and_loaded_again_is_the_same(
    tiny: CM3Leon, tiny_folder: Path, tmp_path: Path
) -> None:
    tiny.save_pretrained(tmp_path / "again")
    again = CM3Leon.from_pretrained(tmp_path / "again")
    assert same_weights(tiny, again)
    assert again.hash == tiny.hash
    assert again.image_tokenizer.hash == tiny.image_tokenizer.hash
    assert again.codec.vocabulary == tiny.codec.vocabulary
    for part in ("model.safetensors", "config.json", "image_tokenizer/model.safetensors"):
        assert (tmp_path / "again" / part).read_bytes() == (tiny_folder / part).read_bytes()


def test_halves_take_half_the_space_and_load_as_fp32(
    tiny: CM3Leon, tiny_folder: Path, tmp_path: Path
) -> None:
    tiny.save_pretrained(tmp_path / "half", stored="fp16")
    half = CM3Leon.from_pretrained(tmp_path / "half")
    assert same_weights(tiny, half, 1e-3)
    assert {weight.dtype for weight in half.model.parameters()} == {torch.float32}
    sizes = [(f / "model.safetensors").stat().st_size for f in (tiny_folder, tmp_path / "half")]
    assert sizes[1] < 0.6 * sizes[0]
    assert half.image_tokenizer.hash == tiny.image_tokenizer.hash
    assert half.hash != tiny.hash


def test_int8_takes_a_quarter_of_the_space_and_is_rounded_once(
    tiny: CM3Leon, tiny_folder: Path, tmp_path: Path
) -> None:
    tiny.save_pretrained(tmp_path / "int8", stored="int8")
    rounded = CM3Leon.from_pretrained(tmp_path / "int8")
    for name, weight in rounded.model.state_dict().items():
        exact = tiny.model.state_dict()[name]
        room = exact.abs().amax(-1, keepdim=True) / 127 * 0.501 if exact.ndim == 2 else 0
        assert weight.dtype == torch.float32
        assert ((weight - exact).abs() <= room).all(), name
    sizes = [(f / "model.safetensors").stat().st_size for f in (tiny_folder, tmp_path / "int8")]
    assert sizes[1] < 0.45 * sizes[0]  # tiny's rows are short, so their scales weigh much
    rounded.save_pretrained(tmp_path / "again", stored="int8")
    assert same_weights(rounded, CM3Leon.from_pretrained(tmp_path / "again"), 1e-6)
    assert rounded.hash != tiny.hash


def test_an_image_tokenizer_of_halves_keeps_its_hash(tiny: CM3Leon, tmp_path: Path) -> None:
    """Token shards are bound to it, so saving it once more must not change it."""
    tiny.image_tokenizer.save(tmp_path / "halves", half=True)
    halves = tiny.image_tokenizer.load(tmp_path / "halves")
    checkpoint.save(tmp_path / "model", tiny.model, tiny.codec, halves)
    assert checkpoint.load(tmp_path / "model").image_tokenizer.hash == halves.hash


def test_large_weights_are_sharded(
    tiny: CM3Leon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 50_000)
    tiny.save_pretrained(tmp_path / "shards")
    shards = sorted((tmp_path / "shards").glob("model-*.safetensors"))
    assert len(shards) > 2
    assert max(shard.stat().st_size for shard in shards) < 55_000
    assert not (tmp_path / "shards" / "model.safetensors").exists()
    assert same_weights(tiny, CM3Leon.from_pretrained(tmp_path / "shards"))
    index = tmp_path / "shards" / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    table["weight_map"]["ghost"] = shards[0].name
    bad = rewritten(tmp_path / "shards", tmp_path / "bad", index.name, json.dumps(table).encode())
    with pytest.raises(UserError, match=r"index\.json: weight 'ghost' does not belong"):
        checkpoint.load(bad)


def test_sampling_and_card_are_kept(tiny: CM3Leon, tmp_path: Path) -> None:
    told = checkpoint.TaskSampling(caption=Sampling(temperature=0.5, top_k=7))
    parts = (tiny.model, tiny.codec, tiny.image_tokenizer)
    made = checkpoint.save(tmp_path / "m", *parts, sampling=told, card="# Mine\n")
    assert made == tiny.hash
    assert checkpoint.read_sampling(tmp_path / "m") == told
    assert (tmp_path / "m" / "README.md").read_text() == "# Mine\n"


@pytest.mark.parametrize(
    "part",
    [
        "README.md",
        "config.json",
        "generation_config.json",
        "image_tokenizer/config.json",
        "image_tokenizer/model.safetensors",
        "manifest.json",
        "model.safetensors",
        "tokenizer.model",
    ],
)
def test_a_missing_or_damaged_part_is_named(tiny_folder: Path, tmp_path: Path, part: str) -> None:
    folder = tmp_path / "m"
    shutil.copytree(tiny_folder, folder)
    data = (folder / part).read_bytes()
    for broken in (data[: len(data) // 2], b"x" * len(data), None):
        if broken is None:
            (folder / part).unlink()
        else:
            (folder / part).write_bytes(broken)
        with pytest.raises(UserError) as told:
            checkpoint.load(folder)
        assert part in str(told.value)
        assert "\n" not in str(told.value)


@pytest.mark.parametrize("part", ["model.safetensors", "tokenizer.model"])
def test_a_part_of_another_model_is_named(
    tiny_folder: Path, other_folder: Path, tmp_path: Path, part: str
) -> None:
    folder = tmp_path / "m"
    shutil.copytree(tiny_folder, folder)
    shutil.copy(other_folder / part, folder / part)
    with pytest.raises(UserError, match=part):
        checkpoint.load(folder)


def test_tokenizers_of_another_model_are_named_even_with_a_right_manifest(
    tiny_folder: Path, other_folder: Path, tmp_path: Path
) -> None:
    other = (other_folder / "tokenizer.model").read_bytes()
    with pytest.raises(UserError, match=r"tokenizer\.model is of another model"):
        checkpoint.load(rewritten(tiny_folder, tmp_path / "t", "tokenizer.model", other))
    other = other_folder / "image_tokenizer"
    with pytest.raises(UserError, match="image_tokenizer is of another model"):
        checkpoint.load(rewritten(tiny_folder, tmp_path / "i", "image_tokenizer", other))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": 2}, "format is 2; this version reads 1"),
        ({"widht": 3}, "unknown setting 'widht'"),
        ({"vocabulary": {"image_codes": 9, "text_pieces": 280}}, "embedding rows"),
        ({"picture": {"size": 16, "grid": 8}}, "image_tokenizer is of another model"),
        ({"model": {"layers": 3}}, "weight 'blocks.2"),
        ({"model": {"width": 64}}, "has shape"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    tiny_folder: Path, tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    table = json.loads((tiny_folder / "config.json").read_text())
    for name, value in change.items():
        inner = name == "model"
        table[name] = {**table[name], **value} if inner and isinstance(value, dict) else value
    folder = rewritten(tiny_folder, tmp_path / "m", "config.json", json.dumps(table).encode())
    with pytest.raises(UserError) as told:
        checkpoint.load(folder)
    assert reason in str(told.value)


@pytest.mark.parametrize("content", [b"{", b"[]", b"7", b"\xff"])
def test_a_config_that_is_no_table_is_refused(
    tiny_folder: Path, tmp_path: Path, content: bytes
) -> None:
    with pytest.raises(UserError, match=r"config\.json"):
        checkpoint.load(rewritten(tiny_folder, tmp_path / "m", "config.json", content))


def test_an_existing_folder_is_replaced_only_when_told(tiny: CM3Leon, tmp_path: Path) -> None:
    parts = (tiny.model, tiny.codec, tiny.image_tokenizer)
    checkpoint.save(tmp_path / "m", *parts)
    with pytest.raises(UserError, match="already exists"):
        checkpoint.save(tmp_path / "m", *parts)
    checkpoint.save(tmp_path / "m", *parts, replace=True)


def test_models_are_found_by_folder_only_if_there(tmp_path: Path) -> None:
    assert checkpoint.find(tmp_path) == tmp_path
    with pytest.raises(UserError, match="there is no model folder 'nowhere'"):
        checkpoint.find("nowhere")


def test_the_hub_is_asked_for_hf_models_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = ModuleType("huggingface_hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    asked: list[str] = []

    def snapshot_download(name: str) -> str:
        asked.append(name)
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download, raising=False)
    said: list[str] = []
    assert checkpoint.find("hf:owner/name", said.append) == tmp_path
    assert asked == ["owner/name"]
    assert said == ["fetching owner/name from the Hugging Face hub"]

    def offline(name: str) -> str:
        raise FileNotFoundError("Name or service\nnot known")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(UserError) as told:
        checkpoint.find("hf:owner/name")
    assert str(told.value) == (
        "cannot fetch 'owner/name' from the Hugging Face hub (Name or service not known); "
        "check the name and the network, or give a local folder"
    )
