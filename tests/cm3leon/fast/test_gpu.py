"""Decoding on a GPU: the kernels and the recorded steps against PyTorch's own."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from cm3leon.engine.request import Streams
from cm3leon.fast import kernels
from cm3leon.fast.cuda_graphs import stepper
from cm3leon.fast.quantize import Precision, prepare, to_int8
from cm3leon.generate import generate
from cm3leon.grammar import Drawn
from cm3leon.model import Decoder, ModelConfig
from cm3leon.sampling import Sampling

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")
LLAMA: dict[str, Any] = {
    "positions": "rope",
    "norm": "rmsnorm",
    "norm_affine": True,
    "mlp": "swiglu",
    "qk_norm": True,
    "tied": False,
}
VOCABULARY, WIDTH = 400, 256


@pytest.fixture(params=[{}, LLAMA], ids=["paper", "llama"])
def model(request: pytest.FixtureRequest) -> Decoder:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocabulary": VOCABULARY,
        "context": 96,
        "layers": 2,
        "width": WIDTH,
        "heads": 4,
    }
    made = Decoder(ModelConfig(**sizes, **request.param))
    for weight in made.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.08)
    return made.cuda().eval().requires_grad_(False)


@pytest.fixture(autouse=True)
def no_tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", range(1, kernels.FEW + 1))
def test_a_product_is_that_of_pytorch(rows: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x_RK = torch.randn((rows, 1500), device=CUDA, dtype=dtype)
    scales_N, ints_NK = to_int8(torch.randn((333, 1500), device=CUDA))
    wanted_RN = x_RK.float() @ (ints_NK * scales_N[:, None]).T
    found_RN = kernels.product(x_RK, ints_NK, scales_N.to(dtype)).float()
    close = 1e-3 if dtype == torch.float32 else 0.5
    torch.testing.assert_close(found_RN, wanted_RN, rtol=1e-2 * close, atol=close)


@pytest.mark.parametrize("size", [64, 96])
def test_attention_looks_as_far_as_each_row_goes(size: int) -> None:
    torch.manual_seed(0)
    qkv_R3NH = torch.randn(3, 3, 4, size, device=CUDA)
    k_CSNH, v_CSNH = torch.randn(2, 5, 200, 4, size, device=CUDA).unbind()
    places = [0, 5, 150]
    places_R = torch.tensor(places, device=CUDA)
    q_RNH, k_RNH, v_RNH = qkv_R3NH.unbind(1)
    found_RNH = kernels.attend(q_RNH, k_RNH, v_RNH, k_CSNH, v_CSNH, places_R)
    for row, place in enumerate(places):
        k_SNH, v_SNH = k_CSNH[row, : place + 1], v_CSNH[row, : place + 1]
        assert torch.equal(k_SNH[-1], k_RNH[row])
        assert torch.equal(v_SNH[-1], v_RNH[row])
        wanted_N1H = F.scaled_dot_product_attention(
            q_RNH[row].unsqueeze(1), k_SNH.transpose(0, 1), v_SNH.transpose(0, 1)
        )
        torch.testing.assert_close(found_RNH[row], wanted_N1H[:, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 3, 11])
@pytest.mark.parametrize("by_kernel", [True, False])
@torch.inference_mode()
def test_recorded_steps_equal_the_plain_path(
    model: Decoder, rows: int, by_kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not by_kernel:
        monkeypatch.setattr(kernels, "triton", None)
    counts = [1 + (5 * row) % 7 for row in range(rows)]
    prompts_RL = torch.randint(VOCABULARY, (rows, max(counts)), device=CUDA)
    plain, recorded = (model.new_cache(13, 64) for _ in "ab")
    step = stepper(model, recorded)
    for cache in (plain, recorded):
        cache.rows = range(rows)
        model(prompts_RL, cache, counts=counts)
    for left in (rows, rows, -(-rows // 2), 1):  # rows leave
        for cache in (plain, recorded):
            cache.clear(range(left, rows))
            cache.rows = range(left)
        for _ in range(3):
            ids_R = torch.randint(VOCABULARY, (left,), device=CUDA)
            wanted_RD = model(ids_R.unsqueeze(1), plain)[:, 0]
            torch.testing.assert_close(step(ids_R), wanted_RD, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", ["bf16", "int8", "int4"])
@torch.inference_mode()
def test_a_smaller_precision_is_near(model: Decoder, precision: Precision) -> None:
    ids_BL = torch.randint(VOCABULARY, (2, 40), device=CUDA)
    exact_BLV = model.logits(model(ids_BL))
    prepare(model, precision)
    near_BLV = model.logits(model(ids_BL)).float()
    error = (near_BLV - exact_BLV).norm() / exact_BLV.norm()
    assert error < {"bf16": 0.05, "int8": 0.1, "int4": 0.5}[precision]
    cache = model.new_cache(2, 64)
    model(ids_BL[:, :-1], cache)
    last_BD = stepper(model, cache)(ids_BL[:, -1])
    error = (model.logits(last_BD).float() - near_BLV[:, -1]).norm() / near_BLV[:, -1].norm()
    assert error < 0.05


def test_a_sample_is_the_same_alone_and_in_company(model: Decoder) -> None:
    streams, rule = Streams(((5, 6, 7), (8, 9))), (Drawn(range(100, 400), 30),)
    together = generate(model, streams, rule, Sampling(top_p=0.9), range(9))
    alone = [generate(model, streams, rule, Sampling(top_p=0.9), [seed])[0] for seed in range(9)]
    assert sum(a == b for a, b in zip(together, alone, strict=True)) >= 8  # one draw on a border
