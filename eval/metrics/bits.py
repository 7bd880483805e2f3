"""How surprised the model is by pictures and captions that it has not seen, in bits.

token shards -> prompts -> codec -> `cm3leon.likelihood`, under the grammars of the tasks: a
picture's codes given its caption (text-to-image), a caption given its picture (captioning).
"""

from collections.abc import Sequence

from cm3leon import grammar, prompts
from cm3leon.likelihood import Written
from tokenizer.codec import Codec
from tokenizer.document import Document, Picture


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
