"""Training state for resuming: a folder of safetensors per saved step, under a manifest, no pickle.

A state has the weights and optimizer moments in fp32 by parameter name, each process's share in a
file of its own, and the step. Hardly anything else is needed, because every random choice of
training is a function of the seed and the step. A run can resume with any number of processes.
"""

import json
import shutil
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tokenizer import config as settings
from tokenizer.distributed import DistributedContext
from tokenizer.errors import UserError
from tokenizer.manifest import locked, new_folder, sync, verify, write_file

PREFIX = "state-"
RECIPE = "recipe.yaml"  # the resolved recipe, next to the states
LOCK = ".lock"
NOTED = 100  # tensors between two progress notes to the other processes
ALONE = DistributedContext()
Say = Callable[[str], None]


@contextmanager
def open_run(
    run: Path,
    recipe: object,
    resume: str,
    free: Collection[str] = (),
    dist: DistributedContext = ALONE,
) -> Generator[None]:
    """Create a run's folder with its resolved recipe, or check that an existing one is the same
    run; lock it until the block ends.

    resume: `none` for a new run, `latest`, or a step. Settings named in `free` may differ. Raises
    UserError if a run exists and is not to be resumed, if it was started with another recipe, or
    if another process works on it.
    """
    if not dist.first:  # the first process checks; if it fails, all processes are ended
        dist.wait()
        if not (run / RECIPE).exists():
            raise UserError(f"the folder {run} must be one that all machines see; name another")
        yield
        return
    if resume not in ("none", "latest") and not resume.isdigit():
        raise UserError(f"--resume is '{resume}'; it must be latest, none or the number of a step")
    kept = run / RECIPE
    fresh = not kept.exists()
    if not fresh:
        if resume == "none":
            raise UserError(
                f"{run} holds a run already; go on with --resume latest, or name a new folder"
            )
        _check_same(run, recipe, free)
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the run folder {run}: {error.strerror}") from error
    busy = f"another process works on the run in {run}; wait for it, or name a new folder"
    with locked(run / LOCK, busy):
        for torn in run.glob(f".{PREFIX}*.new"):  # left by a process that was killed
            shutil.rmtree(torn, ignore_errors=True)
        if fresh:
            write_file(kept, settings.dump(recipe).encode())
        dist.wait()
        yield


def _check_same(run: Path, recipe: object, free: Collection[str]) -> None:
    begun = settings.build(type(recipe), settings.read(run / RECIPE))  # missing settings: defaults
    before, now = (dict(_leaves(settings.table_of(one))) for one in (begun, recipe))
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if name.partition(".")[0] not in free and old != new:
            raise UserError(
                f"{run} was begun with {name} = {old}, now it is {new}; resume with the settings "
                f"in {run / RECIPE}, or name a new folder"
            )


def _leaves(table: Mapping[str, object], where: str = "") -> Iterator[tuple[str, object]]:
    """Yield the dotted name and value of every setting."""
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _leaves(cast("dict[str, object]", value), f"{where}{name}.")
        else:
            yield f"{where}{name}", value


def save(
    run: Path,
    step: int,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    keep: int = 2,
    keep_every: int | None = None,
    told: Mapping[str, Any] | None = None,
    dist: DistributedContext = ALONE,
) -> Path:
    """Write the state after `step` steps and return its folder; then delete old states, except the
    newest `keep` and those of every `keep_every`-th step.

    All processes iterate over the unsharded `tensors` together; each writes its share. `told` is
    saved with the step, as JSON. Raises UserError if the state cannot be written (disk full).
    """
    folder = run / f"{PREFIX}{step:08d}"
    aside = run / f".{folder.name}.new"
    name = f"share-{dist.rank:05d}-of-{dist.size:05d}.safetensors"
    mine = _share(tensors, step, dist)
    try:
        if not dist.first:
            dist.wait()
            _write_share(aside / name, mine)
            dist.wait()
            dist.wait()
            return folder
        hashes: dict[str, str] = {}
        shutil.rmtree(folder, ignore_errors=True)  # at most a damaged state, which was skipped
        with new_folder(folder, aside=aside, hashes=hashes) as aside:
            dist.wait()
            _write_share(aside / name, mine)
            (aside / "state.json").write_text(
                json.dumps({"format": 1, "step": step, "told": told or {}}) + "\n"
            )
            dist.wait()
            for note in aside.glob("*.sha256"):
                hashes[note.stem] = note.read_text()
                note.unlink()
            if len(hashes) < dist.size:
                raise OSError(f"only {len(hashes)} of {dist.size} shares are to be seen")
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot save the state of step {step} in {run}: {error}; mend that, then go on from "
            f"the one before with --resume latest"
        ) from error
    # A newer state can only be a damaged one: if counted, it would displace this one.
    older = [s for s in states(run) if s.name <= folder.name]
    for old in older[:-keep]:
        if keep_every is None or step_of(old) % keep_every:
            shutil.rmtree(old)
    dist.wait()
    return folder


