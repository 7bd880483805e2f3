"""The rules of the source: imports, what is shipped, sizes of files, names and docstrings.

CONTRIBUTING.md says the same in words.
"""

import ast
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent

# Each room, and the rooms below it that it may import.
BELOW = {
    "tokenizer": set[str](),
    "retrieval": {"tokenizer"},
    "cm3leon": {"tokenizer"},
    "train": {"tokenizer", "retrieval", "cm3leon"},
    "eval": {"tokenizer", "retrieval", "cm3leon"},
}
ROOF = ("cm3leon.cli", "cm3leon.__main__")
ONLY_DOOR = {
    "sentencepiece": "tokenizer/text.py",
    "faiss": "retrieval/index.py",
    "xformers": "cm3leon/attention_xformers.py",
    "deepspeed": "train/engine.py",
}
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve"}

SOURCES = sorted(
    path.relative_to(ROOT).as_posix() for room in BELOW for path in (ROOT / room).rglob("*.py")
)
TESTS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("*.py"))

each_source = pytest.mark.parametrize("source", SOURCES)


@cache
def tree(source: str) -> ast.Module:
    return ast.parse((ROOT / source).read_text(encoding="utf-8"))


def imports(module: ast.AST) -> Iterator[str]:
    """Yield every module that is imported, inside functions and by name in a string too."""
    for node in ast.walk(module):
        match node:
            case ast.Import(names=names):
                yield from (name.name for name in names)
            case ast.ImportFrom(module=str(origin), names=names, level=0):
                yield from (f"{origin}.{name.name}" for name in names)
            case ast.ImportFrom():
                yield "."
            case ast.Call(
                func=ast.Name(id="__import__" | "import_module")
                | ast.Attribute(attr="__import__" | "import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield name
            case _:
                pass


def within(name: str, *places: str) -> bool:
    return any(f"{name}.".startswith(f"{place}.") for place in places)


def dotted(source: str) -> str:
    return source.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def climbs(source: str, module: ast.AST) -> list[str]:
    """Return what this source imports and may not."""
    here = dotted(source)
    room = here.partition(".")[0]
    bad: list[str] = []
    for name in imports(module):
        if name == ".":
            bad.append("a relative import")
        elif name == "eval":
            bad.append("import eval")
        elif within(here, *ROOF):
            continue
        elif within(name, *ROOF) or within(name, *(set(BELOW) - BELOW[room] - {room})):
            bad.append(name)
    return bad


@each_source
def test_imports_never_climb_nor_go_sideways(source: str) -> None:
    assert climbs(source, tree(source)) == []


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("tokenizer/text.py", "import cm3leon"),
        ("tokenizer/text.py", "def f():\n    from train.loop import run"),
        ("retrieval/index.py", "import cm3leon.model as m"),
        ("retrieval/index.py", "import importlib\nimportlib.import_module('cm3leon.model')"),
        ("cm3leon/model.py", "from retrieval import index"),
        ("cm3leon/__init__.py", "from cm3leon import cli"),
        ("cm3leon/pipeline.py", "from cm3leon.cli.look import show"),
        ("train/loop.py", "from eval.metrics.fid import compare"),
        ("eval/run.py", "import train.loop"),
        ("eval/run.py", "from . import fid"),
        ("train/loop.py", "from cm3leon.__main__ import main"),
        ("cm3leon/cli/make.py", "import eval"),
        ("cm3leon/cli/make.py", "from .look import show"),
    ],
)
def test_the_walls_would_stop_a_climb(source: str, line: str) -> None:
    assert len(climbs(source, ast.parse(line))) == 1


@pytest.mark.parametrize(
    ("source", "line"),
    [
        (
            "tokenizer/text.py",
            "import tokenizers, training\nfrom tokenizer.errors import UserError",
        ),
        ("cm3leon/__init__.py", "from cm3leon.pipeline import CM3Leon"),
        ("train/loop.py", "from retrieval.build import neighbours\nimport cm3leon.client"),
        (
            "cm3leon/cli/make.py",
            "import cm3leon.pipeline, retrieval.index\nfrom eval.run import run",
        ),
        ("cm3leon/__main__.py", "from cm3leon.cli import main"),
    ],
)
def test_the_walls_let_through_what_is_right(source: str, line: str) -> None:
    assert climbs(source, ast.parse(line)) == []


@each_source
def test_some_packages_have_one_door(source: str) -> None:
    doors = {ONLY_DOOR.get(name.partition(".")[0], source) for name in imports(tree(source))}
    assert doors <= {source}


