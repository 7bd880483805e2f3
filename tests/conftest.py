"""What all tests share: random examples are the same on every machine and never timed, and a tiny
model that can do everything, badly."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from cm3leon.pipeline import CM3Leon

# A deadline would fail on a busy machine; fresh examples on each run would fail by luck.
settings.register_profile("house", deadline=None, derandomize=True, database=None)
settings.load_profile("house")


def make_tiny(seed: int) -> "CM3Leon":
    """A random model: pictures of 16 x 16 pixels are 4 x 4 codes of 32."""
    import torch

    from cm3leon.model import Decoder, ModelConfig
    from cm3leon.pipeline import CM3Leon
    from tokenizer.codec import Codec
    from tokenizer.image import ImageTokenizer
    from tokenizer.text import TextTokenizer
    from tokenizer.vocabulary import Vocabulary
    from tokenizer.vqgan import VQGAN, VQGANConfig

    text = TextTokenizer.train([f"a red fox, a blue heart, a cat's head {seed}"], 280)
    vocabulary = Vocabulary(image_codes=32, text_pieces=text.pieces, sentinels=8)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = VQGANConfig(
            size=16,
            patch=2,
            ch=32,
            ch_mult=(1, 1),
            num_res_blocks=1,
            attn_resolutions=(),
            z_channels=32,
            embed_dim=4,
            codes=32,
        )
        image_tokenizer = ImageTokenizer(VQGAN(config))
        size = ModelConfig(vocabulary=vocabulary.size, context=160, layers=2, width=32, heads=2)
        model = Decoder(size)
        for weight in model.parameters():  # the paper's start would say the same to every prompt
            torch.nn.init.normal_(weight, std=0.3)
    codec = Codec(vocabulary, text, image_tokenizer.picture_codes, size.context)
    return CM3Leon(model.eval().requires_grad_(False), codec, image_tokenizer)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's checkpoint folder. Look, but do not change it."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_tiny(0).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another tiny model, of the same sizes."""
    folder = tmp_path_factory.mktemp("models") / "other"
    make_tiny(1).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> "CM3Leon":
    """The tiny model, read from its folder."""
    from cm3leon.pipeline import CM3Leon

    return CM3Leon.from_pretrained(tiny_folder)
