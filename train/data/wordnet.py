"""Synonyms of a corpus's labels from WordNet's files, for the training of a text tokenizer.

Read where the text tokenizer is trained and nowhere else: the folder is Debian's
`/usr/share/wordnet` (package wordnet-base) or the `dict` folder of WordNet 3. Format: wndb(5WN).
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from tokenizer.errors import UserError

SENSES = 2  # of each noun: the commonest come first
WORD = re.compile(r"[a-z]{3,}")


def synonyms(folder: Path, labels: Iterable[str]) -> list[str]:
    """The words that share a noun sense with a label, or with the last word of one, in order.

    Raises UserError where the folder has no WordNet.
    """
    index, data = folder / "index.noun", folder / "data.noun"
    try:
        senses = dict(_senses(index.read_text("utf-8").splitlines()))
        with data.open("rb") as file:
            found = {
                word
                for label in labels
                for name in _names(label)
                for place in senses.get(name, ())[:SENSES]
                for lemma in _lemmas(file, place)
                for word in WORD.findall(lemma.lower())
            }
    except (OSError, ValueError, IndexError) as error:
        raise UserError(
            f"{folder} has no WordNet that can be read ({error}); name the folder that holds "
            "index.noun and data.noun, on Debian /usr/share/wordnet of wordnet-base"
        ) from error
    return sorted(found)


def _names(label: str) -> tuple[str, str]:
    """A label, and its last word, as WordNet writes them."""
    words = label.lower().replace("-", " ").split() or [""]
    return "_".join(words), words[-1]


def _senses(lines: Iterable[str]) -> Iterator[tuple[str, list[int]]]:
    """(lemma, places of its senses in the data file) of an index's lines."""
    for line in lines:
        if not line.startswith(" "):  # the licence stands in front
            fields = line.split()
            count, pointers = int(fields[2]), int(fields[3])
            yield fields[0], [int(place) for place in fields[6 + pointers :][:count]]


def _lemmas(file: IO[bytes], place: int) -> list[str]:
    """The words of one sense."""
    file.seek(place)
    fields = file.readline().decode("utf-8").split()
    return fields[4 : 4 + 2 * int(fields[3], 16) : 2]
