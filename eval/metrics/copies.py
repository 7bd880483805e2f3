"""The copying audit of a lab: are painted pictures those that the model was trained on, or those
that were retrieved for it.

A `Lab` in, what was `Found` out. What counts as near is decided by real pictures of the split, on
which nobody trained: one in a hundred of them is as near to a training picture (`copying`).
"""

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from PIL import Image

from eval.context import Lab
from eval.corpus import Corpus, corpus_of
from eval.metrics import copying
from eval.metrics.concept import HELD_OUT
from eval.metrics.copying import Features
from eval.metrics.distribution import MOBILENET, seen, weights
from eval.metrics.fid import mobilenet_features
from eval.report import Found, mean
from eval.sets import list_pictures, read_images
from retrieval.index import Vectors
from tokenizer.data.tars import Tally, find_tars, read_ids
from tokenizer.document import Picture
from tokenizer.errors import UserError
from tokenizer.pixels import to_image, to_pixels

SHOWN = 16  # of the nearest pairs
TRAIN = "train"
TOGETHER = 64  # pictures that go through the codebook at once


def audit(lab: Lab) -> Found:
    """How many painted pictures are nearer to a training picture, or to a document of theirs, than
    real held-out ones are. Raises UserError where the split is the one that is trained on."""
    if isinstance(lab.source, Corpus) and lab.source.split == TRAIN and lab.asked.ids is None:
        raise UserError("the train split cannot say what is near to it; ask with another split")
    features, by = _features(lab)
    ids = [item.metadata["id"] for item in lab.items]
    fronts = lab.named_fronts(lab.items, lab.asked.retrieve)
    retrieved = [[name for name, _ in row] for row in fronts]
    documents = {
        name: lab.leon.to_image(part)
        for row in fronts
        for name, document in row
        for part in document
        if isinstance(part, Picture)
    }
    codes: dict[str, tuple[int, ...]] = {}
    found = copying.audit(
        copying.pool(zip(ids, lab.painted, strict=True), features),
        copying.pool(_trained_on(lab, codes), features),
        copying.pool(zip(ids, lab.rebuilt, strict=True), features),
        retrieved=[[name for name in row if name in documents] for row in retrieved],
        documents=copying.pool(documents.items(), features) if documents else None,
        copies=copying.same_codes(lab.painted_codes, codes.items()),
    )
    values = {
        "nearer to a training picture than 99% of real ones": mean(found.near_train),
        "the same of real held-out pictures": mean(found.near_held_out),
        "exactly the codes of a training picture": mean(found.exact),
        "cosine to the nearest training picture": mean([one.train.score for one in found.found]),
        "the same of a real held-out picture": mean(found.held_out),
    }
    if found.near_retrieved:
        values["nearer to a retrieved document"] = mean(found.near_retrieved)
        leant = [float(one.leant) for one in found.found if one.retrieved is not None]
        values["the nearest of all is a retrieved document"] = mean(leant)
    shown = found.nearest(SHOWN)
    near = {one.train.id for one in shown} - documents.keys()
    real = documents | {name: lab.leon.to_image(Picture(codes[name])) for name in near}
    painted = dict(zip(ids, lab.painted, strict=True))
    return Found(
        values=values,
        notes=[
            f"compared by {by} with {len(codes):,} training pictures, all through the codebook",
            f"the threshold is a cosine of {found.threshold:.4f}",
        ],
        pictures={"nearest": copying.pairs(shown, painted, real)},
    )


def _features(lab: Lab) -> tuple[Features, str]:
    """MobileNetV2 where it is at hand, else the retriever's encoder; and its name."""
    try:
        path = weights(lab.asked.weights, MOBILENET)
    except UserError:
        return lab.embedder.pictures, f"the encoder {lab.embedder.id}"
    net = mobilenet_features(path, lab.device)

    def features(images: Sequence[Image.Image]) -> Vectors:
        return seen(net, images, lab.device).numpy()

    return features, "MobileNetV2"


def _trained_on(lab: Lab, codes: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, Image.Image]]:
    """The pictures of the train split less the held-out pairs, through the codebook; their codes
    are left in `codes`."""
    folder = corpus_of(lab.source, "what was trained on")
    tars = find_tars(folder, f"{TRAIN}-")
    held_out = folder / HELD_OUT
    less = read_ids(held_out) if held_out.is_file() else frozenset[str]()
    wanted = {one["id"] for one in list_pictures(tars)} - less
    steps = lab.steps("training pictures")
    net = lab.leon.image_tokenizer
    read = read_images(tars, wanted, Tally(), net.size)
    while some := list(islice(read, TOGETHER)):
        pixels_B3HW = torch.stack([to_pixels(image) for _, image in some])
        codes_BL = net.encode(pixels_B3HW.to(lab.device))
        rebuilt_B3HW = net.decode(codes_BL)
        for (metadata, _), row_L, pixels_3HW in zip(some, codes_BL, rebuilt_B3HW, strict=True):
            codes[metadata["id"]] = tuple(row_L.tolist())
            yield metadata["id"], to_image(pixels_3HW)
        if steps is not None:
            steps(len(codes), len(wanted))
