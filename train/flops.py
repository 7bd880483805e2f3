"""What a step costs in operations, and how much of a device that uses; the report, the plan and the
benchmark all count alike here."""

from dataclasses import dataclass
from resource import RUSAGE_SELF, getrusage

import torch

from cm3leon.model import ModelConfig

# Dense bf16 operations a second, from the makers' data sheets
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "B200": 2250e12}


def layer_matrices(model: ModelConfig) -> int:
    """Weights in the matrices of one layer: 4 * D * D in attention, and 2 or 3 * D * F."""
    width, hidden = model.width, model.ffn_width
    return 4 * width * width + (3 if model.mlp == "swiglu" else 2) * width * hidden


def parameters(model: ModelConfig) -> int:
    """Weights of a decoder, from its sizes alone.

    V * D for the embedding (again for an untied head), C * D for learned positions, the matrices
    of the layers, and D (of a layer norm 2 * D) a norm that learns.
    """
    width = model.width
    norms = 0
    if model.norm_affine:
        one = width * (2 if model.norm == "layernorm" else 1)
        qk = 2 * 2 * model.head_size if model.qk_norm else 0
        norms = model.layers * (2 * one + qk) + one
    rows = model.vocabulary * (1 if model.tied else 2)
    rows += model.context if model.positions == "learned" else 0
    return model.layers * layer_matrices(model) + rows * width + norms


def flops_per_token(model: ModelConfig, length: int) -> float:
    """Operations of a token's forward and backward pass in a row of `length` ids.

    6 for each weight of a matrix it goes through (the head included, the embeddings' look-ups not),
    and 6 * layers * D * length for the scores of causal attention, half of a full square; the count
    of PaLM's appendix B (arXiv 2204.02311), which has no half. Activations made again (recompute)
    count nothing: this is model FLOPs utilisation.
    """
    matrices = model.layers * layer_matrices(model) + model.vocabulary * model.width
    return 6 * matrices + 6 * model.layers * model.width * length


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How fast a run is, beside what its devices could do."""

    model: ModelConfig
    device: torch.device
    devices: int = 1

    @property
    def peak(self) -> float | None:
        """Operations a second of one device in bf16; None where we do not know it."""
        if self.device.type != "cuda":
            return None
        name = torch.cuda.get_device_name(self.device)
        return next((peak for known, peak in PEAKS.items() if known in name), None)

    def figures(self, tokens: int, rows: int, seconds: float) -> dict[str, float]:
        """Tokens a second of all processes, the share of their devices' peak where that is known,
        and the most memory so far in GB: of tensors on a GPU, of the process on a CPU."""
        found = {"tokens_per_second": tokens / seconds}
        if self.peak:
            flops = tokens * flops_per_token(self.model, tokens // rows)
            found["mfu"] = flops / seconds / (self.peak * self.devices)
        if self.device.type == "cuda":
            found["memory_gb"] = torch.cuda.max_memory_allocated(self.device) / 1e9
        else:
            found["memory_gb"] = getrusage(RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        return found
