"""Continuous batching: whoever shares the batch, comes late or leaves early, a request's result is
the one it has alone."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cm3leon.engine.engine as module
from cm3leon.engine.engine import Engine
from cm3leon.engine.request import Request, Streams
from cm3leon.generate import generate_batch
from cm3leon.grammar import Grammar, code_filling, infilling, picture, text, text_filling
from cm3leon.model import Decoder, ModelConfig
from cm3leon.sampling import Sampling, choose, combine
from tokenizer.errors import UserError
from tokenizer.vocabulary import EOS, Vocabulary

CLOSE = 1e-4
V = Vocabulary(image_codes=40, text_pieces=30, sentinels=8)
CODES = 16
PICTURE: Grammar = picture(V, CODES)
Ids = list[list[int]]


@pytest.fixture(scope="module")
def model() -> Decoder:
    torch.manual_seed(0)
    size = ModelConfig(vocabulary=V.size, context=128, layers=2, width=32, heads=2)
    made = Decoder(size)
    for weight in made.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return made.eval().requires_grad_(False)


def mixed(count: int, seed: int) -> list[Request]:
    """Requests of all tasks, with prompts of many lengths, some of them equal, and with retrieved
    documents in front of some."""
    draw = random.Random(seed)

    def words(most: int) -> tuple[int, ...]:
        return tuple(V.text_id(draw.randrange(30)) for _ in range(draw.randint(1, most)))

    codes = tuple(V.image_id(code) for code in range(CODES))
    found: list[Request] = []
    for number in range(count):
        front = (EOS, *words(4), V.break_id, *codes) if draw.random() < 0.4 else ()
        nothing = (*front, EOS, V.sentinel_id(0), V.break_id)
        prompt = (*front, EOS, *words(6), V.break_id)
        seeds = tuple(100 * number + i for i in range(draw.choice((1, 1, 2))))
        task = draw.choice(("paint", "contrast", "edit", "say", "infill", "plain"))
        given: dict[str, Any] = {"seeds": seeds, "grammar": PICTURE}
        if task == "paint":
            given["streams"] = Streams((prompt, nothing))
            given["sampling"] = Sampling(top_p=draw.choice((None, 0.9)))
        elif task == "contrast":
            given["streams"] = Streams((prompt, nothing))
            given["sampling"] = Sampling(contrastive=True)
        elif task == "edit":
            source = (EOS, *codes, V.break_id)
            given["streams"] = Streams(((*source, *words(3), V.break_id), source, nothing))
            given["sampling"] = Sampling(top_k=20, keep=draw.choice((0, 2.0)))
            given["favoured"] = tuple(V.image_id(draw.randrange(40)) for _ in range(CODES))
        elif task == "say":
            given["streams"] = Streams(((EOS, *codes, V.break_id, V.sentinel_id(0)),))
            given["grammar"] = text(V, draw.randint(1, 9))
        elif task == "infill":
            given["streams"] = Streams(((*prompt, V.sentinel_id(0)),))
            holes = [text_filling(V, 4), code_filling(V, [None, 7, None]), text_filling(V, 3)]
            given["grammar"] = infilling(V, holes)
        else:
            given["streams"] = Streams((prompt,))
        found.append(Request(**given))
    return found


class Drawings:
    """What every draw was made from: by its noise, which no two draws share, the logits of all
    streams, and those that were drawn from."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.of: dict[float, tuple[torch.Tensor, torch.Tensor]] = {}
        streams: list[torch.Tensor] = []

        def combining(logits_WBV: torch.Tensor, sampling: Sampling) -> torch.Tensor:
            streams[:] = [logits_WBV]
            return combine(logits_WBV, sampling)

        def choosing(
            logits_BV: torch.Tensor, sampling: Sampling, noise_B: torch.Tensor
        ) -> torch.Tensor:
            for row, noise in enumerate(noise_B.tolist()):
                self.of[noise] = streams[0][:, row].clone(), logits_BV[row].clone()
            return choose(logits_BV, sampling, noise_B)

        monkeypatch.setattr(module, "combine", combining)
        monkeypatch.setattr(module, "choose", choosing)

    def taken(self) -> dict[float, tuple[torch.Tensor, torch.Tensor]]:
        found, self.of = self.of, {}
        return found


