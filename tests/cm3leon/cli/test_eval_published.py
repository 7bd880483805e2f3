"""`cm3leon eval NAME --as LAYOUT`: measures on sets as their publishers have them, tiny."""

import json
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cm3leon.__main__ import main
from eval.metrics.vqa import normal
from eval.samples import read

Capture = pytest.CaptureFixture[str]
COLOURS = {"9": "red", "25": "green", "7": "blue"}
CAPTIONS = {"9": ["A red square.", "red"], "25": ["a green square"], "7": ["Blue!", "a blue one"]}
QUESTIONS = {"90": "9", "250": "25", "251": "25"}  # each with its picture


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures with COCO's names, captions, questions of VQA and of VizWiz."""
    (tmp_path / "val2014").mkdir()
    for name, colour in COLOURS.items():
        file = f"COCO_val2014_{int(name):012}.jpg"
        Image.new("RGB", (24, 16), colour).save(tmp_path / "val2014" / file)
    images = [
        {"id": int(name), "file_name": f"COCO_val2014_{int(name):012}.jpg"} for name in COLOURS
    ]
    told = [(name, text) for name, texts in CAPTIONS.items() for text in texts]
    annotations = [
        {"id": place, "image_id": int(name), "caption": text}
        for place, (name, text) in enumerate(told)
    ]
    write(tmp_path / "captions.json", {"images": images, "annotations": annotations})
    rows = [
        {"question_id": int(name), "image_id": int(picture), "question": f"What is {name}?"}
        for name, picture in QUESTIONS.items()
    ]
    write(tmp_path / "questions.json", {"data_subtype": "val2014", "questions": rows})
    answer(tmp_path, {name: ["nobody says this"] for name in QUESTIONS})
    return tmp_path


def write(path: Path, table: object) -> None:
    path.write_text(json.dumps(table), encoding="utf-8")


def people(answers: Sequence[str]) -> list[dict[str, str]]:
    return [{"answer": one} for one in answers]


def answer(folder: Path, answers: dict[str, list[str]]) -> None:
    rows = [
        {"question_id": int(name), "answer_type": "other", "answers": people(texts)}
        for name, texts in answers.items()
    ]
    write(folder / "annotations.json", {"annotations": rows})


