"""Random inputs for kernels: any dtype, any strides, new numbers each time."""

from __future__ import annotations

import functools

import torch
from hypothesis import strategies as st
from torch import Tensor

from vtc.kernels._dispatch import interpreted

#: where the checks run: the CPU under the interpreter, otherwise a GPU (`test_device.py`)
DEVICE = torch.device("cpu" if interpreted() else "cuda")
tensor = functools.partial(torch.tensor, device=DEVICE)
ones, zeros = (functools.partial(make, device=DEVICE) for make in (torch.ones, torch.zeros))

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

seeds = st.integers(0, 2**31)
dtypes = st.sampled_from(DTYPES)


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float32, strided: int = 0) -> Tensor:
    """Normal numbers with gaps in memory: `strided` = 1 between rows, 2 after a transpose, 0 none."""
    generator = torch.Generator().manual_seed(seed)
    if strided == 0:
        return torch.randn(*shape, generator=generator).to(DEVICE, dtype)
    if strided == 1:
        wide = torch.randn(*shape[:-1], shape[-1] + 3, generator=generator).to(DEVICE, dtype)
        return wide[..., 1 : 1 + shape[-1]]
    swapped = torch.randn(*shape[:-2], shape[-1], shape[-2], generator=generator)
    return swapped.to(DEVICE, dtype).transpose(-1, -2)


def whole(seed: int, most: int, *shape: int) -> Tensor:
    """int64 from 0 to `most` - 1."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, most, shape, generator=generator).to(DEVICE)


def mask(seed: int, *shape: int, share: float = 0.7) -> Tensor:
    """Bools, True with probability `share`."""
    generator = torch.Generator().manual_seed(seed + 1)
    return (torch.rand(*shape, generator=generator) < share).to(DEVICE)
