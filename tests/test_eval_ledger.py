"""The ledger's page: every entry of it is read, every mistake is told with its line."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.ledger import (
    COLUMNS,
    HEADING,
    NOT,
    OK,
    SKIPPED,
    Entry,
    Malformed,
    Row,
    compare,
    page,
    parse,
    read,
)
from eval.report import Value
from tokenizer.errors import UserError

TOP = ["# Ledger", "", f"## {HEADING}", "", "Words.", ""]
HEAD = [f"| {' | '.join(COLUMNS)} |", "| --- | --- | --- | ---: | :-- | --- |"]
GOOD = "| bits | `cm3leon eval perplexity --data CORPUS` | bits, all | 1.5 | 0.25 | 3 |"
OTHER = "| other | `cm3leon eval vqa --data 'a b'` | right, all | 0.5 | 0 | 3 |"


def written(*rows: str) -> str:
    return "\n".join([*TOP, *HEAD, *rows, "", "More.", "| no | entry |", "## Another", OTHER])


def entry(figure: float = 1.5, tolerance: float = 0.25) -> Entry:
    [one] = parse(written(GOOD), "l.md")
    return replace(one, figure=figure, tolerance=tolerance)


def test_entries_are_read() -> None:
    one, other = parse(written(GOOD, OTHER), "l.md")
    assert one == Entry(
        name="bits",
        words=("perplexity", "--data", "CORPUS"),
        value="bits, all",
        figure=1.5,
        tolerance=0.25,
        seconds=3,
        line=9,
    )
    assert (other.measure, other.words, other.line) == ("vqa", ("vqa", "--data", "a b"), 10)
    assert (one.needs_corpus, other.needs_corpus) == (True, False)


def test_the_corpus_has_its_place() -> None:
    row = GOOD.replace("CORPUS`", "CORPUS --ids CORPUS/ids.txt --split CORPUSES`")
    [one] = parse(written(row), "l.md")
    words = one.words_with(Path("/my/data"))
    assert words == [
        "perplexity", "--data", "/my/data", "--ids", "/my/data/ids.txt", "--split", "CORPUSES",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("# Ledger", "l.md: it must have one section"),
        ("\n".join([*TOP, f"## {HEADING}"]), "line 7 is another"),
        ("\n".join(TOP), "l.md:3: the section has no table"),
        ("\n".join([*TOP, "## Another", *HEAD, GOOD]), "l.md:3: the section has no table"),
        ("\n".join([*TOP, "| name | command |", GOOD]), "l.md:7: the columns are ('name', 'comm"),
        ("\n".join([*TOP, HEAD[0], GOOD]), "l.md:8: there is no line of dashes"),
        ("\n".join([*TOP, HEAD[0]]), "l.md:8: there is no line of dashes"),
        (written(), "l.md:7: the table has no entry"),
        (written(GOOD, GOOD), "l.md:10: line 9 has the name 'bits' too"),
        (written(GOOD, "| a | b |"), "l.md:10: 2 cells, not 6"),
        (written(GOOD.replace("bits |", " |")), "l.md:9: the entry's name or its value's is empty"),
        (written(GOOD.replace("1.5", "much")), "l.md:9: figure is 'much', not a number"),
        (written(GOOD.replace("1.5", "nan")), "l.md:9: figure is 'nan', not a number"),
        (written(GOOD.replace("0.25", "inf")), "l.md:9: tolerance is 'inf', not a number"),
        (written(GOOD.replace("0.25", "-1")), "l.md:9: tolerance and seconds cannot be negative"),
        (written(GOOD.replace("| 3 |", "| |")), "l.md:9: seconds is '', not a number"),
        (written(GOOD.replace("`", "")), "l.md:9: the command is 'cm3leon eval perplexity"),
        (written(GOOD.replace("perplexity", "ledger")), "l.md:9: the command is '`cm3leon eval le"),
        (written(GOOD.replace("eval perplexity", "chat")), "it must be `cm3leon eval NAME ...`"),
        (written(GOOD.replace("--data CORPUS", "'a")), "cannot be read (No closing quotation)"),
    ],
)
def test_a_malformed_page_is_told_with_its_line(text: str, reason: str) -> None:
    with pytest.raises(Malformed) as refused:
        parse(text, "l.md")
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


@given(st.lists(st.sampled_from([*TOP, *HEAD, GOOD, OTHER, "|", "||||||", "| ` | `", "x"])))
def test_any_page_is_read_or_refused(lines: list[str]) -> None:
    try:
        entries = parse("\n".join([*TOP[2:3], *lines]), "l.md")
    except Malformed:
        return
    assert {one.name for one in entries} <= {"bits", "other"}


def test_a_page_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path / "ledger.md")
    path = tmp_path / "l.md"
    path.write_text(written(GOOD), "utf-8")
    assert [one.name for one in read(path)] == ["bits"]
    path.write_text("")
    with pytest.raises(Malformed, match=f"{path}: it must have"):
        read(path)


finite = st.floats(-1e9, 1e9)


@given(finite, finite, st.floats(0, 1e9))
def test_within_the_tolerance_is_ok(was: float, now: float, tolerance: float) -> None:
    values = {"bits, all": Value(value=now, count=1)}
    row = compare(entry(was, tolerance), values, 1.0)
    assert row.now == now
    assert row.verdict == (OK if -tolerance <= now - was <= tolerance else NOT)


def test_what_is_no_number_or_not_there_is_not_ok() -> None:
    assert compare(entry(), {"bits, all": Value(value=math.nan, count=1)}, 1).verdict == NOT
    row = compare(entry(), {"a": Value(value=1.5, count=1), "b": Value(value=1, count=1)}, 1)
    assert (row.verdict, row.now) == (NOT, None)
    assert row.reason == "no value 'bits, all', only 'a', 'b'"


def test_the_table_for_people() -> None:
    rows = [
        compare(entry(), {"bits, all": Value(value=1.25, count=1)}, 2.6),
        Row(entry=entry(), verdict=SKIPPED, reason="no corpus"),
    ]
    assert page(rows).splitlines()[2:] == [
        "| bits | 1.5 | 1.25 | -0.25 | 0.25 | 3 | ok |",
        "| bits | 1.5 |  |  | 0.25 |  | skipped: no corpus |",
    ]
    assert rows[0].table() == {
        "entry": "bits",
        "value": "bits, all",
        "was": 1.5,
        "is": 1.25,
        "tolerance": 0.25,
        "verdict": "ok",
        "reason": "",
    }
