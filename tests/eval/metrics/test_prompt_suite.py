"""The prompts in people's own words: some open for development, others scored once."""

import json
from pathlib import Path

PROMPTS = Path(__file__).parents[3] / "docs" / "sheets" / "people.json"


def test_the_halves_share_no_prompt_and_every_prompt_accepts_something() -> None:
    table = json.loads(PROMPTS.read_text())
    assert list(table) == ["open", "sealed"]
    assert [len(rows) for rows in table.values()] == [150, 75]
    rows = table["open"] + table["sealed"]
    assert len({row["prompt"].lower() for row in rows}) == 225
    assert all(row["families"] for row in rows)
