"""Rerank options: the best of several candidates by the retriever's encoder."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cm3leon.cli import options
from cm3leon.cli.options import MOST
from cm3leon.cli.retrieve import DEFAULT, open_embedder
from tokenizer.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from cm3leon.cli.output import ImageMetadata
    from cm3leon.sampling import Sampling
    from retrieval.embed import Embedder


@dataclass(frozen=True, kw_only=True)
class RerankOptions:
    """Candidates to generate for each image."""

    candidates: Annotated[
        int | None,
        typer.Option(min=1, max=MOST, help="Generate so many per image and keep the best."),
    ] = None
    mix: Annotated[
        bool | None,
        typer.Option("--mix", help="Half of the candidates by top-p, half by CD-K."),
    ] = None


def default_candidates(candidates: int, samples: int, temperature: float) -> int:
    """Return a model's default count of candidates, as far as one request holds them; one where
    all would be the same."""
    if temperature == 0:
        return 1
    while candidates > 1 and samples * candidates > MOST:
        candidates //= 2
    return candidates


class Reranker:
    """A score function (`cm3leon.rerank`) that records its scores. With one candidate there is
    nothing to rank, and no encoder is opened."""

    def __init__(self, candidates: int = 1, mix: bool = False, encoder: str = DEFAULT) -> None:
        self.candidates, self.mix, self.encoder = candidates, mix, encoder
        self.embedder: Embedder | None = None
        self.scores: list[list[float]] = []  # of each image's candidates

    @classmethod
    def of(
        cls, given: RerankOptions, encoder: str, like: "ImageMetadata | None", default: int = 1
    ) -> "Reranker":
        """Return what the user says, else what the image to be repeated says, else the default."""
        candidates, mix = given.candidates, given.mix
        if candidates is None:
            candidates = like.candidates if like else default
            mix = like.mix if like and mix is None else mix
        return cls(candidates, bool(mix), encoder)

    def open(self, samples: int, sampling: "Sampling", device: str) -> None:
        """Check the options and load the encoder.

        Raises UserError for options that do not go together, and for more than one request holds.
        """
        from cm3leon.rerank import SHARE, check

        check(sampling, self.candidates, self.mix)
        if samples * self.candidates > MOST:
            raise UserError(
                f"{samples} images of {self.candidates} candidates each are "
                f"{samples * self.candidates}; one request holds at most {MOST}"
            )
        if self.mix and sampling.top_p is None:
            options.say(f"no top-p is given; half of the candidates are drawn with {SHARE}")
        if self.candidates > 1:
            self.embedder = open_embedder(self.encoder, device)

    def __call__(self, prompt: str, images: "Sequence[Image.Image]") -> list[float]:
        """Return the cosine of the prompt with each image."""
        from retrieval.embed import closeness

        assert self.embedder is not None, "open comes first"
        self.scores.append(closeness(self.embedder, prompt, images))
        return self.scores[-1]

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of `CM3Leon.text_to_image`."""
        return {"candidates": self.candidates, "mix": self.mix, "score": self}

    @property
    def id(self) -> str:
        """Id of the encoder; empty where nothing is ranked."""
        return self.embedder.id if self.embedder else ""

    def warn(self, like: "ImageMetadata | None") -> None:
        """Warn that an image may not be repeated because another encoder ranked it."""
        if like is not None and like.encoder and self.id and like.encoder != self.id:
            options.say(
                f"warning: that image was picked by encoder {like.encoder}, this is {self.id}; "
                "the result may differ"
            )

    def table(self, keep: int | None) -> dict[str, Any]:
        """Return all scores of each image's candidates and which was picked, from 1."""
        from cm3leon.rerank import best

        if not self.scores:
            return {}
        shown = self.scores if keep is None else [self.scores[keep - 1]]
        picks = [{"scores": scores, "picked": best(scores) + 1} for scores in shown]
        return {"candidates": picks, "mix": self.mix, "encoder": self.id}
