"""__main__.py: the front door says which package hides ours, before anything is loaded."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A place like site-packages: the five packages, with a command line that only greets."""
    home = tmp_path / "site"
    for name in ("tokenizer", "retrieval", "train", "eval"):
        (home / name).mkdir(parents=True)
        (home / name / "__init__.py").touch()
    (home / "cm3leon" / "cli").mkdir(parents=True)
    for name in ("__init__.py", "__main__.py"):
        shutil.copy(ROOT / "cm3leon" / name, home / "cm3leon")
    (home / "cm3leon" / "cli" / "__init__.py").write_text(
        "def main(argv):\n    print('hello')\n    return 3\n"
    )
    return home


def run(home: Path, folder: Path) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-S", "-m", "cm3leon"],  # -S: no other installed copy
        cwd=folder,
        env={"PYTHONPATH": str(home)},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


def test_the_command_line_is_run_and_its_status_returned(installed: Path, tmp_path: Path) -> None:
    assert run(installed, tmp_path) == (3, "hello\n", "")


@pytest.mark.parametrize("stray", ["train.py", "eval/__init__.py"])
def test_a_stray_module_is_named(installed: Path, tmp_path: Path, stray: str) -> None:
    path = tmp_path / "work" / stray
    path.parent.mkdir(parents=True)
    path.write_text("raise SystemExit('a stray module was run')")
    name = stray.partition("/")[0].removesuffix(".py")
    assert run(installed, tmp_path / "work") == (
        2,
        "",
        f"error: another package named '{name}' at {path} hides CM3Leon's; "
        "rename it, or run from another folder\n",
    )


def test_a_missing_package_is_named(installed: Path, tmp_path: Path) -> None:
    shutil.rmtree(installed / "retrieval")
    status, _, said = run(installed, tmp_path)
    assert status == 2
    assert said.startswith("error: CM3Leon's package 'retrieval' is missing beside ")
    assert said.count("\n") == 1


def test_importing_cm3leon_loads_no_torch() -> None:
    check = (
        "import sys, cm3leon, cm3leon.__main__; print(cm3leon.__version__, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "0.1.0 False\n"


def test_a_name_that_cm3leon_lacks_is_an_attribute_error() -> None:
    import cm3leon

    with pytest.raises(AttributeError, match="has no attribute 'Andromeda'"):
        _ = cm3leon.Andromeda
