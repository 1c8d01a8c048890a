"""Quantisers by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vtc.discrete.quantizers import library
from vtc.discrete.quantizers.base import Quantizer
from vtc.discrete.quantizers.bernoulli import BernoulliQuantizer
from vtc.discrete.quantizers.bsq import bsq
from vtc.discrete.quantizers.ibq import IndexBackpropQuantizer
from vtc.discrete.quantizers.vq import VectorQuantizer
from vtc.registry import create, names

QUANTIZERS: dict[str, Callable[..., Quantizer]] = {
    "bernoulli": BernoulliQuantizer,
    "vq": VectorQuantizer,
    "ibq": IndexBackpropQuantizer,
    "ema_vq": library.ema_vq,
    "lfq": library.lfq,
    "bsq": bsq,
    "fsq": library.fsq,
    "sim_vq": library.sim_vq,
}


def list_quantizers(pattern: str = "*") -> list[str]:
    """Names of quantisers that match a glob, sorted."""
    return names(QUANTIZERS, pattern)


def create_quantizer(name: str, dim: int, **options: Any) -> Quantizer:
    """The quantiser `name` for features of width `dim`.

    Raises:
        VTCError: unknown name or option, or a value out of range.
    """
    return create(QUANTIZERS, "quantizer", name, dim=dim, **options)
