"""One step of the decoder's training against plain arithmetic, however it is cut into batches."""

# Shapes: L = ids of a row, V = vocabulary

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cm3leon.model import Decoder
from cm3leon.pipeline import CM3Leon
from tokenizer.codec import Codec
from tokenizer.data.shards import Shards
from tokenizer.distributed import DistributedContext
from tokenizer.errors import UserError
from tokenizer.vocabulary import Vocabulary
from train import config, state
from train.data.batches import rows_of_steps
from train.data.rows import Rows
from train.engine import new_engine
from train.flops import Speed
from train.loop import Job, agree, micros_of, run, train_step
from train.metrics import read
from train.objective import Ids
from train.precision import autocast, in_bf16

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
Make = Callable[..., Job]


class Notes:
    """A watch that only notes when it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def validate(self, model: Decoder) -> dict[str, float]:
        self.asked.append("validate")
        return {"held_out": 1.0}

    def draw(self, model: Decoder, path: Path) -> None:
        self.asked.append(path.name)


@pytest.fixture
def make(lesson: Path, tiny: CM3Leon, tmp_path: Path) -> Make:
    """A job of the lesson's recipe with changes, always from the same weights."""

    def make(*changes: str) -> Job:
        text = tiny.codec.text
        vocabulary = Vocabulary(image_codes=tiny.image_tokenizer.codes, text_pieces=text.pieces)
        named = config.load_pretrain(str(lesson), changes)
        recipe = config.with_vocabulary(named, vocabulary.size)
        codec = Codec(vocabulary, text, tiny.image_tokenizer.picture_codes, recipe.model.context)
        model = Decoder(recipe.model)
        model.initialise(torch.Generator().manual_seed(0))
        draw = torch.Generator().manual_seed(1)
        for block in model.blocks:  # a residual output of zero would hide what is behind it
            for weight in (block.attention.out.weight, block.mlp.down.weight):  # type: ignore[union-attr]
                weight.data.normal_(std=0.05, generator=draw)  # type: ignore[union-attr]
        assert recipe.shards is not None
        return Job(
            recipe=recipe,
            engine=new_engine(model, vocabulary, recipe, CPU, DistributedContext()),
            rows=Rows(Shards.open(recipe.shards), codec, recipe.rows, recipe.mask, recipe.seed),
            vocabulary=vocabulary,
            watch=Notes(),
            folder=tmp_path,
            speed=Speed(model=recipe.model, device=CPU),
            say=print,
        )

    return make


used: list[torch.Tensor] = []


def model_of(job: Job) -> Decoder:
    model = job.engine.whole()
    assert model is not None
    return model


def step(job: Job, rows: Sequence[Ids], rate: float) -> dict[str, float]:
    """One update, as the loop makes it. The gradients that it used are kept in `used`."""
    used.clear()
    job.engine.optimizer.register_step_pre_hook(lambda *_: used.extend(gradients(job)))
    micros = list(micros_of(job, rows))
    whole, passes, _, _ = agree(job.dist, micros, late=False)
    return train_step(job, micros, whole, passes, rate)


def rows_of(job: Job, count: int = 8) -> list[Ids]:
    return [job.rows.at(row) for row in range(count)]


def by_hand(job: Job, rows: Sequence[Ids]) -> torch.Tensor:
    """The loss row by row, without padding or batches: weighted nats, over all weights."""
    sentinels = job.vocabulary.sentinel_ids
    total, whole = torch.zeros(()), 0.0
    for row in rows:
        ids_L = torch.from_numpy(row)
        logits_LV = model_of(job).logits(model_of(job)(ids_L[None, :-1])[0])
        cost_L = F.cross_entropy(logits_LV, ids_L[1:], reduction="none")
        cost_L = cost_L + job.recipe.model.z_loss * logits_LV.logsumexp(-1) ** 2
        is_sentinel_L = (sentinels.start <= ids_L[1:]) & (ids_L[1:] < sentinels.stop)
        weights_L = torch.where(is_sentinel_L, job.recipe.mask.sentinel_weight, 1.0)
        total = total + (cost_L * weights_L).sum()
        whole += float(weights_L.sum())
    return total / whole


def gradients(job: Job) -> list[torch.Tensor]:
    return [weight.grad.clone() for weight in model_of(job).parameters() if weight.grad is not None]


@pytest.mark.parametrize("micro_tokens", [1, 150, 100_000])
@pytest.mark.parametrize(
    "changes", [(), ("mask.sentinel_weight=0.25", "mask.spans_mean=3", "model.z_loss=1e-2")]
)
def test_a_step_is_one_batch_however_it_is_cut(
    make: Make, micro_tokens: int, changes: tuple[str, ...]
) -> None:
    job = make(f"micro_tokens={micro_tokens}", "optimizer.clip=1e9", *changes)
    rows = rows_of(job)
    loss = by_hand(job, rows)
    loss.backward()
    wanted = gradients(job)
    model_of(job).zero_grad()
    figures = step(job, rows, rate=0.0)
    assert figures["loss"] == pytest.approx(loss.item(), rel=1e-6)
    got = list(used)
    assert len(got) == len(list(model_of(job).parameters()))
    for one, other in zip(got, wanted, strict=True):
        assert (one - other).abs().max() < 1e-6
    norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in wanted))
    assert figures["gradient"] == pytest.approx(norm, rel=1e-5)
    cuts = len(list(micros_of(job, rows)))
    assert cuts == 8 if micro_tokens == 1 else cuts < 8


