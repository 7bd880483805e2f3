import math

import pytest
import torch

import cm3leon.likelihood as module
from cm3leon.grammar import code_filling, infilling, picture, text, text_filling
from cm3leon.likelihood import Written, bits, bits_per_image_token, bits_per_text_token
from cm3leon.model import Decoder, sized
from tokenizer.errors import UserError
from tokenizer.vocabulary import EOS, Vocabulary

V = Vocabulary(image_codes=12, text_pieces=20, sentinels=8)
PROMPT = (EOS, V.text_id(1), V.text_id(2), V.break_id)
SHORT = (EOS, V.sentinel_id(0), V.break_id)
IMAGE = range(V.image_ids.start, V.image_ids.stop)
TEXT = range(V.text_ids.start, V.text_ids.stop)


@pytest.fixture(scope="module")
def model() -> Decoder:
    model = Decoder(sized("tiny", vocabulary=V.size))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2, generator=generator)
    return model


@torch.no_grad()
def by_hand(
    model: Decoder, prompt: tuple[int, ...], ids: tuple[int, ...], among: list[int]
) -> list[float]:
    """One token after the other, softmax written out."""
    found = []
    for step, token in enumerate(ids):
        logits_V = model.logits(model(torch.tensor([[*prompt, *ids[:step]]])))[0, -1].tolist()
        total = sum(math.exp(logits_V[other]) for other in among)
        found.append(-math.log2(math.exp(logits_V[token]) / total))
    return found


def image_ids(*codes: int) -> tuple[int, ...]:
    return tuple(V.image_id(code) for code in codes)


def test_bits_agree_with_a_softmax_by_hand(model: Decoder) -> None:
    rows = [
        Written(PROMPT, image_ids(3, 1, 4, 1, 5), picture(V, 5)),
        Written(SHORT, image_ids(9, 2), picture(V, 2)),
        Written(PROMPT, (V.text_id(4), V.text_id(2), V.eoss_id), text_filling(V, 9)),
    ]
    among = [[*IMAGE], [*IMAGE], [*TEXT, V.eoss_id]]
    for row, allowed, found in zip(rows, among, bits(model, rows), strict=True):
        expected = by_hand(model, row.prompt, row.continuation, allowed)
        assert found.tolist() == pytest.approx(expected, abs=1e-4)


def test_batches_and_chunks_do_not_matter(model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        Written(PROMPT, image_ids(*[step % 12 for step in range(length)]), picture(V, length))
        for length in (1, 7, 3, 12, 5)
    ]
    whole = bits(model, rows)
    monkeypatch.setattr(module, "ROWS", 2)
    monkeypatch.setattr(module, "SCORED", 3)
    for one, other in zip(whole, bits(model, rows), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_what_is_given_costs_nothing(model: Decoder) -> None:
    grammar = infilling(V, [code_filling(V, [None, 7]), text_filling(V, 1)])
    ids = (*image_ids(2, 7), V.eoss_id, V.sentinel_id(1), V.text_id(0), V.eoss_id)
    [found] = bits(model, [Written(PROMPT, ids, grammar)])
    assert [bool(value) for value in found] == [True, False, False, False, True, False]


def test_the_probabilities_of_all_ids_that_may_come_sum_to_one(model: Decoder) -> None:
    rows = [Written(PROMPT, (token,), text(V, 3)) for token in (*TEXT, V.eoss_id, EOS)]
    assert sum(2 ** -found.item() for found in bits(model, rows)) == pytest.approx(1, abs=1e-5)


def test_bits_per_image_token(model: Decoder) -> None:
    pictures = [(3, 1, 4, 1), (5, 9, 2, 6)]
    expected = [
        value for codes in pictures for value in by_hand(model, PROMPT, image_ids(*codes), [*IMAGE])
    ]
    found = bits_per_image_token(model, V, [PROMPT, PROMPT], pictures)
    assert found == pytest.approx(sum(expected) / 8, abs=1e-4)


def test_bits_per_text_token_count_the_stop(model: Decoder) -> None:
    prompt = (*PROMPT, *image_ids(1, 2), EOS, V.sentinel_id(0))
    texts = [tuple(V.text_id(piece) for piece in pieces) for pieces in ((1, 2, 3), (4,))]
    expected = [
        value
        for ids in texts
        for value in by_hand(model, prompt, (*ids, V.eoss_id), [*TEXT, V.eoss_id])
    ]
    assert len(expected) == 6
    found = bits_per_text_token(model, V, [prompt, prompt], texts)
    assert found == pytest.approx(sum(expected) / 6, abs=1e-4)


def test_a_fresh_model_knows_nothing() -> None:
    torch.manual_seed(0)
    fresh = Decoder(sized("tiny", vocabulary=V.size))
    found = bits_per_image_token(fresh, V, [PROMPT], [tuple(range(12))])
    assert found == pytest.approx(math.log2(12), abs=0.05)


def test_a_continuation_that_breaks_its_grammar_is_our_mistake(model: Decoder) -> None:
    with pytest.raises(AssertionError, match="not allowed"):
        bits(model, [Written(PROMPT, (V.text_id(0),), picture(V, 1))])
    with pytest.raises(AssertionError, match="breaks its grammar"):
        bits(model, [Written(PROMPT, image_ids(1), code_filling(V, [2]))])


def test_a_row_longer_than_the_context_is_refused(model: Decoder) -> None:
    with pytest.raises(UserError, match=r"a row of 303 tokens .* room for 256"):
        bits(model, [Written(PROMPT, image_ids(*[0] * 300), picture(V, 300))])
