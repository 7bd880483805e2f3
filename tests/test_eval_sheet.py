"""The fixed sheet: how it is drawn by lot, and what a model paints of it."""

import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cm3leon.pipeline import CM3Leon
from eval.sheet import Chosen, Edit, Prompt, check_out, choose, draw, write
from tokenizer.errors import UserError
from tokenizer.pixels import fit, open_image, read_info

ROOT = Path(__file__).parent.parent
SHEET = ROOT / "docs" / "sheets" / "prompts.json"


def emoji(style: str, codepoint: str, **other: Any) -> dict[str, Any]:
    name = f"{style}_{codepoint.lower()}"
    label = other.get("label", f"thing {codepoint}")
    return {
        "id": name,
        "kind": "emoji",
        "style": style,
        "family": codepoint.split("-")[0],
        "codepoint": codepoint,
        "group": "things",
        "label": label,
        "captions": [f"{label}, {style} style", label],
        **other,
    }


PLAIN = [emoji(style, f"1F{n:03}") for style in ("b", "a") for n in range(30)]
ODD = [
    emoji("a", "1F000-1F3FB"),
    emoji("a", "1F900", group="flags"),
    emoji("a", "1F901", label="keycap: 1"),
    emoji("a", "1F902", kind="icon"),
    emoji("a", "1F3FC", family="1F903"),
    emoji("a", "1F000-200D"),
    emoji("b", "1F904"),
]
EDITS = [
    {"source": source["id"], "target": "b_1f004", "type": "style", "instructions": ["more", "less"]}
    for source in (*PLAIN, *ODD)
]


def test_families_and_edits_are_drawn_as_the_ledger_says() -> None:
    chosen = choose(PLAIN + ODD, EDITS, {"b_1f904", "a_1f029"})
    rng = random.Random(0)
    families = {"a": [f"1F{n:03}" for n in range(29)], "b": [f"1F{n:03}" for n in range(30)]}
    expected = [f"{style}_{f}".lower() for style in "ab" for f in rng.sample(families[style], 6)]
    assert [one.id for one in chosen.pictures] == expected
    assert [one.number for one in chosen.pictures] == list(range(12))
    assert chosen.pictures[0].prompt == f"thing {expected[0][2:].upper()}, a style"
    rng = random.Random(0)
    sources = {"a": sorted([*families["a"], "1F000-200D"]), "b": families["b"]}
    expected = [f"{style}_{f}".lower() for style in "ab" for f in rng.sample(sources[style], 3)]
    assert [one.source for one in chosen.edits] == expected
    assert {one.instruction for one in chosen.edits} == {"more"}


def test_the_order_of_the_corpus_does_not_matter() -> None:
    assert choose(PLAIN, EDITS, set()) == choose(PLAIN[::-1], EDITS[::-1], set())


def test_no_edit_touches_what_is_held_out() -> None:
    assert choose(PLAIN, EDITS, {"b_1f004"}).edits == ()


def test_the_sheet_of_this_project_is_whole() -> None:
    chosen = Chosen.read(SHEET)
    assert [one.number for one in chosen.pictures] == list(range(48))
    assert [one.number for one in chosen.edits] == list(range(24))
    styles = [one.style for one in chosen.pictures]
    assert styles == sorted(styles)
    assert {styles.count(style) for style in styles} == {6}
    assert all(one.id.startswith(f"{one.style}_") for one in chosen.pictures)
    assert [one.source.rpartition("_")[0] for one in chosen.edits] == styles[::2]


CHOSEN = Chosen(
    pictures=(
        Prompt(number=0, style="a", id="x", prompt="a red fox, Noto style"),
        Prompt(number=1, style="a", id="y", prompt="a blue heart"),
    ),
    edits=(Edit(number=0, source="p1", target="p2", type="style", instruction="make it blue"),),
)


def test_each_is_painted_once_with_its_number_as_the_seed(tiny: CM3Leon, tmp_path: Path) -> None:
    sources = {"p1": Image.new("RGB", (16, 16), "red")}
    told: list[tuple[int, int]] = []
    drawn = draw(tiny, CHOSEN, sources, lambda *counts: told.append(counts))
    assert told == [(1, 3), (2, 3), (3, 3)]
    for one, picture in zip(CHOSEN.pictures, drawn.pictures, strict=True):
        (again,) = tiny.text_to_image(one.prompt, seed=one.number)
        assert picture.tobytes() == again.tobytes()
    (other,) = tiny.text_to_image(CHOSEN.pictures[1].prompt, seed=0)
    assert drawn.pictures[1].tobytes() != other.tobytes()
    (edited,) = tiny.edit(sources["p1"], "make it blue", seed=0)
    assert drawn.edits[0].tobytes() == edited.tobytes()

    out = tmp_path / "sheets"
    check_out(out)
    paths = write(out, CHOSEN, drawn, sources, {"model": "abc"})
    assert [path.name for path in paths] == [
        "sheet.png",
        "sheet-labelled.png",
        "edits.png",
        "key.txt",
    ]
    assert paths[3].read_text() == "0: a red fox, Noto style\n1: a blue heart\n"
    assert read_info(paths[0]) == {"model": "abc"}
    for path, place, picture in (
        (paths[0], 1, drawn.pictures[1]),
        (paths[1], 0, drawn.pictures[0]),
        (paths[2], 0, sources["p1"]),
        (paths[2], 1, drawn.edits[0]),
    ):
        left = place * 196 + 2
        cell = open_image(path).crop((left, 2, left + 192, 194))
        assert cell.tobytes() == fit(picture, 192).tobytes()


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot make the folder .*file'"):
        check_out(tmp_path / "file")
    with pytest.raises(UserError, match="cannot make the folder"):
        check_out(tmp_path / "none" / "sheets")
