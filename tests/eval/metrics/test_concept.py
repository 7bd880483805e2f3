"""The concept classifier and its score: things that are colours, in two styles."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from cm3leon.__main__ import main
from eval.corpus import list_pictures
from eval.networks import classifier as concept
from eval.networks.classifier import judge, pairs_of
from tokenizer.errors import UserError

COLOURS = {"rose": "red", "leaf": "green", "sea": "blue"}
STYLES = ("round", "square")


def picture(family: str, style: str) -> Image.Image:
    image = Image.new("RGB", (32, 32), "white")
    draw = ImageDraw.Draw(image)
    shape = draw.ellipse if style == "round" else draw.rectangle
    shape((4, 4, 28, 28), COLOURS[family])
    return image


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A picture of every thing in both styles; the square sea is held out."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    with tarfile.open(folder / "train-0.tar", "w") as archive:
        for family in COLOURS:
            for style in STYLES:
                name = f"{style}-{family}"
                table = {"id": name, "caption": f"{family}, {style} style", "kind": "emoji"}
                file = io.BytesIO()
                picture(family, style).save(file, "PNG")
                text = json.dumps(table | {"family": family, "style": style}).encode()
                for ending, part in (("png", file.getvalue()), ("json", text)):
                    entry = tarfile.TarInfo(f"{name}.{ending}")
                    entry.size = len(part)
                    archive.addfile(entry, io.BytesIO(part))
    (folder / "heldout-pairs.txt").write_text("square-sea\n")
    return folder


def test_a_judge_learns_and_is_kept(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tars, held_out = [data / "train-0.tar"], {"square-sea"}
    cache = tmp_path / "out" / "judge.safetensors"
    net = judge(tars, held_out, cache, 0, None)
    pairs = [(family, style) for family in COLOURS for style in STYLES]
    images = [picture(*pair) for pair in pairs]
    found = net.name(images, pairs)
    known = [one for pair, one in zip(pairs, found, strict=True) if pair != ("sea", "square")]
    assert all(one.both for one in known)
    assert all(one.family_among_five for one in found)
    wrong = net.name(images, [("nothing", "no style")] * len(images))
    assert not any(one.family or one.family_among_five or one.style for one in wrong)

    def train(*given: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(concept, "_train", train)
    again = judge(tars, held_out, cache, 0, None)
    assert again.name(images, pairs) == found
    for other in (frozenset[str](), held_out):  # other pairs, or a damaged file: trained anew
        with pytest.raises(AssertionError, match="trained again"):
            judge(tars, other, cache, 0, None)
        cache.write_bytes(b"damaged")


def test_pairs_are_those_of_emoji_with_both() -> None:
    whole = {"id": "a", "kind": "emoji", "family": "rose", "style": "round"}
    others = [whole | {"id": "b", "kind": "photo"}, {"id": "c", "kind": "emoji", "family": "rose"}]
    assert pairs_of([whole, *others], frozenset()) == {"a": ("rose", "round")}
    with pytest.raises(UserError, match="with a family and a style"):
        pairs_of([whole, *others], {"a"})


def test_the_score_asks_held_out_and_train_pairs(
    data: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(concept, "EPOCHS", 10)
    monkeypatch.setattr("eval.metrics.concept.GUIDANCE", (1.0, 3.0))
    assert len(list_pictures([data / "train-0.tar"])) == 6
    for name in ("concept", "concept-sweep"):
        words = ["eval", name, "--data", data, "--model", tiny_folder, "--out", tmp_path / "out"]
        with (data / "test-0.tar").open("wb") as file:
            file.write((data / "train-0.tar").read_bytes())
        assert main([str(word) for word in [*words, "--device", "cpu"]]) == 0
    out = tmp_path / "out"
    values = json.loads((out / "concept" / "report.json").read_text())["values"]
    assert {values[f"{of}: family"]["count"] for of in (
        "real held-out pairs", "generated held-out pairs", "generated train pairs",
    )} == {1}  # fmt: skip
    table = json.loads((out / "concept-sweep" / "report.json").read_text())
    sides = {name.split(",")[0] for name in table["values"]}
    assert sides == {"guidance 1", "guidance 3", "top-p", "CD-K", "half of each"}


def test_people_s_prompts_count_where_an_accepted_family_is_seen(
    data: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(concept, "EPOCHS", 2)
    (data / "test-0.tar").write_bytes((data / "train-0.tar").read_bytes())
    prompts = tmp_path / "prompts.json"
    every = [*COLOURS]
    rows = [
        {"topic": "t", "prompt": "a red thing", "families": every},
        {"topic": "t", "prompt": "nothing", "families": ["unknown"]},
    ]
    prompts.write_text(json.dumps({"open": rows, "sealed": rows[1:]}))
    words = [
        "eval",
        "people",
        "--prompts",
        prompts,
        "--data",
        data,
        "--model",
        tiny_folder,
        "--out",
        tmp_path,
    ]
    given = [str(word) for word in [*words, "--device", "cpu"]]
    assert main(given) == 0
    table = json.loads((tmp_path / "people-open" / "report.json").read_text())
    assert table["values"]["an accepted family"]["value"] == 0.5
    assert table["pictures"] == ["sheet", "sheet-told"]
    said = json.loads((tmp_path / "people-open" / "results.json").read_text())
    assert [(one["prompt"], one["right"]) for one in said] == [
        ("a red thing", True),
        ("nothing", False),
    ]
    assert main([*given, "--half", "sealed", "--json"]) == 0
    prompts.write_text("{}")
    capsys.readouterr()
    assert main(given) == 1
    assert "open" in capsys.readouterr().err
