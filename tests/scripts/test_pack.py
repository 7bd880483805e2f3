"""The pack: what is chosen, that it fits, and that the door reads back what went in."""

import gzip
import importlib.util
import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tokenizer.data.tars import Sample, Tally, read_samples
from tokenizer.errors import UserError
from tokenizer.pixels import open_image
from train.data.corpus import read_edits, read_questions

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("pack", ROOT / "scripts" / "gpu" / "pack.py")
assert spec is not None
assert spec.loader is not None
pack = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)

TONES = [f"1F3F{letter}" for letter in "BCDEF"]
HANDS = [f"1F44{number}" for number in range(6)]  # code points that take a tone
SIDE = 32


def about(name: str, kind: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "captions": [f"a {name}", name], "kind": kind, "label": name, **more}


def corpus() -> list[dict[str, Any]]:
    """Six hands in two styles, plain and in five tones; one style lacks some; and other things."""
    found = [
        about(f"{style}_{point}", "emoji", style=style, codepoint=point, family=hand)
        for hand in HANDS
        for point in (hand, *(f"{hand}-{tone}" for tone in TONES))
        for style in ("noto", "twemoji")
    ]
    missing = {f"twemoji_{HANDS[0]}-{tone}" for tone in TONES[1:]}
    found = [picture for picture in found if picture["id"] not in missing]
    found.append(about("noto_2764", "emoji", style="noto", codepoint="2764", family="2764"))
    found += [about(f"photo-{number}", "photo", style="photo") for number in range(12)]
    return [*found, about("grünes Kästchen", "icon")]


def write(path: Path, pictures: list[dict[str, Any]], damaged: str = "") -> Path:
    draw = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for number, table in enumerate(pictures):
            file = io.BytesIO()
            # smooth, as pictures are: noise would not shrink with the quality
            pixels_HW3 = draw.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            image = Image.fromarray(pixels_HW3).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            image.save(file, "PNG")
            data = file.getvalue()[:60] if table["id"] == damaged else file.getvalue()
            for ending, part in (("png", data), ("json", json.dumps(table).encode())):
                member = tarfile.TarInfo(f"{number}.{ending}")
                member.size = len(part)
                tar.addfile(member, io.BytesIO(part))
    return path


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    return write(tmp_path / "train-0.tar", corpus())


def read(path: Path) -> list[Sample]:
    tally = Tally()
    samples = list(read_samples([path], tally))
    assert tally.skipped == []
    return samples


def make(tars: Path, name: str = "pack.tar", **how: Any) -> tuple[list[Sample], list[str]]:
    said: list[str] = []
    out = tars.parent / name
    how = {"size": 16, "limit": 1, "quality": 50, **how}
    assert pack.pack(str(tars), out, say=said.append, **how) == out
    return read(out), said


def ids(samples: list[Sample]) -> list[str]:
    return [sample.metadata["id"] for sample in samples]


def test_the_door_reads_back_every_word_and_the_pictures_at_their_size(tars: Path) -> None:
    before = {sample.metadata["id"]: sample for sample in read(tars)}
    after, _ = make(tars, size=SIDE, quality=100)
    for sample in after:
        old = before[sample.metadata["id"]]
        assert sample.metadata == old.metadata
        assert sample.picture[8:12] == b"WEBP"
        pixels, wanted = (np.asarray(open_image(x.picture), float) for x in (sample, old))
        assert pixels.shape == (SIDE, SIDE, 3)
        assert np.abs(pixels - wanted).mean() < 6
    small, _ = make(tars, "small.tar", size=8)
    assert {open_image(sample.picture).size for sample in small} == {(8, 8)}
    assert [s.metadata for s in small] == [s.metadata for s in after]


def test_one_tone_is_drawn_and_is_the_same_in_all_styles_that_have_it(tars: Path) -> None:
    packed = ids(make(tars)[0])
    found = {style: [i for i in packed if i.startswith(style)] for style in ("noto", "twemoji")}
    for style, names in found.items():
        tones = Counter(name.split("_")[1].partition("-")[0] for name in names if "-" in name)
        assert tones == dict.fromkeys(HANDS, 1)
        assert {f"{style}_{hand}" for hand in HANDS} <= set(names)  # the plain ones stay

    def drawn(names: list[str]) -> list[str]:
        return [name.partition("_")[2] for name in names if "-" in name][1:]  # the first is odd

    assert drawn(found["noto"]) == drawn(found["twemoji"])
    assert f"twemoji_{HANDS[0]}-{TONES[0]}" in packed  # the only one that there is
    assert len({name.partition("-")[2] for name in drawn(found["noto"])}) > 1
    other = ids(make(tars, "other.tar", seed=1)[0])
    assert sorted(other) != sorted(packed)
    assert len(other) == len(packed)


