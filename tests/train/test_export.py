"""A state of a run becomes a model without the run being touched."""

from pathlib import Path

import pytest
import torch

from cm3leon import checkpoint
from cm3leon.__main__ import main as command
from tokenizer.errors import UserError
from train import pretrain
from train.export import main

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run(lesson: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps with the states of steps 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    changes = ("steps=6", "save_every=2", "keep=9", "validation=null", "sample_prompts=[]")
    pretrain.main(str(lesson), changes, folder, "none", None, print, "cpu")
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(folder).model.state_dict()


def test_the_last_state_is_what_the_run_itself_exported(run: Path, tmp_path: Path) -> None:
    said: list[str] = []
    before = sorted(path.name for path in run.iterdir())
    assert main(run, tmp_path / "model", say=said.append) == tmp_path / "model"
    assert said == ["the weights after step 6 of 6"]
    assert checkpoint.hash_of(tmp_path / "model") == checkpoint.hash_of(run / "model")
    assert sorted(path.name for path in run.iterdir()) == before


def test_an_earlier_state_in_full_precision(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "export",
        str(run),
        "--out",
        str(tmp_path / "early"),
        "--step",
        "2",
        "--weights",
        "fp32",
    ]
    assert command(words) == 0
    told = capsys.readouterr()
    assert (told.out, told.err) == (f"{tmp_path / 'early'}\n", "the weights after step 2 of 6\n")
    early, last = weights(tmp_path / "early"), weights(run / "model")
    assert any(not torch.equal(early[name], last[name]) for name in last)
    assert any(not torch.equal(value, value.half().float()) for value in early.values())


@pytest.mark.parametrize(
    ("step", "complaint"),
    [
        ("3", "has no state of step 3; there are: 2, 4, 6$"),
        ("last", "has no state of step last; there are: 2, 4, 6$"),
    ],
)
def test_states_that_are_not_there_are_said(
    run: Path, tmp_path: Path, step: str, complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        main(run, tmp_path / "model", step=step, say=print)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_run_is_said(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is no run of a decoder: it has no recipe\.yaml"):
        main(tmp_path, tmp_path / "model", say=print)
    (tmp_path / "recipe.yaml").write_text("job: image-tokenizer\n")
    with pytest.raises(UserError, match="is a run of the job 'image-tokenizer', not of a decoder"):
        main(tmp_path, tmp_path / "model", say=print)
    (tmp_path / "recipe.yaml").write_text((run / "recipe.yaml").read_text())
    with pytest.raises(UserError, match="has no state yet"):
        main(tmp_path, tmp_path / "model", say=print)
