"""What is asked of the engine, and a sample under way.

Between prompts and codec, which make the ids, and engine, which works through requests.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cm3leon.grammar import Choices, Grammar, Walk, longest
from cm3leon.model import ModelConfig
from cm3leon.sampling import Sampling
from tokenizer.errors import UserError


@dataclass(frozen=True)
class Streams:
    """The prompts that guide one request, the one that says everything first.

    One prompt: no guidance. Two: with and without the text. Three, for editing: instruction and
    picture, picture only, neither.
    """

    prompts: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        assert 1 <= len(self.prompts) <= 3, "one to three streams"
        assert all(self.prompts), "a prompt without ids"


@dataclass(frozen=True, kw_only=True)
class Request:
    """One thing to generate: a sample for each seed, with one way of drawing for all or one each.

    Raises UserError when contrastive decoding is asked of anything but two streams.
    """

    streams: Streams
    grammar: Grammar
    seeds: tuple[int, ...]
    sampling: Sampling | Sequence[Sampling] = Sampling()  # noqa: RUF009  frozen
    favoured: tuple[int, ...] = ()
    """An id for each that is drawn, which `Sampling.keep` makes likelier there; none if empty."""

    def __post_init__(self) -> None:
        assert self.seeds, "a request for no samples"
        assert longest(self.grammar), "a grammar that lets nothing through"
        assert len(self.samplings) == len(self.seeds), "a way of drawing for each seed"
        assert len(self.favoured) in (0, longest(self.grammar)), "a favoured id for each drawn"
        contrastive = any(sampling.contrastive for sampling in self.samplings)
        if contrastive and len(self.streams.prompts) != 2:
            raise UserError(
                "contrastive decoding compares a prompt with none, which this task does not do; "
                "leave 'contrastive' off"
            )

    @property
    def samplings(self) -> Sequence[Sampling]:
        """How each sample is drawn."""
        if isinstance(self.sampling, Sampling):
            return [self.sampling] * len(self.seeds)
        return self.sampling

    @property
    def rows(self) -> int:
        """Rows of the cache that its streams and samples take."""
        return len(self.streams.prompts) * len(self.seeds)

    @property
    def room(self) -> int:
        """Tokens that its longest row comes to hold: nothing follows the last id."""
        return max(len(ids) for ids in self.streams.prompts) + longest(self.grammar) - 1

    def check(self, config: ModelConfig) -> None:
        """Raise UserError when prompt and answer do not fit the model's context."""
        if self.room > config.context:
            prompt = max(len(ids) for ids in self.streams.prompts)
            raise UserError(
                f"the prompt has {prompt} tokens and up to {longest(self.grammar)} are to follow, "
                f"but the model has room for {config.context}; shorten the prompt or ask for less"
            )


class Sample:
    """One sample under way: its walk through the grammar and the noise that its seed draws with.

    `ids` is what has come of it, `unfed` the last of those, which the model has not seen yet.
    """

    def __init__(self, request: Request, sampling: Sampling, seed: int) -> None:
        self.walk = Walk(request.grammar)
        self.sampling = sampling
        generator = torch.Generator().manual_seed(seed)
        self.noise_L = torch.rand(longest(request.grammar), generator=generator)
        self.drawn = 0  # of the noise
        self.favoured = request.favoured if sampling.keep else ()
        self.ids = self.walk.given()
        self.unfed = list(self.ids)
        self.rows = [0] * len(request.streams.prompts)  # of the cache, once it is taken in

    @property
    def choices(self) -> Choices:
        """What may be drawn now; nothing when ids wait to be fed, or when it is over."""
        return () if self.unfed else self.walk.choices

    @property
    def over(self) -> bool:
        """Whether the grammar is through; what is unfed then need not be."""
        return not self.walk.choices

    def noise(self, length: int) -> Tensor:
        """The next `length` numbers to draw with."""
        return self.noise_L[self.drawn : self.drawn + length]

    def add(self, tokens: Sequence[int]) -> None:
        """Take drawn tokens and all that follows from them. The model has seen all but the last."""
        for token in tokens:
            self.walk.take(token)
        self.drawn += len(tokens)
        self.unfed = [tokens[-1], *self.walk.given()]
        self.ids += [*tokens[:-1], *self.unfed]
