"""The CM3 objective: nothing is lost, nothing crosses a segment, and the shares are as promised."""

import doctest
import functools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

import train.objective
from tokenizer.config import build, table_of
from tokenizer.errors import UserError
from tokenizer.vocabulary import EOS, PAD, Vocabulary
from train.objective import (
    Ids,
    MaskConfig,
    Span,
    box_spans,
    draw_spans,
    homes_of,
    keep_within,
    mask_row,
    move,
    pictures_of,
    segments_of,
    unmask,
)

VOCABULARY = Vocabulary(image_codes=50, text_pieces=60, sentinels=16)
BREAK, EOSS = VOCABULARY.break_id, VOCABULARY.eoss_id
NAMES = [VOCABULARY.name(number) for number in range(VOCABULARY.size)]
GRID = 6
POISSON = MaskConfig(field=0.0, whole_segment=0.0)
MODES = {
    "poisson": POISSON,
    "default": MaskConfig(),
    "whole": MaskConfig(field=0.0, whole_segment=1.0),
    "field": MaskConfig(field=1.0),
    "box": MaskConfig(field=0.0, box=1.0),
    "paper": MaskConfig(spans_min=1, spans_max=16, whole_segment=0.0, field=0.0),
    "many": MaskConfig(spans_mean=9.0),
}


@dataclass
class Row:
    ids: Ids
    fields: list[Span]


def text(rng: np.random.Generator, length: int) -> list[int]:
    return [VOCABULARY.text_id(int(piece)) for piece in rng.integers(60, size=length)]


def picture(rng: np.random.Generator) -> list[int]:
    return [VOCABULARY.image_id(int(code)) for code in rng.integers(50, size=GRID * GRID)]


def whole_row(rng: np.random.Generator) -> Row:
    """`</s> text <break> picture ... <break> prefix field <break> picture </s>`, 200+ ids."""
    ids = [EOS]
    while len(ids) < 160:
        ids += [*text(rng, int(rng.integers(1, 40))), BREAK, *picture(rng), BREAK]
    ids += text(rng, int(rng.integers(0, 9)))
    field = (len(ids), len(ids) + int(rng.integers(1, 12)))
    ids += [*text(rng, field[1] - field[0]), BREAK, *picture(rng), EOS]
    return Row(np.array(ids), [field])


def packed_row(rng: np.random.Generator) -> Row:
    """Several whole rows in one stream, chopped anywhere to a block of 400 ids."""
    ids: Ids = np.zeros(0, dtype=np.int64)
    fields: list[Span] = []
    for _ in range(4):
        row = whole_row(rng)
        fields += [(start + len(ids), end + len(ids)) for start, end in row.fields]
        ids = np.concatenate([ids, row.ids])
    chop = int(rng.integers(1, 200))
    inside = [(a - chop, b - chop) for a, b in fields if chop <= a and b <= chop + 400]
    return Row(ids[chop : chop + 400], inside)


@functools.cache
def thousand(make: str) -> list[Row]:
    rng = np.random.default_rng(0)
    return [whole_row(rng) if make == "whole" else packed_row(rng) for _ in range(1000)]


def rows(make: str, seed: int = 0, count: int = 1000) -> Iterator[tuple[Row, np.random.Generator]]:
    """Random rows, always the same, each with the generator that is to mask it."""
    rng = np.random.default_rng(seed)
    return ((row, rng) for row in thousand(make)[:count])


def mask(row: Row, config: MaskConfig, rng: np.random.Generator, room: int | None) -> Ids:
    return mask_row(row.ids, row.fields, VOCABULARY, config, rng, room=room, grid=GRID)


