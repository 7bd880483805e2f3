"""The commands of memories, from tars to what is found, through the real command line."""

import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from cm3leon.cli import main
from cm3leon.pipeline import CM3Leon
from retrieval.encoder import SmallEmbedder
from tokenizer.data.tars import Tally, find_tars, read_samples
from tokenizer.pixels import open_image, read_info

Capture = pytest.CaptureFixture[str]
pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute")


@pytest.fixture(scope="module")
def about(small_encoder: Path, tiny_folder: Path) -> list[str]:
    return ["--encoder", str(small_encoder), "--model", str(tiny_folder)]


@pytest.fixture(scope="module")
def memory(about: list[str], corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory") / "memory"
    assert (
        main(["index", "build", str(corpus_folder / "t*.tar"), "--out", str(folder), *about]) == 0
    )
    return folder


def ids(corpus_folder: Path) -> list[str]:
    return [s.metadata["id"] for s in read_samples(find_tars(corpus_folder, "t"), Tally())]


def run(capsys: Capture, *argv: str) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main(list(argv))
    return status, *capsys.readouterr()


def test_a_memory_is_built_and_told_of(memory: Path, corpus_folder: Path, capsys: Capture) -> None:
    status, out, _ = run(capsys, "index", "info", str(memory), "--json")
    assert status == 0
    table = json.loads(out)
    assert table["documents"] == len(ids(corpus_folder))
    assert table["encoder"].startswith("small-")
    assert 0.9 <= table["near"] <= 1
    status, out, _ = run(capsys, "index", "verify", str(memory))
    assert (status, out.split()[0]) == (0, str(len(ids(corpus_folder))))


def test_a_build_given_again_adds_nothing(
    memory: Path, about: list[str], corpus_folder: Path, capsys: Capture
) -> None:
    words = ["index", "build", str(corpus_folder / "t*.tar"), "--out", str(memory), *about]
    status, out, err = run(capsys, *words)
    assert (status, out) == (0, f"{len(ids(corpus_folder))} documents\n")
    assert ": 0 documents, " in err


def test_a_limit_is_the_same_however_often_it_is_given(
    tmp_path: Path, about: list[str], corpus_folder: Path, capsys: Capture
) -> None:
    tars, out = str(corpus_folder / "test-0.tar"), str(tmp_path / "memory")
    for _ in range(2):
        words = ["index", "build", tars, "--out", out, "--limit", "3", *about]
        assert run(capsys, *words)[:2] == (0, "3 documents\n")


def test_a_memory_is_searched_by_words_picture_or_both(
    memory: Path, about: list[str], corpus_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    sample = next(iter(read_samples(find_tars(corpus_folder, "t"), Tally())))
    picture = tmp_path / "query.png"
    open_image(sample.picture).save(picture)
    for words in (["a fox"], ["--image", str(picture)], ["a fox", "--image", str(picture)]):
        status, out, _ = run(capsys, "index", "search", str(memory), *words, *about, "--json")
        assert status == 0
        found = json.loads(out)["found"]
        assert len(found) == min(10, len(ids(corpus_folder)))
        scores = [row["score"] for row in found]
        assert scores == sorted(scores, reverse=True)
        assert {row["id"] for row in found} <= set(ids(corpus_folder))
    sheet = tmp_path / "sheet.png"
    words = ["index", "search", str(memory), "a fox", *about, "-n", "2", "--sheet", str(sheet)]
    status, out, _ = run(capsys, *words)
    assert (status, len(out.splitlines())) == (0, 2)
    assert open_image(sheet).width > 200


def test_documents_are_removed_and_added_again(
    tmp_path: Path, about: list[str], corpus_folder: Path, capsys: Capture
) -> None:
    folder, names = str(tmp_path / "memory"), ids(corpus_folder)
    tars = str(corpus_folder / "t*.tar")
    assert run(capsys, "index", "build", tars, "--out", folder, *about)[0] == 0
    status, out, _ = run(capsys, "index", "remove", folder, names[0])
    assert (status, out) == (0, f"{len(names) - 1} documents\n")
    status, out, _ = run(capsys, "index", "compact", folder, "--memory-budget", "1MB")
    assert (status, out) == (0, f"{len(names) - 1} documents, exact\n")
    assert run(capsys, "index", "add", folder, tars, *about)[:2] == (0, f"{len(names)} documents\n")


def test_pictures_are_painted_with_documents_in_front(
    memory: Path, about: list[str], tmp_path: Path, capsys: Capture
) -> None:
    def paint(name: str, *words: str) -> bytes:
        out = tmp_path / f"{name}.png"
        status, said, err = run(capsys, "generate", *words, "--out", str(out), *about[2:], "--json")
        assert status == 0, err
        used = json.loads(said)["retrieved"]
        assert used == json.loads(read_info(out).get("retrieved", "[]"))
        found[name] = [row["id"] for row in used]
        return out.read_bytes()

    found: dict[str, list[str]] = {}
    bank = ["--memory", str(memory), *about[:2]]
    plain = paint("plain", "a fox")
    with_two = paint("two", "a fox", *bank)
    assert (found["plain"], len(found["two"])) == ([], 2)
    assert with_two != plain == paint("off", "a fox", *bank, "--retrieve", "0")
    paint("one", "a fox", *bank, "--retrieve", "1")
    assert found["one"] == found["two"][:1]
    assert with_two == paint("again", "--like", str(tmp_path / "two.png"), *bank)
    words = ["generate", "--like", str(tmp_path / "two.png"), "--out", str(tmp_path / "x.png")]
    status, _, err = run(capsys, *words, *about[2:])
    assert status == 1
    assert "was generated with documents of a memory" in err


def test_pictures_are_edited_and_captioned_with_documents_in_front(
    memory: Path, about: list[str], tmp_path: Path, capsys: Capture
) -> None:
    picture, out = str(tmp_path / "white.png"), str(tmp_path / "edited.png")
    Image.new("RGB", (16, 16), "white").save(picture)
    bank = ["--memory", str(memory), *about, "--retrieve", "1", "--json"]
    status, said, err = run(capsys, "edit", picture, "add a fox", "--out", out, *bank)
    assert status == 0, err
    assert len(json.loads(said)["retrieved"]) == 1
    status, said, err = run(capsys, "caption", picture, *bank)
    assert status == 0, err
    assert {"score", "id", "caption", "licence", "credit"} == json.loads(said)["retrieved"][
        0
    ].keys()


def test_words_retrieve_nothing_below_the_least_score(
    about: list[str], corpus_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    memory, picture = str(tmp_path / "memory"), str(tmp_path / "white.png")
    Image.new("RGB", (16, 16), "white").save(picture)
    tars = str(corpus_folder / "test-0.tar")
    words = ["index", "build", tars, "--out", memory, "--least", "1", *about]
    assert run(capsys, *words)[0] == 0
    assert json.loads(run(capsys, "index", "info", memory, "--json")[1])["least"] == 1
    bank = ["--memory", memory, *about, "--retrieve", "1", "--json"]
    out = ["--out", str(tmp_path / "x.png")]
    status, said, err = run(capsys, "generate", "a fox", *out, *bank)
    assert (status, json.loads(said)["retrieved"]) == (0, [])
    assert "only 0 of 1 documents keep the rules of retrieval" in err
    status, said, err = run(capsys, "caption", picture, *bank)  # the number is one of words
    assert (status, len(json.loads(said)["retrieved"])) == (0, 1)


@pytest.mark.parametrize(
    ("words", "status", "complaint"),
    [
        ("--model {tiny} --retrieve 2", 2, "--encoder and --retrieve go with --memory"),
        ("--model {tiny} --encoder somewhere", 2, "--encoder and --retrieve go with --memory"),
        ("--encoder somewhere", 1, "somewhere: no model folder there"),
        ("--memory {empty} {about}", 1, "there is no memory at"),
        ("--memory {memory} {about} --retrieve 8", 1, "--retrieve is 8, but"),
        ("--memory {memory} {about} --retrieve 9", 2, "less than or equal to 8"),
        ("--memory {memory} {other}", 1, "holds codes of image tokenizer"),
    ],
)
def test_retrieval_that_cannot_be_is_one_line(
    memory: Path, about: list[str], other_folder: Path, tiny_folder: Path, tmp_path: Path,
    capsys: Capture, words: str, status: int, complaint: str,
) -> None:  # fmt: skip
    other = " ".join([*about[:2], "--model", str(other_folder)])
    places = {"memory": memory, "empty": tmp_path, "about": " ".join(about), "other": other}
    places["tiny"] = tiny_folder
    out = tmp_path / "x.png"
    argv = ["generate", "a fox", "--out", str(out), *words.format(**places).split()]
    found, _, err = run(capsys, *argv)
    assert (found, out.exists()) == (status, False)
    assert complaint in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "status", "complaint"),
    [
        ("search {memory} {about}", 2, "give words, or --image"),
        ("search {memory} a --encoder {empty}", 1, "it has no config.json"),
        ("search {empty} a {about}", 1, "there is no memory at"),
        ("info {empty}", 1, "there is no memory at"),
        ("remove {memory} nobody", 1, "has no document 'nobody'"),
        ("compact {memory} --memory-budget lots", 2, "'lots' is no size"),
        ("compact {memory} --memory-budget 0.01KB", 1, "need at least"),
        ("build {empty}/none-*.tar --out {empty}/m {about}", 1, "no tar is found"),
        ("build {empty}/bad.tar --out {empty}/m {about}", 1, "documents; a memory needs two"),
        ("build {empty}/bad.tar --out {empty} {about}", 1, "holds other things"),
        ("build {hollow} --out {empty}/m {about}", 1, "no tar and no image (.jpg"),
        ("build {hollow}/{{3..1}}.tar --out {empty}/m {about}", 1, "means 0 sources"),
        ("build pipe:false --out {empty}/m {about}", 1, "the command ended with status 1"),
        ("build {empty}/bad.tar --out {empty}/m --encoder {hollow}", 1, "it has no config.json"),
        ("build {empty}/bad.tar --out {empty}/m {about} --memory-budget 2", 2, "'2' is no size"),
        ("add {memory} {hollow} {about}", 1, "no tar and no image (.jpg"),
        ("compact default", 1, "the memory that ships is not changed; copy"),
    ],
)
def test_what_cannot_be_is_one_line(
    memory: Path, about: list[str], tmp_path: Path, capsys: Capture,
    words: str, status: int, complaint: str,
) -> None:  # fmt: skip
    with tarfile.open(tmp_path / "bad.tar", "w"):
        pass
    (tmp_path / "hollow").mkdir()
    places = {
        "memory": memory, "empty": tmp_path, "hollow": tmp_path / "hollow",
        "about": " ".join(about), "model": " ".join(about[2:]),
    }  # fmt: skip
    found, out, err = run(capsys, "index", *words.format(**places).split())
    assert (found, out) == (status, "")
    assert complaint in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("error: ")


def test_a_memory_of_another_encoder_is_refused(
    memory: Path, tiny_folder: Path, small_encoder: Path, tmp_path: Path, capsys: Capture
) -> None:
    embedder = SmallEmbedder.load(small_encoder)
    embedder.save(tmp_path / "same", card="another card")
    assert SmallEmbedder.load(tmp_path / "same").id == embedder.id  # its vectors are the same
    embedder.net.text_out.weight.mul_(2)
    embedder.save(tmp_path / "other")
    words = ["index", "search", str(memory), "a", "--encoder", str(tmp_path / "other")]
    status, _, err = run(capsys, *words)
    assert status == 1
    assert "was made by the encoder small-" in err


def test_codes_of_the_memory_are_those_of_the_model(
    memory: Path, tiny: CM3Leon, corpus_folder: Path
) -> None:
    from retrieval.memory import Memory

    bank = Memory.open(memory)
    sample = next(iter(read_samples(find_tars(corpus_folder, "t"), Tally())))
    metadata, codes = bank.row(sample.metadata["id"])
    assert tuple(codes) == tiny.to_picture(open_image(sample.picture)).codes
    assert metadata["captions"] == sample.metadata["captions"]
