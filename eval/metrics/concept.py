"""Concept metric: accuracy of a separate classifier on the requested thing and style.

It classifies real images, their reconstructions through the codebook, and generated images, in
whose generation the classifier has no part. The prompts are the corpus's held-out pairs, a thing in
a style in which no model saw it, and as many pairs of the train split, sampled once.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from cm3leon.rerank import samplings
from cm3leon.sampling import Sampling
from eval.context import EvalContext, Item
from eval.corpus import Corpus, corpus_of
from eval.networks.classifier import Classifier, Named, judge, pairs_of
from eval.report import SHOWN, MetricResult, Value, mean
from eval.stats import evenly
from tokenizer.data.tars import find_tars, read_ids
from tokenizer.pixels import sheet

HELD_OUT = "heldout-pairs.txt"  # ids of train images that no model is trained on
JUDGE = "concept-judge.safetensors"
GUIDANCE = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0)
COLUMNS = 8


def concept(context: EvalContext) -> MetricResult:
    """Return the shares of real and generated images that show the requested thing and style."""
    net, held_out, known = prepared(context)
    sampling, count = context.leon.sampling.text_to_image, context.asked.retrieve
    painted = context.paint(held_out, sampling, count)
    groups = {
        "real held-out pairs": (held_out, [item.image for item in held_out]),
        "real held-out pairs, through the codebook": (held_out, rebuilt(context, held_out)),
        "generated held-out pairs": (held_out, painted),
        "real train pairs, through the codebook": (known, rebuilt(context, known)),
        "generated train pairs": (known, context.paint(known, sampling, count)),
    }
    values: dict[str, Value] = {}
    for name, (items, images) in groups.items():
        values |= shares(name, net.name(images, [wanted(item) for item in items]))
    rows = list(zip(painted, held_out, strict=True))
    shown = [rows[place] for place in evenly(range(len(rows)), SHOWN)]
    cells = [image for made, item in shown for image in (made, item.image)]
    labels = [text for _, item in shown for text in (item.caption, "")]
    notes = [
        f"the classifier knows {len(net.classes.families):,} things and "
        f"{len(net.classes.styles)} styles; by chance it is right about "
        f"{1 / len(net.classes.families):.2%} and {1 / len(net.classes.styles):.0%}"
    ]
    pictures = {"painted-real": sheet(cells, COLUMNS, labels)}
    return MetricResult(values=values, notes=notes, pictures=pictures)


def sweep(context: EvalContext) -> MetricResult:
    """Score the held-out pairs with other sampling.

    It covers guidance scales, top-p, CD-K, and half of each; all of them also with retrieved
    documents if there is a memory.
    """
    net, items, _ = prepared(context)
    base = context.leon.sampling.text_to_image
    counts = [0] if context.memory is None else [0, context.asked.retrieve]
    values: dict[str, Value] = {}

    def measured(name: str, some: Sequence[Sampling], count: int) -> None:
        images: list[Image.Image] = []
        for part, sampling in enumerate(some):  # each sampling of a pool generates its share
            images += context.paint(items[part :: len(some)], sampling, count)
        order = [item for part in range(len(some)) for item in items[part :: len(some)]]
        values.update(shares(name, net.name(images, [wanted(item) for item in order])))

    for count in counts:
        for scale in GUIDANCE:
            name = f"guidance {scale:g}, {count} retrieved"
            measured(name, [replace(base, cfg_scale=scale)], count)
        pool = samplings(base, 2, True)
        measured(f"top-p, {count} retrieved", pool[:1], count)
        measured(f"CD-K, {count} retrieved", pool[1:], count)
        measured(f"half of each, {count} retrieved", pool, count)
    return MetricResult(values=values)


def prepared(context: EvalContext) -> tuple[Classifier, list[Item], list[Item]]:
    """Return the classifier, the held-out pairs to generate, and as many train pairs."""
    net, folder, excluded = judge_of(context)
    train = EvalContext(
        replace(context.asked, ids=None),
        Corpus.open(folder, "train"),
        context.leon,
        context.embedder,
        context.memory,
        context.progress,
    )
    listed = train.listed
    held = [*pairs_of((listed[name] for name in sorted(excluded & listed.keys())), frozenset())]
    places = evenly(range(len(held)), context.asked.limit)
    known = sorted(pairs_of(listed.values(), excluded))
    drawn = random.Random(0).sample(known, min(len(known), len(places)))
    return net, train.find(places, held), train.find(range(len(drawn)), drawn)


def judge_of(context: EvalContext) -> tuple[Classifier, Path, frozenset[str]]:
    """Return the classifier, its training corpus, and the ids excluded from its training."""
    folder = corpus_of(context.source, "what the judge learns from")
    excluded = read_ids(folder / HELD_OUT)
    tars, steps = find_tars(folder, "train-"), context.steps("training the judge")
    return judge(tars, excluded, context.asked.cache / JUDGE, 0, steps), folder, excluded


def wanted(item: Item) -> tuple[str, str]:
    """Return the family and the style that an image should show."""
    return item.metadata["family"], item.metadata["style"]


def rebuilt(context: EvalContext, items: Sequence[Item]) -> list[Image.Image]:
    """Return the images reconstructed through the codebook."""
    return [context.leon.to_image(item.picture) for item in items]


def shares(name: str, found: Sequence[Named]) -> dict[str, Value]:
    """Return the shares of correct predictions of the family, the style, and both."""
    return {
        f"{name}: family": mean([float(one.family) for one in found]),
        f"{name}: family among five": mean([float(one.family_among_five) for one in found]),
        f"{name}: style": mean([float(one.style) for one in found]),
        f"{name}: both": mean([float(one.both) for one in found]),
    }
