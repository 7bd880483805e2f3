"""Sample and rerank: which candidate is kept, how a mix is drawn, and what the decoder reads."""

from collections.abc import Sequence

import pytest
import torch
from PIL import Image
from torch import Tensor

from cm3leon.pipeline import CM3Leon
from cm3leon.rerank import SHARE, best, pick, samplings
from cm3leon.sampling import Sampling
from tokenizer.errors import UserError

PROMPT = "a red fox"


def brightness(_: str, pictures: Sequence[Image.Image]) -> list[float]:
    return [float(sum(picture.tobytes())) for picture in pictures]


def bytes_of(pictures: Sequence[Image.Image]) -> list[bytes]:
    return [picture.tobytes() for picture in pictures]


def test_the_best_of_each_pictures_own_seeds_is_kept(tiny: CM3Leon) -> None:
    alone = tiny.text_to_image(PROMPT, n=12, seed=5)
    asked: list[tuple[str, int]] = []

    def score(prompt: str, pictures: Sequence[Image.Image]) -> list[float]:
        asked.append((prompt, len(pictures)))
        return brightness(prompt, pictures)

    kept = tiny.text_to_image(PROMPT, n=3, seed=5, candidates=4, score=score)
    groups = [alone[at : at + 4] for at in (0, 4, 8)]
    wanted = [max(group, key=lambda one: sum(one.tobytes())) for group in groups]
    assert bytes_of(kept) == bytes_of(wanted)
    assert asked == [(PROMPT, 4)] * 3
    assert {group.index(one) for group, one in zip(groups, wanted, strict=True)} != {0}


def test_a_mix_is_half_by_top_p_and_half_by_contrast(tiny: CM3Leon) -> None:
    task = Sampling(top_p=0.8, temperature=0.9)
    by_contrast = Sampling(temperature=0.9, contrastive=True)
    by_share = tiny.text_to_image(PROMPT, n=4, seed=5, sampling=task)
    contrasted = tiny.text_to_image(PROMPT, n=4, seed=5, sampling=by_contrast)
    shown: list[bytes] = []

    def score(prompt: str, pictures: Sequence[Image.Image]) -> list[float]:
        shown.extend(bytes_of(pictures))
        return brightness(prompt, pictures)

    tiny.text_to_image(PROMPT, seed=5, sampling=task, candidates=4, mix=True, score=score)
    assert shown == bytes_of([*by_share[:2], *contrasted[2:]])
    assert samplings(Sampling(), 2, mix=True)[0].top_p == SHARE  # a share of 1 would be no top-p
    assert samplings(task, 3, mix=False) == [task] * 3


def test_eight_candidates_cost_one_prefill(tiny: CM3Leon, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the decoder reads, counted: both prompts once, then a row of ids a step and stream."""
    shapes: list[tuple[int, ...]] = []
    forward = tiny.model.forward

    def counting(ids_BL: Tensor, *rest: object, **named: object) -> Tensor:
        shapes.append(tuple(ids_BL.shape))
        return forward(ids_BL, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(tiny.model, "forward", counting)
    tiny.text_to_image(PROMPT)
    first, *steps = shapes
    shapes.clear()
    tiny.text_to_image(PROMPT, candidates=8, mix=True, score=brightness)
    assert shapes == [first, *((8 * rows, length) for rows, length in steps)]
    assert first[0] == 2  # with the words and without


def test_the_first_of_equals_is_best_and_no_number_is_refused() -> None:
    assert best([0.1, 0.3, 0.3]) == 1
    assert best([-float("inf")]) == 0
    with pytest.raises(UserError, match="not a number"):
        best([0.1, float("nan")])
    assert pick(PROMPT, [Image.new("RGB", (1, 1))], 1, None)  # nobody is asked


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        ({"candidates": 0}, "at least 1"),
        ({"mix": True}, "even"),
        ({"candidates": 3, "mix": True, "score": brightness}, "even"),
        ({"candidates": 2}, "score function"),
        ({"candidates": 2, "sampling": Sampling(temperature=0), "score": brightness}, "above 0"),
        ({"candidates": 2, "mix": True, "sampling": Sampling(contrastive=True)}, "leave"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    tiny: CM3Leon, wanted: dict[str, object], why: str
) -> None:
    with pytest.raises(UserError, match=why) as caught:
        tiny.text_to_image(PROMPT, **wanted)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_candidates_leave_no_trace_in_the_model(tiny: CM3Leon) -> None:
    before = tiny.text_to_image(PROMPT, seed=3)
    tiny.text_to_image(PROMPT, candidates=2, score=brightness)
    assert bytes_of(tiny.text_to_image(PROMPT, seed=3)) == bytes_of(before)
    assert torch.is_grad_enabled()