def test_the_same_pack_comes_again_and_in_the_order_of_the_tars(tars: Path) -> None:
    packed = ids(make(tars)[0])
    make(tars, "again.tar")
    assert (tars.parent / "again.tar").read_bytes() == (tars.parent / "pack.tar").read_bytes()
    units = [name.partition("-1F3F")[0] for name in packed]
    order = list(dict.fromkeys(p["id"].partition("-1F3F")[0] for p in corpus()))
    assert list(dict.fromkeys(units)) == order


def test_excluded_ids_are_left_out_and_the_next_tone_takes_their_place(tars: Path) -> None:
    packed = ids(make(tars)[0])
    toned = next(name for name in packed if name.startswith("noto") and "-" in name)
    (tars.parent / "out.txt").write_text(f"{toned}\nphoto-3\nnobody\n")
    fewer, said = make(tars, "fewer.tar", exclude=tars.parent / "out.txt")
    assert not {toned, "photo-3"} & set(ids(fewer))
    assert len(fewer) == len(packed) - 1
    assert "2 left out by id" in said[0]


def test_no_more_of_a_kind_than_asked_for(tars: Path) -> None:
    packed, said = make(tars, most=["photo=5", "icon=0", "emoji=1000"])
    kinds = Counter(sample.metadata["kind"] for sample in packed)
    assert kinds == {"emoji": 25, "photo": 5}
    assert said[1].endswith(" bytes at quality 50: 25 emoji, 5 photo")
    other = ids(make(tars, "other.tar", most=["photo=5", "icon=0"], seed=2)[0])
    photos = [{i for i in names if "photo" in i} for names in (ids(packed), other)]
    assert len(photos[1]) == 5
    assert photos[0] != photos[1]


def test_the_quality_is_the_best_that_fits(tars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "THIN", 1)
    monkeypatch.setattr(pack, "SPARE", 1)
    chosen = read(tars)

    def size(quality: int) -> int:
        return len(pack.tar_of(chosen, 32, quality, "w:xz", Tally())[0])

    limit = size(60) + 1
    best = pack.best_quality(chosen, 32, limit, "w:xz")
    assert best >= 60
    assert size(best) <= limit < size(best + 1)


@pytest.mark.parametrize("quality", [None, 30])
def test_what_cannot_fit_is_said_and_nothing_is_written(tars: Path, quality: int | None) -> None:
    out = tars.parent / "pack.tar"
    with pytest.raises(UserError, match=r"the pack has 0\.1 MB at quality .*, the limit is 0\.01"):
        pack.pack(str(tars), out, size=16, limit=0.01, quality=quality, say=print)
    assert not out.exists()


def test_edits_and_questions_of_packed_pictures_stand_beside_it(tars: Path) -> None:
    packed = ids(make(tars)[0])
    toned = {name for name in (p["id"] for p in corpus()) if "-1F3F" in name}
    kept = next(name for name in packed if name in toned)
    gone = next(name for name in sorted(toned) if name not in packed)
    edits = [
        {"source": source, "target": kept, "instructions": ["wave", "grüße"], "type": "skin tone"}
        for source in (gone, packed[0])
    ]
    questions = [
        {"id": name, "question": "what?", "answer": "a hand", "type": "what", "split": "train"}
        for name in (kept, gone)
    ]
    folder = tars.parent
    for name, rows in (("edits", edits), ("questions", questions)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    documents = {name: folder / f"{name}.jsonl.gz" for name in ("edits", "questions")}
    _, said = make(tars, "small.tar", **documents)
    assert [line.rpartition(": ")[2] for line in said[2:]] == ["1 edits", "1 questions"]
    tally, every = Tally(), {p["id"] for p in corpus()}
    wanted = list(read_edits(documents["edits"], set(packed), tally))
    assert len(wanted) == 1
    assert list(read_edits(folder / "small.edits.jsonl.gz", every, tally)) == wanted
    asked = list(read_questions(folder / "small.questions.jsonl.gz", every, tally))
    assert asked == list(read_questions(documents["questions"], set(packed), tally))


def test_a_damaged_picture_is_skipped_and_named(tmp_path: Path) -> None:
    tars = write(tmp_path / "train-0.tar", corpus(), damaged="photo-2")
    packed, said = make(tars)
    assert "photo-2" not in ids(packed)
    assert "1 damaged things skipped" in said[0]
    assert said[1].startswith("skipped train-0/")
