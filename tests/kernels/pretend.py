"""Counting what a selection asks of a device, on a machine that has none.

`Launches` counts operations that are no views, each of which is at least one launch on a device.
`PretendDevice` makes tensors that say they are on "meta" and hold their values on the CPU: mixing
both kinds, as a GPU would refuse it, is an error, and everything that makes the host wait is noted.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

aten = torch.ops.aten
DEVICE = torch.device("meta")
#: operations whose result the host has to wait for
WAITS = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::equal",
    "aten::bincount",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
}


def waits(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the length or value of a result has to be known on the host."""
    name = function._schema.name
    if name in ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"):
        return any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1])
    if name == "aten::repeat_interleave":
        return kwargs.get("output_size") is None
    return name in WAITS


class Launches(TorchDispatchMode):
    """Counts operations that are not views, and those that make the host wait."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not function.is_view:
            self.names[function._schema.name] += 1
        if waits(function, args, kwargs):
            self.waits[function._schema.name] += 1
        return function(*args, **kwargs)

    @property
    def total(self) -> int:
        return sum(self.names.values())


class OnDevice(Tensor):
    """A tensor that says it is on the device."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnDevice:
        out = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        out.inner = inner
        return out

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise RuntimeError(f"{function} on a pretended device outside PretendDevice")


class PretendDevice(TorchDispatchMode):
    """Inside, "meta" is a device with values, as far from the CPU as a GPU.

    Attributes:
        launches: operations on the device that are not views, by name.
        reads: copies from the device to the CPU.
        sends: copies to the device.
        stops: what else makes the host wait, by name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.stops: Counter[str] = Counter()
        self.reads = self.sends = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        ours = [x for x in tensors if isinstance(x, OnDevice)]
        there = kwargs.get("device") is not None and torch.device(kwargs["device"]) == DEVICE
        if there:
            kwargs["device"] = torch.device("cpu")
        name = function._schema.name
        if name == "aten::_to_copy" and kwargs.get("device") is not None:
            if ours and not there:
                self.reads += 1
                return self._run(function, args, kwargs)
            if there and not ours:
                self.sends += 1
                if not kwargs.get("non_blocking"):
                    self.stops["blocking copy to the device"] += 1
                return OnDevice(self._run(function, args, kwargs))
        if not ours and not there:
            return function(*args, **kwargs)
        strangers = [x for x in tensors if not isinstance(x, OnDevice) and x.dim() > 0]
        if name in ("aten::index", "aten::index_put_"):  # PyTorch sends indices itself, and waits
            sent = [x for x in args[1] if x is not None and any(x is each for each in strangers)]
            strangers = [x for x in strangers if not any(x is each for each in sent)]
            self.sends += len(sent)
            self.stops.update({"indices of the CPU": len(sent)} if sent else {})
        if strangers:
            raise RuntimeError(f"{name}: tensors on the CPU and on the device")
        if not function.is_view:
            self.launches[name] += 1
        if waits(function, args, kwargs):
            self.stops[name] += 1
        known = {id(x.inner): x for x in ours}
        return tree_map(
            lambda x: known.get(id(x), OnDevice(x)) if isinstance(x, Tensor) else x,
            self._run(function, args, kwargs),
        )

    @staticmethod
    def _run(function: Any, args: Any, kwargs: Any) -> Any:
        plain = tree_map(lambda x: x.inner if isinstance(x, OnDevice) else x, (args, kwargs))
        return function(*plain[0], **plain[1])

    def put(self, tensor: Tensor) -> Tensor:
        """A tensor on the device, not counted."""
        return OnDevice(tensor)


def taken_back(tensor: Tensor) -> Tensor:
    """The values of a tensor on the device, not counted."""
    return tensor.inner if isinstance(tensor, OnDevice) else tensor
