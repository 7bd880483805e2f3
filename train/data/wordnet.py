"""Synonyms of a corpus's labels from WordNet's files, for the training of a text tokenizer only.

The folder is Debian's `/usr/share/wordnet` (package wordnet-base) or the `dict` folder of
WordNet 3. Format: wndb(5WN).
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from tokenizer.errors import UserError

SENSES = 2  # read per noun; the most frequent are first
WORD = re.compile(r"[a-z]{3,}")


def synonyms(folder: Path, labels: Iterable[str]) -> list[str]:
    """Return the sorted words that share a noun sense with a label or with a label's last word.

    Raises UserError if the folder has no WordNet.
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
    """Return a label and its last word, in WordNet's spelling."""
    words = label.lower().replace("-", " ").split() or [""]
    return "_".join(words), words[-1]


def _senses(lines: Iterable[str]) -> Iterator[tuple[str, list[int]]]:
    """Yield (lemma, offsets of its senses in the data file) for the lines of an index file."""
    for line in lines:
        if not line.startswith(" "):  # the licence header
            fields = line.split()
            count, pointers = int(fields[2]), int(fields[3])
            yield fields[0], [int(place) for place in fields[6 + pointers :][:count]]


def _lemmas(file: IO[bytes], place: int) -> list[str]:
    """Return the words of the sense at an offset of the data file."""
    file.seek(place)
    fields = file.readline().decode("utf-8").split()
    return fields[4 : 4 + 2 * int(fields[3], 16) : 2]
