"""Are painted pictures copies: of what the model was trained on, or of the documents that stood in
front of the prompt.

pictures -> vectors, by any function of features -> `audit`: of each painted picture the nearest
training picture and the nearest of its retrieved documents, by cosine; how many come nearer than
real pictures do that nobody trained on (`threshold`); which have the very codes of a training
picture (`same_codes`) -> `pairs`, a sheet of the nearest. All that is painted has come through the
codebook, so real pictures should have too, or they are farther from one another by what it loses.
"""

# Shapes: D = pictures, Q = pictures asked about, F = features

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

SHARE = 0.99  # of real held-out pictures are not above the threshold
TOGETHER = 256  # pictures compared with all others at once
CELL, ACROSS = 96, 4  # of the sheet: pixels of a picture, and painted pictures in a row

Features = Callable[[Sequence[Image.Image]], Vectors]
"""What a picture is compared by: [D, F], of any length."""


class Near(NamedTuple):
    """A picture and the cosine to it."""

    id: str
    score: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Pool:
    """Pictures by their ids, and their vectors, of length 1."""

    ids: tuple[str, ...]
    vectors_DF: Vectors


@dataclass(frozen=True, kw_only=True)
class CopyHit:
    """A painted picture, and the nearest ones."""

    id: str
    train: Near
    retrieved: Near | None
    """None where no document with a picture stood in front of its prompt."""
    same_codes: str | None
    """A training picture with exactly its codes."""

    @property
    def leant(self) -> bool:
        """Whether the nearest training picture is the nearest retrieved document."""
        return self.retrieved is not None and self.retrieved.id == self.train.id


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What is near to painted pictures, and what that means: `held_out` says how near the nearest
    training picture is to each real held-out one, and `threshold` how near to most of them."""

    found: tuple[CopyHit, ...]
    held_out: tuple[float, ...]
    threshold: float

    @property
    def near_train(self) -> list[float]:
        """Of each painted picture 1.0 if a training picture is above the threshold, else 0.0."""
        return [float(one.train.score > self.threshold) for one in self.found]

    @property
    def near_retrieved(self) -> list[float]:
        """The same of its retrieved documents, for those that had any."""
        scores = [one.retrieved.score for one in self.found if one.retrieved is not None]
        return [float(score > self.threshold) for score in scores]

    @property
    def near_held_out(self) -> list[float]:
        """The same of each real held-out picture: what the first is to be compared with."""
        return [float(score > self.threshold) for score in self.held_out]

    @property
    def exact(self) -> list[float]:
        """Of each painted picture 1.0 if it has the codes of a training picture, else 0.0."""
        return [float(one.same_codes is not None) for one in self.found]

    def nearest(self, count: int) -> list[CopyHit]:
        """The painted pictures that come nearest to a training picture, the nearest first."""
        return sorted(self.found, key=lambda one: (-one.train.score, one.id))[:count]


def pool(
    pictures: Iterable[tuple[str, Image.Image]],
    features: Features,
    *,
    batch: int = 64,
    progress: Callable[[int], None] | None = None,
) -> Pool:
    """The vectors of pictures, which are read and forgotten a batch at a time; `progress` hears how
    many are done.

    Raises UserError where there is none, where two have one id, or where features are no numbers.
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
        raise UserError("there are no pictures to compare; give at least one of each kind")
    if len(set(ids)) < len(ids):
        raise UserError(f"{len(ids)} pictures have {len(set(ids))} ids; give each its own")
    return Pool(ids=tuple(ids), vectors_DF=np.concatenate(rows))


def nearest(asked: Pool, among: Pool) -> list[Near]:
    """Of each picture the nearest of the others, the first of equals."""
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
    """The least of the scores that no more than 1 - `share` of them are above; with 0.99, of fewer
    than a hundred the highest."""
    return float(np.quantile(np.asarray(scores), share, method="inverted_cdf"))


def same_codes(
    painted: Sequence[Sequence[int]], train: Iterable[tuple[str, Sequence[int]]]
) -> list[str | None]:
    """Of each painted picture the first training picture with exactly its codes, if any; those of
    training are read once and forgotten."""
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
    """What comes near to each painted picture.

    held_out: real pictures that nobody trained on, of the kind that the prompts speak of;
    retrieved: the ids of the documents with pictures that stood in front of each prompt, all of
    which are in `documents`; copies: what `same_codes` found. Without them there were none.
    Raises UserError where a held-out picture is among the training pictures, or a document is not
    among the documents.
    """
    shared = sorted({*held_out.ids} & {*train.ids})
    if shared:
        raise UserError(
            f"{len(shared)} held-out pictures, {shared[0]!r} for one, are among the training "
            "pictures, so that they say nothing of how near others come; leave them out of one"
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
    """A sheet: each painted picture, the nearest training picture and, where any has one, the
    nearest retrieved document, with their ids and cosines."""
    with_documents = any(one.retrieved is not None for one in shown)
    cells: list[Image.Image] = []
    labels: list[str] = []
    for one in shown:
        cells += [painted[one.id], real[one.train.id]]
        same = " the same codes" if one.same_codes is not None else ""
        labels += [f"painted: {one.id}", f"train {one.train.score:.3f}{same}: {one.train.id}"]
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
    """Of each painted picture the nearest of its own documents."""
    ids = () if documents is None else documents.ids
    places = {name: place for place, name in enumerate(ids)}
    missing = sorted({name for row in retrieved for name in row} - places.keys())
    if missing:
        raise UserError(
            f"{len(missing)} retrieved documents, {missing[0]!r} for one, are not among those "
            "given; give the pictures of the memory that they come from"
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
