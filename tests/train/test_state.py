"""States of a run: what is saved is loaded bit by bit, damaged ones are named and passed over."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from tokenizer import config as settings
from tokenizer.errors import UserError
from train import state
from train.schedule import Schedule


def tensors(step: int) -> dict[str, torch.Tensor]:
    return {"a": torch.full((3,), float(step)), "b.c": torch.tensor(step)}


def save(run: Path, *steps: int) -> None:
    for step in steps:
        state.save(run, step, tensors(step).items())


def names(run: Path) -> list[str]:
    return sorted(path.name for path in run.iterdir())


def load(run: Path) -> tuple[int, list[str]]:
    """The step found, after checking its tensors, and what was said."""
    said: list[str] = []
    found = state.find(run, "latest", said.append)
    assert found
    assert found.keys() == tensors(found.step).keys()
    assert all(torch.equal(found[name], value) for name, value in tensors(found.step).items())
    return found.step, said


def test_the_newest_state_is_loaded_and_the_newest_two_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 4, 8, 12)
    assert names(tmp_path) == ["state-00000008", "state-00000012"]
    assert load(tmp_path) == (12, [])


def test_a_run_without_states_starts_anew(tmp_path: Path) -> None:
    (tmp_path / "state-of-the-art").mkdir()
    assert state.find(tmp_path, "latest", print) is None
    assert state.find(tmp_path / "nowhere", "latest", print) is None


@pytest.mark.parametrize(
    "part", ["share-00000-of-00001.safetensors", "state.json", "manifest.json"]
)
@pytest.mark.parametrize("harm", ["gone", "cut short", "one bit"])
def test_a_damaged_state_is_named_and_passed_over(tmp_path: Path, part: str, harm: str) -> None:
    save(tmp_path, 4, 8)
    path = tmp_path / "state-00000008" / part
    data = path.read_bytes()
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(data[:-9] if harm == "cut short" else data[:-9] + b"\x7f" + data[-8:])
    step, said = load(tmp_path)
    assert step == 4
    assert len(said) == 1
    assert said[0].startswith("damaged state passed over: ")
    assert "state-00000008" in said[0]
    assert part in said[0] or (part, harm) == ("manifest.json", "one bit")
    # The run then comes to that step again, and its new state takes the place.
    save(tmp_path, 8)
    assert load(tmp_path) == (8, [])


def test_only_damaged_states_are_an_error(tmp_path: Path) -> None:
    save(tmp_path, 4, 8)
    for folder in tmp_path.iterdir():
        (folder / "manifest.json").unlink()
    said: list[str] = []
    with pytest.raises(UserError, match="none of its 2 states is whole; start a new run folder"):
        state.find(tmp_path, "latest", said.append)
    assert len(said) == 2


def test_damaged_states_ahead_do_not_push_whole_ones_out(tmp_path: Path) -> None:
    save(tmp_path, 4, 8)
    for ahead in ("state-00000012", "state-00000016"):
        shutil.copytree(tmp_path / "state-00000008", tmp_path / ahead)
        (tmp_path / ahead / "state.json").unlink()
    save(tmp_path, 10)
    step, said = load(tmp_path)
    assert step == 10
    assert len(said) == 2


def test_an_interrupted_save_leaves_the_old_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 4)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(state, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 8)
    assert names(tmp_path) == ["state-00000004"]


SCHEDULE = Schedule(peak=1e-5)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    steps: int = 10
    save_every: int = 5
    schedule: Schedule = SCHEDULE


def opened(run: Path, recipe: Recipe, resume: str, free: tuple[str, ...] = ()) -> None:
    with state.open_run(run, recipe, resume, free):
        pass


def test_a_run_is_begun_once_and_resumed_with_its_own_recipe(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "first"
    opened(run, Recipe(), "none")
    assert settings.load(Recipe, run / "recipe.yaml") == Recipe()
    with pytest.raises(UserError, match="holds a run already; go on with --resume latest"):
        opened(run, Recipe(), "none")
    opened(run, Recipe(), "latest")
    opened(run, Recipe(save_every=2), "latest", free=("save_every",))
    with pytest.raises(UserError, match="was begun with save_every = 5, now it is 2"):
        opened(run, Recipe(save_every=2), "latest")
    with pytest.raises(UserError, match=r"was begun with schedule\.peak = 1e-05, now it is 0\.1"):
        opened(run, Recipe(schedule=Schedule(peak=0.1)), "latest", free=("steps",))
    with pytest.raises(UserError, match="it must be latest, none or the number of a step"):
        opened(run, Recipe(), "last")


def test_a_setting_that_is_newer_than_a_run_has_its_default_there(tmp_path: Path) -> None:
    opened(tmp_path / "run", Recipe(), "none")
    kept = tmp_path / "run" / "recipe.yaml"
    kept.write_text(kept.read_text("utf-8").replace("save_every: 5\n", ""), "utf-8")
    opened(tmp_path / "run", Recipe(), "latest")
    with pytest.raises(UserError, match="was begun with save_every = 5, now it is 2"):
        opened(tmp_path / "run", Recipe(save_every=2), "latest")


def test_a_run_folder_that_cannot_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot make the run folder .*file"):
        opened(tmp_path / "file", Recipe(), "none")


def test_two_runs_in_one_folder_are_refused_and_torn_states_swept(tmp_path: Path) -> None:
    torn = tmp_path / ".state-00000004.new"
    torn.mkdir()
    with state.open_run(tmp_path, Recipe(), "none"):
        assert not torn.exists()
        with pytest.raises(UserError, match="another process works on the run in"):
            opened(tmp_path, Recipe(), "latest")
    opened(tmp_path, Recipe(), "latest")


def test_every_nth_state_is_kept_for_good(tmp_path: Path) -> None:
    for step in (4, 8, 12, 16, 20):
        state.save(tmp_path, step, tensors(step).items(), keep=1, keep_every=8)
    assert names(tmp_path) == ["state-00000008", "state-00000016", "state-00000020"]


def test_going_back_to_a_step_sets_later_states_aside(tmp_path: Path) -> None:
    save(tmp_path, 4, 8)
    said: list[str] = []
    found = state.find(tmp_path, "4", said.append)
    assert found
    assert found.step == 4
    assert names(tmp_path) == ["left-state-00000008", "state-00000004"]
    assert said == ["set aside as left-state-00000008: state-00000008"]
    assert load(tmp_path) == (4, [])
    with pytest.raises(UserError, match=r"has no state of step 5; there are: 4$"):
        state.find(tmp_path, "5", said.append)


def test_what_is_told_with_a_state_comes_back(tmp_path: Path) -> None:
    state.save(tmp_path, 4, tensors(4).items(), told={"losses": [0.1, 1e-300]})
    found = state.find(tmp_path, "latest", print)
    assert found
    assert found.told == {"losses": [0.1, 1e-300]}


def test_a_full_disk_is_said_and_harms_no_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 4)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state, "save_file", full)
    with pytest.raises(UserError, match=r"cannot save the state of step 8 .*No space left"):
        save(tmp_path, 8)
    assert names(tmp_path) == ["state-00000004"]
    assert load(tmp_path) == (4, [])


def made() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(72, 2))
    net.to(memory_format=torch.channels_last)
    net[3].bias.requires_grad_(False)  # it has no moments
    trained = [weight for weight in net.parameters() if weight.requires_grad]
    return net, torch.optim.Adam(trained, lr=1e-2)


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    losses: list[float] = []
    for step in steps:
        x_B3HW = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(step))
        loss = net(x_B3HW).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_a_network_and_its_optimiser_go_on_as_if_never_stopped(tmp_path: Path) -> None:
    whole = train(*made(), range(8))
    net, optimizer = made()
    first = train(net, optimizer, range(4))
    other = {name: tensor.clone() for name, tensor in state.pack(net, optimizer, "other.").items()}
    state.save(tmp_path, 4, (state.pack(net, optimizer) | other).items())
    for prefix in ("", "other."):
        net, optimizer = made()
        found = state.find(tmp_path, "latest", print)
        assert found
        state.unpack(found, net, optimizer, prefix)
        assert first + train(net, optimizer, range(4, 8)) == whole


def test_moments_are_laid_out_as_their_weights_are() -> None:
    """A resumed run then computes with the very loops, and at the speed, of one never stopped."""
    net, optimizer = made()
    train(net, optimizer, range(2))
    table = {name: tensor.contiguous() for name, tensor in state.pack(net, optimizer).items()}
    again, optimizer = made()
    state.unpack(table, again, optimizer)
    for weight in again.parameters():
        for name, moment in optimizer.state.get(weight, {}).items():
            assert name == "step" or moment.stride() == weight.stride()


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    net, optimizer = made()
    table = state.pack(net, optimizer)
    with pytest.raises(RuntimeError, match="size mismatch"):
        state.unpack(table | {"weights.3.weight": torch.zeros(3, 72)}, net, optimizer)
    del table["weights.0.bias"]
    with pytest.raises(RuntimeError, match="Missing key"):
        state.unpack(table, net, optimizer)
