"""Rows kept on the device: those of the host, in their order, with noise of their own."""

# Shapes: B = rows, L = ids a row

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cm3leon.pipeline import CM3Leon
from tokenizer.codec import Codec
from tokenizer.data.shards import Shards
from tokenizer.distributed import DistributedContext
from tokenizer.errors import UserError
from tokenizer.vocabulary import PAD, Vocabulary
from train import config
from train.data.cached import CachedRows, noisy
from train.data.rows import Rows
from train.metrics import read
from train.pretrain import main

CPU = torch.device("cpu")
Make = Callable[..., tuple[CachedRows, Rows]]


@pytest.fixture
def make(lesson: Path, tiny: CM3Leon) -> Make:
    """Kept rows of the lesson's recipe with changes, and the rows that they were made of."""

    def make(*changes: str, dist: DistributedContext | None = None) -> tuple[CachedRows, Rows]:
        codec = tiny.codec
        named = config.load_pretrain(str(lesson), ("cached_rows=20", "batch=8", *changes))
        recipe = config.with_vocabulary(named, codec.vocabulary.size)
        assert recipe.shards is not None
        codec = Codec(codec.vocabulary, codec.text, codec.picture_codes, recipe.model.context)
        rows = Rows(Shards.open(recipe.shards), codec, recipe.rows, recipe.mask, recipe.seed)
        return CachedRows(rows, recipe, codec.vocabulary, CPU, dist or DistributedContext()), rows

    return make


def rows_of(cached: CachedRows, step: int) -> list[list[int]]:
    """The rows of a step without their padding, whatever micro-batch they stand in, sorted."""
    found: list[list[int]] = []
    for read_BL, targets_BL, weights_BL in cached.micros(step):
        assert read_BL.shape == targets_BL.shape == weights_BL.shape
        assert not weights_BL[targets_BL == PAD].any()
        for inputs, targets in zip(read_BL.tolist(), targets_BL.tolist(), strict=True):
            row = [inputs[0], *targets]
            assert row[:-1] == inputs
            found.append([number for number in row if number != PAD])
    return sorted(found)


@pytest.mark.parametrize("micro_tokens", [1, 100, 100_000])
def test_a_step_has_the_rows_of_its_number_and_begins_again_after_the_last(
    make: Make, micro_tokens: int
) -> None:
    cached, rows = make(f"micro_tokens={micro_tokens}")
    for step in (0, 1, 2, 7):
        numbers = [number % 20 for number in range(8 * step, 8 * step + 8)]
        assert rows_of(cached, step) == sorted(rows.at(number).tolist() for number in numbers)
    shapes = [read_BL.shape for read_BL, _, _ in cached.micros(0)]
    assert all(rows == 1 or rows * length <= micro_tokens for rows, length in shapes)


def test_processes_share_a_step(make: Make) -> None:
    whole = rows_of(make()[0], 3)
    parts = [rows_of(make(dist=DistributedContext(rank=rank, size=2))[0], 3) for rank in range(2)]
    assert sorted(parts[0] + parts[1]) == whole
    assert parts[0] != parts[1]


def test_noise_is_drawn_anew_at_every_step_and_the_same_when_it_is_made_again(make: Make) -> None:
    cached, _ = make("mask.noise=1", "cached_rows=8")
    first, later = ([read for read, _, _ in cached.micros(step)] for step in (0, 1))
    targets = [[targets for _, targets, _ in cached.micros(step)] for step in (0, 1)]
    assert all(torch.equal(one, two) for one, two in zip(*targets, strict=True))
    assert not all(torch.equal(one, two) for one, two in zip(first, later, strict=True))
    again = [read for read, _, _ in cached.micros(0)]
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))


def test_only_codes_of_the_last_image_change_and_so_many_as_on_the_host() -> None:
    vocabulary = Vocabulary(image_codes=64, text_pieces=16, sentinels=4)
    code, wall = vocabulary.image_id(63), vocabulary.break_id
    row = [2, *[code] * 40, wall, vocabulary.text_id(1), wall, *[code] * 40, 2, PAD]
    ids_BL = torch.tensor([row] * 2000)
    codes_PN = torch.arange(40, dtype=torch.int32).repeat(3, 1)
    read_BL = noisy(ids_BL, vocabulary, 0.6, codes_PN, torch.Generator().manual_seed(0))
    changed_BL = read_BL != ids_BL
    assert not changed_BL[:, :44].any()
    assert not changed_BL[:, 84:].any()
    places = torch.arange(40).expand(2000, 40)
    last = (slice(None), slice(44, 84))
    assert torch.equal(
        read_BL[last][changed_BL[last]], places[changed_BL[last]] + vocabulary.image_ids.start
    )
    shares = changed_BL.sum(1) / 40
    assert np.allclose(np.quantile(shares, (0.25, 0.5, 0.75)), (0.15, 0.3, 0.45), atol=0.04)


def test_a_run_of_kept_rows_learns_and_goes_on(lesson: Path, tmp_path: Path) -> None:
    changes = ("cached_rows=32", "batch=8", "steps=12", "schedule.warmup=2")
    main(str(lesson), changes, tmp_path / "run", "none", None, lambda _: None)
    log = read(tmp_path / "run")
    assert log[-1]["loss"] < log[0]["loss"]


def test_fewer_than_none_are_refused(make: Make) -> None:
    with pytest.raises(UserError, match="cached_rows must be at least 0, got -1"):
        make("cached_rows=-1")
