"""Distances between two sets of images, computed from features of the images.

Data path: a folder of images -> `folders.read_folder` -> features [N, F] -> here. The network
decides the name of the metric: FID and KID are Frechet distance and MMD on the features of
`inception`, and on no others. Everything is computed in float64, and the order of images in a set
only changes the last digits.
"""

# Shapes: N, M = images of the two sets; F = features per image; R = the smaller of N and F;
# K = rows processed together, or axes that two sets share

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenizer.errors import UserError

ROWS = 256  # images whose distances to all others are in memory at once
EDGE = 1e-10  # rounding error of a squared distance, relative to the largest squared norm
NEAREST = 5  # neighbour at which an image's neighbourhood ends (Naeem et al.)


@dataclass(frozen=True)
class Distance:
    """Distance of two sets, and the contribution of each image.

    The means of the parts sum to the value. The means of resampled parts (with replacement, each
    set by itself) vary as the value does with other images, to first order: a bootstrap over all
    images without recomputing the distance. Such an interval does not include the bias of a Frechet
    distance of few images.
    """

    value: float
    parts_N: tuple[float, ...]
    parts_M: tuple[float, ...]


@dataclass(frozen=True)
class Surroundings:
    """Precision, recall, density and coverage: one number per image, in the order of each set.

    An image's neighbourhood reaches to its k-th nearest neighbour in its own set.
    """

    precision_M: tuple[float, ...]
    """1 for a generated image in a real image's neighbourhood (Kynkaanniemi et al. 2019)."""
    recall_N: tuple[float, ...]
    """1 for a real image in the neighbourhood of some generated image."""
    density_M: tuple[float, ...]
    """Real images with the generated image in their neighbourhood, over k (Naeem et al. 2020)."""
    coverage_N: tuple[float, ...]
    """1 for a real image with some generated image in its neighbourhood."""

    @property
    def precision(self) -> float:
        return float(np.mean(self.precision_M))

    @property
    def recall(self) -> float:
        return float(np.mean(self.recall_N))

    @property
    def density(self) -> float:
        """Mean density, above 1 if generated images concentrate where real ones are dense."""
        return float(np.mean(self.density_M))

    @property
    def coverage(self) -> float:
        return float(np.mean(self.coverage_N))


def frechet(first_NF: Tensor, second_MF: Tensor) -> Distance:
    """Compute the Frechet distance of two sets of features.

    It is the distance of the Gaussians with the sets' means and (unbiased) covariances:

        |m1 - m2|^2 + trace(C1 + C2 - 2 (C1 C2)^(1/2))       (Heusel et al. 2017, arXiv:1706.08500)

    With C = A^T A, the trace of the root is the sum of the singular values of A1 A2^T. That is the
    value which pytorch-fid computes from the root of the product, but it stays exact if the
    covariances are singular (fewer images than features), so no small constant is added to them.

    Raises:
        UserError: fewer than two images, or features that are not finite numbers.
    """
    first, second = _checked(first_NF, second_MF)
    apart_F = first.mean(0) - second.mean(0)
    first, second = first - first.mean(0), second - second.mean(0)
    root_RF, other_RF = _root(first), _root(second)
    left_RK, shared_K, right_KR = np.linalg.svd(root_RF @ other_RF.T, full_matrices=False)
    spread = np.square(root_RF).sum() + np.square(other_RF).sum()
    value = float(apart_F @ apart_F + spread - 2 * shared_K.sum())
    parts_N = _pulls(first, apart_F, other_RF.T @ right_KR.T, shared_K)
    parts_M = _pulls(second, -apart_F, root_RF.T @ left_RK, shared_K)
    return Distance(value, _around(value / 2, parts_N), _around(value / 2, parts_M))


