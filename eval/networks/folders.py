"""Features of a folder of images, whose files are read in the order of their names.

Data path: a folder -> `list_folder` -> `read_folder` with a network -> [N, F] -> `distances`. Under
`torch.distributed.run`, each process reads every n-th image of n processes, and all get the same
features of all images; an error in one is raised in all.
"""

# Shapes: N = images of the folder, B = per batch, P = per process, F = features per image,
# 3 = red, green, blue; H, W = pixels; T = bytes of a text

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, distributed

from tokenizer.errors import UserError
from tokenizer.pixels import FORMATS, fit, open_image, to_pixels

BATCH = 50  # as in pytorch-fid
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
TOLD = 2000  # bytes of an error message sent to the other processes

Features = Callable[[Tensor], Tensor]
"""Pixels [B, 3, H, W] in [-1, 1] -> features [B, F]."""
Progress = Callable[[int, int], None]
"""Callback with the number of images done, and of all images."""


def list_folder(folder: Path) -> list[Path]:
    """Return the image files of a folder, without subfolders, in the order of their names.

    Other files are ignored, as are names that begin with a dot.

    Raises:
        UserError: not a folder, or fewer than two images.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "no such folder"
        raise UserError(f"{folder}: {what}; give a folder of images")
    try:
        paths = [
            path
            for path in folder.iterdir()
            if path.suffix.lower() in ENDINGS and not path.name.startswith(".") and path.is_file()
        ]
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror or error})") from error
    if len(paths) < 2:
        found = "a single image" if paths else f"no image ({', '.join(FORMATS)})"
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
    """Compute the features [N, F] of a folder's images, in `list_folder`'s order, on the CPU.

    size: crop and resize every image to a square of this side; without it all must have one size.
    In several processes that have joined a group, `features` may differ in nothing but the device,
    and `progress` is called for this process's own images.

    Raises:
        UserError: as `list_folder`; a damaged image, or images of two sizes without `size`.
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
    """Read an image. Raises UserError if its size is not `wanted`, that of the first image."""
    image = open_image(path)
    if wanted is not None and image.size != wanted:
        one, other = ("{} x {}".format(*sides) for sides in (wanted, image.size))
        raise UserError(
            f"{first.parent}: images of two sizes: {first.name} is {one}, {path.name} {other}; "
            "a set to compare has one size. Resize them"
        )
    return image


def _place() -> tuple[int, int]:
    """Return this process's rank, and the number of processes."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def _joined(mine_PF: Tensor, told: str, count: int, world: int) -> Tensor:
    """Return all processes' rows in the folder's order, or raise the first error in all."""
    text_T = torch.zeros(TOLD, dtype=torch.uint8)
    data = told.encode()[:TOLD]
    text_T[: len(data)] = torch.tensor(list(data), dtype=torch.uint8)
    for heard_T in _gathered(text_T, world):
        line = bytes(heard_T.tolist()).rstrip(b"\0").decode(errors="ignore")
        if line:
            raise UserError(line)
    each = -(-count // world)  # some have one image less; their last row is padding
    width = max(int(one) for one in _gathered(torch.tensor(mine_PF.shape[1]), world))
    rows_PF = torch.zeros(each, width)
    rows_PF[: len(mine_PF), : mine_PF.shape[1]] = mine_PF
    return torch.stack(_gathered(rows_PF, world), 1).flatten(0, 1)[:count]


def _gathered(mine: Tensor, world: int) -> list[Tensor]:
    parts = [torch.empty_like(mine) for _ in range(world)]
    distributed.all_gather(parts, mine)
    return parts
