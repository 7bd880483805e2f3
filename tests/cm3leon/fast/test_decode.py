"""The fast decode steps against the plain path: PyTorch's and the compiled one; and what becomes of
a machine that cannot have that."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from cm3leon.fast import decode, native
from cm3leon.fast.cached import kept
from cm3leon.fast.cuda_graphs import stepper
from cm3leon.fast.decode import FastDecoder
from cm3leon.fast.native import NativeDecoder
from cm3leon.fast.quantize import DynamicInt8Linear, NativeInt8Linear, Precision, prepare
from cm3leon.model import Decoder, ModelConfig

MODELS: dict[str, dict[str, Any]] = {
    "paper": {},
    "affine": {"norm_affine": True},
    "default": {"mlp": "relu2", "positions": "rope", "rope_theta": 100.0},
    "llama": {
        "positions": "rope",
        "norm": "rmsnorm",
        "norm_affine": True,
        "mlp": "swiglu",
        "qk_norm": True,
        "tied": False,
    },
    "plain norms": {"norm": "rmsnorm", "qk_norm": True},
}
VOCABULARY = 96
here = pytest.mark.skipif(native.library() is None, reason=f"no compiled step: {native.loaded()}")
INT8 = pytest.param(
    "int8",
    marks=pytest.mark.skipif(not native.whole_is_fast(), reason="PyTorch's int8 serves this CPU"),
)


def new_decoder(width: int = 64, heads: int = 2, **changes: Any) -> Decoder:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocabulary": VOCABULARY, "context": 64, "layers": 2}
    made = Decoder(ModelConfig(**sizes, width=width, heads=heads, **changes))
    for weight in made.parameters():
        torch.nn.init.normal_(weight, float(weight.ndim == 1), 0.1)
    return made.eval().requires_grad_(False)


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Decoder:
    return new_decoder(**MODELS[request.param])


@pytest.fixture
def not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "loaded", lambda: "not here")


@pytest.mark.usefixtures("not_compiled")
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("precision", [None, "fp32", "int8"])
@torch.inference_mode()
def test_a_step_is_that_of_the_plain_path(
    model: Decoder, precision: Precision | None, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    for left in (5, 5, 4, 4, 4, 3, 2, 2, 1):  # rows leave
        for cache in (plain, quick):
            cache.rows = range(left)
        ids_R = torch.randint(VOCABULARY, (left,))
        wanted_RD = model(ids_R.unsqueeze(1), plain)[:, 0]
        torch.testing.assert_close(fast.step(quick, ids_R), wanted_RD, rtol=1e-4, atol=1e-4)
    assert plain.lengths == quick.lengths


def test_weights_that_change_are_seen_by_pytorchs(model: Decoder) -> None:
    first = FastDecoder.of(model)
    assert FastDecoder.of(model) is first
    model.double()
    assert FastDecoder.of(model) is not first


@pytest.mark.parametrize("change", ["in place", "assigned"])
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=here)])
def test_after_a_change_the_step_is_still_that_of_the_plain_path(
    model: Decoder, compiled: bool, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(native, "loaded", lambda: "not here")
    for _ in range(2):
        plain, quick = (model.new_cache(2, 13) for _ in "ab")
        for cache in (plain, quick):
            model(torch.tensor([[1, 2], [3, 4]]), cache)
        found_RD = stepper(model, quick)(torch.tensor([5, 6]))
        wanted_RD = model(torch.tensor([[5], [6]]), plain)[:, 0]
        torch.testing.assert_close(found_RD, wanted_RD, rtol=1e-4, atol=1e-4)
        assert isinstance(kept(model), NativeDecoder if compiled else FastDecoder)
        weights = {name: one + 0.1 for name, one in model.state_dict().items()}
        model.load_state_dict(weights, assign=change == "assigned")


@here
def test_two_threads_of_python_do_not_disturb_each_other() -> None:
    model = new_decoder()
    ids_TR = torch.randint(VOCABULARY, (40, 3), generator=torch.Generator().manual_seed(0))

    def run() -> torch.Tensor:
        cache = model.new_cache(3, 50)
        model(torch.tensor([[1, 2], [3, 4], [5, 6]]), cache)
        step = native_of(model).step
        return torch.stack([step(cache, ids_R.clone()) for ids_R in ids_TR])

    wanted = run()
    with ThreadPoolExecutor(2) as pool:
        found = [job.result() for job in [pool.submit(run) for _ in range(6)]]
    for one in found:
        torch.testing.assert_close(one, wanted, rtol=1e-5, atol=1e-5)


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def native_of(model: Decoder) -> NativeDecoder:
    found = NativeDecoder.of(model)
    assert found is not None
    return found


@here
@pytest.mark.parametrize("precision", [None, "fp32", INT8])
@torch.inference_mode()
def test_the_compiled_step_is_that_of_the_plain_path(
    model: Decoder, precision: Precision | None
) -> None:
    if precision is not None:
        prepare(model, precision)
    rows = 11
    counts = [1 + (5 * row) % 7 for row in range(rows)]
    prompts_RL = torch.randint(VOCABULARY, (rows, max(counts)))
    plain, quick = (model.new_cache(12, 64) for _ in "ab")
    for cache in (plain, quick):
        cache.rows = range(rows)
        model(prompts_RL, cache, counts=counts)
    step = native_of(model).step
    for left in (11, 11, 8, 7, 5, 4, 4, 3, 2, 2, 1):  # rows leave
        for cache in (plain, quick):
            cache.rows = range(left)
        ids_R = torch.randint(VOCABULARY, (left,))
        wanted_RD = model(ids_R.unsqueeze(1), plain)[:, 0]
        # a number that lies between two whole ones may become either
        apart = 0.05 if precision == "int8" else 1e-4
        torch.testing.assert_close(step(quick, ids_R), wanted_RD, rtol=apart, atol=apart)
    assert plain.lengths == quick.lengths
    assert plain.lengths_B.tolist() == quick.lengths


@here
@pytest.mark.parametrize("precision", ["fp32", INT8])
@torch.inference_mode()
def test_no_bit_of_a_row_depends_on_the_others_or_on_threads(
    model: Decoder, precision: Precision, request: pytest.FixtureRequest
) -> None:
    prepare(model, precision)
    prompts_RL, ids_TR = torch.randint(VOCABULARY, (9, 5)), torch.randint(VOCABULARY, (6, 9))
    found: dict[int, torch.Tensor] = {}
    for rows in (9, 6, 3, 1):
        together, cache = model.new_cache(9, 32), model.new_cache(rows, 32)
        model(prompts_RL, together)  # the plain path's sums may depend on the others
        for mine, theirs in ((cache.k_YBSNH, together.k_YBSNH), (cache.v_YBSNH, together.v_YBSNH)):
            mine.copy_(theirs[:, :rows])
        cache.advance([5] * rows)
        if rows == 3:
            request.getfixturevalue("one_thread")
        step = native_of(model).step
        found[rows] = torch.stack([step(cache, ids_R[:rows].clone()) for ids_R in ids_TR])
    for rows in (6, 3, 1):
        assert torch.equal(found[rows], found[9][:, :rows])


@here
@pytest.mark.parametrize("rows", [1, 2, 5, 64])
def test_whole_numbers_multiply_as_pytorch_multiplies_them(rows: int) -> None:
    draw = torch.Generator().manual_seed(rows)
    weight_NK = torch.randn(40, 192, generator=draw)
    x_TK = torch.randn(rows, 192, generator=draw)
    ours, theirs = NativeInt8Linear(weight_NK), DynamicInt8Linear(weight_NK)
    wanted_TN = x_TK @ weight_NK.T
    for one in (ours, theirs):
        assert (one(x_TK) - wanted_TN).std() < 0.02 * wanted_TN.std()
    step_T1 = x_TK.abs().amax(1, keepdim=True) / 127.5 * weight_NK.abs().max()
    if theirs.narrow:  # 7 bits of activations: every number may be rounded otherwise
        assert (theirs(x_TK) - ours(x_TK)).std() < 0.02 * wanted_TN.std()
    else:
        assert ((ours(x_TK) - theirs(x_TK)).abs() <= step_T1 * 1.001).all()  # one rounding


@here
@torch.inference_mode()
def test_what_lies_outside_is_refused() -> None:
    model = new_decoder()
    cache = model.new_cache(2, 3)
    model(torch.tensor([[1, 2], [3, 4]]), cache)
    step = native_of(model).step
    for wrong in (-1, VOCABULARY):
        with pytest.raises(IndexError, match="outside the vocabulary of 96"):
            step(cache, torch.tensor([5, wrong]))
    assert cache.lengths == [2, 2]
    step(cache, torch.tensor([5, 6]))
    with pytest.raises(IndexError, match="the KV cache is full"):
        step(cache, torch.tensor([5, 6]))


@here
def test_weights_that_change_are_seen_by_the_compiled() -> None:
    model = new_decoder()
    first = native_of(model)
    assert native_of(model) is first
    with torch.no_grad():
        model.embed.weight.add_(1)
    assert native_of(model) is not first


@here
def test_other_decoders_are_left_to_pytorch() -> None:
    assert NativeDecoder.of(new_decoder(heads=8)) is None  # heads of 8
    assert NativeDecoder.of(new_decoder().to(torch.bfloat16)) is None
    narrow = new_decoder(width=96)  # no multiple of 64
    assert NativeDecoder.of(narrow) is not None
    prepare(narrow, "int8")
    assert NativeDecoder.of(narrow) is None
    assert isinstance(narrow.blocks[0].get_submodule("attention.out"), DynamicInt8Linear)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A cache folder with nothing in it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.loaded.cache_clear()
    yield tmp_path / "cm3leon"
    monkeypatch.undo()
    native.loaded.cache_clear()


@here
def test_it_is_compiled_once(fresh: Path) -> None:
    assert native.library() is not None
    (made,) = fresh.iterdir()
    times = made.stat()
    native.loaded.cache_clear()
    assert native.library() is not None
    assert [file.stat() for file in fresh.iterdir()] == [times]


@here
def test_a_folder_of_others_is_not_trusted(fresh: Path) -> None:
    fresh.mkdir()
    fresh.chmod(0o777)
    assert native.loaded() == f"others than you can write to {fresh}"
    assert not any(fresh.iterdir())


def test_what_stands_in_the_way_is_said(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CM3LEON_NATIVE", "0")
    assert native.loaded() == "CM3LEON_NATIVE is 0"
    monkeypatch.delenv("CM3LEON_NATIVE")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    native.loaded.cache_clear()
    assert native.loaded() in ("no gcc", f"not on {sys.platform}")
    broken = tmp_path / "bin" / "gcc"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho 'no such header' >&2\nexit 1\n")
    broken.chmod(0o755)
    native.loaded.cache_clear()
    assert native.library() is None
    assert "no such header" in str(native.loaded())
    model = new_decoder()
    cache = model.new_cache(1, 8)
    model(torch.tensor([[1]]), cache)
    decode = stepper(model, cache)
    assert isinstance(kept(model), FastDecoder)
    assert decode(torch.tensor([1])).shape == (1, 64)