def measured(words: str, folder: Path, model: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The figures by name, and what was said."""
    name = words.split()[0]
    given = words.format(at=folder).split()
    common = ["--images", str(folder / "val2014"), "--device", "cpu", "--model", str(model)]
    assert main(["eval", *given, *common, "--out", str(folder / "report")]) == 0
    place = folder / "report" / name
    values = json.loads((place / "report.json").read_text())["values"]
    said = place / "results.json"
    found = {one: value["value"] for one, value in values.items()}
    return found, json.loads(said.read_text()) if said.exists() else []


@pytest.mark.skipif(
    shutil.which("java") is None or find_spec("pycocoevalcap") is None,
    reason="there is no Java or no pycocoevalcap here",
)
def test_captions_have_the_scores_that_pycocoevalcap_gives(folder: Path, tiny_folder: Path) -> None:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
    from pycocotools.coco import COCO

    found, said = measured("caption --data {at}/captions.json --as coco", folder, tiny_folder)
    assert "label named" not in found  # nothing has a label here
    assert [one["image_id"] for one in said] == [9, 25, 7]
    coco = COCO(str(folder / "captions.json"))
    results = coco.loadRes(str(folder / "report" / "caption" / "results.json"))
    ids = coco.getImgIds()
    people = PTBTokenizer().tokenize({one: coco.imgToAnns[one] for one in ids})
    ours = PTBTokenizer().tokenize({one: results.imgToAnns[one] for one in ids})
    bleu, _ = Bleu(4).compute_score(people, ours)
    assert [found[f"BLEU-{n}"] for n in range(1, 5)] == pytest.approx(bleu, abs=1e-12)
    assert found["CIDEr"] == pytest.approx(Cider().compute_score(people, ours)[0], abs=1e-12)


@pytest.mark.parametrize("layout", ["vqa", "ok-vqa"])
def test_answers_are_counted_as_vqa_counts_them(
    layout: str, folder: Path, tiny_folder: Path
) -> None:
    words = "vqa --data {at}/questions.json --annotations {at}/annotations.json --as " + layout
    found, said = measured(words, folder, tiny_folder)
    assert found["accuracy, other"] == 0
    assert [one["question_id"] for one in said] == [90, 250, 251]
    texts = [one["answer"] for one in said]
    agreeing = (2, 10, 0)  # of ten people: 0.6, 1 and 0 by hand
    answer(
        folder,
        {
            name: [text] * count + [f"other {n}" for n in range(10 - count)]
            for name, text, count in zip(QUESTIONS, texts, agreeing, strict=True)
        },
    )
    found, again = measured(words, folder, tiny_folder)
    assert again == said
    assert found["accuracy, other"] == pytest.approx((0.6 + 1 + 0) / 3)


def test_vizwiz_leaves_peoples_answers_as_they_are(folder: Path, tiny_folder: Path) -> None:
    words = "vqa --data {at}/vizwiz.json --as vizwiz"
    row = {"image": "COCO_val2014_000000000009.jpg", "question": "What?", "answerable": 1}
    write(folder / "vizwiz.json", [{**row, "answers": people(["x"])}])
    _, [said] = measured(words, folder, tiny_folder)
    assert said["image"] == row["image"]
    answers = people([normal(said["answer"])] * 3 + ["y"] * 7)  # 3 x 2/3 and 7 x 1, by hand
    write(folder / "vizwiz.json", [{**row, "answers": answers}])
    found, _ = measured(words, folder, tiny_folder)
    assert found == {"accuracy, answerable": pytest.approx(0.9)}


def test_pictures_are_painted_of_published_captions(folder: Path, tiny_folder: Path) -> None:
    place = f"--data {folder}/captions.json --as coco --images {folder}/val2014 --device cpu"
    out = folder / "painted"
    words = f"eval samples {place} --each 2 --processes 1 --out {out} --model {tiny_folder}"
    assert main(words.split()) == 0
    assert {one.prompt for one in read(out)} == {texts[0] for texts in CAPTIONS.values()}
    words = "embedder-score --data {at}/captions.json --as coco --samples {at}/painted"
    found, _ = measured(words, folder, tiny_folder)
    assert found
    made_by = json.loads((folder / "report/embedder-score/report.json").read_text())["made_by"]
    assert made_by["data"]["images"].startswith("3 files, ")
    assert set(made_by["data"]) == {"captions.json", "images"}
    (folder / "ids.txt").write_text("25\n7\n")
    words = "reconstruction --data {at}/captions.json --as coco --ids {at}/ids.txt"
    found, _ = measured(words, folder, tiny_folder)
    assert "PSNR in dB, picture" in found


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("caption --data {at}/captions.json", "say which layout it has with --as"),
        ("caption --data {at} --images {at}/val2014", "--images is of a published set; say"),
        ("caption --data {at} --annotations {at}/x", "--annotations is of a published set; say"),
        ("caption --data {at}/captions.json --as coco", "add --images"),
        ("caption --data {at}/no.json --as coco --images {at}", "there is no file"),
        ("caption --data {at} --as coco --images {at}", "there is no file"),
        ("caption --data {at}/captions.json --as coco --images {at}/no", "no such folder"),
        (
            "caption --data {at}/captions.json --as coco --images {at}",
            "3 of 3 images",
        ),
        (
            "caption --data {at}/captions.json --as coco --images {at} --split val",
            "--split val is of a corpus",
        ),
        (
            "caption --data {at}/captions.json --as coco --images {at} --annotations {at}/x",
            "leave out --annotations",
        ),
        ("vqa --data {at}/questions.json --as vqa --images {at}/val2014", "add --annotations"),
        (
            "vqa --data {at}/captions.json --as coco --images {at}/val2014",
            "no question",
        ),
        ("edit --data {at}/captions.json --as coco --images {at}/val2014", "holds no edit"),
        (
            "copying --data {at}/captions.json --as coco --images {at}/val2014",
            "in a corpus",
        ),
        (
            "concept --data {at}/captions.json --as coco --images {at}/val2014",
            "in a corpus",
        ),
        (
            "infill --data {at}/questions.json --as vqa --annotations {at}/annotations.json "
            "--images {at}/val2014",
            "has a caption; name captioned ones",
        ),
        (
            "infill --data {at}/captions.json --as coco --images {at}/val2014 --ids {at}/ids.txt",
            "1 ids of",
        ),
        ("infill --data {at}/broken.json --as coco --images {at}/val2014", "broken.jpg: is"),
        ("samples --data {at}/captions.json", "say which layout it has with --as"),
    ],
)
def test_what_does_not_go_together_is_one_line(
    words: str, reason: str, folder: Path, tiny_folder: Path, capsys: Capture
) -> None:
    (folder / "ids.txt").write_text("nobody\n")
    (folder / "val2014" / "broken.jpg").write_bytes(b"no image")
    table = json.loads((folder / "captions.json").read_text())
    table["images"][1]["file_name"] = "broken.jpg"
    write(folder / "broken.json", table)
    given = words.format(at=folder).split()
    out = ["--out", str(folder / "out"), "--model", str(tiny_folder), "--device", "cpu"]
    assert main(["eval", *given, *out]) == 1
    assert reason in capsys.readouterr().err.splitlines()[-1]
