"""What tells one model from another, for parts that were trained for one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

#: numbers that are looked at
COUNT = 32


def identity(model_type: str, weight: Tensor | None) -> dict[str, Any]:
    """A model's type and some of its numbers, which survive a change of precision.

    Args:
        model_type: of its configuration.
        weight: a matrix of floating-point numbers; None where there is none (packed weights), or one
            whose numbers are not here (offloaded ones), and then the type alone tells.
    """
    out: dict[str, Any] = {"model_type": model_type, "shape": [], "sample": []}
    if weight is not None and weight.numel() and not weight.is_meta:
        flat = weight.detach().flatten()
        at = torch.linspace(0, len(flat) - 1, COUNT, dtype=torch.float64).long()
        sample = flat[at.to(flat.device)].float().cpu()
        out.update(shape=list(weight.shape), sample=[round(float(x), 6) for x in sample])
    return out


def is_identity(value: Any) -> bool:
    """Whether `value`, from a file, is of the form that `identity` gives."""
    return (
        isinstance(value, Mapping)
        and isinstance(value.get("model_type"), str)
        and all(_numbers(value.get(name)) for name in ("shape", "sample"))
        and len(value["sample"]) in (0, COUNT)
    )


def _numbers(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(each, (int, float)) for each in values)


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two identities are of one model, in whatever precision it was loaded."""
    if one["model_type"] != other["model_type"]:
        return False
    if not (one["sample"] and other["sample"]):
        return True
    if one["shape"] != other["shape"]:
        return False
    mine, others = torch.tensor(one["sample"]), torch.tensor(other["sample"])
    return torch.allclose(mine, others, rtol=2e-2, atol=1e-2 * float(mine.abs().max()))
