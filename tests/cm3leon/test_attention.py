import importlib.util
import math
from typing import Any

import pytest
import torch

from cm3leon.attention import Attention, attend, attend_by_products, best_attention
from cm3leon.model import Decoder, sized
from tokenizer.errors import UserError

CPU = torch.device("cpu")
ROPE: dict[str, Any] = {"positions": "rope", "norm": "rmsnorm", "mlp": "swiglu", "qk_norm": True}


def lively(**changes: Any) -> Decoder:
    model = Decoder(sized("tiny", vocabulary=48, **changes))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2, generator=generator)
    return model


def queries_keys_values(seen: int, length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    q_BLNH = torch.randn(2, length, 3, 8, generator=generator)
    k_BSNH, v_BSNH = (torch.randn(2, seen, 3, 8, generator=generator) for _ in range(2))
    return q_BLNH, k_BSNH, v_BSNH


def by_hand(
    q_BLNH: torch.Tensor, k_BSNH: torch.Tensor, v_BSNH: torch.Tensor, mask_BLS: torch.Tensor
) -> torch.Tensor:
    scores_BNLS = torch.einsum("blnh,bsnh->bnls", q_BLNH, k_BSNH) / math.sqrt(q_BLNH.shape[-1])
    scores_BNLS = scores_BNLS.masked_fill(~mask_BLS.unsqueeze(1), -torch.inf)
    return torch.einsum("bnls,bsnh->blnh", scores_BNLS.softmax(-1), v_BSNH)


PLAIN = pytest.mark.parametrize("attend", [attend, attend_by_products])


@PLAIN
def test_causal_attention_agrees_with_the_formula(attend: Attention) -> None:
    q_BLNH, k_BSNH, v_BSNH = queries_keys_values(7, 7)
    mask_BLS = torch.ones(7, 7, dtype=torch.bool).tril().expand(2, 7, 7)
    expected = by_hand(q_BLNH, k_BSNH, v_BSNH, mask_BLS)
    torch.testing.assert_close(attend(q_BLNH, k_BSNH, v_BSNH), expected, rtol=1e-5, atol=1e-5)


@PLAIN
def test_masked_attention_agrees_with_the_formula(attend: Attention) -> None:
    q_BLNH, k_BSNH, v_BSNH = queries_keys_values(9, 2)
    mask_BLS = torch.arange(9) <= torch.tensor([[3, 4], [7, 8]]).unsqueeze(2)
    bias_BLS = torch.zeros(mask_BLS.shape).masked_fill(~mask_BLS, -torch.inf)
    torch.testing.assert_close(
        attend(q_BLNH, k_BSNH, v_BSNH, bias_BLS),
        by_hand(q_BLNH, k_BSNH, v_BSNH, mask_BLS),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("changes", [{}, ROPE], ids=["learned", "rope"])
@torch.no_grad()
def test_the_cache_gives_what_recomputing_gives(changes: dict[str, Any]) -> None:
    """Rows of different lengths, right-padded, then tokens one at a time and several at a time."""
    model = lively(**changes)
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randint(48, (start + 6,), generator=generator) for start in (2, 9, 5)]
    counts = [len(row) - 6 for row in rows]
    padded_BL = torch.ones(3, max(counts), dtype=torch.long)
    for row, (ids, count) in enumerate(zip(rows, counts, strict=True)):
        padded_BL[row, :count] = ids[:count]
    cache = model.new_cache(3, max(counts) + 6)
    assert not cache.k_YBSNH.any()
    assert not cache.v_YBSNH.any()
    filled_BLD = model(padded_BL, cache, counts=counts)
    assert cache.lengths == counts
    hidden = [[filled_BLD[row, :count]] for row, count in enumerate(counts)]
    for new in (1, 3, 1, 1):
        ids = [row[cache.lengths[i] : cache.lengths[i] + new] for i, row in enumerate(rows)]
        stepped_BLD = model(torch.stack(ids), cache)
        for row in range(3):
            hidden[row].append(stepped_BLD[row])
    for row, ids in enumerate(rows):
        alone_LD = model(ids.unsqueeze(0))[0]
        torch.testing.assert_close(torch.cat(hidden[row]), alone_LD, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_copied_rows_go_on_alone_and_rows_are_read_into_while_others_wait() -> None:
    model = lively()
    ids_BL = torch.randint(48, (2, 5), generator=torch.Generator().manual_seed(4))
    cache = model.new_cache(4, 7)
    cache.rows = range(1, 3)
    model(ids_BL, cache, counts=[5, 3])
    cache.copy([2, 1], [0, 3])
    assert cache.lengths == [3, 5, 3, 5]
    assert cache.lengths_B.tolist() == cache.lengths
    new_BL = torch.tensor([[7], [8], [9]])
    cache.rows = range(3)
    hidden_BLD = model(new_BL, cache)
    for row, (origin, count) in enumerate([(1, 3), (0, 5), (1, 3)]):
        whole_BL = torch.cat((ids_BL[origin, :count], new_BL[row])).unsqueeze(0)
        torch.testing.assert_close(hidden_BLD[row, 0], model(whole_BL)[0, -1], rtol=1e-4, atol=1e-4)
    assert cache.lengths == [4, 6, 4, 5]  # the last one waited
    cache.clear(range(3, 4))
    cache.rows = range(3, 4)
    again_BLD = model(ids_BL[1:, :3], cache)
    torch.testing.assert_close(again_BLD[0], model(ids_BL[1:, :3])[0], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_single_query_without_a_bias_sees_all_keys() -> None:
    q_BLNH, k_BSNH, v_BSNH = queries_keys_values(6, 1)
    mask_BLS = torch.ones(2, 1, 6, dtype=torch.bool)
    expected = by_hand(q_BLNH, k_BSNH, v_BSNH, mask_BLS)
    for way in (attend, attend_by_products):
        torch.testing.assert_close(way(q_BLNH, k_BSNH, v_BSNH), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_full_cache_takes_no_more() -> None:
    model = lively()
    cache = model.new_cache(1, 3)
    model(torch.tensor([[1, 2, 3]]), cache)
    with pytest.raises(AssertionError, match="full"):
        model(torch.tensor([[4]]), cache)


def test_the_choice_of_a_backend_is_said_once() -> None:
    said: list[str] = []
    assert best_attention(CPU, "auto", said.append) is attend
    assert said == ["attention: torch"]
    assert best_attention(CPU, "torch") is attend


def test_xformers_is_refused_where_it_cannot_run() -> None:
    with pytest.raises(UserError, match="asked for on cpu, but it needs CUDA"):
        best_attention(CPU, "xformers")


@pytest.mark.gpu
@pytest.mark.skipif(importlib.util.find_spec("xformers") is None, reason="needs xformers")
def test_xformers_agrees_with_torch() -> None:
    fast = best_attention(torch.device("cuda"), "xformers")
    for seen, length, masked in ((16, 16, False), (21, 1, True), (21, 5, True)):
        q_BLNH, k_BSNH, v_BSNH = (x.cuda() for x in queries_keys_values(seen, length))
        bias_BLS = None
        if masked:
            last_BL = torch.tensor([[seen - 9], [seen - length]]) + torch.arange(length)
            hidden_BLS = torch.arange(seen) > last_BL.unsqueeze(2)
            bias_BLS = torch.zeros(hidden_BLS.shape).masked_fill(hidden_BLS, -torch.inf).cuda()
        torch.testing.assert_close(
            fast(q_BLNH, k_BSNH, v_BSNH, bias_BLS),
            attend(q_BLNH, k_BSNH, v_BSNH, bias_BLS),
            rtol=1e-3,
            atol=1e-3,
        )
