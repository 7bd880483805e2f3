"""Grammars that constrain generation: the ids allowed at each step, as plain data.

`prompts` defines the task; `generate` follows a grammar while sampling, and `likelihood` follows
the same grammar to score existing sequences. An image thus has exactly its number of codes, and
text ends where it should, whatever the weights predict.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from tokenizer.errors import UserError
from tokenizer.vocabulary import EOS, Vocabulary


@dataclass(frozen=True)
class Given:
    """Ids that come next without being drawn."""

    ids: tuple[int, ...]


@dataclass(frozen=True)
class Drawn:
    """Run of ids to draw from `allowed`.

    Without `stops` it has exactly `length` ids. With them it ends at the first stop drawn; after
    `length` ids without a stop, the first of `stops` is appended.
    """

    allowed: range
    length: int
    stops: tuple[int, ...] = ()

    @property
    def choices(self) -> "Choices":
        """Ids that may be drawn at a step of this run."""
        return (self.allowed, *(range(stop, stop + 1) for stop in self.stops))


Choices = tuple[range, ...]  # ids that may be drawn at a step, in the order of their logits
Grammar = tuple[Given | Drawn, ...]


def picture(vocabulary: Vocabulary, length: int) -> Grammar:
    """Return the grammar of a whole image of `length` codes."""
    return codes(vocabulary, [None] * length)


def codes(vocabulary: Vocabulary, known: Sequence[int | None]) -> Grammar:
    """Return the grammar of a run of codes, some of them known: None marks those to draw."""
    runs: list[Given | Drawn] = []
    for unknown, run in groupby(known, lambda code: code is None):
        if unknown:
            runs.append(Drawn(_range(vocabulary.image_ids), len(list(run))))
        else:
            runs.append(Given(tuple(vocabulary.image_id(code) for code in run if code is not None)))
    return tuple(runs)


def text(vocabulary: Vocabulary, limit: int) -> Grammar:
    """Return the grammar of text at the end of a row.

    It has at most `limit` pieces, then `<eoss>` or `</s>`.
    """
    return (Drawn(_range(vocabulary.text_ids), _positive(limit), (vocabulary.eoss_id, EOS)),)


def text_filling(vocabulary: Vocabulary, limit: int) -> Grammar:
    """Return the grammar of the text of one hole: at most `limit` pieces, then `<eoss>`."""
    return (Drawn(_range(vocabulary.text_ids), _positive(limit), (vocabulary.eoss_id,)),)


def code_filling(vocabulary: Vocabulary, known: Sequence[int | None]) -> Grammar:
    """Return the grammar of the codes of one hole in an image, then `<eoss>`."""
    return (*codes(vocabulary, known), Given((vocabulary.eoss_id,)))


def infilling(vocabulary: Vocabulary, fillings: Sequence[Grammar]) -> Grammar:
    """Return the grammar of one filling per hole, after a prompt that ends with `<sentinel:0>`.

    The other sentinels are given (the format of CM3's training documents).
    """
    assert fillings, "nothing to fill in"
    whole = fillings[0]
    for hole, filling in enumerate(fillings[1:], start=1):
        whole = (*whole, Given((vocabulary.sentinel_id(hole),)), *filling)
    return whole


def split_fillings(vocabulary: Vocabulary, ids: Sequence[int]) -> list[list[int]]:
    """Split ids generated under `infilling` by hole, without `<eoss>` and sentinels."""
    fillings: list[list[int]] = [[]]
    for token in ids:
        if vocabulary.is_sentinel(token):
            fillings.append([])
        elif token != vocabulary.eoss_id:
            fillings[-1].append(token)
    return fillings


def longest(grammar: Grammar) -> int:
    """Return the maximum number of ids that a grammar allows."""
    return sum(
        len(part.ids) if isinstance(part, Given) else part.length + bool(part.stops)
        for part in grammar
    )


def token_at(choices: Choices, column: int) -> int:
    """Return the id of this column of the concatenated logits of `choices`."""
    for ids in choices:
        if column < len(ids):
            return ids[column]
        column -= len(ids)
    raise AssertionError("no such column")


def column_of(choices: Choices, token: int) -> int:
    """Return the column of an id's logit; the inverse of `token_at`."""
    before = 0
    for ids in choices:
        if token in ids:
            return before + ids.index(token)
        before += len(ids)
    raise AssertionError(f"id {token} is not allowed here")


class Walk:
    """Position in a grammar: read `given()`, then `take` one of `choices`, and repeat."""

    def __init__(self, grammar: Grammar) -> None:
        self._grammar = grammar
        self._part = 0
        self._taken = 0  # ids taken in this part
        self._owed: list[int] = []  # the stop of a text that has reached its limit

    def given(self) -> list[int]:
        """Return the ids that come next without being drawn, and advance past them."""
        ids, self._owed = self._owed, []
        while self._part < len(self._grammar):
            part = self._grammar[self._part]
            if isinstance(part, Drawn):
                break
            ids.extend(part.ids)
            self._part += 1
        return ids

    @property
    def choices(self) -> Choices:
        """Ids that may be drawn once all given ids are read; empty at the end of the grammar."""
        if self._part == len(self._grammar):
            return ()
        return self._drawn().choices

    def take(self, token: int) -> None:
        """Advance past a drawn id."""
        part = self._drawn()
        assert any(token in ids for ids in part.choices), f"{token} not allowed"
        self._taken += 1
        if token in part.stops or self._taken == part.length:
            if part.stops and token not in part.stops:
                self._owed = [part.stops[0]]
            self._part += 1
            self._taken = 0

    @property
    def left(self) -> int:
        """Maximum number of ids left in this run."""
        return self._drawn().length - self._taken

    @property
    def may_stop(self) -> bool:
        """True if any id drawn may be the last of this run."""
        return bool(self._drawn().stops)

    def _drawn(self) -> Drawn:
        part = self._grammar[self._part]
        assert isinstance(part, Drawn), "take what is given first"
        return part


def _positive(limit: int) -> int:
    if limit < 1:
        raise UserError(f"a text of at most {limit} tokens was asked for; ask for at least 1")
    return limit


def _range(ids: slice) -> range:
    return range(ids.start, ids.stop)
