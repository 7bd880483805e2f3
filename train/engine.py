"""Training engines with one interface: plain PyTorch (DDP), or DeepSpeed's ZeRO.

Used by `loop` and `state`. The only module that imports DeepSpeed; its settings are derived from
the recipe. Stage 0 replicates everything in each process, without DeepSpeed; stages 1, 2 and 3
shard the optimizer's moments, then also the gradients, then also the weights (ZeRO, arXiv
1910.02054).

Engines sum gradients, not average them: the loop divides the loss of each micro-batch by the total
loss weight of the step over all processes, which avoids a mean of means.
"""

# Shapes: B = rows, L = ids per row, T = target tokens, V = vocabulary

import atexit
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from cm3leon.model import Decoder
from tokenizer.distributed import DistributedContext
from tokenizer.errors import UserError
from tokenizer.vocabulary import Vocabulary
from train import state
from train.config import PretrainRecipe
from train.loss import head_loss
from train.objective import Loss
from train.optimizer import new_optimizer
from train.precision import autocast, in_bf16

MOMENTS = ("exp_avg", "exp_avg_sq")


class LossOf(nn.Module):
    """Decoder and loss as one module, so that wrappers (DDP, ZeRO) see every use of a weight."""

    def __init__(self, model: Decoder, vocabulary: Vocabulary, recipe: PretrainRecipe) -> None:
        super().__init__()
        self.model, self.vocabulary, self.recipe = model, vocabulary, recipe
        for block in model.blocks if recipe.engine.compile else ():
            block.compile()
        if recipe.engine.recompute:
            # ZeRO 3 frees a weight after its use; only reentrant checkpointing gathers it again
            reentrant = recipe.engine.zero == 3
            for block in model.blocks:
                block.forward = partial(checkpoint, block.forward, use_reentrant=reentrant)

    def forward(
        self, ids_BL: Tensor, targets_BL: Tensor, weights_BL: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss of a micro-batch; the head is applied only to targets of weight > 0."""
        counted_BL = weights_BL > 0
        hidden_BLD = self.model(ids_BL)
        image = self.vocabulary.image_ids
        among = image if self.recipe.mask.predict == "image" else slice(0, None)
        loss = head_loss(
            hidden_BLD[counted_BL],
            self.model.head_weight[among],
            targets_BL[counted_BL],
            weights_BL[counted_BL],
            self.vocabulary,
            self.recipe.model.z_loss,
            among.start,
        )
        return loss.total, loss.weight, loss.kinds_K2


class TrainEngine(Protocol):
    """Interface of a training engine. Calls are collective: all processes must make them."""

    def loss(self, ids_BL: Tensor, targets_BL: Tensor, weights_BL: Tensor, last: bool) -> Loss:
        """Run the forward pass; `last` marks the last micro-batch of the step."""
        ...

    def backward(self, loss: Tensor) -> None: ...

    def step(self, rate: float) -> float:
        """Clip the summed gradient and update the weights; return its norm before clipping. If the
        norm is not finite, the weights are unchanged."""
        ...

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield names and unsharded fp32 tensors of the weights and moments, one by one."""
        ...

    def put(self, table: Mapping[str, Tensor], step: int) -> None:
        """Load the tensors of `tensors`, saved by any number of processes at any ZeRO stage."""
        ...

    def whole(self) -> Decoder | None:
        """Return a decoder with the current weights in the first process; None in the others."""
        ...


def new_engine(
    model: Decoder,
    vocabulary: Vocabulary,
    recipe: PretrainRecipe,
    device: torch.device,
    dist: DistributedContext,
) -> TrainEngine:
    """Return the engine of a recipe; the model must already be on its device.

    Raises UserError if DeepSpeed is needed but not installed.
    """
    net = LossOf(model, vocabulary, recipe)
    kind = TorchEngine if recipe.engine.zero == 0 else ZeroEngine
    return kind(net, recipe, device, dist)


class TorchEngine:
    """Plain PyTorch: a single process, or DDP with gradients summed over the processes."""

    def __init__(
        self, net: LossOf, recipe: PretrainRecipe, device: torch.device, dist: DistributedContext
    ) -> None:
        self.net, self.recipe, self.device, self.dist = net, recipe, device, dist
        bf16 = in_bf16(recipe.precision, device)
        self.optimizer = new_optimizer(net.model, recipe.optimizer, dist, bf16=bf16)
        self.wrapped: nn.Module = net
        if dist.size > 1:
            self.wrapped = DistributedDataParallel(net, gradient_as_bucket_view=True)

    def loss(self, ids_BL: Tensor, targets_BL: Tensor, weights_BL: Tensor, last: bool) -> Loss:
        split = self.wrapped if isinstance(self.wrapped, DistributedDataParallel) else None
        gathering = nullcontext() if last or split is None else split.no_sync()
        batch = (one.to(self.device) for one in (ids_BL, targets_BL, weights_BL))
        with gathering, autocast(self.recipe.precision, self.device):
            return Loss(*self.wrapped(*batch))

    def backward(self, loss: Tensor) -> None:
        (loss * self.dist.size).backward()  # DDP averages gradients over the processes

    def step(self, rate: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        weights = list(self.net.parameters())
        norm = nn.utils.clip_grad_norm_(weights, self.recipe.optimizer.clip)
        if norm.isfinite():
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm.item()

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from state.pack(self.net.model, self.optimizer).items()

    def put(self, table: Mapping[str, Tensor], step: int) -> None:
        state.unpack(table, self.net.model, self.optimizer)

    def whole(self) -> Decoder | None:
        return self.net.model if self.dist.first else None


class ZeroEngine:
    """DeepSpeed's ZeRO. In bf16 it has bf16 weights for the matrix products and fp32 master
    weights."""

    def __init__(
        self, net: LossOf, recipe: PretrainRecipe, device: torch.device, dist: DistributedContext
    ) -> None:
        deepspeed = _deepspeed(device)
        if not distributed.is_initialized():
            _be_a_group(device)
        self.net, self.recipe, self.device, self.dist = net, recipe, device, dist
        exact: dict[str, Tensor] = {}
        if in_bf16(recipe.precision, device):  # else DeepSpeed's fp32 weights are rounded to bf16
            named = net.model.named_parameters()
            exact = {f"weights.{name}": weight.detach().cpu().clone() for name, weight in named}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the code of third parties
            self.engine, self.optimizer, *_ = deepspeed.initialize(
                model=net,
                optimizer=new_optimizer(net.model, recipe.optimizer),
                config=deepspeed_settings(recipe, device, dist.size),
            )
        self.utils = deepspeed.utils
        if exact:
            self.put(exact, 0)

    def loss(self, ids_BL: Tensor, targets_BL: Tensor, weights_BL: Tensor, last: bool) -> Loss:
        self.engine.set_gradient_accumulation_boundary(last)
        batch = (one.to(self.device) for one in (ids_BL, targets_BL, weights_BL))
        return Loss(*self.engine(*batch))

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss * self.dist.size, scale_wrt_gas=False)

    def step(self, rate: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.engine.step()
        return float(self.engine.get_global_grad_norm())

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        step = self._steps()
        for name, weight in self.net.model.named_parameters():
            yield f"weights.{name}", self.utils.safe_get_full_fp32_param(weight)
            for moment in MOMENTS if step is not None else ():
                whole = self.utils.safe_get_full_optimizer_state(weight, moment)
                yield f"optimizer.{moment}.{name}", whole
            if step is not None:
                yield f"optimizer.step.{name}", step.clone()

    def put(self, table: Mapping[str, Tensor], step: int) -> None:
        self._make_moments(step)
        for name, weight in self.net.model.named_parameters():
            self._set(weight, table[f"weights.{name}"], None)
            for moment in MOMENTS:
                key = f"optimizer.{moment}.{name}"
                if key in table:
                    self._set(weight, table[key], moment)
        self._refresh()

    def whole(self) -> Decoder | None:
        with torch.device("meta"):
            copy = Decoder(self.net.model.config) if self.dist.first else None
        if copy:
            copy.to_empty(device="cpu")
        names = dict(copy.named_parameters()) if copy else {}
        for name, weight in self.net.model.named_parameters():
            value = self.utils.safe_get_full_fp32_param(weight)
            if copy:
                names[name].data.copy_(value)
        if copy:
            copy.attend = self.net.model.attend
            copy.to(self.device)
        return copy

    def _flat(self) -> list[Tensor]:
        """Return the flat fp32 weights of this process that the optimizer updates."""
        if self.recipe.engine.zero == 3:
            return self.optimizer.fp32_partitioned_groups_flat
        return self.optimizer.single_partition_of_fp32_groups

    def _steps(self) -> Tensor | None:
        """Return the update count of the moments, or None before the moments exist."""
        states = [self.optimizer.optimizer.state.get(flat) for flat in self._flat()]
        return states[0]["step"].cpu() if states and states[0] else None

    def _make_moments(self, step: int) -> None:
        """Create zero moments, which DeepSpeed itself does only in the first update."""
        for flat in self._flat():
            made = {name: torch.zeros_like(flat) for name in MOMENTS}
            self.optimizer.optimizer.state[flat] = {"step": torch.tensor(float(step)), **made}
        if self.recipe.engine.zero < 3:
            self.optimizer._lazy_init_hp_params_optimizer_state()

    def _set(self, weight: nn.Parameter, value: Tensor, moment: str | None) -> None:
        """Set this process's shard of a weight or moment from the unsharded tensor."""
        if self.recipe.engine.zero < 3:
            if moment is None:
                self.utils.safe_set_full_fp32_param(weight, value.to(self.device))
            else:
                self.utils.safe_set_full_optimizer_state(weight, value.to(self.device), moment)
            return
        part = weight.ds_tensor.numel()  # type: ignore[attr-defined]
        padded = nn.functional.pad(value.flatten(), (0, part * self.dist.size - value.numel()))
        mine = padded[self.dist.rank * part :][:part].to(self.device)
        if moment is None:
            self.utils.safe_set_local_fp32_param(weight, mine)
        else:
            self.utils.safe_set_local_optimizer_state(weight, mine, moment)

    def _refresh(self) -> None:
        """Copy the fp32 weights to the weights that the model multiplies by."""
        if self.recipe.engine.zero == 3:
            for weight in self.net.model.parameters():
                mine = self.utils.safe_get_local_fp32_param(weight)
                weight.ds_tensor.data.copy_(mine)  # type: ignore[attr-defined]
            return
        for number, flat in enumerate(self.optimizer.single_partition_of_fp32_groups):
            parts = self.optimizer.parallel_partitioned_bit16_groups[number]
            for rank, part in enumerate(parts):
                whole = torch.empty_like(flat) if rank != self.dist.rank else flat.detach().clone()
                distributed.broadcast(whole, rank)
                part.data.copy_(whole)


def deepspeed_settings(recipe: PretrainRecipe, device: torch.device, size: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration for a recipe."""
    engine = recipe.engine
    zero: dict[str, Any] = {
        "stage": engine.zero,
        "overlap_comm": device.type == "cuda",
        "contiguous_gradients": True,
    }
    if engine.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": device.type == "cuda"}
    if engine.offload == "all":
        zero["offload_param"] = {"device": "cpu", "pin_memory": device.type == "cuda"}
    bf16 = in_bf16(recipe.precision, device)
    return {
        # micro-batches differ in their number of rows: these only enable gradient accumulation
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 2,
        "train_batch_size": 2 * size,
        "gradient_clipping": recipe.optimizer.clip,
        "bf16": {"enabled": bf16, "check_grad_overflow": True} if bf16 else {"enabled": False},
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,  # DeepSpeed's CPU Adam takes minutes to compile
        "zero_allow_untested_optimizer": True,
    }


def _be_a_group(device: torch.device) -> None:
    """Initialise a process group of one process, which DeepSpeed requires."""
    os.environ.setdefault("LOCAL_RANK", "0")
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    alone: Any = distributed
    distributed.init_process_group(backend, store=alone.HashStore(), rank=0, world_size=1)
    atexit.register(distributed.destroy_process_group)


def _deepspeed(device: torch.device) -> Any:
    """Import and return DeepSpeed, with its environment set and its warnings silenced.

    Raises UserError if it is not installed.
    """
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import deepspeed
    except ImportError as error:
        raise no_deepspeed() from error
    # it calls deprecated functions of torch
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    # on a CPU it would compile an operator at the first launch, for a minute and a half
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def no_deepspeed() -> UserError:
    """Return the UserError for a missing DeepSpeed."""
    return UserError(
        "engine.zero above 0 needs DeepSpeed; install it with pip install 'cm3leon[train]', or set "
        "engine.zero=0"
    )