def run(engine: Engine, requests: Sequence[Request], every: int = 0) -> list[Ids]:
    """All requests through one engine, one more of them at every so many steps."""
    coming, tickets, found = list(requests), list[int](), dict[int, Ids]()
    step = 0
    while coming or engine.busy:
        while coming and (not every or step % every == 0):
            tickets.append(engine.submit(coming.pop(0)))
            if every:
                break
        found |= engine.step()
        step += 1
    return [found[ticket] for ticket in tickets]


@pytest.mark.parametrize("every", [0, 1, 3])
def test_32_mixed_requests_are_each_as_alone(
    model: Decoder, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = mixed(32, seed=every)
    drawings = Drawings(monkeypatch)
    alone = [generate_batch(model, [request])[0] for request in requests]
    wanted = drawings.taken()
    engine = Engine(model, rows=16, capacity=100)
    together = run(engine, requests, every)
    found = drawings.taken()
    assert together == alone  # no draw of these fell on a border
    assert found.keys() == wanted.keys()
    for noise, (streams_WV, _) in wanted.items():
        torch.testing.assert_close(found[noise][0], streams_WV, rtol=0, atol=CLOSE)
    assert engine.owners == []
    assert not engine.busy


@settings(max_examples=15)
@given(st.data())
def test_cancelling_frees_rows_and_changes_no_other_result(data: st.DataObject) -> None:
    torch.manual_seed(1)
    size = ModelConfig(vocabulary=V.size, context=128, layers=1, width=32, heads=2)
    model = Decoder(size)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    requests = mixed(8, seed=data.draw(st.integers(0, 5)))
    alone = [generate_batch(model, [request])[0] for request in requests]
    doomed = data.draw(st.sets(st.integers(0, 7), min_size=4, max_size=4))
    engine = Engine(model, rows=data.draw(st.sampled_from((6, 11, 40))), capacity=100)
    tickets = [engine.submit(request) for request in requests]
    ends = {tickets[number]: data.draw(st.integers(0, 30)) for number in doomed}
    found: dict[int, Ids] = {}
    step = 0
    while engine.busy:
        for ticket in [ticket for ticket, end in ends.items() if end == step]:
            owned = len(engine.owners)
            job = engine.jobs.get(ticket)
            engine.cancel(ticket)
            gone = 0 if job is None else sum(len(s.rows) for s in job.samples if not s.over)
            assert len(engine.owners) == owned - gone
        found |= engine.step()
        step += 1
    for number, ticket in enumerate(tickets):
        if number not in doomed or ticket in found:
            assert found[ticket] == alone[number]
    assert engine.owners == []
    assert set(engine.cache.lengths) == {0}


def test_ids_so_far_are_the_first_of_the_result(model: Decoder) -> None:
    request = Request(streams=Streams(((EOS, V.break_id),)), grammar=PICTURE, seeds=(1, 2))
    [wanted] = generate_batch(model, [request])
    engine = Engine(model, rows=2, capacity=40)
    ticket = engine.submit(request)
    assert engine.so_far(ticket) == []
    found: dict[int, Ids] = {}
    for step in range(1, CODES + 1):
        found |= engine.step()
        if not found:
            assert engine.so_far(ticket) == [ids[:step] for ids in wanted]
            assert engine.lengths == [step, step]
    assert found[ticket] == wanted
    assert engine.so_far(ticket) == []


def test_the_cache_bounds_what_is_under_way(model: Decoder) -> None:
    engine = Engine(model, rows=5, capacity=40)
    requests = [
        Request(streams=Streams(((EOS, V.break_id), (EOS,))), grammar=PICTURE, seeds=(number,))
        for number in range(6)
    ]
    for request in requests:
        engine.submit(request)
    most = 0
    while engine.busy:
        engine.step()
        most = max(most, len(engine.owners))
    assert most == 4  # two requests of two streams; the fifth row stays free
    large = Request(streams=Streams(((EOS,),)), grammar=PICTURE, seeds=tuple(range(6)))
    with pytest.raises(UserError, match="needs 6 rows of 16 tokens, but the engine has 5 of 40"):
        engine.submit(large)
    with pytest.raises(UserError, match="shorten the prompt"):
        engine.submit(Request(streams=Streams(((EOS,) * 120,)), grammar=PICTURE, seeds=(1,)))
