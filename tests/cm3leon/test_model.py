import math
from typing import Any

import pytest
import torch
from torch import nn

from cm3leon.model import SIZES, Decoder, ModelConfig, sized
from tokenizer.errors import UserError
from tokenizer.vocabulary import PAPER

LLAMA: dict[str, Any] = {
    "norm": "rmsnorm",
    "norm_affine": True,
    "mlp": "swiglu",
    "positions": "rope",
    "qk_norm": True,
    "tied": False,
    "ffn": 96,
}


def lively(**changes: Any) -> Decoder:
    """A tiny decoder whose every weight matters (a fresh one has zero residual outputs)."""
    model = Decoder(sized("tiny", vocabulary=48, **changes))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2, generator=generator)
    return model


def some_ids(rows: int, length: int) -> torch.Tensor:
    return torch.randint(48, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "millions"), [("350m", 374), ("760m", 787), ("7b", 6730)])
def test_paper_sizes_have_the_papers_parameters(name: str, millions: int) -> None:
    with torch.device("meta"):
        model = Decoder(sized(name, vocabulary=PAPER.size))
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.01)


def test_a_model_on_the_meta_device_takes_weights_without_a_copy() -> None:
    model = lively()
    with torch.device("meta"):
        shell = Decoder(model.config)
    shell.load_state_dict(model.state_dict(), strict=True, assign=True)
    ids_BL = some_ids(1, 4)
    assert torch.equal(shell(ids_BL), model(ids_BL))


def test_every_named_size_is_a_valid_configuration() -> None:
    for name in SIZES:
        assert sized(name, vocabulary=1000).layers == SIZES[name]["layers"]


def test_the_default_model_has_no_biases_and_no_learned_norms() -> None:
    model = Decoder(sized("tiny", vocabulary=48))
    names = [name for name, _ in model.named_parameters()]
    assert not [name for name in names if "bias" in name or "norm" in name]
    assert not [module for module in model.modules() if isinstance(module, nn.Dropout)]
    assert not list(model.buffers())


def test_weights_start_as_the_paper_says() -> None:
    torch.manual_seed(0)
    model = Decoder(sized("tiny", vocabulary=2000, width=128, heads=4))
    block = model.blocks[0]
    for weight in (model.embed.weight, block.attention.qkv.weight, block.mlp.up.weight):
        # a normal cut at 3 standard deviations is narrower by 1.3%
        assert weight.std().item() == pytest.approx(0.006 * 0.987, rel=0.03)
        assert weight.mean().item() == pytest.approx(0, abs=1e-4)
        assert weight.abs().max().item() <= 0.018
    assert model.position is not None
    assert model.position.weight.std().item() == pytest.approx(0.0002, rel=0.05)
    for block in model.blocks:
        assert not block.attention.out.weight.any()
        assert not block.mlp.down.weight.any()


def test_weights_are_the_same_for_the_same_seed() -> None:
    models = [Decoder(sized("tiny", vocabulary=48)) for _ in range(2)]
    for model in models:
        model.initialise(torch.Generator().manual_seed(7))
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("changes", [{}, LLAMA], ids=["paper", "llama"])
def test_no_token_sees_what_follows(changes: dict[str, Any]) -> None:
    model = lively(**changes)
    ids_BL = some_ids(2, 12)
    changed_BL = ids_BL.clone()
    changed_BL[:, 7] = (changed_BL[:, 7] + 1) % 48
    with torch.no_grad():
        one_BLD, other_BLD = model(ids_BL), model(changed_BL)
    assert torch.equal(one_BLD[:, :7], other_BLD[:, :7])
    assert (one_BLD[:, 7:] - other_BLD[:, 7:]).abs().amax(-1).min() > 1e-4


@pytest.mark.parametrize("changes", [{}, LLAMA], ids=["paper", "llama"])
def test_positions_matter_and_may_be_given(changes: dict[str, Any]) -> None:
    model = lively(**changes)
    ids_BL = some_ids(2, 6)
    counted_BL = torch.arange(6).expand(2, 6)
    stretched_BL = counted_BL * 5
    with torch.no_grad():
        plain, counted, stretched = (
            model(ids_BL),
            model(ids_BL, positions_BL=counted_BL),
            model(ids_BL, positions_BL=stretched_BL),
        )
    assert torch.equal(plain, counted)
    assert (plain - stretched).abs().max() > 1e-3


def test_rotary_attention_depends_on_distances_only() -> None:
    model = lively(**LLAMA)
    ids_BL = some_ids(1, 6)
    with torch.no_grad():
        here = model(ids_BL)
        further_on = model(ids_BL, positions_BL=torch.arange(100, 106).unsqueeze(0))
    torch.testing.assert_close(here, further_on, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("changes", [{}, LLAMA], ids=["tied", "untied"])
def test_a_slice_of_the_head_gives_a_slice_of_the_logits(changes: dict[str, Any]) -> None:
    model = lively(**changes)
    with torch.no_grad():
        hidden_BLD = model(some_ids(2, 5))
        assert model.logits(hidden_BLD).shape == (2, 5, 48)
        torch.testing.assert_close(
            model.logits(hidden_BLD, slice(4, 20)), model.logits(hidden_BLD)[..., 4:20]
        )


def test_a_llama_style_model_learns_with_every_part() -> None:
    model = lively(**LLAMA)
    ids_BL = some_ids(2, 8)
    logits = model.logits(model(ids_BL))
    nn.functional.cross_entropy(logits.flatten(0, 1), ids_BL.flatten()).backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_a_fresh_model_expects_nothing() -> None:
    torch.manual_seed(0)
    model = Decoder(sized("tiny", vocabulary=48))
    ids_BL = some_ids(4, 16)
    with torch.no_grad():
        logits = model.logits(model(ids_BL))
    loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids_BL[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(48), abs=0.05)


def test_z_loss_leaves_the_model_alone() -> None:
    ids_BL = some_ids(1, 4)
    assert torch.equal(lively()(ids_BL), lively(z_loss=1e-4)(ids_BL))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 5}, "width 64 is not a multiple of heads 5"),
        ({"layers": 0}, "layers is 0; it must be at least 1"),
        ({"ffn": -1}, "ffn is -1; it must be at least 1"),
        ({"width": 6, "heads": 2, "positions": "rope"}, "needs an even head size, not 3"),
        ({"z_loss": -1.0}, "z_loss is -1.0; it must not be negative"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sized("tiny", vocabulary=48, **changes)


def test_an_unknown_size_is_refused_with_a_hint() -> None:
    with pytest.raises(UserError, match="unknown model size '350M'; did you mean '350m'"):
        sized("350M", vocabulary=48)
    with pytest.raises(UserError, match="known: tiny"):
        sized("enormous", vocabulary=48)


def test_the_context_is_a_hard_end() -> None:
    model = Decoder(ModelConfig(vocabulary=48, context=8, layers=1, width=8, heads=1))
    assert model(some_ids(1, 8)).shape == (1, 8, 8)
    with pytest.raises(AssertionError, match="context"):
        model(some_ids(1, 9))
