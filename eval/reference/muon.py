"""Muon for small matrices on a CPU: momentum, then the nearest orthogonal matrix, in float32.

``torch.optim.Muon`` computes in bfloat16, which is many times slower than float32 on a CPU without
bfloat16 instructions. Matrices of one shape are handled as one batch.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

# Quintic Newton-Schulz coefficients of the published method.
A, B, C = 3.4445, -4.7750, 2.0315


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Push the singular values of ``[n, rows, cols]`` towards one."""
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    turned = x.shape[1] > x.shape[2]
    if turned:
        x = x.mT
    for _ in range(steps):
        gram = x @ x.mT
        x = A * x + (B * gram + C * gram @ gram) @ x
    return x.mT if turned else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonal updates scaled to the size of an AdamW update."""

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(p.shape, []).append(p)
            for shape, members in shapes.items():
                updates = []
                for p in members:
                    state = self.state[p]
                    if "momentum" not in state:
                        state["momentum"] = torch.zeros_like(p)
                    grad = p.grad
                    assert grad is not None
                    state["momentum"].lerp_(grad, 1 - group["momentum"])
                    updates.append(grad.lerp(state["momentum"], group["momentum"]))
                update = orthogonalise(torch.stack(updates))
                scale = 0.2 * max(shape) ** 0.5 * group["lr"]
                for p, change in zip(members, update, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(change, alpha=scale)
