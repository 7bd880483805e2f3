"""Draw by lot what stands on the fixed sheet; done once, before training.

    python scripts/choose_sheet.py CORPUS docs/sheets/prompts.json

CORPUS holds train-*.tar, edits.jsonl.gz and heldout-pairs.txt. The rules are in eval/sheet.py; the
same corpus gives the same file again.
"""

import argparse
import gzip
import json
from pathlib import Path
from typing import Any, cast

from eval.sheet import choose
from tokenizer import settings
from tokenizer.manifest import write_file
from tokenizer.tars import Tally, find_tars, read_ids, read_samples


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw by lot what stands on the fixed sheet.")
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    corpus: Path = given.corpus
    tally = Tally()
    pictures = [one.metadata for one in read_samples(find_tars(corpus, "train-"), tally)]
    assert not tally.skipped, "the corpus is damaged"
    with gzip.open(corpus / "edits.jsonl.gz", "rt", encoding="utf-8") as lines:
        edits = [json.loads(line) for line in lines]
    train = [edit for edit in edits if edit["split"] == "train"]
    chosen = settings.table_of(choose(pictures, train, read_ids(corpus / "heldout-pairs.txt")))
    write_file(given.out, _lines(chosen).encode())


def _lines(table: dict[str, object]) -> str:
    """JSON with one line for each row, so that people can read it."""
    parts = [
        f'  "{name}": [\n'
        + ",\n".join(
            f"    {json.dumps(row, ensure_ascii=False)}" for row in cast("list[Any]", rows)
        )
        + "\n  ]"
        for name, rows in table.items()
    ]
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    main()
