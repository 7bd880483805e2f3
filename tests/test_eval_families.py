"""The judge: which real pictures it knows, and that it names a picture by the nearest of them."""

from pathlib import Path
from typing import Any

from cm3leon.pipeline import CM3Leon
from eval.families import Judge, choose_real
from eval.sets import find_images
from tokenizer.features import FeatureNet
from tokenizer.tars import Tally

FAMILIES = {f"p{number}": f"family {number // 2}" for number in range(5)}


def test_real_pictures_are_evenly_of_each_family() -> None:
    listed: list[dict[str, Any]] = [{"id": f"a{number}", "family": "a"} for number in range(6)]
    listed += [{"id": "b", "family": "b"}, {"id": "none"}, {"id": "c", "family": "c"}]
    assert choose_real(listed, {"c", "a5"}, 2) == {"a0": "a", "a2": "a", "b": "b"}
    assert choose_real(listed, set(), 9).keys() == {
        *(f"a{number}" for number in range(6)),
        "b",
        "c",
    }


def test_a_picture_is_named_by_the_nearest(
    tiny: CM3Leon, features_file: Path, corpus_folder: Path
) -> None:
    judge = Judge(tiny.image_tokenizer, FeatureNet.load(features_file))
    judge.learn([corpus_folder / "train-0.tar"], FAMILIES, Tally(), lambda done, most: None)
    size = tiny.image_tokenizer.size
    images = find_images([corpus_folder / "test-0.tar"], size, {"p5", *FAMILIES})
    known = [images[name] for name in FAMILIES]
    assert judge.of_real(known) == list(FAMILIES.values())
    assert judge.of_painted([tiny.reconstruct(image) for image in known]) == list(FAMILIES.values())
    assert judge.of_real([images["p5"]])[0] in FAMILIES.values()  # it was not to be looked at
    assert len(judge.families) == 5
