"""A decoder's whole run: it learns by heart, a kill changes nothing, what does not fit is said."""

import math
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cm3leon import checkpoint, grammar, prompts
from cm3leon.__main__ import main as command
from cm3leon.generate import Streams, generate
from cm3leon.pipeline import CM3Leon
from cm3leon.sampling import Sampling
from tokenizer import config as settings
from tokenizer.data.shard_writer import write_shards
from tokenizer.data.shards import Shards
from tokenizer.document import Picture
from tokenizer.errors import UserError
from tokenizer.pixels import open_image
from tokenizer.text import TextTokenizer
from train.metrics import read
from train.pretrain import main

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).parents[2]
KILLED = 86  # steps of a run that is then killed; its last state is that of step 80
Start = Callable[..., Path]

KILL = """
import os, signal, sys
import torch
from pathlib import Path
from train import loop, pretrain

torch.set_num_threads(1)
real, steps = loop.train_step, 0

def train_step(*given):
    global steps
    steps += 1
    if steps > int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*given)

loop.train_step = train_step
pretrain.main(sys.argv[1], [], Path(sys.argv[2]), "none", None, print)
"""


def lines(run: Path) -> list[dict[str, Any]]:
    """The log of a run without its clocks."""
    clocks = ("seconds", "tokens_per_second", "waited", "memory_gb")
    return [{k: v for k, v in line.items() if k not in clocks} for line in read(run)]


