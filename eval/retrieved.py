"""Retrieved documents before evaluation prompts: as in generation, as many as fit."""

from collections.abc import Sequence

from cm3leon import prompts
from retrieval.embed import Embedder
from retrieval.memory import Memory
from retrieval.retrieve import Query, retrieve
from tokenizer.codec import Codec
from tokenizer.document import Document


def retrieve_for_prompts(
    memory: Memory, embedder: Embedder, codec: Codec, captions: Sequence[str],
    ids: Sequence[str], count: int,
) -> list[list[tuple[str, Document]]]:  # fmt: skip
    """Return for each caption the documents that generation would prepend, with their ids.

    The document in `ids` that the caption belongs to is never among them.
    """
    queries = [Query(text=text, own=own) for text, own in zip(captions, ids, strict=True)]
    rows: list[list[tuple[str, Document]]] = []
    for caption, row in zip(captions, retrieve(queries, memory, embedder, count), strict=True):
        pairs = [(one.id, memory.document(one.id)) for one in row]
        rows.append(pairs[: len(fitting(codec, caption, [document for _, document in pairs]))])
    return rows


def fitting(codec: Codec, caption: str, documents: Sequence[Document]) -> list[Document]:
    """Return the first documents that fit in the context with the prompt and its image.

    Generation would refuse the others; an evaluation continues without them.
    """
    endless = Codec(codec.vocabulary, codec.text, codec.picture_codes)
    prompt, _ = prompts.paint(caption)
    kept = list(documents)
    while kept and codec.context is not None:
        if len(endless.open(prompt, kept)) + codec.picture_codes <= codec.context:
            break
        kept.pop()
    return kept
