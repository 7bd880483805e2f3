"""The quick decode step against the plain path, played from a recording too."""

import pytest
import torch

from cm3leon import decode, native
from cm3leon.decode import FastDecoder
from cm3leon.model import Decoder
from cm3leon.precision import Precision, prepare

VOCABULARY = 96


@pytest.fixture(autouse=True)
def not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "loaded", lambda: "not here")


@pytest.fixture
def model(any_decoder: Decoder) -> Decoder:
    return any_decoder


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("precision", [None, "fp32", "int8"])
@torch.inference_mode()
def test_a_step_is_that_of_the_plain_path_recorded_or_not(
    model: Decoder, precision: Precision | None, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "RECORDED", 3)
    monkeypatch.setattr(decode, "LARGE", 64 * 64 if large else 2**60)
    if precision is not None:
        prepare(model, precision)
    rows = 5
    counts = [1 + (5 * row) % 7 for row in range(rows)]
    prompts_RL = torch.randint(VOCABULARY, (rows, max(counts)))
    plain, quick = (model.new_cache(6, 64) for _ in "ab")
    for cache in (plain, quick):
        cache.rows = range(rows)
        model(prompts_RL, cache, counts=counts)
    fast = FastDecoder.of(model)
    for left in (5, 5, 4, 4, 4, 3, 2, 2, 1):  # rows leave, before and after the recording
        for cache in (plain, quick):
            cache.rows = range(left)
        ids_R = torch.randint(VOCABULARY, (left,))
        wanted_RD = model(ids_R.unsqueeze(1), plain)[:, 0]
        torch.testing.assert_close(fast.step(quick, ids_R), wanted_RD, rtol=1e-4, atol=1e-4)
    assert fast.plays
    if large and precision != "int8" and not (precision is None and model.config.mlp == "swiglu"):
        assert len(fast.plays) == 2
    assert plain.lengths == quick.lengths


@torch.inference_mode()
def test_a_recording_changes_no_bit(model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[torch.Tensor] = []
    for recorded in (1, 100):
        monkeypatch.setattr(decode, "RECORDED", recorded)
        model.fast = None
        cache = model.new_cache(2, 32)
        model(torch.arange(10).view(2, 5), cache)
        step = FastDecoder.of(model).step
        found.append(torch.stack([step(cache, torch.tensor([i, 9])) for i in range(6)]))
    assert torch.equal(*found)


def test_weights_that_change_are_seen(model: Decoder) -> None:
    first = FastDecoder.of(model)
    assert FastDecoder.of(model) is first
    model.double()
    assert FastDecoder.of(model) is not first
    model.train().eval()
    assert model.fast is None
