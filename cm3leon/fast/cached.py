"""Cache of the structures that the fast paths derive from a decoder's weights.

An entry is valid until the weights change.
"""

from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from cm3leon.model import Decoder

T = TypeVar("T")
Version = list[tuple[int, int]]
_KEPT: WeakKeyDictionary[Decoder, tuple[Version, Any]] = WeakKeyDictionary()


def weights_version(model: Decoder) -> Version:
    """Return a list that differs whenever a weight is another tensor or has been modified."""
    return [
        (one.data_ptr(), 0 if one.is_inference() else one._version) for one in model.parameters()
    ]


def kept(model: Decoder) -> Any:
    """Return the cached object of a model, or None if its weights have changed since."""
    version, made = _KEPT.get(model, (None, None))
    return made if version == weights_version(model) else None


def keep(model: Decoder, made: T) -> T:
    """Cache an object for a model; it must not refer to the model, which would never be freed."""
    _KEPT[model] = (weights_version(model), made)
    return made


def forget(model: Decoder) -> None:
    """Remove the cached object of a model."""
    _KEPT.pop(model, None)
