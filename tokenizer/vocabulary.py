"""Table of token ids: special | image codes | text pieces | <break> <eoss> sentinels.

All tasks convert codes and pieces to ids and back here. No other file adds an offset, so an invalid
number raises an error in a single place, with the valid range.
"""

from dataclasses import dataclass
from functools import cached_property

from tokenizer.errors import UserError

START, PAD, EOS, UNK = 0, 1, 2, 3
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")

ROWS_MULTIPLE = 8  # the embedding has a multiple of 8 rows, as in Meta's dictionary


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Ranges of the token ids of each kind.

    `<break>` separates two segments, `</s>` begins and ends a row, `<sentinel:i>` marks hole i and
    later introduces its filling, `<eoss>` ends a filling (CM3Leon, section 2).
    """

    image_codes: int
    text_pieces: int
    sentinels: int = 512

    def __post_init__(self) -> None:
        for name in ("image_codes", "text_pieces", "sentinels"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, wanted at least 1")

    @cached_property
    def image_ids(self) -> slice:
        """Ids of the image codes, code 0 first."""
        return slice(len(SPECIAL), len(SPECIAL) + self.image_codes)

    @cached_property
    def text_ids(self) -> slice:
        """Ids of the text pieces, piece 0 first."""
        return slice(self.image_ids.stop, self.image_ids.stop + self.text_pieces)

    @property
    def break_id(self) -> int:
        """Id of `<break>`, between two adjacent segments."""
        return self.text_ids.stop

    @property
    def eoss_id(self) -> int:
        """Id of `<eoss>`, the end of a hole's filling."""
        return self.break_id + 1

    @cached_property
    def sentinel_ids(self) -> slice:
        """Ids of the sentinels, `<sentinel:0>` first."""
        return slice(self.eoss_id + 1, self.eoss_id + 1 + self.sentinels)

    @property
    def size(self) -> int:
        """Rows of the embedding: the number of tokens, rounded up; the last few may be unused."""
        return -(-self.sentinel_ids.stop // ROWS_MULTIPLE) * ROWS_MULTIPLE

    def image_id(self, code: int) -> int:
        return _into(self.image_ids, code, "image code")

    def code_of(self, token: int) -> int:
        return _out_of(self.image_ids, token, "an image code")

    def is_image(self, token: int) -> bool:
        return _holds(self.image_ids, token)

    def text_id(self, piece: int) -> int:
        return _into(self.text_ids, piece, "text piece")

    def piece_of(self, token: int) -> int:
        return _out_of(self.text_ids, token, "a text piece")

    def is_text(self, token: int) -> bool:
        return _holds(self.text_ids, token)

    def sentinel_id(self, number: int) -> int:
        return _into(self.sentinel_ids, number, "sentinel")

    def sentinel_of(self, token: int) -> int:
        return _out_of(self.sentinel_ids, token, "a sentinel")

    def is_sentinel(self, token: int) -> bool:
        return _holds(self.sentinel_ids, token)

    def name(self, token: int) -> str:
        """Return a readable name of a token: `<break>`, `I17`, `T5`, `<sentinel:0>`."""
        if not 0 <= token < self.size:
            raise UserError(f"token id {token} is outside 0..{self.size - 1}")
        if token < len(SPECIAL):
            return SPECIAL[token]
        if self.is_image(token):
            return f"I{self.code_of(token)}"
        if self.is_text(token):
            return f"T{self.piece_of(token)}"
        if self.is_sentinel(token):
            return f"<sentinel:{self.sentinel_of(token)}>"
        if token >= self.sentinel_ids.stop:
            return f"<unused:{token - self.sentinel_ids.stop}>"
        return "<break>" if token == self.break_id else "<eoss>"


def _holds(ids: slice, token: int) -> bool:
    return ids.start <= token < ids.stop


def _into(ids: slice, number: int, kind: str) -> int:
    if not 0 <= number < ids.stop - ids.start:
        raise UserError(f"{kind} {number} is outside 0..{ids.stop - ids.start - 1}")
    return ids.start + number


def _out_of(ids: slice, token: int, kind: str) -> int:
    if not _holds(ids, token):
        raise UserError(f"token id {token} is not {kind}: those are {ids.start}..{ids.stop - 1}")
    return token - ids.start


PAPER = Vocabulary(image_codes=8192, text_pieces=56320)
