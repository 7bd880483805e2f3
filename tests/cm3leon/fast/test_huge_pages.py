"""Weights moved into large pages are the same weights, wherever they were shared."""

import mmap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cm3leon.fast import huge_pages as pages
from cm3leon.fast.quantize import prepare
from cm3leon.model import Decoder, ModelConfig

linux = pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="no large pages here")
BIG = {"vocabulary": 1024, "context": 32, "layers": 2, "width": 256, "heads": 4}


def flags_at(place: int) -> list[str]:
    """What Linux notes about the memory in which an address lies."""
    inside = False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        head = line.split()[0]
        if "-" in head and not head.endswith(":"):
            first, last = (int(part, 16) for part in head.split("-"))
            inside = first <= place < last
        elif inside and head == "VmFlags:":
            return line.split()[1:]
    raise AssertionError(f"nothing is mapped at {place:x}")


@linux
def test_numbers_shapes_and_sharing_stay() -> None:
    whole = torch.randn(1024, 1024)
    upper, lower = whole.chunk(2)
    turned, small = torch.randn(300, 200).T, torch.arange(3)
    none = torch.empty(0)
    given = [upper, lower, turned, small, none]
    before = [one.clone() for one in given]
    places = [one.data_ptr() for one in given]
    pages.settle(given)
    for one, was, place in zip(given, before, places, strict=True):
        assert torch.equal(one, was)
        assert one.stride() == was.stride() or one is turned
        assert one.data_ptr() != place or one is none
    assert turned.stride() == (1, 200)
    assert lower.data_ptr() == upper.data_ptr() + upper.nbytes
    lower[0, 0] = 7
    assert upper.as_strided((1024, 1024), (1024, 1))[512, 0] == 7
    assert "hg" in flags_at(upper.data_ptr())
    assert all(one.data_ptr() % pages.LINE == 0 for one in given[2:])


@linux
def test_less_than_a_page_stays_where_it_lies() -> None:
    small = torch.randn(1000)
    place = small.data_ptr()
    pages.settle([small])
    assert small.data_ptr() == place


@linux
@pytest.mark.parametrize("changes", [{}, {"mlp": "swiglu", "tied": False, "positions": "rope"}])
def test_a_prepared_decoder_lies_there_and_computes_the_same(
    changes: dict[str, str | bool], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = Decoder(ModelConfig(**BIG, **changes)).eval().requires_grad_(False)  # type: ignore[arg-type]
    ids_BL = torch.randint(1024, (2, 9))
    before = model.logits(model(ids_BL))
    prepare(model, "fp32")
    assert torch.equal(model.logits(model(ids_BL)), before)
    assert "hg" in flags_at(model.head_weight.data_ptr())
    if changes:
        gate, up = (getattr(model.blocks[0].mlp, name).weight for name in ("gate", "up"))
        assert gate.data_ptr() + gate.nbytes == up.data_ptr()
        return  # prepared for good: gate and up are one storage, which safetensors refuses
    save_file(model.state_dict(), tmp_path / "saved.safetensors")
    saved = load_file(tmp_path / "saved.safetensors")
    assert all(torch.equal(one, saved[name]) for name, one in model.state_dict().items())


@linux
@pytest.mark.parametrize("precision", ["int8", "bf16"])
def test_packed_weights_are_still_right(precision: str) -> None:
    torch.manual_seed(0)
    model = Decoder(ModelConfig(**BIG)).eval().requires_grad_(False)  # type: ignore[arg-type]
    ids_BL = torch.randint(1024, (1, 9))
    before = model.logits(model(ids_BL))
    prepare(model, precision)  # type: ignore[arg-type]
    after = model.logits(model(ids_BL)).float()
    assert (after - before).abs().max() < 0.05 * before.abs().max()