@each_source
def test_nothing_reads_or_writes_pickles(source: str) -> None:
    assert PICKLES.isdisjoint(name.partition(".")[0] for name in imports(tree(source)))
    for node in ast.walk(tree(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in {("torch", "load"), ("torch", "save")}
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert ast.unparse(node.value) == "False"


@pytest.mark.parametrize("source", [*SOURCES, *TESTS])
def test_files_and_functions_stay_short(source: str) -> None:
    assert len((ROOT / source).read_text(encoding="utf-8").splitlines()) <= 350
    for node in ast.walk(tree(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            assert lines <= (90 if source == "train/loop.py" else 60), f"{node.name} is too long"


@each_source
def test_every_file_has_a_docstring(source: str) -> None:
    assert ast.get_docstring(tree(source))


CLAUSES = ("What", "How", "Whether", "Where", "Which", "Those", "Who", "Whose")


@each_source
def test_docstrings_begin_with_a_verb_or_a_noun(source: str) -> None:
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef
    docstrings = [
        ast.get_docstring(n) or "" for n in ast.walk(tree(source)) if isinstance(n, kinds)
    ]
    assert [text for text in docstrings if text.partition(" ")[0] in CLAUSES] == []


def test_no_class_name_is_defined_twice() -> None:
    places: dict[str, list[str]] = {}
    for source in SOURCES:
        for node in tree(source).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(source)
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_no_folder_has_more_than_twenty_files() -> None:
    counts: dict[str, int] = {}
    for path in [*SOURCES, *TESTS]:
        folder = path.rpartition("/")[0]
        counts[folder] = counts.get(folder, 0) + 1
    assert {folder: count for folder, count in counts.items() if count > 20} == {}


def test_no_module_imports_itself_by_a_circle() -> None:
    """Follow imports at the top of files; those inside functions are resolved when they run."""
    modules = {dotted(source): source for source in SOURCES}
    edges: dict[str, set[str]] = {}
    for name, source in modules.items():
        top = ast.Module(
            [n for n in tree(source).body if isinstance(n, ast.Import | ast.ImportFrom)], []
        )
        found = {one if one in modules else one.rpartition(".")[0] for one in imports(top)}
        edges[name] = found & modules.keys()
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in done:
            for other in sorted(edges[name]):
                visit(other, (*path, name))
            done.add(name)

    for name in modules:
        visit(name, ())


def test_the_readme_names_every_folder() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = text.partition("## Files")[2].partition("```")[2].partition("```")[0]
    named: set[str] = set()
    top = ""
    for line in block.strip().splitlines():
        folder = line.strip().partition(" ")[0].rstrip("/")
        top = top if line.startswith(" ") else folder
        named.add(f"{top}/{folder}" if line.startswith(" ") else folder)
    on_disk = {source.rpartition("/")[0] for source in SOURCES}
    assert named == on_disk | {"tests", "cm3leon/assets/default"}


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_packages_named_are_the_packages_on_disk() -> None:
    on_disk = {
        dotted(folder.relative_to(ROOT).as_posix())
        for room in BELOW
        for folder in (ROOT / room, *(ROOT / room).rglob("*"))
        if folder.is_dir() and any(folder.glob("*.py"))
    }
    assert project()["tool"]["setuptools"]["packages"] == sorted(on_disk)


def test_a_package_has_its_init() -> None:
    folders = {PurePosixPath(source).parent for source in SOURCES}
    assert {str(folder / "__init__.py") for folder in folders} <= set(SOURCES)


def test_every_requirement_has_a_tested_version() -> None:
    def name(requirement: str) -> str:
        return requirement.partition("=")[0].partition(">")[0].lower().replace("_", "-")

    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {name(line) for line in lines if "==" in line}
    table = project()["project"]
    extras = table["optional-dependencies"].values()
    wanted = {name(item) for group in (table["dependencies"], *extras) for item in group}
    assert {item for item in wanted - pinned if "[" not in item} == {"setuptools"}


def test_ci_runs_the_command_that_the_readme_gives() -> None:
    command = "pip install -c constraints.txt '.[dev]' && pytest"
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()
    assert command in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_wheel_holds_our_packages_and_nothing_else(tmp_path: Path) -> None:
    """Build a wheel of a copy, without the network, and open it."""
    copy, out = tmp_path / "copy", tmp_path / "out"
    unwanted = shutil.ignore_patterns("__pycache__", ".*")
    for name in (*BELOW, "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=unwanted)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    build = "import sys, setuptools.build_meta as b; b.build_wheel(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", build, str(out)], cwd=copy, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = out.glob("cm3leon-*-py3-none-any.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    code = {name for name in names if ".dist-info/" not in name}
    data = {
        path.relative_to(ROOT).as_posix()
        for pattern in (
            "cm3leon/assets/**/*",
            "*/*/*.c",
            "retrieval/assets/**/*",
            "train/recipes/*.yaml",
            "train/emoji/*.yaml",
        )
        for path in ROOT.glob(pattern)
        if path.is_file() and path.name not in ("verified.json", ".lock")  # left by opening it
    }
    assert code == {*SOURCES, *data}
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    (entry,) = (name for name in names if name.endswith("/entry_points.txt"))
    assert b"cm3leon = cm3leon.__main__:main" in zipfile.ZipFile(wheel).read(entry)
