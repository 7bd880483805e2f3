"""Data sets are cut into slices that tell when they changed; InstructPix2Pix's folders."""

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from PIL import Image

from cm3leon.cli.data import Layout
from tokenizer.data.entries import Slice, documents_of, samples_of
from tokenizer.data.layouts import LAYOUTS, find_slices
from tokenizer.data.tars import Tally
from tokenizer.errors import UserError


def write(path: Path, table: object) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(table))
    return str(path)


def paint(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (shade, shade, shade)).save(path)


Read = tuple[dict[str, list[str]], list[dict[str, Any]], Tally]


def read(slices: list[Slice]) -> Read:
    """The captions by picture, the documents, and what was skipped."""
    captions: dict[str, list[str]] = {}
    documents: list[dict[str, Any]] = []
    tally = Tally()
    for one in slices:
        entries = one.entries()
        for sample in samples_of(one.images, entries, tally):
            captions[sample.metadata["id"]] = sample.metadata["captions"]
        documents += documents_of(entries, captions.keys(), tally)
    return captions, documents, tally


def test_the_command_knows_the_layouts() -> None:
    assert get_args(Layout) == LAYOUTS


def test_many_files_are_one_data_set_cut_into_slices(tmp_path: Path) -> None:
    images = tmp_path / "images"
    for name in ("9.jpg", "25.jpg", "30.jpg"):
        paint(images / name)
    tables = [
        {
            "images": [{"id": number, "file_name": f"{number}.jpg"} for number in (9, 25, 30)],
            "annotations": [{"image_id": number, "caption": f"A {number}."}],
        }
        for number in (9, 30)
    ]
    names = [write(tmp_path / f"{n}.json", table) for n, table in enumerate(tables)]
    slices = find_slices("coco", names, images, 2)
    captions, _, tally = read(slices)
    assert captions == {"9": ["A 9."], "25": [], "30": ["A 30."]}
    assert tally == Tally()
    assert [str(one) for one in slices] == [
        "0.json and 1 more, images from 1",
        "0.json and 1 more, images from 3",
    ]
    stamps = [one.stamp() for one in slices]
    assert json.dumps(stamps)
    (images / "30.jpg").write_bytes(b"another")
    assert [one.stamp() == old for one, old in zip(slices, stamps, strict=True)] == [True, False]
    paint(images / "30.jpg")
    assert [one.stamp() for one in slices] == stamps
    tables[1]["annotations"] = [{"image_id": 30, "caption": "A calf."}]
    write(tmp_path / "1.json", tables[1])
    changed = [one.stamp() for one in find_slices("coco", names, images, 2)]
    assert [new == old for new, old in zip(changed, stamps, strict=True)] == [True, False]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Three prompts of InstructPix2Pix: two good pairs, one pair, one pair cut in half."""
    root = tmp_path / "clip-filtered"
    for number, seeds in ((7, (11, 22)), (8, (33,)), (9, (44,))):
        folder = root / f"{number:07d}"
        prompt = {"input": f"fox {number}", "edit": f"give it {number} hats", "output": "in hats"}
        write(folder / "prompt.json", prompt)
        (folder / "metadata.jsonl").write_text('{"seed": 11, "clip_sim_0": 0.3}\n')
        for seed in seeds:
            paint(folder / f"{seed}_0.jpg")
            paint(folder / f"{seed}_1.jpg")
    (root / "0000009" / "44_1.jpg").unlink()
    return root


def test_instruct_pix2pix_folders(pairs: Path) -> None:
    slices = find_slices("instruct-pix2pix", [str(pairs)] * 2, None, 2)
    captions, documents, tally = read(slices)
    assert [str(one) for one in slices] == [
        f"{pairs}, prompts from 1",
        f"{pairs}, prompts from 3",
    ]
    assert captions == {
        f"{name}_{side}": [("fox 7" if "7/" in name else "fox 8", "in hats")[side]]
        for name in ("0000007/11", "0000007/22", "0000008/33")
        for side in (0, 1)
    }
    assert documents == [
        {"task": "edit", "source": f"{name}_0", "target": f"{name}_1", "instructions": [line],
         "type": ""}
        for name, line in (
            ("0000007/11", "give it 7 hats"),
            ("0000007/22", "give it 7 hats"),
            ("0000008/33", "give it 8 hats"),
        )
    ]  # fmt: skip
    assert tally.skipped == [("0000009/44", "its 44_1.jpg is missing")]


def test_seeds_json_says_which_pairs_are_wanted(pairs: Path) -> None:
    write(pairs / "seeds.json", [["0000008", ["33"]], ["0000007", ["22", "22", "99"]]])
    slices = find_slices("instruct-pix2pix", [str(pairs)], None)
    _, documents, tally = read(slices)
    assert [one["source"] for one in documents] == ["0000008/33_0", "0000007/22_0"]
    assert tally.skipped == [("0000007/99", "its 99_0.jpg is missing")]
    for bad in ([["../x", ["1"]]], [["0000007", []]], [7]):
        write(pairs / "seeds.json", bad)
        with pytest.raises(UserError, match=r"seeds\.json: .* is not \[folder, \[seeds\]\]; make"):
            find_slices("instruct-pix2pix", [str(pairs)], None)


def test_bad_prompts_are_skipped_and_a_change_is_seen(pairs: Path) -> None:
    (stamp,) = (one.stamp() for one in find_slices("instruct-pix2pix", [str(pairs)], None))
    (pairs / "0000007" / "prompt.json").write_text("{half")
    write(pairs / "0000008" / "prompt.json", {"input": "a", "output": "b"})
    write(pairs / "0000009" / "prompt.json", {"edit": "  "})
    (pairs / "0000010").mkdir()
    write(pairs / "0000010" / "prompt.json", {"edit": "x"})
    slices = find_slices("instruct-pix2pix", [str(pairs)], None)
    _, _, tally = read(slices)
    assert [why for _, why in tally.skipped][1:] == [
        "its prompt.json has no 'edit'",
        "its edit is empty",
        "it holds no SEED_0.jpg",
    ]
    assert "prompt.json: not JSON" in tally.skipped[0][1]
    assert slices[0].stamp() != stamp


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for layout in ("coco", "vqa", "llava"):
        with pytest.raises(UserError, match=r"none\.json: cannot be read \(No such file"):
            find_slices(layout, [str(tmp_path / "none.json")], images)
        with pytest.raises(UserError, match="does not tell where its images lie; give --images"):
            find_slices(layout, ["x.json"], None)
        with pytest.raises(UserError, match="nowhere: no such folder of images"):
            find_slices(layout, ["x.json"], tmp_path / "nowhere")
    with pytest.raises(UserError, match="leave out --images"):
        find_slices("instruct-pix2pix", [str(tmp_path)], images)
    with pytest.raises(UserError, match="nowhere: no such folder; name the one that holds"):
        find_slices("instruct-pix2pix", [str(tmp_path / "nowhere")], None)
    with pytest.raises(UserError, match=re.escape(f"no prompt.json is found in {images}")):
        find_slices("instruct-pix2pix", [str(images)], None)
