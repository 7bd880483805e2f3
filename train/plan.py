"""What a run would need of each GPU, of the clock and of the disk, from its recipe alone.

`cm3leon plan` calls `plan_of` before anybody pays; no shards, no tokenizers and no GPU are needed.
Reads as it computes: how a step is cut, what stands in a GPU's memory for the whole run, what comes
on top at the dearest moments of a step, time, disk. All sizes are bytes of one GPU.
"""

# Letters: P = parameters, N = GPUs, T = ids of the largest micro-batch, D = width, F = hidden
# width, V = vocabulary; p, s = bytes of a number in products and in the residual stream

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cm3leon.model import ModelConfig
from tokenizer import config as settings
from tokenizer.errors import UserError
from tokenizer.image import ImageTokenizer
from tokenizer.text import TextTokenizer
from tokenizer.vocabulary import PAPER, Vocabulary
from train import config
from train.config import UNKNOWN, EngineConfig, PretrainRecipe
from train.flops import flops_per_token, layer_matrices, parameters
from train.loss import CHUNK

FP32, BF16 = 4, 2
MARGIN = 0.1  # of a GPU's memory is left to CUDA, NCCL and fragments
BUCKET = 5 * 10**8  # numbers in one of DeepSpeed's buckets of gradients
LIVE = 10**9  # most parameters that its stage 3 has in one piece
GROUP = 10**9  # parameters that its stage 3 updates at once
CODE = 2  # bytes of a picture's code in token shards
AGAIN = 3 / 4  # of the speed is left where activations are made again: 8 passes' work, not 6


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What there is to train on, and how well it will be used."""

    gpus: int
    memory: int  # bytes of one GPU
    flops: float  # operations a second that one is sold with
    mfu: float  # the share of them that goes into the model

    def __post_init__(self) -> None:
        if self.gpus < 1 or self.memory < 1:
            raise UserError(f"a plan needs at least one GPU with memory, got {self}")
        if not (0 < self.flops < math.inf and 0 < self.mfu <= 1):
            raise UserError(f"flops must be above 0 and mfu in 0..1, got {self.flops}, {self.mfu}")


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How a step is cut into micro-batches, where all rows are as long as the context."""

    rows: int  # of one GPU in a step
    rows_at_once: int
    passes: int  # micro-batches of one GPU in a step
    ids: int  # T, of the largest micro-batch


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one GPU, spread over the GPUs in one way: what stands always, and then what comes on
    top at each of the dearest moments of a step. Only one moment is at a time."""

    engine: EngineConfig
    weights: int
    gradients: int
    optimizer: int
    buffers: int  # that stand always
    loss: int  # activations of all layers and the logits
    backward: int  # activations, one layer's gradients, and buckets for the other GPUs
    update: int
    look: int  # validation and samples, in the first GPU only
    host: int  # of the CPU's memory, for this GPU

    @property
    def standing(self) -> int:
        """What is there from the first update to the last."""
        return self.weights + self.gradients + self.optimizer + self.buffers

    @property
    def peak(self) -> int:
        """What is there at the dearest moment."""
        return self.standing + max(self.loss, self.backward, self.update, self.look)

    def fits(self, memory: int) -> bool:
        """Whether the peak leaves the margin free."""
        return self.peak <= (1 - MARGIN) * memory


@dataclass(frozen=True, kw_only=True)
class Disk:
    """Bytes on disk."""

    shards: int
    states: int
    export: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that can be said of a run before it begins."""

    parameters: int
    vocabulary: int
    cut: Cut
    ways: tuple[Memory, ...]
    tokens_a_step: int
    tokens: int
    tokens_per_second: float  # without recompute
    disk: Disk

    def days(self, engine: EngineConfig) -> float:
        """Days of the whole run; nothing is counted for stops, loading or validation."""
        speed = self.tokens_per_second * (AGAIN if engine.recompute else 1)
        return self.tokens / speed / 86400


def plan_of(recipe: PretrainRecipe, hardware: Hardware) -> Plan:
    """The plan of a recipe whose vocabulary is known. Raises UserError where the batch cannot be
    shared by so many GPUs.

    tokens a step = batch * context: rows that are whole documents may be shorter, so this is the
    most. Tokens a second = N * flops * mfu / (operations of a token), as in `train/flops.py`.
    """
    config.check_batch(recipe.batch, hardware.gpus)
    model = recipe.model
    tokens_a_step = recipe.batch * model.context
    flops = hardware.gpus * hardware.flops * hardware.mfu
    return Plan(
        parameters=parameters(model),
        vocabulary=model.vocabulary,
        cut=cut(recipe, hardware.gpus),
        ways=tuple(memory(recipe, way, hardware.gpus) for way in ways(recipe)),
        tokens_a_step=tokens_a_step,
        tokens=tokens_a_step * recipe.steps,
        tokens_per_second=flops / flops_per_token(model, model.context),
        disk=disk(recipe),
    )


