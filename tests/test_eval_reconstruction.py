"""PSNR through the codebook against a second computation, and the use of the codebook."""

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cm3leon.pipeline import CM3Leon
from eval.reconstruction import Reconstruction, measure, psnr
from eval.sets import find_images
from tokenizer.errors import UserError
from tokenizer.tars import Tally, find_tars


def grey(value: int) -> Image.Image:
    return Image.new("RGB", (4, 4), (value,) * 3)


def test_psnr_of_known_errors() -> None:
    assert psnr(grey(0), grey(255)) == 0
    assert psnr(grey(100), grey(110)) == pytest.approx(20 * math.log10(255 / 10))
    assert psnr(grey(7), grey(7)) == pytest.approx(10 * math.log10(255**2 * 48))


@pytest.fixture(scope="module")
def tars(corpus_folder: Path) -> list[Path]:
    return find_tars(corpus_folder, "test-")


@pytest.fixture(scope="module")
def found(tiny: CM3Leon, tars: list[Path]) -> Reconstruction:
    return measure(tiny.image_tokenizer, tars, tally=Tally())


def test_it_agrees_with_the_pipeline(
    found: Reconstruction, tiny: CM3Leon, tars: list[Path]
) -> None:
    images = find_images(tars, 16, frozenset({"p1", "p2", "p4"}))
    values = []
    for image in images.values():
        after = np.asarray(tiny.reconstruct(image), dtype=float)
        values.append(10 * np.log10(255**2 / ((np.asarray(image) - after) ** 2).mean()))
    row = found.rows["emoji"]
    assert row.psnr.value == pytest.approx(np.mean(values))
    assert row.psnr.count == 3
    codes = {code for image in images.values() for code in tiny.to_picture(image).codes}
    assert row.used == len(codes) / 32


def test_kinds_add_up(found: Reconstruction) -> None:
    assert {kind: row.psnr.count for kind, row in found.rows.items()} == {
        "emoji": 3,
        "icon": 2,
        "photo": 1,
        "all": 6,
    }
    assert found.rows["all"].used >= max(row.used for row in found.rows.values())


def test_the_sheet_has_each_original_beside_its_copy(
    found: Reconstruction, tars: list[Path]
) -> None:
    originals = find_images(tars, 16, frozenset(f"p{number}" for number in range(6)))
    assert len(found.pictures) == 12
    for before, original in zip(found.pictures[::2], originals.values(), strict=True):
        assert before.tobytes() == original.tobytes()
    assert found.sheet().width == 8 * 20


def test_a_limit_holds_and_progress_is_told(tiny: CM3Leon, tars: list[Path]) -> None:
    told: list[tuple[int, int]] = []
    found = measure(
        tiny.image_tokenizer,
        tars,
        limit=1,
        tally=Tally(),
        progress=lambda done, total: told.append((done, total)),
    )
    assert [row.psnr.count for row in found.rows.values()] == [1, 1, 1, 3]
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_picture_that_is_not_there_is_named(tars: list[Path]) -> None:
    with pytest.raises(UserError, match="1 pictures are not in the tars, 'nobody' for one"):
        find_images(tars, 16, frozenset({"p1", "nobody"}))
