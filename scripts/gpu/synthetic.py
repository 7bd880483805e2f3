"""Token shards of noise, with tokenizers of the paper's sizes that know nothing: to time training.

    python3 scripts/gpu/synthetic.py FOLDER [--tiny]

Writes FOLDER/shards, FOLDER/image_tokenizer and FOLDER/tokenizer.model.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from tokenizer.image import ImageTokenizer
from tokenizer.text import TextTokenizer
from tokenizer.vqgan.network import VQGAN, VQGANConfig
from train.synthetic import write_synthetic


def main(folder: Path, tiny: bool) -> None:
    draw = np.random.default_rng(0)
    torch.manual_seed(0)
    config = VQGANConfig()
    pieces, words, pictures = 56320, 60000, 2000
    if tiny:
        config = VQGANConfig(size=32, codes=32, embed_dim=4, z_channels=32, ch=32, ch_mult=(1, 1),
                             num_res_blocks=1, attn_resolutions=(), patch=2)  # fmt: skip
        pieces, words, pictures = 300, 50, 16
    folder.mkdir(parents=True, exist_ok=True)
    letters = list("etaoinshrdlucmfwypvbgk")
    known = ["".join(draw.choice(letters, draw.integers(3, 12))) for _ in range(words)]
    text = TextTokenizer.train([" ".join(known[k : k + 8]) for k in range(words)], pieces)
    (folder / "tokenizer.model").write_bytes(text.model)
    ImageTokenizer(VQGAN(config)).save(folder / "image_tokenizer")
    image = ImageTokenizer.load(folder / "image_tokenizer")
    captions = [" ".join(draw.choice(known, draw.integers(5, 20))) for _ in range(pictures)]
    about = {"size": image.size, "grid": image.grid, "codes": image.codes}
    write_synthetic(folder / "shards", captions, image_tokenizer_hash=image.hash, **about)


main(Path(sys.argv[1]), "--tiny" in sys.argv[2:])
