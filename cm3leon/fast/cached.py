"""What the fast paths make of a decoder's weights, kept until the weights change."""

from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from cm3leon.model import Decoder

T = TypeVar("T")
Version = list[tuple[int, int]]
_KEPT: WeakKeyDictionary[Decoder, tuple[Version, Any]] = WeakKeyDictionary()


def weights_version(model: Decoder) -> Version:
    """Return another list whenever a weight is another tensor or has other numbers."""
    return [
        (one.data_ptr(), 0 if one.is_inference() else one._version) for one in model.parameters()
    ]


def kept(model: Decoder) -> Any:
    """Return what was kept for a model, None where its weights have changed since."""
    version, made = _KEPT.get(model, (None, None))
    return made if version == weights_version(model) else None


def keep(model: Decoder, made: T) -> T:
    """Keep something for a model; it must not refer to the model, which would never be freed."""
    _KEPT[model] = (weights_version(model), made)
    return made


def forget(model: Decoder) -> None:
    """Drop what was kept for a model."""
    _KEPT.pop(model, None)
