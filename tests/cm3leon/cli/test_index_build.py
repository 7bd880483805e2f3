"""Building a memory at the command line: what is odd is told, what cannot be is one line."""

import io
import json
import resource
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from cm3leon.cli import main
from retrieval.neighbours import read_neighbours
from tokenizer.data.shards import Shards
from tokenizer.pixels import open_image

Capture = pytest.CaptureFixture[str]
pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute")


@pytest.fixture(scope="module")
def about(small_encoder: Path, tiny_folder: Path) -> list[str]:
    return ["--encoder", str(small_encoder), "--model", str(tiny_folder)]


def run(capsys: Capture, *argv: str) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main(list(argv))
    return status, *capsys.readouterr()


def write_pictures(folder: Path, names: str) -> None:
    """Pictures of one colour each with a .txt beside them, but for those named in capitals."""
    folder.mkdir()
    for number, name in enumerate(names.split()):
        Image.new("RGB", (16, 16), (20 * number, 90, 255 - 20 * number)).save(
            folder / f"{name}.png"
        )
        if name.islower():
            (folder / f"{name}.txt").write_text(f"a {name}")


def add_members(tar: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(tar, "a") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def test_what_is_odd_is_counted_and_named_and_the_rest_is_kept(
    tmp_path: Path, about: list[str], corpus_folder: Path, capsys: Capture
) -> None:
    """Pictures without a caption, files of other kinds, a tar cut short, ids that come twice."""
    write_pictures(tmp_path / "mine", "cow BARE wolf")
    (tmp_path / "mine" / "cow.json").write_text('{"id": "p0"}')
    (tmp_path / "mine" / "virus.exe").write_bytes(b"MZ")
    tar, cut = tmp_path / "a.tar", tmp_path / "cut.tar"
    tar.write_bytes((corpus_folder / "test-0.tar").read_bytes())
    add_members(
        tar, {"weights.pkl": b"\x80", "run.exe": b"MZ", "x.png": b"no image", "x.txt": b"x"}
    )
    cut.write_bytes((corpus_folder / "test-0.tar").read_bytes()[:2500])
    out, sources = str(tmp_path / "memory"), [str(tar), str(tmp_path / "mine"), str(cut)]
    status, said, err = run(capsys, "index", "build", *sources, "--out", out, *about)
    assert (status, said) == (0, "7 documents\n"), err
    lines = [line.partition(" (PNG")[0] for line in err.splitlines()]
    lines = [line for line in lines if "documents, " not in line]
    assert lines[:-2] == [
        "7 images read, 0 left out by id, 5 damaged things skipped",
        "3 of other kinds ignored (2 .exe, 1 .pkl)",
        "skipped a/x: the image: is not an image in a format read here",
        "skipped BARE: no .json or .txt stands beside it",
        "skipped cow: an image of an earlier source has its id 'p0'",
        "skipped cut.tar: damaged or cut short here; the rest of this tar was not read",
        "skipped cut/p0: an image of an earlier source has its id 'p0'",
    ]


def test_a_build_within_a_budget_tells_its_recall(
    tmp_path: Path, about: list[str], corpus_folder: Path, capsys: Capture
) -> None:
    write_pictures(tmp_path / "mine", "cow wolf hen")
    sources, out = [str(corpus_folder / "t*.tar"), str(tmp_path / "mine")], tmp_path / "memory"
    words = ["index", "build", *sources, "--out", str(out), *about]
    status, said, err = run(capsys, *words)
    assert (status, said) == (0, "9 documents\n")
    assert "index: exact, 32 bytes a vector" in err.splitlines()
    assert "recall" not in err
    status, said, err = run(capsys, *words, "--memory-budget", "0.2KB")
    assert (status, said) == (0, "9 documents\n")
    assert [line for line in err.splitlines() if line.startswith(("index", "recall"))] == [
        "index: IVF1,SQ8, 19.6 bytes a vector",
        "recall against exact by image: @1 1.000, @10 1.000",
        "recall against exact by text: @1 1.000, @10 1.000",
        "recall against exact by both: @1 1.000, @10 1.000",
    ]


def test_a_full_disk_is_one_line_and_the_memory_stays(
    tmp_path: Path, about: list[str], corpus_folder: Path, capsys: Capture
) -> None:
    out, tars = tmp_path / "memory", str(corpus_folder / "t*.tar")
    assert run(capsys, "index", "build", tars, "--out", str(out), *about)[0] == 0
    names = sorted(path.name for path in out.iterdir())
    write_pictures(tmp_path / "mine", "cow wolf hen")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))  # no file may be larger
    try:
        found = run(capsys, "index", "add", str(out), str(tmp_path / "mine"), *about)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert found[:2] == (1, "")
    assert found[2].splitlines()[-1].startswith("error: cannot write ")
    assert sorted(path.name for path in out.iterdir()) == names
    assert run(capsys, "index", "verify", str(out))[:2] == (
        0,
        "6 documents in 1 segments are whole\n",
    )


def test_a_build_writes_the_neighbours_of_shards(
    about: list[str], corpus_folder: Path, shards_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = ["index", "build", str(corpus_folder / "test-0.tar"), "--out", str(tmp_path / "m")]
    status, _, err = run(capsys, *words, *about, "--neighbours", str(tmp_path / "none"))
    assert (status, (tmp_path / "m").exists()) == (1, False)
    status, _, err = run(capsys, *words, *about, "--neighbours", str(shards_folder))
    assert status == 0, err
    assert "6 of 6 images have neighbours" in err
    shards = Shards.open(shards_folder)
    table_PN = read_neighbours(tmp_path / "m" / "neighbours", shards)
    assert table_PN.shape == (6, 4)
    for own, row in enumerate(table_PN.tolist()):
        found = [one for one in row if one >= 0]
        assert len({own, *found}) == len(found) + 1
    # the memory is none the worse for it, and the table is made anew
    assert run(capsys, *words, *about, "--neighbours", str(shards_folder))[0] == 0
    assert run(capsys, "index", "verify", str(tmp_path / "m"))[0] == 0


def test_the_memory_that_ships_is_whole_and_searched_by_default(
    capsys: Capture, tmp_path: Path
) -> None:
    status, out, _ = run(capsys, "index", "info", "default", "--json")
    table = json.loads(out)
    assert (status, table["documents"]) == (0, 17_500)
    assert run(capsys, "index", "verify", "default")[0] == 0
    status, out, _ = run(capsys, "index", "search", "default", "red heart, Noto emoji", "--json")
    found = json.loads(out)["found"]
    assert (status, len(found)) == (0, 10)
    assert sum("heart" in one["caption"] for one in found) >= 5
    sheet = tmp_path / "found.png"
    words = ["index", "search", "default", "--image", "sheet", "--sheet", "sheet"]
    Image.new("RGB", (64, 64), "red").save(sheet)
    assert run(capsys, *[str(sheet) if word == "sheet" else word for word in words])[0] == 0
    assert open_image(sheet).width > 500