def test_the_loss_is_divided_by_the_tokens_of_the_whole_batch(make: Make) -> None:
    """Rows of unlike lengths: a mean of micro-batch means would be another number."""
    job = make("micro_tokens=1")
    rows = sorted(rows_of(job, 16), key=len)[:: len(rows_of(job, 16)) - 1]
    assert len(rows[0]) * 2 < len(rows[1])
    short, long = (by_hand(job, [row]).item() for row in rows)
    predicted = [len(row) - 1 for row in rows]
    whole = (short * predicted[0] + long * predicted[1]) / sum(predicted)
    assert abs((short + long) / 2 - whole) > 1e-4
    assert step(job, rows, rate=0.0)["loss"] == pytest.approx(whole, rel=1e-6)


def test_the_kinds_of_token_make_up_the_loss(make: Make) -> None:
    job = make("mask.spans_mean=2")
    rows = rows_of(job)
    targets = np.concatenate([row[1:] for row in rows])
    figures = step(job, rows, rate=0.0)
    ranges = {
        "text": job.vocabulary.text_ids,
        "image": job.vocabulary.image_ids,
        "sentinel": job.vocabulary.sentinel_ids,
    }
    counts = {k: int(((targets >= r.start) & (targets < r.stop)).sum()) for k, r in ranges.items()}
    counts["mark"] = len(targets) - sum(counts.values())
    found = sum(figures[kind] * count for kind, count in counts.items()) / len(targets)
    assert figures["loss"] == pytest.approx(found, rel=1e-5)


def test_gradients_are_clipped_and_the_rate_is_what_was_asked(make: Make) -> None:
    job = make("optimizer.clip=0.01")
    figures = step(job, rows_of(job), rate=0.125)
    assert figures["gradient"] > 0.1
    clipped = math.sqrt(sum(float(gradient.square().sum()) for gradient in used))
    assert clipped == pytest.approx(0.01, rel=1e-3)
    assert figures["rate"] == 0.125
    assert [group["lr"] for group in job.engine.optimizer.param_groups] == [0.125]


def test_no_number_ends_the_run_and_spoils_no_weight(make: Make) -> None:
    job = make()
    model_of(job).blocks[1].mlp.up.weight.data[0, 0] = math.nan  # type: ignore[union-attr,operator]
    before = [weight.clone() for weight in model_of(job).parameters()]
    with pytest.raises(
        UserError, match=r"the loss is nan .* begin a new run with a lower"
    ) as error:
        step(job, rows_of(job), rate=1.0)
    assert "\n" not in str(error.value)
    for old, new in zip(before, model_of(job).parameters(), strict=True):
        assert torch.equal(old.nan_to_num(7), new.nan_to_num(7))


def test_a_bad_step_is_skipped_where_the_recipe_says_so(make: Make) -> None:
    said: list[str] = []
    job = replace(make("bad_step=skip", "spike=2"), say=said.append)
    before = [weight.clone() for weight in model_of(job).parameters()]
    job.losses.extend([1.0] * 10)  # what it sees now, about 6.7, is far above
    figures = step(job, rows_of(job), rate=1.0)
    assert figures["skipped"] == 1
    (line,) = said
    assert line.startswith("step skipped: the loss is ")
    assert line.endswith("a spike: the last were 1 in the mean")
    for old, new in zip(before, model_of(job).parameters(), strict=True):
        assert torch.equal(old, new)
    assert list(job.losses) == [1.0] * 10  # a spike is no measure of the next one
    job.losses.clear()
    job.losses.extend([6.0] * 10)
    assert "skipped" not in step(job, rows_of(job), rate=1e-3)
    stopping = make("spike=2")
    stopping.losses.extend([1.0] * 10)
    rows = rows_of(stopping)
    with pytest.raises(UserError, match="a spike: the last were 1 in the mean: there is no going"):
        step(stopping, rows, rate=1.0)


def test_a_run_does_not_skip_for_ever(make: Make) -> None:
    job = make("bad_step=skip", "steps=40")
    model_of(job).blocks[1].mlp.up.weight.data[0, 0] = math.nan  # type: ignore[union-attr,operator]
    with pytest.raises(UserError, match="11 steps in a row were skipped"):
        run(job, 0)


