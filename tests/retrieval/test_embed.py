"""Vectors of documents by hand, and CLIP through transformers with small random weights."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from retrieval.embed import ClipEmbedder, document_vectors, unit
from retrieval.index import Vectors
from retrieval.memory import Memory
from tokenizer.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute")


class Toy:
    """Text vectors by their length, picture vectors by their colour."""

    id, dimension = "toy", 3

    def texts(self, texts: Sequence[str]) -> Vectors:
        return unit(np.array([[len(text), 1, 0] for text in texts], np.float32))

    def pictures(self, pictures: Sequence[Image.Image]) -> Vectors:
        return unit(np.array([p.getpixel((0, 0)) for p in pictures], np.float32))


def test_a_document_is_the_mean_of_its_parts() -> None:
    red, blue = Image.new("RGB", (2, 2), "red"), Image.new("RGB", (2, 2), "blue")
    found = document_vectors(Toy(), ["abc", None, "abc"], [red, blue, None])
    text = np.array([3, 1, 0]) / 10**0.5
    mean = text + np.array([1, 0, 0])
    wanted = [mean / np.linalg.norm(mean), [0, 0, 1], text]
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert found.dtype == np.float32
    with pytest.raises(UserError, match="document 1 has neither a text nor an image"):
        document_vectors(Toy(), ["abc", None], [red, None])


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of random weights, as small as one can be, in the hub's layout."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = [*letters, *(letter + "</w>" for letter in letters), "fo", "fox</w>"]
    words = {piece: number for number, piece in enumerate([*pieces, "<|startoftext|>"])}
    words["<|endoftext|>"] = len(words)
    (folder / "vocab.json").write_text(json.dumps(words))
    (folder / "merges.txt").write_text("#version: 0.2\nf o\nfo x</w>\n")
    last = len(words) - 1
    text = {
        "vocab_size": len(words), "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 12,
        "bos_token_id": last - 1, "eos_token_id": last, "pad_token_id": last,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 16, "patch_size": 8,
    }  # fmt: skip
    torch.manual_seed(0)
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    transformers.CLIPModel(config).save_pretrained(folder)
    transformers.CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)
    side = {"height": 16, "width": 16}
    transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=side).save_pretrained(
        folder
    )
    return folder


def test_clip_embeds_from_a_folder_alike_in_any_batch(clip_folder: Path) -> None:
    clip = ClipEmbedder.load(str(clip_folder))
    texts = ["fox", "a red fox", "x" * 200, "bat"]
    pictures = [Image.new("RGB", (20 + k, 30), (90 * k, 10, 200)) for k in range(3)]
    for things, embed in ((texts, clip.texts), (pictures, clip.pictures)):
        together = embed(things)  # type: ignore[arg-type]
        assert together.shape == (len(things), clip.dimension) == (len(things), 8)
        np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
        alone = np.concatenate([embed([thing]) for thing in things])  # type: ignore[list-item]
        np.testing.assert_allclose(together, alone, atol=1e-5)
        assert np.abs(together[0] - together[1]).max() > 1e-3
    assert clip.texts([]).shape == (0, 8)
    assert clip.id == ClipEmbedder.load(str(clip_folder)).id
    assert clip.id.startswith("clip-")


def test_what_is_no_clip_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"it has no config\.json"):
        ClipEmbedder.load(str(tmp_path))
    (tmp_path / "config.json").write_text((clip_folder / "config.json").read_text())
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be read as a CLIP model") as error:
        ClipEmbedder.load(str(tmp_path))
    assert "\n" not in str(error.value)


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def without_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def cut_short(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-9])


def without_words(folder: Path) -> None:
    for name in ("tokenizer.json", "vocab.json"):
        (folder / name).unlink()


def with_odd_heads(folder: Path) -> None:
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('heads": 2', 'heads": 3'))


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (pickled, "no file named model.safetensors"),
        (without_a_weight, "its weights lack 'visual_projection.weight' and 0 more"),
        (cut_short, "cannot be read as a CLIP model .* not fully covered"),
        (without_words, "has no tokenizer, neither of tokenizer.json, vocab.json"),
        (with_odd_heads, "cannot be read as a CLIP model .* not a multiple"),
    ],
)
def test_a_clip_that_is_not_whole_is_refused(
    clip_folder: Path, tmp_path: Path, harm: Callable[[Path], None], complaint: str
) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(clip_folder, folder)
    harm(folder)
    with pytest.raises(UserError, match=complaint) as error:
        ClipEmbedder.load(str(folder))
    assert "\n" not in str(error.value)


WITHOUT_TORCHVISION = """
import json, sys
sys.modules["torchvision"] = None  # as if it were not installed
from pathlib import Path
import numpy as np
from PIL import Image
from cm3leon.cli import main
from retrieval.embed import ClipEmbedder, document_vectors
clip, model, tars, out = sys.argv[1:]
embedder = ClipEmbedder.load(clip)
vectors_DE = document_vectors(embedder, ["fox", None], [None, Image.new("RGB", (9, 7), "red")])
assert vectors_DE.shape == (2, 8) and np.isfinite(vectors_DE).all()
about = ["--encoder", clip, "--model", model]
assert main(["index", "build", tars, "--out", out, *about]) == 0
assert main(["index", "search", out, "a red fox", "-n", "3", *about, "--json"]) == 0
assert sys.modules["torchvision"] is None
"""


def test_clip_builds_and_searches_a_memory_without_torchvision(
    clip_folder: Path, tiny_folder: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    tars = str(corpus_folder / "test-*.tar")
    argv = [clip_folder, tiny_folder, tars, tmp_path / "memory"]
    command = [sys.executable, "-c", WITHOUT_TORCHVISION, *map(str, argv)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    counted, *table = done.stdout.splitlines()
    assert counted == "6 documents"
    found = json.loads("".join(table))["found"]
    assert len(found) == 3
    clip = ClipEmbedder.load(str(clip_folder))  # with torchvision, where it is installed
    bank = Memory.open(tmp_path / "memory", clip.id)
    (here,) = bank.search(clip.texts(["a red fox"]), 3)
    assert [row["id"] for row in found] == [one.id for one in here]