def parts(masked: Ids) -> tuple[list[int], list[list[int]]]:
    """A second reading of a masked row, by the text of it: the source and each moved span."""
    words = [NAMES[int(number)] for number in masked]
    if "<sentinel:0>" not in words:
        return masked.tolist(), []
    source_end = words.index("<sentinel:0>", words.index("<sentinel:0>") + 1)
    moved: list[list[int]] = []
    place = source_end
    while place < len(words):
        assert words[place] == f"<sentinel:{len(moved)}>"
        end = words.index("<eoss>", place)
        moved.append(masked[place + 1 : end].tolist())
        place = end + 1
    holes = [word for word in words[:source_end] if word.startswith("<sentinel:")]
    assert holes == [f"<sentinel:{number}>" for number in range(len(moved))]
    return masked[:source_end].tolist(), moved


def test_the_worked_example_runs() -> None:
    result = doctest.testmod(train.objective)
    assert result.attempted > 5
    assert result.failed == 0


@pytest.mark.parametrize("mode", MODES)
def test_whole_documents_lose_nothing_and_cross_nothing(mode: str) -> None:
    for row, rng in rows("whole"):
        room = len(row.ids) + int(rng.integers(0, 40))
        masked = mask(row, MODES[mode], rng, room)
        source, moved = parts(masked)
        assert len(masked) == len(row.ids) + 3 * len(moved) <= room
        added = Counter([VOCABULARY.sentinel_id(i) for i in range(len(moved))] * 2)
        added[EOSS] += len(moved)
        assert Counter(masked.tolist()) == Counter(row.ids.tolist()) + added
        assert unmask(masked, VOCABULARY).tolist() == row.ids.tolist()
        assert all(moved)
        assert not {BREAK, EOS} & {number for span in moved for number in span}
        assert source[0] == source[-1] == EOS


@pytest.mark.parametrize("mode", MODES)
def test_packed_blocks_keep_their_length_and_lose_only_their_tail(mode: str) -> None:
    for row, rng in rows("packed"):
        masked = mask(row, MODES[mode], rng, None)
        _, moved = parts(masked)
        assert len(masked) == len(row.ids)
        kept = row.ids[: len(row.ids) - 3 * len(moved)]
        assert unmask(masked, VOCABULARY).tolist() == kept.tolist()
        added = Counter([VOCABULARY.sentinel_id(i) for i in range(len(moved))] * 2)
        added[EOSS] += len(moved)
        assert Counter(masked.tolist()) == Counter(kept.tolist()) + added
        assert all(moved)
        assert not {BREAK, EOS} & {number for span in moved for number in span}


def test_padding_does_not_disturb_unmask() -> None:
    row, rng = next(rows("whole"))
    masked = mask(row, MODES["field"], rng, 1000)
    padded = np.concatenate([masked, np.full(7, PAD)])
    assert unmask(padded, VOCABULARY).tolist() == row.ids.tolist()


@pytest.mark.parametrize("make", ["whole", "packed"])
@pytest.mark.parametrize("whole_segment", [0.0, 0.15, 1.0])
def test_rows_with_no_span_are_one_in_e(make: str, whole_segment: float) -> None:
    config = MaskConfig(field=0.0, whole_segment=whole_segment)
    room = 1000 if make == "whole" else None
    untouched = [
        np.array_equal(mask(row, config, rng, room), row.ids) for row, rng in rows(make, 1)
    ]
    assert abs(np.mean(untouched) - math.exp(-1)) < 0.05


def test_field_and_box_rows_are_apart_from_the_poisson_share() -> None:
    config = MaskConfig(field=0.3, box=0.2)
    untouched = fields = 0
    for row, rng in rows("whole", 2):
        _, moved = parts(mask(row, config, rng, 1000))
        ((start, end),) = row.fields
        untouched += not moved
        fields += moved == [row.ids[start:end].tolist()]
    assert abs(untouched / 1000 - 0.5 * math.exp(-1)) < 0.05
    assert abs(fields / 1000 - 0.3) < 0.05  # a whole caption by other ways is rare

    text_only = Row(np.array([EOS, *text(np.random.default_rng(0), 200), EOS]), [])
    rng = np.random.default_rng(3)
    spans = [len(parts(mask(text_only, config, rng, 1000))[1]) for _ in range(1000)]
    assert abs(spans.count(0) / 1000 - math.exp(-1)) < 0.05  # nothing to ask for: Poisson for all


