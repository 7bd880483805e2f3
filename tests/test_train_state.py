"""States of a run: what is saved is loaded bit by bit, damaged ones are named and passed over."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from tokenizer import settings
from tokenizer.errors import UserError
from train import state
from train.schedule import Schedule


def tensors(step: int) -> dict[str, torch.Tensor]:
    return {"a": torch.full((3,), float(step)), "b.c": torch.tensor(step)}


def save(run: Path, *steps: int) -> None:
    for step in steps:
        state.save(run, step, tensors(step))


def names(run: Path) -> list[str]:
    return sorted(path.name for path in run.iterdir())


def load(run: Path) -> tuple[int, list[str]]:
    """The step found, after checking its tensors, and what was said."""
    said: list[str] = []
    found = state.load_latest(run, said.append)
    assert found
    step, table = found
    assert table.keys() == tensors(step).keys()
    assert all(torch.equal(table[name], tensor) for name, tensor in tensors(step).items())
    return step, said


def test_the_newest_state_is_loaded_and_the_newest_two_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 4, 8, 12)
    assert names(tmp_path) == ["state-00000008", "state-00000012"]
    assert load(tmp_path) == (12, [])


def test_a_run_without_states_starts_anew(tmp_path: Path) -> None:
    (tmp_path / "state-of-the-art").mkdir()
    assert state.load_latest(tmp_path, print) is None
    assert state.load_latest(tmp_path / "nowhere", print) is None


@pytest.mark.parametrize("part", ["state.safetensors", "state.json", "manifest.json"])
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
        state.load_latest(tmp_path, said.append)
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


def test_a_run_is_begun_once_and_resumed_with_its_own_recipe(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "first"
    state.open_run(run, Recipe(), resume=False)
    assert settings.load(Recipe, run / "recipe.yaml") == Recipe()
    with pytest.raises(UserError, match="holds a run already; go on with --resume"):
        state.open_run(run, Recipe(), resume=False)
    state.open_run(run, Recipe(), resume=True)
    state.open_run(run, Recipe(save_every=2), resume=True, free=("save_every",))
    with pytest.raises(UserError, match="was begun with save_every = 5, now it is 2"):
        state.open_run(run, Recipe(save_every=2), resume=True)
    with pytest.raises(UserError, match=r"was begun with schedule\.peak = 1e-05, now it is 0\.1"):
        state.open_run(run, Recipe(schedule=Schedule(peak=0.1)), resume=True, free=("steps",))


def test_a_setting_that_is_newer_than_a_run_has_its_default_there(tmp_path: Path) -> None:
    state.open_run(tmp_path / "run", Recipe(), resume=False)
    kept = tmp_path / "run" / "recipe.yaml"
    kept.write_text(kept.read_text("utf-8").replace("save_every: 5\n", ""), "utf-8")
    state.open_run(tmp_path / "run", Recipe(), resume=True)
    with pytest.raises(UserError, match="was begun with save_every = 5, now it is 2"):
        state.open_run(tmp_path / "run", Recipe(save_every=2), resume=True)


def test_a_run_folder_that_cannot_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot make the run folder .*file"):
        state.open_run(tmp_path / "file", Recipe(), resume=False)


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
    state.save(tmp_path, 4, state.pack(net, optimizer) | other)
    for prefix in ("", "other."):
        net, optimizer = made()
        found = state.load_latest(tmp_path, print)
        assert found
        state.unpack(found[1], net, optimizer, prefix)
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
