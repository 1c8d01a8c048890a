"""Two methods written in the style of their official code, to measure what that style costs.

These are stand-ins: own code, written for this comparison, that does what the official repositories
do in the way they do it (loops over tokens and crops in Python, `.item()` on single values,
scikit-learn's local outlier factor on the CPU). It is not their code and proves nothing about its
speed beyond the style.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, interpolate, normalize

from vtc.errors import VTCError


def recoverable(features: Tensor, visual: Tensor, text: Tensor, keys: Tensor) -> Tensor:
    """Recoverable Compression of one tile, sequential variant, official choices.

    Args:
        features: `[N, C]`.
        visual: `[N]`, visual scores.
        text: `[N]`, text scores.
        keys: `[N, C]`, without CLS.

    Returns:
        `[M, C]`: kept patches, centres, extra token.
    """
    patches, width = features.shape

    def share(values: Tensor, k: int) -> float:
        return _outliers(values, k) / len(values)

    kept = visual.topk(math.floor(patches * share(visual, 20))).indices
    text = text.clone()
    lowest = text.min().item()
    for index in kept:
        text[index.item()] = lowest
    found = text.topk(math.floor((patches - len(kept)) * share(text, 20))).indices
    main = sorted({index.item() for index in kept} | {index.item() for index in found})
    rest = [index for index in range(patches) if index not in set(main)]

    left = visual[rest]
    wanted = min(math.floor(width * share(left, 10)), len(rest))
    centres = left.topk(wanted).indices.tolist()
    out = [features[index] for index in main]
    for centre in centres:
        score = []
        for other in range(len(rest)):  # keys by place in the rest: the official slip
            if other == centre:
                score.append(-math.inf)
                continue
            alike = cosine_similarity(keys[centre], keys[other], dim=0).item()
            score.append(alike + 50 * text[rest[other]].item())
        token = features[rest[centre]].clone()
        for other in torch.tensor(score).topk(min(32, len(rest) - 1)).indices:
            index = rest[other.item()]
            token += visual[index].item() * features[index]
        out.append(token)
    if centres:
        extra = torch.zeros_like(features[0])
        for place, index in enumerate(rest):
            if place not in centres:
                extra += visual[index].item() * features[index]
        out.append(extra)
    return torch.stack(out)


def _outliers(values: Tensor, k: int) -> int:
    try:
        from sklearn.neighbors import LocalOutlierFactor
    except ImportError as error:
        raise VTCError(
            "scikit-learn: not installed, the stand-in of 'recoverable' needs it; "
            "pip install scikit-learn"
        ) from error
    column = values.float().cpu().numpy().reshape(-1, 1)
    return int((LocalOutlierFactor(n_neighbors=k).fit_predict(column) == -1).sum())


def globalcom2(
    features: Tensor,
    scores: Tensor,
    newline: Tensor,
    crops: tuple[int, int],
    retention: float,
    tau: float = 10.0,
) -> Tensor:
    """GlobalCom2 of one image without padding, official choices.

    Args:
        features: `[1 + n, N, D]`, N a square.
        scores: `[1 + n, N]`, CLS logits.
        newline: `[D]`.
        crops: `(rows, cols)`, n together.
        retention: R.

    Returns:
        `[M, D]`: the thumbnail's tokens, then the canvas row by row with newlines.
    """
    patches = features.shape[1]
    side, count = math.isqrt(patches), crops[0] * crops[1]
    thumbnail = scores[0].float()
    sums = [0.0] * count
    for index in range(patches):
        row = min(index // side // max(side // crops[0], 1), crops[0] - 1)
        col = min(index % side // max(side // crops[1], 1), crops[1] - 1)
        sums[row * crops[1] + col] += thumbnail[index].item()
    weights = [math.exp((each - max(sums)) / tau) for each in sums]
    sigma = [each / (sum(weights) + 1e-8) for each in weights]
    ratios = [min(retention * (1 + each - sum(sigma) / count), 1) for each in sigma]

    order = thumbnail.argsort(descending=True, stable=True)[: math.floor(patches * retention)]
    out = [features[0, index.item()] for index in order]
    size = (crops[0] * side, crops[1] * side)
    canvas = interpolate(thumbnail.view(1, 1, side, side), size=size, mode="bilinear")[0, 0]
    kept = set()
    for crop in range(count):
        row, col = crop // crops[1] * side, crop % crops[1] * side
        view = canvas[row : row + side, col : col + side].flatten()
        total = normalize(scores[crop + 1].float(), dim=0) + normalize(view, dim=0)
        best = total.argsort(descending=True, stable=True)[: math.floor(patches * ratios[crop])]
        for index in best:
            kept.add((crop, index.item()))
    for y in range(size[0]):
        for x in range(size[1]):
            crop, index = y // side * crops[1] + x // side, y % side * side + x % side
            if (crop, index) in kept:
                out.append(features[crop + 1, index])
        out.append(newline)
    return torch.stack(out)
