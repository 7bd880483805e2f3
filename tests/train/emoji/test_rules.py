"""The rules of the emoji corpus: names, splits, drawings, edits and questions, each alone."""

import io
import os
from dataclasses import asdict, replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tokenizer.errors import UserError
from train.emoji import draw as emoji_pictures
from train.emoji import parts as emoji_parts
from train.emoji.build import HELD_OUT, is_kept_from_training
from train.emoji.clipart import about_art, is_wide, name_of, read_art
from train.emoji.draw import Drawing, DrawnImage, crop, fit, inside, paint
from train.emoji.edits import Edit, make_edits, visible
from train.emoji.names import TONES, Names, family, normal, read_names, slug, split_of, squash
from train.emoji.parts import painter
from train.emoji.questions import make_questions

POINTS = st.sampled_from(["1f468", "1f469", "1f44b", "1f9d1-200d-1f33e", "1f6b6-200d-2640"])


def about(points: str, label: str, **more: Any) -> dict[str, Any]:
    told = {"id": f"noto_{points}", "style": "noto", "codepoint": points.upper(), "label": label}
    return {
        **told,
        "kind": "emoji",
        "split": "train",
        "group": "g",
        "subgroup": "",
        "tags": [],
    } | more


def changes(*pictures: dict[str, Any]) -> dict[tuple[str, str], Edit]:
    return {(edit.source[5:], edit.target[5:]): edit for edit in make_edits(pictures)}


@given(POINTS, st.sampled_from(list(TONES)), st.sampled_from(["2640", "2642", "1f9b0"]))
def test_tone_gender_and_hair_never_change_the_split(points: str, tone: str, sign: str) -> None:
    first, *rest = points.split("-")
    other = "-".join([first, tone, *rest, "200d", sign])
    assert family(other) == family(points)


@given(st.text())
def test_a_slug_is_plain_and_its_own_slug(name: str) -> None:
    assert slug(slug(name)) == slug(name)
    assert squash(name) == slug(name).replace("-", "")


def test_splits_and_code_points_never_change() -> None:
    found = [split_of(f"{number:x}") for number in range(0x1F300, 0x1F700)]
    assert [found.count(split) for split in ("train", "val", "test")] == [934, 31, 59]
    assert normal("2764-FE0F") == normal("2764") == "2764"
    assert normal("0023_FE0F_20E3") == "23-20e3"
    assert len([1 for style in HELD_OUT.values() for _ in style.split()]) == 500
    about = {"kind": "emoji", "split": "train", "style": "twemoji", "family": ""}
    assert is_kept_from_training(about)
    assert not is_kept_from_training({**about, "split": "val"})
    assert not is_kept_from_training({**about, "style": "icon-park", "family": "1f609"})


def test_names_in_many_spellings_lead_to_one_emoji() -> None:
    data = [
        {"label": "person: beard", "hexcode": "1F9D4", "tags": [], "group": 0, "subgroup": 0},
        {"label": "regional indicator A", "hexcode": "1F1E6"},
    ]
    messages = {"groups": [{"order": 0, "message": "people"}], "subgroups": []}
    names = read_names(data, messages, [{"1f9d4": "beardy", "41": "letter"}])
    assert names.find("beardy") == names.find("person-beard") == "1f9d4"
    assert names.find_respelt("bearded-person") == "1f9d4"
    assert names.find_squashed("regional-indicator-symbol-letter-a") == "1f1e6"
    assert names.find_squashed("letter") is None
    assert names.emojis["1f1e6"].group == "symbols & flags"


def test_people_change_gender_age_hair_and_direction() -> None:
    found = changes(
        about("1f468", "man"),
        about("1f469", "woman"),
        about("1f474", "old man"),
        about("1f468-200d-1f9b0", "man: red hair"),
        about("1f468-200d-1f9b3", "man: white hair"),
        about("1f6b6", "person walking"),
        about("1f6b6-200d-2640-fe0f", "woman walking"),
        about("1f6b6-200d-27a1-fe0f", "person walking: facing right"),
    )
    told = {ends: (edit.type, edit.instructions[0]) for ends, edit in found.items()}
    assert told == {
        ("1f468", "1f469"): ("gender", "make it a woman"),
        ("1f469", "1f468"): ("gender", "make it a man"),
        ("1f468", "1f474"): ("age", "make it an old man"),
        ("1f474", "1f468"): ("age", "make it a man"),
        ("1f469", "1f474"): ("age", "make it an old man"),
        ("1f474", "1f469"): ("age", "make it a woman"),
        ("1f468-200d-1f9b0", "1f468-200d-1f9b3"): ("hair", "give them white hair"),
        ("1f468-200d-1f9b3", "1f468-200d-1f9b0"): ("hair", "give them red hair"),
        ("1f468", "1f468-200d-1f9b0"): ("hair", "give them red hair"),
        ("1f468-200d-1f9b0", "1f468"): ("hair", "give them plain default hair"),
        ("1f468", "1f468-200d-1f9b3"): ("hair", "give them white hair"),
        ("1f468-200d-1f9b3", "1f468"): ("hair", "give them plain default hair"),
        ("1f6b6", "1f6b6-200d-2640-fe0f"): ("gender", "make it a woman"),
        ("1f6b6-200d-2640-fe0f", "1f6b6"): ("gender", "make the person gender neutral"),
        ("1f6b6", "1f6b6-200d-27a1-fe0f"): ("direction", "make it face right"),
        ("1f6b6-200d-27a1-fe0f", "1f6b6"): ("direction", "make it face left"),
    }


