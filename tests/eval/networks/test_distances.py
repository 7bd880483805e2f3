"""eval/networks/distances.py: closed forms, direct formulas, and sets made by hand."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import linalg
from torch import Tensor

from eval.networks.distances import Distance, frechet, kid, surroundings
from tokenizer.errors import UserError

Measure = Callable[[Tensor, Tensor], Distance]


def noise(count: int, width: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=draw, dtype=torch.float64)


def features(count: int, width: int, seed: int) -> Tensor:
    """Of the kind that a network gives: never negative, some large, some small."""
    scale_F = torch.exp(-4 * torch.arange(width) / width)
    return (noise(count, width, seed) + 0.1 * seed).clamp(min=0) * scale_F


def gaussian(mean_F: Tensor, root_FF: Tensor, count: int, seed: int) -> Tensor:
    """Rows with exactly this mean and the covariance root^T root."""
    rows_NF = noise(count, len(mean_F), seed)
    rows_NF = rows_NF - rows_NF.mean(0)
    white_NF = torch.linalg.qr(rows_NF).Q * (count - 1) ** 0.5
    return white_NF @ root_FF + mean_F


def by_the_book(first_NF: Tensor, second_MF: Tensor) -> float:
    """The recipe of pytorch-fid, word by word: means, covariances, the root of their product."""
    first, second = first_NF.numpy(), second_MF.numpy()
    apart = first.mean(0) - second.mean(0)
    one, two = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    root = linalg.sqrtm(one @ two)
    assert np.isfinite(root).all()
    assert np.allclose(np.diagonal(root).imag, 0, atol=1e-3)
    return float(apart @ apart + np.trace(one) + np.trace(two) - 2 * np.trace(root.real))


def test_gaussians_have_their_closed_form() -> None:
    # One basis for both: the distance is that of the means and of the deviations.
    basis_FF = torch.linalg.qr(noise(6, 6, 0)).Q
    first_F, second_F = torch.rand(6).double() + 0.5, torch.rand(6).double() * 3
    mean_F = torch.linspace(-1, 2, 6).double()
    x_NF = gaussian(torch.zeros(6).double(), first_F.diag() @ basis_FF, 40, seed=1)
    y_MF = gaussian(mean_F, second_F.diag() @ basis_FF, 50, seed=2)
    wanted = mean_F.square().sum() + (first_F - second_F).square().sum()
    assert frechet(x_NF, y_MF).value == pytest.approx(float(wanted), rel=1e-10)


@pytest.mark.filterwarnings("ignore:Matrix is:scipy.linalg.LinAlgWarning")  # of the book's root
@pytest.mark.parametrize(
    ("count", "width", "tolerance"),
    [(200, 32, 1e-9), (33, 32, 1e-6), (12, 32, 1e-5), (2, 32, 1e-5)],
)
def test_it_is_the_value_of_pytorch_fid(count: int, width: int, tolerance: float) -> None:
    x_NF, y_MF = features(count, width, 1), features(count + 3, width, 4)
    assert frechet(x_NF, y_MF).value == pytest.approx(by_the_book(x_NF, y_MF), rel=tolerance)


@pytest.mark.parametrize(("count", "width"), [(2, 2048), (50, 2048), (300, 64), (65, 64)])
def test_a_set_is_not_far_from_itself(count: int, width: int) -> None:
    x_NF = features(count, width, 1)
    mixed_NF = x_NF[torch.randperm(count, generator=torch.Generator().manual_seed(3))]
    assert abs(frechet(x_NF, mixed_NF).value) < 1e-9
    assert frechet(x_NF, x_NF + 1).value == pytest.approx(width, rel=1e-9)


def test_no_measure_depends_on_the_order() -> None:
    x_NF, y_MF = features(300, 16, 1), features(280, 16, 3)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(3))
    mixed_NF, back_MF = x_NF[order], y_MF.flip(0)
    one, other = frechet(x_NF, y_MF), frechet(mixed_NF, back_MF)
    assert other.value == pytest.approx(one.value, rel=1e-12)
    assert other.parts_M == pytest.approx(one.parts_M[::-1], rel=1e-9)
    assert kid(mixed_NF, back_MF).value == pytest.approx(kid(x_NF, y_MF).value, rel=1e-9)
    before, after = surroundings(x_NF, y_MF), surroundings(mixed_NF, back_MF)
    for name in ("precision", "recall", "density", "coverage"):
        assert getattr(after, name) == pytest.approx(getattr(before, name), rel=1e-12), name
        assert 0 < getattr(before, name) != 1, name
    assert after.precision_M == before.precision_M[::-1]
    assert after.recall_N == tuple(before.recall_N[place] for place in order)


def direct_kid(x_NF: Tensor, y_MF: Tensor) -> float:
    """Every pair, one by one."""

    def kernel(a_F: Tensor, b_F: Tensor) -> float:
        return (float(a_F @ b_F) / len(a_F) + 1) ** 3

    own = [[kernel(a, b) for a, b in itertools.permutations(rows, 2)] for rows in (x_NF, y_MF)]
    across = [kernel(a, b) for a, b in itertools.product(x_NF, y_MF)]
    return float(np.mean(own[0]) + np.mean(own[1]) - 2 * np.mean(across))


def test_kid_is_the_direct_formula() -> None:
    x_NF, y_MF = features(9, 5, 1), features(7, 5, 4)
    found = kid(x_NF, y_MF)
    assert found.value == pytest.approx(direct_kid(x_NF, y_MF), rel=1e-12)
    many_NF, more_MF = features(300, 5, 1), features(260, 5, 4)  # more than are looked at together
    assert kid(many_NF, more_MF).value == pytest.approx(direct_kid(many_NF, more_MF), rel=1e-9)


def test_kid_is_unbiased() -> None:
    values = [kid(noise(40, 4, seed), noise(40, 4, 1000 + seed)).value for seed in range(300)]
    assert abs(np.mean(values)) < 4 * np.std(values) / 300**0.5
    assert min(values) < 0 < max(values)


@pytest.mark.parametrize("measure", [frechet, kid])
def test_the_parts_know_how_a_distance_spreads(measure: Measure) -> None:
    large_F, small_F = torch.tensor([3, 1, 1, 0.3]), torch.ones(4)
    for scale_F, other_F in ((large_F, small_F), (small_F, large_F)):  # large ones spread most
        found = [
            measure(noise(60, 4, seed) * scale_F, noise(90, 4, 1000 + seed) * other_F + 0.5)
            for seed in range(300)
        ]
        told = [(np.var(f.parts_N) / 60 + np.var(f.parts_M) / 90) ** 0.5 for f in found]
        assert np.mean(told) == pytest.approx(np.std([f.value for f in found]), rel=0.15)
        for f in found[:3]:
            assert (len(f.parts_N), len(f.parts_M)) == (60, 90)
            assert np.mean(f.parts_N) + np.mean(f.parts_M) == pytest.approx(f.value, rel=1e-9)


@pytest.mark.parametrize("measure", [frechet, kid])
def test_a_part_is_what_one_more_such_picture_does(measure: Measure) -> None:
    x_NF, y_MF = features(20, 4, 1).repeat(60, 1), features(9, 4, 4)
    before, back = measure(x_NF, y_MF), measure(y_MF, x_NF)
    assert back.parts_M == pytest.approx(before.parts_N, rel=1e-6, abs=1e-9)
    for place in range(3):
        more = measure(torch.cat([x_NF, x_NF[place : place + 1]]), y_MF).value - before.value
        part = before.parts_N[place] - np.mean(before.parts_N)
        assert more * 1201 == pytest.approx(part, rel=0.02, abs=0.01 * np.std(before.parts_N))


def on_a_line(*places: float) -> Tensor:
    return torch.tensor(places, dtype=torch.float64).unsqueeze(1)


def test_surroundings_of_sets_made_by_hand() -> None:
    # With the nearest neighbour alone, real pictures reach 1, 1, 2 and made ones 0.5, 0.5, 5.5.
    real_NF, made_MF = on_a_line(0, 1, 3), on_a_line(0.5, 1, 6.5)
    found = surroundings(real_NF, made_MF, nearest=1)
    assert found.precision_M == (1, 1, 0)
    assert found.density_M == (2, 3, 0)  # 1 lies at the very edge of what 3 reaches
    assert found.recall_N == (1, 1, 1)  # 0 at the edge of 0.5; 3 within reach of 6.5
    assert found.coverage_N == (1, 1, 1)
    assert (found.precision, found.density) == (pytest.approx(2 / 3), pytest.approx(5 / 3))
    swapped = surroundings(made_MF, real_NF, nearest=1)
    assert swapped.precision_M == found.recall_N
    assert swapped.recall_N == found.precision_M
    assert swapped.coverage_N == (1, 1, 1)
    two = surroundings(real_NF, made_MF, nearest=2)  # reach 3, 2, 3 and 6, 5.5, 6
    assert two.density_M == (1.5, 1.5, 0)
    assert two.coverage_N == (1, 1, 1)


def test_surroundings_of_sets_that_never_meet_or_are_one() -> None:
    real_NF = features(20, 6, 1)
    apart = surroundings(real_NF, real_NF + 100)
    assert (apart.precision, apart.recall, apart.density, apart.coverage) == (0, 0, 0, 0)
    same = surroundings(real_NF, real_NF)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    assert same.density > 1  # each lies in its own surroundings too
    one = surroundings(real_NF, real_NF[:1].repeat(10, 1))  # one real picture, again and again
    assert one.precision == 1
    assert one.recall == pytest.approx(1 / 20)
    assert 0 < one.coverage < 0.9


@pytest.mark.parametrize("measure", [frechet, kid, surroundings])
def test_what_cannot_be_measured(measure: Callable[[Tensor, Tensor], object]) -> None:
    whole_NF = features(9, 3, 1)
    broken_NF = whole_NF.clone()
    broken_NF[2, 1] = torch.nan
    for one, two in ((broken_NF, whole_NF), (whole_NF, broken_NF)):
        with pytest.raises(UserError, match="no finite numbers"):
            measure(one, two)
    for one, two in ((whole_NF[:1], whole_NF), (whole_NF, whole_NF[:0])):
        with pytest.raises(UserError, match=r"set of [01] images; a distance takes at least two"):
            measure(one, two)


def test_surroundings_take_more_pictures_than_neighbours() -> None:
    with pytest.raises(UserError, match=r"5 made images; a 5-th nearest .* at least 6"):
        surroundings(features(9, 3, 1), features(5, 3, 1))
