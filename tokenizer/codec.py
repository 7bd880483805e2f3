"""Document <-> token ids: the layout that the model is trained on and prompted with.

    encode   </s> R1 <break> ... <break> text <break> image </s>            a training row
    open     </s> R1 <break> ... <break> text <break>                       an image follows
    infill   </s> text <sentinel:0> <break> image </s> <sentinel:0>         a filling follows

R1, R2, ... are retrieved documents. The codec converts Documents to ids for generation and
training. It is pure and exact, and raises an error for input that does not fit. Layout: CM3Leon
sections 2.2 and 2.3, figure 9.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, takewhile
from typing import cast

from tokenizer.document import Document, Field, Hole, Part, Picture, segments
from tokenizer.errors import UserError
from tokenizer.text import TextTokenizer
from tokenizer.vocabulary import EOS, Vocabulary


@dataclass(frozen=True)
class Encoded:
    """Token ids of a row, and the spans [start, end) of the query's Fields in `ids`."""

    ids: tuple[int, ...]
    fields: tuple[tuple[int, int], ...]


class Codec:
    """Converter between documents and token ids.

    picture_codes: codes per image. context: maximum number of ids that the model can attend to,
    including the ids to generate; None disables the length check. Every text part is tokenised
    separately, so the ids of a Field do not depend on the text around it. All errors are
    UserErrors.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        text: TextTokenizer,
        picture_codes: int,
        context: int | None = None,
    ) -> None:
        if vocabulary.text_pieces != text.pieces:
            raise UserError(
                f"the text tokenizer has {text.pieces} pieces, the vocabulary "
                f"{vocabulary.text_pieces}: they belong to different models"
            )
        self.vocabulary = vocabulary
        self.text = text
        self.picture_codes = picture_codes
        self.context = context

    def encode(self, document: Document, retrieved: Sequence[Document] = ()) -> Encoded:
        """Return a closed row with the query last; `decode` reads it back. No Holes are allowed."""
        if self.holes(document):
            raise UserError("a document with holes cannot be encoded; fill them, or infill it")
        row = self._lay((*retrieved, document))
        ids = (*row.ids, EOS)
        self._check_room(ids, 0)
        return Encoded(ids, row.fields)

    def open(self, document: Document, retrieved: Sequence[Document] = ()) -> tuple[int, ...]:
        """Return a prompt that an image continues. Holes are left as sentinels: `(Hole(),)` is the
        unconditional prompt, and `()` the prompt of retrieved documents alone."""
        documents = (*retrieved, document) if document else tuple(retrieved)
        if not documents:
            raise UserError("an empty prompt with no examples; give it text, or a hole")
        ids = (*self._lay(documents, query=bool(document)).ids, self.vocabulary.break_id)
        self._check_room(ids, self.picture_codes)
        return ids

    def infill(self, document: Document, retrieved: Sequence[Document] = ()) -> tuple[int, ...]:
        """Return a prompt that fillings continue: the filling of hole 0, `<eoss>`, `<sentinel:1>`,
        the filling of hole 1, `<eoss>`, and so on (CM3Leon section 2.3, image to text)."""
        holes = self.holes(document)
        if not holes:
            raise UserError("a document without a hole has nothing to infill; put a Hole in it")
        ids = (*self._lay((*retrieved, document)).ids, EOS, self.vocabulary.sentinel_id(0))
        # Each filling has at least one id and <eoss>; each filling after the first also a sentinel.
        self._check_room(ids, sum(hole.length or 1 for hole in holes) + 2 * len(holes) - 1)
        return ids

    @staticmethod
    def holes(document: Document) -> list[Hole]:
        """Return every Hole, in the order in which the sentinels number them."""
        found: list[Hole] = []
        for part in document:
            inner = part.codes if isinstance(part, Picture) else (part,)
            found += [item for item in inner if isinstance(item, Hole)]
        return found

    def fill(self, document: Document, fillings: Sequence[Sequence[int]]) -> Document:
        """Return the document with hole i replaced by `fillings[i]`, ids without `<eoss>`: a str in
        text, exactly `length` codes in an image."""
        holes = self.holes(document)
        if len(fillings) != len(holes):
            raise UserError(f"got {len(fillings)} fillings for {len(holes)} holes; give one each")
        left = iter(fillings)
        return tuple(self._filled(part, left) for part in document)

    def decode(self, ids: Sequence[int]) -> Document:
        """Return the document of a closed row. A text segment becomes a single str with its Fields
        merged; retrieved documents, which the row does not mark, become leading parts."""
        if len(ids) < 3 or ids[0] != EOS or ids[-1] != EOS:
            raise UserError("a closed row starts and ends with </s> and holds something between")
        parts: list[str | Picture] = []
        segment: list[int] = []
        for token in (*ids[1:-1], self.vocabulary.break_id):
            if token != self.vocabulary.break_id:
                segment.append(token)
                continue
            parts.append(self._part_of(segment))
            segment = []
        return tuple(parts)

    def decode_text(self, ids: Sequence[int]) -> str:
        """Return the text of the leading text ids; ignore all ids from the first other id on."""
        leading = takewhile(self.vocabulary.is_text, ids)
        return self.text.decode([self.vocabulary.piece_of(token) for token in leading])

    def decode_codes(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Return the codes of image ids. Raises UserError for any other id."""
        return tuple(self.vocabulary.code_of(token) for token in ids)

    def image_ids(self, picture: Picture) -> tuple[int, ...]:
        """Return the ids of the codes of a complete image."""
        return tuple(self._picture_ids(picture.codes, iter(())))

    def _lay(self, documents: Sequence[Document], *, query: bool = True) -> Encoded:
        """Return `</s>` and the documents' segments, with `<break>` between any two. The last
        document is the query, unless `query` is false; only the query has fields and may have
        holes."""
        if any(self.holes(document) for document in (documents[:-1] if query else documents)):
            raise UserError("a retrieved document has a hole; give it whole")
        ids = [EOS]
        fields: list[tuple[int, int]] = []
        for number, document in enumerate(documents, start=1):
            if not document:
                raise UserError("an empty document; give it text or an image")
            sentinels = count()
            for segment in segments(document):
                if len(ids) > 1:
                    ids.append(self.vocabulary.break_id)
                before = len(ids)
                for part in segment:
                    start = len(ids)
                    ids += self._part_ids(part, sentinels)
                    if isinstance(part, Field) and query and number == len(documents):
                        fields.append((start, len(ids)))
                if len(ids) == before:
                    raise UserError("an empty text where words were wanted; write some, or none")
        return Encoded(tuple(ids), tuple(fields))

    def _part_ids(self, part: Part, sentinels: Iterator[int]) -> list[int]:
        match part:
            case Picture(codes):
                return self._picture_ids(codes, sentinels)
            case Hole(length):
                if length is not None:
                    raise UserError(f"a hole of {length} codes stands in text; put it in a Picture")
                return [self.vocabulary.sentinel_id(next(sentinels))]
            case Field(text) | str(text):
                return _all(self.vocabulary.text_id, self.text.encode(text))

    def _picture_ids(self, codes: Sequence[int | Hole], sentinels: Iterator[int]) -> list[int]:
        if set(map(type, codes)) == {int}:  # without holes, as nearly always in training
            self._check_picture(len(codes))
            return _all(self.vocabulary.image_id, cast("Sequence[int]", codes))
        ids: list[int] = []
        covered = 0
        for code in codes:
            if not isinstance(code, Hole):
                covered += 1
                ids.append(self.vocabulary.image_id(code))
                continue
            if code.length is None:
                raise UserError("a hole in an image needs a length: Hole(length)")
            covered += code.length
            ids.append(self.vocabulary.sentinel_id(next(sentinels)))
        self._check_picture(covered)
        return ids

    def _filled(self, part: Part, fillings: Iterator[Sequence[int]]) -> Part:
        match part:
            case Hole():
                pieces = [self.vocabulary.piece_of(token) for token in next(fillings)]
                return self.text.decode(pieces)
            case Picture(codes):
                whole: list[int] = []
                for code in codes:
                    if not isinstance(code, Hole):
                        whole.append(code)
                        continue
                    filling = self.decode_codes(next(fillings))
                    if len(filling) != code.length:
                        raise UserError(f"{len(filling)} codes for a hole of {code.length}")
                    whole += filling
                return Picture(tuple(whole))
            case _:
                return part

    def _part_of(self, segment: Sequence[int]) -> str | Picture:
        if not segment:
            raise UserError("nothing between two <break>, or between <break> and </s>")
        if self.vocabulary.is_image(segment[0]):
            self._check_picture(len(segment))
            return Picture(self.decode_codes(segment))
        return self.text.decode([self.vocabulary.piece_of(token) for token in segment])

    def _check_picture(self, covered: int) -> None:
        if covered != self.picture_codes:
            raise UserError(
                f"an image of {covered} codes, wanted {self.picture_codes}: "
                "it was made by another image tokenizer, or at another size"
            )

    def _check_room(self, ids: Sequence[int], coming: int) -> None:
        """Raise UserError if a row and the `coming` ids to be generated exceed the context."""
        if self.context is not None and len(ids) + coming > self.context:
            wanted = f" and {coming} more to generate" if coming else ""
            raise UserError(
                f"{len(ids)} ids{wanted} do not fit into the model's {self.context}; "
                "shorten the text or give fewer examples"
            )


def _all(id_of: Callable[[int], int], numbers: Sequence[int]) -> list[int]:
    """Apply `id_of` to each number; it adds the same offset to all and raises outside its range."""
    if not numbers:
        return []
    least = min(numbers)
    id_of(max(numbers))
    more = id_of(least) - least
    return [number + more for number in numbers]
