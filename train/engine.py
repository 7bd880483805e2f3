"""What moves the weights: plain PyTorch, or DeepSpeed's ZeRO; one face for the loop and for states.

The only door to DeepSpeed. Its settings are computed here from ours. Stage 0 is a whole copy of
everything in each process and needs no DeepSpeed; stages 1, 2 and 3 split the optimiser's moments,
then the gradients, then the weights too among the processes (ZeRO, arXiv 1910.02054).

An engine sums gradients: the loop divides each micro-batch's loss by the weight of the whole step,
over all processes, so that no mean of means creeps in.
"""

# Shapes: B = rows, L = ids a row, T = tokens that are predicted, V = vocabulary

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
    """A decoder and its loss as one module, so that whoever wraps it sees every use of a weight."""

    def __init__(self, model: Decoder, vocabulary: Vocabulary, recipe: PretrainRecipe) -> None:
        super().__init__()
        self.model, self.vocabulary, self.recipe = model, vocabulary, recipe
        for block in model.blocks if recipe.engine.compile else ():
            block.compile()
        if recipe.engine.recompute:
            # ZeRO 3 lets go of a weight after its use; only the reentrant form asks for it again
            reentrant = recipe.engine.zero == 3
            for block in model.blocks:
                block.forward = partial(checkpoint, block.forward, use_reentrant=reentrant)

    def forward(
        self, ids_BL: Tensor, targets_BL: Tensor, weights_BL: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of one micro-batch; the head is asked only where something is predicted."""
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


class Engine(Protocol):
    """What the loop and `state` ask of an engine. All processes must ask together."""

    def loss(self, ids_BL: Tensor, targets_BL: Tensor, weights_BL: Tensor, last: bool) -> Loss:
        """Forward; `last` says that the step's last micro-batch comes."""
        ...

    def backward(self, loss: Tensor) -> None: ...

    def step(self, rate: float) -> float:
        """Clip the summed gradient and move the weights; return its norm before. Where that is no
        finite number the weights stay as they are."""
        ...

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Weights and moments in fp32 by name, whole, one after another."""
        ...

    def put(self, table: Mapping[str, Tensor], step: int) -> None:
        """Take over what `tensors` gave, from however many processes of whatever stage."""
        ...

    def whole(self) -> Decoder | None:
        """A decoder with the weights as they are, in the first process; None in the others."""
        ...


def new_engine(
    model: Decoder,
    vocabulary: Vocabulary,
    recipe: PretrainRecipe,
    device: torch.device,
    dist: DistributedContext,
) -> Engine:
    """The engine that a recipe asks for; the model is on its device already.

    Raises UserError where DeepSpeed is wanted but not installed.
    """
    net = LossOf(model, vocabulary, recipe)
    kind = TorchEngine if recipe.engine.zero == 0 else ZeroEngine
    return kind(net, recipe, device, dist)


class TorchEngine:
    """Plain PyTorch: alone, or with a copy in each process and gradients summed between them."""

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
        (loss * self.dist.size).backward()  # what processes sum is divided by their number

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
    """DeepSpeed's ZeRO. In bf16 it holds bf16 weights for the products beside its fp32 ones."""

    def __init__(
        self, net: LossOf, recipe: PretrainRecipe, device: torch.device, dist: DistributedContext
    ) -> None:
        deepspeed = _deepspeed(device)
        if not distributed.is_initialized():
            _be_a_group(device)
        self.net, self.recipe, self.device, self.dist = net, recipe, device, dist
        exact: dict[str, Tensor] = {}
        if in_bf16(recipe.precision, device):  # DeepSpeed would make its fp32 weights of bf16 ones
            named = net.model.named_parameters()
            exact = {f"weights.{name}": weight.detach().cpu().clone() for name, weight in named}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of others' making
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
        """The fp32 weights of this process, as the optimiser has them."""
        if self.recipe.engine.zero == 3:
            return self.optimizer.fp32_partitioned_groups_flat
        return self.optimizer.single_partition_of_fp32_groups

    def _steps(self) -> Tensor | None:
        """How many updates the moments have seen; None where there are no moments yet."""
        states = [self.optimizer.optimizer.state.get(flat) for flat in self._flat()]
        return states[0]["step"].cpu() if states and states[0] else None

    def _make_moments(self, step: int) -> None:
        """Moments of zero, which DeepSpeed itself makes only in the first update."""
        for flat in self._flat():
            made = {name: torch.zeros_like(flat) for name in MOMENTS}
            self.optimizer.optimizer.state[flat] = {"step": torch.tensor(float(step)), **made}
        if self.recipe.engine.zero < 3:
            self.optimizer._lazy_init_hp_params_optimizer_state()

    def _set(self, weight: nn.Parameter, value: Tensor, moment: str | None) -> None:
        """Give this process its part of a whole tensor."""
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
        """Make the weights that are multiplied what the fp32 ones are now."""
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
    """DeepSpeed's own settings, all of them from ours."""
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
        # our micro-batches differ in rows: these say only that there may be several
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 2,
        "train_batch_size": 2 * size,
        "gradient_clipping": recipe.optimizer.clip,
        "bf16": {"enabled": bf16, "check_grad_overflow": True} if bf16 else {"enabled": False},
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,  # its own Adam is compiled for minutes
        "zero_allow_untested_optimizer": True,
    }


def _be_a_group(device: torch.device) -> None:
    """DeepSpeed asks for a group of processes even where there is one."""
    os.environ.setdefault("LOCAL_RANK", "0")
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    alone: Any = distributed
    distributed.init_process_group(backend, store=alone.HashStore(), rank=0, world_size=1)
    atexit.register(distributed.destroy_process_group)


def _deepspeed(device: torch.device) -> Any:
    """The package, told in time what it would guess aloud."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import deepspeed
    except ImportError as error:
        raise no_deepspeed() from error
    # its calls of torch are of an older day
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    # on a CPU it would compile an operator for a minute and a half at the first launch
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def no_deepspeed() -> UserError:
    """What to say where the package is missing."""
    return UserError(
        "engine.zero above 0 needs DeepSpeed; install it with pip install 'cm3leon[train]', or set "
        "engine.zero=0"
    )
