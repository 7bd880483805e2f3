"""The prompts in people's own words: half of them open for development, half scored once."""

import json
from collections import Counter
from pathlib import Path

PROMPTS = Path(__file__).parent.parent / "docs" / "sheets" / "people.json"


def test_each_half_has_as_many_prompts_of_every_topic_and_none_twice() -> None:
    table = json.loads(PROMPTS.read_text())
    assert list(table) == ["open", "sealed"]
    topics = [Counter(row["topic"] for row in rows) for rows in table.values()]
    assert topics[0] == topics[1]
    assert topics[0].total() == 75
    rows = table["open"] + table["sealed"]
    assert len({row["prompt"].lower() for row in rows}) == 150
    assert all(row["families"] for row in rows)
