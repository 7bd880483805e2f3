"""The options of sample and rerank, and who picks: the retriever's encoder."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cm3leon.cli import options
from cm3leon.cli.options import MOST
from cm3leon.cli.retrieving import DEFAULT, open_embedder
from tokenizer.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from cm3leon.cli.output import Notes
    from cm3leon.sampling import Sampling
    from retrieval.embed import Embedder

Candidates = Annotated[
    int | None,
    typer.Option(min=1, max=MOST, help="Paint so many for each picture and keep the best."),
]
Mix = Annotated[
    bool | None, typer.Option("--mix", help="Draw half of the candidates by top-p, half by CD-K.")
]


def usual(candidates: int, samples: int, temperature: float) -> int:
    """What a model paints for each picture when nobody says, as far as one request holds it; one
    where all would be the same."""
    if temperature == 0:
        return 1
    while candidates > 1 and samples * candidates > MOST:
        candidates //= 2
    return candidates


class Picker:
    """A score function (`cm3leon.rerank`) that remembers what it said. With one candidate
    there is nothing to pick, and no encoder is opened."""

    def __init__(self, candidates: int = 1, mix: bool = False, encoder: str = DEFAULT) -> None:
        self.candidates, self.mix, self.encoder = candidates, mix, encoder
        self.embedder: Embedder | None = None
        self.scores: list[list[float]] = []  # of each picture's candidates

    @classmethod
    def of(
        cls,
        candidates: int | None,
        mix: bool | None,
        encoder: str,
        notes: "Notes | None",
        usual: int = 1,
    ) -> "Picker":
        """What the user said, else what the notes of the picture to be repeated say, else what is
        usual with the model."""
        if candidates is None:
            candidates = notes.candidates if notes else usual
            mix = notes.mix if notes and mix is None else mix
        return cls(candidates, bool(mix), encoder)

    def open(self, samples: int, sampling: "Sampling", device: str) -> None:
        """Check all that was said, and read the encoder.

        Raises UserError where it cannot be done, or makes more than one request may hold.
        """
        from cm3leon.rerank import SHARE, check

        check(sampling, self.candidates, self.mix)
        if samples * self.candidates > MOST:
            raise UserError(
                f"{samples} pictures of {self.candidates} candidates each are "
                f"{samples * self.candidates}; one request holds at most {MOST}"
            )
        if self.mix and sampling.top_p is None:
            options.say(f"no top-p is given; half of the candidates are drawn with {SHARE}")
        if self.candidates > 1:
            self.embedder = open_embedder(self.encoder, device)

    def __call__(self, prompt: str, pictures: "Sequence[Image.Image]") -> list[float]:
        """The cosine of the prompt with each picture."""
        from retrieval.embed import closeness

        assert self.embedder is not None, "open comes first"
        self.scores.append(closeness(self.embedder, prompt, pictures))
        return self.scores[-1]

    @property
    def asked(self) -> dict[str, Any]:
        """What `CM3Leon.text_to_image` is to be told."""
        return {"candidates": self.candidates, "mix": self.mix, "score": self}

    @property
    def id(self) -> str:
        """The encoder's; empty where nothing is picked."""
        return self.embedder.id if self.embedder else ""

    def warn(self, notes: "Notes | None") -> None:
        """Say aloud that a picture cannot be repeated because another encoder picked it."""
        if notes is not None and notes.encoder and self.id and notes.encoder != self.id:
            options.say(
                f"that was picked by encoder {notes.encoder}, this is {self.id}: it may differ"
            )

    def table(self, keep: int | None) -> dict[str, Any]:
        """For machines: all scores of each picture's candidates and which was picked, from 1."""
        from cm3leon.rerank import best

        if not self.scores:
            return {}
        shown = self.scores if keep is None else [self.scores[keep - 1]]
        picks = [{"scores": scores, "picked": best(scores) + 1} for scores in shown]
        return {"candidates": picks, "mix": self.mix, "encoder": self.id}
