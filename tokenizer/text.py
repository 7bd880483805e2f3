"""Text <-> text pieces: a byte-fallback BPE, exact or folding.

The codec converts pieces to token ids. The only file that imports sentencepiece. Special tokens are
not in the model, so no text typed by a user can become one.

An exact model reproduces every string. A folding model, whose SentencePiece model has normalisation
rules, reproduces the folded string: lower case, single spaces, one leading space. A word then has
the same pieces regardless of its case and position. Folding is for small models, which have no
embedding rows to spare for learning "Fox" and "fox" separately; it is ours, not the paper's.
"""

import hashlib
import io
import re
import tempfile
import unicodedata
from collections.abc import Iterable, Sequence
from contextlib import chdir
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import sentencepiece

from tokenizer.errors import UserError

SPACE = "\u2581"  # a space in a SentencePiece model; in a user's text it is encoded as bytes
BYTES = 256  # pieces 0..255 are the bytes; learned pieces follow
LONGEST_LINE = 1 << 24  # bytes; the library silently drops longer training lines
# Text that a model with normalisation (case, spaces, compatibility forms) does not reproduce.
PROBE = "  A\ufb01 \uff21\n\n e\u0301\t\0 \u2581 "
# A folding model adds spaces around these, so that the word after one has the same pieces as
# elsewhere; decoding removes the spaces.
APART = {"-": " - ", "(": " ( ", "\u2013": " - ", "\u2010": " - ", "\u2011": " - "}
QUOTES = {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"'}
GAPS = re.compile(r"(?<=\S)( - )(?=\S)|(?<=\() ")
RULES = "rules.tsv"
FOLDED = range(0x250)  # code points that the rules fold: Latin letters


class TextTokenizer:
    """Trained SentencePiece model. Piece k here is the library's k + 1: its 0, `<unk>`, cannot
    occur because every byte has a piece."""

    def __init__(self, model: bytes, *, name: str = "the text tokenizer") -> None:
        if not model:
            raise UserError(f"{name} is empty, wanted a SentencePiece model")
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError:
            raise UserError(f"{name} is not a SentencePiece model") from None
        self.model = model
        self.pieces: int = self._processor.vocab_size() - 1
        self.folds = self._processor.normalize(" A") == "\u2581a"
        if not self._has_all_bytes() or not self._is_stable():
            raise UserError(
                f"{name} does not give text back; wanted a model with byte fallback that either "
                "leaves text as it is or folds it as this project does: train one with it"
            )

    @classmethod
    def from_bytes(cls, model: bytes) -> Self:
        """Return the tokenizer of the bytes of a `.model` file."""
        return cls(model)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a `.model` file. Raises UserError if it is missing or not supported."""
        try:
            model = Path(path).read_bytes()
        except OSError as error:
            raise UserError(f"cannot read text tokenizer {path}: {error.strerror}") from None
        return cls(model, name=str(path))

    @classmethod
    def train(cls, lines: Iterable[str], pieces: int, *, fold: bool = False) -> Self:
        """Learn `pieces` BPE pieces from lines of text; the same lines give the same model.

        With `fold` the model folds case, spaces and typographic quotes. Raises UserError if the
        lines have too little text, or too many characters, for this number of pieces.
        """
        if pieces <= BYTES:
            raise UserError(f"cannot train {pieces} text pieces: {BYTES} are bytes, ask for more")
        checked = list(lines)  # errors inside an iterator would be swallowed by the library
        for line in checked:
            _check_unicode(line)
        written = io.BytesIO()
        rules: dict[str, Any] = {"normalization_rule_name": "identity"}
        # the library stores the name of the rules' file in the model, so it must not vary
        with tempfile.TemporaryDirectory() as folder, chdir(folder):
            if fold:
                rules = {"normalization_rule_tsv": RULES}
                Path(RULES).write_text(_fold_rules(), "utf-8")
            try:
                sentencepiece.SentencePieceTrainer.train(
                    sentence_iterator=iter(checked),
                    model_writer=written,
                    model_type="bpe",
                    vocab_size=pieces + 1,
                    byte_fallback=True,
                    add_dummy_prefix=fold,
                    remove_extra_whitespaces=fold,
                    split_by_number=not fold,  # "3d" is a word
                    unk_id=0,
                    bos_id=-1,
                    eos_id=-1,
                    pad_id=-1,
                    max_sentence_length=LONGEST_LINE,
                    num_threads=1,
                    minloglevel=2,
                    **rules,
                )
            except RuntimeError as error:
                reason = _reason(str(error))
                raise UserError(f"cannot train {pieces} text pieces: {reason}") from None
        return cls(written.getvalue())

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the model: tokenizers with the same hash give the same pieces."""
        return hashlib.sha256(self.model).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Return the pieces of a text; `decode` returns the text, or the folded text. Raises
        UserError for lone surrogates."""
        _check_unicode(text)
        pieces: list[int] = []
        for number, stretch in enumerate(text.split(SPACE)):
            if number:
                pieces += SPACE.encode()  # piece b is byte b
            pieces += [k - 1 for k in self._processor.encode(stretch)]
        return pieces

    def decode(self, pieces: Sequence[int]) -> str:
        """Return the text of the pieces; bytes that are not UTF-8, which a model may generate,
        become U+FFFD."""
        text = b"".join(self._bytes[piece] for piece in pieces).decode(errors="replace")
        return GAPS.sub(lambda gap: gap[0].strip(), text) if self.folds else text

    @cached_property
    def _bytes(self) -> list[bytes]:
        """Bytes of each piece. Joining bytes is exact, whereas the library's own decode has rules
        for spaces at the start of a text."""
        learnt = range(BYTES + 1, self.pieces + 1)
        names = [self._processor.id_to_piece(k) for k in learnt]
        return [bytes([byte]) for byte in range(BYTES)] + [
            name.replace(SPACE, " ").encode() for name in names
        ]

    def _is_stable(self) -> bool:
        """Return whether decoding reproduces a text, or else a folded text that is stable."""
        once = self.decode(self.encode(PROBE))
        return once == PROBE or (self.folds and once == self.decode(self.encode(once)))

    def _has_all_bytes(self) -> bool:
        model = self._processor
        return (
            self.pieces >= BYTES
            and model.unk_id() == 0
            and all(model.id_to_piece(1 + byte) == f"<0x{byte:02X}>" for byte in range(BYTES))
            and not any(model.is_control(k) for k in range(model.vocab_size()))
        )


def _fold_rules() -> str:
    """Return SentencePiece's table of rules, a line each: code points in hex, tab, replacement."""
    folded = {chr(k): unicodedata.normalize("NFC", chr(k).casefold()) for k in FOLDED}
    spaces = dict.fromkeys(("\t", "\n", "\v", "\f", "\r", "\xa0"), " ")
    rules = {old: new for old, new in folded.items() if old != new} | spaces | QUOTES | APART

    def hexed(text: str) -> str:
        return " ".join(f"{ord(letter):X}" for letter in text)

    return "".join(f"{hexed(old)}\t{hexed(new)}\n" for old, new in sorted(rules.items()))


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"text holds a lone surrogate, U+{ord(text[error.start]):04X}, at character "
            f"{error.start}: that is half a character, and no UTF-8 text has it"
        ) from None


def _reason(message: str) -> str:
    """Return the library's error in the user's terms; its counts include `<unk>`, ours do not."""
    if high := re.search(r"too high .*<= (\d+)", message):
        most = int(high[1]) - 1
        return f"this text has pairs for {most} at most; give more text or ask for fewer pieces"
    if low := re.search(r"smaller than required_chars.* vs (\d+)", message):
        return f"this text needs {int(low[1]) - 1} for its bytes and characters; ask for more"
    return "is there any text to learn from?" if "sentences_" in message else message
