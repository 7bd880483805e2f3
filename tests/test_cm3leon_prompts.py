"""prompts.py: every prompt is the beginning of some masked training row."""

import numpy as np
import pytest

from cm3leon import prompts
from tokenizer.codec import Codec
from tokenizer.document import Document, Field, Hole, Picture
from tokenizer.errors import UserError
from tokenizer.text import TextTokenizer
from tokenizer.vocabulary import EOS, Vocabulary
from train.objective import MaskConfig, mask_row, move

GRID = 6
SOURCE = Picture(tuple(range(36)))
TARGET = Picture(tuple(reversed(range(36))))
EXAMPLE = prompts.pair("an example", TARGET)
ONE_FIELD = MaskConfig(field=1.0, whole_segment=0.0)
ONE_BOX = MaskConfig(field=0.0, box=1.0)
UNMASKED = MaskConfig(field=0.0, spans_mean=0.0)


@pytest.fixture(scope="module")
def codec() -> Codec:
    text = TextTokenizer.train(["a red fox, a blue heart, a cat's head"], 280)
    return Codec(Vocabulary(image_codes=40, text_pieces=text.pieces, sentinels=16), text, GRID**2)


def masked(
    codec: Codec, document: Document, config: MaskConfig, seed: int = 0, *examples: Document
) -> tuple[int, ...]:
    """A training row: one whole document behind its examples."""
    row = codec.encode(document, examples)
    ids = mask_row(
        row.ids,
        row.fields,
        codec.vocabulary,
        config,
        np.random.default_rng(seed),
        room=1000,
        grid=GRID,
    )
    return tuple(int(token) for token in ids)


def begins(row: tuple[int, ...], prompt: tuple[int, ...]) -> bool:
    return len(prompt) < len(row) and row[: len(prompt)] == prompt


@pytest.mark.parametrize("examples", [(), (EXAMPLE,), (EXAMPLE, EXAMPLE)])
def test_painting_is_trained(codec: Codec, examples: tuple[Document, ...]) -> None:
    full, blank = prompts.paint("a red fox", examples=bool(examples))
    row = prompts.pair("a red fox", SOURCE)
    whole = masked(codec, row, UNMASKED, 0, *examples)
    assert begins(whole, codec.open(full, examples))
    assert begins(masked(codec, row, ONE_FIELD, 0, *examples), codec.open(blank, examples))


def test_metas_forms_leave_the_text_out(codec: Codec) -> None:
    _, blank = prompts.paint("a red fox", form="meta")
    assert blank == (Hole(),)
    _, blank = prompts.paint("a red fox", examples=True, form="meta")
    row = codec.encode(prompts.pair("a red fox", SOURCE), [EXAMPLE]).ids
    assert begins(row, codec.open(blank, [EXAMPLE]))
    full, blank, nothing = prompts.change("make it blue", SOURCE, form="meta")
    assert codec.open(full)[: len(codec.open(blank))] == codec.open(blank)
    assert nothing == (Hole(),)


def test_editing_is_trained(codec: Codec) -> None:
    full, image_only, nothing = prompts.change("make it blue", SOURCE)
    row = prompts.edit("make it blue", SOURCE, TARGET)
    assert begins(masked(codec, row, UNMASKED), codec.open(full))
    assert begins(masked(codec, row, ONE_FIELD), codec.open(image_only))
    pair = prompts.pair("a red fox", TARGET)
    assert begins(masked(codec, pair, ONE_FIELD), codec.open(nothing))


@pytest.mark.parametrize("asked", [True, False])
def test_captioning_is_trained(codec: Codec, asked: bool) -> None:
    row = (prompts.described if asked else prompts.pair)("a red fox", SOURCE)
    prompt = codec.infill(prompts.describe(SOURCE, asked=asked))
    whole = masked(codec, row, ONE_FIELD)
    assert begins(whole, prompt)
    assert codec.decode_text(whole[len(prompt) :]) == " a red fox"
    assert whole[-1] == codec.vocabulary.eoss_id


@pytest.mark.parametrize(
    ("form", "told"),
    [
        (0, "Question: what is it? Answer: a fox."),
        (1, "Question: what is it?\na fox"),
        (2, "Question: what is it? The answer is a fox."),
    ],
)
def test_answering_is_trained(codec: Codec, form: int, told: str) -> None:
    row = prompts.question("what is it?", "a fox", SOURCE, form)
    assert codec.decode(codec.encode(row).ids) == (told, SOURCE)
    prompt = codec.infill(prompts.ask("what is it?", SOURCE, form))
    whole = masked(codec, row, ONE_FIELD)
    assert begins(whole, prompt)
    assert codec.decode_text(whole[len(prompt) :]).strip() == "a fox"


def test_infilling_a_box_is_trained(codec: Codec) -> None:
    """Every box that the objective draws is what `complete` asks for some box."""
    sides = [(start, end) for start in range(GRID) for end in range(start + 1, GRID + 1)]
    asked = {
        codec.infill(prompts.complete(SOURCE, wanted(top, left, bottom, right), "a fox").document)
        for top, bottom in sides
        for left, right in sides
    }
    for seed in range(100):
        row = masked(codec, prompts.pair("a fox", SOURCE), ONE_BOX, seed)
        closed = row.index(EOS, 1)
        assert row[: closed + 2] in asked


def wanted(top: int, left: int, bottom: int, right: int) -> list[bool]:
    return [
        top <= place // GRID < bottom and left <= place % GRID < right for place in range(GRID**2)
    ]


def test_infilling_without_a_caption_is_trained(codec: Codec) -> None:
    region = prompts.complete(SOURCE, wanted(1, 1, 3, 4))
    row = codec.encode(prompts.pair("a red fox", SOURCE))
    start = row.ids.index(codec.vocabulary.break_id) + 1
    runs = [(start + 7, start + 10), (start + 13, start + 16)]
    whole = move(np.array(row.ids), [*row.fields, *runs], codec.vocabulary)
    assert begins(tuple(whole.tolist()), codec.infill(region.document))


def test_few_runs_are_holes_of_their_own() -> None:
    region = prompts.complete(SOURCE, wanted(1, 2, 5, 4), " a fox ")
    assert region.document[0] == Field(" a fox")
    assert region.known == ((None, None),) * 4
    picture = region.document[1]
    assert isinstance(picture, Picture)
    assert [code for code in picture.codes if isinstance(code, Hole)] == [Hole(2)] * 4


def test_many_runs_become_one_hole_with_known_codes_inside() -> None:
    region = prompts.complete(SOURCE, wanted(0, 0, 5, 2))
    (known,) = region.known
    assert len(known) == 4 * GRID + 2
    assert known[:8] == (None, None, 2, 3, 4, 5, None, None)
    picture = region.document[1]
    assert isinstance(picture, Picture)
    assert picture.codes == (Hole(26), *range(26, 36))


def test_full_rows_are_one_run() -> None:
    assert prompts.complete(SOURCE, wanted(0, 0, 6, 6)).known == ((None,) * 36,)


@pytest.mark.parametrize("empty", ["", " ", "\n\t"])
def test_empty_texts_are_refused(empty: str) -> None:
    with pytest.raises(UserError, match="the prompt is empty"):
        prompts.paint(empty)
    with pytest.raises(UserError, match="the question is empty"):
        prompts.ask(empty, SOURCE)
    with pytest.raises(UserError, match="the answer is empty"):
        prompts.question("what?", empty, SOURCE)
