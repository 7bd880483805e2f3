"""Text <-> pieces: every string comes back exactly, whatever it spells."""

import io
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenizer.errors import UserError
from tokenizer.text import TextTokenizer

LINES = ["a red fox sits on the mat", "the blue cat and the red dog", "Question: what? Answer:"] * 4
TOKENIZER = TextTokenizer.train(LINES, 320)

AWKWARD = [
    "",
    "<break>",
    "<sentinel:0>",
    "</s>",
    "<s><pad></s><unk>",
    "<0x0A>",
    "\u2581",
    " \u2581\u2581 a\u2581b",
    "\u2585 \u2047 \ufffd \ufffe \uffff \ufeff",
    "\u4e00\u53ea\u7ea2\u8272\u7684\u72d0\u72f8",  # Chinese
    "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466",  # a family: four joined emoji
    "e\u0301 \u00e9 \ufb01 \uff21",  # what a normaliser would fold
    "a\0b\0",
    "\n\r\n\t\x0b\x85\u2028",
    "  two  before,   three inside and four after    ",
    " a red fox",
    "I17 T5 IMGIMGBHZ",
]
texts = st.one_of(
    st.text(),
    st.lists(st.sampled_from([*AWKWARD, " ", "a red", "fox"])).map("".join),
)
exactly = settings(derandomize=True, deadline=None)


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_text_comes_back_exactly(text: str) -> None:
    pieces = TOKENIZER.encode(text)
    assert all(0 <= piece < TOKENIZER.pieces for piece in pieces)
    assert TOKENIZER.decode(pieces) == text


@exactly
@given(texts, texts)
def test_texts_encoded_apart_come_back_joined(first: str, second: str) -> None:
    apart = TOKENIZER.encode(first) + TOKENIZER.encode(second)
    assert TOKENIZER.decode(apart) == first + second


@exactly
@given(st.lists(st.integers(0, TOKENIZER.pieces - 1)))
def test_any_pieces_decode_without_an_error(pieces: list[int]) -> None:
    assert isinstance(TOKENIZER.decode(pieces), str)


def test_broken_utf8_becomes_the_replacement_character() -> None:
    fox = TOKENIZER.encode(" fox")
    assert TOKENIZER.decode([0xE2, 0x96, *fox]) == "\ufffd fox"


def test_decode_agrees_with_the_library_away_from_its_space_rules() -> None:
    library = sentencepiece.SentencePieceProcessor(model_proto=TOKENIZER.model)
    pieces = TOKENIZER.encode("the red dog, 12 \u72d0 and a caf\u00e9")
    assert library.decode([piece + 1 for piece in pieces]) == TOKENIZER.decode(pieces)


def test_learnt_words_are_fewer_pieces_than_letters() -> None:
    assert len(TOKENIZER.encode(" the red")) <= 3


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(UserError, match=r"lone surrogate, U\+D83D, at character 2"):
        TOKENIZER.encode("ab\ud83d")


def test_training_is_deterministic_and_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    again = TextTokenizer.train(iter(LINES), 320)
    assert (again.model, again.pieces, again.hash) == (TOKENIZER.model, 320, TOKENIZER.hash)
    assert TextTokenizer.train(LINES, 321).hash != TOKENIZER.hash
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("lines", "pieces", "words"),
    [
        (LINES, 5000, r"pairs for \d+ at most; give more text or ask for fewer"),
        (LINES, 260, r"this text needs 2\d\d for its bytes and characters; ask for more"),
        (LINES, 256, "256 are bytes, ask for more"),
        ([], 300, "is there any text"),
        (["fine", "half \udc00"], 300, r"lone surrogate, U\+DC00"),
    ],
)
def test_training_that_cannot_work_says_why(lines: list[str], pieces: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        TextTokenizer.train(lines, pieces)


def test_the_number_that_the_refusal_names_works() -> None:
    with pytest.raises(UserError) as refused:
        TextTokenizer.train(LINES, 5000)
    most = int(str(refused.value).split("pairs for ")[1].split()[0])
    assert TextTokenizer.train(LINES, most).pieces == most


def test_a_model_comes_back_from_its_bytes_and_its_file(tmp_path: Path) -> None:
    path = tmp_path / "text.model"
    path.write_bytes(TOKENIZER.model)
    for copy in (TextTokenizer.load(path), TextTokenizer.from_bytes(TOKENIZER.model)):
        assert copy.hash == TOKENIZER.hash
        assert copy.encode("a red \n fox") == TOKENIZER.encode("a red \n fox")


def test_files_that_are_not_models_are_refused_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    junk, empty = tmp_path / "junk.model", tmp_path / "empty.model"
    junk.write_bytes(b"junk")
    empty.write_bytes(b"")
    for path in (junk, empty, tmp_path / "none.model", tmp_path):
        with pytest.raises(UserError) as refused:
            TextTokenizer.load(path)
        assert str(path) in str(refused.value)
        assert "\n" not in str(refused.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "change",
    [
        {"byte_fallback": False},
        {"normalization_rule_name": "nfkc"},
        {"add_dummy_prefix": True},
        {"remove_extra_whitespaces": True},
        {"bos_id": 1},
        {"user_defined_symbols": ["<break>"]},
    ],
)
def test_a_model_made_otherwise_is_refused(change: dict[str, Any]) -> None:
    written = io.BytesIO()
    wanted: dict[str, Any] = {
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "bos_id": -1,
        "eos_id": -1,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_writer=written,
        model_type="bpe",
        vocab_size=310 if change.get("byte_fallback", True) else 60,
        minloglevel=2,
        **(wanted | change),
    )
    with pytest.raises(UserError, match="does not give text back"):
        TextTokenizer.from_bytes(written.getvalue())


FOLDING = TextTokenizer.train(LINES, 330, fold=True)


@pytest.mark.parametrize(
    "typed",
    ["a red fox", "A Red Fox", "  a  red\tFOX ", "a\u00a0red fox\n"],
)
def test_a_folding_model_does_not_care_how_a_text_is_typed(typed: str) -> None:
    assert FOLDING.encode(typed) == FOLDING.encode(" a red fox")
    assert FOLDING.decode(FOLDING.encode(typed)) == " a red fox"


def test_a_word_is_the_same_pieces_wherever_it_stands() -> None:
    (red,) = FOLDING.encode("red")
    for text in ("red", "the red dog", "(red)", "dog-red", "RED, dog", "red-dog"):
        assert red in FOLDING.encode(text)


@pytest.mark.parametrize(
    ("typed", "folded"),
    [
        ("T-shirt (blank)", " t-shirt (blank)"),
        ("it\u2019s \u201cbig\u201d", ' it\'s "big"'),
        ("medium\u2013light - skin", " medium-light-skin"),
        ("\u00c5LAND", " \u00e5land"),
        ("", ""),
        (" \n ", ""),
    ],
)
def test_a_folding_model_gives_the_folded_text_back(typed: str, folded: str) -> None:
    assert FOLDING.decode(FOLDING.encode(typed)) == folded


@exactly
@given(texts)
def test_folding_twice_is_folding_once(text: str) -> None:
    once = FOLDING.decode(FOLDING.encode(text))
    assert FOLDING.decode(FOLDING.encode(once)) == once
    assert FOLDING.encode(once) == FOLDING.encode(text)


def test_folding_is_kept_in_the_model_itself_and_is_deterministic() -> None:
    assert TextTokenizer.train(LINES, 330, fold=True).model == FOLDING.model
    assert TextTokenizer.from_bytes(FOLDING.model).folds
    assert not TOKENIZER.folds
