"""Benchmark of `cm3leon generate` by stage, from the start of its process to the written file.

Whole processes are timed from outside; `python -m eval.bench.stages FILE MODEL DEVICE PROMPT` does
the same work in a fresh process and prints the seconds of each stage.
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
    """Seconds of one command as a whole process, from several runs; stages are medians."""

    prompt: str
    median: float
    least: float
    most: float
    stages: dict[str, float]
    """Importing torch, importing our library, loading, generating, writing; in other processes."""

    @property
    def rest(self) -> float:
        """Time outside the stages.

        It is Python's own start and exit, the command line, and work that the stages leave out:
        retrieved documents and further candidates, if they are the model's defaults.
        """
        return self.median - sum(self.stages.values())


def command(prompt: str, model: str, device: str, threads: int | None, times: int) -> Command:
    """Time `cm3leon generate` and its stages in turn, `times` times after a warm-up."""
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
    """Return the seconds of each stage; call it in a process that has imported nothing yet."""
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
    """Run `python -m` with some arguments and return its output.

    Raises UserError with the last line of its stderr if it fails.
    """
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
