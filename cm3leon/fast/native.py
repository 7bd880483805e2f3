"""Decoding step on a CPU as one call of C code; same result as `FastDecoder.step`, but faster.

The CPU counterpart of `cuda_graphs`. `native.c` is compiled with this machine's gcc on first use,
which takes a second, and kept in the user's cache folder. It runs in PyTorch's own threads. Without
gcc or Linux, or for a decoder of another dtype than fp32 and int8, `decode` is used instead;
CM3LEON_NATIVE=0 forces that.

Shapes: R = rows, T = rows of activations, D = width, C = positions, H = head size; K, N = widths
in and out of a matrix, which native.c calls K and M.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from ctypes import POINTER, Structure, byref, c_float, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from cm3leon.attention import KVCache
from cm3leon.fast.cached import keep, kept
from cm3leon.model import NORM_EPS, Block, Decoder, rotation_of

SOURCE = Path(__file__).with_name("native.c")
FLAGS = ("-O3", "-march=native", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
LANES = 16  # the width of a matrix and the size of a head must be multiples of this
WHOLE_LANES = 64  # the same for the width of an int8 matrix


WHOLE = ("ints_NK", "scales_N", "sums_N")  # attributes of an int8 module that fill FIELDS
FIELDS = ("numbers", "scales_M", "sums_M")


class CMatrix(Structure):
    """Struct `Matrix` of native.c."""

    _fields_ = (
        *((name, c_void_p) for name in FIELDS),
        *((name, c_int64) for name in ("outputs", "width")),
    )


class CNorm(Structure):
    """Struct `Norm` of native.c."""

    _fields_ = (("gain", c_void_p), ("bias", c_void_p))


class CLayer(Structure):
    """Struct `Layer` of native.c."""

    _fields_ = (
        *((name, CMatrix) for name in ("qkv", "out", "gate", "up", "down")),
        *((name, CNorm) for name in ("attention_norm", "mlp_norm", "q_norm", "k_norm")),
    )


class CModel(Structure):
    """Struct `Model` of native.c."""

    _fields_ = (
        ("layers", POINTER(CLayer)),
        *((name, c_void_p) for name in ("embed_VD", "positions_CD", "cos_CH", "sin_CH")),
        ("norm", CNorm),
        *((name, c_int64) for name in ("vocabulary", "depth", "width", "heads", "head_size")),
        *((name, c_int64) for name in ("ffn", "rms", "qk_norm", "squared")),
        ("eps", c_float),
    )


def library() -> ctypes.CDLL | None:
    """Return the compiled native.c, or None where it is not available."""
    found = loaded()
    return None if isinstance(found, str) else found


@cache
def loaded() -> ctypes.CDLL | str:
    """Return the compiled native.c, or the reason why it is not available."""
    if os.environ.get("CM3LEON_NATIVE") == "0":
        return "CM3LEON_NATIVE is 0"
    if not sys.platform.startswith("linux"):
        return f"not on {sys.platform}"
    compiler = shutil.which("gcc")
    if compiler is None:
        return "no gcc"
    try:
        made = ctypes.CDLL(str(compiled(compiler)))  # it uses the threads of torch's OpenMP
    except subprocess.CalledProcessError as error:
        return f"gcc: {error.stderr.decode(errors='replace').strip().splitlines()[-1:]}"
    except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:  # e.g. no home folder
        return str(error)
    made.step.restype, made.work_size.restype, made.multiply.restype = c_int, c_int64, None
    return made


def compiled(compiler: str) -> Path:
    """Return the path of the shared library of native.c for this CPU, compiled if missing."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cm3leon"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(f"others than you can write to {folder}")
    made = folder / f"native-{_fingerprint(compiler)}.so"
    if not made.exists():
        with tempfile.TemporaryDirectory(dir=folder) as work:
            parts, whole = Path(work, "native.o"), Path(work, "native.so")
            first = (compiler, "-fopenmp", *FLAGS, "-c", SOURCE, "-o", parts)
            # linked without -fopenmp: a second OpenMP would compete with PyTorch's for the cores
            for command in (first, (compiler, "-shared", parts, "-lm", "-o", whole)):
                subprocess.run(command, check=True, capture_output=True, timeout=60)
            whole.chmod(0o700)
            whole.replace(made)
    return made


