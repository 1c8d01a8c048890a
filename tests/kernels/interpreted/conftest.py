"""Poisoned buffers and settings for tests under the interpreter."""

from __future__ import annotations

import os
from typing import Any

import numpy
import pytest
import torch
from hypothesis import settings

# every program of a grid costs milliseconds here;
# new examples on every machine but CI, where the same commit must give the same result
settings.register_profile(
    "interpreted", max_examples=40, deadline=None, derandomize="CI" in os.environ
)
settings.load_profile("interpreted")


@pytest.fixture(autouse=True, scope="session")
def poisoned() -> None:
    """Whatever `empty` hands out is NaN, or the largest whole number, before a kernel writes it."""
    assert os.environ.get("VTC_KERNELS") == "interpret", "set it before pytest starts"
    torch.use_deterministic_algorithms(True)
    assert torch.zeros(1).new_empty(3).isnan().all()


def _sort(x: Any, dim: int = -1, descending: bool = False) -> Any:
    from triton.language import tensor
    from triton.runtime.interpreter import TensorHandle

    data = numpy.sort(x.handle.data, axis=dim)
    data = numpy.flip(data, dim) if descending else data
    return tensor(TensorHandle(data.copy(), x.handle.dtype), x.type)


@pytest.fixture(autouse=True)
def sorted_by_numpy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's sort is a loop over elements in the interpreter, seconds a call; NumPy's is the same.

    Tests named `*_with_tritons_sort` keep it.
    """
    if not request.node.name.endswith("_with_tritons_sort"):
        import triton.language

        monkeypatch.setattr(triton.language, "sort", _sort)
