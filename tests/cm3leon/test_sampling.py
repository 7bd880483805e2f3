import math
from typing import Any

import pytest
import torch

from cm3leon.sampling import (
    Sampling,
    choose,
    combine,
    contrast,
    draw,
    favour,
    guide,
    guide_edit,
    top_k,
    top_p,
)
from tokenizer.errors import UserError


def logits(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows).log()


def allowed(logits_BV: torch.Tensor) -> list[list[int]]:
    return [row.isfinite().nonzero().flatten().tolist() for row in logits_BV]


def test_guidance_pushes_away_from_the_unconditional() -> None:
    cond, uncond = torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0, 1.0]])
    assert guide(cond, uncond, 3.0).tolist() == [[4.0, 1.0]]
    assert guide(cond, uncond, 1.0).tolist() == cond.tolist()
    assert guide(cond, uncond, 0.0).tolist() == uncond.tolist()


def test_a_favoured_id_is_likelier_by_so_many_nats() -> None:
    found = favour(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), torch.tensor([2, 0]), 1.5)
    assert found.tolist() == [[1.0, 2.0, 4.5], [5.5, 5.0, 6.0]]


def test_editing_guidance_weighs_picture_and_instruction() -> None:
    full, image, uncond = torch.tensor([[4.0]]), torch.tensor([[3.0]]), torch.tensor([[1.0]])
    assert guide_edit(full, image, uncond, 1.5, 7.5).tolist() == [[1 + 1.5 * 2 + 7.5 * 1]]
    assert guide_edit(full, image, uncond, 1.0, 1.0).tolist() == full.tolist()
    assert guide_edit(full, image, image, 9.0, 2.0).tolist() == guide(full, image, 2.0).tolist()


def test_contrastive_decoding_by_hand() -> None:
    cond, uncond = logits([0.5, 0.3, 0.15, 0.05]), logits([0.25, 0.25, 0.25, 0.25])
    # the second largest is 0.3; half of it is 0.15, which is level and stays
    score = contrast(cond, uncond, k=2, alpha=0.4999)
    assert allowed(score) == [[0, 1, 2]]
    assert score[0, :3].exp().tolist() == pytest.approx([2.0, 1.2, 0.6])
    assert allowed(contrast(cond, uncond, k=1, alpha=0.9)) == [[0]]  # plain: nearly greedy
    assert allowed(contrast(cond, uncond, k=3, alpha=1.0)) == [[0, 1, 2]]
    assert allowed(contrast(cond, uncond, k=99, alpha=1.0)) == [[0, 1, 2, 3]]


def test_contrastive_decoding_does_not_mind_a_shift_of_the_logits() -> None:
    cond, uncond = logits([0.5, 0.3, 0.2]), logits([0.2, 0.3, 0.5])
    shifted = contrast(cond + 5, uncond - 3, k=2, alpha=0.5)
    torch.testing.assert_close(shifted, contrast(cond, uncond, k=2, alpha=0.5))


def test_top_k_keeps_the_likeliest() -> None:
    rows = logits([0.1, 0.4, 0.3, 0.2], [0.4, 0.1, 0.2, 0.3])
    assert allowed(top_k(rows, 2)) == [[1, 2], [0, 3]]
    assert allowed(top_k(rows, 9)) == [[0, 1, 2, 3]] * 2


def test_top_p_keeps_the_fewest_that_reach_p() -> None:
    rows = logits([0.1, 0.4, 0.3, 0.2], [0.97, 0.01, 0.01, 0.01])
    assert allowed(top_p(rows, 0.65)) == [[1, 2], [0]]
    assert allowed(top_p(rows, 0.75)) == [[1, 2, 3], [0]]
    assert allowed(top_p(rows, 1e-9)) == [[1], [0]]


def test_draw_follows_the_distribution() -> None:
    row = logits([0.1, 0.0, 0.6, 0.3])
    noise_B = torch.linspace(0, 1, 1001)[:-1]
    ids = draw(row.expand(1000, 4), noise_B)
    assert torch.bincount(ids, minlength=4).tolist() == pytest.approx([100, 0, 600, 300], abs=1)


def test_draw_never_takes_a_forbidden_id() -> None:
    row = logits([0.0, 0.5, 0.5, 0.0])
    ends = torch.tensor([0.0, 1 - 2**-24])  # the least and the greatest that torch.rand gives
    assert draw(row.expand(2, 4), ends).tolist() == [1, 2]


def test_a_row_draws_the_same_alone_and_in_a_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, noise = torch.randn(16, 50, generator=generator), torch.rand(16, generator=generator)
    sampling = Sampling(temperature=0.8, top_k=20, top_p=0.9)
    alone = [choose(rows[i : i + 1], sampling, noise[i : i + 1]).item() for i in range(16)]
    assert choose(rows, sampling, noise).tolist() == alone


def test_temperature_zero_takes_the_likeliest() -> None:
    row = logits([0.2, 0.5, 0.3])
    assert choose(row, Sampling(temperature=0), torch.tensor([0.999])).tolist() == [1]


def test_temperature_comes_before_top_p() -> None:
    row = logits([0.6, 0.4])
    cold = Sampling(temperature=0.25, top_p=0.8)  # 0.6^4 : 0.4^4 = 0.835 : 0.165
    assert choose(row, cold, torch.tensor([0.99])).tolist() == [0]
    assert choose(row, Sampling(top_p=0.8), torch.tensor([0.99])).tolist() == [1]


def test_combine_goes_by_the_number_of_streams() -> None:
    full, image, uncond = (torch.tensor([[float(x), 0.0]]) for x in (4, 3, 1))
    sampling = Sampling(cfg_scale=2.0)
    assert combine(torch.stack((full,)), sampling).tolist() == full.tolist()
    assert combine(torch.stack((full, uncond)), sampling).tolist() == [[7.0, 0.0]]
    assert combine(torch.stack((full, image, uncond)), sampling).tolist() == [[11.5, 0.0]]
    contrasted = combine(torch.stack((full, uncond)), Sampling(contrastive=True, contrastive_k=1))
    assert contrasted[0, 0].isfinite()
    assert contrasted[0, 1].item() == -math.inf


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0; it must be 0 or more"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0; it must be at least 1"),
        ({"top_p": 0.0}, "top_p is 0.0; it must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"cfg_scale": -2.0}, "cfg_scale is -2.0; it must be 0 or more"),
        ({"contrastive_k": 0}, "contrastive_k is 0"),
        ({"contrastive_alpha": 0.0}, "contrastive_alpha is 0.0"),
        ({"text_scale": math.inf}, "text_scale is inf"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Sampling(**settings)
