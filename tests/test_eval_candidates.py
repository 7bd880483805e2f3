"""Sample and rerank measured: who is asked, what is drawn, what is counted."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cm3leon.candidates import best
from cm3leon.checkpoint import TaskSampling
from cm3leon.pipeline import CM3Leon
from cm3leon.sampling import Sampling
from eval.candidates import (
    MIXED,
    PLAIN,
    Asked,
    Judged,
    Pool,
    choose,
    figures,
    measure,
    picture,
    places,
    pools,
)
from eval.families import Judge
from eval.sets import find_images
from tokenizer.errors import UserError
from tokenizer.features import FeatureNet
from tokenizer.tars import Tally

TASK = Sampling(temperature=1.0, top_p=0.9, cfg_scale=1.5)


def listed(families: int, variants: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{family}-{number}",
            "family": str(family),
            "captions": [f"{family}", f"a {family}"],
        }
        for family in range(families)
        for number in range(variants)
    ]


def test_prompts_are_by_lot_one_a_family() -> None:
    pictures = listed(12, 3)
    pictures += [{"id": "none", "captions": ["of no family"]}, {"id": "mute", "family": "3"}]
    known = {str(number) for number in range(10)}
    asked = choose(pictures, known, 10, seed=4)
    assert {one.family for one in asked} == known
    captions = {one["id"]: one["captions"] for one in pictures if "captions" in one}
    assert all(one.prompt in captions[one.id] for one in asked)
    assert {one.prompt.startswith("a ") for one in asked} == {True, False}
    assert choose(pictures, known, 10, seed=4) == asked
    assert choose(pictures, known, 4, seed=4) == asked[:4]
    assert choose(pictures, known, 10, seed=5) != asked
    with pytest.raises(UserError, match="11 prompts are asked for, but only 10 families"):
        choose(pictures, known, 11, seed=4)


def test_a_mix_shares_half_of_its_candidates_with_those_drawn_alike() -> None:
    found = pools(TASK, 4, True, 8)
    assert (
        [seed for seed, _ in found[PLAIN]] == [seed for seed, _ in found[MIXED]] == [8, 9, 10, 11]
    )
    assert found[MIXED][:2] == found[PLAIN][:2]
    assert [sampling.contrastive for _, sampling in found[MIXED]] == [False, False, True, True]
    assert list(pools(TASK, 4, False, 8)) == [PLAIN]
    assert places(PLAIN, 4, 8) == [0, 1, 2, 3]
    assert places(MIXED, 4, 8) == [0, 1, 4, 5]


def judged(plain: str, mixed: str, scores: Sequence[float]) -> Judged:
    """Hits written as `x`."""
    told = {PLAIN: plain, MIXED: mixed}
    hits = {name: tuple(letter == "x" for letter in text) for name, text in told.items()}
    found = {name: Pool(scores=tuple(scores), hits=row) for name, row in hits.items()}
    return Judged(
        asked=Asked(id="p", kind="emoji", family="f", prompt="a fox"), own=True, pools=found
    )


def test_hits_are_counted() -> None:
    rows = figures(
        [
            judged("x..x", "..xx", [0.1, 0.4, 0.3, 0.2]),
            judged(".x..", ".xxx", [0.1, 0.4, 0.3, 0.2]),
        ],
        4,
    )
    assert list(rows) == ["2 alike", "2 mixed", "4 alike", "4 mixed", "mixed - alike"]
    table = {
        name: [getattr(row, told).value for told in ("pick", "random", "any", "gain")]
        for name, row in rows.items()
    }
    assert table["2 alike"] == [0.5, 0.5, 1.0, 0.0]  # x. .x
    assert table["2 mixed"] == [1.0, 0.5, 1.0, 0.5]  # .x .x: the first and the third of four
    assert table["4 alike"] == [0.5, 0.375, 1.0, 0.125]
    assert table["4 mixed"] == [0.5, 0.625, 1.0, -0.125]
    assert table["mixed - alike"] == [0.0, 0.25, 0.0, -0.25]
    assert rows["4 alike"].pick.error == pytest.approx(0.5)


def test_what_is_judged_is_what_the_pipeline_paints_and_picks(
    tiny: CM3Leon, features_file: Path, corpus_folder: Path
) -> None:
    parts = (tiny.model, tiny.codec, tiny.image_tokenizer)
    leon = CM3Leon(*parts, TaskSampling(text_to_image=TASK))
    judge = Judge(leon.image_tokenizer, FeatureNet.load(features_file))
    families = {f"p{number}": str(number) for number in range(6)}
    judge.learn([corpus_folder / "train-0.tar"], families, Tally(), lambda done, most: None)
    asked = [
        Asked(id=f"p{number}", kind="icon", family=str(number), prompt=f"a red fox {number}")
        for number in range(6)
    ]
    own = find_images([corpus_folder / "test-0.tar"], leon.image_tokenizer.size, set(families))
    told: list[tuple[int, int]] = []
    found, shown = measure(
        leon,
        judge,
        brightness,
        asked,
        own,
        candidates=4,
        mix=True,
        seed=7,
        progress=lambda done, most: told.append((done, most)),
    )
    assert told == [(4, 6), (6, 6)]
    for number, (one, images) in enumerate(zip(found, shown, strict=True)):
        (kept,) = leon.text_to_image(
            one.asked.prompt, seed=7 + 4 * number, candidates=4, mix=True, score=brightness
        )
        pool = one.pools[MIXED]
        assert pool.scores == tuple(brightness("", images))
        assert images[best(pool.scores)].tobytes() == kept.tobytes()
        named = judge.of_painted(images)
        assert pool.hits == tuple(family == one.asked.family for family in named)
        assert one.own  # its own picture is among the real ones here
        assert pool.scores[:2] == one.pools[PLAIN].scores[:2]
    assert any(any(one.pools[PLAIN].hits) for one in found)
    sheet = picture(found, shown)
    assert sheet.width > 4 * 96
    assert sheet.height > 6 * 96


def brightness(_: str, pictures: Sequence[Image.Image]) -> list[float]:
    return [float(sum(one.tobytes())) for one in pictures]
