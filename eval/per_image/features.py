"""Cheap features of an image, from what a vision tower gives anyway."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vtc.batch import ImageBatch
from vtc.functional.greedy import cosines
from vtc.kernels.greedy_pick import greedy_pick
from vtc.methods.coverage import Coverage
from vtc.tokens import VisualTokens

#: shares of the patches at which it is looked how much the picks of `coverage` cover
AT = (0.03, 0.1, 0.3)
FEATURES = (
    "patches",  # log of how many there are: crops
    *(f"uncovered at {share:.0%}" for share in AT),  # log of the demand that is left: saturation
    "attention",  # log of the share of patches that CLS attends to: exp(entropy) / patches
    "rank",  # log of the effective rank of the features, as a share of the patches
    "edges",  # mean of 1 - cosine of neighbours in a row: print and small things have many
    "unlike",  # mean of 1 - cosine of all pairs
)


def looks(tokens: VisualTokens) -> dict[str, float]:
    """The features of an image by name.

    Args:
        tokens: with the signals of `coverage`.
    """
    method = Coverage(retention=1.0)
    signals = {name: tokens.signals[str(r)] for name, r in method.requests().items()}
    batch = ImageBatch([replace(tokens, signals=signals)], [method])
    among = method.candidates(batch)
    rows, valid = among.of(batch.features)[0], among.valid[0]
    demand = among.of(method.demand(batch))[0]
    rows, demand = rows[valid].float(), demand[valid].double()
    demand = demand / demand.sum()
    same = cosines(rows[None], torch.ones(1, len(rows), dtype=torch.bool))[0]
    covers = same.clamp(min=0) ** method.sharpness
    most = int(max(AT) * len(rows))
    order = greedy_pick(
        "cover", covers[None].clone(), torch.tensor([most]), most, None,
        torch.ones(1, len(rows), dtype=torch.bool), demand.float()[None],
    )[0]  # fmt: skip
    covered = covers[:, order].double().cummax(1).values.T @ demand  # [picks]
    left = [float(1 - covered[max(1, int(share * len(rows))) - 1]) for share in AT]
    spread = torch.linalg.svdvals(torch.nn.functional.normalize(rows, dim=-1)).double() ** 2
    found = [
        _log(len(rows)),
        *(_log(value) for value in left),
        _entropy(demand) - _log(len(rows)),
        _entropy(spread / spread.sum()) - _log(len(rows)),
        _edges(tokens),
        float(1 - same.mean()),
    ]
    return dict(zip(FEATURES, found, strict=True))


def _log(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float64).clamp(min=1e-9).log())


def _entropy(share: Tensor) -> float:
    return float(-(share * share.clamp(min=1e-12).log()).sum())


def _edges(tokens: VisualTokens) -> float:
    rows, cols = tokens.packing.patch_grid
    grid = torch.nn.functional.normalize(tokens.features.float(), dim=-1)
    grid = grid.unflatten(1, (rows, cols))
    apart = 1 - (grid[:, :, 1:] * grid[:, :, :-1]).sum(-1)
    return float(apart.mean())
