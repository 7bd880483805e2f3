"""The copying audit: what is near is found, and the too near is told from the merely near."""

from collections.abc import Sequence
from typing import cast

import numpy as np
import pytest
from PIL import Image

from eval.metrics.near_copies import Audit, Pool, Vectors, audit, nearest, pairs, pool, same_codes
from eval.metrics.near_copies import threshold as threshold_of
from tokenizer.errors import UserError


def noise(number: int) -> Image.Image:
    pixels_HW3 = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels_HW3)


def near(image: Image.Image, amount: float) -> Image.Image:
    """The picture with so much of another laid over it."""
    return Image.blend(image, noise(999), amount)


def features(images: Sequence[Image.Image]) -> Vectors:
    """Pixels, less the middle grey."""
    return np.stack([np.asarray(image, dtype=np.float32).ravel() - 127.5 for image in images])


def pool_of(images: dict[str, Image.Image]) -> Pool:
    return pool(images.items(), features, batch=3)


TRAIN = {f"t{number}": noise(number) for number in range(10)}
HELD_OUT = {f"h{number}": near(noise(number), 0.6) for number in range(5)}
PAINTED = {
    "copy": TRAIN["t3"],
    "near": near(TRAIN["t5"], 0.1),
    "new": noise(100),
    "leant": near(TRAIN["t7"], 0.2),
}
RETRIEVED = [["t0", "t1"], [], ["d"], ["t2", "t7"]]
DOCUMENTS = {**{name: TRAIN[name] for name in ("t0", "t1", "t2", "t7")}, "d": noise(50)}


def found() -> Audit:
    return audit(
        pool_of(PAINTED),
        pool_of(TRAIN),
        pool_of(HELD_OUT),
        retrieved=RETRIEVED,
        documents=pool_of(DOCUMENTS),
        copies=["t3", None, None, None],
    )


def test_copies_are_above_the_threshold_and_new_pictures_are_not() -> None:
    result = found()
    assert [one.id for one in result.found] == list(PAINTED)
    assert result.near_train == [1, 1, 0, 1]
    assert result.exact == [1, 0, 0, 0]
    assert [one.train.id for one in result.found if one.id != "new"] == ["t3", "t5", "t7"]
    assert result.found[0].train.score == pytest.approx(1, abs=1e-6)
    assert result.threshold == max(result.held_out)  # five are too few to be above the 99th
    assert result.near_held_out == [0] * 5


def test_retrieved_documents_are_each_pictures_own() -> None:
    result = found()
    assert result.near_retrieved == [0, 0, 1]  # of the three that had any
    assert [one.leant for one in result.found] == [False, False, False, True]
    assert result.found[1].retrieved is None
    of_copy = result.found[0].retrieved
    assert of_copy is not None
    assert of_copy.id in {"t0", "t1"}
    vectors = [features([image])[0] for image in (PAINTED["copy"], DOCUMENTS[of_copy.id])]
    a_F, b_F = (vector_F / np.linalg.norm(vector_F) for vector_F in vectors)
    assert of_copy.score == pytest.approx(float(a_F @ b_F), abs=1e-6)


def test_the_nearest_are_those_of_one_comparison_after_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("eval.metrics.near_copies.TOGETHER", 3)
    asked, among = pool_of(HELD_OUT), pool_of(TRAIN)
    for vector_F, one in zip(asked.vectors_DF, nearest(asked, among), strict=True):
        scores = {
            name: float(vector_F @ other_F)
            for name, other_F in zip(among.ids, among.vectors_DF, strict=True)
        }
        best = max(scores, key=scores.__getitem__)
        assert one.id == best
        assert one.score == pytest.approx(scores[best], abs=1e-6)


def test_the_length_of_features_does_not_matter() -> None:
    longer = pool(PAINTED.items(), lambda images: 1000 * features(images))
    np.testing.assert_allclose(longer.vectors_DF, pool_of(PAINTED).vectors_DF, atol=1e-6)
    grey = {"grey": Image.new("RGB", (8, 8))}
    nothing = pool(grey.items(), lambda images: np.zeros((len(images), 4), dtype=np.float32))
    assert nothing.vectors_DF.tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize(("count", "above"), [(1, 0), (99, 0), (100, 1), (199, 1), (1000, 10)])
def test_one_in_a_hundred_real_pictures_is_above_the_threshold(count: int, above: int) -> None:
    scores = np.random.default_rng(0).permutation(count) / count
    bound = threshold_of(cast("list[float]", scores.tolist()))
    assert sum(score > bound for score in scores) == above


def test_the_same_codes_are_found_whole_and_only_whole() -> None:
    train = [("a", (1, 2, 3)), ("b", (1, 2, 4)), ("c", [1, 2, 3])]
    painted = [(1, 2, 4), [1, 2, 3], (1, 2), (3, 2, 1)]
    assert same_codes(painted, iter(train)) == ["b", "a", None, None]


def test_the_sheet_holds_the_nearest_pairs() -> None:
    result = found()
    shown = result.nearest(2)
    assert [one.id for one in shown] == ["copy", "near"]
    image = pairs(shown, PAINTED, {**TRAIN, **DOCUMENTS})
    cells = [image.crop((left, 2, left + 96, 98)) for left in range(2, image.width, 100)]
    assert len(cells) == 6
    assert cells[0].tobytes() == cells[1].tobytes()  # the copy and its original
    assert cells[0].tobytes() != cells[2].tobytes() != cells[3].tobytes()
    assert cells[5].getextrema() == ((255, 255),) * 3  # nothing was retrieved for it
    plain = audit(pool_of(PAINTED), pool_of(TRAIN), pool_of(HELD_OUT))
    assert plain.near_retrieved == []
    assert pairs(plain.nearest(2), PAINTED, TRAIN).width == 4 * 100


def test_bad_input_is_refused_in_one_line() -> None:
    train, painted = pool_of(TRAIN), pool_of(PAINTED)
    with pytest.raises(UserError, match=r"^1 held-out images, 't3' for one, are among the tr.*"):
        audit(painted, train, pool_of({"t3": TRAIN["t3"], **HELD_OUT}))
    with pytest.raises(UserError, match="'t9' for one, are not among those given"):
        audit(painted, train, pool_of(HELD_OUT), retrieved=[["t9"], [], [], []])
    with pytest.raises(UserError, match="there are no images"):
        pool([], features)
    with pytest.raises(UserError, match="2 images have 1 ids"):
        pool([("a", noise(0)), ("a", noise(1))], features)
    with pytest.raises(UserError, match="not finite"):
        pool([("a", noise(0))], lambda images: np.full((1, 2), np.nan, dtype=np.float32))
