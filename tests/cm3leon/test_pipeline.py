"""pipeline.py: every task of the tiny model, and what each promises."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cm3leon import prompts
from cm3leon.pipeline import CM3Leon
from cm3leon.regions import Box, blend
from cm3leon.sampling import Sampling
from tokenizer.document import Picture
from tokenizer.errors import UserError
from tokenizer.pixels import fit

GREEDY = Sampling(temperature=0.0)


@pytest.fixture
def photo() -> Image.Image:
    """Noise of 16 x 16 pixels, the tiny model's own size."""
    values = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return Image.fromarray(values)


def array(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def test_the_same_request_paints_the_same_pictures(tiny: CM3Leon) -> None:
    first = tiny.text_to_image("a red fox", n=3, seed=5)
    again = tiny.text_to_image("a red fox", n=3, seed=5)
    assert [image.size for image in first] == [(16, 16)] * 3
    assert [a.tobytes() for a in first] == [b.tobytes() for b in again]
    assert len({image.tobytes() for image in first}) == 3


def test_sample_i_has_the_seed_plus_i(tiny: CM3Leon) -> None:
    batch = tiny.text_to_image("a red fox", n=3, seed=5)
    alone = tiny.text_to_image("a red fox", seed=7)
    assert batch[2].tobytes() == alone[0].tobytes()


def test_prompt_examples_and_sampling_matter(tiny: CM3Leon, photo: Image.Image) -> None:
    example = prompts.pair("a blue heart", tiny.to_picture(photo))
    pictures = [
        tiny.text_to_image("a red fox"),
        tiny.text_to_image("a blue heart"),
        tiny.text_to_image("a red fox", retrieved=[example]),
        tiny.text_to_image("a red fox", retrieved=[example], streams="meta"),
        tiny.text_to_image("a red fox", sampling=Sampling(contrastive=True)),
        tiny.text_to_image("a red fox", sampling=GREEDY),
    ]
    assert len({image.tobytes() for (image,) in pictures}) == len(pictures)


def test_editing_follows_the_instruction(tiny: CM3Leon, photo: Image.Image) -> None:
    blue, red, short = (
        tiny.edit(photo, "make it blue")[0],
        tiny.edit(photo, "make it red")[0],
        tiny.edit(photo, "make it blue", streams="meta")[0],
    )
    assert len({image.tobytes() for image in (blue, red, short)}) == 3
    with pytest.raises(UserError, match="contrastive"):
        tiny.edit(photo, "make it blue", sampling=Sampling(contrastive=True))


def test_an_edit_holds_on_to_its_picture_as_told(tiny: CM3Leon, photo: Image.Image) -> None:
    source = tiny.to_picture(photo).codes
    kept: list[int] = []
    for keep in (0.0, 2.0, 4.0, 1e6):
        (edited,) = tiny.edit(photo, "make it blue", sampling=Sampling(keep=keep))
        pixels, before = np.asarray(edited), np.asarray(fit(photo, 16))
        same = (pixels == before).reshape(4, 4, 4, 4, 3).all(axis=(1, 3, 4))
        kept.append(int(same.sum()))
    assert kept == sorted(kept)
    assert kept[0] < kept[-1] == len(source)


def test_captions_and_answers_are_text(tiny: CM3Leon, photo: Image.Image) -> None:
    warm = Sampling(temperature=1.0)
    captions = tiny.caption(photo, n=3, sampling=warm)
    assert captions == tiny.caption(photo, n=3, sampling=warm)
    assert len(set(captions)) == 3
    assert tiny.caption(photo, n=2) == [tiny.caption(photo)[0]] * 2
    answers = tiny.answer(photo, "what is it?", n=2, sampling=warm)
    assert answers != tiny.answer(photo, "what colour is it?", n=2, sampling=warm)
    assert all(text == text.strip() for text in (*captions, *answers))


@pytest.mark.parametrize("prompt", ["a red fox", None])
@pytest.mark.parametrize("box", [(4, 4, 9, 9), (0, 3, 16, 12), (0, 0, 16, 16), (0, 0, 5, 16)])
def test_infilling_keeps_what_lies_outside(
    tiny: CM3Leon, photo: Image.Image, box: Box, prompt: str | None
) -> None:
    (painted,) = tiny.infill(photo, box, prompt, seed=3)
    inside = np.zeros((16, 16), dtype=bool)
    inside[box[1] : box[3], box[0] : box[2]] = True
    before, after = array(photo), array(painted)
    assert np.array_equal(before[~inside], after[~inside])
    assert not np.array_equal(before[inside], after[inside])


def test_a_mask_and_a_box_that_say_the_same_paint_the_same(
    tiny: CM3Leon, photo: Image.Image
) -> None:
    mask = Image.new("RGB", photo.size)
    mask.paste((255, 255, 255), (4, 4, 9, 9))
    by_mask = tiny.infill(photo, mask, "a red fox", n=2)
    by_box = tiny.infill(photo, (4, 4, 9, 9), "a red fox", n=2)
    assert [a.tobytes() for a in by_mask] == [b.tobytes() for b in by_box]


def test_the_border_of_a_repainted_region_fades() -> None:
    white, black = (Image.new("RGB", (64, 64), colour) for colour in ("white", "black"))
    mask_HW = torch.zeros(64, 64, dtype=torch.bool)
    mask_HW[:, 20:40] = True
    row = array(blend(white, black, mask_HW))[30, :, 0]
    assert row[18:25].tolist() == [255, 255, 170, 85, 0, 0, 0]
    assert row[36:42].tolist() == [0, 0, 85, 170, 255, 255]


def test_known_codes_inside_a_covering_span_stay(tiny: CM3Leon, photo: Image.Image) -> None:
    """A chequered mask, of more runs than holes are made for."""
    mask = Image.new("L", (16, 16))
    for corner in ((0, 0), (8, 0), (4, 4), (0, 8), (8, 8), (12, 12)):
        mask.paste(255, (*corner, corner[0] + 4, corner[1] + 4))
    painted = array(tiny.infill(photo, mask, "a red fox")[0])
    outside = np.asarray(mask) == 0
    assert np.array_equal(painted[outside], array(photo)[outside])


@pytest.mark.parametrize(
    ("region", "reason"),
    [
        ((4, 4, 4, 9), "the box 4,4,4,9 is not inside the image of 16 x 16"),
        ((0, 0, 17, 9), "the box 0,0,17,9 is not inside"),
        ((-1, 0, 3, 9), "the box -1,0,3,9 is not inside"),
        (Image.new("L", (8, 16), "white"), "the mask has 8 x 16 pixels, the image 16 x 16"),
        (Image.new("L", (16, 16)), "the region to infill is empty"),
    ],
)
def test_regions_that_cannot_be_are_refused(
    tiny: CM3Leon, photo: Image.Image, region: Box | Image.Image, reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        tiny.infill(photo, region)


def test_a_wide_picture_is_seen_by_its_middle_square(tiny: CM3Leon, photo: Image.Image) -> None:
    wide = Image.new("RGB", (48, 16), "red")
    wide.paste(photo, (16, 0))
    assert tiny.to_picture(wide) == tiny.to_picture(photo)
    with pytest.raises(UserError, match="outside the image's middle square"):
        tiny.infill(wide, (0, 0, 12, 16))


def test_reconstruction_is_encoding_and_decoding(
    tiny: CM3Leon, photo: Image.Image, tmp_path: Path
) -> None:
    photo.save(tmp_path / "photo.png")
    there = tiny.to_picture(photo)
    assert len(there.codes) == tiny.codec.picture_codes
    back = tiny.reconstruct(tmp_path / "photo.png")
    assert back.tobytes() == tiny.to_image(there).tobytes()
    assert tiny.to_image(Picture((0,) * 16)).size == (16, 16)


def test_what_cannot_be_is_refused(tiny: CM3Leon, photo: Image.Image) -> None:
    with pytest.raises(UserError, match="n is 0"):
        tiny.text_to_image("a red fox", n=0)
    with pytest.raises(UserError, match="the prompt is empty"):
        tiny.text_to_image(" ")
    with pytest.raises(UserError, match="do not fit into the model's 160; shorten"):
        tiny.text_to_image("a red fox " * 100)
    with pytest.raises(UserError, match="an image of mode L"):
        tiny.caption(photo.convert("L"))


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        ("gpu", "unknown device 'gpu'"),
        ("meta", "not supported"),
        ("cuda:99", "no device 'cuda:99'"),
    ],
)
def test_devices_that_are_not_there_are_refused(
    tiny_folder: Path, device: str, reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        CM3Leon.from_pretrained(tiny_folder, device=device)


def test_progress_is_told(tiny: CM3Leon) -> None:
    told: list[tuple[int, int]] = []
    tiny.text_to_image("a red fox", progress=lambda done, most: told.append((done, most)))
    assert told == [(number, 16) for number in range(1, 17)]


def test_a_broken_folder_names_the_part(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    with pytest.raises(UserError, match=r"has no manifest\.json"):
        CM3Leon.from_pretrained(tmp_path / "m")


def test_weights_are_fp32_on_the_cpu(tiny: CM3Leon) -> None:
    weights = [*tiny.model.parameters(), *tiny.image_tokenizer.net.parameters()]
    assert {(weight.dtype, weight.device.type) for weight in weights} == {(torch.float32, "cpu")}
