"""Copying audit: generated images that copy training images, or those that were retrieved for them.

The threshold is calibrated on real images of the split, on which nothing was trained: one in a
hundred of them is as near to a training image (`near_copies`).
"""

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from PIL import Image

from eval.context import EvalContext
from eval.corpus import Corpus, corpus_of, list_pictures, read_images
from eval.metrics import near_copies
from eval.metrics.concept import HELD_OUT
from eval.metrics.fid import MOBILENET, mobilenet_features, seen, weights
from eval.metrics.near_copies import Features
from eval.report import MetricResult, mean
from retrieval.index import Vectors
from tokenizer.data.tars import Tally, find_tars, read_ids
from tokenizer.document import Picture
from tokenizer.errors import UserError
from tokenizer.pixels import to_image, to_pixels

SHOWN = 16  # nearest pairs on the sheet
TRAIN = "train"
TOGETHER = 64  # images reconstructed at once


def audit(context: EvalContext) -> MetricResult:
    """Return the shares of generated images that are too near to training or retrieved images.

    Too near is nearer than real held-out images are. Raises UserError if the split is the one that
    is trained on.
    """
    if (
        isinstance(context.source, Corpus)
        and context.source.split == TRAIN
        and context.asked.ids is None
    ):
        raise UserError("the train split cannot say what is near to it; ask with another split")
    features, by = _features(context)
    ids = [item.metadata["id"] for item in context.items]
    fronts = context.named_fronts(context.items, context.asked.retrieve)
    retrieved = [[name for name, _ in row] for row in fronts]
    documents = {
        name: context.leon.to_image(part)
        for row in fronts
        for name, document in row
        for part in document
        if isinstance(part, Picture)
    }
    codes: dict[str, tuple[int, ...]] = {}
    found = near_copies.audit(
        near_copies.pool(zip(ids, context.painted, strict=True), features),
        near_copies.pool(_trained_on(context, codes), features),
        near_copies.pool(zip(ids, context.rebuilt, strict=True), features),
        retrieved=[[name for name in row if name in documents] for row in retrieved],
        documents=near_copies.pool(documents.items(), features) if documents else None,
        copies=near_copies.same_codes(context.painted_codes, codes.items()),
    )
    values = {
        "nearer to a training image than 99% of real ones": mean(found.near_train),
        "the same of real held-out images": mean(found.near_held_out),
        "exactly the codes of a training image": mean(found.exact),
        "cosine to the nearest training image": mean([one.train.score for one in found.found]),
        "the same of a real held-out image": mean(found.held_out),
    }
    if found.near_retrieved:
        values["nearer to a retrieved document"] = mean(found.near_retrieved)
        leant = [float(one.leant) for one in found.found if one.retrieved is not None]
        values["the nearest of all is a retrieved document"] = mean(leant)
    shown = found.nearest(SHOWN)
    near = {one.train.id for one in shown} - documents.keys()
    real = documents | {name: context.leon.to_image(Picture(codes[name])) for name in near}
    painted = dict(zip(ids, context.painted, strict=True))
    return MetricResult(
        values=values,
        notes=[
            f"compared by {by} with {len(codes):,} training images, all through the codebook",
            f"the threshold is a cosine of {found.threshold:.4f}",
        ],
        pictures={"nearest": near_copies.pairs(shown, painted, real)},
    )


def _features(context: EvalContext) -> tuple[Features, str]:
    """Return MobileNetV2's features if available, else the retriever's, and their name."""
    try:
        path = weights(context.asked.weights, MOBILENET)
    except UserError:
        return context.embedder.pictures, f"the encoder {context.embedder.id}"
    net = mobilenet_features(path, context.device)

    def features(images: Sequence[Image.Image]) -> Vectors:
        return seen(net, images, context.device).numpy()

    return features, "MobileNetV2"


def _trained_on(
    context: EvalContext, codes: dict[str, tuple[int, ...]]
) -> Iterator[tuple[str, Image.Image]]:
    """Yield the images of the train split without the held-out pairs, through the codebook.

    Their codes are added to `codes`.
    """
    folder = corpus_of(context.source, "what was trained on")
    tars = find_tars(folder, f"{TRAIN}-")
    held_out = folder / HELD_OUT
    less = read_ids(held_out) if held_out.is_file() else frozenset[str]()
    wanted = {one["id"] for one in list_pictures(tars)} - less
    steps = context.steps("training images")
    net = context.leon.image_tokenizer
    read = read_images(tars, wanted, Tally(), net.size)
    while some := list(islice(read, TOGETHER)):
        pixels_B3HW = torch.stack([to_pixels(image) for _, image in some])
        codes_BL = net.encode(pixels_B3HW.to(context.device))
        rebuilt_B3HW = net.decode(codes_BL)
        for (metadata, _), row_L, pixels_3HW in zip(some, codes_BL, rebuilt_B3HW, strict=True):
            codes[metadata["id"]] = tuple(row_L.tolist())
            yield metadata["id"], to_image(pixels_3HW)
        if steps is not None:
            steps(len(codes), len(wanted))
