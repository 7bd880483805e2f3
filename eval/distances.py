"""How far apart two sets of pictures are, measured on features of the pictures.

On the path: a folder of pictures -> `folders.read_folder` -> features [N, F] -> here. Which
network made the features names the figure: FID and KID are Frechet distance and MMD on the features
of `inception`, and on no others. Everything is computed in float64, and the order of pictures in a
set only moves the last digits.
"""

# Shapes: N, M = pictures of the two sets; F = features of a picture; R = the smaller of N and F,
# K = rows looked at together

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import linalg
from torch import Tensor

from tokenizer.errors import UserError

ROWS = 256  # distances from so many pictures to all others are held at once
NEAREST = 5  # the neighbour up to which a picture's surroundings reach (Naeem et al.)


@dataclass(frozen=True)
class Kid:
    """The kernel distance, and what each picture adds to it."""

    parts_N: tuple[float, ...]
    parts_M: tuple[float, ...]
    """Of each picture of the first and of the second set. The two means sum to the value, and those
    of pictures drawn anew, with replacement, spread as the value does with other pictures."""

    @property
    def value(self) -> float:
        """The squared distance: near 0, and as often below, for sets of one distribution."""
        return float(np.mean(self.parts_N) + np.mean(self.parts_M))


@dataclass(frozen=True)
class Surroundings:
    """How real and made pictures lie among each other; one number a picture, each set in its order.

    A picture's surroundings reach to its k-th nearest neighbour in its own set.
    """

    precision_M: tuple[float, ...]
    """1 for a made picture in the surroundings of some real one (Kynkaanniemi et al. 2019)."""
    recall_N: tuple[float, ...]
    """1 for a real picture in the surroundings of some made one."""
    density_M: tuple[float, ...]
    """Real pictures in whose surroundings a made one lies, over k (Naeem et al. 2020)."""
    coverage_N: tuple[float, ...]
    """1 for a real picture that has some made one in its surroundings."""

    @property
    def precision(self) -> float:
        return float(np.mean(self.precision_M))

    @property
    def recall(self) -> float:
        return float(np.mean(self.recall_N))

    @property
    def density(self) -> float:
        """Above 1 where made pictures crowd where real ones are dense."""
        return float(np.mean(self.density_M))

    @property
    def coverage(self) -> float:
        return float(np.mean(self.coverage_N))


def frechet(first_NF: Tensor, second_MF: Tensor) -> float:
    """The Frechet distance of the Gaussians that have the sets' means and (unbiased) covariances:

        |m1 - m2|^2 + trace(C1 + C2 - 2 (C1 C2)^(1/2))       (Heusel et al. 2017, arXiv:1706.08500)

    With C = A^T A, the trace of the root is the sum of the singular values of A1 A2^T. That is
    the value which pytorch-fid takes from the root of the product, but it stays exact where the
    covariances are singular (fewer pictures than features), so no small number is added to them.

    Raises:
        UserError: fewer than two pictures, or features that are no finite numbers.
    """
    first, second = _checked(first_NF, second_MF)
    apart_F = first.mean(0) - second.mean(0)
    root_RF, other_RF = _root(first), _root(second)
    shared = float(linalg.svdvals(root_RF @ other_RF.T).sum())
    return float(apart_F @ apart_F + np.square(root_RF).sum() + np.square(other_RF).sum()) - (
        2 * shared
    )


def _root(set_NF: NDArray[np.float64]) -> NDArray[np.float64]:
    """A [R, F] with A^T A the covariance of the rows."""
    scaled_NF = (set_NF - set_NF.mean(0)) / np.sqrt(len(set_NF) - 1)
    if len(set_NF) <= set_NF.shape[1]:
        return scaled_NF
    (root_RF,) = linalg.qr(scaled_NF, mode="r", overwrite_a=True, check_finite=False)
    return root_RF[: set_NF.shape[1]]


def kid(first_NF: Tensor, second_MF: Tensor) -> Kid:
    """The unbiased squared MMD with the kernel (x.y / F + 1)^3 (Binkowski et al. 2018,
    arXiv:1801.01401), over all pairs of pictures: what the usual mean over random subsets of 1000
    estimates, without its chance.

    Raises UserError as `frechet`.
    """
    first, second = _checked(first_NF, second_MF)
    across_N, across_M = _kernel_means(first, second), _kernel_means(second, first)
    own_N, own_M = (
        _kernel_means(first, first, itself=False),
        _kernel_means(second, second, itself=False),
    )
    return Kid(_parts(own_N - across_N), _parts(own_M - across_M))


