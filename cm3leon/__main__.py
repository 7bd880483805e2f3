"""Command-line entry point: `cm3leon ...` and `python -m cm3leon ...`.

Four of our packages have common names, so a stray `train.py` in the working directory could be
imported in place of ours. This is checked here and reported in one line, before it causes an
obscure error later.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

NEIGHBOURS = ("tokenizer", "retrieval", "train", "eval")


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit status: 0 success, 1 user error, 2 wrong usage."""
    problem = _hidden_neighbour(Path(__file__).resolve().parent.parent)
    if problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    from cm3leon.cli import main as run

    return run(argv)


def _hidden_neighbour(home: Path) -> str | None:
    """Return an error message if `import` would not find one of our packages, else None."""
    for name in NEIGHBOURS:
        spec = find_spec(name)
        if spec is None:
            return f"CM3Leon's package {name!r} is missing beside {home}; install CM3Leon again"
        found = spec.origin or next(iter(spec.submodule_search_locations or ()), "an unknown place")
        if Path(found).resolve() != home / name / "__init__.py":
            return (
                f"another package named {name!r} at {found} hides CM3Leon's; "
                "rename it, or run from another folder"
            )
    return None


if __name__ == "__main__":
    sys.exit(main())
