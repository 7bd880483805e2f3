"""forms.py: Table 5 spelt out; every form decodes to its words and prompts for its Fields."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3leon import templates as forms
from tokenizer.codec import Codec
from tokenizer.document import Document, Field, Hole, Picture
from tokenizer.errors import UserError
from tokenizer.text import TextTokenizer
from tokenizer.vocabulary import Vocabulary
from train.objective import MaskConfig, mask_row

GRID = 4
TEXT = TextTokenizer.train(["a red fox, (1, 2) -> (30, 40), Question: why? Answer: so."] * 4, 300)
CODEC = Codec(Vocabulary(image_codes=32, text_pieces=300, sentinels=8), TEXT, GRID**2)
PICTURE = Picture(tuple(range(16)))
CONDITION = Picture(tuple(reversed(range(16))))
BOX = (199, 130, 204, 150)
CHOICES = ["a fox", "a cat"]

EACH: dict[str, tuple[Document, list[str | Picture]]] = {
    "structure": (
        forms.structured("canny", "a red fox", CONDITION, PICTURE),
        ["Make high quality image from canny edge features", CONDITION, " a red fox", PICTURE],
    ),
    "grounded": (
        forms.grounded("a bathroom", [("sink", BOX), ("bed", (0, 169, 67, 255))], PICTURE),
        [
            "Generate high quality image of a bathroom with segmentations sink at (199, 130) -> "
            "(204, 150), bed at (0, 169) -> (67, 255)",
            PICTURE,
        ],
    ),
    "ocr": (forms.written("Open 24h", PICTURE), ['draw "Open 24h"', PICTURE]),
    "paragraph": (
        forms.paragraph("a long story", PICTURE, 1),
        ["Describe all the objects in the given image in very detail. a long story", PICTURE],
    ),
    "narrative": (
        forms.narrative("here we see", PICTURE, 1),
        [
            "Generate a long narration of what is happening in the given image. here we see",
            PICTURE,
        ],
    ),
    "scienceqa": (
        forms.science("Which?", CHOICES, "a cat", PICTURE, context="It mews."),
        [
            "Question: Which?\nContext: It mews.\nOptions: (A) a fox (B) a cat\nAnswer: a cat.",
            PICTURE,
        ],
    ),
    "scienceqa explained": (
        forms.science("Which?", CHOICES, "a cat", PICTURE, explanation="Cats mew."),
        [
            "Question: Which?\nOptions: (A) a fox (B) a cat\nAnswer: Let's think step-by-step: "
            "Cats mew. So the answer is a cat.",
            PICTURE,
        ],
    ),
    "conversation": (
        forms.conversation([("What?", "a fox"), ("Its colour?", "red")], PICTURE),
        ["Question: What?\nAnswer: a fox\nQuestion: Its colour?\nAnswer: red", PICTURE],
    ),
}


@pytest.mark.parametrize("name", EACH)
def test_a_form_is_worded_as_table_5_says(name: str) -> None:
    document, told = EACH[name]
    assert CODEC.decode(CODEC.encode(document).ids) == tuple(told)


@pytest.mark.parametrize("structure", forms.STRUCTURES)
def test_every_structure_has_its_instruction(structure: str) -> None:
    asked = forms.structured(structure, "a fox", CONDITION, PICTURE)[0]
    assert asked == f"Make high quality image from {forms.STRUCTURES[structure]}"


@pytest.mark.parametrize("name", EACH)
def test_what_is_asked_for_is_trained(name: str) -> None:
    """With a Hole for a Field, or without its last picture, a form begins some training row."""
    document, _ = EACH[name]
    row = CODEC.encode(document)
    prompt = CODEC.open(document[:-1])
    assert row.ids[: len(prompt)] == prompt
    places = [place for place, part in enumerate(document) if isinstance(part, Field)]
    prompts = {
        CODEC.infill((*document[:place], Hole(), *document[place + 1 :])) for place in places
    }
    config = MaskConfig(field=1.0)
    found: set[tuple[int, ...]] = set()
    for seed in range(30):
        masked = mask_row(
            row.ids, row.fields, CODEC.vocabulary, config, np.random.default_rng(seed),
            room=1000, grid=GRID,
        )  # fmt: skip
        found |= {one for one in prompts if tuple(masked.tolist())[: len(one)] == one}
    assert found == prompts
    assert len(prompts) == len(places) > 0


line = st.text(min_size=1).filter(lambda text: text.strip())
lines = st.lists(line, min_size=1, max_size=4)
box = st.tuples(*[st.integers(0, 256)] * 4)
picture = st.lists(st.integers(0, 31), min_size=16, max_size=16).map(lambda c: Picture(tuple(c)))
documents = st.one_of(
    st.builds(forms.structured, st.sampled_from(list(forms.STRUCTURES)), line, picture, picture),
    st.builds(
        forms.grounded, line, st.lists(st.tuples(line, box), min_size=1, max_size=3), picture
    ),
    st.builds(forms.written, line, picture),
    st.builds(forms.paragraph, line, picture, st.integers(0, 2)),
    st.builds(forms.narrative, line, picture, st.integers(0, 2)),
    st.builds(forms.science, line, lines, line, picture, context=st.text(), explanation=st.text()),
    st.builds(forms.conversation, st.lists(st.tuples(line, line), min_size=1, max_size=3), picture),
)


@given(documents)
def test_every_form_comes_back_from_ids(document: Document) -> None:
    row = CODEC.encode(document)
    decoded = CODEC.decode(row.ids)
    told = [part.text if isinstance(part, Field) else part for part in document]
    assert "".join(part for part in decoded if isinstance(part, str)) == "".join(
        part for part in told if isinstance(part, str)
    )
    assert [part for part in decoded if isinstance(part, Picture)] == [
        part for part in told if isinstance(part, Picture)
    ]
    texts = [part.text for part in document if isinstance(part, Field)]
    assert [CODEC.decode_text(row.ids[start:end]) for start, end in row.fields] == texts


def test_what_cannot_be_worded_is_refused() -> None:
    with pytest.raises(UserError, match="unknown structure 'edges'; known: canny, segmentation"):
        forms.structured("edges", "a fox", CONDITION, PICTURE)
    with pytest.raises(UserError, match="there is no object"):
        forms.grounded("a fox", [], PICTURE)
    with pytest.raises(UserError, match="the text is empty"):
        forms.written(" ", PICTURE)
    with pytest.raises(UserError, match="0 options; from 1 to 26"):
        forms.science("why?", [], "so", PICTURE)
    with pytest.raises(UserError, match="the answer is empty"):
        forms.conversation([("why?", "")], PICTURE)
    with pytest.raises(UserError, match="a conversation without a turn"):
        forms.conversation([], PICTURE)
