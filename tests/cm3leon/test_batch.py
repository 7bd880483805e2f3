"""Many prompts through one engine are painted as each alone."""

from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from cm3leon import prompts
from cm3leon.batch import Wish, paint_all, paint_codes
from cm3leon.pipeline import CM3Leon
from cm3leon.sampling import Sampling
from tokenizer.document import Picture
from tokenizer.errors import UserError


@pytest.mark.parametrize("in_flight", [1, 3, 16])
def test_pictures_are_those_painted_alone(tiny: CM3Leon, in_flight: int) -> None:
    example = prompts.pair("a blue heart", tiny.to_picture(tiny.text_to_image("a red fox")[0]))
    wishes = [
        Wish(prompt=prompt, seed=seed, retrieved=(example,) if seed == 3 else ())
        for seed, prompt in enumerate(["a red fox", "a blue heart", "a cat", "a cat's head", "red"])
    ]
    sampling = Sampling(top_p=0.9)
    told: list[tuple[int, int]] = []
    found = dict(
        paint_all(
            tiny,
            wishes,
            sampling,
            in_flight=in_flight,
            progress=lambda done, most: told.append((done, most)),
        )
    )
    for number, wish in enumerate(wishes):
        [alone] = tiny.text_to_image(
            wish.prompt, seed=wish.seed, sampling=sampling, retrieved=wish.retrieved
        )
        assert found[number].tobytes() == alone.tobytes()
    assert told[-1] == (5 * 16, 5 * 16)
    assert told == sorted(told)


@pytest.mark.parametrize("mix", [False, True])
def test_the_best_candidate_is_the_one_picked_alone(tiny: CM3Leon, mix: bool) -> None:
    def darkest(_: str, pictures: Sequence[Image.Image]) -> list[float]:
        return [-float(np.asarray(picture).mean()) for picture in pictures]

    wishes = [Wish(prompt=prompt, seed=7) for prompt in ("a red fox", "a cat", "red")]
    found = dict(paint_all(tiny, wishes, candidates=4, mix=mix, score=darkest))
    for number, wish in enumerate(wishes):
        [alone] = tiny.text_to_image(wish.prompt, seed=7, candidates=4, mix=mix, score=darkest)
        assert found[number].tobytes() == alone.tobytes()
    if not mix:
        codes = dict(paint_codes(tiny, wishes, candidates=4, score=darkest))
        pictures = {number: tiny.to_image(Picture(row)) for number, row in codes.items()}
        assert all(pictures[number].tobytes() == found[number].tobytes() for number in found)


def test_a_prompt_that_does_not_fit_is_refused_before_any_is_painted(tiny: CM3Leon) -> None:
    wishes = [Wish(prompt="a cat"), Wish(prompt="a red fox " * 100)]
    with pytest.raises(UserError, match="do not fit into the model"):
        next(paint_all(tiny, wishes))
    assert list(paint_all(tiny, [])) == []
