"""Recall of the encoder: the rank of a caption's own image, and of an image's own caption.

Data path: images and their first captions -> `Embedder` -> vectors -> number of wrong candidates
with a higher score.
"""

# Shapes: D = images, C = distinct captions, E = vector width, Q = queries per batch

from collections import defaultdict
from collections.abc import Sequence, Set
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from eval.context import EvalContext
from eval.corpus import captioned
from eval.report import MetricResult, Value, mean
from eval.stats import by_kind, evenly, kind_of
from retrieval.embed import Embedder
from retrieval.index import Vectors

AT = (1, 5, 10)  # a hit is a correct candidate among so many first ones
GROUP = 64  # images embedded together
QUERIES = 256  # queries compared with all candidates at once

Ranks = NDArray[np.int64]


def recall(context: EvalContext) -> MetricResult:
    """Return the shares of queries with a hit among the first 1, 5 and 10, by kind of image.

    Every image's first caption and every image is a query; the candidates are of all kinds
    together. For a caption, any image that has it is correct. For an image, the candidates are the
    distinct first captions, and any of the image's own is correct.
    """
    ids = [one["id"] for one in captioned(context.source, context.listed)]
    ids = [ids[place] for place in evenly(range(len(ids)), context.asked.limit)]
    kinds, captions, texts_DE, images_DE = embed(context, context.embedder, ids)
    to_image, to_caption = ranks_of(captions, texts_DE, images_DE)
    values: dict[str, Value] = {}
    for kind, places in by_kind(kinds).items():
        for name, ranks_D in (("caption to image", to_image), ("image to caption", to_caption)):
            for at in AT:
                hits = (ranks_D[places] < at).astype(float).tolist()
                values[f"{name} @{at}, {kind}"] = mean(hits)
    return MetricResult(values=values)


def embed(
    context: EvalContext, embedder: Embedder, ids: Sequence[str]
) -> tuple[list[str], list[tuple[str, ...]], Vectors, Vectors]:
    """Return the kinds and captions of these images, and the vectors [D, E] of captions and images.

    The vectors are those of the first captions; images are read and released a group at a time.
    """
    read, steps = context.source.read(frozenset(ids), None), context.steps("embedding")
    kinds: list[str] = []
    captions: list[tuple[str, ...]] = []
    texts, images = list[Vectors](), list[Vectors]()
    while group := list(islice(read, GROUP)):
        kinds += [kind_of(metadata) for metadata, _ in group]
        captions += [tuple(metadata["captions"]) for metadata, _ in group]
        texts.append(embedder.texts([metadata["captions"][0] for metadata, _ in group]))
        images.append(embedder.pictures([image for _, image in group]))
        if steps is not None:
            steps(len(kinds), len(ids))
    return kinds, captions, np.concatenate(texts), np.concatenate(images)


def ranks_of(
    captions: Sequence[Sequence[str]], texts_DE: Vectors, images_DE: Vectors
) -> tuple[Ranks, Ranks]:
    """Return the ranks of correct images for first captions, and of correct captions for images.

    There is a rank per image of the set, for each direction; 0 is the first.
    """
    carriers: dict[str, set[int]] = defaultdict(set)
    for image, own in enumerate(captions):
        for caption in own:
            carriers[caption].add(image)
    firsts = [own[0] for own in captions]
    place_of = {caption: place for place, caption in enumerate(dict.fromkeys(firsts))}
    texts_CE = texts_DE[[firsts.index(caption) for caption in place_of]]
    images_right = [carriers[caption] for caption in firsts]
    captions_right = [{place_of[one] for one in own if one in place_of} for own in captions]
    return ranks(texts_DE, images_DE, images_right), ranks(images_DE, texts_CE, captions_right)


def ranks(queries_QE: Vectors, candidates_DE: Vectors, right: Sequence[Set[int]]) -> Ranks:
    """Return per query the number of wrong candidates that score at least its best correct
    score."""
    found: list[int] = []
    for start in range(0, len(queries_QE), QUERIES):
        scores_QD = queries_QE[start : start + QUERIES] @ candidates_DE.T
        for place, scores_D in enumerate(scores_QD, start):
            mine = sorted(right[place])
            best = scores_D[mine].max()
            found.append(int((scores_D >= best).sum() - (scores_D[mine] >= best).sum()))
    return np.array(found)
