"""A folder of pictures as a set to be compared: its files in the order of their names -> features.

On the path: a folder -> `list_folder` -> `read_folder` with a network -> [N, F] -> `distances`.
Started by `torch.distributed.run`, each process takes every so-manyth picture, and all get the same
features of all pictures; a mistake that one finds is everybody's.
"""

# Shapes: N = pictures of the folder, B = of a batch, F = features of one, P = of one process,
# 3 = red, green, blue; H, W = pixels; T = bytes of a text

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, distributed

from tokenizer.errors import UserError
from tokenizer.pixels import FORMATS, fit, open_image, to_pixels

BATCH = 50  # pytorch-fid's
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
TOLD = 2000  # bytes of a mistake that the other processes are told

Features = Callable[[Tensor], Tensor]
"""Pixels [B, 3, H, W] in [-1, 1] -> features [B, F]."""
Progress = Callable[[int, int], None]
"""Hears how many pictures are done, and of how many."""


def list_folder(folder: Path) -> list[Path]:
    """The picture files of a folder, not of folders inside it, in the order of their names.

    Other files are passed over, as are names that begin with a dot.

    Raises:
        UserError: not a folder, or fewer than two pictures.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "no such folder"
        raise UserError(f"{folder}: {what}; give a folder of pictures")
    try:
        paths = [
            path
            for path in folder.iterdir()
            if path.suffix.lower() in ENDINGS and not path.name.startswith(".") and path.is_file()
        ]
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror or error})") from error
    if len(paths) < 2:
        found = "a single picture" if paths else f"no picture ({', '.join(FORMATS)})"
        raise UserError(f"{folder}: holds {found}; a set to compare takes at least two")
    return sorted(paths, key=lambda path: path.name)


@torch.inference_mode()
def read_folder(
    folder: Path,
    features: Features,
    *,
    size: int | None = None,
    batch: int = BATCH,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Tensor:
    """The features [N, F] of a folder's pictures on the CPU, one row a picture in `list_folder`'s
    order; `size` crops and resizes every picture to a square, without it all have one size.

    In several processes that have joined a group, `features` may differ in nothing but the device;
    `progress` hears of this process's own pictures.

    Raises:
        UserError: as `list_folder`; a damaged picture, or pictures of two sizes without `size`.
    """
    paths = list_folder(folder)
    rank, world = _place()
    mine = paths[rank::world]
    rows, told = list[Tensor](), ""
    try:
        wanted = open_image(paths[0]).size if size is None else None
        for start in range(0, len(mine), batch):
            images = [_read_image(path, paths[0], wanted) for path in mine[start : start + batch]]
            if size is not None:
                images = [fit(image, size) for image in images]
            pixels_B3HW = torch.stack([to_pixels(image) for image in images])
            rows.append(features(pixels_B3HW.to(device)).float().cpu())
            if progress is not None:
                progress(start + len(images), len(mine))
    except UserError as error:
        if world == 1:
            raise
        told = str(error)
    mine_PF = torch.cat(rows) if rows else torch.empty(0, 0)
    return mine_PF if world == 1 else _joined(mine_PF, told, len(paths), world)


def _read_image(path: Path, first: Path, wanted: tuple[int, int] | None) -> Image.Image:
    """A picture, of the size of the folder's first where one is wanted."""
    image = open_image(path)
    if wanted is not None and image.size != wanted:
        one, other = ("{} x {}".format(*sides) for sides in (wanted, image.size))
        raise UserError(
            f"{first.parent}: pictures of two sizes: {first.name} is {one}, {path.name} {other}; "
            "a set to compare has one size. Resize them"
        )
    return image


def _place() -> tuple[int, int]:
    """This process's number, and how many there are."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def _joined(mine_PF: Tensor, told: str, count: int, world: int) -> Tensor:
    """All processes' rows in the folder's order, or the first process's mistake raised in all."""
    text_T = torch.zeros(TOLD, dtype=torch.uint8)
    data = told.encode()[:TOLD]
    text_T[: len(data)] = torch.tensor(list(data), dtype=torch.uint8)
    for heard_T in _gathered(text_T, world):
        line = bytes(heard_T.tolist()).rstrip(b"\0").decode(errors="ignore")
        if line:
            raise UserError(line)
    each = -(-count // world)  # some have one picture less; their last row is filled up
    width = max(int(one) for one in _gathered(torch.tensor(mine_PF.shape[1]), world))
    rows_PF = torch.zeros(each, width)
    rows_PF[: len(mine_PF), : mine_PF.shape[1]] = mine_PF
    return torch.stack(_gathered(rows_PF, world), 1).flatten(0, 1)[:count]


def _gathered(mine: Tensor, world: int) -> list[Tensor]:
    parts = [torch.empty_like(mine) for _ in range(world)]
    distributed.all_gather(parts, mine)
    return parts
