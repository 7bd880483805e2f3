"""Baselines of the training benchmark: decoders of transformers, and their training step.

Used by `train/speed.py`. Transformers is an optional dependency, imported only when needed.
"""

# Shapes: B = rows, L = ids per row

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch

from cm3leon.model import ModelConfig, sized
from tokenizer.errors import UserError
from train.config import PretrainRecipe
from train.loop import Micro
from train.optimizer import adamw
from train.precision import autocast

Family = Literal["opt", "llama"]


def model_of(family: Family, size: str, context: int, vocabulary: int) -> ModelConfig:
    """Return the configuration of the paper's decoder (OPT without biases), or of a Llama."""
    made = sized(size, vocabulary=vocabulary, context=context)
    if family == "opt":
        return made
    return replace(
        made,
        norm="rmsnorm",
        norm_affine=True,
        mlp="swiglu",
        positions="rope",
        tied=False,
        ffn=-(-8 * made.width // 3 // 32) * 32,
    )


def transformers() -> Any:
    """Import and return transformers. Raises UserError if it is not installed."""
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise UserError(
            "bench train compares with transformers, which is not installed; "
            "pip install 'cm3leon[retrieval]'"
        ) from error


def their_model(family: Family, model: ModelConfig) -> torch.nn.Module:
    """Return transformers' decoder of the same configuration, in training mode."""
    library = transformers()
    shared: dict[str, Any] = {
        "vocab_size": model.vocabulary,
        "hidden_size": model.width,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "max_position_embeddings": model.context,
        "tie_word_embeddings": model.tied,
        "use_cache": False,
        "attn_implementation": "sdpa",
    }
    torch.manual_seed(0)
    if family == "llama":
        config = library.LlamaConfig(intermediate_size=model.ffn_width, **shared)
        return library.LlamaForCausalLM(config).train()
    config = library.OPTConfig(
        ffn_dim=model.ffn_width,
        word_embed_proj_dim=model.width,
        activation_function="relu",
        dropout=0.0,
        attention_dropout=0.0,
        layerdrop=0.0,
        enable_bias=False,
        layer_norm_elementwise_affine=False,
        **shared,
    )
    return library.OPTForCausalLM(config).train()


def their_step(
    net: torch.nn.Module, recipe: PretrainRecipe, batch: Micro, device: torch.device
) -> Callable[[], float]:
    """Return a conventional training step of such a model, with its own loss on our targets; the
    step returns the loss."""
    net.to(device)
    optimizer = adamw(list(net.parameters()), recipe.optimizer)
    for group in optimizer.param_groups:
        group["lr"] = recipe.schedule.peak

    def step() -> float:
        ids_BL, targets_BL = (one.to(device) for one in batch[:2])
        with autocast(recipe.precision, device):
            loss = net(input_ids=ids_BL, labels=targets_BL, shift_labels=targets_BL).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(net.parameters(), recipe.optimizer.clip)
        if norm.isfinite():
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step
