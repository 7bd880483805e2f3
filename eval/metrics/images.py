"""Metrics of single generated images: text-image scores, edits, infilling.

Images are generated with the model's own sampling parameters, and with seeds that count up from the
run's. Distances between sets of generated images are in `fid`.
"""

from collections.abc import Callable, Mapping, Sequence

from PIL import Image

from eval.context import Change, EvalContext, Item
from eval.metrics.perplexity import bits_of, written_edit
from eval.metrics.reconstruction import psnr
from eval.report import MetricResult, Value, mean, sheet_of
from eval.stats import by_kind
from retrieval.embed import ClipEmbedder, unit
from tokenizer.errors import UserError

PART = 4  # a hole's distance from the edges is 1 / PART of the side


def edit(context: EvalContext) -> MetricResult:
    """Score edits against their real targets, by PSNR and by the cosine of the retriever's encoder.

    Baselines are the unedited source, and the target reconstructed through the codebook.
    """
    steps = context.steps("edits")
    made: list[Image.Image] = []
    for place, change in enumerate(context.changes):
        seed = context.seed_of(place)
        made += context.leon.edit(change.source.image, change.instruction, seed=seed)
        if steps is not None:
            steps(len(made), len(context.changes))
    sides = {
        "the edit": made,
        "doing nothing": [context.leon.to_image(one.source.picture) for one in context.changes],
        "the target's reconstruction": [
            context.leon.to_image(one.target.picture) for one in context.changes
        ],
    }
    targets = [one.target for one in context.changes]
    values = _nearness(context, targets, sides, gain=("the edit", "doing nothing"))
    rows = [
        (change.source.image, image, change.target.image)
        for change, image in zip(context.changes, made, strict=True)
    ]
    values |= _edit_bits(context, context.changes)
    return MetricResult(values=values, pictures={"source-edit-target": sheet_of(rows)})


def _edit_bits(context: EvalContext, changes: Sequence[Change]) -> dict[str, Value]:
    """Return bits per code of the real target for each type of edit, given two different sources.

    They are its own source, and that of the next edit of the type; the difference shows whether the
    model reads the source at all.
    """
    values: dict[str, Value] = {}
    codec = context.leon.codec
    for kind, places in by_kind([one.kind for one in changes]).items():
        some = [changes[place] for place in places]
        for name, sources in (("its own", some), ("another", [*some[1:], some[0]])):
            written = [
                written_edit(codec, one.instruction, other.source.picture, one.target.picture)
                for one, other in zip(some, sources, strict=True)
            ]
            bits = bits_of(context, written, f"edits, {kind}")
            sizes = [float(codec.picture_codes)] * len(bits)
            values[f"bits a code behind {name} source, {kind}"] = mean(bits, sizes)
    return values


def infill(context: EvalContext) -> MetricResult:
    """Score images whose middle was infilled against the real ones, by PSNR and cosine.

    Baselines are a grey middle, and the real middle reconstructed through the codebook.
    """
    steps, size = context.steps("infillings"), context.leon.image_tokenizer.size
    box = (size // PART, size // PART, size - size // PART, size - size // PART)
    made, grey, rebuilt = list[Image.Image](), list[Image.Image](), list[Image.Image]()
    for place, item in enumerate(context.items):
        seed = context.seed_of(place)
        made += context.leon.infill(item.image, box, item.caption, seed=seed)
        for images, patch in ((grey, None), (rebuilt, context.leon.to_image(item.picture))):
            image = item.image.copy()
            image.paste((128, 128, 128) if patch is None else patch.crop(box), box)
            images.append(image)
        if steps is not None:
            steps(len(made), len(context.items))
    sides = {"the infilling": made, "grey": grey, "the real middle's reconstruction": rebuilt}
    values = _nearness(context, context.items, sides, gain=("the infilling", "grey"))
    rows = [
        (blank, image, item.image)
        for blank, image, item in zip(grey, made, context.items, strict=True)
    ]
    return MetricResult(values=values, pictures={"hole-infilling-real": sheet_of(rows)})


def clip_score(context: EvalContext) -> MetricResult:
    """Compute `embedder_score` with a CLIP, times 100 and never below 0.

    It is the score of Hessel et al. 2021 (arXiv:2104.08718) without their factor 2.5. Raises
    UserError for any other encoder.
    """
    if not isinstance(context.embedder, ClipEmbedder):
        raise UserError(
            f"the encoder {context.embedder.id} is no CLIP; name a CLIP's folder with --encoder, "
            "or measure embedder-score"
        )
    return _score(context, lambda cosine: 100 * max(cosine, 0.0))


def embedder_score(context: EvalContext) -> MetricResult:
    """Compute the cosine of a caption and the image generated from it.

    Baselines are the real image, its reconstruction through the codebook, and an image generated
    from another caption.
    """
    return _score(context, float)


def _score(context: EvalContext, of: Callable[[float], float]) -> MetricResult:
    texts_DE = context.embedder.texts([item.caption for item in context.items])
    other = [*context.painted[1:], context.painted[0]]
    sides = {
        "painted": context.painted,
        "real": [item.image for item in context.items],
        "real, through the codebook": context.rebuilt,
        "generated of another caption": other,
    }
    values = {
        name: mean(list(map(of, (texts_DE * context.embedder.pictures(images)).sum(1).tolist())))
        for name, images in sides.items()
    }
    rows = list(zip(context.painted, sides["real"], strict=True))
    return MetricResult(values=values, pictures={"painted-real": sheet_of(rows)})


def _nearness(
    context: EvalContext,
    targets: Sequence[Item],
    sides: Mapping[str, Sequence[Image.Image]],
    gain: tuple[str, str],
) -> dict[str, Value]:
    """Return PSNR and cosine between sides and targets, and the gain of one side over another."""
    real = [target.image for target in targets]
    real_DE = unit(context.embedder.pictures(real))
    found: dict[tuple[str, str], list[float]] = {}
    for name, images in sides.items():
        pairs = zip(images, real, strict=True)
        found["PSNR in dB", name] = [psnr(image, target) for image, target in pairs]
        vectors_DE = unit(context.embedder.pictures(images))
        found["cosine", name] = (vectors_DE * real_DE).sum(1).tolist()
    values = {f"{name}: {measure}": mean(each) for (measure, name), each in found.items()}
    for measure in ("PSNR in dB", "cosine"):
        pairs = zip(*(found[measure, name] for name in gain), strict=True)
        values[f"{gain[0]} less {gain[1]}: {measure}"] = mean([a - b for a, b in pairs])
    return values