def _fingerprint(compiler: str) -> str:
    """Return a hash of source, compiler and CPU: machines may share a home folder."""
    found = Path(compiler).resolve()
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    cpu = [line for line in lines if line.startswith(("flags", "Features", "CPU part"))]
    parts = (SOURCE.read_text(encoding="utf-8"), found, found.stat().st_mtime, *cpu, *FLAGS)
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:16]


class NativeDecoder:
    """Decoder of one new id per row in native.c that uses a model's weights in place."""

    def __init__(self, model: Decoder, made: ctypes.CDLL) -> None:
        self.config, self.made = model.config, made
        config = model.config
        self.kept: list[object] = []  # tensors and structs that the structs point to
        layers = (CLayer * config.layers)(*(self._layer(cast(Block, b)) for b in model.blocks))
        self.kept.append(layers)
        table = CModel(
            layers=layers,
            embed_VD=self._at(model.embed.weight),
            norm=self._norm(model.norm),
            vocabulary=config.vocabulary,
            depth=config.layers,
            width=config.width,
            heads=config.heads,
            head_size=config.head_size,
            ffn=config.ffn_width,
            rms=config.norm == "rmsnorm",
            qk_norm=config.qk_norm,
            squared=config.mlp == "relu2",
            eps=NORM_EPS,
        )
        if model.position is not None:
            table.positions_CD = self._at(model.position.weight)
        else:
            places_1C = torch.arange(config.context).unsqueeze(0)
            cos, sin = rotation_of(config, places_1C, config.context, model.embed.weight)
            table.cos_CH, table.sin_CH = self._at(cos.squeeze()), self._at(sin.squeeze())
        self.table = table

    @classmethod
    def of(cls, model: Decoder) -> "NativeDecoder | None":
        """Return the native decoder of this model, cached until its weights change.

        Returns None where another path has to be used.
        """
        if isinstance(there := kept(model), cls):
            return there
        made = library() if suits(model) else None
        if made is None or not all(known(cast(Block, block)) for block in model.blocks):
            return None
        return keep(model, cls(model, made))

    def step(self, cache: KVCache, ids_R: Tensor) -> Tensor:
        """Return hidden states after the final norm, hidden_RD.

        The rows of the cache, which begin with the first and are not empty, grow by one token.
        """
        rows, config = len(ids_R), self.config
        assert cache.rows == range(rows), "the first rows decode"
        if cache.longest >= min(cache.capacity, config.context):
            raise IndexError("the KV cache is full")
        size = self.made.work_size(byref(self.table), c_int64(rows), c_int64(cache.capacity))
        work = torch.empty(size, dtype=torch.uint8)  # per call, as another thread may be in one
        hidden_RD = torch.empty(rows, config.width)
        floats = (cache.k_YBSNH, cache.v_YBSNH)
        _check((ids_R, cache.lengths_B), torch.long)
        _check(floats, torch.float32)
        tensors = (ids_R, cache.lengths_B, *floats, work, hidden_RD)
        numbers = (rows, cache.k_YBSNH.stride(0), cache.capacity, torch.get_num_threads())
        wrong = self.made.step(
            byref(self.table),
            *(c_void_p(x.data_ptr()) for x in tensors),
            *(c_int64(number) for number in numbers),
        )
        if wrong:
            raise IndexError(f"an id is outside the vocabulary of {config.vocabulary}")
        cache.advance([1] * rows)
        return hidden_RD

    def _layer(self, block: Block) -> CLayer:
        attention, mlp = block.attention, block.mlp
        layer = CLayer(
            qkv=self._matrix(attention.qkv),
            out=self._matrix(attention.out),
            down=self._matrix(mlp.down),
            attention_norm=self._norm(block.attention_norm),
            mlp_norm=self._norm(block.mlp_norm),
        )
        if hasattr(mlp, "wide"):  # packed gate and up side by side
            wide = cast(nn.Module, mlp.wide)
            layer.gate, layer.up = self._matrix(wide, 2, 0), self._matrix(wide, 2, 1)
        else:
            layer.up = self._matrix(mlp.up)
            if mlp.gate is not None:
                layer.gate = self._matrix(mlp.gate)
        if attention.qk_norm:
            layer.q_norm, layer.k_norm = self._norm(attention.q_norm), self._norm(attention.k_norm)
        return layer

    def _matrix(self, module: nn.Module, parts: int = 1, part: int = 0) -> CMatrix:
        """Return part number `part` of a matrix that is split into `parts`."""
        names = ("weight",) if isinstance(module, nn.Linear) else WHOLE
        tensors = [cast(Tensor, getattr(module, name)).chunk(parts)[part] for name in names]
        _check(tensors[:1], torch.int8 if len(names) > 1 else torch.float32)
        _check(tensors[1:2], torch.float32)
        outputs, width = tensors[0].shape
        places = dict(zip(FIELDS, map(self._at, tensors), strict=False))
        return CMatrix(**places, outputs=outputs, width=width)

    def _norm(self, norm: nn.Module) -> CNorm:
        gain, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
        return CNorm(*(None if one is None else self._at(one) for one in (gain, bias)))

    def _at(self, tensor: Tensor) -> int:
        """Return the address of a tensor's data, which stays valid while this decoder lives."""
        tensor = tensor.detach().contiguous()
        self.kept.append(tensor)
        return tensor.data_ptr()


