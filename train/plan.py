"""Estimate of a run's GPU memory, time and disk space, from its recipe alone.

`cm3leon plan` calls `plan_of`; shards, tokenizers and GPUs are not needed. In order: micro-batches,
persistent memory, additional memory in each phase of a step, time, disk. Memory is bytes per GPU.
"""

# P = parameters, N = GPUs, T = ids of the largest micro-batch, C = tokens of a chunk, D = width, F
# = hidden width, V = vocabulary; p, s = bytes per element in products and in the residual stream

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
MARGIN = 0.1  # share of a GPU's memory reserved for CUDA, NCCL and fragmentation
BUCKET = 5 * 10**8  # elements of a gradient bucket of DeepSpeed
LIVE = 10**9  # most parameters that its stage 3 keeps gathered
GROUP = 10**9  # parameters that its stage 3 updates at once
CODE = 2  # bytes of an image code in token shards
AGAIN = 3 / 4  # relative speed with recompute: 8 FLOPs per weight and token, not 6


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """Hardware of a run, and its expected utilisation."""

    gpus: int
    memory: int  # bytes per GPU
    flops: float  # nominal peak FLOPs per second of a GPU
    mfu: float  # expected model FLOPs utilisation

    def __post_init__(self) -> None:
        if self.gpus < 1 or self.memory < 1:
            raise UserError(f"a plan needs at least one GPU with memory, got {self}")
        if not (0 < self.flops < math.inf and 0 < self.mfu <= 1):
            raise UserError(f"flops must be above 0 and mfu in 0..1, got {self.flops}, {self.mfu}")


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Micro-batches of a step, if all rows are as long as the context."""

    rows: int  # per GPU and step
    rows_at_once: int
    passes: int  # micro-batches per GPU and step
    ids: int  # T, of the largest micro-batch


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes per GPU for one engine configuration: persistent memory, and the additional memory of
    each phase of a step. Phases do not overlap."""

    engine: EngineConfig
    weights: int
    gradients: int
    optimizer: int
    buffers: int  # persistent
    loss: int  # activations of all layers and the logits
    backward: int  # activations, one layer's gradients, and communication buckets
    update: int
    look: int  # validation and samples, on the first GPU only
    host: int  # CPU memory for this GPU

    @property
    def standing(self) -> int:
        """Persistent memory, from the first update to the last."""
        return self.weights + self.gradients + self.optimizer + self.buffers

    @property
    def peak(self) -> int:
        """Peak memory over all phases."""
        return self.standing + max(self.loss, self.backward, self.update, self.look)

    def fits(self, memory: int) -> bool:
        """Return whether the peak leaves the margin free."""
        return self.peak <= (1 - MARGIN) * memory


@dataclass(frozen=True, kw_only=True)
class Disk:
    """Bytes on disk."""

    shards: int
    states: int
    export: int


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """Estimates for a run."""

    parameters: int
    vocabulary: int
    cut: Cut
    ways: tuple[MemoryEstimate, ...]
    tokens_a_step: int
    tokens: int
    tokens_per_second: float  # without recompute
    disk: Disk

    def days(self, engine: EngineConfig) -> float:
        """Return the days of the whole run, without interruptions, loading or validation."""
        speed = self.tokens_per_second * (AGAIN if engine.recompute else 1)
        return self.tokens / speed / 86400


