"""Where the time of one `cm3leon generate` goes, from the start of its process to its file.

Whole processes are timed from outside; `python -m eval.bench.stages FILE MODEL DEVICE PROMPT` does
the same work by itself in a fresh process and says when each stage was over.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from tokenizer.errors import UserError

HOME = Path(__file__).parents[2]
STAGES = ("torch", "library", "load", "generate", "write")


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command as a whole process; seconds, medians of the same number of runs."""

    prompt: str
    median: float
    least: float
    most: float
    stages: dict[str, float]
    """Importing torch, importing our library, loading, generating, writing; of other processes."""

    @property
    def rest(self) -> float:
        """What the stages leave: Python's own start and end, the command line, and what the stages
        do not do: documents in front and further candidates, where the model has the habit."""
        return self.median - sum(self.stages.values())


def command(prompt: str, model: str, device: str, threads: int | None, times: int) -> Command:
    """Run `cm3leon generate` so many times, by turns with its stages; the first is not told."""
    whole, apart = list[float](), list[dict[str, float]]()
    with TemporaryDirectory(prefix="bench-") as folder:
        out = str(Path(folder) / "picture.png")
        options = ["--out", out, "--model", model, "--device", device]
        for number in range(times + 1):
            begun = time.perf_counter()
            _run(["cm3leon", "generate", prompt, *options], threads)
            seconds = time.perf_counter() - begun
            told = _run(["eval.bench.stages", out, model, device, prompt], threads)
            if number:
                whole.append(seconds)
                apart.append(json.loads(told))
    return Command(
        prompt=prompt,
        median=median(whole),
        least=min(whole),
        most=max(whole),
        stages={name: median(one[name] for one in apart) for name in STAGES},
    )


def stages(out: Path, model: str, device: str, prompt: str) -> dict[str, float]:
    """Seconds of each stage, in a process that has loaded nothing yet."""
    marks = [time.perf_counter()]

    def mark() -> None:
        marks.append(time.perf_counter())

    import torch  # noqa: F401  # pyright: ignore[reportUnusedImport]

    mark()
    from cm3leon.pipeline import CM3Leon
    from tokenizer.manifest import write_file
    from tokenizer.pixels import encode_png

    mark()
    leon = CM3Leon.from_pretrained(model, device=device)
    mark()
    (picture,) = leon.text_to_image(prompt)
    mark()
    write_file(out, encode_png(picture, {"prompt": prompt}))
    mark()
    pairs = zip(STAGES, marks, marks[1:], strict=False)
    return {name: after - before for name, before, after in pairs}


def _run(words: list[str], threads: int | None) -> str:
    """What `python -m` of some words says. Raises UserError with its last line where it fails."""
    environment = dict(os.environ)
    paths = [str(HOME), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    done = subprocess.run(
        [sys.executable, "-m", *words], capture_output=True, text=True, env=environment
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        raise UserError(f"'{words[0]}' failed: {said[-1].removeprefix('error: ')}")
    return done.stdout


if __name__ == "__main__":
    out, model, device, prompt = sys.argv[1:]
    print(json.dumps(stages(Path(out), model, device, prompt)))
