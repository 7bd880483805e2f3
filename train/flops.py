"""FLOPs of a training step and model FLOPs utilisation (MFU), for the log, the plan and the
benchmark."""

from dataclasses import dataclass
from resource import RUSAGE_SELF, getrusage

import torch

from cm3leon.model import ModelConfig

# Dense bf16 FLOPs per second, from the vendors' data sheets
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "B200": 2250e12}


def layer_matrices(model: ModelConfig) -> int:
    """Return the number of weights in the matrices of a layer: 4 * D * D in attention, and 2 * D *
    F (SwiGLU: 3 * D * F) in the MLP."""
    width, hidden = model.width, model.ffn_width
    return 4 * width * width + (3 if model.mlp == "swiglu" else 2) * width * hidden


def parameters(model: ModelConfig) -> int:
    """Return the number of parameters of a decoder, computed from its configuration.

    V * D for the embedding (again for an untied head), C * D for learned positions, the matrices
    of the layers, and D (layer norm: 2 * D) for each norm with learned parameters.
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
    """Return the FLOPs per token of a forward and backward pass over a row of `length` ids.

    6 per weight of each matrix (with the head, without embedding look-ups), and 6 * layers * D *
    length for causal attention: the count of PaLM's appendix B (arXiv 2204.02311), but halved for
    attention, where PaLM counts the full square. Recomputed activations are not counted, as usual
    for model FLOPs utilisation.
    """
    matrices = model.layers * layer_matrices(model) + model.vocabulary * model.width
    return 6 * matrices + 6 * model.layers * model.width * length


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Throughput of a run, and its share of the peak of its devices."""

    model: ModelConfig
    device: torch.device
    devices: int = 1

    @property
    def peak(self) -> float | None:
        """Peak bf16 FLOPs per second of one device, or None if unknown."""
        if self.device.type != "cuda":
            return None
        name = torch.cuda.get_device_name(self.device)
        return next((peak for known, peak in PEAKS.items() if known in name), None)

    def figures(self, tokens: int, rows: int, seconds: float) -> dict[str, float]:
        """Return tokens per second over all processes, MFU if the peak is known, and the peak
        memory so far in GB: of tensors on a GPU, of the process on a CPU."""
        found = {"tokens_per_second": tokens / seconds}
        if self.peak:
            flops = tokens * flops_per_token(self.model, tokens // rows)
            found["mfu"] = flops / seconds / (self.peak * self.devices)
        if self.device.type == "cuda":
            found["memory_gb"] = torch.cuda.max_memory_allocated(self.device) / 1e9
        else:
            found["memory_gb"] = getrusage(RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        return found
