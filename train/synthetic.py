"""Synthetic images, token shards and rows for benchmarks (`train/speed.py`)."""

# Shapes: P = images, N = codes per image

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cm3leon import checkpoint
from tokenizer.codec import Codec
from tokenizer.data.shard_writer import write_shards
from tokenizer.data.shards import Shards
from tokenizer.data.tars import Sample
from tokenizer.text import TextTokenizer
from tokenizer.vocabulary import Vocabulary
from train.config import RowsConfig
from train.data.rows import Rows
from train.objective import MaskConfig

PICTURES, CODES, GRID, SIZE = 2000, 9600, 8, 64  # many codes: a realistic cost of the head


def pictures(count: int, side: int) -> Iterator[Sample]:
    """Yield PNG files of smooth random colours, `side` x `side` pixels, with captions."""
    draw = np.random.default_rng(0)
    for number in range(count):
        small_883 = Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        file = io.BytesIO()
        small_883.resize((side, side), Image.Resampling.BICUBIC).save(file, "PNG")
        metadata = {"id": str(number), "captions": [f"image {number}"]}
        yield Sample(f"synthetic/{number}", metadata, file.getvalue())


def write_synthetic(
    folder: Path,
    captions: Sequence[str] | None = None,
    *,
    image_tokenizer_hash: str = "synthetic",
    size: int = SIZE,
    grid: int = GRID,
    codes: int = CODES,
) -> None:
    """Write token shards of random codes, an image for each caption; by default PICTURES captions
    of realistic form."""
    if captions is None:
        captions = [f"an image of thing {n}, in style {n % 8}" for n in range(PICTURES)]
    draw = np.random.default_rng(0)
    codes_PN = draw.integers(0, codes, (len(captions), grid * grid)).tolist()
    metadata = ({"id": str(n), "captions": [line]} for n, line in enumerate(captions))
    write_shards(
        folder,
        zip(metadata, codes_PN, strict=True),
        ({"task": "pair", "picture": str(number)} for number in range(len(captions))),
        image_tokenizer_hash=image_tokenizer_hash,
        size=size,
        grid=grid,
        codes=codes,
    )


def rows_of(shards: Shards, context: int, packed: float) -> Rows:
    """Return rows of pairs, with a share `packed` of packed blocks of the context, encoded with the
    text tokenizer of the embedded default checkpoint."""
    text = TextTokenizer.load(checkpoint.find("default") / checkpoint.TEXT)
    vocabulary = Vocabulary(image_codes=shards.codes, text_pieces=text.pieces)
    codec = Codec(vocabulary, text, shards.grid**2, context)
    return Rows(shards, codec, RowsConfig(packed=packed), MaskConfig(), seed=0)
