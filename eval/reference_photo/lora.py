"""Low-rank changes of linear maps (LoRA, arXiv:2106.09685): beside the maps in training, added to them
at loading."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

SCALE = 2.0
PARTS = (".lora_a", ".lora_b")


class LowRank(nn.Module):
    """A frozen linear map and a trained change of few ranks: `x W' + 2 (x A') B'`."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_a = nn.Parameter(torch.randn(rank, base.in_features) * base.in_features**-0.5)
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        out = self.base(x)
        low = nn.functional.linear(x, self.lora_a).flatten(0, -2)
        return torch.addmm(out.flatten(0, -2), low, SCALE * self.lora_b.T).view(out.shape)


def attach(module: nn.Module, rank: int) -> None:
    """Put a `LowRank` in the place of every linear map within `module`."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, LowRank(child, rank))


def changes(model: nn.Module) -> dict[str, Tensor]:
    """The trained matrices of all `LowRank` within `model`, by the name of their map."""
    return {
        name: value.detach().clone()
        for name, value in model.named_parameters()
        if name.endswith(PARTS)
    }


def merge(model: Any, found: Mapping[str, Tensor]) -> None:
    """Add `changes` to the maps of a model that has no `LowRank`."""
    with torch.no_grad():
        for name in sorted(found):
            if name.endswith(PARTS[0]):
                place = name.removesuffix(PARTS[0])
                weight = model.get_submodule(place).weight
                weight += SCALE * found[place + PARTS[1]].to(weight) @ found[name].to(weight)
