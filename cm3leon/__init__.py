"""CM3Leon, a text-image transformer.

`CM3Leon` is imported lazily, so that importing this package loads no torch.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cm3leon.pipeline import CM3Leon

__version__ = "0.1.0"
__all__ = ["CM3Leon", "__version__"]


def __getattr__(name: str) -> object:
    """Import `cm3leon.CM3Leon` on first access."""
    if name == "CM3Leon":
        from cm3leon.pipeline import CM3Leon

        return CM3Leon
    raise AttributeError(f"module 'cm3leon' has no attribute {name!r}")