def _kernel_means(
    set_NF: NDArray[np.float64], other_MF: NDArray[np.float64], *, itself: bool = True
) -> NDArray[np.float64]:
    """The mean kernel of each picture with all of another set, or (not `itself`) with all the
    others of its own."""
    found: list[NDArray[np.float64]] = []
    for start in range(0, len(set_NF), ROWS):
        rows_KF = set_NF[start : start + ROWS]
        kernel_KM = (rows_KF @ other_MF.T / set_NF.shape[1] + 1) ** 3
        if not itself:
            kernel_KM[np.arange(len(rows_KF)), np.arange(start, start + len(rows_KF))] = 0
        found.append(kernel_KM.sum(1))
    return np.concatenate(found) / (len(other_MF) - (0 if itself else 1))


def _parts(terms_N: NDArray[np.float64]) -> tuple[float, ...]:
    """Terms that count each pair at both its pictures -> numbers with their mean, and with twice
    their spread, for a picture that is changed moves both ends of its pairs."""
    return tuple((2 * terms_N - terms_N.mean()).tolist())


def surroundings(real_NF: Tensor, made_MF: Tensor, nearest: int = NEAREST) -> Surroundings:
    """Precision, recall, density and coverage with surroundings up to the `nearest`-th neighbour.

    Kynkaanniemi et al. (arXiv:1904.06991) take 3, Naeem et al. (arXiv:2002.09797) 5. A picture at
    the very edge lies inside.

    Raises:
        UserError: no more than `nearest` pictures in a set, or features that are no finite numbers.
    """
    real, made = (torch.from_numpy(array) for array in _checked(real_NF, made_MF))
    for name, pictures in (("real", len(real)), ("made", len(made))):
        if pictures <= nearest:
            raise UserError(
                f"{pictures} {name} pictures; a {nearest}-th nearest neighbour takes at least "
                f"{nearest + 1}. Give more pictures"
            )
    reach_N, reach_M = _reach(real, nearest), _reach(made, nearest)
    precision, density, recall, coverage = list[Tensor](), list[Tensor](), list[Tensor](), []
    for _, apart_KN in _distances(made, real):
        within_KN = apart_KN <= reach_N
        precision.append(within_KN.any(1))
        density.append(within_KN.sum(1) / nearest)
    for start, apart_KM in _distances(real, made):
        recall.append((apart_KM <= reach_M).any(1))
        coverage.append(apart_KM.amin(1) <= reach_N[start : start + len(apart_KM)])
    return Surroundings(
        _numbers(precision), _numbers(recall), _numbers(density), _numbers(coverage)
    )


def _distances(set_NF: Tensor, other_MF: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The first row and the distances [K, M] of some pictures at a time.

    Difference by difference, not by the quicker product, so that equal pictures are at exactly 0
    and a distance is the same from both ends.
    """
    for start in range(0, len(set_NF), ROWS):
        rows_KF = set_NF[start : start + ROWS]
        yield start, torch.cdist(rows_KF, other_MF, compute_mode="donot_use_mm_for_euclid_dist")


def _reach(set_NF: Tensor, nearest: int) -> Tensor:
    """Each picture's distance to its `nearest`-th neighbour; the nearest of all is itself."""
    found = [apart_KN.kthvalue(nearest + 1).values for _, apart_KN in _distances(set_NF, set_NF)]
    return torch.cat(found)


def _numbers(parts: list[Tensor]) -> tuple[float, ...]:
    return tuple(torch.cat(parts).double().tolist())


def _checked(
    first_NF: Tensor, second_MF: Tensor
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both sets in float64, able to be compared."""
    assert first_NF.ndim == second_MF.ndim == 2
    assert first_NF.shape[1] == second_MF.shape[1]
    for features in (first_NF, second_MF):
        if len(features) < 2:
            raise UserError(f"a set of {len(features)} pictures; a distance takes at least two")
        if not torch.isfinite(features).all():
            raise UserError(
                "some features are no finite numbers; the network or a picture is broken"
            )
    return first_NF.double().cpu().numpy(), second_MF.double().cpu().numpy()
