"""prefill.py: which prompts are read when, and that nothing is read twice or too late."""

from hypothesis import given
from hypothesis import strategies as st

from cm3leon.engine.prefill import ALIKE, IDLE, plan

BEGINNINGS = st.sampled_from([(), (1,) * 20, (1,) * 20 + (2,) * 40, (3,) * 300])
ENDS = st.lists(st.integers(4, 6), min_size=1, max_size=120)
PROMPTS = st.lists(
    st.tuples(BEGINNINGS, ENDS).map(lambda parts: (*parts[0], *parts[1])),
    min_size=1,
    max_size=12,
    unique=True,
)


@given(PROMPTS, st.integers(0, 40))
def test_every_prompt_is_read_once_behind_what_was_read_before(
    prompts: list[tuple[int, ...]], spare: int
) -> None:
    capacity = max(map(len, prompts)) + spare
    passes = plan(prompts, capacity)
    read: set[tuple[int, ...]] = set()
    for readings in passes:
        for reading in readings:
            assert reading.rest
            assert reading.prompt[: reading.shared] == reading.source[: reading.shared]
            if reading.shared:
                assert reading.shared >= ALIKE
                assert reading.source in read
        assert len({bool(reading.source) for reading in readings}) == 1
        longest = max(len(reading.rest) for reading in readings)
        assert all(reading.shared + longest <= capacity for reading in readings)
        assert sum(longest - len(reading.rest) for reading in readings) < IDLE
        read |= {reading.prompt for reading in readings}
    assert sorted(read) == sorted(prompts)
    assert sum(map(len, passes)) == len(prompts)


def test_streams_behind_one_document_read_it_once() -> None:
    document, question = (9,) * 200, (5, 6, 7)
    passes = plan([(*document, *question), (*document, 1), (2, 3)], 300)
    assert [[len(one.rest) for one in readings] for readings in passes] == [[203], [2], [1]]
    assert [[len(one.rest) for one in readings] for readings in plan([(1, 2), (3,)], 9)] == [[2, 1]]