def multiply(x_TK: Tensor, ints_NK: Tensor, scales_N: Tensor, sums_N: Tensor) -> Tensor:
    """Compute x W^T, y_TN in float32, with an int8 matrix, its scales and the sums of its rows."""
    made = library()
    assert made is not None, "asked for where it cannot be"
    _check((ints_NK,), torch.int8)
    _check((scales_N,), torch.float32)
    _check((sums_N,), torch.int32)
    rows, (outputs, width) = len(x_TK), ints_NK.shape
    matrix = CMatrix(*(one.data_ptr() for one in (ints_NK, scales_N, sums_N)), outputs, width)
    x_TK = x_TK.float().contiguous()
    scales_T, y_TN = torch.empty(rows), torch.empty(rows, outputs)
    bytes_TK = torch.empty(rows, width, dtype=torch.uint8)
    made.multiply(
        byref(matrix),
        *(c_void_p(x.data_ptr()) for x in (x_TK, scales_T, bytes_TK, y_TN)),
        *(c_int64(number) for number in (rows, torch.get_num_threads())),
    )
    return y_TN


def _check(tensors: Sequence[Tensor], dtype: torch.dtype) -> None:
    """Raise TypeError unless the tensors are contiguous, of this dtype and on a CPU."""
    for one in tensors:
        if one.dtype != dtype or one.device.type != "cpu" or not one.is_contiguous():
            raise TypeError(f"wanted {dtype} in one piece on a CPU, got {one.dtype}, {one.device}")


def whole_is_fast() -> bool:
    """Return whether int8 products by native.c are faster than PyTorch's."""
    made = library()
    return made is not None and bool(made.whole_is_fast())


def suits(model: Decoder, multiple: int = LANES) -> bool:
    """Return whether native.c is available and supports the device, dtype and sizes of a model."""
    config, table = model.config, model.embed.weight
    sizes = (config.width, config.ffn_width)
    return (
        table.device.type == "cpu"
        and table.dtype == torch.float32
        and config.head_size % LANES == 0
        and all(size % multiple == 0 for size in sizes)
        and library() is not None
    )


def known(block: Block) -> bool:
    """Return whether native.c supports the types of a block's matrices."""
    attention, mlp = block.attention, block.mlp
    matrices = (attention.qkv, attention.out, getattr(mlp, "wide", None) or mlp.up, mlp.down)
    return all(isinstance(one, nn.Linear) or hasattr(one, "sums_N") for one in matrices)
