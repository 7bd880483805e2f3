"""eval/networks/folders.py: folders of tiny pictures, in one process and in two."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from eval.networks.distances import frechet, kid
from eval.networks.folders import list_folder, read_folder
from tokenizer.errors import UserError

ROOT = Path(__file__).parents[3]
SIDES = (6, 4)
WORKER = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from torch import distributed
from eval.networks.folders import read_folder
from tokenizer.errors import UserError

def features(pixels_B3HW):
    flat_BD = pixels_B3HW.flatten(1)
    return torch.cat([flat_BD[:, ::9].sin(), flat_BD.square().mean(1, keepdim=True)], 1)

distributed.init_process_group("gloo")
rank, heard = distributed.get_rank(), []
folders = dict(zip(("many", "two", "mixed", "damaged"), map(Path, sys.argv[2:]), strict=True))
for name, folder in folders.items():
    try:
        found_NF = read_folder(folder, features, batch=3, progress=lambda *said: heard.append(said))
    except UserError as error:
        found_NF = torch.tensor(list(str(error).encode()), dtype=torch.uint8)
    save_file({"found": found_NF.contiguous()}, f"{sys.argv[1]}/{name}-{rank}.safetensors")
save_file({"found": torch.tensor(heard[:2])}, f"{sys.argv[1]}/heard-{rank}.safetensors")
distributed.destroy_process_group()
"""


def features(pixels_B3HW: Tensor) -> Tensor:
    """The same as the worker's."""
    flat_BD = pixels_B3HW.flatten(1)
    return torch.cat([flat_BD[:, ::9].sin(), flat_BD.square().mean(1, keepdim=True)], 1)


def write(path: Path, seed: int, sides: tuple[int, int] = SIDES) -> None:
    draw = torch.Generator().manual_seed(seed)
    noise_HW3 = torch.randint(0, 256, (sides[1], sides[0], 3), generator=draw, dtype=torch.uint8)
    Image.fromarray(noise_HW3.numpy()).save(path)


def filled(folder: Path, count: int = 11, first: int = 0) -> Path:
    """A folder of small pictures, written in no order; and what is not a picture."""
    folder.mkdir()
    for number in sorted(range(count), key=lambda number: number * 7 % 11):
        write(folder / f"picture-{number:02}.png", first + number)
    (folder / "picture-01.json").write_text("{}")
    (folder / "._picture-02.png").write_bytes(b"left by another system")
    (folder / "inner.png").mkdir()
    return folder


def test_pictures_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    folder = filled(tmp_path / "set")
    paths = list_folder(folder)
    assert [path.name for path in paths] == [f"picture-{number:02}.png" for number in range(11)]
    seen: list[Tensor] = []
    heard: list[tuple[int, int]] = []

    def means(pixels_B3HW: Tensor) -> Tensor:
        seen.append(pixels_B3HW)
        return pixels_B3HW.mean((2, 3))

    found_NF = read_folder(folder, means, batch=4, progress=lambda *said: heard.append(said))
    assert [tuple(batch.shape) for batch in seen] == [(4, 3, 4, 6), (4, 3, 4, 6), (3, 3, 4, 6)]
    assert heard == [(4, 11), (8, 11), (11, 11)]
    assert (found_NF.shape, found_NF.dtype) == ((11, 3), torch.float32)
    for path, row_F in zip(paths, found_NF, strict=True):
        mean = Image.open(path).resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
        torch.testing.assert_close(
            row_F * 127.5 + 127.5, torch.tensor(mean).float(), atol=1, rtol=0
        )


def test_a_folder_is_not_far_from_itself_and_its_order_is_nothing(tmp_path: Path) -> None:
    one_NF = read_folder(filled(tmp_path / "one"), features)
    other_MF = read_folder(filled(tmp_path / "other", first=100), features)
    assert abs(frechet(one_NF, one_NF).value) < 1e-9
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for number, path in enumerate(list_folder(tmp_path / "one")):
        path.rename(mixed / f"{number * 7 % 11}{path.suffix.upper()}")
    mixed_NF = read_folder(mixed, features)
    assert not torch.equal(mixed_NF, one_NF)
    for measure in (frechet, kid):
        wanted = measure(one_NF, other_MF).value
        assert measure(mixed_NF, other_MF).value == pytest.approx(wanted, rel=1e-6)


def test_two_processes_see_what_one_sees_and_say_what_one_says(tmp_path: Path) -> None:
    many, two = filled(tmp_path / "many"), filled(tmp_path / "two", count=2, first=50)
    mixed, damaged = filled(tmp_path / "mixed"), filled(tmp_path / "damaged")
    write(mixed / "picture-05.png", 5, (4, 6))
    whole = (damaged / "picture-03.png").read_bytes()
    (damaged / "picture-03.png").write_bytes(whole[:-30])
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "--no-python", sys.executable, "-c", WORKER, str(tmp_path), many, two, mixed, damaged],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

    def found(name: str, rank: int) -> Tensor:
        return load_file(tmp_path / f"{name}-{rank}.safetensors")["found"]

    assert found("heard", 0).tolist() == [[3, 6], [6, 6]]
    assert found("heard", 1).tolist() == [[3, 5], [5, 5]]
    alone = {name: read_folder(tmp_path / name, features) for name in ("many", "two")}
    for name, wanted_NF in alone.items():
        for rank in range(2):
            torch.testing.assert_close(found(name, rank), wanted_NF, rtol=1e-6, atol=1e-6)
    apart = frechet(found("many", 1), found("two", 0)).value
    assert apart == pytest.approx(frechet(alone["many"], alone["two"]).value, abs=1e-6)
    for name in ("mixed", "damaged"):
        with pytest.raises(UserError) as caught:
            read_folder(tmp_path / name, features)
        for rank in range(2):
            assert bytes(found(name, rank).tolist()).decode() == str(caught.value), name


def test_pictures_of_two_sizes(tmp_path: Path) -> None:
    folder = filled(tmp_path / "set")
    write(folder / "picture-04.png", 4, (4, 6))
    line = "images of two sizes: picture-00.png is 6 x 4, picture-04.png 4 x 6"
    with pytest.raises(UserError, match=line):
        read_folder(folder, features)
    assert len(read_folder(folder, features, size=8)) == 11


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder; give a folder of images"):
        list_folder(tmp_path / "nowhere")
    (tmp_path / "file.png").write_bytes(b"")
    with pytest.raises(UserError, match="is a file; give a folder"):
        list_folder(tmp_path / "file.png")
    folder = filled(tmp_path / "empty", count=0)
    with pytest.raises(UserError, match=r"empty: holds no image \(PNG, .*takes at least two"):
        list_folder(folder)
    write(folder / "one.png", 1)
    with pytest.raises(UserError, match="empty: holds a single image; a set"):
        list_folder(folder)


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    folder = filled(tmp_path / "set")
    whole = (folder / "picture-07.png").read_bytes()
    (folder / "picture-07.png").write_bytes(whole[:-30])
    with pytest.raises(UserError, match=r"picture-07\.png: is damaged or cut short"):
        read_folder(folder, features)
