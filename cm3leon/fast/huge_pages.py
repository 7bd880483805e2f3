"""Placement of weights in huge pages, for fewer address translations when a step reads them all.

Called by `quantize` for a decoder on a CPU. It is only a hint to Linux; where the hint is ignored,
the weights are no worse off.
"""

import mmap
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

PAGE = 2 << 20  # bytes of a huge page
LINE = 64  # bytes of a cache line


@torch.no_grad()
def settle(tensors: Iterable[Tensor]) -> None:
    """Move tensors on a CPU, in place, into one block of memory that Linux can hold in huge pages.

    They take no more memory, and those that share a storage still do. Tensors in oneDNN's own
    layout are left out.
    """
    sharing: dict[int, list[Tensor]] = defaultdict(list)
    for one in tensors:
        if one.layout == torch.strided and one.numel():
            sharing[one.untyped_storage().data_ptr()].append(one)
    sizes = [-(-some[0].untyped_storage().nbytes() // LINE) * LINE for some in sharing.values()]
    if not hasattr(mmap, "MADV_HUGEPAGE") or sum(sizes) < PAGE:
        return
    memory = mmap.mmap(-1, sum(sizes) + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    at = -torch.frombuffer(memory, dtype=torch.uint8).data_ptr() % PAGE
    for some, size in zip(sharing.values(), sizes, strict=True):
        old = some[0].untyped_storage()
        # one storage per old storage: safetensors saves no two tensors that share one
        part = torch.frombuffer(memory, dtype=torch.uint8, offset=at, count=old.nbytes())
        new = part.untyped_storage().copy_(old)
        for one in some:
            moved = torch.empty(0, dtype=one.dtype)
            one.data = moved.set_(new, one.storage_offset(), one.shape, one.stride())
        at += size
