"""What a run would need: against real steps, whose every allocation is noted, and by hand."""

import gc
import json
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from cm3leon.attention import attend
from cm3leon.model import Decoder, ModelConfig, sized
from tokenizer.distributed import DistributedContext, distributed_context
from tokenizer.errors import UserError
from tokenizer.vocabulary import PAPER, Vocabulary
from train import plan
from train.config import EngineConfig, OptimizerConfig, PretrainRecipe, RowsConfig
from train.data.batches import micro_batches
from train.engine import TorchEngine, new_engine
from train.flops import flops_per_token, parameters
from train.loss import CHUNK
from train.plan import Hardware, MemoryEstimate, plan_of
from train.schedule import Schedule

ROOT = Path(__file__).parents[2]
VOCABULARY = Vocabulary(image_codes=2048, text_pieces=1430)
PLAIN: dict[str, Any] = {"width": 256, "layers": 4, "heads": 4, "context": 256}
LLAMA = {**PLAIN, "positions": "rope", "mlp": "swiglu", "qk_norm": True, "tied": False}
DEEP = {**PLAIN, "width": 192, "layers": 8, "norm": "rmsnorm", "z_loss": 1e-4}
FEW_WORDS = {**PLAIN, "vocabulary": 64, "ffn": 2048}
AT_ONCE = 2  # rows in a micro-batch, of two


def recipe_of(shape: dict[str, Any], *, recompute: bool = False, **changes: Any) -> PretrainRecipe:
    model = ModelConfig(**{"vocabulary": VOCABULARY.size, **shape})
    settings: dict[str, Any] = {
        "shards": "",
        "image_tokenizer": "",
        "text_tokenizer": "",
        "model": model,
        "rows": RowsConfig(packed=1.0),
        "schedule": Schedule(peak=1e-3, warmup=1),
        "engine": EngineConfig(recompute=recompute),
        "precision": "fp32",
        "steps": 1,
        "batch": 2 * AT_ONCE,
        "micro_tokens": AT_ONCE * (model.context + 1),
    }
    return PretrainRecipe(**{**settings, **changes})


@pytest.fixture(autouse=True)
def gpus_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head's chunks are those of a GPU, for which the plan is."""
    monkeypatch.setitem(CHUNK, "cpu", CHUNK["cuda"])


def planned(recipe: PretrainRecipe) -> MemoryEstimate:
    """The plan for one process of stage 0, as the recipe has it."""
    return plan.memory(recipe, recipe.engine, 1)


