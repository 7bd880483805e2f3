"""Requests to the engine, and the state of a sample during generation.

`prompts` and `codec` make the ids of a request; `engine` processes it.
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
    """Prompts of the guidance streams of one request, the fully conditioned prompt first.

    One prompt: no guidance. Two: with and without the text. Three, for editing: instruction and
    image, image only, neither.
    """

    prompts: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        assert 1 <= len(self.prompts) <= 3, "one to three streams"
        assert all(self.prompts), "a prompt without ids"


@dataclass(frozen=True, kw_only=True)
class Request:
    """Request for one sample per seed, with one `Sampling` for all or one for each.

    Raises UserError when contrastive decoding is requested with any number of streams but two.
    """

    streams: Streams
    grammar: Grammar
    seeds: tuple[int, ...]
    sampling: Sampling | Sequence[Sampling] = Sampling()  # noqa: RUF009  frozen
    favoured: tuple[int, ...] = ()
    """Id for each drawn position, which `Sampling.keep` makes likelier there; none if empty."""

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
        """Sampling parameters of each sample."""
        if isinstance(self.sampling, Sampling):
            return [self.sampling] * len(self.seeds)
        return self.sampling

    @property
    def rows(self) -> int:
        """Number of cache rows that its streams and samples take."""
        return len(self.streams.prompts) * len(self.seeds)

    @property
    def room(self) -> int:
        """Maximum number of tokens in its longest cache row; the last id is never fed back."""
        return max(len(ids) for ids in self.streams.prompts) + longest(self.grammar) - 1

    def check(self, config: ModelConfig) -> None:
        """Raise UserError when prompt and answer do not fit the model's context."""
        if self.room > config.context:
            prompt = max(len(ids) for ids in self.streams.prompts)
            raise UserError(
                f"the prompt has {prompt} tokens and up to {longest(self.grammar)} are to follow, "
                f"but the model has room for {config.context}; shorten the prompt or ask for less"
            )


class ActiveSample:
    """Sample being generated: its position in the grammar and the noise drawn from its seed.

    `ids` are the ids so far, `unfed` the last of them, which the model has not processed yet.
    """

    def __init__(self, request: Request, sampling: Sampling, seed: int) -> None:
        self.walk = Walk(request.grammar)
        self.sampling = sampling
        generator = torch.Generator().manual_seed(seed)
        self.noise_L = torch.rand(longest(request.grammar), generator=generator)
        self.drawn = 0  # numbers of the noise used so far
        self.favoured = request.favoured if sampling.keep else ()
        self.ids = self.walk.given()
        self.unfed = list(self.ids)
        self.rows = [0] * len(request.streams.prompts)  # of the cache, assigned on admission

    @property
    def choices(self) -> Choices:
        """Ids that may be drawn now; none while ids wait to be fed, or after completion."""
        return () if self.unfed else self.walk.choices

    @property
    def over(self) -> bool:
        """True if the grammar is complete; any `unfed` ids then need not be fed."""
        return not self.walk.choices

    def noise(self, length: int) -> Tensor:
        """Return the next `length` random numbers to draw with."""
        return self.noise_L[self.drawn : self.drawn + length]

    def add(self, tokens: Sequence[int]) -> None:
        """Append drawn tokens and the given ids after them.

        The model has processed all drawn tokens but the last.
        """
        for token in tokens:
            self.walk.take(token)
        self.drawn += len(tokens)
        self.unfed = [tokens[-1], *self.walk.given()]
        self.ids += [*tokens[:-1], *self.unfed]
