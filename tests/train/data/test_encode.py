"""From raw sources to token shards: the same ones however the work was shared or interrupted."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tokenizer.data.shards import Shards
from tokenizer.distributed import DistributedContext
from tokenizer.errors import UserError
from tokenizer.manifest import VERIFIED
from train.data import encode as encoding
from train.data.corpus import text_lines
from train.data.encode import Work, encode

SIZE = 4


class Rank(DistributedContext):
    """One of two processes, which waits for nobody."""

    def wait(self) -> None:
        pass


class MeanTokenizer:
    """A stand-in: the code of each quarter is its mean brightness, 0..9."""

    hash, size, grid, codes = "mean", SIZE, 2, 10

    def encode(self, pixels_B3HW: Tensor) -> Tensor:
        assert pixels_B3HW.shape[1:] == (3, SIZE, SIZE)
        mean_BHW = torch.nn.functional.avg_pool2d((pixels_B3HW + 1) / 2, 2).mean(1)
        return (mean_BHW * 9).round().long().flatten(1)


def quiet(_: str) -> None:
    pass


def encoded(
    sources: Sequence[Path], out: Path, tokenizer: MeanTokenizer | None = None, **more: Any
) -> Shards:
    choice = {name: more.pop(name) for name in ("exclude", "keep") if name in more}
    work = Work(image_tokenizer=tokenizer or MeanTokenizer(), batch=3, **choice)
    given: dict[str, Any] = {"edits": None, "questions": None, "say": quiet, **more}
    edits, questions = given.pop("edits"), given.pop("questions")
    encode([str(one) for one in sources], edits, questions, work, out, **given)
    return Shards.open(out, "mean")


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != VERIFIED}


def test_a_corpus_becomes_shards(
    tars: list[Path], edits: Path, questions: Path, tmp_path: Path
) -> None:
    told: list[str] = []
    given: dict[str, Any] = {"edits": edits, "questions": questions, "say": told.append}
    shards = encoded(tars, tmp_path / "shards", **given)
    assert shards.counts == {"pictures": 4, "pair": 4, "edit": 2, "question": 2}
    assert (shards.size, shards.grid, shards.codes) == (4, 2, 10)
    assert [shards.picture(n)[1] for n in range(4)] == [(3,) * 4, (3,) * 4, (3,) * 4, (9,) * 4]
    assert [shards.document(4)[name] for name in ("source", "target")] == ["red", "green"]
    assert shards.document(7)["picture"] == "white"
    assert told[:4] == [
        f"{tars[0]}: 2 images encoded",
        f"{tars[1]}: 2 images encoded",
        "4 images read, 0 left out by id, 6 damaged things skipped",
        "1 documents left out: an image of theirs is not there",
    ]
    assert told[4] == "1 of other kinds ignored (1 .md)"
    skipped = [
        "t-0/bad",
        "edits.jsonl.gz line 4",
        "edits.jsonl.gz line 5",
        "questions.jsonl line 3",
        "questions.jsonl line 4",
        "questions.jsonl line 5",
    ]
    assert [line.split(":")[0] for line in told[5:]] == [f"skipped {what}" for what in skipped]
    lines = (shards.folder / "skipped.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["what"] for line in lines] == skipped
    assert all(json.loads(line)["why"] for line in lines)
    shards.verify()


def test_nothing_that_touches_a_held_out_picture_goes_in(
    tars: list[Path], edits: Path, questions: Path, tmp_path: Path
) -> None:
    out, held = tmp_path / "shards", {"white"}
    given: dict[str, Any] = {"edits": edits, "questions": questions}
    encoded(tars, out, exclude=held, **given)
    assert "white" not in (out / "pictures.jsonl").read_text()
    assert "white" not in (out / "documents.jsonl").read_text()
    lines = list(text_lines(tars, edits, questions, held, say=quiet))
    assert not [line for line in lines if "white" in line or "bright" in line]
    shards = encoded(tars, out, keep=held, replace=True, **given)
    assert shards.counts == {"pictures": 1, "pair": 1, "question": 1}
    assert [shards.document(n)["picture"] for n in range(2)] == ["white", "white"]


def test_many_processes_make_the_same_shards(tars: list[Path], edits: Path, tmp_path: Path) -> None:
    alone = encoded(tars, tmp_path / "alone", edits=edits)
    work, out, given = Work(image_tokenizer=MeanTokenizer()), tmp_path / "shared", {"say": quiet}
    sources = [str(tar) for tar in tars]
    assert encode(sources, edits, None, work, out, dist=Rank(rank=1, size=2), **given) == {}
    assert len(list((tmp_path / "shared.parts").iterdir())) == 1
    counts = encode(sources, edits, None, work, out, dist=Rank(rank=0, size=2), **given)
    assert counts == alone.counts
    assert bytes_of(out) == bytes_of(alone.folder)
    assert not (tmp_path / "shared.parts").exists()


class Killed(Exception):
    pass


class Mortal(MeanTokenizer):
    """Dies at its second batch."""

    batches = 0

    def encode(self, pixels_B3HW: Tensor) -> Tensor:
        self.batches += 1
        if self.batches == 2:
            raise Killed
        return super().encode(pixels_B3HW)


def test_what_a_killed_run_finished_is_not_done_again(tars: list[Path], tmp_path: Path) -> None:
    whole = encoded(tars, tmp_path / "whole")
    out = tmp_path / "killed"
    with pytest.raises(Killed):
        encoded(tars, out, Mortal())
    assert not out.exists()
    after = Mortal()  # one batch is left
    assert bytes_of(encoded(tars, out, after).folder) == bytes_of(whole.folder)
    assert after.batches == 1

    with pytest.raises(Killed):
        encoded(tars, tmp_path / "changed", Mortal())
    shutil.copyfile(tars[1], tars[0])  # another file under the first one's name
    shards = encoded(tars[:1], tmp_path / "changed", Mortal())
    assert [picture["id"] for picture in shards.every_picture()] == ["blue", "white"]


def test_of_two_pictures_with_one_id_the_first_comes(tars: list[Path], tmp_path: Path) -> None:
    copy = tmp_path / "u-2.tar"
    shutil.copyfile(tars[0], copy)
    shards = encoded([*tars, copy], tmp_path / "shards")
    assert shards.counts["pictures"] == 4
    text = (shards.folder / "skipped.jsonl").read_text("utf-8")
    assert "an image of an earlier source has its id 'red'" in text


def test_too_many_damaged_things_stop_it(
    tars: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "FEW", 3)
    out = tmp_path / "shards"
    complaint = r"t-0\.tar: 1 of 3 things read are damaged, 33%; at most 30% may be"
    for order in (tars, tars[::-1]):
        with pytest.raises(UserError, match=complaint):
            encoded(order, out, most_bad=0.3)
    assert not out.exists()
    monkeypatch.setattr(encoding, "FEW", 4)  # no source has so many, all have
    with pytest.raises(UserError, match=r"all sources: 1 of 5 things read are damaged, 20%"):
        encoded(tars, out, most_bad=0.1)
    assert encoded(tars, out, most_bad=0.2).pictures == 4


def test_folders_of_parts_are_ours_alone(tars: list[Path], tmp_path: Path) -> None:
    parts = tmp_path / "shards.parts"
    parts.mkdir()
    (parts / "precious.txt").touch()
    with pytest.raises(UserError, match=r"is for parts but holds 'precious\.txt'; name another"):
        encoded(tars, tmp_path / "shards")
    assert (parts / "precious.txt").exists()
    with pytest.raises(UserError, match="would lie among the images of"):
        encoded([tmp_path], tmp_path / "out")
    with pytest.raises(UserError, match="File name too long"):
        encoded(tars, tmp_path / ("x" * 300))


def test_a_part_that_is_not_there_is_named(tars: list[Path], tmp_path: Path) -> None:
    work, sources = Work(image_tokenizer=MeanTokenizer()), [str(tar) for tar in tars]
    given: dict[str, Any] = {"dist": Rank(rank=0, size=2), "say": quiet}
    with pytest.raises(UserError, match="is not there: another run took it, or not all processes"):
        encode(sources, None, None, work, tmp_path / "shards", **given)


def test_bad_files_are_refused_and_leave_nothing(
    tars: list[Path], edits: Path, tmp_path: Path
) -> None:
    edits.write_bytes(edits.read_bytes()[:-9])
    out = tmp_path / "shards"
    with pytest.raises(UserError, match=r"edits\.jsonl\.gz: missing, damaged or cut short"):
        encoded(tars, out, edits=edits)
    with pytest.raises(UserError, match=r"none\.jsonl: no such file"):
        encoded(tars, out, edits=tmp_path / "none.jsonl")
    with pytest.raises(UserError, match=r"none\.tar: no such tar file"):
        encoded([tmp_path / "none.tar"], out)
    with pytest.raises(UserError, match="there are no images to write"):
        encoded(tars, out, keep={"mauve"})
    assert not out.exists()
    out.mkdir()
    with pytest.raises(UserError, match="it is a folder; name another"):
        encoded(tars, out)