def test_a_masked_field_has_the_form_of_the_infilling_prompt() -> None:
    rng = np.random.default_rng(0)
    prefix, caption, codes = text(rng, 4), text(rng, 5), picture(rng)
    row = Row(np.array([EOS, *prefix, *caption, BREAK, *codes, EOS]), [(5, 10)])
    masked = mask(row, MODES["field"], rng, len(row.ids) + 3)
    hole = VOCABULARY.sentinel_id(0)
    prompt = [EOS, *prefix, hole, BREAK, *codes, EOS, hole]
    assert masked.tolist() == [*prompt, *caption, EOSS]


def test_one_of_several_fields_is_masked_each_as_often() -> None:
    rng = np.random.default_rng(0)
    row = Row(np.array([EOS, *range(60, 80), EOS]), [(1, 4), (6, 9), (9, 9), (12, 20)])
    seen = Counter(tuple(parts(mask(row, MODES["field"], rng, 99))[1][0]) for _ in range(900))
    wanted = {tuple(row.ids[a:b].tolist()) for a, b in row.fields if a < b}
    assert set(seen) == wanted
    assert min(seen.values()) > 240


def test_a_field_that_the_trim_would_cut_is_not_masked_as_a_field() -> None:
    row = Row(np.array([*range(60, 80)]), [(17, 20)])
    rng = np.random.default_rng(0)
    config = MaskConfig(spans_mean=0.0, field=1.0)
    assert mask(row, config, rng, None).tolist() == row.ids.tolist()


def test_drawn_spans_grow_to_whole_segments() -> None:
    for row, rng in rows("whole", 4, 200):
        _, moved = parts(mask(row, MODES["whole"], rng, 1000))
        segments = [row.ids[a:b].tolist() for a, b in segments_of(row.ids, VOCABULARY)]
        assert all(span in segments for span in moved)


def test_the_papers_variant_masks_every_row_and_at_most_the_clamp() -> None:
    counts = [
        len(parts(mask(row, MODES["paper"], rng, 1000))[1]) for row, rng in rows("whole", 5, 300)
    ]
    assert np.mean([count == 0 for count in counts]) < 0.05  # only a draw that was all rejected
    two = MaskConfig(spans_mean=50.0, spans_max=2, field=0.0)
    counts = [len(parts(mask(row, two, rng, 1000))[1]) for row, rng in rows("whole", 6, 100)]
    assert max(counts) == 2


def test_never_more_spans_than_sentinels_less_one() -> None:
    config = MaskConfig(spans_mean=60.0, whole_segment=0.0, field=0.0)
    small = Vocabulary(image_codes=50, text_pieces=60, sentinels=4)
    rng = np.random.default_rng(0)
    row = np.array([EOS, *range(60, 100), EOS])
    for _ in range(50):
        masked = mask_row(row, [], small, config, rng, room=999, grid=GRID)
        assert unmask(masked, small).tolist() == row.tolist()
        assert small.sentinel_id(3) not in masked


def test_the_same_seed_masks_the_same() -> None:
    row, _ = next(rows("packed"))
    one, two = (mask(row, MODES["many"], np.random.default_rng(7), None) for _ in range(2))
    assert one.tolist() == two.tolist()


def test_a_masked_row_is_not_masked_again() -> None:
    row, rng = next(rows("whole"))
    masked = mask(row, MODES["field"], rng, 1000)
    with pytest.raises(AssertionError, match="already"):
        mask(Row(masked, []), POISSON, rng, 1000)