def most(work: Callable[[], object]) -> tuple[int, int]:
    """The most bytes that `work` had allocated at any time above those before it, and at its end:
    of every tensor, those inside an operation too, DeepSpeed's buckets left out."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    now = peak = 0
    assert seen.profiler is not None
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]" and abs(event.nbytes()) < plan.BUCKET:
            now += event.nbytes()
            peak = max(peak, now)
    return peak, now


def measured(recipe: PretrainRecipe) -> tuple[MemoryEstimate, dict[str, int]]:
    """Bytes of the parts and of the peak in a second step, of two micro-batches."""
    model = Decoder(recipe.model)
    assert model.attend is attend
    engine = new_engine(model, VOCABULARY, recipe, torch.device("cpu"), DistributedContext())
    assert isinstance(engine, TorchEngine)
    shape = (AT_ONCE, recipe.model.context)
    ids_BL = torch.randint(5, recipe.model.vocabulary, shape)
    weights_BL = torch.ones(shape)

    def micro(last: bool) -> None:
        engine.backward(engine.loss(ids_BL, ids_BL, weights_BL, last).total)

    def step() -> None:
        micro(last=False)
        micro(last=True)

    step()
    engine.step(1e-4)
    weights = sum(one.nbytes for one in model.parameters())
    states = engine.optimizer.state.values()
    moments = sum(one[name].nbytes for one in states for name in ("exp_avg", "exp_avg_sq"))
    gc.collect()  # else what earlier tests left may go meanwhile
    peak, gradients = most(step)
    parts = {"weights": weights, "gradients": gradients, "optimizer": moments}
    return planned(recipe), {**parts, "peak": weights + moments + peak}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("shape", [PLAIN, LLAMA, DEEP, FEW_WORDS])
def test_real_steps_take_what_was_planned(shape: dict[str, Any], recompute: bool) -> None:
    expected, found = measured(recipe_of(shape, recompute=recompute))
    print({name: round(getattr(expected, name) / size, 3) for name, size in found.items()})
    assert expected.weights == found["weights"]
    assert expected.optimizer == found["optimizer"]
    assert expected.gradients == pytest.approx(found["gradients"], rel=0.01)
    assert expected.peak == pytest.approx(found["peak"], rel=0.05)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("recompute", [False, True])
def test_autocast_keeps_copies_in_bf16(recompute: bool) -> None:
    recipe = recipe_of({**PLAIN, "mlp": "swiglu"}, recompute=recompute, precision="bf16")
    expected, found = measured(recipe)
    print({name: round(getattr(expected, name) / size, 3) for name, size in found.items()})
    assert expected.peak == pytest.approx(found["peak"], rel=0.05)


def standing() -> int:
    """Bytes of every tensor that there is in this process, buckets left out."""
    alive = (thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor))
    sizes = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in alive}
    return sum(size for size in sizes.values() if size < plan.BUCKET)


def worker(stage: int, precision: str) -> None:
    """One of two processes under ZeRO: what was planned over what is there, as a line of JSON."""
    warnings.simplefilter("ignore")  # deprecated tensors among all objects
    with distributed_context(600) as dist:
        torch.set_num_threads(1)
        way = EngineConfig(zero=stage)
        recipe = recipe_of(PLAIN, engine=way, precision=precision, batch=4 * AT_ONCE)
        engine = new_engine(Decoder(recipe.model), VOCABULARY, recipe, torch.device("cpu"), dist)
        shape = (AT_ONCE, recipe.model.context)
        ids_BL, weights_BL = torch.randint(5, recipe.model.vocabulary, shape), torch.ones(shape)

        def micro(last: bool) -> None:
            engine.backward(engine.loss(ids_BL, ids_BL, weights_BL, last).total)

        for last in (False, True):
            micro(last)
        engine.step(1e-4)
        stands = standing()
        first, gradients = most(lambda: micro(last=False))
        second, _ = most(lambda: micro(last=True))
        expected = plan.memory(recipe, way, 2)
        if stage == 3:  # has room for them always
            gradients = expected.gradients
            stands -= gradients
        found = {
            "stands": (expected.weights + expected.optimizer) / stands,
            "gradients": expected.gradients / gradients,
            "loss": expected.loss / max(first, second),
        }
        engine.step(1e-4)
        if dist.first:
            print(json.dumps(found), flush=True)
        dist.wait()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_two_processes_under_zero_take_what_was_planned(stage: int, precision: str) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node"),
            *("2", __file__, str(stage), precision),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("{"))
    print(line)
    for ratio in json.loads(line).values():
        assert ratio == pytest.approx(1, rel=0.05)


SHAPES = st.builds(
    lambda heads, size, **rest: ModelConfig(width=heads * size, heads=heads, **rest),
    heads=st.integers(1, 4),
    size=st.sampled_from([2, 4, 16]),
    vocabulary=st.integers(1, 99),
    context=st.integers(1, 50),
    layers=st.integers(1, 3),
    ffn=st.none() | st.integers(1, 40),
    norm=st.sampled_from(["layernorm", "rmsnorm"]),
    norm_affine=st.booleans(),
    mlp=st.sampled_from(["relu", "swiglu"]),
    positions=st.sampled_from(["learned", "rope"]),
    qk_norm=st.booleans(),
    tied=st.booleans(),
)


@given(SHAPES)
def test_parameters_are_those_of_the_decoder(model: ModelConfig) -> None:
    with torch.device("meta"):
        decoder = Decoder(model)
    assert parameters(model) == sum(weight.numel() for weight in decoder.parameters())


@pytest.mark.parametrize(
    ("name", "found"), [("350m", 372_776_960), ("760m", 785_657_856), ("7b", 6_725_599_232)]
)
def test_the_papers_sizes(name: str, found: int) -> None:
    assert parameters(sized(name, vocabulary=PAPER.size)) == found


def paper(**changes: Any) -> PretrainRecipe:
    """The paper's 7B."""
    model = sized("7b", vocabulary=PAPER.size)
    settings = {"steps": 10_000, "batch": 2048, "micro_tokens": 8194, "precision": "auto"}
    return replace(recipe_of(PLAIN), **{"model": model, **settings, **changes})