def _root(centred_NF: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return A [R, F] with A^T A the covariance of the rows."""
    scaled_NF = centred_NF / np.sqrt(len(centred_NF) - 1)
    if len(scaled_NF) <= scaled_NF.shape[1]:
        return scaled_NF
    factor: Any = np.linalg.qr(scaled_NF, mode="r")
    return factor


def _pulls(
    centred_NF: NDArray[np.float64],
    apart_F: NDArray[np.float64],
    axes_FK: NDArray[np.float64],
    shared_K: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the derivative of the distance by the weight of each image, up to a constant.

    The derivative by C1 is 1 - T, where T maps the first Gaussian to the second; x^T T x is here
    the sum of (x . axis)^2 / shared.
    """
    kept_K = shared_K > shared_K.max(initial=0) * 1e-12
    carried_N = (np.square(centred_NF @ axes_FK[:, kept_K]) / shared_K[kept_K]).sum(1)
    return 2 * centred_NF @ apart_F + np.square(centred_NF).sum(1) - carried_N


def _around(mean: float, parts_N: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple((parts_N - parts_N.mean() + mean).tolist())


def kid(first_NF: Tensor, second_MF: Tensor) -> Distance:
    """Compute the unbiased squared MMD with the kernel (x.y / F + 1)^3 over all pairs of images.

    Binkowski et al. 2018, arXiv:1801.01401. The usual mean over random subsets of 1000 estimates
    the same value, with sampling noise. Raises UserError as `frechet`.
    """
    first, second = _checked(first_NF, second_MF)
    across_N, across_M = _kernel_means(first, second), _kernel_means(second, first)
    own_N = _kernel_means(first, first, itself=False)
    own_M = _kernel_means(second, second, itself=False)
    # Each pair counts for both of its images: a changed image changes both, twice its own term.
    terms_N, terms_M = own_N - across_N, own_M - across_M
    value_N, value_M = float(terms_N.mean()), float(terms_M.mean())
    return Distance(value_N + value_M, _around(value_N, 2 * terms_N), _around(value_M, 2 * terms_M))


def _kernel_means(
    set_NF: NDArray[np.float64], other_MF: NDArray[np.float64], *, itself: bool = True
) -> NDArray[np.float64]:
    """Return the mean kernel of each image with all of another set.

    Without `itself`, the other set is its own, and the image itself is left out.
    """
    found: list[NDArray[np.float64]] = []
    for start in range(0, len(set_NF), ROWS):
        rows_KF = set_NF[start : start + ROWS]
        kernel_KM = (rows_KF @ other_MF.T / set_NF.shape[1] + 1) ** 3
        if not itself:
            kernel_KM[np.arange(len(rows_KF)), np.arange(start, start + len(rows_KF))] = 0
        found.append(kernel_KM.sum(1))
    return np.concatenate(found) / (len(other_MF) - (0 if itself else 1))


def surroundings(real_NF: Tensor, made_MF: Tensor, nearest: int = NEAREST) -> Surroundings:
    """Compute precision, recall, density and coverage with the `nearest`-th neighbour.

    Kynkaanniemi et al. (arXiv:1904.06991) use 3, Naeem et al. (arXiv:2002.09797) 5. An image
    exactly at the boundary is inside, as in the former's own program.

    Raises:
        UserError: no more than `nearest` images in a set, or features that are not finite numbers.
    """
    real, made = _checked(real_NF, made_MF)
    for name, pictures in (("real", len(real)), ("made", len(made))):
        if pictures <= nearest:
            raise UserError(
                f"{pictures} {name} images; a {nearest}-th nearest neighbour takes at least "
                f"{nearest + 1}. Give more images"
            )
    middle_F = real.mean(0)  # centred features lose fewer digits to cancellation
    real, made = real - middle_F, made - middle_F
    slack = EDGE * max(np.square(real).sum(1).max(), np.square(made).sum(1).max())
    reach_N, reach_M = _reach(real, nearest) + slack, _reach(made, nearest) + slack
    precision_M, density_M = np.zeros(len(made)), np.zeros(len(made))
    recall_N, closest_N = np.zeros(len(real), dtype=bool), np.full(len(real), np.inf)
    for rows, apart_KN in _squares(made, real):
        within_KN = apart_KN <= reach_N
        precision_M[rows] = within_KN.any(1)
        density_M[rows] = within_KN.sum(1) / nearest
        recall_N |= (apart_KN <= reach_M[rows, None]).any(0)
        closest_N = np.minimum(closest_N, apart_KN.min(0))
    coverage_N = closest_N <= reach_N
    numbers = (precision_M, recall_N, density_M, coverage_N)
    return Surroundings(*(tuple(one.astype(float).tolist()) for one in numbers))


def _squares(
    set_NF: NDArray[np.float64], other_MF: NDArray[np.float64]
) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Yield slices of rows and their squared distances [K, M] to all of another set."""
    sizes_M = np.square(other_MF).sum(1)
    for start in range(0, len(set_NF), ROWS):
        rows = slice(start, start + ROWS)
        sizes_K1 = np.square(set_NF[rows]).sum(1, keepdims=True)
        yield rows, sizes_K1 + sizes_M - 2 * set_NF[rows] @ other_MF.T


def _reach(set_NF: NDArray[np.float64], nearest: int) -> NDArray[np.float64]:
    """Return the squared distance of each image to its `nearest`-th neighbour, itself excluded."""
    found: list[NDArray[np.float64]] = []
    for rows, apart_KN in _squares(set_NF, set_NF):
        own = np.arange(len(apart_KN))
        apart_KN[own, own + rows.start] = np.inf
        found.append(np.partition(apart_KN, nearest - 1, axis=1)[:, nearest - 1])
    return np.concatenate(found)


def _checked(
    first_NF: Tensor, second_MF: Tensor
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return both sets in float64. Raises UserError if they cannot be compared."""
    assert first_NF.ndim == second_MF.ndim == 2
    assert first_NF.shape[1] == second_MF.shape[1]
    for features in (first_NF, second_MF):
        if len(features) < 2:
            raise UserError(f"a set of {len(features)} images; a distance takes at least two")
        if not torch.isfinite(features).all():
            raise UserError(
                "some features are no finite numbers; the network or an image is broken"
            )
    return first_NF.double().cpu().numpy(), second_MF.double().cpu().numpy()
