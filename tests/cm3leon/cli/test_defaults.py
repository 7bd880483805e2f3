"""What a model does when the user does not say: candidates and documents, from its own folder."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cm3leon.checkpoint import TaskSampling
from cm3leon.cli import main, retrieve
from cm3leon.cli.rerank import default_candidates
from cm3leon.cli.retrieve import RetrievalOptions
from cm3leon.pipeline import CM3Leon
from tokenizer.errors import UserError
from tokenizer.pixels import read_info

Capture = pytest.CaptureFixture[str]
HEART = "red heart, Noto emoji style"


@pytest.fixture
def habitual(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The default model with habits, as options; commands run in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    leon = CM3Leon.from_pretrained()
    leon.sampling = replace(leon.sampling, candidates=4, retrieve=1)
    leon.save_pretrained("model", stored="int8")
    return ["--model", "model", "--device", "cpu"]


def test_a_model_paints_by_its_habits_and_like_repeats_them(
    habitual: list[str], capsys: Capture
) -> None:
    assert main(["generate", HEART, "--out", "heart.png", "--json", *habitual]) == 0
    table = json.loads(capsys.readouterr().out)
    assert len(table["candidates"][0]["scores"]) == 4
    assert len(table["retrieved"]) == 1
    assert main(["generate", "--like", "heart.png", "--out", "again.png", *habitual]) == 0
    assert Path("again.png").read_bytes() == Path("heart.png").read_bytes()
    assert "differ" not in capsys.readouterr().err
    assert main(["caption", "heart.png", "--json", *habitual]) == 0
    assert len(json.loads(capsys.readouterr().out.splitlines()[-1])["retrieved"]) == 1
    Path("lines.txt").write_text(f"{HEART}\na cat\n")
    assert main(["generate", "--prompts", "lines.txt", "--out", "p.png", *habitual]) == 0
    assert Path("p-1.png").read_bytes() == Path("heart.png").read_bytes()


def test_what_the_user_says_goes_before(habitual: list[str], capsys: Capture) -> None:
    plain = ["generate", HEART, "--candidates", "1", "--retrieve", "0", "--json", *habitual]
    assert main(plain) == 0
    table = json.loads(capsys.readouterr().out)
    assert ("candidates" in table, table["retrieved"]) == (False, [])
    assert not {"candidates", "retrieved"} & read_info("generated.png").keys()
    likes = ["generate", "--like", "generated.png", "--out", "same.png", *habitual]
    assert main(likes) == 0
    assert Path("same.png").read_bytes() == Path("generated.png").read_bytes()
    capsys.readouterr()
    assert main([*likes[:-5], "more.png", "--retrieve", "1", "--json", *habitual]) == 0
    assert len(json.loads(capsys.readouterr().out)["retrieved"]) == 1


@pytest.mark.parametrize(
    ("candidates", "samples", "temperature", "found"),
    [(8, 1, 0.6, 8), (8, 8, 0.6, 8), (8, 9, 0.6, 4), (8, 64, 0.6, 1), (8, 1, 0, 1), (1, 9, 1, 1)],
)
def test_as_many_candidates_as_one_request_holds(
    candidates: int, samples: int, temperature: float, found: int
) -> None:
    assert default_candidates(candidates, samples, temperature) == found


def test_documents_come_from_what_ships_unless_the_user_says(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def found(default: int, **given: Any) -> tuple[Path | None, int]:
        chosen = RetrievalOptions(**given).or_default(default)
        return chosen.memory, chosen.count

    shipped, own = Path("default"), Path("own")
    assert found(2) == (shipped, 2)
    assert found(2, retrieve=3) == (shipped, 3)
    assert found(2, retrieve=0) == (None, 0)
    assert found(2, memory=own) == (own, 2)
    assert found(2, encoder="another") == (None, 0)
    assert found(0, retrieve=3) == (None, 3)
    monkeypatch.setattr(retrieve, "find_spec", lambda _: None)
    assert found(2) == (None, 0)
    assert "faiss is not installed" in capsys.readouterr().err


def test_habits_that_cannot_be_are_refused() -> None:
    with pytest.raises(UserError, match="at least 1 and 0"):
        TaskSampling(candidates=0)


def test_a_task_that_a_model_was_not_trained_for_is_said_beside_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    leon = CM3Leon.from_pretrained()
    leon.sampling = replace(leon.sampling, retrieve=0, candidates=1, untrained=("caption", "edit"))
    leon.save_pretrained("painter", stored="int8")
    options = ["--model", "painter", "--device", "cpu"]
    assert main(["generate", HEART, "--out", "heart.png", *options]) == 0
    assert "not trained" not in capsys.readouterr().err
    assert main(["caption", "heart.png", *options]) == 0
    assert "painter was not trained for caption" in capsys.readouterr().err
    assert main(["info", "painter"]) == 0
    assert "not trained for: caption, edit" in capsys.readouterr().out
