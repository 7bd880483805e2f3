"""How surprised the model is by pictures and captions that it has not seen, in bits.

token shards -> prompts -> codec -> `cm3leon.likelihood`, under the grammars of the tasks: a
picture's codes given its caption (text-to-image), a caption given its picture (captioning).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cm3leon import grammar, likelihood, prompts
from cm3leon.likelihood import Written
from cm3leon.model import Decoder
from eval.figures import Figure, by_kind, kind_of, ratio
from eval.sets import captioned
from tokenizer.codec import Codec
from tokenizer.document import Document, Picture
from tokenizer.shards import Shards


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A picture, its first caption, and the bits of each given the other."""

    id: str
    kind: str
    caption: str
    image_bits: float
    caption_bits: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """The bits of one kind of picture; errors are over pictures."""

    image_token: Figure
    picture: Figure
    caption_byte: Figure
    """The caption's bits, its stop included, per byte of its UTF-8."""


def measure(
    model: Decoder,
    codec: Codec,
    shards: Shards,
    *,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Pair]:
    """Score the captioned pictures of token shards, at most `limit` of each kind."""
    pairs: list[Pair] = []
    for group in captioned(shards, limit, progress):
        told = [(metadata["captions"][0], picture) for metadata, picture in group]
        images = likelihood.bits(model, [written_picture(codec, *pair) for pair in told])
        captions = likelihood.bits(model, [written_caption(codec, *pair) for pair in told])
        for (metadata, _), image, caption in zip(group, images, captions, strict=True):
            pair = Pair(
                id=metadata["id"],
                kind=kind_of(metadata),
                caption=metadata["captions"][0],
                image_bits=float(image.sum()),
                caption_bits=float(caption.sum()),
            )
            pairs.append(pair)
    return pairs


def written_picture(
    codec: Codec, caption: str, picture: Picture, retrieved: Sequence[Document] = ()
) -> Written:
    """A picture as text-to-image would paint it, with `retrieved` in front of the prompt."""
    return _painted(codec, codec.open(prompts.paint(caption)[0], retrieved), picture)


def written_edit(codec: Codec, instruction: str, source: Picture, target: Picture) -> Written:
    """The picture after an edit, as editing would paint it."""
    return _painted(codec, codec.open(prompts.change(instruction, source)[0]), target)


def _painted(codec: Codec, prompt: tuple[int, ...], picture: Picture) -> Written:
    codes = [code for code in picture.codes if isinstance(code, int)]
    ids = tuple(codec.vocabulary.image_id(code) for code in codes)
    return Written(prompt, ids, grammar.picture(codec.vocabulary, len(ids)))


def written_caption(codec: Codec, caption: str, picture: Picture) -> Written:
    """A caption, and the stop after it, as captioning would say it."""
    row = codec.encode(prompts.described(caption, picture))
    ((start, end),) = row.fields
    ids = (*row.ids[start:end], codec.vocabulary.eoss_id)
    rule = grammar.text(codec.vocabulary, len(ids))  # one more than the pieces: the stop is drawn
    return Written(codec.infill(prompts.describe(picture)), ids, rule)


def figures(pairs: Sequence[Pair], picture_codes: int) -> dict[str, Row]:
    """The figures by kind of picture."""
    rows: dict[str, Row] = {}
    for kind, places in by_kind([pair.kind for pair in pairs]).items():
        chosen = [pairs[place] for place in places]
        image_bits = [pair.image_bits for pair in chosen]
        sizes = [float(len(pair.caption.encode())) for pair in chosen]
        rows[kind] = Row(
            image_token=ratio(image_bits, [float(picture_codes)] * len(chosen)),
            picture=ratio(image_bits),
            caption_byte=ratio([pair.caption_bits for pair in chosen], sizes),
        )
    return rows
