"""live.py: what a view shows, what views may cost, and that watching changes nothing."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from cm3leon import preview as live
from cm3leon import prompts
from cm3leon.pipeline import CM3Leon
from cm3leon.preview import GREY, SHARE, Live, filled, opened, partial
from tokenizer.document import Picture

CELL = 4  # pixels a side of a cell of the tiny model


class Clock:
    """Time that passes when we say so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def lavish(monkeypatch: pytest.MonkeyPatch) -> None:
    """Views whatever they cost."""
    monkeypatch.setattr(live, "SHARE", math.inf)


def painted(
    tiny: CM3Leon, *, pace: float, cost: float, samples: int = 1, rows: int = 400
) -> Iterator[tuple[float, float]]:
    """Let `rows` rows come, one in `pace` seconds, where a view costs `cost`: after each row the
    time so far, and the time that went into views."""
    clock, spent = Clock(), 0.0
    codes = tiny.codec.vocabulary.image_ids.start

    def to_image(picture: Picture) -> Image.Image:
        nonlocal spent
        clock.now += cost / samples
        spent += cost / samples
        return Image.new("RGB", (16, 16))

    watched = Live(
        lambda _image, _done: None, tiny.codec, to_image, samples=samples, size=16, clock=clock
    )
    for _ in range(rows):
        clock.now += pace
        for number in range(samples):
            watched(number, [codes] * 4)
        yield clock.now - 100, spent


@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize("cost", [0.02, 0.3])
def test_views_keep_to_their_share_of_the_time(tiny: CM3Leon, cost: float, samples: int) -> None:
    account = list(painted(tiny, pace=0.5, cost=cost, samples=samples))
    first = next(total for total, spent in account if spent)
    assert all(spent <= SHARE * total for total, spent in account if total > first + cost / SHARE)
    total, spent = account[-1]
    assert spent > 0.8 * SHARE * total  # and use it


def test_a_quick_picture_is_not_shown_before_it_is_done(tiny: CM3Leon) -> None:
    assert list(painted(tiny, pace=0.001, cost=0.005, rows=4))[-1][1] == 0


def test_what_the_watcher_takes_is_on_the_account(tiny: CM3Leon) -> None:
    clock, seen = Clock(), list[float]()

    def watcher(_image: Image.Image, _done: float) -> None:
        seen.append(clock.now - 100)
        clock.now += 5

    watched = Live(watcher, tiny.codec, tiny.to_image, samples=1, size=16, clock=clock)
    codes = tiny.codec.vocabulary.image_ids.start
    for _ in range(400):
        clock.now += 1
        watched(0, [codes] * 8)
    assert seen == [1, 334]  # the first on trust, the second when 10 seconds are within the share


def test_unknown_codes_are_as_those_above() -> None:
    assert filled([1, 2, 3, None, None, None, None, None, None], 3) == (1, 2, 3) * 3
    assert filled([None, 2, None, 4, None, None, None, 8, None], 3) == (2, 2, 2, 4, 2, 2, 4, 8, 2)
    assert filled([None] * 4, 2) == (0, 0, 0, 0)


def test_a_view_is_grey_where_nothing_has_come(tiny: CM3Leon) -> None:
    codes = [*range(6), *[None] * 10]
    pixels = np.asarray(partial(codes, tiny.to_image))
    whole = np.asarray(tiny.to_image(Picture(filled(codes, 4))))
    grey = np.zeros((16, 16), dtype=bool)
    grey[2 * CELL :] = True
    grey[CELL:, 2 * CELL :] = True
    assert (pixels[grey] == GREY).all()
    assert (pixels[~grey] == whole[~grey]).all()
    full = [*range(16)]
    assert partial(full, tiny.to_image).tobytes() == tiny.to_image(Picture((*full,))).tobytes()


@pytest.mark.parametrize("wanted", ["0000011001100000", "1010101010100000"])
def test_what_comes_of_a_region_goes_where_it_belongs(tiny: CM3Leon, wanted: str) -> None:
    codes = tuple(range(16))
    asked = prompts.complete(Picture(codes), [mark == "1" for mark in wanted], "a fox")
    start_L, cells = opened(asked)
    assert start_L == [None if mark == "1" else code for code, mark in enumerate(wanted)]
    fillings = [[tiny.codec.vocabulary.image_id(cell) for cell in cells]]
    if len(tiny.codec.holes(asked.document)) == 2:
        fillings = [fillings[0][:2], fillings[0][2:]]
    assert tiny.codec.fill(asked.document, fillings)[-1] == Picture(codes)


@pytest.mark.usefixtures("lavish")
def test_rows_arrive_and_the_picture_is_the_same(tiny: CM3Leon) -> None:
    seen = list[tuple[Image.Image, float]]()
    (picture,) = tiny.text_to_image(
        "a red fox", seed=3, watch=lambda image, done: seen.append((image, done))
    )
    assert picture.tobytes() == tiny.text_to_image("a red fox", seed=3)[0].tobytes()
    assert [done for _, done in seen] == [0.25, 0.5, 0.75]
    for number, (image, _) in enumerate(seen, start=1):
        pixels = np.asarray(image)
        assert (pixels[CELL * number :] == GREY).all()
        assert not (pixels[: CELL * number] == GREY).all(axis=-1).any()


@pytest.mark.usefixtures("lavish")
def test_several_samples_are_seen_on_a_sheet(tiny: CM3Leon) -> None:
    seen = list[Image.Image]()
    pictures = tiny.text_to_image("a red fox", n=3, watch=lambda image, _: seen.append(image))
    plain = tiny.text_to_image("a red fox", n=3)
    assert [a.tobytes() for a in pictures] == [b.tobytes() for b in plain]
    assert [image.size for image in seen] == [(40, 40)] * 3


@pytest.mark.usefixtures("lavish")
@pytest.mark.parametrize("prompt", [None, "a fox"])
def test_a_region_is_seen_in_its_picture(tiny: CM3Leon, prompt: str | None) -> None:
    seen = list[tuple[Image.Image, float]]()
    before, box = tiny.text_to_image("a red fox")[0], (4, 0, 12, 16)
    after = tiny.infill(before, box, prompt, n=2, seed=1)
    watched = tiny.infill(
        before, box, prompt, n=2, seed=1, watch=lambda image, done: seen.append((image, done))
    )
    assert [a.tobytes() for a in after] == [b.tobytes() for b in watched]
    assert seen
    assert all(0 < done < 1 for _, done in seen)
    first = np.asarray(seen[0][0].crop((2, 2, 18, 18)))  # of the sheet
    assert (first[:, :4] == np.asarray(before)[:, :4]).all()
    assert (first[:, 12:] == np.asarray(before)[:, 12:]).all()
    assert (first[13:, 6:10] == GREY).all()


@pytest.mark.usefixtures("lavish")
def test_an_edit_can_be_watched(tiny: CM3Leon) -> None:
    seen = list[float]()
    before = tiny.text_to_image("a red fox")[0]
    (plain,) = tiny.edit(before, "make it blue")
    (edited,) = tiny.edit(before, "make it blue", watch=lambda _, done: seen.append(done))
    assert edited.tobytes() == plain.tobytes()
    assert seen == [0.25, 0.5, 0.75]