@pytest.fixture(scope="module")
def whole(lesson: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of the lesson that nothing disturbed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run = tmp_path_factory.mktemp("runs") / "whole"
    assert main(str(lesson), [], run, "none", None, print) == run / "model"
    torch.set_num_threads(threads)
    return run


@pytest.fixture
def start(lesson: Path, tmp_path: Path) -> Start:
    """Train the lesson, with changes, in the folder `run`."""

    def start(*changes: str, resume: str = "none", init: Path | None = None, **others: Any) -> Path:
        main(
            others.get("recipe", str(lesson)),
            changes,
            tmp_path / others.get("run", "run"),
            resume,
            None if init is None else str(init),
            others.get("say", print),
            others.get("device", "cpu"),
            others.get("minutes", math.inf),
        )
        return tmp_path / others.get("run", "run")

    return start


def test_it_learns_eight_documents_by_heart(whole: Path, lesson: Path) -> None:
    log = lines(whole)
    assert len(log) == 160
    assert log[0]["loss"] > 6.5  # about ln 832: it knows nothing
    # where a mask begins nobody can know, so the loss cannot come to 0
    assert sum(line["loss"] for line in log[-10:]) / 10 < 0.5
    assert log[79]["held_out_image_bits"] < 1.0  # of 5
    assert log[159]["held_out_image_bits"] < 0.2
    assert log[159]["held_out_text_bits"] < 0.2

    leon = CM3Leon.from_pretrained(whole / "model")
    shards = Shards.open(settings.read(lesson)["shards"])  # type: ignore[arg-type]
    pictures = {metadata["id"]: Picture(codes) for metadata, codes in map(shards.picture, range(4))}
    captions = {metadata["id"]: metadata["captions"][0] for metadata in shards.every_picture()}
    likeliest = Sampling(temperature=0.0)
    codec = leon.codec

    def recite(prompt: tuple[int, ...], rule: grammar.Grammar) -> list[int]:
        (row,) = generate(leon.model, Streams((prompt,)), rule, likeliest, [0])
        return row

    paint = grammar.picture(codec.vocabulary, codec.picture_codes)
    say = grammar.text(codec.vocabulary, 40)
    for name, picture in pictures.items():
        row = recite(codec.open(prompts.paint(captions[name])[0]), paint)
        assert codec.decode_codes(row) == picture.codes
        row = recite(codec.infill(prompts.describe(picture, asked=False)), say)
        assert codec.decode_text(row) == f" {captions[name]}"
    for number in range(shards.documents):
        document = shards.document(number)
        if document["task"] == "edit":
            asked, *_ = prompts.change(document["instructions"][0], pictures[document["source"]])
            row = recite(codec.open(asked), paint)
            assert codec.decode_codes(row) == pictures[document["target"]].codes
        elif document["task"] == "question":
            asked = prompts.ask(document["question"], pictures[document["picture"]])
            answer = codec.decode_text(recite(codec.infill(asked), say))
            assert answer.strip() == document["answer"]


def test_a_run_killed_half_way_goes_on_to_the_last_bit(
    whole: Path, lesson: Path, start: Start, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    died = subprocess.run(
        [sys.executable, "-c", KILL, str(lesson), str(run), str(KILLED)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert lines(run) == lines(whole)[:KILLED]
    assert not (run / "model").exists()
    with (run / "log.jsonl").open("a") as file:
        file.write('{"step": 87, "lo')  # what a kill may leave
    said: list[str] = []
    start(resume="latest", say=said.append)
    assert said[-1] == "resumed at step 80"
    assert lines(run) == lines(whole)
    for name in ("state-00000160/share-00000-of-00001.safetensors", "model/model.safetensors"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()


def test_a_finished_run_is_not_run_again(whole: Path, start: Start, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    before = checkpoint.hash_of(whole / "model")
    run = start(resume="latest")
    assert read(run) == read(whole)
    assert checkpoint.hash_of(run / "model") == before


def test_a_run_stopped_by_the_clock_goes_on_the_same(
    whole: Path, start: Start, tmp_path: Path
) -> None:
    said: list[str] = []
    run = start(minutes=0.0, say=said.append)
    assert said[-1] == "stopped after step 1 of 160; go on with --resume latest"
    assert not (run / "model").exists()
    start(minutes=0.0, resume="latest", say=said.append)
    assert said[-1].startswith("stopped after step 2 of 160")
    assert lines(run) == lines(whole)[:2]


def test_the_same_seed_gives_the_same_run(start: Start) -> None:
    runs = [start("steps=6", run=name) for name in ("one", "two")]
    assert lines(runs[0]) == lines(runs[1])
    other = lines(start("steps=6", "seed=1", run="three"))
    assert all(a["loss"] != b["loss"] for a, b in zip(lines(runs[0]), other, strict=True))


def test_the_export_is_a_model(whole: Path, tiny_folder: Path) -> None:
    leon = CM3Leon.from_pretrained(whole / "model")
    assert leon.codec.vocabulary.image_codes == 32
    (picture,) = leon.text_to_image("a blue heart")
    assert picture.size == (16, 16)
    assert isinstance(leon.caption(picture)[0], str)
    for part in ("tokenizer.model", "image_tokenizer/config.json"):
        assert (whole / "model" / part).read_bytes() == (tiny_folder / part).read_bytes()


def test_the_recipe_is_kept_with_the_vocabulary_that_was_computed(
    whole: Path, tiny: CM3Leon, start: Start
) -> None:
    kept = settings.read(whole / "recipe.yaml")
    assert kept["model"]["vocabulary"] == 4 + 32 + tiny.codec.text.pieces + 2 + 512 + 2  # type: ignore[index]
    with pytest.raises(UserError, match=r"model.vocabulary is 833, .* make \d+ token ids; leave"):
        start("model.vocabulary=833")
    # the kept recipe begins the same run
    again = start("steps=2", "validate_every=99", recipe=str(whole / "recipe.yaml"))
    assert lines(again)[0] == lines(whole)[0]


def test_samples_and_states_are_written_as_asked(whole: Path) -> None:
    names = sorted(path.name for path in whole.iterdir())
    assert names == [
        ".lock", "log.jsonl", "model", "recipe.yaml", "sample-00000080.png", "sample-00000160.png",
        "state-00000140", "state-00000160",
    ]  # fmt: skip
    assert open_image(whole / "sample-00000160.png").width >= 16


def test_a_run_is_not_begun_twice_nor_resumed_as_another(start: Start) -> None:
    run = start("steps=3")
    before = (run / "log.jsonl").read_bytes()
    with pytest.raises(UserError, match="holds a run already; go on with --resume latest"):
        start("steps=3")
    with pytest.raises(UserError, match=r"begun with schedule.peak = 0.008, now it is 0.1; resume"):
        start("steps=3", "schedule.peak=0.1", resume="latest")
    with pytest.raises(UserError, match="begun with batch = 8, now it is 4"):
        start("steps=3", "batch=4", resume="latest")
    assert (run / "log.jsonl").read_bytes() == before
    start("steps=3", "save_every=1", "sample_prompts=[two foxes]", resume="latest")


def test_a_state_of_another_model_is_refused(start: Start) -> None:
    run = start("steps=3", "save_every=3", run="one")
    other = start("steps=3", "save_every=3", "model.width=32", run="other")
    shutil.rmtree(run / "state-00000003")
    shutil.copytree(other / "state-00000003", run / "state-00000003")
    with pytest.raises(UserError, match=r"state-00000003 is a state of another model: .*size mism"):
        start("steps=3", "save_every=3", run="one", resume="latest")


def test_init_starts_from_weights_with_a_new_optimiser(whole: Path, start: Start) -> None:
    released = load_file(whole / "model" / "model.safetensors")
    run = start("steps=4", "model.z_loss=1e-4", init=whole / "model")
    begun = load_file(run / "state-00000000" / "share-00000-of-00001.safetensors")
    assert begun.keys() == {f"weights.{name}" for name in released}  # and no moments
    assert all(torch.equal(begun[f"weights.{k}"], v.float()) for k, v in released.items())
    assert lines(run)[0]["loss"] < 1.5
    # killed before its first state, it goes on from those weights without the model
    log = lines(run)
    for path in (run / "model", run / "state-00000004"):
        shutil.rmtree(path)
    start("steps=4", "model.z_loss=1e-4", resume="latest", init=Path("gone"))
    assert lines(run) == log


def test_init_refuses_a_model_that_does_not_fit(
    whole: Path, other_folder: Path, start: Start, tmp_path: Path
) -> None:
    model = whole / "model"
    with pytest.raises(UserError, match="has layers 2, the recipe asks for 3"):
        start("model.layers=3", init=model)
    with pytest.raises(UserError, match="has vocabulary "):
        start("model.context=160", "model.width=32", init=other_folder)
    leon = CM3Leon.from_pretrained(model)
    same_size = leon.codec.text.pieces
    text = TextTokenizer.train(["words that nobody else has learnt, zebras"], same_size)
    (tmp_path / "other.model").write_bytes(text.model)
    with pytest.raises(UserError, match="knows another text_tokenizer; name the one"):
        start(f"text_tokenizer={tmp_path / 'other.model'}", init=model)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("rows.kinds={emoji: 1.0}", "rows ask for 'pair' of 'emoji' but the shards have 'picture'"),
        ("sample_prompts=['']", "the prompt is empty"),
        ("model.context=20", r"\d+ ids and 16 more to generate do not fit into the model's 20"),
        ("shards=nowhere", "'nowhere'"),
        ("image_tokenizer=nowhere", "nowhere: not an image tokenizer"),
        ("text_tokenizer=nowhere", "nowhere"),
        ("optimizer.betas=[0.9, 1.0]", "each must be at least 0 and below 1"),
        ("optimizer.clip=0", "clip must be above 0"),
        ("seed=-1", "seed must be at least 0"),
        ("batch=0", "batch must be at least 1"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_written(
    start: Start, tmp_path: Path, change: str, complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint) as error:
        start(change)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_other_shards_devices_and_folders_are_refused(start: Start, tmp_path: Path) -> None:
    about: dict[str, Any] = {"size": 16, "grid": 4, "codes": 32}
    mute = [({"id": "mute", "captions": []}, [0] * 16)]
    write_shards(tmp_path / "other", mute, [], image_tokenizer_hash="other", **about)
    with pytest.raises(UserError, match="was made with image tokenizer other"):
        start(f"shards={tmp_path / 'other'}")
    with pytest.raises(UserError, match="was made with image tokenizer other"):
        start(f"validation={tmp_path / 'other'}")
    with pytest.raises(UserError, match="unknown device 'abacus'"):
        start(device="abacus")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make the run folder"):
        start(run="file")


def test_held_out_pictures_need_captions(start: Start, tiny: CM3Leon, tmp_path: Path) -> None:
    about: dict[str, Any] = {"size": 16, "grid": 4, "codes": 32}
    long = [
        ({"id": "mute", "captions": []}, [0] * 16),
        ({"id": "long", "captions": ["word " * 100]}, [0] * 16),
    ]
    hashed = tiny.image_tokenizer.hash
    write_shards(tmp_path / "long", long, [], image_tokenizer_hash=hashed, **about)
    with pytest.raises(UserError, match="has no image with a caption that fits"):
        start(f"validation={tmp_path / 'long'}")


def test_a_loss_that_is_no_number_is_one_line(
    lesson: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")
    changes = ("schedule.peak=1e30", "schedule.warmup=0")
    assert command(["pretrain", str(lesson), *changes, "--out", run, "--device", "cpu"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "begin a new run with a lower schedule.peak" in errors[0]
    assert "Traceback" not in err
    assert [line["step"] for line in read(tmp_path / "run")] == [1]
