"""Token shards of a pack, and its pictures a little moved, in one pass over the pixels that the
image tokenizer was trained on: minutes of a GPU are dear, and nothing is decoded twice.

    python3 scripts/gpu/shards.py PACK.tar RUN FOLDER [--val VAL.tar] [--views 16]

RUN is the run of the image tokenizer, with the pixels it read; where it was stopped early, its
newest state is made an image tokenizer first. Writes shards, views and shards-val into FOLDER.
"""

# Shapes: V = views, P = pictures, N = codes of one, B = batch, 3 = red, green, blue, H, W = pixels

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cm3leon.pipeline import pick_device
from tokenizer import config as settings
from tokenizer.data.shard_writer import write_shards
from tokenizer.data.shards import Shards
from tokenizer.data.tables import write_about
from tokenizer.data.tars import Tally
from tokenizer.image import ImageTokenizer
from tokenizer.manifest import new_folder
from tokenizer.vqgan.network import VQGAN
from train import state
from train.data.corpus import load_pixels, read_edits, read_questions
from train.data.views import TABLE, View
from train.tokenizers.recipe import ImageTokenizerRecipe

BATCH = 256
FAR = 8  # pixels that a thing moves at most, of 128
ZOOM = 0.1  # and how much smaller or larger it comes, in every second view


def tokenizer_of(run: Path) -> ImageTokenizer:
    """The image tokenizer of a run; of its newest state where the run has not come to its end."""
    folder = run / "image_tokenizer"
    if not folder.is_dir():
        recipe = settings.build(ImageTokenizerRecipe, settings.read(run / state.RECIPE))
        found = state.find(run, "latest", print)
        assert found is not None, f"{run} has no state"
        print(f"the image tokenizer is that of step {found.step} of {recipe.steps}")
        net, start = VQGAN(recipe.model), "weights."
        net.load_state_dict({k.removeprefix(start): found[k] for k in found if k.startswith(start)})
        ImageTokenizer(net).save(folder, half=True)
    return ImageTokenizer.load(folder)


def draw_moves(count: int, side: int) -> list[View]:
    """Views that leave every caption true: moved by whole pixels, which blurs nothing, and every
    second one a little smaller or larger."""
    draw = np.random.default_rng(0)
    far = FAR * side // 128
    moves = draw.integers(-far, far + 1, (count, 2)) / side
    zooms = draw.uniform(1 - ZOOM, 1 + ZOOM, count)
    zooms[::2] = 1
    return [
        View(channels=(0, 1, 2), mirrored=False, zoom=float(zoom), right=right, down=down)
        for zoom, (right, down) in zip(zooms, moves.tolist(), strict=True)
    ]


def codes_of(
    pixels: np.ndarray, tokenizer: ImageTokenizer, views: list[View], device: torch.device
) -> np.ndarray:
    """uint16 [1 + V, P, N]: the codes of each picture as it is, and through each view."""
    found = np.empty((1 + len(views), len(pixels), tokenizer.picture_codes), np.uint16)
    for start in range(0, len(pixels), BATCH):
        part = slice(start, start + BATCH)
        x_B3HW = torch.from_numpy(np.array(pixels[part])).to(device).float() / 127.5 - 1
        seen = [x_B3HW, *(view(x_B3HW) for view in views)]
        codes = torch.stack([tokenizer.encode(one) for one in seen])
        found[:, part] = codes.cpu().numpy().astype(np.uint16)
    return found


def write(
    pack: Path, cache: Path, out: Path, tokenizer: ImageTokenizer, views: int, device: torch.device
) -> None:
    """Shards of a pack, with the edits and questions beside it; with `views`, their table too."""
    about, pixels = load_pixels([pack], tokenizer.size, frozenset(), cache, say=print)
    moves = draw_moves(views, tokenizer.size)
    codes_VPN = codes_of(pixels, tokenizer, moves, device)
    ids, tally = {one["id"] for one in about}, Tally()
    name = pack.name.partition(".tar")[0]
    beside = (pack.with_name(f"{name}.{what}.jsonl.gz") for what in ("edits", "questions"))
    edits, questions = (path if path.is_file() else None for path in beside)

    def documents() -> Iterator[dict[str, Any]]:
        for one in about:
            if one.get("captions"):
                yield {"task": "pair", "picture": one["id"]}
        yield from read_edits(edits, ids, tally)
        yield from read_questions(questions, ids, tally)

    counts = write_shards(
        out,
        zip(about, codes_VPN[0].tolist(), strict=True),
        documents(),
        image_tokenizer_hash=tokenizer.hash,
        size=tokenizer.size,
        grid=tokenizer.grid,
        codes=tokenizer.codes,
    )
    print(f"{out}: {counts}")
    if views:
        shards = Shards.open(out, tokenizer.hash)
        with new_folder(out.with_name("views")) as aside:
            np.save(aside / TABLE, codes_VPN[1:])
            write_about(aside, shards, {"views": [vars(one) for one in moves]})
    used = len(np.unique(codes_VPN[0]))
    print(f"{used} of {tokenizer.codes} codes are in use")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("pack", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--val", type=Path)
    parser.add_argument("--views", type=int, default=16)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    device = pick_device(given.device)
    tokenizer = tokenizer_of(given.run).to(device)
    write(given.pack, given.run, given.folder / "shards", tokenizer, given.views, device)
    if given.val:
        write(given.val, given.folder, given.folder / "shards-val", tokenizer, 0, device)


main()
