"""The device that models of tests run on: `VTC_TEST_DEVICE=cuda pytest tests/hf tests/families`."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

DEVICE = torch.device(os.environ.get("VTC_TEST_DEVICE", "cpu"))
if DEVICE.type == "cuda":
    # float32 is float32: cuDNN would round the patches' convolution to TF32
    torch.backends.cudnn.allow_tf32 = False


def placed(batch: dict[str, Any], device: torch.device = DEVICE) -> dict[str, Any]:
    """A batch with its tensors on a device."""
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