def _share(
    tensors: Iterable[tuple[str, Tensor]], step: int, dist: DistributedContext
) -> dict[str, Tensor]:
    """Return the tensors that this process writes: each goes to the process with the fewest bytes
    so far."""
    loads = [0] * dist.size
    mine: dict[str, Tensor] = {}
    for number, (name, tensor) in enumerate(tensors):
        if number % NOTED == 0:
            dist.note(step, f"gathering tensor {number}")
        writer = loads.index(min(loads))
        loads[writer] += tensor.nbytes
        if writer == dist.rank:
            mine[name] = tensor.detach().cpu().contiguous()
    return mine


def _write_share(path: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, path)
    path.with_name(f"{path.name}.sha256").write_text(sync(path))


def states(run: Path) -> list[Path]:
    """Return the state folders of a run, oldest first."""
    return sorted(p for p in run.glob(PREFIX + "*") if p.name[len(PREFIX) :].isdigit())


def step_of(folder: Path) -> int:
    """Return the step after which a state was saved, from its folder name."""
    return int(folder.name.removeprefix(PREFIX))


@dataclass(frozen=True, kw_only=True, eq=False)
class State(Mapping[str, Tensor]):
    """Mapping from names to the tensors of a state on disk, which are read on access."""

    folder: Path
    step: int
    told: dict[str, Any]
    places: dict[str, Path] = field(repr=False)
    dist: DistributedContext = field(default=ALONE, repr=False)

    def __getitem__(self, name: str) -> Tensor:
        self.dist.note(self.step, f"reading {name}")
        with safe_open(self.places[name], "pt") as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def read(folder: Path, dist: DistributedContext = ALONE) -> State:
    """Open a state, without checking its integrity (`verify`)."""
    about = json.loads((folder / "state.json").read_text())
    places: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            places |= dict.fromkeys(file.keys(), path)
    return State(
        folder=folder, step=about["step"], told=about.get("told", {}), places=places, dist=dist
    )


def find(run: Path, resume: str, say: Say, dist: DistributedContext = ALONE) -> State | None:
    """Return the state to resume from: the newest intact one, or that of a step; None if there is
    none.

    Damaged states are reported and skipped. Raises UserError if all are damaged, or the requested
    one is missing or damaged.
    """
    step = -1
    if dist.first:
        found = (
            _newest(run, say) if resume in ("none", "latest") else _of_step(run, int(resume), say)
        )
        step = -1 if found is None else step_of(found)
    step = int(dist.table([step])[0, 0])
    return None if step < 0 else read(run / f"{PREFIX}{step:08d}", dist)


def _newest(run: Path, say: Say) -> Path | None:
    found = states(run)
    for folder in reversed(found):
        try:
            verify(folder)
        except UserError as error:
            say(f"damaged state passed over: {error}")
            continue
        return folder
    if found:
        raise UserError(f"{run}: none of its {len(found)} states is whole; start a new run folder")
    return None


def _of_step(run: Path, step: int, say: Say) -> Path:
    """Return the folder of a step's state; rename later states, so that none is resumed from.

    Raises UserError if the state is missing or damaged.
    """
    found = {step_of(folder): folder for folder in states(run)}
    if step not in found:
        known = ", ".join(map(str, found)) or "none"
        raise UserError(f"{run} has no state of step {step}; there are: {known}")
    verify(found[step])
    for later in (folder for other, folder in found.items() if other > step):
        place = later.with_name(f"left-{later.name}")
        shutil.rmtree(place, ignore_errors=True)
        later.rename(place)
        say(f"set aside as {place.name}: {later.name}")
    return found[step]


def pack(net: nn.Module, optimizer: torch.optim.Optimizer, prefix: str = "") -> dict[str, Tensor]:
    """Return a network's weights and its optimizer's state as one flat dict of tensors."""
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
    """Load the tensors of `pack` into a network and its optimizer, strictly."""
    start = f"{prefix}weights."
    net.load_state_dict({k[len(start) :]: table[k] for k in table if k.startswith(start)})
    start = f"{prefix}optimizer."
    moments: dict[str, dict[str, Tensor]] = {}
    for k in table:
        if k.startswith(start):
            key, name = k[len(start) :].split(".", 1)
            moments.setdefault(name, {})[key] = table[k]
    for name, parameter in net.named_parameters():
        if name in moments:
            optimizer.state[parameter] = {
                # moments have the memory layout of their weight, as the optimizer creates them
                k: v.clone() if k == "step" else torch.empty_like(parameter, dtype=v.dtype).copy_(v)
                for k, v in moments[name].items()
            }