def plan_of(recipe: PretrainRecipe, hardware: Hardware) -> TrainingPlan:
    """Return the plan of a recipe whose vocabulary size is known.

    Tokens per step = batch * context: an upper bound, because rows of whole documents may be
    shorter. Tokens per second = N * flops * mfu / (FLOPs per token), as in `train/flops.py`. Raises
    UserError if the batch does not divide evenly among the GPUs.
    """
    config.check_batch(recipe.batch, hardware.gpus)
    model = recipe.model
    tokens_a_step = recipe.batch * model.context
    flops = hardware.gpus * hardware.flops * hardware.mfu
    return TrainingPlan(
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
    """Read a recipe for planning: its paths may be missing, or name missing files.

    Raises UserError if the vocabulary size cannot be determined.
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
    """Return the micro-batches of a step.

    A row includes the target of its last input, so it counts context + 1 ids against micro_tokens.
    Rows that are all packed blocks fill the context; shorter rows are batched up to micro_tokens,
    so that T is micro_tokens itself.
    """
    context = recipe.model.context
    rows = recipe.batch // gpus
    at_once = min(rows, max(1, recipe.micro_tokens // (context + 1)))
    own = [source.rows for source in recipe.sources.values()] or [None]
    full = all((one or recipe.rows).packed == 1 for one in own)
    ids = at_once * context if full else min(rows * context, max(context, recipe.micro_tokens))
    return Cut(rows=rows, rows_at_once=at_once, passes=math.ceil(rows / at_once), ids=ids)


def ways(recipe: PretrainRecipe) -> list[EngineConfig]:
    """Return the engine configurations to compare: the ZeRO stages, with and without recompute.
    Offload is the recipe's, as far as the stage supports it."""
    found: list[EngineConfig] = []
    for zero in (0,) if recipe.optimizer.matrices == "muon" else range(4):
        offload = recipe.engine.offload if zero else "none"
        if offload == "all" and zero < 3:
            offload = "optimizer"
        found += [EngineConfig(zero=zero, offload=offload, recompute=r) for r in (False, True)]
    return found


def memory(recipe: PretrainRecipe, engine: EngineConfig, gpus: int) -> MemoryEstimate:
    """Return the memory per GPU of one engine configuration.

    Stage 0 is plain PyTorch: weights, gradients (DDP's buckets are views of the gradients) and
    moments in fp32, 4 P + 4 P + 8 P. The update takes 4 P for the square roots of the second
    moments.

    Stages 1 to 3 are DeepSpeed's, with the model in bf16 (p = 2; in fp32 p = 4): fp32 weights and
    moments 12 P / N; weights p P, in stage 3 p P / N; gradients p P, from stage 2 on p P / N, and
    in stage 2 the same again in the backward pass of every micro-batch but the first. The update
    takes 8 P / N: fp32 gradients and square roots. A bucket has p * BUCKET bytes: stages 1 and 2
    have two during the backward pass, which stage 1 keeps from one micro-batch to the next; stage 3
    has one at all times, and gathered weights of at most p * min(P, LIVE).

    Offload moves the fp32 weights, gradients and moments (16 P / N) to the host, with transfer
    buffers (p P / N, twice that in stages 1 and 2); offload `all` the weights too.
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
    return MemoryEstimate(
        engine=engine, loss=loss + gathered, backward=backward + gathered + sums, **parts
    )


def moment_bytes(recipe: PretrainRecipe) -> int:
    """Return the bytes of the optimizer's fp32 moments: two per weight, one for Muon's weights."""
    whole = parameters(recipe.model)
    inside = recipe.model.layers * layer_matrices(recipe.model)
    one = inside if recipe.optimizer.matrices == "muon" else 0
    return FP32 * (2 * whole - one)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Bytes per element in matrix products, and in the residual stream (fp32 under autocast)."""

    product: int
    stream: int

    @classmethod
    def of(cls, recipe: PretrainRecipe, engine: EngineConfig) -> "Sizes":
        """Return the sizes on a GPU, where `auto` means bf16."""
        product = FP32 if recipe.precision == "fp32" else BF16
        return cls(product=product, stream=product if engine.zero else FP32)

    @property
    def cast(self) -> bool:
        """True if autocast makes bf16 copies of the inputs of matrix products, weights included."""
        return self.product != self.stream


def layer_bytes(model: ModelConfig, size: Sizes) -> int:
    """Return the bytes that autograd saves for the backward pass per token and layer.

    The inputs of two norms 2 s D; their outputs as inputs of products 2 p D (SwiGLU's two products
    each cast their own); queries, keys and values 3 p D, and 2 p D more with rotary positions or QK
    norm; attention's output p D; ReLU's output p F, or SwiGLU's four 4 p F. Statistics: 8 bytes per
    norm, 4 per attention head. Under autocast a CUDA norm of queries and keys saves fp32 copies.
    """
    p, width, gated = size.product, model.width, model.mlp == "swiglu"
    norms = 2 * size.stream * width + (3 if size.cast and gated else 2) * p * width
    turned = model.positions == "rope" or model.qk_norm
    attention = (6 if turned else 4) * p * width
    attention += 2 * FP32 * width if size.cast and model.qk_norm else 0
    notes = 16 + 4 * model.heads + (16 * model.heads if model.qk_norm else 0)
    return norms + attention + (4 if gated else 1) * p * model.ffn_width + notes


def kept_bytes(model: ModelConfig, size: Sizes, ids: int, recompute: bool) -> int:
    """Return the bytes of all layers' activations for `ids` tokens; with recompute only the input
    of each layer, s D per token."""
    layer = size.stream * model.width if recompute else layer_bytes(model, size)
    return ids * model.layers * layer


def loss_bytes(model: ModelConfig, size: Sizes, ids: int, recompute: bool) -> int:
    """Return the bytes at the loss: activations, and the tensors of `train/loss.py` for a chunk.

    The final norm's input and output, the hidden states of the targets and their gradient, 4 T s D;
    the head's gradient in fp32, 4 V D, and in bf16 also that of a chunk, p V D; a chunk's logits in
    fp32 and a copy for logsumexp, 8 C V. Autocast has copies of all weights.
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
    """Return the bytes in the backward pass of the last layer, the first to be differentiated:
    activations, with recompute also the layer's own; gradients of activations (2 s D; ReLU 2 p F,
    SwiGLU 4 p F); the tied head's gradient, kept until the embedding's is added; autocast's copies.
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
    """Estimate the disk space.

    Shards: 2 bytes per token, as if all tokens were image codes seen once; text takes about 4 bytes
    per token, and data seen twice is stored once. States: weights and moments in fp32, 12 bytes per
    parameter, for the newest `keep`, one being written, and each kept by `keep_every`. Export: 2
    bytes per parameter.
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
