"""settings.py: what a recipe may say, what it is told when it says something else."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenizer.config import build, dump, load, override, read, table_of
from tokenizer.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Model:
    width: int
    heads: int = 4
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")


@dataclass(frozen=True, kw_only=True)
class Run:
    model: Model
    name: str = "run"
    steps: int | None = None
    betas: tuple[float, float] = (0.9, 0.95)
    shards: tuple[str, ...] = ()
    weights: dict[str, float] = field(default_factory=dict[str, float])
    device: int | str = "auto"
    resume: bool = False
    tuning: Model | None = None


def refusal(table: dict[str, object]) -> str:
    with pytest.raises(UserError) as caught:
        build(Run, table)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_table_becomes_the_typed_config() -> None:
    table = {
        "model": {"width": 8, "dropout": 0},
        "steps": 10,
        "betas": [0, 0.5],
        "shards": ["a", "b"],
        "weights": {"image": 2},
        "device": 1,
    }
    run = build(Run, table)
    assert run.model == Model(width=8)
    assert type(run.model.dropout) is float
    assert run.betas == (0.0, 0.5)
    assert run.shards == ("a", "b")
    assert run.weights == {"image": 2.0}
    assert run.device == 1
    assert run.tuning is None


def test_an_unknown_setting_is_met_with_the_likely_one() -> None:
    message = "unknown setting 'model.widht'; did you mean 'width'?"
    assert refusal({"model": {"widht": 8}}) == message
    assert refusal({"model": {"width": 8}, "zzz": 1}).startswith(
        "unknown setting 'zzz'; the settings are model, name, steps"
    )


def test_a_missing_setting_is_named() -> None:
    assert refusal({}) == "missing setting 'model'"
    assert refusal({"model": {}}) == "missing setting 'model.width'"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model=3", "setting 'model' is 3; it must be a table of settings"),
        ("model.width=8.0", "setting 'model.width' is 8.0; it must be a whole number"),
        ("model.width=true", "setting 'model.width' is True; it must be a whole number"),
        ("model.width=", "setting 'model.width' is None; it must be a whole number"),
        (
            "model.norm=batch",
            "setting 'model.norm' is 'batch'; it must be one of layernorm, rmsnorm",
        ),
        ("model.dropout=.nan", "setting 'model.dropout' is nan; it must be a finite number"),
        ("model.dropout=.inf", "setting 'model.dropout' is inf; it must be a finite number"),
        ("name=7", "setting 'name' is 7; it must be text (write it in quotes)"),
        ("resume=1", "setting 'resume' is 1; it must be true or false"),
        ("shards=a", "setting 'shards' is 'a'; it must be a list"),
        ("shards=[a, 1]", "setting 'shards.1' is 1; it must be text (write it in quotes)"),
        ("betas=[0.9]", "setting 'betas' is [0.9]; it must be a list of 2"),
        ("weights={a: b}", "setting 'weights.a' is 'b'; it must be a number"),
        ("steps=many", "setting 'steps' is 'many'; it must be a whole number"),
    ],
)
def test_a_wrong_value_is_refused_by_name(change: str, message: str) -> None:
    assert refusal(override({"model": {"width": 8}}, [change])) == message


def test_an_overlong_whole_number_is_no_float() -> None:
    assert "must be a finite number" in refusal({"model": {"width": 8, "dropout": 10**400}})


def test_what_the_config_itself_refuses_is_passed_on_with_its_place() -> None:
    message = "model: width 7 is not a multiple of heads 4"
    assert refusal({"model": {"width": 7}}) == message
    with pytest.raises(UserError, match=r"^width 7 is not"):
        build(Model, {"width": 7})


def test_overrides_make_a_new_table() -> None:
    table: dict[str, object] = {"model": {"width": 8}, "tuning": None}
    changed = override(table, ["model.width=16", "tuning.width = 4", "name=a=b", "steps=null"])
    assert changed == {
        "model": {"width": 16},
        "tuning": {"width": 4},
        "name": "a=b",
        "steps": None,
    }
    assert table == {"model": {"width": 8}, "tuning": None}


@pytest.mark.parametrize("change", ["", "width", "=3", "model..width=3", "model.=3", "a=[1", "a={"])
def test_a_change_that_is_none_is_refused(change: str) -> None:
    with pytest.raises(UserError, match=r"^(cannot read the setting|the value of)"):
        override({}, [change])


def test_a_change_cannot_reach_inside_a_plain_value() -> None:
    with pytest.raises(UserError, match=r"^cannot set 'name.first': 'name' is a plain value$"):
        override({"name": "run"}, ["name.first=a"])


def test_a_file_with_overrides(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model:\n  width: 8\n  dropout: 1e-3\n")
    run = load(Run, path, ["model.heads=2", "model.dropout=2E2", "name='1e5'"])
    assert run == Run(model=Model(width=8, heads=2, dropout=200.0), name="1e5")
    assert load(Run, path).model.dropout == 0.001


@pytest.mark.parametrize("text", ["1e-3", "1E3", "-2.5e+7", ".5e1", "1_0e2", "+1e0"])
def test_floats_as_people_write_them(text: str) -> None:
    assert override({}, [f"a={text}"]) == {"a": float(text)}


@pytest.mark.parametrize("text", ["e3", "1e", "1e3x", "e", "1-e3", "350m"])
def test_text_that_looks_a_little_like_a_float(text: str) -> None:
    assert override({}, [f"a={text}"]) == {"a": text}


def test_an_empty_file_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing\n")
    assert read(path) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", "cannot be read as YAML"),
        (b"a: 1\nb: 2\na: 3\n", "'a' is given twice (line 3)"),
        (b"a: \xff", "cannot read the settings"),
        (b"- a\n- b\n", "must be 'name: value' lines"),
        (b"1: a\n", "a name that is no text: 1"),
        (b"a: !!python/object:os.system {}", "could not determine a constructor"),
        (b"a: 2024-13-45", "month must be in"),
        (b"a: b: c", "mapping values are not allowed here (line 1)"),
    ],
)
def test_a_broken_file_is_refused_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="Is a directory"):
        read(tmp_path)


numbers = st.floats(allow_nan=False, allow_infinity=False)
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
models = st.builds(
    Model,
    width=st.integers(0, 2**70).map(lambda n: 4 * n),
    norm=st.sampled_from(["layernorm", "rmsnorm"]),
    dropout=numbers,
)
runs = st.builds(
    Run,
    model=models,
    name=names | st.sampled_from(["1e-3", "null", "yes", "1", "2024-01-01", "", "~", "=", "<<"]),
    steps=st.none() | st.integers(),
    betas=st.tuples(numbers, numbers),
    shards=st.lists(names).map(tuple),
    weights=st.dictionaries(names, numbers),
    device=st.integers() | names,
    resume=st.booleans(),
    tuning=st.none() | models,
)


@given(runs)
def test_a_config_survives_its_table_and_its_yaml(run: Run) -> None:
    assert build(Run, table_of(run)) == run
    assert build(Run, override({}, [f"run={dump(run)}"])["run"]) == run  # type: ignore[arg-type]


def test_the_yaml_keeps_the_order_of_the_fields() -> None:
    text = dump(Model(width=8))
    assert text == "width: 8\nheads: 4\nnorm: layernorm\ndropout: 0.0\n"
