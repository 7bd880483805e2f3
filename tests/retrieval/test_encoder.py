"""The dual encoder: vectors that do not depend on company, and a folder that is read strictly."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from retrieval.encoder import DualEncoder, EncoderConfig, SmallEmbedder
from tokenizer.errors import UserError
from tokenizer.text import TextTokenizer

TEXTS = ["a red fox", "", "an owl " * 30, "a fox red"]


@pytest.fixture(scope="module")
def embedder() -> SmallEmbedder:
    text = TextTokenizer.train(["a red fox", "an owl, a fox and a bat"], 270)
    torch.manual_seed(0)
    config = EncoderConfig(
        pieces=270, dimension=8, size=32, longest=12, width=16, layers=2, heads=2
    )
    return SmallEmbedder(DualEncoder(config), text)


def test_texts_get_the_same_vectors_alone_and_together(embedder: SmallEmbedder) -> None:
    together = embedder.texts(TEXTS)
    assert together.shape == (4, 8)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    alone = np.concatenate([embedder.texts([text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert np.abs(together[0] - together[3]).max() > 1e-4  # order counts
    assert np.array_equal(together, embedder.texts(TEXTS))
    assert embedder.texts([]).shape == (0, 8)


def test_pictures_get_the_same_vectors_alone_and_together(embedder: SmallEmbedder) -> None:
    pictures = [Image.new("RGB", (40 + k, 30), (80 * k, 20, 200)) for k in range(3)]
    together = embedder.pictures(pictures)
    assert (together.shape, together.dtype) == ((3, 8), np.float32)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    alone = np.concatenate([embedder.pictures([picture]) for picture in pictures])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_a_folder_gives_the_encoder_back(embedder: SmallEmbedder, tmp_path: Path) -> None:
    embedder.save(tmp_path / "encoder")
    again = SmallEmbedder.load(tmp_path / "encoder")
    assert again.id.startswith("small-")
    assert again.id == SmallEmbedder.load(tmp_path / "encoder").id
    np.testing.assert_allclose(again.texts(TEXTS), embedder.texts(TEXTS), atol=0.02)  # fp16
    (tmp_path / "encoder" / "tokenizer.model").write_bytes(b"")
    with pytest.raises(UserError, match=r"tokenizer\.model"):
        SmallEmbedder.load(tmp_path / "encoder")
    with pytest.raises(UserError, match="there is no folder"):
        SmallEmbedder.load(tmp_path / "nowhere")


def test_what_does_not_fit_together_is_refused(embedder: SmallEmbedder) -> None:
    other = TextTokenizer.train(["a red fox and an owl"], 268)
    with pytest.raises(UserError, match="knows 270 text pieces, its tokenizer has 268"):
        SmallEmbedder(embedder.net, other)
    with pytest.raises(UserError, match="width 16 is not a multiple of heads 3"):
        EncoderConfig(pieces=270, width=16, heads=3)
    with pytest.raises(UserError, match="size is 0"):
        EncoderConfig(pieces=270, size=0)
