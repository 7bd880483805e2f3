"""Baseline decoders from transformers with our weights, for the decoding benchmark.

Used by `decode`. Transformers is an optional dependency, imported only on request.
"""

# Shapes: B = rows, L = tokens per row, V = vocabulary, D = width

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cm3leon.model import Decoder, ModelConfig
from tokenizer.errors import UserError

Ids = tuple[int, ...]
CLOSE = 1e-3  # largest accepted difference between both decoders' logits
OURS = {  # names of a layer's parts: ours -> (Chameleon's, OPT's)
    "attention.out": ("self_attn.o_proj", "self_attn.out_proj"),
    "attention.q_norm": ("self_attn.q_norm", ""),
    "attention.k_norm": ("self_attn.k_norm", ""),
    "mlp.gate": ("mlp.gate_proj", ""),
    "mlp.up": ("mlp.up_proj", "fc1"),
    "mlp.down": ("mlp.down_proj", "fc2"),
    "attention_norm": ("input_layernorm", "self_attn_layer_norm"),
    "mlp_norm": ("post_attention_layernorm", "final_layer_norm"),
}


def transformers() -> Any:
    """Return the `transformers` package. Raises UserError if it is not installed."""
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise UserError(
            "this compares with transformers, which is not installed; "
            "pip install 'cm3leon[retrieval]', or leave '--against' out"
        ) from error


def is_opt(model: ModelConfig) -> bool:
    """Return whether transformers' counterpart of a decoder is OPT; otherwise it is Chameleon."""
    return model.mlp == "relu"


def their_model(model: ModelConfig) -> Any:
    """Return transformers' decoder of the same sizes, with random weights of its own."""
    library = transformers()
    shared: dict[str, Any] = {
        "vocab_size": model.vocabulary,
        "hidden_size": model.width,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "max_position_embeddings": model.context,
        "tie_word_embeddings": model.tied,
        "attn_implementation": "sdpa",
    }
    if is_opt(model):
        config = library.OPTConfig(
            ffn_dim=model.ffn_width,
            word_embed_proj_dim=model.width,
            activation_function="relu",
            dropout=0.0,
            layerdrop=0.0,
            enable_bias=False,
            layer_norm_elementwise_affine=False,
            **shared,
        )
        return library.OPTForCausalLM(config).eval().requires_grad_(False)
    small = {"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1}
    config = library.ChameleonConfig(
        intermediate_size=model.ffn_width,
        num_key_value_heads=model.heads,
        vocabulary_map={"<image>": 1},
        vq_config={"resolution": 16, "num_embeddings": 8, "embed_dim": 32, **small},
        **shared,
    )
    net = library.ChameleonForConditionalGeneration(config).eval().requires_grad_(False)
    net.model.vqmodel = nn.Identity()  # the input is ids only: never run, nor counted
    return net


@torch.no_grad()
def give(ours: Decoder, theirs: Any) -> None:
    """Load our weights into their decoder under its names; none may be missing or left over."""
    model = ours.config
    opt = is_opt(model)
    start = "model.decoder" if opt else "model"
    names: dict[str, Tensor] = {"lm_head.weight": ours.head_weight}
    for name, weight in ours.state_dict().items():
        if name == "embed.weight":
            names[f"{start}.embed_tokens.weight"] = weight
        elif name == "position.weight":  # OPT's positions begin at row 2
            names[f"{start}.embed_positions.weight"] = nn.functional.pad(weight, (0, 0, 2, 0))
        elif name == "norm.weight":
            names[f"{start}.norm.weight"] = weight
        elif name.startswith("blocks."):
            _, number, part = name.split(".", 2)
            part, kind = part.rsplit(".", 1)
            layer = f"{start}.layers.{number}"
            if part == "attention.qkv":
                for letter, third in zip("qkv", weight.chunk(3), strict=True):
                    names[f"{layer}.self_attn.{letter}_proj.{kind}"] = third
                continue
            if part.startswith("attention.") and part.endswith("_norm"):  # one per head
                weight = weight.expand(model.heads, -1)
            names[f"{layer}.{OURS[part][opt]}.{kind}"] = weight
    theirs.load_state_dict(names)


@torch.inference_mode()
def difference(ours: Decoder, theirs: Any, prompts: Sequence[Ids]) -> float:
    """Return the largest absolute difference between both decoders' logits on some prompts.

    A difference above `CLOSE` fails an assertion: the two would not do the same computation.
    """
    found = 0.0
    for prompt in prompts:
        ids_BL = torch.tensor([prompt], device=ours.embed.weight.device)
        ours_BLV = ours.logits(ours(ids_BL))
        theirs_BLV = theirs(input_ids=ids_BL).logits
        found = max(found, (ours_BLV - theirs_BLV).abs().max().item())
    assert found <= CLOSE, f"both sides' logits differ by {found}"
    return found


class Only:
    """Logits processor that masks all ids below `first`, at the cost of one fill."""

    def __init__(self, first: int) -> None:
        self.first = first

    def __call__(self, input_ids: Tensor, scores_BV: Tensor) -> Tensor:
        scores_BV[:, : self.first] = -torch.inf
        return scores_BV


def their_generate(
    net: Any, prompts: Sequence[Ids], n: int, first: int, scale: float
) -> Callable[[int], Tensor]:
    """Return a function that samples a given number of ids with transformers' `generate`: [n, ids].

    `generate` is called in its best configuration: PyTorch's own attention (sdpa), the dynamic
    cache, inference mode. It samples at temperature 1 from the ids `first` and above; no end of
    sequence is defined, so every row has the requested length. Two prompts are guided by generate's
    own `guidance_scale` and `negative_prompt_ids`, which reads the second prompt in a separate
    forward pass at every step.
    """
    device = net.device
    ids_BL = torch.tensor([prompts[0]] * n, device=device)
    given: dict[str, Any] = {"attention_mask": torch.ones_like(ids_BL)}
    if len(prompts) > 1:
        negative_BL = torch.tensor([prompts[1]] * n, device=device)
        given["negative_prompt_ids"] = negative_BL
        given["negative_prompt_attention_mask"] = torch.ones_like(negative_BL)

    @torch.inference_mode()
    def draw(count: int) -> Tensor:
        config = transformers().GenerationConfig(
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            use_cache=True,
            guidance_scale=scale if len(prompts) > 1 else None,
            max_new_tokens=count,
            eos_token_id=None,
            pad_token_id=0,
        )
        processors = [Only(first)]
        rows_BL = net.generate(
            input_ids=ids_BL, generation_config=config, logits_processor=processors, **given
        )
        new_BL = rows_BL[:, ids_BL.shape[1] :]
        assert new_BL.shape == (n, count), f"{tuple(new_BL.shape)} for {n} rows of {count}"
        assert new_BL.min().item() >= first, "an id that was not to be drawn"
        return new_BL

    return draw
