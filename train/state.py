"""What a run resumes from: step-numbered folders of safetensors under a manifest, never a pickle.

A state holds weights and both optimiser moments in fp32 by parameter name, and the step. There is
nothing else to hold: every random draw of training is a function of the seed and of the step.
"""

import json
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tokenizer import settings
from tokenizer.errors import UserError
from tokenizer.manifest import new_folder, verify, write_file

PREFIX = "state-"
RECIPE = "recipe.yaml"  # resolved, beside the states
Say = Callable[[str], None]


def open_run(run: Path, recipe: object, resume: bool, free: Collection[str] = ()) -> None:
    """Make a run's folder with its resolved recipe, or check that the one there is this very run.

    Settings named in `free` may differ. Raises UserError when there is a run already and no
    `resume`, or when another recipe began it.
    """
    kept = run / RECIPE
    if not kept.exists():
        try:
            run.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the run folder {run}: {error.strerror}") from error
        write_file(kept, settings.dump(recipe).encode())
        return
    if not resume:
        raise UserError(f"{run} holds a run already; go on with --resume, or name a new folder")
    begun = settings.build(type(recipe), settings.read(kept))  # a newer setting has its default
    before, now = (dict(_leaves(settings.table_of(one))) for one in (begun, recipe))
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if name.partition(".")[0] not in free and old != new:
            raise UserError(
                f"{run} was begun with {name} = {old}, now it is {new}; resume with the settings "
                f"in {kept}, or name a new folder"
            )


def _leaves(table: Mapping[str, object], where: str = "") -> Iterator[tuple[str, object]]:
    """Every setting by its dotted name."""
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _leaves(cast("dict[str, object]", value), f"{where}{name}.")
        else:
            yield f"{where}{name}", value


def save(run: Path, step: int, tensors: Mapping[str, Tensor], *, keep: int = 2) -> Path:
    """Write the state after `step` steps, then drop all but the newest `keep` states."""
    folder = run / f"{PREFIX}{step:08d}"
    shutil.rmtree(folder, ignore_errors=True)  # only a damaged one, passed over, can stand there
    with new_folder(folder) as aside:
        whole = {k: v.detach().contiguous() for k, v in tensors.items()}
        save_file(whole, aside / "state.safetensors")
        (aside / "state.json").write_text(json.dumps({"format": 1, "step": step}) + "\n")
    # A newer state can only be a damaged one: counted, it would push this one out.
    for old in [s for s in states(run) if s.name <= folder.name][:-keep]:
        shutil.rmtree(old)
    return folder


def states(run: Path) -> list[Path]:
    """The state folders of a run, oldest first."""
    return sorted(p for p in run.glob(PREFIX + "*") if p.name[len(PREFIX) :].isdigit())


def load_latest(run: Path, say: Say) -> tuple[int, dict[str, Tensor]] | None:
    """The newest whole state of a run as (step, tensors); damaged ones are named and passed over.

    None where the run has no state at all. Raises UserError when there are only damaged ones.
    """
    found = states(run)
    for folder in reversed(found):
        try:
            verify(folder)
        except UserError as error:
            say(f"damaged state passed over: {error}")
            continue
        step = json.loads((folder / "state.json").read_text())["step"]
        return step, load_file(folder / "state.safetensors")
    if found:
        raise UserError(f"{run}: none of its {len(found)} states is whole; start a new run folder")
    return None


def pack(net: nn.Module, optimizer: torch.optim.Optimizer, prefix: str = "") -> dict[str, Tensor]:
    """A network and its optimiser as one flat table of tensors."""
    table = {f"{prefix}weights.{k}": v for k, v in net.state_dict().items()}
    for name, parameter in net.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            table[f"{prefix}optimizer.{key}.{name}"] = torch.as_tensor(value)
    return table


def unpack(
    table: Mapping[str, Tensor],
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    prefix: str = "",
) -> None:
    """Put back what `pack` took out, strictly."""
    start = f"{prefix}weights."
    net.load_state_dict({k[len(start) :]: v for k, v in table.items() if k.startswith(start)})
    start = f"{prefix}optimizer."
    moments: dict[str, dict[str, Tensor]] = {}
    for k, v in table.items():
        if k.startswith(start):
            key, name = k[len(start) :].split(".", 1)
            moments.setdefault(name, {})[key] = v
    for name, parameter in net.named_parameters():
        if name in moments:
            optimizer.state[parameter] = {
                # a moment lies in memory as its weight does, as the optimiser would lay it
                k: v.clone() if k == "step" else torch.empty_like(parameter, dtype=v.dtype).copy_(v)
                for k, v in moments[name].items()
            }
