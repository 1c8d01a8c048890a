"""Plain references of the methods inside the language model: one row, in Python loops and float64."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from tests.layer_views import GROUPS, HEAD_WIDTH, HEADS, Row

#: image -> how many of its tokens are to be left
Budget = list[int]


def best(scores: dict[int, float], count: int) -> list[int]:
    """Columns of the largest scores, best first; ties to the lower column."""
    return sorted(scores, key=lambda column: (-scores[column], column))[:count]


def attention(
    row: Row, columns: Iterable[int], layer: str, rotary: bool = True, among: set[int] | None = None
) -> Tensor:
    """Float64 `[H, S]`: mean over some rows of a causal attention map."""
    query, key = (x.double() for x in row.heads[layer, rotary])  # type: ignore[index]
    rows = []
    for column in columns:
        seen = [s for s in range(column + 1) if among is None or s in among]
        out = torch.zeros(HEADS, len(row), dtype=torch.float64)
        for head in range(HEADS):
            keys = key[head // (HEADS // GROUPS), seen]
            logits = keys @ query[head, column] * HEAD_WIDTH**-0.5
            if seen:
                out[head, seen] = torch.softmax(logits, 0)
        rows.append(out)
    return torch.stack(rows).mean(0)


def images(row: Row) -> dict[int, list[int]]:
    """Columns of each image."""
    out: dict[int, list[int]] = {}
    for column, number in enumerate(row.image.tolist()):
        if number >= 0:
            out.setdefault(number, []).append(column)
    return out


def question(row: Row) -> list[int]:
    """Columns of the text behind the last image, up to the first token that asks."""
    last = max((max(columns) for columns in images(row).values()), default=-1)
    end = min(row.asking, default=len(row))
    return [s for s in range(len(row)) if last < s <= end]


def ranked(row: Row, counts: Budget, score: Tensor) -> set[int]:
    out: set[int] = set()
    for number, columns in images(row).items():
        out |= set(best({s: float(score[s]) for s in columns}, counts[number]))
    return out


def fastv(row: Row, counts: Budget) -> set[int]:
    return ranked(row, counts, attention(row, row.asking, "before").mean(0))


def pyramiddrop(row: Row, counts: Budget) -> set[int]:
    return ranked(row, counts, attention(row, row.asking, "here").mean(0))


def v2drop(row: Row, counts: Budget) -> set[int]:
    moved = row.vectors["hidden"].double() - row.vectors["entered"].double()
    return ranked(row, counts, moved.square().sum(1).sqrt())


def vtw(row: Row, counts: Budget) -> set[int]:
    return set()


def feather(row: Row, counts: Budget) -> set[int]:
    """With a budget: the grid first, the best of the others behind it."""
    among = {s for columns in images(row).values() for s in columns}
    score = attention(row, row.asking, "before", False, among).mean(0)
    out: set[int] = set()
    for number, columns in images(row).items():
        grid = [s for s in columns if int(row.place[s, 1]) % 3 == 0 == int(row.place[s, 2]) % 3]
        order = best({s: float(score[s]) for s in grid}, len(grid))
        others = {s: float(score[s]) for s in columns if s not in grid}
        out |= set([*order, *best(others, len(others))][: counts[number]])
    return out


def dart(row: Row, counts: Budget) -> set[int]:
    norm = row.heads["before", True][1].double().abs().sum((0, 2))
    states = row.vectors["states"].double()
    words = best({s: float(norm[s]) for s in question(row)}, 4)
    out: set[int] = set()
    for number, columns in images(row).items():
        count = min(counts[number], len(columns))
        own = best({s: float(norm[s]) for s in columns}, min(4, count))
        left, turns = count - len(own), [*own, *words]
        free, taken = [s for s in columns if s not in own], set(own)
        for nth, pivot in enumerate(turns):
            share = left // len(turns) + (nth < left % len(turns))
            like = {
                s: -float(torch.cosine_similarity(states[s], states[pivot], dim=0)) for s in free
            }
            got = best(like, share)
            free, taken = [s for s in free if s not in got], taken | set(got)
        out |= taken
    return out


def raters(row: Row) -> list[int]:
    words = question(row)
    embeds = row.vectors["embeds"].double()
    shares = torch.zeros(len(words), dtype=torch.float64)
    visual = [s for columns in images(row).values() for s in columns]
    for s in visual:
        shares += torch.softmax(embeds[words] @ embeds[s], 0) / len(visual)
    return [w for w, share in zip(words, shares, strict=True) if share > shares.mean()] or words


def sparsevlm(row: Row, counts: Budget) -> tuple[set[int], dict[int, Tensor]]:
    """What stays, and the means in the places of centres; `counts` are without clusters."""
    score = attention(row, raters(row), "before").mean(0)
    hidden = row.vectors["hidden"].double()
    out, values = set(), {}
    for number, columns in images(row).items():
        order = best({s: float(score[s]) for s in columns}, len(columns))
        keep = max(0, min(counts[number], len(columns) - 1))
        again = order[keep : keep + int(0.3 * (len(columns) - keep)) + 1]
        clusters = len(again) // 10 + 1
        out |= set(order[:keep])
        far = torch.cdist(hidden[again], hidden[again]) / hidden.shape[1] ** 0.5
        density = [
            float(torch.exp(-far[i].sort().values[:clusters].square().mean()))
            for i in range(len(again))
        ]
        peak = {}
        for i in range(len(again)):
            denser = [
                float(far[i, j]) for j in range(len(again)) if (-density[j], j) < (-density[i], i)
            ]
            peak[i] = density[i] * (min(denser) if denser else float(far.max()))
        centres = best(peak, clusters)
        members: dict[int, list[int]] = {c: [c] for c in centres}
        for i in range(len(again)):
            if i not in centres:
                nearest = min(sorted(centres), key=lambda c: float(far[i, c]))
                members[nearest].append(i)
        for centre, some in members.items():
            where = again[centre]
            total = hidden[[again[i] for i in some]].sum(0)
            values[where] = total / (len(some) + 1e-6)
            out.add(where)
    return out, values


KEPT: dict[str, Callable[[Row, Budget], set[int]]] = {
    "fastv": fastv,
    "pyramiddrop": pyramiddrop,
    "vscan_layers": pyramiddrop,
    "v2drop": v2drop,
    "vtw": vtw,
    "feather": feather,
    "dart": dart,
}