HARDWARE = Hardware(gpus=512, memory=80 * 10**9, flops=1e15, mfu=0.5)


def test_every_stage_splits_more() -> None:
    found = {
        (way.engine.zero, way.engine.recompute): way for way in plan_of(paper(), HARDWARE).ways
    }
    size = parameters(paper().model)
    share = math.ceil(size / 512)
    parts = {key[0]: (way.weights, way.gradients, way.optimizer) for key, way in found.items()}
    assert parts == {
        0: (4 * size, 4 * size, 8 * size),
        1: (2 * size, 2 * size, 12 * share),
        2: (2 * size, 2 * share, 12 * share),
        3: (2 * share, 2 * share, 12 * share),
    }
    for zero in range(4):
        assert found[zero, True].loss < found[zero, False].loss
    assert [key for key, way in found.items() if way.fits(80 * 10**9)] == [
        (1, False), (1, True), (2, False), (2, True), (3, False), (3, True),
    ]  # fmt: skip


def test_offload_moves_what_it_can_to_the_host() -> None:
    recipe = paper(engine=EngineConfig(zero=3, offload="all"))
    ways = {way.engine.zero: way for way in plan_of(recipe, HARDWARE).ways}
    assert [ways[zero].engine.offload for zero in range(4)] == [
        "none", "optimizer", "optimizer", "all",
    ]  # fmt: skip
    assert (ways[0].host, ways[1].optimizer, ways[3].weights) == (0, 0, 0)
    share = math.ceil(parameters(recipe.model) / 512)
    assert (ways[2].host, ways[3].host) == (20 * share, 20 * share)


def test_muon_has_one_moment_and_no_stages() -> None:
    recipe = recipe_of(PLAIN, optimizer=OptimizerConfig(matrices="muon"))
    engine = new_engine(
        Decoder(recipe.model), VOCABULARY, recipe, torch.device("cpu"), DistributedContext()
    )
    assert isinstance(engine, TorchEngine)
    ids_BL = torch.randint(5, 99, (1, 8))
    engine.backward(engine.loss(ids_BL, ids_BL, torch.ones(1, 8), True).total)
    engine.step(1e-4)
    states = [one for state in engine.optimizer.state.values() for one in state.values()]
    moments = sum(one.nbytes for one in states if isinstance(one, torch.Tensor) and one.ndim)
    found = plan_of(recipe, replace(HARDWARE, gpus=1)).ways
    assert [way.engine.zero for way in found] == [0, 0]
    assert found[0].optimizer == moments


def test_a_step_is_cut_as_training_cuts_it() -> None:
    rows = [np.zeros(4097, np.int64)] * 4
    for tokens, at_once in ((8192, 1), (8194, 2), (100, 1)):
        found = plan.cut(paper(micro_tokens=tokens), 512)
        micros = list(micro_batches(rows, tokens))
        assert (found.rows, found.passes, found.rows_at_once) == (4, len(micros), at_once)
        assert found.ids == micros[0][:, :-1].size
    short = paper(micro_tokens=10_000, rows=RowsConfig())
    assert plan.cut(short, 512).ids == 10_000  # of rows that are shorter
    with pytest.raises(UserError, match="does not divide among 500 processes"):
        plan_of(paper(), replace(HARDWARE, gpus=500))


def test_time_and_disk() -> None:
    recipe = paper(save_every=500, keep=2, keep_every=2000)
    found = plan_of(recipe, HARDWARE)
    assert found.tokens == 10_000 * 2048 * 4096
    speed = 512 * 1e15 * 0.5 / flops_per_token(recipe.model, 4096)
    assert found.tokens_per_second == speed
    days = found.tokens / speed / 86400
    assert found.days(EngineConfig()) == pytest.approx(days)
    assert found.days(EngineConfig(recompute=True)) == pytest.approx(days * 4 / 3)
    size = parameters(recipe.model)
    assert found.disk.shards == 2 * found.tokens
    assert found.disk.states == 12 * size * (2 + 1 + 5)
    assert found.disk.export == 2 * size
    assert plan.disk(paper(steps=400, save_every=500)).states == 12 * size


if __name__ == "__main__":
    worker(int(sys.argv[1]), sys.argv[2])
