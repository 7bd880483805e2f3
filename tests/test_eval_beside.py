"""Side by side: two pictures of one seed, the second with what was retrieved."""

from pathlib import Path

import pytest

from cm3leon.pipeline import CM3Leon
from eval.beside import draw, picture
from eval.sheet import CELL, Prompt
from retrieval.encoder import SmallEmbedder
from retrieval.memory import Memory
from tokenizer.document import Picture
from tokenizer.pixels import fit

pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute")


def test_both_pictures_are_those_of_the_pipeline(
    tiny: CM3Leon, small_memory: Path, small_encoder: Path
) -> None:
    memory, embedder = Memory.open(small_memory), SmallEmbedder.load(small_encoder)
    prompts = [
        Prompt(number=3, style="Noto", id="p0", prompt="fox, Noto icon style"),
        Prompt(number=5, style="Noto", id="p1", prompt="a blue heart"),
    ]
    told: list[tuple[int, int]] = []
    drawn = draw(tiny, memory, embedder, prompts, 2, lambda *counts: told.append(counts))
    assert told == [(1, 2), (2, 2)]
    for one, prompt in zip(drawn, prompts, strict=True):
        ids = [found.metadata["id"] for found in one.found]
        assert len({*ids, prompt.id}) == 3
        (plain,) = tiny.text_to_image(prompt.prompt, seed=prompt.number)
        documents = [memory.document(name) for name in ids]
        (helped,) = tiny.text_to_image(prompt.prompt, seed=prompt.number, retrieved=documents)
        assert one.plain.tobytes() == plain.tobytes()
        assert one.helped.tobytes() == helped.tobytes() != plain.tobytes()

    sheet = picture(drawn, 3)  # one place stays white
    first = drawn[0]
    codes = Picture(tuple(memory.row(first.found[1].metadata["id"])[1]))
    cells = [first.plain, first.helped, first.found[0].picture, tiny.to_image(codes)]
    for place, wanted in enumerate(cells):
        left = place * (CELL + 4) + 2
        cell = sheet.crop((left, 2, left + CELL, 2 + CELL))
        assert cell.tobytes() == fit(wanted, CELL).tobytes()
    left = 4 * (CELL + 4) + 2
    assert set(sheet.crop((left, 2, left + CELL, 2 + CELL)).tobytes()) == {255}
    assert sheet.width == 10 * (CELL + 4)
