"""A set of tensors that keeps none of them alive."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator

from torch import Tensor


class Living:
    """Tensors, by identity, as long as somebody else has them."""

    def __init__(self) -> None:
        self._refs: dict[int, weakref.ref[Tensor]] = {}

    def update(self, tensors: Iterable[Tensor]) -> None:
        """Add these."""
        refs = self._refs
        for tensor in tensors:
            key = id(tensor)

            def forget(ref: weakref.ref[Tensor], key: int = key) -> None:
                if refs.get(key) is ref:  # and not another tensor's, which came to lie where this one did
                    del refs[key]

            refs[key] = weakref.ref(tensor, forget)

    def __contains__(self, tensor: Tensor) -> bool:
        ref = self._refs.get(id(tensor))
        return ref is not None and ref() is tensor

    def __iter__(self) -> Iterator[Tensor]:
        return iter([tensor for tensor in [ref() for ref in list(self._refs.values())] if tensor is not None])