@pytest.mark.parametrize(
    ("labels", "kind", "instruction"),
    [
        (("red heart", "light blue heart"), "recolour", "make the heart light blue"),
        (("full moon", "new moon"), "moon", "change the moon phase to new moon"),
        (("up arrow", "down-left arrow"), "arrow", "make the arrow point down-left"),
        (("keycap: 1", "keycap: 2"), "keycap", "change the digit to 2"),
        (("globe showing Asia", "globe showing Africa"), "globe", "turn the globe to show Africa"),
        (("grinning face", "grinning cat"), "cat face", "turn the face into a cat"),
    ],
)
def test_things_change_within_their_kind(
    labels: tuple[str, str], kind: str, instruction: str
) -> None:
    first, second = (
        about(points, label, subgroup="cat face")
        for points, label in zip(("1f600", "1f601"), labels, strict=True)
    )
    found = changes(first, second)
    assert found.keys() == {("1f600", "1f601"), ("1f601", "1f600")}
    assert found["1f600", "1f601"].type == kind
    assert found["1f600", "1f601"].instructions[0] == instruction
    assert not changes(first, second | {"split": "test"})


def test_styles_and_weather_change_and_flags_become_round() -> None:
    flag = about("1f1eb-1f1f7", "flag: France")
    pictures = [flag, flag | {"id": "circle-flags_fr", "style": "circle-flags"}]
    pictures += [flag | {"id": "twemoji_fr", "style": "twemoji"}]
    names = [f"meteocons_rain-{when}-fill" for when in ("day", "night")]
    pictures += [
        about("", name, id=name, style="meteocons", codepoint=None, kind="icon") for name in names
    ]
    told = {(edit.source, edit.target): edit.instructions[0] for edit in make_edits(pictures)}
    assert len(told) == 3 * 2 + 2
    assert told["noto_1f1eb-1f1f7", "circle-flags_fr"] == "make the flag round"
    assert told["circle-flags_fr", "twemoji_fr"] == "redraw this in Twemoji style"
    assert told[names[0], names[1]] == "make it night"


def test_an_edit_that_nobody_sees_is_dropped() -> None:
    edits = [Edit("a", target, ["x"], "style", "train") for target in ("b", "c")]
    thumbs = {
        name: np.full((32, 32, 3), value, np.uint8)
        for name, value in zip("abc", (9, 9, 10), strict=True)
    }
    assert [edit.target for edit in visible(edits, thumbs)] == ["c"]


def test_questions_are_answered_by_the_label() -> None:
    pictures = [
        about("1f468-1f3fb", "man: light skin tone", tags=["adult"]),
        about("2764-fe0f", "red heart"),
        about("", "a bird that sits on trees", codepoint=None, kind="clipart", style="openclipart"),
    ]
    asked = [asdict(question) for question in make_questions(pictures)]
    told = {(one["id"][5:], one["type"], one["question"]): one["answer"] for one in asked}
    assert told["1f468-1f3fb", "skin tone", "What is the skin tone?"] == "light"
    assert told["1f468-1f3fb", "gender", "Is this a man or a woman?"] == "man"
    assert told["2764-fe0f", "color", "What color is the heart?"] == "red"
    assert told["2764-fe0f", "medium", "Is this a photo or a drawing?"] == "a drawing"
    assert not any(one["id"] == "noto_" for one in asked)
    assert asked == [asdict(question) for question in make_questions(pictures)]


ART = (
    '<svg width="9" height="{height}"><metadata><cc:license rdf:resource="cc/PublicDomain"/>'
    "<dc:title>{title}</dc:title><dc:creator><dc:title>Al Fox</dc:title></dc:creator>"
    "<rdf:li>bird</rdf:li></metadata></svg>"
)


@pytest.mark.parametrize(
    ("path", "title", "name"),
    [
        ("animals/x", "Barn &amp; Owl_1", "barn & Owl"),
        ("animals/fox_bird_al_01", "Untitled", "bird"),
        ("animals/0000", "Untitled", ""),
        ("animals/x", "abc", ""),
    ],
)
def test_a_vague_title_gives_way_to_the_files_name(path: str, title: str, name: str) -> None:
    art = read_art(path, ART.format(height=10, title=title).encode())
    assert art is not None
    assert name_of(art, 1, {"bird", "fox"}) == name
    assert not is_wide(art.svg)
    assert is_wide(ART.format(height=9, title="") + "<svg/>")
    assert read_art(path, b"<svg><metadata>all rights reserved</metadata></svg>") is None
    if name == "barn & Owl":
        assert about_art(art, name)["captions"][-1] == "barn & Owl (bird, animals), clip art"


