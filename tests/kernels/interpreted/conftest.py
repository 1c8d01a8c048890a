"""Poisoned buffers and settings for tests under the interpreter."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import settings

# every program of a grid costs milliseconds here
settings.register_profile("interpreted", max_examples=40, deadline=None)
settings.load_profile("interpreted")


@pytest.fixture(autouse=True, scope="session")
def poisoned() -> None:
    """Whatever `empty` hands out is NaN, or the largest whole number, before a kernel writes it."""
    assert os.environ.get("VTC_KERNELS") == "interpret", "set it before pytest starts"
    torch.use_deterministic_algorithms(True)
    assert torch.zeros(1).new_empty(3).isnan().all()
