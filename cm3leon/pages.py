"""Weights in large pages: a decode step reads all, and the CPU has to find where each page lies.

Beside precision, which has a decoder on a CPU moved there. No more than a hint to Linux; where it
is not heard, the weights lie as well as before.
"""

import mmap
from collections.abc import Iterable

import torch
from torch import Tensor, UntypedStorage

PAGE = 2 << 20  # bytes of a large page
LINE = 64  # bytes of a cache line


@torch.no_grad()
def settle(tensors: Iterable[Tensor]) -> None:
    """Move tensors on a CPU, in place, into one piece of memory that Linux can hold in large pages.

    They take no more room, and those that share a storage go on sharing it. Left out are tensors
    in oneDNN's own order.
    """
    given = [one for one in tensors if one.layout == torch.strided and one.numel()]
    old = {one.data_ptr(): one for one in map(Tensor.untyped_storage, given)}
    sizes = [-(-one.nbytes() // LINE) * LINE for one in old.values()]
    if not hasattr(mmap, "MADV_HUGEPAGE") or sum(sizes) < PAGE:
        return
    memory = mmap.mmap(-1, sum(sizes) + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    at = -torch.frombuffer(memory, dtype=torch.uint8).data_ptr() % PAGE
    new: dict[int, UntypedStorage] = {}
    for (place, one), size in zip(old.items(), sizes, strict=True):
        # each a storage of its own, for safetensors saves no two tensors of one
        part = torch.frombuffer(memory, dtype=torch.uint8, offset=at, count=one.nbytes())
        new[place] = part.untyped_storage()
        new[place].copy_(one)
        at += size
    for one in given:
        storage = new[one.untyped_storage().data_ptr()]
        moved = torch.empty(0, dtype=one.dtype)
        one.data = moved.set_(storage, one.storage_offset(), one.shape, one.stride())
