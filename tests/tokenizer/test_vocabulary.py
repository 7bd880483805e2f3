"""The id table: every id has one meaning, and a number out of range is refused by name."""

from collections.abc import Callable

import pytest

from tokenizer.errors import UserError
from tokenizer.vocabulary import EOS, PAD, PAPER, SPECIAL, START, UNK, Vocabulary

SMALL = Vocabulary(image_codes=10, text_pieces=20, sentinels=4)


def test_the_layout_of_a_small_table_by_hand() -> None:
    assert [SPECIAL[token] for token in (START, PAD, EOS, UNK)] == ["<s>", "<pad>", "</s>", "<unk>"]
    assert (START, PAD, EOS, UNK) == (0, 1, 2, 3)
    assert SMALL.image_ids == slice(4, 14)
    assert SMALL.text_ids == slice(14, 34)
    assert (SMALL.break_id, SMALL.eoss_id) == (34, 35)
    assert SMALL.sentinel_ids == slice(36, 40)
    assert SMALL.size == 40


def test_size_is_rounded_up_to_a_multiple_of_eight() -> None:
    assert Vocabulary(image_codes=10, text_pieces=21, sentinels=4).size == 48
    assert PAPER.sentinel_ids.stop == 4 + 8192 + 56320 + 2 + 512
    assert PAPER.size == 65032


def test_every_id_belongs_to_exactly_one_kind_and_has_its_own_name() -> None:
    table = Vocabulary(image_codes=10, text_pieces=21, sentinels=4)
    names = [table.name(token) for token in range(table.size)]
    assert len(set(names)) == table.size
    for token, name in enumerate(names):
        kinds = (table.is_image(token), table.is_text(token), table.is_sentinel(token))
        assert sum(kinds) == (name[0] in "IT" or name.startswith("<sentinel:"))


def test_names_read_as_documented() -> None:
    assert SMALL.name(SMALL.image_id(7)) == "I7"
    assert SMALL.name(SMALL.text_id(5)) == "T5"
    assert SMALL.name(SMALL.sentinel_id(0)) == "<sentinel:0>"
    assert SMALL.name(SMALL.break_id) == "<break>"
    assert SMALL.name(SMALL.eoss_id) == "<eoss>"
    assert SMALL.name(EOS) == "</s>"
    assert Vocabulary(image_codes=1, text_pieces=1, sentinels=1).name(9) == "<unused:0>"


def test_in_and_out_are_inverse_over_the_whole_paper_table() -> None:
    assert [PAPER.code_of(PAPER.image_id(code)) for code in range(8192)] == list(range(8192))
    assert [PAPER.piece_of(PAPER.text_id(piece)) for piece in range(56320)] == list(range(56320))
    assert [PAPER.sentinel_of(PAPER.sentinel_id(i)) for i in range(512)] == list(range(512))


@pytest.mark.parametrize(
    ("call", "number", "words"),
    [
        (SMALL.image_id, 10, "image code 10 is outside 0..9"),
        (SMALL.image_id, -1, "image code -1 is outside 0..9"),
        (SMALL.text_id, 20, "text piece 20 is outside 0..19"),
        (SMALL.sentinel_id, 4, "sentinel 4 is outside 0..3"),
        (SMALL.code_of, 14, "token id 14 is not an image code: those are 4..13"),
        (SMALL.piece_of, 13, "token id 13 is not a text piece: those are 14..33"),
        (SMALL.sentinel_of, 35, "token id 35 is not a sentinel: those are 36..39"),
        (SMALL.name, 40, "token id 40 is outside 0..39"),
        (SMALL.name, -1, "token id -1 is outside 0..39"),
    ],
)
def test_a_number_out_of_range_is_refused_with_the_range(
    call: Callable[[int], object], number: int, words: str
) -> None:
    with pytest.raises(UserError) as refused:
        call(number)
    assert str(refused.value) == words


def test_an_empty_kind_is_refused() -> None:
    with pytest.raises(UserError, match="sentinels is 0, wanted at least 1"):
        Vocabulary(image_codes=10, text_pieces=20, sentinels=0)
