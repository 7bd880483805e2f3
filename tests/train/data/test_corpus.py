"""From raw tars to pixels and text lines, with four coloured pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokenizer.data.tars import Tally
from tokenizer.errors import UserError
from train.data.corpus import load_pixels, read_pictures, text_lines

SIZE = 4
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255,) * 3}


def test_pictures_come_square_in_order_and_the_damaged_is_named(tars: list[Path]) -> None:
    tally = Tally()
    found = list(read_pictures(tars, SIZE, {"green"}, tally))
    assert [metadata["id"] for metadata, _ in found] == ["red", "blue", "white"]
    for metadata, pixels_HW3 in found:
        assert pixels_HW3.shape == (SIZE, SIZE, 3)
        assert (pixels_HW3 == COLOURS[metadata["id"]]).all()
    assert (tally.pictures, tally.excluded) == (3, 1)
    assert [what for what, _ in tally.skipped] == ["t-0/bad"]


def test_keep_is_the_other_half_of_exclude(tars: list[Path]) -> None:
    def ids(**choice: Any) -> list[str]:
        chosen = {"exclude": frozenset[str](), **choice}
        return [m["id"] for m, _ in read_pictures(tars, SIZE, tally=Tally(), **chosen)]

    assert ids(keep={"blue", "red"}) == ["red", "blue"]
    assert sorted(ids(exclude={"blue"}) + ids(keep={"blue"})) == sorted(ids())


def test_pixels_from_the_cache_are_the_pixels(tars: list[Path], tmp_path: Path) -> None:
    told: list[str] = []
    pictures, pixels_P3HW = load_pixels(tars, SIZE, {"red"}, say=told.append)
    cached = [load_pixels(tars, SIZE, {"red"}, tmp_path / "c", say=told.append) for _ in range(2)]
    assert pixels_P3HW.shape == (3, 3, SIZE, SIZE)
    for again, mapped_P3HW in cached:
        assert again == pictures
        assert np.array_equal(mapped_P3HW, pixels_P3HW)
    assert sum("images read" in line for line in told) == 2  # the third time it was there
    load_pixels(tars, SIZE, {"blue"}, tmp_path / "c", say=told.append)
    assert len(list((tmp_path / "c").iterdir())) == 2


def test_each_text_line_comes_once(tars: list[Path], edits: Path, questions: Path) -> None:
    lines = list(text_lines(tars, edits, questions, {"green", "white"}, say=lambda _: None))
    assert lines == ["a red square", "a square", "a blue square", "Which colour?", "blue"]


def test_bad_files_are_refused(tars: list[Path], edits: Path) -> None:
    edits.write_bytes(edits.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"edits\.jsonl\.gz: missing, damaged or cut short"):
        list(text_lines(tars, edits, None, set(), say=print))
    with pytest.raises(UserError, match=r"none\.tar: no such tar file"):
        load_pixels([tars[0].with_name("none.tar")], SIZE, set(), say=print)
    with pytest.raises(UserError, match="no image could be read"):
        load_pixels(tars, SIZE, set(COLOURS), say=print)