def test_segments_and_pictures() -> None:
    rng = np.random.default_rng(0)
    codes = picture(rng)
    ids = np.array(
        [7, EOS, EOS, *text(rng, 2), BREAK, *codes, EOS, *codes[1:], BREAK, *codes, *codes]
    )
    n = GRID * GRID
    segments = [(0, 1), (3, 5), (6, 6 + n), (7 + n, 6 + 2 * n), (7 + 2 * n, 7 + 4 * n)]
    assert segments_of(ids, VOCABULARY) == segments
    assert pictures_of(ids, VOCABULARY, GRID) == [(6, 6 + n)]
    long_text = np.array([EOS, *text(rng, n), EOS])
    assert pictures_of(long_text, VOCABULARY, GRID) == []


def test_a_span_stays_where_most_of_it_lies() -> None:
    segments = [(1, 5), (6, 20)]
    assert homes_of([(3, 9), (5, 6), (19, 21)], segments) == [
        ((6, 9), (6, 20)),
        ((19, 20), (6, 20)),
    ]
    assert homes_of([(0, 3)], []) == []


def test_drawn_spans_share_no_id_and_are_long() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        spans = draw_spans(5, 300, rng)
        ends = [place for span in spans for place in span]
        assert ends == sorted(ends)
        assert all(0 <= start < end <= 300 for start, end in spans)
    single = [end - start for _ in range(2000) for start, end in draw_spans(1, 300, rng)]
    assert abs(np.mean(single) - 100) < 6  # two uniform ends lie a third apart


def test_a_box_is_a_box_or_one_span_that_covers_it() -> None:
    rng = np.random.default_rng(0)
    forms: Counter[str] = Counter()
    for _ in range(1000):
        spans = box_spans((10, 10 + GRID * GRID), GRID, 100, rng)
        assert all(10 <= start < end <= 10 + GRID * GRID for start, end in spans)
        if len(spans) > 1:
            assert len(spans) <= 4
            (width,) = {end - start for start, end in spans}
            assert width < GRID
            assert all((start - 10) % GRID + width <= GRID for start, _ in spans)
            starts = [start for start, _ in spans]
            assert starts == list(range(starts[0], starts[-1] + 1, GRID))
            forms["runs"] += 1
        else:
            forms["long" if spans[0][1] - spans[0][0] > 4 * GRID else "one"] += 1
    assert min(forms["runs"], forms["long"], forms["one"]) > 100
    assert all(len(box_spans((0, GRID * GRID), GRID, 1, rng)) == 1 for _ in range(50))


def test_the_tail_makes_room() -> None:
    assert keep_within([(2, 4)], 20, 20) == (17, [(2, 4)])
    assert keep_within([(2, 4)], 20, 23) == (20, [(2, 4)])
    assert keep_within([(2, 4)], 20, 30) == (20, [(2, 4)])
    assert keep_within([(2, 20)], 20, 20) == (17, [(2, 17)])
    assert keep_within([(2, 4), (15, 20)], 20, 20) == (17, [(2, 4)])  # 3 ids came back
    assert keep_within([(1, 2), (3, 4)], 5, 5) == (2, [(1, 2)])
    with pytest.raises(AssertionError, match="in order"):
        move(np.arange(20, 30), [(4, 6), (5, 8)], VOCABULARY)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"spans_mean": -1.0}, "spans_mean is -1.0"),
        ({"spans_mean": math.nan}, "spans_mean is nan"),
        ({"spans_min": 2, "spans_max": 1}, "spans_max 1 is below spans_min 2"),
        ({"spans_max": -1}, "spans_max -1 is below spans_min 0"),
        ({"field": 1.5}, "field is 1.5"),
        ({"field": 0.6, "box": 0.6}, "add up to more than 1"),
        ({"sentinel_weight": -0.5}, "sentinel_weight is -0.5"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict[str, float], says: str) -> None:
    with pytest.raises(UserError, match=says):
        MaskConfig(**change)  # pyright: ignore[reportArgumentType]


def test_settings_survive_yaml() -> None:
    for config in MODES.values():
        assert build(MaskConfig, table_of(config)) == config
