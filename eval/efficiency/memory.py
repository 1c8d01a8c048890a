"""Bytes: of weights, and of a KV cache; those of a call are in `vtc.eval.common.memory`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn


def weight_bytes(holders: Iterable[Any]) -> int:
    """Bytes of all weights, each storage once.

    Args:
        holders: modules, single parameters, and anything else, which counts nothing.
    """
    storages: dict[int, int] = {}
    for holder in holders:
        if isinstance(holder, nn.Module):
            tensors = [*holder.parameters(), *holder.buffers()]
        else:
            tensors = [holder] if isinstance(holder, Tensor) else []
        for tensor in tensors:
            storage = tensor.untyped_storage()
            # on the meta device nothing has an address
            storages[storage.data_ptr() or id(tensor)] = storage.nbytes()
    return sum(storages.values())


def cache_bytes(cache: Any) -> list[int]:
    """Bytes of the keys and values in a `transformers` cache, layer by layer."""
    return [
        sum(x.nbytes for x in (layer.keys, layer.values) if isinstance(x, Tensor))
        for layer in cache.layers
    ]
