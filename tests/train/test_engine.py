"""The engine's face: what moves the weights may differ, what it learns may not."""

import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cm3leon.model import Decoder
from cm3leon.pipeline import CM3Leon
from tokenizer.distributed import DistributedContext
from tokenizer.errors import UserError
from tokenizer.vocabulary import Vocabulary
from train import config, state
from train.config import PretrainRecipe
from train.engine import TorchEngine, deepspeed_settings, new_engine

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
Make = Callable[..., TorchEngine]


@pytest.fixture
def recipe(lesson: Path, tiny: CM3Leon) -> Callable[..., PretrainRecipe]:
    def recipe(*changes: str) -> PretrainRecipe:
        named = config.load_pretrain(str(lesson), changes)
        return config.with_vocabulary(named, vocabulary_of(tiny).size)

    return recipe


def vocabulary_of(tiny: CM3Leon) -> Vocabulary:
    return Vocabulary(image_codes=tiny.image_tokenizer.codes, text_pieces=tiny.codec.text.pieces)


@pytest.fixture
def make(recipe: Callable[..., PretrainRecipe], tiny: CM3Leon) -> Make:
    def make(*changes: str) -> TorchEngine:
        wanted = recipe(*changes)
        model = Decoder(wanted.model)
        draw = torch.Generator().manual_seed(0)
        for weight in model.parameters():
            weight.data.normal_(std=0.05, generator=draw)
        engine = new_engine(model, vocabulary_of(tiny), wanted, CPU, DistributedContext())
        assert isinstance(engine, TorchEngine)
        return engine

    return make


def batch(engine: TorchEngine, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    ids_BL = torch.randint(4, engine.recipe.model.vocabulary, (3, 20), generator=draw)
    return ids_BL[:, :-1], ids_BL[:, 1:], torch.ones(3, 19)


def learn(engine: TorchEngine, steps: int) -> list[float]:
    losses: list[float] = []
    for step in range(steps):
        loss = engine.loss(*batch(engine, step), True)
        engine.backward(loss.total / 57)
        engine.step(1e-3)
        losses.append(loss.total.item())
    return losses


def test_activations_made_again_change_no_bit(make: Make) -> None:
    plain, again = make(), make("engine.recompute=true")
    assert learn(plain, 3) == learn(again, 3)
    for (name, one), (_, other) in zip(plain.tensors(), again.tensors(), strict=True):
        assert torch.equal(one, other), name


def test_recompute_keeps_only_what_goes_into_a_layer(make: Make) -> None:
    def kept(engine: TorchEngine) -> int:
        """Bytes that the forward pass keeps for the backward one."""
        found: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            engine.loss(*batch(engine), True)
        return sum(found.values())

    changes = ("model.layers=6",)
    assert kept(make(*changes, "engine.recompute=true")) < kept(make(*changes)) / 2


def test_what_it_holds_goes_through_a_state(make: Make, tmp_path: Path) -> None:
    whole, parts = make(), make()
    wanted = learn(whole, 4)
    assert learn(parts, 2) == wanted[:2]
    state.save(tmp_path, 2, parts.tensors())
    found = state.find(tmp_path, "latest", print)
    assert found is not None
    other = make("seed=1")
    other.put(found, found.step)
    later = [learn_one(other, step) for step in (2, 3)]
    assert later == wanted[2:]


def learn_one(engine: TorchEngine, step: int) -> float:
    loss = engine.loss(*batch(engine, step), True)
    engine.backward(loss.total / 57)
    engine.step(1e-3)
    return loss.total.item()


def test_a_gradient_that_is_no_number_moves_nothing(make: Make) -> None:
    engine = make()
    learn(engine, 1)
    before = {name: tensor.clone() for name, tensor in engine.tensors()}
    engine.backward(engine.loss(*batch(engine), True).total * float("nan"))
    assert math.isnan(engine.step(1.0))
    for name, tensor in engine.tensors():
        assert torch.equal(tensor, before[name]), name


def test_deepspeeds_settings_are_computed_from_ours(
    recipe: Callable[..., PretrainRecipe],
) -> None:
    plain = deepspeed_settings(recipe("engine.zero=2", "optimizer.clip=0.5"), CPU, 4)
    assert plain["zero_optimization"]["stage"] == 2
    assert plain["gradient_clipping"] == 0.5
    assert plain["bf16"] == {"enabled": False}
    assert plain["train_batch_size"] == (
        plain["train_micro_batch_size_per_gpu"] * plain["gradient_accumulation_steps"] * 4
    )
    assert "offload_optimizer" not in plain["zero_optimization"]
    words = ("engine.zero=3", "engine.offload=all", "precision=bf16")
    large = deepspeed_settings(recipe(*words), torch.device("cuda"), 8)
    assert large["bf16"]["enabled"]
    assert large["zero_optimization"]["overlap_comm"]
    for part in ("offload_optimizer", "offload_param"):
        assert large["zero_optimization"][part] == {"device": "cpu", "pin_memory": True}


def test_deepspeed_that_is_not_there_is_said(
    recipe: Callable[..., PretrainRecipe], tiny: CM3Leon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    wanted = recipe("engine.zero=1")
    with pytest.raises(
        UserError, match=r"needs DeepSpeed; install it with .* or set engine.zero=0"
    ):
        new_engine(Decoder(wanted.model), vocabulary_of(tiny), wanted, CPU, DistributedContext())


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("engine.zero=4", "zero is 4; ZeRO has the stages 1, 2 and 3, and 0 is none"),
        ("engine.offload=optimizer", "offload 'optimizer' is ZeRO's; set zero to 1, 2 or 3"),
        ("engine={zero: 2, offload: all}", "offload 'all' needs zero 3"),
    ],
)
def test_engines_that_cannot_be_are_refused(
    recipe: Callable[..., PretrainRecipe], change: str, complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        recipe(change)