def read(recipe: str, overrides: Sequence[str]) -> PretrainRecipe:
    """A recipe to plan with: paths may be left out, and lead nowhere.

    Raises UserError where nothing tells the vocabulary.
    """
    table = config.read(PretrainRecipe, recipe, overrides)
    if not table.get("sources"):
        table.setdefault("shards", "")
    for name in ("image_tokenizer", "text_tokenizer"):
        table.setdefault(name, "")
    if isinstance(model := table.get("model"), dict):
        model.setdefault("vocabulary", UNKNOWN)
    named = settings.build(PretrainRecipe, table)
    if named.model.vocabulary != UNKNOWN:
        return named
    image, text = Path(named.image_tokenizer), Path(named.text_tokenizer)
    if not (named.image_tokenizer and image.is_dir() and text.is_file()):
        raise UserError(
            "the recipe states no model.vocabulary, and its tokenizers are not there to tell it; "
            f"give model.vocabulary=N (the paper's tokenizers make {PAPER.size})"
        )
    codes, pieces = ImageTokenizer.load(image).codes, TextTokenizer.load(text).pieces
    return config.with_vocabulary(named, Vocabulary(image_codes=codes, text_pieces=pieces).size)


def cut(recipe: PretrainRecipe, gpus: int) -> Cut:
    """A row is read with the id behind it, so context + 1 ids of it count against micro_tokens.

    Rows that are all blocks of a stream fill the context; of shorter ones as many stand together
    as micro_tokens has room for, so that T is micro_tokens itself.
    """
    context = recipe.model.context
    rows = recipe.batch // gpus
    at_once = min(rows, max(1, recipe.micro_tokens // (context + 1)))
    own = [source.rows for source in recipe.sources.values()] or [None]
    full = all((one or recipe.rows).packed == 1 for one in own)
    ids = at_once * context if full else min(rows * context, max(context, recipe.micro_tokens))
    return Cut(rows=rows, rows_at_once=at_once, passes=math.ceil(rows / at_once), ids=ids)


def ways(recipe: PretrainRecipe) -> list[EngineConfig]:
    """The stages, with and without recompute; offload as far as the recipe and the stage go."""
    found: list[EngineConfig] = []
    for zero in (0,) if recipe.optimizer.matrices == "muon" else range(4):
        offload = recipe.engine.offload if zero else "none"
        if offload == "all" and zero < 3:
            offload = "optimizer"
        found += [EngineConfig(zero=zero, offload=offload, recompute=r) for r in (False, True)]
    return found


def memory(recipe: PretrainRecipe, engine: EngineConfig, gpus: int) -> Memory:
    """What one way needs of each GPU.

    Stage 0 is plain PyTorch: weights, gradients (the buckets of many processes are the gradients
    themselves) and moments in fp32, 4 P + 4 P + 8 P. The update takes 4 P for the roots of the
    second moments.

    Stages 1 to 3 are DeepSpeed's, the model itself in bf16 (p = 2; 4 in fp32): fp32 weights and
    moments 12 P / N; weights p P, in stage 3 p P / N; gradients p P, from stage 2 p P / N, and in
    stage 2 as much again in the backward pass of every micro-batch but the first. The update takes
    8 P / N: fp32 gradients and roots. A bucket is p * BUCKET bytes: stages 1 and 2 have two during
    the backward pass, which stage 1 keeps from one micro-batch to the next; stage 3 has one always,
    and of gathered weights p * min(P, LIVE) at most.

    Offload puts the fp32 weights, gradients and moments (16 P / N), and what is copied between
    (p P / N, twice in stages 1 and 2), on the host; offload `all` the weights too.
    """
    model, zero = recipe.model, engine.zero
    whole, share = parameters(model), math.ceil(parameters(model) / gpus)
    size = Sizes.of(recipe, engine)
    p, batch = size.product, cut(recipe, gpus)
    several = batch.passes > 1
    parts = {
        "weights": p * (share if zero == 3 else whole),
        "gradients": p * (whole if zero == 1 else share),
        "optimizer": 12 * share,
        "buffers": p * BUCKET * (2 if zero == 1 and several else zero == 3),
        "update": 8 * (min(share, GROUP) if zero == 3 else share),
        "look": FP32 * whole,
        "host": 0,
    }
    if zero == 0:
        parts |= dict.fromkeys(("weights", "gradients", "update"), FP32 * whole)
        parts |= {"optimizer": moment_bytes(recipe), "look": 0}
    if engine.offload != "none":
        parts["host"] = (16 + p * (1 if zero == 3 else 2)) * share
        parts |= {"optimizer": 0, "update": 0, "gradients": p * whole if zero == 1 else 0}
    if engine.offload == "all":
        parts["host"] += parts["weights"]
        parts["weights"] = 0
    gathered = p * min(whole, LIVE) if zero == 3 else 0
    sums = 2 * p * BUCKET if zero == 2 or (zero == 1 and not several) else 0
    if zero == 2 and engine.offload == "none" and several:
        sums += p * share
    loss = loss_bytes(model, size, batch.ids, engine.recompute)
    backward = backward_bytes(model, size, batch.ids, engine.recompute)
    return Memory(engine=engine, loss=loss + gathered, backward=backward + gathered + sums, **parts)


def moment_bytes(recipe: PretrainRecipe) -> int:
    """Bytes of the optimiser's moments in fp32: two of a weight, one where Muon moves it."""
    whole = parameters(recipe.model)
    inside = recipe.model.layers * layer_matrices(recipe.model)
    one = inside if recipe.optimizer.matrices == "muon" else 0
    return FP32 * (2 * whole - one)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Bytes of a number: in products, and in the residual stream that autocast leaves in fp32."""

    product: int
    stream: int

    @classmethod
    def of(cls, recipe: PretrainRecipe, engine: EngineConfig) -> "Sizes":
        """On a GPU, where `auto` is bf16."""
        product = FP32 if recipe.precision == "fp32" else BF16
        return cls(product=product, stream=product if engine.zero else FP32)

    @property
    def cast(self) -> bool:
        """Whether autocast makes bf16 copies of what products read, the weights too."""
        return self.product != self.stream


def layer_bytes(model: ModelConfig, size: Sizes) -> int:
    """What autograd keeps of one token in one layer for the backward pass.

    The inputs of two norms 2 s D; their outputs as products read them 2 p D (SwiGLU's two products
    each cast their own); queries, keys and values 3 p D, and 2 p D again where they are turned or
    normed; what attention gives p D; the ReLU's output p F, or SwiGLU's four 4 p F. A norm notes 8
    bytes, attention 4 a head. Under autocast a CUDA norm reads queries and keys as fp32 copies.
    """
    p, width, gated = size.product, model.width, model.mlp == "swiglu"
    norms = 2 * size.stream * width + (3 if size.cast and gated else 2) * p * width
    turned = model.positions == "rope" or model.qk_norm
    attention = (6 if turned else 4) * p * width
    attention += 2 * FP32 * width if size.cast and model.qk_norm else 0
    notes = 16 + 4 * model.heads + (16 * model.heads if model.qk_norm else 0)
    return norms + attention + (4 if gated else 1) * p * model.ffn_width + notes


def kept_bytes(model: ModelConfig, size: Sizes, ids: int, recompute: bool) -> int:
    """All layers' activations of `ids` tokens; with recompute only what goes into each, s D."""
    layer = size.stream * model.width if recompute else layer_bytes(model, size)
    return ids * model.layers * layer


def loss_bytes(model: ModelConfig, size: Sizes, ids: int, recompute: bool) -> int:
    """At the loss: activations, and what `train/loss.py` has while it makes logits by the chunk.

    The final norm's input and output, the hidden states that count and their gradient, 4 T s D; the
    head's gradient in fp32, 4 V D, in bf16 a chunk's own beside it, p V D; a chunk's logits in fp32
    and, for the sum of their powers, once more, 8 C V. Autocast has copies of all weights.
    """
    p = size.product if size.product < FP32 else 0
    head = model.vocabulary * model.width
    chunk = min(CHUNK["cuda"], ids * model.vocabulary)
    found = kept_bytes(model, size, ids, recompute) + 4 * ids * size.stream * model.width
    found += (FP32 + p) * head + 2 * FP32 * chunk
    if size.cast:
        found += BF16 * (head + model.layers * layer_matrices(model))
    return found


def backward_bytes(model: ModelConfig, size: Sizes, ids: int, recompute: bool) -> int:
    """In the last layer, the first that the backward pass comes to: activations, that layer's own
    where they are made again, the gradients in flight (2 s D, 2 p F of a ReLU, 4 p F of SwiGLU),
    the tied head's gradient, which waits for that of the embedding, and autocast's copies.
    """
    layer = layer_matrices(model)
    flying = 2 * size.stream * model.width
    flying += (4 if model.mlp == "swiglu" else 2) * size.product * model.ffn_width
    found = kept_bytes(model, size, ids, recompute) + ids * flying
    found += ids * layer_bytes(model, size) if recompute else 0
    found += size.stream * model.vocabulary * model.width if model.tied else 0
    if size.cast:
        found += BF16 * layer * (1 if recompute else model.layers)
    return found


def disk(recipe: PretrainRecipe) -> Disk:
    """Bytes on disk.

    Shards: 2 bytes a token, were every token a picture's code and seen once; a text takes about 4
    a token, and what is seen twice is kept once. States: weights and moments in fp32, 12 bytes a
    parameter, for the newest `keep`, one that is being written, and each that is kept for good.
    Export: 2 bytes a parameter.
    """
    whole = parameters(recipe.model)
    saved = math.ceil(recipe.steps / recipe.save_every)
    good = 0
    if recipe.keep_every is not None:
        good = recipe.steps // math.lcm(recipe.save_every, recipe.keep_every)
    kept = min(saved, recipe.keep + 1 + good)
    return Disk(
        shards=CODE * recipe.batch * recipe.model.context * recipe.steps,
        states=kept * (FP32 * whole + moment_bytes(recipe)),
        export=BF16 * whole,
    )