def test_a_drawing_looks_at_no_file_beside_it() -> None:
    here = "<use xlink:href=\"#a\"/><image href='data:image/png;base64,AA'/>"
    assert inside(here) == here
    there = "<image xlink:href=\"/etc/x.png\"/><image href = 'http://h/x'/>"
    assert inside(there) == '<image xlink:href=""/><image href = ""/>'


def test_pictures_stand_in_the_middle_of_white() -> None:
    image = Image.new("RGBA", (40, 20), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (10, 5, 30, 10))
    whole, cut = fit(image), crop(image)
    assert cut is not None
    white = Image.new("RGB", (128, 128), "white")
    assert whole.size == cut.size == white.size
    assert cut.getpixel((4, 64)) == cut.getpixel((123, 64)) == (255, 0, 0)
    assert cut.getpixel((3, 64)) == cut.getpixel((124, 64)) == (255, 255, 255)
    assert whole.getpixel((64, 32)) == (255, 255, 255)
    assert crop(Image.new("RGBA", (5, 5), (255, 255, 255, 9))) is None


def test_what_cannot_be_drawn_says_why() -> None:
    assert paint(Drawing(about={}, data=b"none")) == "cannot be drawn: no image"
    file = io.BytesIO()
    Image.new("RGB", (9, 9), "teal").save(file, "PNG")
    assert paint(Drawing(about={}, data=file.getvalue())) == "blank"


def box(*size: int) -> bytes:
    """A PNG of a teal box on nothing."""
    image = Image.new("RGBA", size, (0, 0, 0, 0))
    image.paste((0, 128, 128, 255), (2, 2, size[0] - 2, size[1] - 2))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_a_spare_picture_stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bytes:
        raise ValueError("SVG has an invalid size")

    spare = box(20, 30)
    wanted = paint(Drawing(about={}, data=spare, cropped=True))
    assert isinstance(wanted, DrawnImage)
    monkeypatch.setattr(emoji_pictures, "rasterise", refuse)
    refused = Drawing(about={}, data="<svg/>", spare=spare, cropped=True)
    assert paint(refused) == wanted
    assert paint(replace(refused, spare=b"")) == "cannot be drawn: SVG has an invalid size"
    monkeypatch.setattr(emoji_pictures, "rasterise", lambda *_: box(4, 4))
    assert paint(refused) == wanted  # nothing is seen of the first


def test_many_processes_paint_what_one_does() -> None:
    drawings = [Drawing(about={}, data=data) for data in (box(9, 9), b"none", box(9, 30))]
    with painter(1) as alone, painter(2) as together:
        pictures = list(alone(drawings))
        assert list(together(drawings)) == pictures
    assert [isinstance(picture, DrawnImage) for picture in pictures] == [True, False, True]


def test_a_killed_painter_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emoji_parts, "paint", os._exit)
    with (
        pytest.raises(UserError, match="a process that generates was killed"),
        painter(2) as paint_all,
    ):
        list(paint_all([3]))  # type: ignore[list-item]


def test_svg_is_drawn() -> None:
    pytest.importorskip("resvg_py")
    box = '<rect width="1" height="2" fill="#f00"/>'
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 2 2">{box}</svg>'
    picture = paint(Drawing(about={}, data=svg))
    assert isinstance(picture, DrawnImage)
    with Image.open(io.BytesIO(picture.webp)) as image:
        left, right = (np.asarray(image)[:, sides].mean((0, 1)) for sides in ([9], [99]))
    assert np.abs(left - [255, 0, 0]).max() < 8
    assert np.abs(right - 255).max() < 8
    assert len(picture.thumb) == 32 * 32 * 3


def test_a_missing_rasteriser_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> ModuleType:
        raise ImportError(name)

    monkeypatch.setattr(emoji_pictures, "import_module", missing)
    with pytest.raises(UserError, match=r"pip install 'cm3leon\[emoji\]'"):
        emoji_pictures.check_rasteriser()


def test_nothing_is_known_of_no_names() -> None:
    assert Names().find_respelt("fox") is None


def test_a_picture_is_scaled_as_pillow_would_but_for_rounding() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 90, 4), dtype=np.uint8)
    noise = noise // 4 + 96  # so that nothing between the two ways is cut off
    noise[..., 3] = 255
    for image in (Image.fromarray(noise), Image.fromarray(noise.transpose(1, 0, 2).copy())):
        whole = np.asarray(fit(image)).astype(int)
        size = (38, 128) if image.height > image.width else (128, 38)
        plain = image.resize(size, Image.Resampling.LANCZOS)
        assert np.abs(np.asarray(fit(plain)).astype(int) - whole).max() <= 3