def test_the_watch_is_asked_in_its_turn_and_at_the_end(make: Make) -> None:
    job = make("steps=5", "validate_every=2", "sample_every=4", "save_every=100")
    run(job, 0)
    assert isinstance(job.watch, Notes)
    assert job.watch.asked == [
        "validate", "validate", "sample-00000004.png", "validate", "sample-00000005.png",
    ]  # fmt: skip
    lines = read(job.folder)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert ["held_out" in line for line in lines] == [False, True, False, True, True]
    rates = [job.recipe.schedule.rate(step, 5) for step in range(5)]
    assert [line["rate"] for line in lines] == rates
    assert [path.name for path in job.folder.glob("state-*")] == ["state-00000005"]


def test_bf16_is_close(make: Make) -> None:
    rows = rows_of(make())
    losses = {
        precision: step(make(f"precision={precision}"), rows, rate=0.0)["loss"]
        for precision in ("fp32", "bf16")
    }
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=1e-2)
    assert autocast("bf16", CPU).fast_dtype == torch.bfloat16


@pytest.mark.parametrize("circuits", ["avx512_bf16", "amx_bf16", None])
def test_auto_is_bf16_on_a_cpu_that_has_circuits_for_it(
    circuits: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, circuits: True})
    assert in_bf16("auto", CPU) == (circuits is not None)
    assert (in_bf16("bf16", CPU), in_bf16("fp32", CPU)) == (True, False)


def test_every_weight_is_trained_and_decays(make: Make) -> None:
    job = make("optimizer.weight_decay=0.5")
    (group,) = job.engine.optimizer.param_groups
    assert len(group["params"]) == len(list(model_of(job).parameters()))
    assert (group["weight_decay"], group["betas"]) == (0.5, (0.9, 0.95))


def test_muon_moves_the_matrices_of_blocks_and_adamw_all_else(make: Make) -> None:
    job = make("optimizer.matrices=muon", "optimizer.weight_decay=0")
    before = {name: weight.clone() for name, weight in model_of(job).state_dict().items()}
    step(job, rows_of(job), rate=1e-3)
    names = dict(model_of(job).named_parameters())
    inside = {name for name in names if name.startswith("blocks.")}
    assert 0 < len(inside) < len(names)
    for name, weight in names.items():
        moved = (weight.detach() - before[name]).double()
        kept = job.engine.optimizer.state[weight]
        if name in inside:
            assert kept.keys() == {"momentum_buffer"}
            # orthogonal, but for directions that few rows move: singular values are all alike
            values = torch.linalg.svdvals(moved) / (0.2 * math.sqrt(max(moved.shape)) * 1e-3)
            assert 0.6 < values[len(values) // 4].item() <= values[0].item() < 1.3
        else:
            assert kept.keys() == {"step", "exp_avg", "exp_avg_sq"}


def test_norms_that_learn_are_moved_by_adamw(make: Make) -> None:
    job = make("optimizer.matrices=muon", "model.norm_affine=true")
    step(job, rows_of(job), rate=1e-3)
    kept = {n: job.engine.optimizer.state[w].keys() for n, w in model_of(job).named_parameters()}
    norms = [keys for name, keys in kept.items() if name.endswith("_norm.weight")]
    assert norms
    assert all(keys == {"step", "exp_avg", "exp_avg_sq"} for keys in norms)


def weights(job: Job) -> list[torch.Tensor]:
    return [weight.detach() for weight in model_of(job).parameters()]


@pytest.mark.parametrize("matrices", ["adamw", "muon"])
def test_a_run_out_of_time_saves_its_state_and_goes_on_to_the_same_end(
    make: Make, tmp_path: Path, matrices: str
) -> None:
    changes = ("steps=3", f"optimizer.matrices={matrices}")
    whole, box = replace(make(*changes), folder=tmp_path / "a"), make(*changes)
    whole.folder.mkdir()
    assert run(whole, 0) == 3
    assert run(box, 0, deadline=0.0) == 1  # a step is made, however late it is
    assert [path.name for path in tmp_path.glob("state-*")] == ["state-00000001"]
    for done in (2, 3):
        later = make(*changes)
        found = state.find(tmp_path, "latest", print)
        assert found is not None
        later.engine.put(found, found.step)
        assert run(later, found.step, deadline=0.0) == done
        assert len(read(tmp_path)) == done
    for one, other in zip(weights(later), weights(whole), strict=True):
        assert torch.equal(one, other)


# Python warns of threads that a forked process loses; ours need none.
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_rows_made_ahead_are_the_same_rows_in_order(make: Make) -> None:
    rows, steps = make().rows, range(3, 9)
    ahead = list(rows_of_steps(rows, 4, range(4), steps, workers=2))
    assert len(ahead) == 6
    for one, other in zip(ahead, rows_of_steps(rows, 4, range(4), steps, workers=0), strict=True):
        assert [row.tolist() for row in one] == [row.tolist() for row in other]
    assert ahead[0][1].tolist() == rows.at(13).tolist()
