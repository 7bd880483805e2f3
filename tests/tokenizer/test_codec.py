"""Documents <-> ids: layouts spelt out token by token, and the two ways round agree."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenizer.codec import Codec
from tokenizer.document import Document, Field, Hole, Picture, segments
from tokenizer.errors import UserError
from tokenizer.text import TextTokenizer
from tokenizer.vocabulary import EOS, Vocabulary

LINES = ["a red fox sits on the mat", "Describe the given picture.", "make the cat blue"] * 4
TEXT = TextTokenizer.train(LINES, 320)
CODES = 16
VOCABULARY = Vocabulary(image_codes=32, text_pieces=320, sentinels=8)
CODEC = Codec(VOCABULARY, TEXT, CODES)
BREAK, EOSS = VOCABULARY.break_id, VOCABULARY.eoss_id
FIRST = Picture(tuple(range(CODES)))
SECOND = Picture(tuple(reversed(range(CODES))))

SPELT = ["<break>", "<sentinel:0>", "</s>", "<eoss>", "<0x0A>", "I17", " a red fox", "   "]
ODD = ["\u2581", "\u72d0", "a\0b", "\n", "\U0001f469\u200d\U0001f469\u200d\U0001f467"]
words = st.one_of(
    st.text(min_size=1), st.lists(st.sampled_from(SPELT + ODD), min_size=1).map("".join)
)
pictures = st.lists(st.integers(0, 31), min_size=CODES, max_size=CODES).map(
    lambda codes: Picture(tuple(codes))
)
documents = st.lists(st.one_of(words, words.map(Field), pictures), min_size=1).map(tuple)
exactly = settings(derandomize=True, deadline=None)


def text_ids(text: str) -> tuple[int, ...]:
    return tuple(VOCABULARY.text_id(piece) for piece in TEXT.encode(text))


def image_ids(picture: Picture) -> tuple[int, ...]:
    return tuple(VOCABULARY.image_id(code) for code in picture.codes if isinstance(code, int))


def merged(document: Document) -> Document:
    """Neighbouring text parts as one str: all that a row of ids keeps."""
    parts: list[str | Picture] = []
    for part in document:
        assert not isinstance(part, Hole)
        text = part.text if isinstance(part, Field) else part
        if parts and isinstance(text, str) and isinstance(parts[-1], str):
            parts[-1] += text
        else:
            parts.append(text)
    return tuple(parts)


def sentinel(number: int) -> int:
    return VOCABULARY.sentinel_id(number)


# ---- layouts, by hand


def test_a_pair_is_eos_text_break_picture_eos() -> None:
    encoded = CODEC.encode((Field(" a red fox"), FIRST))
    words = text_ids(" a red fox")
    assert encoded.ids == (EOS, *words, BREAK, *image_ids(FIRST), EOS)
    assert encoded.fields == ((1, 1 + len(words)),)


def test_retrieved_documents_come_first_with_breaks_between() -> None:
    retrieved = [(Field("one"), FIRST), ("two", SECOND)]
    encoded = CODEC.encode((Field("three"), FIRST), retrieved)
    one, two, three = text_ids("one"), text_ids("two"), text_ids("three")
    before = (EOS, *one, BREAK, *image_ids(FIRST), BREAK, *two, BREAK, *image_ids(SECOND), BREAK)
    assert encoded.ids == (*before, *three, BREAK, *image_ids(FIRST), EOS)
    assert encoded.fields == ((len(before), len(before) + len(three)),)


def test_one_document_both_retrieved_and_query_has_the_fields_of_the_query() -> None:
    pair = (Field("one"), FIRST)
    encoded = CODEC.encode(pair, [pair])
    ((start, end),) = encoded.fields
    assert start > len(image_ids(FIRST))
    assert encoded.ids[start:end] == text_ids("one")


def test_an_edit_has_a_break_at_every_change() -> None:
    ids = CODEC.encode(("Edit", FIRST, Field(" make it blue"), SECOND)).ids
    blue = text_ids(" make it blue")
    both = (*image_ids(FIRST), BREAK, *blue, BREAK, *image_ids(SECOND))
    assert ids == (EOS, *text_ids("Edit"), BREAK, *both, EOS)


def test_two_pictures_side_by_side_have_a_break_between() -> None:
    assert segments((FIRST, SECOND)) == [(FIRST,), (SECOND,)]
    assert CODEC.encode((FIRST, SECOND)).ids[1 + CODES] == BREAK


def test_a_prompt_for_a_picture_is_left_open_after_break() -> None:
    assert CODEC.open(("a red fox",)) == (EOS, *text_ids("a red fox"), BREAK)
    assert CODEC.open((Hole(),)) == (EOS, sentinel(0), BREAK)
    examples = (EOS, *text_ids("one"), BREAK, *image_ids(FIRST), BREAK)
    assert CODEC.open((), [("one", FIRST)]) == examples
    assert CODEC.open(("two",), [("one", FIRST)]) == (*examples, *text_ids("two"), BREAK)
    edit = (EOS, *text_ids("Edit"), BREAK, *image_ids(FIRST), BREAK, sentinel(0), BREAK)
    assert CODEC.open(("Edit", FIRST, Hole())) == edit


def test_an_open_prompt_is_how_the_training_row_begins() -> None:
    row = CODEC.encode((Field(" a red fox"), FIRST), [("one", SECOND)]).ids
    prompt = CODEC.open((" a red fox",), [("one", SECOND)])
    assert row[: len(prompt)] == prompt
    assert CODEC.decode_codes(row[len(prompt) : len(prompt) + CODES]) == FIRST.codes


def test_a_hole_takes_the_place_of_the_field_of_the_training_row() -> None:
    encoded = CODEC.encode(("Describe the given picture.", Field(" a red fox"), FIRST))
    ((start, end),) = encoded.fields
    prompt = CODEC.infill(("Describe the given picture.", Hole(), FIRST))
    assert prompt == (*encoded.ids[:start], sentinel(0), *encoded.ids[end:], sentinel(0))


def test_holes_are_numbered_through_text_and_pictures() -> None:
    holed = Picture((*range(4), Hole(8), *range(12, 15), Hole(1)))
    document = ("a", Hole(), " fox", holed)
    assert CODEC.holes(document) == [Hole(), Hole(8), Hole(1)]
    known = image_ids(FIRST)
    picture = (*known[:4], sentinel(1), *known[12:15], sentinel(2))
    text = (*text_ids("a"), sentinel(0), *text_ids(" fox"))
    assert CODEC.infill(document) == (EOS, *text, BREAK, *picture, EOS, sentinel(0))


# ---- the two ways round


@exactly
@given(documents)
def test_decode_gives_back_what_encode_got(document: Document) -> None:
    assert CODEC.decode(CODEC.encode(document).ids) == merged(document)


@exactly
@given(documents)
def test_text_never_becomes_a_special_id(document: Document) -> None:
    ids = CODEC.encode(document).ids
    special = [token for token in ids if not VOCABULARY.is_text(token)]
    special = [token for token in special if not VOCABULARY.is_image(token)]
    assert special == [EOS, *[BREAK] * (len(segments(document)) - 1), EOS]


@exactly
@given(documents, st.lists(documents, max_size=2))
def test_field_spans_hold_the_texts_of_the_fields(
    document: Document, retrieved: list[Document]
) -> None:
    encoded = CODEC.encode(document, retrieved)
    texts = [CODEC.decode_text(encoded.ids[start:end]) for start, end in encoded.fields]
    assert texts == [part.text for part in document if isinstance(part, Field)]


@exactly
@given(documents)
def test_filling_the_holes_with_the_fields_gives_back_the_row(document: Document) -> None:
    encoded = CODEC.encode(document)
    holed = tuple(Hole() if isinstance(part, Field) else part for part in document)
    filled = CODEC.fill(holed, [encoded.ids[start:end] for start, end in encoded.fields])
    assert filled == tuple(p.text if isinstance(p, Field) else p for p in document)
    assert CODEC.encode(filled).ids == encoded.ids


@exactly
@given(pictures, st.integers(0, CODES - 1), st.data())
def test_filling_a_hole_in_a_picture_gives_back_the_picture(
    picture: Picture, start: int, data: st.DataObject
) -> None:
    end = data.draw(st.integers(start + 1, CODES))
    codes = picture.codes
    holed = ("a fox", Picture((*codes[:start], Hole(end - start), *codes[end:])))
    assert CODEC.infill(holed).count(sentinel(0)) == 2
    assert CODEC.fill(holed, [image_ids(picture)[start:end]]) == ("a fox", picture)


def test_decode_text_stops_at_the_first_other_id() -> None:
    assert CODEC.decode_text((*text_ids(" a fox"), EOSS, *text_ids(" more"))) == " a fox"
    assert CODEC.decode_text((EOSS,)) == ""


def test_retrieved_documents_decode_as_leading_parts() -> None:
    ids = CODEC.encode(("two", SECOND), [("one", FIRST)]).ids
    assert CODEC.decode(ids) == ("one", FIRST, "two", SECOND)


# ---- refusals

SHORT = Picture((1, 2, 3))
TIGHT = Codec(VOCABULARY, TEXT, CODES, context=24)
OTHER = Vocabulary(image_codes=32, text_pieces=319)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CODEC.encode((SHORT,)), "an image of 3 codes, wanted 16"),
        (lambda: CODEC.encode(("a", FIRST), [("b", SHORT)]), "an image of 3 codes, wanted 16"),
        (lambda: CODEC.encode((Picture((32,) * CODES),)), "image code 32 is outside 0..31"),
        (lambda: CODEC.encode(()), "an empty document"),
        (lambda: CODEC.encode(("a",), [()]), "an empty document"),
        (lambda: CODEC.encode(("", FIRST)), "an empty text"),
        (lambda: CODEC.encode(("a", Hole())), "a document with holes cannot be encoded"),
        (lambda: CODEC.encode(("a",), [(Hole(),)]), "a retrieved document has a hole"),
        (lambda: CODEC.open((), [(Hole(),)]), "a retrieved document has a hole"),
        (lambda: CODEC.open(()), "an empty prompt with no examples"),
        (lambda: CODEC.infill(("a", FIRST)), "a document without a hole"),
        (lambda: CODEC.infill((Picture((*range(8), Hole(7))),)), "an image of 15 codes"),
        (lambda: CODEC.infill((Picture((Hole(),)),)), "a hole in an image needs a length"),
        (lambda: CODEC.infill((Hole(3),)), "a hole of 3 codes stands in text"),
        (lambda: CODEC.infill((Hole(),) * 9), "sentinel 8 is outside 0..7"),
        (lambda: Hole(0), "a hole of 0 codes"),
        (lambda: CODEC.fill(("a", Hole()), []), "got 0 fillings for 1 holes"),
        (lambda: CODEC.fill((Hole(),), [[EOSS]]), "is not a text piece"),
        (lambda: CODEC.fill((Picture((Hole(16),)),), [[4] * 15]), "15 codes for a hole of 16"),
        (lambda: CODEC.fill((Picture((Hole(1),)),), [text_ids("a")]), "is not an image code"),
        (lambda: CODEC.decode(()), "a closed row starts and ends with </s>"),
        (lambda: CODEC.decode((EOS, EOS)), "a closed row starts and ends with </s>"),
        (lambda: CODEC.decode(CODEC.open(("a",))), "a closed row starts and ends with </s>"),
        (lambda: CODEC.decode((EOS, BREAK, 4, EOS)), "nothing between two <break>"),
        (lambda: CODEC.decode((EOS, *text_ids("a"), EOS, EOS)), "token id 2 is not a text piece"),
        (lambda: CODEC.decode((EOS, 4, 5, EOS)), "an image of 2 codes, wanted 16"),
        (lambda: CODEC.decode((EOS, *[4] * 15, EOSS, EOS)), "is not an image code"),
        (lambda: Codec(OTHER, TEXT, CODES), "the text tokenizer has 320 pieces"),
    ],
)
def test_what_does_not_fit_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError) as refused:
        call()
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_context_holds_the_prompt_and_what_is_to_come() -> None:
    assert len(text_ids("x" * 6)) == 6
    assert len(TIGHT.encode(("x" * 5, FIRST)).ids) == 24
    assert len(TIGHT.open(("x" * 6,))) == 24 - CODES
    assert len(TIGHT.infill((Hole(), "x", FIRST))) == 22
    with pytest.raises(UserError, match=r"25 ids do not fit into the model's 24; shorten the text"):
        TIGHT.encode(("x" * 6, FIRST))
    with pytest.raises(UserError, match=r"9 ids and 16 more to generate do not fit"):
        TIGHT.open(("x" * 7,))
    with pytest.raises(UserError, match=r"23 ids and 2 more to generate do not fit"):
        TIGHT.infill((Hole(), "x" * 2, FIRST))
