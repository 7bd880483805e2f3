"""The benchmark of training at a size where it tells nothing but what it reports, and that both
sides of it do the same work."""

import sys
from pathlib import Path

import pytest
import torch

from cm3leon.attention import attend
from cm3leon.model import Decoder
from tokenizer.data.shards import Shards
from tokenizer.errors import UserError
from tokenizer.timing import Timing
from train import loop, rivals, speed
from train.data.rows import Rows
from train.rivals import Family
from train.synthetic import pictures, rows_of, write_synthetic

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
TINY = speed.StepSetting(size="tiny", context=48, rows=2, times=2)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    folder = tmp_path_factory.mktemp("synthetic") / "shards"
    write_synthetic(folder)
    return rows_of(Shards.open(folder), TINY.context, 1.0)


def copied(ours: Decoder, theirs: torch.nn.Module, family: Family) -> None:
    """Give their decoder our weights, under their names."""
    width = ours.config.width
    names: dict[str, torch.Tensor] = {}
    start = "model.decoder" if family == "opt" else "model"
    attention, out = ("self_attn", "out_proj" if family == "opt" else "o_proj")
    mlp = {"up": "fc1", "down": "fc2"}
    norms = {"attention_norm": "self_attn_layer_norm", "mlp_norm": "final_layer_norm"}
    if family == "llama":
        mlp = {one: f"mlp.{one}_proj" for one in ("up", "down", "gate")}
        norms = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    for name, weight in ours.state_dict().items():
        parts = name.split(".")
        if name == "embed.weight":
            names[f"{start}.embed_tokens.weight"] = weight
            names.setdefault("lm_head.weight", weight)
        elif name == "head.weight":
            names["lm_head.weight"] = weight
        elif name == "position.weight":  # theirs begins at the third row
            rows = torch.cat([torch.zeros(2, width), weight])
            names[f"{start}.embed_positions.weight"] = rows
        elif name == "norm.weight":
            names[f"{start}.norm.weight"] = weight
        elif parts[2] == "attention" and parts[3] == "qkv":
            for one, part in zip("qkv", weight.chunk(3), strict=True):
                names[f"{start}.layers.{parts[1]}.{attention}.{one}_proj.weight"] = part
        elif parts[2] == "attention":
            names[f"{start}.layers.{parts[1]}.{attention}.{out}.weight"] = weight
        elif parts[2] == "mlp":
            names[f"{start}.layers.{parts[1]}.{mlp[parts[3]]}.weight"] = weight
        else:
            names[f"{start}.layers.{parts[1]}.{norms[parts[2]]}.weight"] = weight
    theirs.load_state_dict(names)


@pytest.mark.parametrize("family", ["opt", "llama"])
def test_both_sides_make_the_same_steps(packed: Rows, family: Family) -> None:
    recipe = speed.recipe_of(family, packed, TINY)
    job = speed.our_job(recipe, packed, TINY, attend)
    ours = job.engine.whole()
    assert ours is not None
    for block in ours.blocks:  # not zero, as the paper's start has them
        for weight in block.parameters():
            if weight.ndim == 2:
                torch.nn.init.normal_(weight, std=0.05)
    theirs = rivals.their_model(family, recipe.model)
    if family == "llama":
        theirs.config.rms_norm_eps = 1e-5  # type: ignore[union-attr]
        for module in theirs.modules():
            if hasattr(module, "variance_epsilon"):
                module.variance_epsilon = 1e-5  # type: ignore[assignment]
    copied(ours, theirs, family)
    micros = list(loop.micros_of(job, [packed.at(0), packed.at(1)]))
    assert sum(ids_BL.numel() for ids_BL, _, _ in micros) == TINY.tokens
    (batch,) = micros
    our_step = speed.our_step(job, micros)
    their_step = rivals.their_step(theirs, recipe, batch, TINY.device)
    for _ in range(3):
        figures = our_step()
        assert isinstance(figures, dict)
        assert figures["loss"] == pytest.approx(their_step(), rel=1e-5)
    sizes = [sum(w.numel() for w in one.parameters()) for one in (ours, theirs)]
    assert sizes[1] - sizes[0] == (2 * recipe.model.width if family == "opt" else 0)


def test_what_is_reported_of_steps(packed: Rows) -> None:
    found = speed.against("opt", packed, TINY)
    assert found.tokens == 96
    assert found.by_products is not None
    for side in (found.ours, found.theirs):
        assert 0 < side.step.least <= side.step.median <= side.step.most
        assert 0 < side.products < 1
    table = speed.as_json(found)
    assert table["processor"] > 0
    assert table["ratio"] == found.theirs.step.median / found.ours.step.median
    loads = speed.loading(packed, found.ours.step, TINY)
    assert (loads.tokens, loads.rows) == (96, "packed blocks")
    assert 0 < loads.share < 1


def test_rows_of_single_documents_are_told_apart(packed: Rows) -> None:
    alone = rows_of(packed.shards, 256, 0.0)
    found = speed.loading(alone, Timing.of([(1.0, 1.0)]), TINY)
    assert found.rows == "one document a row"
    assert found.share == found.row_seconds / (found.row_seconds + 1)


def test_pictures_are_encoded_in_batches_and_alone() -> None:
    class Mean:
        hash, size, grid, codes = "mean", 8, 1, 256

        def encode(self, pixels_B3HW: torch.Tensor) -> torch.Tensor:
            batches.append(len(pixels_B3HW))
            return ((pixels_B3HW.mean(dim=(1, 2, 3)) + 1) * 127).long().unsqueeze(1)

    batches = list[int]()
    found = speed.encoding(Mean(), 5, TINY)
    assert (found.pictures, found.batch) == (5, 64)
    assert sorted(set(batches)) == [1, 5]
    assert found.ratio == found.one_by_one.median / found.batched.median
    assert [one.picture for one in pictures(2, 16)] == [one.picture for one in pictures(2, 16)]


def test_transformers_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"not installed; pip install 'cm3leon\[retrieval\]'"):
        rivals.transformers()


def test_synthetic_shards_are_whole(packed: Rows) -> None:
    packed.shards.verify()
    assert packed.shards.counts == {"pictures": 2000, "pair": 2000}
    assert Path(packed.shards.folder).is_dir()
