"""Pictures seen anew: what a view does to pixels, and rows whose pictures all share one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from cm3leon.pipeline import CM3Leon
from tokenizer.codec import Codec
from tokenizer.data.shard_writer import write_shards
from tokenizer.data.shards import Shards
from tokenizer.document import Picture
from tokenizer.errors import UserError
from train.config import RowsConfig
from train.data.rows import Rows
from train.data.views import View, draw_views, read_views, write_views
from train.objective import MaskConfig

SIZE, GRID, CODES = 16, 4, 32
PLAIN = View(channels=(0, 1, 2), mirrored=False, zoom=1.0, right=0.0, down=0.0)


class MeanTokenizer:
    """A stand-in: the code of each cell is its mean red, 0..31."""

    hash, size, grid, codes = "some", SIZE, GRID, CODES

    def encode(self, pixels_B3HW: Tensor) -> Tensor:
        red_BHW = torch.nn.functional.avg_pool2d((pixels_B3HW[:, :1] + 1) / 2, SIZE // GRID)
        return (red_BHW * (CODES - 1)).round().long().flatten(1)


def pixels(count: int = 2) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, SIZE, SIZE, generator=draw) * 2 - 1


def changed(**one: Any) -> Tensor:
    return View(**{**vars(PLAIN), **one})(pixels())


def test_a_view_moves_mirrors_and_orders_channels() -> None:
    close = {"atol": 1e-5, "rtol": 0.0}
    torch.testing.assert_close(PLAIN(pixels()), pixels(), **close)
    torch.testing.assert_close(changed(mirrored=True), pixels().flip(-1), **close)
    torch.testing.assert_close(changed(channels=(2, 0, 1)), pixels()[:, [2, 0, 1]], **close)
    for mirrored in (False, True):  # what is mirrored is moved too, by as much
        whole = pixels().flip(-1) if mirrored else pixels()
        right = changed(right=4 / SIZE, mirrored=mirrored)
        torch.testing.assert_close(right[..., 4:], whole[..., :-4], **close)
        torch.testing.assert_close(right[..., :4], whole[..., :1].expand(2, 3, SIZE, 4), **close)
    down = changed(down=-2 / SIZE)
    torch.testing.assert_close(down[..., :-2, :], pixels()[..., 2:, :], **close)


def test_a_larger_zoom_shows_less() -> None:
    ramp_13HW = torch.linspace(-1, 1, SIZE).expand(1, 3, SIZE, SIZE)
    near = View(**{**vars(PLAIN), "zoom": 1.2})(ramp_13HW)
    far = View(**{**vars(PLAIN), "zoom": 0.8})(ramp_13HW)
    assert near.max() < ramp_13HW.max() == far.max()
    assert float(near.mean()) == pytest.approx(0, abs=1e-5)


@given(st.integers(1, 30), st.integers(0, 5))
def test_views_are_a_function_of_their_seed(count: int, seed: int) -> None:
    views = draw_views(count, seed)
    assert views == draw_views(count + 1, seed)[:count]
    assert views[0].channels == (0, 1, 2)
    assert len({one.channels for one in views}) == min(count, 6)
    assert all(sorted(one.channels) == [0, 1, 2] for one in views)


@pytest.fixture
def pictures() -> list[tuple[str, Image.Image]]:
    draw = np.random.default_rng(0)
    return [
        (str(number), Image.fromarray(draw.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)))
        for number in range(6)
    ]


@pytest.fixture
def shards(tmp_path: Path, pictures: list[tuple[str, Image.Image]]) -> Shards:
    rows = [
        ({"id": name, "captions": [f"a fox {name}"]}, [int(name)] * GRID**2)
        for name, _ in reversed(pictures)
    ]
    documents = [
        {"task": "pair", "picture": "1"},
        {"task": "edit", "source": "2", "target": "3", "instructions": ["more"]},
    ]
    about = {"image_tokenizer_hash": "some", "size": SIZE, "grid": GRID, "codes": CODES}
    write_shards(tmp_path / "shards", rows, documents, **about)
    return Shards.open(tmp_path / "shards")


def test_each_picture_is_coded_through_each_view_under_its_own_number(
    tmp_path: Path, shards: Shards, pictures: list[tuple[str, Image.Image]]
) -> None:
    views = draw_views(7, 1)
    others = [("no shard's", pictures[0][1]), *pictures, ("3", pictures[0][1])]
    write_views(tmp_path / "views", others, shards, MeanTokenizer(), views)
    codes_VPN = read_views(tmp_path / "views", shards)
    assert codes_VPN.shape == (7, 6, GRID**2)
    for number, (name, image) in enumerate(pictures):
        pixels_13HW = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
        for view, codes_PN in zip(views, codes_VPN, strict=True):
            wanted = MeanTokenizer().encode(view(pixels_13HW))[0]
            assert codes_PN[shards.number_of(name)].tolist() == wanted.tolist(), number


def test_tables_of_too_little_or_of_others_are_refused(
    tmp_path: Path, shards: Shards, pictures: list[tuple[str, Image.Image]]
) -> None:
    views = draw_views(2, 0)
    some = [one for one in pictures if one[0] != "4"]
    with pytest.raises(UserError, match=r"1 of the 6 images of .* the first is '4'"):
        write_views(tmp_path / "views", some, shards, MeanTokenizer(), views)
    assert not (tmp_path / "views").exists()
    write_views(tmp_path / "views", pictures, shards, MeanTokenizer(), views)
    with pytest.raises(UserError, match="exists"):
        write_views(tmp_path / "views", pictures, shards, MeanTokenizer(), views)
    about = {"image_tokenizer_hash": "some", "size": SIZE, "grid": GRID, "codes": CODES}
    write_shards(tmp_path / "other", [({"id": "x"}, [0] * GRID**2)], [], **about)
    with pytest.raises(UserError, match="made for other shards"):
        read_views(tmp_path / "views", Shards.open(tmp_path / "other"))
    about_it = tmp_path / "views" / "about.json"
    whole = about_it.read_text("utf-8")
    about_it.write_text("[]".ljust(len(whole)))
    with pytest.raises(UserError, match=r"cannot be read .* make it with `cm3leon data views`"):
        read_views(tmp_path / "views", shards)
    about_it.write_text("[]")
    with pytest.raises(UserError, match=r"about\.json"):
        read_views(tmp_path / "views", shards)
    with pytest.raises(UserError, match="seen_anew is 2"):
        RowsConfig(seen_anew=2)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_documents_that_stand_alone_are_moved_whole(
    shards: Shards, tiny: CM3Leon, share: float
) -> None:
    views_VPN = np.stack([shards.codes_PN + 10, shards.codes_PN + 20]).astype(np.uint16)
    codec = Codec(tiny.codec.vocabulary, tiny.codec.text, GRID**2, 300)
    config = RowsConfig(forms={"pair": 0.6, "edit": 0.4}, moved=share)
    rows = Rows(shards, codec, config, MaskConfig(spans_mean=0, field=0), 0, None, views_VPN)
    seen = {"pair": [0, 0, 0], "edit": [0, 0, 0]}
    for row in range(400):
        form, _ = rows.deck.at(row)
        found = [
            part.codes for part in codec.decode(rows.at(row).tolist()) if isinstance(part, Picture)
        ]
        tens = {code // 10 for codes in found for code in codes or ()}
        assert len(tens) == 1, "both ends of an edit are seen through one view"
        seen[form][tens.pop()] += 1
    for as_it_is, *moved in seen.values():
        assert sum(moved) / (as_it_is + sum(moved)) == pytest.approx(share, abs=0.1)
        assert share == 0 or min(moved) > 0


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_all_pictures_of_a_row_share_a_view_and_only_behind_documents(
    shards: Shards, tiny: CM3Leon, share: float
) -> None:
    table_PN = np.array([[1, 2], [0, 2], [0, 3], [1, 2], [5, 0], [4, 0]], np.int32)
    views_VPN = np.stack([shards.codes_PN + 10, shards.codes_PN + 20]).astype(np.uint16)
    codec = Codec(tiny.codec.vocabulary, tiny.codec.text, GRID**2, 300)
    config = RowsConfig(forms={"pair": 0.7, "edit": 0.3}, seen_anew=share)
    rows = Rows(shards, codec, config, MaskConfig(spans_mean=0, field=0), 0, table_PN, views_VPN)
    plain = Rows(shards, codec, config, MaskConfig(spans_mean=0, field=0), 0, table_PN)
    anew, behind = 0, 0
    for row in range(400):
        form, _ = rows.deck.at(row)
        found = [
            part.codes for part in codec.decode(rows.at(row).tolist()) if isinstance(part, Picture)
        ]
        tens = {code // 10 for codes in found for code in codes or ()}
        assert len(tens) == 1, "the images of a row are seen through one view"
        if form == "edit" or len(found) == 1:
            assert tens == {0}
        else:
            behind += 1
            anew += tens != {0}
        if tens == {0} and share == 0:
            assert rows.at(row).tolist() == plain.at(row).tolist()
    assert behind > 100
    assert share - 0.1 < anew / behind < share + 0.1
