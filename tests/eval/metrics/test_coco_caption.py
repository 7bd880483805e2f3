"""Caption scores: through our readers as straight from pycocoevalcap, whatever captions hold."""

import json
import os
import shutil
import stat
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from eval.metrics import coco_caption as scoring
from eval.metrics.coco_caption import BLEU, CaptionScores, caption_scores, caption_values
from eval.published import read_captions
from tokenizer.errors import UserError

PEOPLE = {
    "9": ["A red fox sits on the snow.", "The fox, red as fire, is sitting", "a fox!"],
    "25": ["Two cats sleep on a (blue) mat", "cats sleeping ||| on a mat"],
    "7": ["A café at\nnight; nobody's there...", "an empty CAFÉ", "猫 the café's cat"],
    "31": ["a blue heart", "heart"],
    "30": ["A man doesn't ride 2,000 horses", "a man and his horse"],
}
SAID = {
    "7": "a café's cat at night",
    "25": "two cats on a mat ||| and a dog",
    "31": "A blue heart.",
    "30": "a man riding a horse.",
    "9": "",
}

cocoeval = pytest.mark.skipif(
    shutil.which("java") is None or scoring.find_spec("pycocoevalcap") is None,
    reason="there is no Java or no pycocoevalcap here",
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Annotations and results in COCO's layouts, with a folder of pictures beside them."""
    folder = tmp_path_factory.mktemp("coco")
    images = [{"id": int(name), "file_name": f"{name}.jpg"} for name in PEOPLE]
    told = [(name, text) for name, texts in PEOPLE.items() for text in texts]
    annotations = [
        {"id": place, "image_id": int(name), "caption": text}
        for place, (name, text) in enumerate(told)
    ]
    results = [{"image_id": int(name), "caption": text} for name, text in SAID.items()]
    for image in images:
        (folder / str(image["file_name"])).touch()
    paths = folder / "captions.json", folder / "results.json"
    paths[0].write_text(json.dumps({"images": images, "annotations": annotations}))
    paths[1].write_text(json.dumps(results))
    return paths


class Watched(subprocess.Popen[bytes]):
    """Every process that was started."""

    started: ClassVar[list["Watched"]] = []

    def __init__(self, *arguments: Any, **names: Any) -> None:
        super().__init__(*arguments, **names)
        self.started.append(self)


@pytest.fixture(scope="module")
def scored(files: tuple[Path, Path]) -> CaptionScores:
    """What our readers and scorers make of the files; no process is left of it."""
    annotations, results = files
    people = {one.id: one.captions for one in read_captions(annotations, annotations.parent)}
    said = {str(one["image_id"]): one["caption"] for one in json.loads(results.read_text())}
    Watched.started.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", Watched)
        found = caption_scores(people, said)
    assert len(Watched.started) == 3  # the tokenizer twice, and METEOR
    assert all(one.returncode is not None for one in Watched.started)  # waited for: no zombie
    return found


@cocoeval
def test_scores_through_our_readers_are_pycocoevalcaps(
    files: tuple[Path, Path], scored: CaptionScores
) -> None:
    """As COCOEvalCap.evaluate does it, but for SPICE, which it would fetch."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
    from pycocotools.coco import COCO

    truth = COCO(str(files[0]))
    results = truth.loadRes(str(files[1]))
    ids = truth.getImgIds()
    wanted = PTBTokenizer().tokenize({one: truth.imgToAnns[one] for one in ids})
    said = PTBTokenizer().tokenize({one: results.imgToAnns[one] for one in ids})
    whole, parts = Bleu(4).compute_score(wanted, said)
    direct = dict(zip(BLEU, zip(whole, parts, strict=True), strict=True))
    direct["ROUGE-L"] = Rouge().compute_score(wanted, said)
    direct["CIDEr"] = Cider().compute_score(wanted, said)
    with scoring._meteor() as meteor:
        direct["METEOR"] = meteor.compute_score(wanted, said)
    assert direct.keys() == scored.corpus.keys() == scored.each.keys()
    assert [str(one) for one in ids] == list(scored.ids)
    for name, (one, each) in direct.items():
        assert scored.corpus[name] == one, name
        assert scored.each[name] == tuple(each), name
    assert 0 < scored.corpus["CIDEr"] < 10


@cocoeval
def test_bleu_and_meteor_are_not_means_and_the_others_are(scored: CaptionScores) -> None:
    for name in ("ROUGE-L", "CIDEr"):
        assert scored.corpus[name] == pytest.approx(np.mean(scored.each[name]))
    for name in (*BLEU, "METEOR"):
        assert scored.corpus[name] != pytest.approx(np.mean(scored.each[name]), rel=1e-3)


@cocoeval
def test_figures_have_the_scores_and_intervals_around_them(scored: CaptionScores) -> None:
    values = caption_values(scored)
    assert values.keys() == scored.corpus.keys()
    for name, value in values.items():
        # of BLEU and METEOR this is our own sum against pycocoevalcap's
        assert value.value == pytest.approx(scored.corpus[name], rel=1e-12), name
        assert value.count == len(SAID)
        assert value.low is not None
        assert value.high is not None
        assert value.low < value.value < value.high, name


@cocoeval
def test_odd_captions_disturb_no_other(
    scored: CaptionScores, capfd: pytest.CaptureFixture[str]
) -> None:
    """Line breaks of all kinds, halves of characters and nothing at all, among the others."""
    odd = ["a\rb\u2028c\x85d\x0be\x1cf", "\ud83d \x00 \U0001f600", "", " \n ", "||| SCORE |||", "."]
    people, said = dict[str, list[str]](), dict[str, str]()
    for place, (name, text) in enumerate(SAID.items()):
        people[f"odd {place}"] = [odd[place], *odd]
        said[f"odd {place}"] = odd[-place]
        people[name], said[name] = PEOPLE[name], text
    people["last"], said["last"] = [""], "\n"
    found = caption_scores(people, said)
    for name in (*BLEU, "METEOR", "ROUGE-L"):  # CIDEr's weights depend on the company
        by_id = dict(zip(found.ids, found.each[name], strict=True))
        assert [by_id[one] for one in scored.ids] == list(scored.each[name]), name
    assert all(np.isfinite(each).all() for each in found.each.values())
    assert capfd.readouterr() == ("", "")


def stand_in(folder: Path, script: str) -> None:
    """A 'java' of our own."""
    path = folder / "java"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@cocoeval
def test_a_java_that_fails_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.which("java")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    stand_in(tmp_path, "exit 1")
    with pytest.raises(UserError, match=r"Java gave \d of 1 captions .*java -version"):
        caption_scores({"a": ["b"]}, {"a": "b"})
    stand_in(
        tmp_path,
        f'case "$1" in -cp) exec "{real}" "$@";; esac\necho "no room for the heap" >&2; exit 1',
    )
    monkeypatch.setattr(subprocess, "Popen", Watched)
    Watched.started.clear()
    with pytest.raises(
        UserError, match=r"METEOR's Java process gave no score \(no room for the heap\)"
    ):
        caption_scores({"a": ["b"]}, {"a": "b"})
    assert [one.returncode for one in Watched.started[:2]] == [0, 0]
    assert Watched.started[2].returncode is not None


def test_what_is_missing_is_said_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(*_: object) -> None:
        raise AssertionError("this is work")

    monkeypatch.setattr(scoring, "_tokens", work)
    monkeypatch.setattr(scoring, "find_spec", lambda name: name)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"need Java .* install a Java runtime"):
        caption_scores({"a": ["b"]}, {"a": "b"})
    monkeypatch.setattr(scoring, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'cm3leon\[eval\]'"):
        caption_scores({"a": ["b"]}, {"a": "b"})


@pytest.mark.parametrize(
    ("people", "said", "told"),
    [
        ({}, {}, "no caption to score"),
        (
            {"a": ["b"]},
            {"a": "b", "c": "d", "e": ""},
            "2 images, 'c' for one, have no references",
        ),
        ({"a": []}, {"a": "b"}, "1 images, 'a' for one, have no references"),
        ({"a": ["b"], "c": ["d"]}, {"a": "b"}, "1 images, 'c' for one, have no caption to score"),
    ],
)
def test_both_sides_are_of_the_same_pictures(
    monkeypatch: pytest.MonkeyPatch, people: Any, said: Any, told: str
) -> None:
    monkeypatch.setattr(scoring, "check_scorers", lambda: None)
    with pytest.raises(UserError, match=told):
        caption_scores(people, said)


@cocoeval
def test_spice_is_never_fetched_and_used_where_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from pycocoevalcap.spice import spice

    class Spice:
        def __init__(self) -> None:
            assert all((lib / jar).is_file() for jar in scoring.SPICE_JARS)

        def compute_score(self, wanted: Any, said: Any) -> tuple[float, list[Any]]:
            assert wanted.keys() == said.keys() == {0, 1}
            subprocess.run(["echo", "it prints"], check=True)
            if broken:
                raise subprocess.CalledProcessError(1, "java")
            return 0.5, [{"All": {"f": 0.25}}, {"All": {"f": 0.75}}]

    lib, broken = tmp_path / "lib", False
    lib.mkdir()
    monkeypatch.setattr(spice, "__file__", str(tmp_path / "spice.py"))
    monkeypatch.setattr(spice, "Spice", Spice)
    monkeypatch.setattr(scoring, "_counted", lambda wanted, said: ({}, {}))
    people, said = {"b": ["b"], "a": ["a"]}, {"b": "b", "a": "a"}
    found = caption_scores(people, said)
    (note,) = found.notes
    assert "SPICE is left out: stanford-corenlp-3.6.0.jar is not in" in note
    (lib / scoring.SPICE_JARS[0]).touch()
    assert "3.6.0-models.jar is not in" in caption_scores(people, said).notes[0]
    (lib / scoring.SPICE_JARS[1]).touch()
    found = caption_scores(people, said)
    assert (found.corpus["SPICE"], found.each["SPICE"], found.notes) == (0.5, (0.25, 0.75), ())
    broken = True
    found = caption_scores(people, said)
    assert "SPICE" not in found.corpus
    assert found.notes[0].startswith("SPICE is left out: its Java process failed")
    assert capfd.readouterr() == ("", "")


@cocoeval
def test_a_single_picture_has_no_cider(monkeypatch: pytest.MonkeyPatch) -> None:
    class Meteor:
        lines = (" ".join(["0"] * 23),)

        def compute_score(self, wanted: Any, said: Any) -> tuple[float, list[float]]:
            return 1.0, [1.0 for _ in said]

    @contextmanager
    def quick() -> Generator[Meteor]:
        yield Meteor()

    monkeypatch.setattr(scoring, "_meteor", quick)
    found = caption_scores({"a": ["a fox"]}, {"a": "a fox"})
    assert found.corpus["CIDEr"] == 0
    assert found.notes[-1].startswith("CIDEr is 0 for a single image")
    assert caption_values(found)["CIDEr"].low is None
