"""Near-copy detection: generated images against training images and retrieved documents.

Data path: images -> vectors, by any feature function -> `audit`: for each generated image the
nearest training image and the nearest of its retrieved documents, by cosine; the share that is
nearer than real images that were not trained on (`threshold`); which have exactly the codes of a
training image (`same_codes`) -> `pairs`, a sheet of the nearest. All generated images are decoded
from codes, so real images should be reconstructed through the codebook too; otherwise its loss adds
to their distances.
"""

# Shapes: D = images, Q = query images, F = features

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
from PIL import Image

from retrieval.embed import unit
from retrieval.index import Vectors
from tokenizer.errors import UserError
from tokenizer.pixels import fit, sheet

SHARE = 0.99  # share of real held-out images not above the threshold
TOGETHER = 256  # images compared with all others at once
CELL, ACROSS = 96, 4  # of the sheet: pixels of an image, and generated images per row

Features = Callable[[Sequence[Image.Image]], Vectors]
"""Function from images to the vectors [D, F] that are compared, of any length."""


class Near(NamedTuple):
    """Image id and the cosine to that image."""

    id: str
    score: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Pool:
    """Images by id, and their vectors of length 1."""

    ids: tuple[str, ...]
    vectors_DF: Vectors


@dataclass(frozen=True, kw_only=True)
class CopyHit:
    """Generated image, and the images nearest to it."""

    id: str
    train: Near
    retrieved: Near | None
    """None if no document with an image preceded its prompt."""
    same_codes: str | None
    """Training image with exactly its codes."""

    @property
    def leant(self) -> bool:
        """True if the nearest training image is the nearest retrieved document."""
        return self.retrieved is not None and self.retrieved.id == self.train.id


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Nearest images of all generated images, and of real held-out images for calibration.

    `held_out` is the cosine of each real held-out image to its nearest training image, `threshold`
    a cosine that most of them do not exceed.
    """

    found: tuple[CopyHit, ...]
    held_out: tuple[float, ...]
    threshold: float

    @property
    def near_train(self) -> list[float]:
        """For each generated image, 1.0 if a training image is above the threshold, else 0.0."""
        return [float(one.train.score > self.threshold) for one in self.found]

    @property
    def near_retrieved(self) -> list[float]:
        """For each image with retrieved documents, 1.0 if one is above the threshold, else 0.0."""
        scores = [one.retrieved.score for one in self.found if one.retrieved is not None]
        return [float(score > self.threshold) for score in scores]

    @property
    def near_held_out(self) -> list[float]:
        """Like `near_train`, for each real held-out image: the baseline."""
        return [float(score > self.threshold) for score in self.held_out]

    @property
    def exact(self) -> list[float]:
        """For each generated image, 1.0 if it has the codes of a training image, else 0.0."""
        return [float(one.same_codes is not None) for one in self.found]

    def nearest(self, count: int) -> list[CopyHit]:
        """Return the generated images nearest to a training image, the nearest first."""
        return sorted(self.found, key=lambda one: (-one.train.score, one.id))[:count]


def pool(
    pictures: Iterable[tuple[str, Image.Image]],
    features: Features,
    *,
    batch: int = 64,
    progress: Callable[[int], None] | None = None,
) -> Pool:
    """Compute the vectors of images, which are read and released a batch at a time.

    progress: called with the number of images done. Raises UserError if there are no images, if two
    have the same id, or if features are not finite numbers.
    """
    ids: list[str] = []
    rows: list[Vectors] = []
    left = iter(pictures)
    while group := list(islice(left, batch)):
        ids += [name for name, _ in group]
        rows.append(unit(features([image for _, image in group])))
        if not np.isfinite(rows[-1]).all():
            raise UserError("the features are not finite numbers; their network's weights are bad")
        if progress is not None:
            progress(len(ids))
    if not ids:
        raise UserError("there are no images to compare; give at least one of each kind")
    if len(set(ids)) < len(ids):
        raise UserError(f"{len(ids)} images have {len(set(ids))} ids; give each its own")
    return Pool(ids=tuple(ids), vectors_DF=np.concatenate(rows))


def nearest(asked: Pool, among: Pool) -> list[Near]:
    """Return for each query image the nearest of the others, the first of equals."""
    found: list[Near] = []
    for start in range(0, len(asked.ids), TOGETHER):
        scores_QD = asked.vectors_DF[start : start + TOGETHER] @ among.vectors_DF.T
        places_Q = scores_QD.argmax(axis=1)
        best_Q = scores_QD[np.arange(len(places_Q)), places_Q]
        found += [
            Near(among.ids[place], float(score))
            for place, score in zip(places_Q, best_Q, strict=True)
        ]
    return found


def threshold(scores: Sequence[float], share: float = SHARE) -> float:
    """Return the lowest score that at most 1 - `share` of the scores exceed.

    With 0.99, it is the highest of fewer than a hundred scores.
    """
    return float(np.quantile(np.asarray(scores), share, method="inverted_cdf"))


def same_codes(
    painted: Sequence[Sequence[int]], train: Iterable[tuple[str, Sequence[int]]]
) -> list[str | None]:
    """Return for each generated image the first training image with exactly its codes, if any.

    The codes of training images are read once and not kept.
    """
    wanted = {tuple(codes) for codes in painted}
    first: dict[tuple[int, ...], str] = {}
    for name, codes in train:
        if (key := tuple(codes)) in wanted:
            first.setdefault(key, name)
    return [first.get(tuple(codes)) for codes in painted]


def audit(
    painted: Pool,
    train: Pool,
    held_out: Pool,
    *,
    retrieved: Sequence[Sequence[str]] = (),
    documents: Pool | None = None,
    copies: Sequence[str | None] = (),
    share: float = SHARE,
) -> Audit:
    """Find the nearest training image and retrieved document of each generated image.

    held_out: real images that were not trained on, of the kind that the prompts describe;
    retrieved: ids of the documents with images before each prompt, all of which are in `documents`;
    copies: the result of `same_codes`. An empty `retrieved` or `copies` means that there were none.
    Raises UserError if a held-out image is among the training images, or a document is missing from
    `documents`.
    """
    shared = sorted({*held_out.ids} & {*train.ids})
    if shared:
        raise UserError(
            f"{len(shared)} held-out images, {shared[0]!r} for one, are among the training "
            "images, so that they say nothing of how near others come; leave them out of one"
        )
    scores = [near.score for near in nearest(held_out, train)]
    found = [
        CopyHit(id=name, train=near, retrieved=document, same_codes=copy)
        for name, near, document, copy in zip(
            painted.ids,
            nearest(painted, train),
            _nearest_retrieved(painted, retrieved or [()] * len(painted.ids), documents),
            copies or [None] * len(painted.ids),
            strict=True,
        )
    ]
    return Audit(found=tuple(found), held_out=tuple(scores), threshold=threshold(scores, share))


def pairs(
    shown: Sequence[CopyHit], painted: Mapping[str, Image.Image], real: Mapping[str, Image.Image]
) -> Image.Image:
    """Return a sheet of generated images, each with its nearest training image, ids and cosines.

    If any image has retrieved documents, the nearest of them is shown too.
    """
    with_documents = any(one.retrieved is not None for one in shown)
    cells: list[Image.Image] = []
    labels: list[str] = []
    for one in shown:
        cells += [painted[one.id], real[one.train.id]]
        same = " the same codes" if one.same_codes is not None else ""
        labels += [f"generated: {one.id}", f"train {one.train.score:.3f}{same}: {one.train.id}"]
        if one.retrieved is not None:
            cells.append(real[one.retrieved.id])
            labels.append(f"retrieved {one.retrieved.score:.3f}: {one.retrieved.id}")
        elif with_documents:
            cells.append(Image.new("RGB", (CELL, CELL), "white"))
            labels.append("none retrieved")
    columns = ACROSS * (3 if with_documents else 2)
    return sheet([fit(cell, CELL) for cell in cells], columns, labels)


def _nearest_retrieved(
    painted: Pool, retrieved: Sequence[Sequence[str]], documents: Pool | None
) -> list[Near | None]:
    """Return for each generated image the nearest of its own documents."""
    ids = () if documents is None else documents.ids
    places = {name: place for place, name in enumerate(ids)}
    missing = sorted({name for row in retrieved for name in row} - places.keys())
    if missing:
        raise UserError(
            f"{len(missing)} retrieved documents, {missing[0]!r} for one, are not among those "
            "given; give the images of the memory that they come from"
        )
    found: list[Near | None] = []
    for vector_F, row in zip(painted.vectors_DF, retrieved, strict=True):
        if documents is None or not row:
            found.append(None)
            continue
        own = [places[name] for name in row]
        scores_D = documents.vectors_DF[own] @ vector_F
        best = int(scores_D.argmax())
        found.append(Near(row[best], float(scores_D[best])))
    return found
