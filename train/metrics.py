"""Training log: one JSON line per step in the run's `log.jsonl`, progress on stderr, and optional
TensorBoard curves."""

import json
import math
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from tokenizer.errors import UserError
from tokenizer.manifest import write_file

LOG = "log.jsonl"


class MetricLogger:
    """Writer of a run's log. Lines after the resumed step are dropped first. Disabled in all
    processes but the first."""

    def __init__(
        self, run: Path, *, start: int, steps: int, on: bool = True, tensorboard: bool = False
    ) -> None:
        self.start, self.steps, self.on = start, steps, on
        self.began = time.monotonic()
        self.loud = sys.stderr.isatty()
        if not on:
            return
        path = run / LOG
        kept = [line for line in read(run) if line["step"] <= start] if path.exists() else []
        write_file(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self.file = path.open("a")
        self.writer: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(run / "tensorboard", purge_step=start + 1)

    def __enter__(self) -> "MetricLogger":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self.on:
            self.file.close()
            if self.writer:
                self.writer.close()

    def step(self, step: int, **figures: float) -> None:
        """Log the metrics of step `step` (from 1); floats are written exactly.

        Raises UserError if the log cannot be written.
        """
        if not self.on:
            return
        figures["seconds"] = round(time.monotonic() - self.began, 2)
        try:
            self.file.write(json.dumps({"step": step, **figures}) + "\n")
            self.file.flush()
        except OSError as error:
            raise UserError(f"cannot write the log of step {step}: {error.strerror}") from error
        for name, value in figures.items() if self.writer else ():
            self.writer.add_scalar(name, value, step)
        every = 1 if self.loud else max(1, self.steps // 50)
        if step % every == 0 or step == self.steps:
            self.show(step, figures)

    def show(self, step: int, figures: dict[str, float]) -> None:
        left = figures["seconds"] / max(1, step - self.start) * (self.steps - step)
        names = " ".join(f"{k} {v:.4g}" for k, v in figures.items() if math.isfinite(v))
        end = "\r" if self.loud and step < self.steps else "\n"
        line = f"step {step}/{self.steps} {names} left {left / 60:.1f} min"
        print(f"{line:<100}"[:160], end=end, file=sys.stderr, flush=True)


def check_tensorboard(wanted: bool) -> None:
    """Raise UserError if TensorBoard is requested but not installed."""
    if wanted and find_spec("tensorboard") is None:
        raise UserError(
            "tensorboard=true needs the package tensorboard; install it with pip install "
            "'cm3leon[train]', or leave the setting out: log.jsonl has the same numbers"
        )


def read(run: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's log, without a last line truncated by a kill."""
    lines = []
    for line in (run / LOG).read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines
